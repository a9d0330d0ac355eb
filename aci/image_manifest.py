"""The appC image manifest (spec 0.8.11, "Image Manifest Schema"): what is inside one image and how to run it."""

from __future__ import annotations

from typing import Any, Final

from aci import isolators
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
    kept,
    name_text,
    named,
    pair_objects,
    pairs,
    record,
    required,
    set_fields,
    text,
    texts,
    word,
)
from aci.types import OWNER_MAX, ac_version, check_annotations, check_environment, check_labels, quote
from common.errors import ManifestError
from common.records import NamedTuple


class Isolator(NamedTuple):
    """A named restriction. Names this version does not know are kept, so that they can be reported."""

    name: str
    value: Any
    """The JSON value as read."""


class EventHandler(NamedTuple):
    name: str
    exec: tuple[str, ...]


class MountPoint(NamedTuple):
    name: str
    path: str
    read_only: bool


class Port(NamedTuple):
    name: str
    protocol: str
    port: int
    span: int
    """How many consecutive ports from `port` on; the manifest calls it `count`."""
    socket_activated: bool


class App(NamedTuple):
    """The `app` section: how to execute the image."""

    exec: tuple[str, ...] = ()
    user: str = "0"
    group: str = "0"
    supplementary_gids: tuple[int, ...] = ()
    event_handlers: tuple[EventHandler, ...] = ()
    working_directory: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    isolators: tuple[Isolator, ...] = ()
    mount_points: tuple[MountPoint, ...] = ()
    ports: tuple[Port, ...] = ()
    user_annotations: tuple[tuple[str, str], ...] = ()
    user_labels: tuple[tuple[str, str], ...] = ()


class Dependency(NamedTuple):
    image_name: str
    image_id: str
    labels: tuple[tuple[str, str], ...]
    size: int


