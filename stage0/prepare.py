"""Fills a pod directory, and reads it back as the value a flavour is handed.

`run` reads back what it has just written, so that `run`, `run-prepared` and `enter` see one and the same pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aci import image_manifest, pod_manifest
from aci.image_manifest import App
from aci.pod_manifest import PodManifest, RuntimeApp, Volume
from aci.store import ImageRecord, Store
from common.errors import PodError, StoreError, reason
from stage0.pods import Pod
from stage1 import poddir
from stage1.flavour import Mount, PreparedApp, PreparedPod


def write(pod: Pod, manifest: PodManifest, records: Mapping[str, ImageRecord], store: Store, flavour: str) -> None:
    """Write everything the pod needs into its directory; `records` holds the image of each app by the app's name.

    No fsync: a pod that a power cut took has nothing to lose, unlike an image. Raises PodError."""
    try:
        with open(f"{pod.path}/{poddir.FLAVOUR}", "w", encoding="ascii") as file:
            file.write(flavour)
        for volume in manifest.volumes:
            if volume.kind == "empty":
                _make_volume(poddir.volume(pod.path, volume.name), volume)
        for app in manifest.apps:
            _write_app_info(pod, app.name, records[app.name], store)
        # Last: a directory without its manifest was interrupted here.
        with open(f"{pod.path}/{poddir.MANIFEST}", "w", encoding="utf-8") as file:
            file.write(pod_manifest.dumps(manifest, pretty=False))
    except OSError as error:
        raise PodError(f"write {error.filename or pod.path}: {reason(error)}") from error


def _write_app_info(pod: Pod, app: str, record: ImageRecord, store: Store) -> None:
    os.makedirs(f"{pod.path}/appsinfo/{app}", mode=0o750)
    os.makedirs(poddir.rootfs(pod.path, app), mode=0o755)
    layers = [os.path.relpath(path, store.root) for path in store.root_layers(record)]
    with open(poddir.app_info(pod.path, app, "layers"), "w", encoding="utf-8") as file:
        file.write("".join(f"{layer}\n" for layer in layers))
    with open(poddir.app_info(pod.path, app, "manifest"), "w", encoding="utf-8") as file:
        file.write(image_manifest.dumps(record.manifest, pretty=False))


def _make_volume(path: str, volume: Volume) -> None:
    os.makedirs(path)
    os.chown(path, volume.uid, volume.gid)
    os.chmod(path, int(volume.mode, 8))


def copy_roots(pod: Pod, store: Store) -> None:
    """Give each app a copy of its files instead of an overlay (`--no-overlay`). Raises StoreError."""
    from aci.tree import merge_layers

    for app in os.listdir(f"{pod.path}/appsinfo"):
        merge_layers(_layers(pod.path, app, store), poddir.rootfs(pod.path, app))
        open(poddir.app_info(pod.path, app, "copied"), "x").close()


def load(
    pod: Pod,
    store: Store,
    *,
    net: str | None = None,
    name_options: tuple[str, ...] = (),
    hostname: str = "",
    ipc: str = "auto",
    private_users: bool = False,
    asked: tuple[str, ...] = (),
    debug: bool = False,
) -> PreparedPod:
    """The pod in `pod.path` as a flavour takes it; the keywords are known only when it runs. Raises PodError."""
    manifest = pod.manifest()
    return PreparedPod(
        uuid=pod.uuid,
        directory=pod.path,
        lock_fd=-1,
        apps=tuple(_prepared_app(pod.path, manifest, app, store) for app in manifest.apps),
        net=None if net is None else tuple(net.split(",")),
        ports=tuple(port.name for port in manifest.ports),
        name_options=name_options,
        hostname=hostname,
        ipc=ipc,
        private_users=private_users,
        isolators=manifest.isolators,
        asked=asked,
        debug=debug,
    )


def _prepared_app(directory: str, manifest: PodManifest, app: RuntimeApp, store: Store) -> PreparedApp:
    section = app.app or _image_app(directory, app.name)
    copied = os.path.exists(poddir.app_info(directory, app.name, "copied"))
    return PreparedApp(
        name=app.name,
        image_id=app.image.id,
        app=section,
        layers=() if copied else _layers(directory, app.name, store),
        read_only_root=app.read_only_rootfs,
        mounts=tuple(_mounts(manifest, app, section)),
    )


def _image_app(directory: str, app: str) -> App:
    path = poddir.app_info(directory, app, "manifest")
    try:
        with open(path, "rb") as file:
            return image_manifest.parse(file.read()).app or App()
    except OSError as error:
        raise PodError(f"open {path}: {reason(error)}") from error


def _layers(directory: str, app: str, store: Store) -> tuple[str, ...]:
    with open(poddir.app_info(directory, app, "layers"), encoding="utf-8") as file:
        layers = tuple(f"{store.root}/{line.strip()}" for line in file)
    for layer in layers:
        if not os.path.isdir(layer):
            raise StoreError(f"layer {os.path.basename(layer)} of app {app} is gone", hint="fetch its image again")
    return layers


def _mounts(manifest: PodManifest, app: RuntimeApp, section: App) -> list[Mount]:
    """What is mounted into an app: each explicit mount, and each mount point of the image whose name, or whose path's
    mount, has a volume. A mount point without a volume shows what the image has there."""
    volumes = {volume.name: volume for volume in manifest.volumes}
    points = {os.path.normpath(point.path): point for point in section.mount_points}
    wanted: dict[str, tuple[Volume, bool]] = {}
    for mount in app.mounts:
        path, point = os.path.normpath(mount.path), points.get(os.path.normpath(mount.path))
        volume = mount.app_volume or volumes.get(mount.volume)
        if volume is None:
            raise PodError(f'app {app.name}: mount of "{mount.volume}", a volume this pod does not have')
        wanted[path] = (volume, volume.read_only or bool(point and point.read_only))
    for path, point in points.items():
        if path not in wanted and point.name in volumes:
            wanted[path] = (volumes[point.name], volumes[point.name].read_only or point.read_only)
    return [_mount(path, volume, read_only) for path, (volume, read_only) in wanted.items()]


def _mount(path: str, volume: Volume, read_only: bool) -> Mount:
    source = volume.source if volume.kind == "host" else ""
    return Mount(
        source=source,
        target=path,
        read_only=read_only,
        recursive=volume.recursive,
        volume=volume.name,
        propagation=volume.propagation,
        size=volume.size,
        mode=int(volume.mode, 8),
        uid=volume.uid,
        gid=volume.gid,
    )
