"""The appC pod manifest (spec 0.8.11, "Pod Manifest Schema"): which apps run together, from which images, with what."""

from __future__ import annotations

from typing import Any, Final

from aci.document import (
    Flaw,
    absolute_path,
    boolean,
    check_kind,
    check_unique,
    decode,
    each,
    encode,
    field,
    identifier,
    identity,
    integer,
    name_text,
    named,
    pair_objects,
    record,
    required,
    set_fields,
    text,
    texts,
    word,
)
from aci.image_manifest import (
    App,
    Isolator,
    Port,
    annotation_list,
    app_from_json,
    app_to_json,
    isolator_list,
    isolators_to_json,
    label_list,
    port,
    port_number,
    port_to_json,
)
from aci.types import OWNER_MAX, ac_version, quote
from common import addresses
from common.errors import ManifestError, reason
from common.records import NamedTuple


class RuntimeImage(NamedTuple):
    id: str
    name: str
    labels: tuple[tuple[str, str], ...]

    @property
    def full_name(self) -> str:
        """`name:version`, as far as the manifest says."""
        version = dict(self.labels).get("version")
        return f"{self.name}:{version}" if self.name and version else self.name


class RuntimeMount(NamedTuple):
    volume: str
    path: str
    app_volume: Volume | None = None