class ImageManifest(NamedTuple):
    """One image manifest. `labels` and `annotations` keep their order; names in them are unique."""

    name: str
    ac_version: str = "0.8.11"
    labels: tuple[tuple[str, str], ...] = ()
    app: App | None = None
    dependencies: tuple[Dependency, ...] = ()
    path_whitelist: tuple[str, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()

    def label(self, name: str) -> str | None:
        return dict(self.labels).get(name)


# Reading

KIND: Final = "ImageManifest"
_WHAT: Final = "image manifest"
EVENTS: Final = ("pre-start", "post-stop")

_IMAGE_FIELDS: Final = frozenset(
    {"acKind", "acVersion", "name", "labels", "app", "dependencies", "pathWhitelist", "annotations"}
)
_APP_FIELDS: Final = frozenset(
    {
        "exec", "eventHandlers", "user", "group", "supplementaryGIDs", "workingDirectory", "environment", "isolators",
        "mountPoints", "ports", "userAnnotations", "userLabels",
    }
)  # fmt: skip
_ISOLATOR_FIELDS: Final = frozenset({"name", "value"})
_HANDLER_FIELDS: Final = frozenset({"name", "exec"})
_MOUNT_POINT_FIELDS: Final = frozenset({"name", "path", "readOnly"})
_PORT_FIELDS: Final = frozenset({"name", "protocol", "port", "count", "socketActivated"})
_DEPENDENCY_FIELDS: Final = frozenset({"imageName", "imageID", "labels", "size"})
_PORT_MAX: Final = 65535


def parse(data: bytes) -> ImageManifest:
    """Read a manifest as it lies in an ACI. ManifestError names the place of the first fault."""
    return named(_WHAT, lambda raw: _image(decode(raw)), data)


def from_json(value: Any) -> ImageManifest:
    """Read a manifest that is part of another document; `value` is what a JSON decoder gave."""
    return named(_WHAT, _image, value)


def app_from_json(value: Any) -> App:
    """Read an `app` section. ManifestError names the place inside it."""
    entry = record(value, _APP_FIELDS)
    return App(
        exec=field(entry, "exec", command, ()),
        user=required(entry, "user", word),
        group=required(entry, "group", word),
        supplementary_gids=field(entry, "supplementaryGIDs", _gids, ()),
        event_handlers=field(entry, "eventHandlers", _event_handlers, ()),
        working_directory=field(entry, "workingDirectory", _optional_path, ""),
        environment=field(entry, "environment", _environment, ()),
        isolators=field(entry, "isolators", isolator_list, ()),
        mount_points=field(entry, "mountPoints", _mount_points, ()),
        ports=field(entry, "ports", _ports, ()),
        user_annotations=field(entry, "userAnnotations", texts, ()),
        user_labels=field(entry, "userLabels", texts, ()),
    )


def _image(value: Any) -> ImageManifest:
    entry = record(value, _IMAGE_FIELDS)
    check_kind(entry, KIND)
    return ImageManifest(
        name=required(entry, "name", identifier),
        ac_version=required(entry, "acVersion", _version),
        labels=field(entry, "labels", label_list, ()),
        app=field(entry, "app", app_from_json, None),
        dependencies=field(entry, "dependencies", _dependencies, ()),
        path_whitelist=field(entry, "pathWhitelist", _paths, ()),
        annotations=field(entry, "annotations", annotation_list, ()),
    )


def _version(value: Any) -> str:
    return ac_version(text(value))


label_list: Final = pairs(identifier, check_labels)
annotation_list: Final = pairs(identifier, check_annotations)
_environment: Final = pairs(text, check_environment)
_paths: Final = each(absolute_path)
_arguments: Final = each(text)
_gids: Final = each(integer(0, OWNER_MAX))


def command(value: Any) -> tuple[str, ...]:
    """A program and its arguments; the list may be empty, the program's name may not."""
    arguments = _arguments(value)
    if arguments and not arguments[0]:
        raise Flaw("[0]", "must not be empty")
    return arguments


def _optional_path(value: Any) -> str:
    return "" if value == "" else absolute_path(value)


def _isolator(value: Any) -> Isolator:
    entry = record(value, _ISOLATOR_FIELDS)
    return Isolator(required(entry, "name", identifier), field(entry, "value", kept, None))


_isolator_items: Final = each(_isolator)


def isolator_list(value: Any) -> tuple[Isolator, ...]:
    found = _isolator_items(value)
    isolators.check(found)
    return found


def _event_handler(value: Any) -> EventHandler:
    entry = record(value, _HANDLER_FIELDS)
    event = required(entry, "name", text)
    if event not in EVENTS:
        raise Flaw("name", f"{quote(event)} is not an event", hint=f"one of {', '.join(EVENTS)}")
    program = required(entry, "exec", command)
    if not program:
        raise Flaw("exec", "must not be empty")
    return EventHandler(event, program)


_event_handler_items: Final = each(_event_handler)


def _event_handlers(value: Any) -> tuple[EventHandler, ...]:
    found = _event_handler_items(value)
    check_unique("event handler", (handler.name for handler in found))
    return found


def _mount_point(value: Any) -> MountPoint:
    entry = record(value, _MOUNT_POINT_FIELDS)
    return MountPoint(
        name=required(entry, "name", name_text),
        path=required(entry, "path", absolute_path),
        read_only=field(entry, "readOnly", boolean, False),
    )


_mount_point_items: Final = each(_mount_point)


def _mount_points(value: Any) -> tuple[MountPoint, ...]:
    found = _mount_point_items(value)
    check_unique("mount point", (point.name for point in found))
    return found


port_number: Final = integer(1, _PORT_MAX)
_port_count: Final = integer(0, _PORT_MAX)


def _protocol(value: Any) -> str:
    protocol = word(value)
    if not protocol.isascii() or not protocol.isalnum():
        raise ManifestError(f"{quote(protocol)} is not a protocol", hint="it is tcp or udp, as a rule")
    return protocol


def port(value: Any) -> Port:
    entry = record(value, _PORT_FIELDS)
    first = required(entry, "port", port_number)
    # Go cannot tell an absent count from 0, and takes both for 1.
    span = field(entry, "count", _port_count, 1) or 1
    if first + span - 1 > _PORT_MAX:
        raise Flaw("count", f"the last port, {first + span - 1}, is above {_PORT_MAX}")
    return Port(
        name=required(entry, "name", name_text),
        protocol=required(entry, "protocol", _protocol),
        port=first,
        span=span,
        socket_activated=field(entry, "socketActivated", boolean, False),
    )


_port_items: Final = each(port)


def _ports(value: Any) -> tuple[Port, ...]:
    found = _port_items(value)
    check_unique("port", (item.name for item in found))
    return found


def _dependency(value: Any) -> Dependency:
    entry = record(value, _DEPENDENCY_FIELDS)
    return Dependency(
        image_name=required(entry, "imageName", identifier),
        image_id=field(entry, "imageID", identity, ""),
        labels=field(entry, "labels", label_list, ()),
        size=field(entry, "size", _size, 0),
    )


_size: Final = integer(0, 2**63 - 1)
_dependencies: Final = each(_dependency)


# Writing, field by field in rkt's order


def to_json(manifest: ImageManifest) -> dict[str, Any]:
    """The manifest as a JSON object, with the fields that are set."""
    return {"acKind": KIND, "acVersion": manifest.ac_version, "name": manifest.name} | set_fields(
        labels=pair_objects(manifest.labels),
        app=app_to_json(manifest.app) if manifest.app is not None else None,
        annotations=pair_objects(manifest.annotations),
        dependencies=[_dependency_to_json(dependency) for dependency in manifest.dependencies],
        pathWhitelist=list(manifest.path_whitelist),
    )


def app_to_json(app: App) -> dict[str, Any]:
    handlers = [{"name": handler.name, "exec": list(handler.exec)} for handler in app.event_handlers]
    return {
        "exec": list(app.exec),
        **set_fields(eventHandlers=handlers),
        "user": app.user,
        "group": app.group,
        **set_fields(
            supplementaryGIDs=list(app.supplementary_gids),
            workingDirectory=app.working_directory,
            environment=pair_objects(app.environment),
            mountPoints=[_mount_point_to_json(point) for point in app.mount_points],
            ports=[port_to_json(port) for port in app.ports],
            isolators=isolators_to_json(app.isolators),
            userAnnotations=dict(app.user_annotations),
            userLabels=dict(app.user_labels),
        ),
    }


def isolators_to_json(items: tuple[Isolator, ...]) -> list[dict[str, Any]]:
    # A value of false or 0 says something; only none at all is left out.
    return [{"name": key} if value is None else {"name": key, "value": value} for key, value in items]


def _mount_point_to_json(point: MountPoint) -> dict[str, Any]:
    return {"name": point.name, "path": point.path, **set_fields(readOnly=point.read_only)}


def port_to_json(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "protocol": port.protocol,
        "port": port.port,
        "count": port.span,
        "socketActivated": port.socket_activated,
    }


def _dependency_to_json(dependency: Dependency) -> dict[str, Any]:
    return {"imageName": dependency.image_name} | set_fields(
        imageID=dependency.image_id, labels=pair_objects(dependency.labels), size=dependency.size
    )


def dumps(manifest: ImageManifest, *, pretty: bool = True) -> str:
    """The manifest as text, laid out as `rkt image cat-manifest` prints it, or compact."""
    return encode(to_json(manifest), pretty=pretty)
