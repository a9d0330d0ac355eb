"""containers-registries.conf(5), version 2: where the images of a registry are fetched from, and which are blocked.

Read are the settings that concern pulling: `unqualified-search-registries`, `[[registry]]` with `prefix`, `location`,
`insecure`, `blocked`, `mirror-by-digest-only`, `[[registry.mirror]]` with `location`, `insecure`, `pull-from-mirror`,
and `[aliases]`. The files are podman's, so that a host that has podman configured is done.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from aci.types import quote
from common.errors import ConfigError, reason
from common.records import NamedTuple
from stage0.docker_reference import DOCKER_HUB, DockerReference

SYSTEM = "/etc/containers/registries.conf"
USER = ".config/containers/registries.conf"
_HUB_HOST = "registry-1.docker.io"
_PULL = ("all", "digest-only", "tag-only")


class Endpoint(NamedTuple):
    """A place to fetch an image from."""

    host: str
    """`host[:port]`"""
    repository: str
    insecure: bool
    """Whether certificates go unchecked, and plain HTTP will do."""

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


class Mirror(NamedTuple):
    location: str
    insecure: bool
    pull: str
    """"all", "digest-only" or "tag-only": which references it may answer."""


class Registry(NamedTuple):
    """One `[[registry]]` table."""

    prefix: str
    """`host[/path]`, or `*.host` for every host below it."""
    location: str
    """What stands in the place of the prefix; empty when nothing does."""
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]


class Registries(NamedTuple):
    """What all the files come to."""

    registries: tuple[Registry, ...] = ()
    search: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    files: tuple[str, ...] = ()
    """What was read."""

    def find(self, name: str) -> Registry | None:
        """The table for the image called `name` (`registry/repository[:tag]`): the one with the longest prefix."""
        fitting = [registry for registry in self.registries if _matched(registry.prefix, name)]
        return max(fitting, key=lambda registry: len(registry.prefix), default=None)

    def endpoints(self, reference: DockerReference) -> tuple[Endpoint, ...]:
        """Where to look for the image, in this order: mirrors, then the registry. Raises ConfigError if blocked."""
        found = self.find(str(reference))
        if found is None:
            return (_endpoint(reference.name, insecure=False),)
        if found.blocked:
            raise ConfigError(
                f"{reference}: the registry {found.prefix} is blocked", hint=f"by {' or '.join(self.files)}"
            )
        places = [
            _endpoint(_moved(reference.name, found.prefix, mirror.location), insecure=mirror.insecure)
            for mirror in found.mirrors
            if mirror.pull == "all" or (mirror.pull == "digest-only") == bool(reference.digest)
        ]
        own = _endpoint(_moved(reference.name, found.prefix, found.location), insecure=found.insecure)
        return (*places, own)

    def candidates(self, short: str) -> tuple[str, ...]:
        """The full names a name without a registry may stand for, best first: its alias, or it in every registry to be
        searched. Tags and digests stay. `docker://` names are never searched for: they are Docker Hub's."""
        name, mark, rest = _before_tag(short)
        if name in self.aliases:
            return (f"{self.aliases[name]}{mark}{rest}",)
        return tuple(f"{registry}/{short}" for registry in self.search)


def _before_tag(text: str) -> tuple[str, str, str]:
    for mark in ("@", ":"):
        head, found, tail = text.partition(mark)
        if found:
            inner, colon, tag = head.partition(":") if mark == "@" else (head, "", "")
            return (inner, colon, f"{tag}@{tail}") if colon else (head, mark, tail)
    return text, "", ""


def _matched(prefix: str, name: str) -> str:
    """The part of `name` that `prefix` covers; empty when it does not match."""
    if prefix.startswith("*."):
        host = name.partition("/")[0]
        bare = host.partition(":")[0]
        return next((part for part in (host, bare) if part.endswith(prefix[1:]) and part != prefix[1:]), "")
    if name == prefix or (name.startswith(prefix) and name[len(prefix)] in "/:@"):
        return prefix
    return ""


def _moved(name: str, prefix: str, location: str) -> str:
    return location + name[len(_matched(prefix, name)) :] if location else name


def _endpoint(name: str, *, insecure: bool) -> Endpoint:
    host, _, repository = name.partition("/")
    return Endpoint(_HUB_HOST if host == DOCKER_HUB else host, repository, insecure)


# Reading