class RuntimeApp(NamedTuple):
    name: str
    image: RuntimeImage
    app: App | None = None
    read_only_rootfs: bool = False
    mounts: tuple[RuntimeMount, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()


class Volume(NamedTuple):
    """`kind` is "host" (source, read_only, recursive, propagation) or "empty" (mode, uid, gid, size). Until it is
    written down it may be "named" as well (source, read_only, copy, and mode, uid and gid, which are empty or -1 for
    those of the image; `stage0.namedvolumes`)."""

    name: str
    kind: str
    source: str = ""
    read_only: bool = False
    recursive: bool | None = None
    mode: str = "0755"
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Bytes it may grow to, in memory then; 0 for one on disk without a limit. An extension of the specification, as
    is `propagation`."""
    copy: bool = True
    """Whether it begins with what the image has in its place."""
    propagation: str = ""
    """One of PROPAGATIONS, or empty for what the flavour does by itself."""


PROPAGATIONS: Final = ("private", "slave", "shared")
"""Whether mounts made later below a volume show: neither way, the host's in the app, both ways."""


class ExposedPort(NamedTuple):
    name: str
    host_port: int
    host_ip: str = ""
    pod_port: Port | None = None


class PodManifest(NamedTuple):
    apps: tuple[RuntimeApp, ...]
    ac_version: str = "0.8.11"
    volumes: tuple[Volume, ...] = ()
    isolators: tuple[Isolator, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    ports: tuple[ExposedPort, ...] = ()
    user_annotations: tuple[tuple[str, str], ...] = ()
    user_labels: tuple[tuple[str, str], ...] = ()


# Reading

KIND: Final = "PodManifest"
_WHAT: Final = "pod manifest"
_NEWEST_MAJOR: Final = 1
"""rkt writes its own version, 1.x, where the version of the specification belongs."""

_POD_FIELDS: Final = frozenset(
    {"acKind", "acVersion", "apps", "volumes", "isolators", "annotations", "ports", "userAnnotations", "userLabels"}
)
_APP_FIELDS: Final = frozenset({"name", "image", "app", "readOnlyRootFS", "mounts", "annotations"})
_IMAGE_FIELDS: Final = frozenset({"name", "id", "labels"})
_MOUNT_FIELDS: Final = frozenset({"volume", "path", "appVolume"})
_VOLUME_FIELDS: Final = frozenset(
    {"name", "kind", "source", "readOnly", "recursive", "mode", "uid", "gid", "size", "propagation"}
)
_EXPOSED_PORT_FIELDS: Final = frozenset({"name", "hostPort", "hostIP", "podPort"})


def own_volumes(*apps: RuntimeApp) -> list[Volume]:
    """Those that are the apps' alone."""
    return [mount.app_volume for app in apps for mount in app.mounts if mount.app_volume]


def parse(data: bytes) -> PodManifest:
    """Read a pod manifest. ManifestError names the place of the first fault."""
    return named(_WHAT, lambda raw: _pod(decode(raw)), data)


def read(path: str) -> PodManifest:
    """Read the pod manifest in a file. Raises ManifestError."""
    try:
        with open(path, "rb") as file:
            return parse(file.read())
    except OSError as error:
        raise ManifestError(f"open {path}: {reason(error)}") from error


def from_json(value: Any) -> PodManifest:
    """Read a pod manifest that is part of another document; `value` is what a JSON decoder gave."""
    return named(_WHAT, _pod, value)


def _pod(value: Any) -> PodManifest:
    entry = record(value, _POD_FIELDS)
    check_kind(entry, KIND)
    manifest = PodManifest(
        apps=field(entry, "apps", _apps, ()),
        ac_version=required(entry, "acVersion", _version),
        volumes=field(entry, "volumes", _volumes, ()),
        isolators=field(entry, "isolators", isolator_list, ()),
        annotations=field(entry, "annotations", annotation_list, ()),
        ports=field(entry, "ports", _exposed_ports, ()),
        user_annotations=field(entry, "userAnnotations", texts, ()),
        user_labels=field(entry, "userLabels", texts, ()),
    )
    _check_mounts(manifest)
    return manifest


def _check_mounts(manifest: PodManifest) -> None:
    volumes = {volume.name for volume in manifest.volumes}
    for app_index, app in enumerate(manifest.apps):
        for index, mount in enumerate(app.mounts):
            if mount.app_volume is None and mount.volume not in volumes:
                raise Flaw(f"apps[{app_index}].mounts[{index}].volume", f"there is no volume {quote(mount.volume)}")


def _version(value: Any) -> str:
    return ac_version(text(value), newest_major=_NEWEST_MAJOR)


def _app(value: Any) -> RuntimeApp:
    entry = record(value, _APP_FIELDS)
    return RuntimeApp(
        name=required(entry, "name", name_text),
        image=required(entry, "image", _image),
        app=field(entry, "app", app_from_json, None),
        read_only_rootfs=field(entry, "readOnlyRootFS", boolean, False),
        mounts=field(entry, "mounts", _mounts, ()),
        annotations=field(entry, "annotations", annotation_list, ()),
    )


_app_items: Final = each(_app)


def _apps(value: Any) -> tuple[RuntimeApp, ...]:
    found = _app_items(value)
    check_unique("app", (app.name for app in found))
    return found


def _image(value: Any) -> RuntimeImage:
    entry = record(value, _IMAGE_FIELDS)
    return RuntimeImage(
        id=required(entry, "id", identity),
        name=field(entry, "name", identifier, ""),
        labels=field(entry, "labels", label_list, ()),
    )


def _mount(value: Any) -> RuntimeMount:
    entry = record(value, _MOUNT_FIELDS)
    return RuntimeMount(
        volume=required(entry, "volume", name_text),
        path=required(entry, "path", absolute_path),
        app_volume=field(entry, "appVolume", _volume, None),
    )


_mounts: Final = each(_mount)


def _volume(value: Any) -> Volume:
    entry = record(value, _VOLUME_FIELDS)
    kind = required(entry, "kind", text)
    if kind not in ("host", "empty"):
        raise Flaw("kind", f"{quote(kind)} is not a kind of volume", hint="one of host, empty")
    for key in ("mode", "uid", "gid", "size") if kind == "host" else ("source", "propagation"):
        if entry.get(key) not in (None, ""):
            raise Flaw(key, f"has no meaning for a volume of the kind {kind}")
    return Volume(
        name=required(entry, "name", name_text),
        kind=kind,
        source=required(entry, "source", absolute_path) if kind == "host" else "",
        read_only=field(entry, "readOnly", boolean, False),
        recursive=field(entry, "recursive", boolean, None),
        mode=field(entry, "mode", _mode, "0755") if kind == "empty" else "0755",
        uid=field(entry, "uid", _owner, 0),
        gid=field(entry, "gid", _owner, 0),
        size=field(entry, "size", _size, 0),
        propagation=field(entry, "propagation", _propagation, ""),
    )


_size: Final = integer(0, 2**63 - 1)


def _propagation(value: Any) -> str:
    if text(value) not in ("", *PROPAGATIONS):
        raise ManifestError(f"{quote(value)} is no propagation", hint=f"one of {', '.join(PROPAGATIONS)}")
    return str(value)


_owner: Final = integer(0, OWNER_MAX)


def _mode(value: Any) -> str:
    mode = word(value)
    if mode.strip("01234567") or len(mode.lstrip("0")) > 4:
        raise ManifestError(f"{quote(mode)} is not an octal mode", hint="one looks like 0755")
    return mode


_volume_items: Final = each(_volume)


def _volumes(value: Any) -> tuple[Volume, ...]:
    found = _volume_items(value)
    check_unique("volume", (volume.name for volume in found))
    return found


def _exposed_port(value: Any) -> ExposedPort:
    entry = record(value, _EXPOSED_PORT_FIELDS)
    return ExposedPort(
        name=required(entry, "name", name_text),
        host_port=required(entry, "hostPort", port_number),
        host_ip=field(entry, "hostIP", _address, ""),
        pod_port=field(entry, "podPort", port, None),
    )


_exposed_ports: Final = each(_exposed_port)


def _address(value: Any) -> str:
    address = text(value)
    try:
        return addresses.canonical(address) if address else ""
    except ValueError:
        raise ManifestError(f"{quote(address)} is not an IP address") from None


# Writing, field by field in rkt's order


def to_json(manifest: PodManifest) -> dict[str, Any]:
    """The manifest as a JSON object, with the fields that are set."""
    apps = [_app_to_json(app) for app in manifest.apps]
    return {"acVersion": manifest.ac_version, "acKind": KIND, "apps": apps} | set_fields(
        volumes=[_volume_to_json(volume) for volume in manifest.volumes],
        isolators=isolators_to_json(manifest.isolators),
        annotations=pair_objects(manifest.annotations),
        ports=[_exposed_port_to_json(port) for port in manifest.ports],
        userAnnotations=dict(manifest.user_annotations),
        userLabels=dict(manifest.user_labels),
    )


def _app_to_json(app: RuntimeApp) -> dict[str, Any]:
    return {"name": app.name, "image": _image_to_json(app.image)} | set_fields(
        app=app_to_json(app.app) if app.app is not None else None,
        readOnlyRootFS=app.read_only_rootfs,
        mounts=[_mount_to_json(mount) for mount in app.mounts],
        annotations=pair_objects(app.annotations),
    )


def _image_to_json(image: RuntimeImage) -> dict[str, Any]:
    return set_fields(name=image.name, id=image.id, labels=pair_objects(image.labels))


def _mount_to_json(mount: RuntimeMount) -> dict[str, Any]:
    volume = _volume_to_json(mount.app_volume) if mount.app_volume is not None else None
    return {"volume": mount.volume, "path": mount.path, **set_fields(appVolume=volume)}


def _volume_to_json(volume: Volume) -> dict[str, Any]:
    result: dict[str, Any] = {"name": volume.name, "kind": volume.kind}
    result |= set_fields(source=volume.source, readOnly=volume.read_only)
    if volume.recursive is not None:
        result["recursive"] = volume.recursive
    if volume.kind == "empty":
        result |= {"mode": volume.mode, "uid": volume.uid, "gid": volume.gid}
    return result | set_fields(size=volume.size, propagation=volume.propagation)


def _exposed_port_to_json(port: ExposedPort) -> dict[str, Any]:
    pod_port = port_to_json(port.pod_port) if port.pod_port is not None else None
    return {"name": port.name, "hostPort": port.host_port, **set_fields(hostIP=port.host_ip, podPort=pod_port)}


def dumps(manifest: PodManifest, *, pretty: bool = True) -> str:
    """The manifest as text, laid out as `rkt cat-manifest` prints it, or compact."""
    return encode(to_json(manifest), pretty=pretty)
