"""The appC image manifest (spec 0.8.11, "Image Manifest Schema"): what is inside one image and how to run it."""

from __future__ import annotations

from typing import Any, NamedTuple


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


# parse(data: bytes) -> ImageManifest ; from_json(obj) ; to_json(m) -> dict ; app_from_json / app_to_json