def paths(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The files that count, the main one first and then the drop-ins, each overriding those before it."""
    home = environment.get("HOME", "")
    user = f"{home}/{USER}" if home else ""
    main = environment.get("CONTAINERS_REGISTRIES_CONF") or (user if user and os.path.exists(user) else SYSTEM)
    found = [main] if os.path.exists(main) else []
    for directory in (f"{SYSTEM}.d", f"{user}.d" if user else ""):
        if directory and os.path.isdir(directory):
            found += sorted(f"{directory}/{name}" for name in os.listdir(directory) if name.endswith(".conf"))
    return found


def load(files: Sequence[str] | None = None) -> Registries:
    """The settings in `files`, by default those of `paths`. Raises ConfigError."""
    whole = Registries(files=tuple(paths() if files is None else files))
    for path in whole.files:
        whole = _merged(whole, _read(path), path)
    return whole


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"open {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable TOML document: {error}") from error


def _merged(whole: Registries, value: dict[str, Any], path: str) -> Registries:
    """A later file replaces the tables with the same prefix and the list of what is searched; aliases add up."""
    if "registries" in value:
        raise ConfigError(
            f"{path}: this is version 1 of the format, which is not read", hint="see containers-registries.conf(5)"
        )
    tables = _typed(value, "registry", list, [], path)
    new = {registry.prefix: registry for registry in (_registry(table, path) for table in tables)}
    if len(new) != len(tables):
        raise ConfigError(f"{path}: two [[registry]] tables have the same prefix")
    aliases = _typed(value, "aliases", dict, {}, path)
    if not all(isinstance(target, str) for target in aliases.values()):
        raise ConfigError(f"{path}: an alias has to be a string")
    search = _typed(value, "unqualified-search-registries", list, list(whole.search), path)
    kept = tuple(registry for registry in whole.registries if registry.prefix not in new)
    return whole._replace(
        registries=(*kept, *new.values()),
        search=tuple(_location(item, "unqualified-search-registries", path) for item in search),
        # An empty target takes an alias away.
        aliases={name: target for name, target in {**whole.aliases, **aliases}.items() if target},
    )


def _registry(table: Any, path: str) -> Registry:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: registry has to be a list of tables")
    location = _location(table.get("location", ""), "location", path)
    prefix = _location(table.get("prefix", ""), "prefix", path) or location
    if not prefix:
        raise ConfigError(f"{path}: a [[registry]] has neither prefix nor location")
    if "*" in location or "*" in prefix.removeprefix("*."):
        raise ConfigError(f"{path}: {quote(location or prefix)}: only a prefix may have a wildcard, as *.example.com")
    if prefix.startswith("*.") and "/" in prefix:
        raise ConfigError(f"{path}: {quote(prefix)}: a prefix with a wildcard is a host only")
    digest_only = _typed(table, "mirror-by-digest-only", bool, False, path)
    mirrors = _typed(table, "mirror", list, [], path)
    return Registry(
        prefix=prefix,
        location=location,
        insecure=_typed(table, "insecure", bool, False, path),
        blocked=_typed(table, "blocked", bool, False, path),
        mirrors=tuple(_mirror(mirror, path, digest_only=digest_only) for mirror in mirrors),
    )


def _mirror(table: Any, path: str, *, digest_only: bool) -> Mirror:
    if not isinstance(table, dict) or not table.get("location"):
        raise ConfigError(f"{path}: a [[registry.mirror]] has no location")
    pull = _typed(table, "pull-from-mirror", str, "", path) or "all"
    if pull not in _PULL:
        raise ConfigError(f"{path}: pull-from-mirror = {quote(pull)}: not one of {', '.join(_PULL)}")
    if digest_only and pull != "all":
        raise ConfigError(f"{path}: mirror-by-digest-only and pull-from-mirror exclude each other")
    return Mirror(
        location=_location(table["location"], "location", path),
        insecure=_typed(table, "insecure", bool, False, path),
        pull="digest-only" if digest_only else pull,
    )


def _location(value: Any, key: str, path: str) -> str:
    if not isinstance(value, str) or "://" in value or any(char.isspace() for char in value):
        raise ConfigError(f"{path}: {key} = {quote(str(value))}: has to be HOST[:PORT][/PATH], without a scheme")
    return value.strip("/")


def _typed(table: dict[str, Any], key: str, kind: type, default: Any, path: str) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise ConfigError(f"{path}: {key} is of the wrong type; see containers-registries.conf(5)")
    return value
