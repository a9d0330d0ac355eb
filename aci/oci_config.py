"""The configuration of an OCI image (image-spec, config.md) described as an appC image manifest.

The mapping is docker2aci's, so that rkt's users find the names they know; what docker2aci dropped (health check, stop
signal, shell, triggers) is kept as annotations. docs/images.md has the table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from aci import document, image_manifest, types
from aci.image_manifest import App, ImageManifest, MountPoint, Port
from common import overlay
from common.errors import ImageError, ManifestError
from common.records import NamedTuple
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

ANNOTATION = "appc.io/docker/"
ENTRYPOINT, CMD = f"{ANNOTATION}entrypoint", f"{ANNOTATION}cmd"
"""Annotations with JSON lists: the two halves of `exec`."""
_KEPT_AS_JSON = ("Healthcheck", "Shell", "OnBuild")
_DOCKER_HUB = "registry-1.docker.io"
_HUB_ALIASES = ("docker.io", "index.docker.io", _DOCKER_HUB)
_ACCOUNTS_LIMIT = 1 << 20
_NAME_LIMIT = 1024

Warn = Callable[[str], None]


class Name(NamedTuple):
    """What an image is called: an AC Identifier and a version."""

    name: str
    version: str
    original: str
    """As the archive has it; empty when it says nothing."""


def name_of(reference: str, path: str, *, docker: bool = False) -> Name:
    """The appC name for an image that its archive at `path` calls `reference`: a full name with or without a tag, a tag
    alone (as `oci:DIR:TAG` writes it), or nothing.

    Docker Hub goes by the name rkt gave it. With `docker`, names follow docker's rule that `busybox` is a short form of
    `docker.io/library/busybox`; the OCI specification knows no such rule. ImageError when no name can be made."""
    if len(reference) > _NAME_LIMIT:
        raise ImageError(f"{path}: the name of the image is longer than {_NAME_LIMIT} characters")
    base, tag = _split(reference)
    if not docker and "/" not in reference and ":" not in reference:
        base, tag = "", reference
    if not base:
        base = os.path.basename(os.path.abspath(path))
        for suffix in (".gz", ".xz", ".zst", ".bz2", ".tgz", ".tar", ".oci"):
            base = base.removesuffix(suffix) or base
    else:
        base = _with_registry(base, docker=docker)
    try:
        return Name(types.sanitise_identifier(base), tag or "latest", reference)
    except ManifestError as error:
        raise ImageError(f"{path}: no image name can be made of {types.quote(base)}: {error.message}") from None


def _split(reference: str) -> tuple[str, str]:
    """Name and tag; a colon before the last slash is a registry's port."""
    reference = reference.partition("@")[0]
    head, slash, tail = reference.rpartition("/")
    name, _, tag = tail.partition(":")
    return head + slash + name, tag


def _with_registry(base: str, *, docker: bool) -> str:
    registry, slash, rest = base.partition("/")
    has_registry = bool(slash) and ("." in registry or ":" in registry or registry == "localhost")
    if has_registry and registry in _HUB_ALIASES:
        return f"{_DOCKER_HUB}/{rest if '/' in rest else f'library/{rest}'}"
    if has_registry or not docker:
        return base
    return f"{_DOCKER_HUB}/{base if slash else f'library/{base}'}"


def describe(
    config: dict[str, Any], name: Name, config_digest: str, annotations: dict[str, str], warn: Warn
) -> ImageManifest:
    """The manifest for `config`; `annotations` are those of the OCI manifest. The group is set by `with_accounts`.

    Raises ManifestError."""
    process: dict[str, Any] = document.field(config, "config", _object, {})
    system, arch = types.platform_from_go(
        document.required(config, "os", document.word),
        document.required(config, "architecture", document.word),
        document.field(config, "variant", document.text, ""),
    )
    manifest = ImageManifest(
        name=name.name,
        labels=(("version", name.version), ("os", system), ("arch", arch)),
        app=_app(process, annotations, warn),
        annotations=tuple(_annotations(config, process, name, config_digest, warn)),
    )
    # Through the reader, so that nothing gets into the store that could not be read from it.
    return image_manifest.from_json(image_manifest.to_json(manifest))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise document.expected("an object", value)
    return value


_texts = document.each(document.text)


def _app(process: dict[str, Any], annotations: dict[str, str], warn: Warn) -> App:
    user = document.field(process, "User", document.text, "")
    account, _, group = user.partition(":")
    directory = document.field(process, "WorkingDir", document.text, "")
    command = _commands(process)
    return App(
        exec=(*command[0], *command[1]),
        user=account or "0",
        group=group or "0",
        working_directory=f"/{directory.lstrip('/')}" if directory else "",
        environment=tuple(_environment(document.field(process, "Env", _texts, ()), warn)),
        mount_points=tuple(_mount_points(document.field(process, "Volumes", _object, {}))),
        ports=tuple(_ports(document.field(process, "ExposedPorts", _object, {}), warn)),
        user_annotations=tuple(annotations.items()),
        user_labels=document.field(process, "Labels", document.texts, ()),
    )


