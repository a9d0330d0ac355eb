"""The appC pod manifest (spec 0.8.11, "Pod Manifest Schema"): which apps run together, from which images, with what."""

from __future__ import annotations

from typing import NamedTuple

from aci.image_manifest import App, Isolator, Port


class RuntimeImage(NamedTuple):
    id: str
    name: str
    labels: tuple[tuple[str, str], ...]


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
    """`kind` is "host" (source, read_only, recursive) or "empty" (mode, uid, gid)."""

    name: str
    kind: str
    source: str = ""
    read_only: bool = False
    recursive: bool | None = None
    mode: str = "0755"
    uid: int = 0
    gid: int = 0


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
