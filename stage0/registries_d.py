"""Where the signatures of a registry's images are kept: the `registries.d` directories that podman, skopeo and buildah
read as well (containers-registries.d(5)). Of a section only `lookaside` (formerly `sigstore`) is of use here.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from common.errors import ConfigError, reason
from stage0 import caller
from stage0.config import Config
from stage0.docker_reference import DockerReference
from stage0.openpgp import printable

SYSTEM = "/etc/containers/registries.d"
_SECTIONS = ("default-docker", "docker")
_MAX_SIZE = 1 << 20
_HINT = "containers-registries.d(5) says what may stand there"


def directories(config: Config) -> tuple[str, ...]:
    """The directories to read, the one whose word counts most first: rkpy's own, then the user's, or, where there is
    none, the system's."""
    settings = os.environ.get("XDG_CONFIG_HOME") or f"{caller.home(os.environ)}/.config"
    users = f"{settings}/containers/registries.d"
    own = [f"{directory}/registries.d" for directory in reversed(config.directories)]
    return (*own, users if os.path.isdir(users) else SYSTEM)


def lookaside(reference: DockerReference, places: tuple[str, ...]) -> tuple[str, ...]:
    """The base URLs (file, https or http) of the signatures of `reference`'s repository, one from each of the
    directories `places` that says anything about it, none twice; the built-in directory when none does.

    Raises ConfigError."""
    sections = [section for place in places if (section := _section(_merged(place), reference)) is not None]
    if not sections:
        return (built_in(),)
    return tuple(dict.fromkeys(filter(None, (_url(section) for section in sections))))


def built_in() -> str:
    """Where podman and skopeo keep the signatures they make, unless told otherwise."""
    if not caller.is_ordinary():
        return "file:///var/lib/containers/sigstore"
    return f"file://{caller.home(os.environ)}/.local/share/containers/sigstore"


class _Section(dict[str, Any]):
    """A configuration section that has been checked, with the file it is from."""

    origin = ""


def _section(configured: dict[str, _Section], reference: DockerReference) -> _Section | None:
    """The most specific section there is; more general ones do not count, whatever it says or leaves open."""
    for scope in _scopes(reference):
        if scope in configured:
            return configured[scope]
    return configured.get("")


def _scopes(reference: DockerReference) -> list[str]:
    name = reference.name
    found = [f"{name}{'@' if reference.digest else ':'}{reference.wanted}", name]
    while "/" in name:
        name = name.rpartition("/")[0]
        found.append(name)
    return found


def _url(section: _Section) -> str:
    url = section.get("lookaside") or section.get("sigstore") or ""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{section.origin}: {printable(url)} is not a URL: {error}", hint=_HINT) from error
    remote = parts.scheme in ("https", "http") and parts.netloc
    local = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if url and (not (remote or local) or parts.query or parts.fragment or not url.isprintable()):
        raise ConfigError(f"{section.origin}: {printable(url)} is not a URL of signatures", hint=_HINT)
    return str(url)


def _merged(directory: str) -> dict[str, _Section]:
    """The sections of all files, by scope; "" stands for default-docker. Nothing may be said twice, not even by two
    files that agree."""
    found: dict[str, _Section] = {}
    for path in _files(directory):
        for scope, section in _sections(path).items():
            if scope in found:
                called = f'"{printable(scope)}"' if scope else "default-docker"
                raise ConfigError(f"{path}: {called} is in {found[scope].origin} already", hint=_HINT)
            found[scope] = section
    return found


def _files(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"open {directory}: {reason(error)}") from error
    return [f"{directory}/{name}" for name in names if name.endswith(".yaml")]


def _sections(path: str) -> dict[str, _Section]:
    top = _mapping(_document(path), path, "the file")
    unknown = sorted(str(key) for key in top.keys() - set(_SECTIONS))
    if unknown:
        raise ConfigError(f"{path}: {printable(unknown[0])} is not known there", hint=_HINT)
    found = {}
    if top.get("default-docker") is not None:
        found[""] = _checked(top["default-docker"], path, "default-docker")
    for scope, section in _mapping(top.get("docker"), path, "docker").items():
        if not isinstance(scope, str) or not scope:
            raise ConfigError(f"{path}: docker: {printable(str(scope))} is not the name of a registry", hint=_HINT)
        found[scope] = _checked(section, path, f"docker: {printable(scope)}")
    return found


def _checked(value: Any, path: str, where: str) -> _Section:
    section = _Section(_mapping(value, path, where))
    section.origin = path
    for key in ("lookaside", "sigstore"):
        if not isinstance(section.get(key) or "", str):
            raise ConfigError(f"{path}: {where}: {key} has to be a URL", hint=_HINT)
    return section


def _mapping(value: Any, path: str, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} has to be a mapping", hint=_HINT)
    return value


def _document(path: str) -> Any:
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_SIZE + 1)
        if len(data) > _MAX_SIZE:
            raise ConfigError(f"{path}: larger than {_MAX_SIZE >> 20} MiB")
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        _refuse_repeated(node, path)
        return yaml.load(data, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"open {path}: {reason(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable YAML document: {printable(text[:200])}", hint=_HINT) from error


def _refuse_repeated(node: Any, path: str) -> None:
    """PyYAML lets the last of two equal keys win without a word."""
    import yaml

    waiting, seen = [node], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue  # an alias
        seen.add(id(item))
        if isinstance(item, yaml.MappingNode):
            keys = [key.value for key, _ in item.value if isinstance(key, yaml.ScalarNode)]
            repeated = [key for key, times in Counter(keys).items() if times > 1]
            if repeated:
                raise ConfigError(f"{path}: {printable(repeated[0])} is there twice", hint=_HINT)
            waiting += [value for _, value in item.value]
        elif isinstance(item, yaml.SequenceNode):
            waiting += item.value