def _commands(process: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return document.field(process, "Entrypoint", _texts, ()), document.field(process, "Cmd", _texts, ())


def _environment(entries: Sequence[str], warn: Warn) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            types.check_environment([(name, value)])
            found[name] = value
        except ManifestError as error:
            warn(f"an environment variable of the image is left out: {error.message}")
    return list(found.items())


def _mount_points(volumes: dict[str, Any]) -> list[MountPoint]:
    points: list[MountPoint] = []
    taken: set[str] = set()
    for path in volumes:
        path = "/" + document.text(path).strip("/")
        base = name = types.sanitise_name("volume" + path.replace("/", "-"))
        while name in taken:
            name = f"{base}-{len(taken) + 1}"
        taken.add(name)
        points.append(MountPoint(name=name, path=path, read_only=False))
    return points


def _ports(exposed: dict[str, Any], warn: Warn) -> list[Port]:
    ports: list[Port] = []
    for entry in exposed:
        number, _, protocol = entry.partition("/")
        if number.isascii() and number.isdigit() and 0 < int(number[:6]) < 1 << 16:
            protocol = protocol.lower() or "tcp"
            name = f"{int(number)}-{protocol}"
            port = Port(name=name, protocol=protocol, port=int(number), span=1, socket_activated=False)
            if port not in ports:
                ports.append(port)
        else:
            warn(f"a port of the image is left out: {types.quote(entry)} is not PORT/PROTOCOL")
    return ports


def _annotations(
    config: dict[str, Any], process: dict[str, Any], name: Name, config_digest: str, warn: Warn
) -> list[tuple[str, str]]:
    found = []
    if created := document.field(config, "created", document.text, ""):
        try:
            found.append(("created", types.date(created)))
        except ManifestError as error:
            warn(f"the image's date of creation is left out: {error.message}")
    if author := document.field(config, "author", document.text, ""):
        found.append(("authors", author))
    for key, command in zip((ENTRYPOINT, CMD), _commands(process), strict=True):
        if command:
            found.append((key, json.dumps(command)))
    if signal := document.field(process, "StopSignal", document.text, ""):
        found.append((f"{ANNOTATION}stopsignal", signal))
    for key in _KEPT_AS_JSON:
        if (value := process.get(key)) is not None:
            found.append((f"{ANNOTATION}{key.lower()}", json.dumps(document.kept(value))))
    if name.original:
        found.append((f"{ANNOTATION}originalname", name.original))
    return [*found, (f"{ANNOTATION}tag", name.version), (f"{ANNOTATION}imageid", config_digest)]


def with_accounts(manifest: ImageManifest, config: dict[str, Any], layers: Sequence[str]) -> ImageManifest:
    """`manifest` with the groups of its user, as docker takes them: an image that names a user but no group means the
    primary group in the image's own /etc/passwd and the memberships in its /etc/group. appC wants them spelt out.

    `layers` are the unpacked layers, lowest first."""
    process: dict[str, Any] = document.field(config, "config", _object, {})
    user = document.field(process, "User", document.text, "")
    if manifest.app is None or ":" in user:
        return manifest
    wanted = user or "0"
    account = next((line for line in _lines(layers, "etc/passwd", 4) if wanted in (line[0], line[2])), None)
    if account is None:
        return manifest
    others = {
        int(line[2])
        for line in _lines(layers, "etc/group", 4)
        if account[0] in line[3].split(",") and _is_id(line[2]) and line[2] != account[3]
    }
    group = account[3] if _is_id(account[3]) else manifest.app.group
    app = manifest.app._replace(group=group, supplementary_gids=tuple(sorted(others)))
    return manifest._replace(app=app)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:11]) <= types.OWNER_MAX


def _lines(layers: Sequence[str], path: str, fields: int) -> list[list[str]]:
    """The lines with at least that many fields of a file with fields between colons, from the topmost layer that has
    it or hides it. Without following symlinks: links across layers only make sense once they are stacked."""
    directory = os.path.dirname(path)
    for layer in reversed(layers):
        root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            text = _read(root, path)
            if text is not None:
                return [line.split(":") for line in text.splitlines() if line.count(":") >= fields - 1]
            if _hides(root, directory):
                return []
        finally:
            os.close(root)
    return []


def _read(root: int, path: str) -> str | None:
    """The regular file at `path`; None when there is none, empty when something else is there (a whiteout, say)."""
    import stat

    try:
        fd = openat2(root, path, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(_ACCOUNTS_LIMIT).decode(errors="replace")
    finally:
        os.close(fd)


def _hides(root: int, directory: str) -> bool:
    """Whether this layer's version of `directory` covers those of the layers below."""
    try:
        fd = openat2(root, directory, os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return os.getxattr(fd, overlay.opaque()) == b"y"
    except OSError:
        return False
    finally:
        os.close(fd)
