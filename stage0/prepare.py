"""Fills a pod directory, and reads it back as the value a flavour is handed.

`run` reads back what it has just written, so that `run`, `run-prepared` and `enter` see one and the same pod.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping

from aci import image_manifest, pod_manifest
from aci.image_manifest import App
from aci.pod_manifest import PodManifest, RuntimeApp, Volume
from aci.store import ImageRecord, Store
from common import files, users
from common.errors import PodError, StoreError, UsageError, reason
from stage0 import behaviour, caller
from stage0.notices import warn
from stage0.pods import Pod
from stage1 import poddir
from stage1.flavour import Flavour, Mount, PreparedApp, PreparedPod
from stage1.systemd.given import Given

_NOTHING = Given()


def write(pod: Pod, manifest: PodManifest, records: Mapping[str, ImageRecord], store: Store, flavour: str) -> None:
    """Write everything the pod needs into its directory; `records` holds the image of each app by the app's name.

    No fsync: a pod that a power cut took has nothing to lose, unlike an image. Raises PodError."""
    try:
        with open(f"{pod.path}/{poddir.FLAVOUR}", "w", encoding="ascii") as file:
            file.write(flavour)
        for volume in _volumes(manifest):
            if volume.kind == "empty":
                make_volume(poddir.volume(pod.path, volume.name), volume)
        for app in manifest.apps:
            write_app_info(pod.path, app.name, records[app.name], store)
        # Last: a directory without its manifest was interrupted here.
        text = pod_manifest.dumps(manifest, pretty=False)
        files.replace(f"{pod.path}/{poddir.MANIFEST}", text.encode("utf-8"))
    except OSError as error:
        raise PodError(f"write {error.filename or pod.path}: {reason(error)}") from error


def _volumes(manifest: PodManifest) -> Iterable[Volume]:
    """Those of the pod and of its apps, one of each name."""
    found = (*pod_manifest.own_volumes(*manifest.apps), *manifest.volumes)
    return {volume.name: volume for volume in found}.values()


def write_app_info(directory: str, app: str, record: ImageRecord, store: Store) -> None:
    """What there is to know of an app in the pod directory, and the place of its root. Raises OSError."""
    os.makedirs(f"{directory}/appsinfo/{app}", mode=0o750)
    poddir.make_place(poddir.rootfs(directory, app))
    os.mkdir(poddir.rootfs(directory, app), mode=0o755)
    below = [os.path.relpath(path, store.root) for path in store.root_layers(record)]
    with open(poddir.app_info(directory, app, "layers"), "w", encoding="utf-8") as file:
        file.write("".join(f"{layer}\n" for layer in below))
    with open(poddir.app_info(directory, app, "manifest"), "w", encoding="utf-8") as file:
        file.write(image_manifest.dumps(record.manifest, pretty=False))


def make_volume(path: str, volume: Volume) -> None:
    """Raises OSError and UsageError."""
    poddir.make_place(path)
    os.mkdir(path)
    own_volume(path, volume)


def own_volume(path: str, volume: Volume) -> None:
    """Give the directory of a volume the owner and mode it was to have. Raises OSError and UsageError."""
    try:
        os.chown(path, volume.uid, volume.gid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        owners = {"user": volume.uid, "group": volume.gid}
        owner = " and ".join(f"{kind} {number}" for kind, number in owners.items() if number >= 0)
        raise UsageError(
            f'volume "{volume.name}": it cannot belong to {owner}, which this user namespace does not have',
            hint="without root IDs come from /etc/subuid and /etc/subgid, see docs/rootless.md",
        ) from error
    if volume.mode:
        os.chmod(path, int(volume.mode, 8))


def copy_roots(pod: Pod, store: Store) -> None:
    """Give each app a copy of its files instead of an overlay (`--no-overlay`). Raises StoreError."""
    for app in os.listdir(f"{pod.path}/appsinfo"):
        copy_root(pod.path, app, store)


def copy_root(directory: str, app: str, store: Store) -> None:
    """Give one app a copy of its files. Raises StoreError."""
    from aci.tree import merge_layers

    merge_layers(layers(directory, app, store), poddir.rootfs(directory, app))
    open(poddir.app_info(directory, app, "copied"), "x").close()


def check(pod: PreparedPod, flavour: Flavour) -> None:
    """Say what will be ignored of `pod`. Raises RkpyError for what cannot be had."""
    warnings: list[str] = []
    if caller.is_ordinary():
        from stage0 import ordinary

        warnings = ordinary.check(pod, flavour)
    elif users.confined():
        warnings = list(_in_a_container(pod))
    for warning in (*warnings, *flavour.check(pod)):
        warn(warning)


def _in_a_container(pod: PreparedPod) -> Iterator[str]:
    """As `stage0.ordinary` and `stage0.rootless` have it of namespaces of our own, where somebody else made them."""
    first, count = pod.private_range
    if count and not (users.knows("uid", first) and users.knows("uid", first + count - 1)):
        raise UsageError("--private-users: the IDs it takes are none of this user namespace's", hint="leave it out")
    if not users.can_drop_groups() and {*os.getgroups()} - {os.getegid()}:
        yield "apps stay in the groups of rkpy's caller: this user namespace denies setgroups(2)"


def load(
    pod: Pod,
    store: Store,
    *,
    net: tuple[str, ...] | None = None,
    name_options: tuple[str, ...] = (),
    hostname: str = "",
    ipc: str = "auto",
    asked: tuple[str, ...] = (),
    debug: bool = False,
    interactive: bool = False,
    insecure: Iterable[str] = (),
    given: Given = _NOTHING,
    manifest: PodManifest | None = None,
) -> PreparedPod:
    """The pod in `pod.path` as a flavour takes it; the keywords are known only when it runs, and `manifest` is what the
    pod's is about to become. Raises PodError, and ManifestError for annotations that make no sense."""
    manifest = manifest or pod.manifest()
    lives = behaviour.of_pod(manifest)
    own_range = private_range(pod.path)
    return PreparedPod(
        uuid=pod.uuid,
        directory=pod.path,
        lock_fd=-1,
        apps=tuple(_prepared_app(pod.path, manifest, app, store) for app in manifest.apps),
        net=net,
        ports=tuple(port.name for port in manifest.ports),
        name_options=name_options,
        hostname=hostname or lives.name or f"rkpy-{pod.uuid}",
        ipc=ipc,
        private_users=own_range is not None,
        isolators=manifest.isolators,
        asked=asked,
        debug=debug,
        name=lives.name,
        data_directory=os.path.dirname(store.root),
        interactive=interactive,
        mutable=lives.mutable,
        exit_policy=lives.exit_policy,
        stop_timeout=lives.stop_timeout,
        ready=lives.ready,
        insecure=tuple(sorted({"capabilities", "paths", "seccomp"}.intersection(insecure))),
        given=given,
        private_range=own_range or (0, 0),
        log_driver=lives.log_driver,
        machine=lives.machine,
    )


def private_range(directory: str) -> tuple[int, int] | None:
    """The pod's host IDs, None when it has none of its own. Raises PodError when that cannot be told."""
    found = poddir.read_private_range(directory)
    if found is None and os.path.lexists(f"{directory}/{poddir.PRIVATE_USERS}"):
        # To go on without it would run the apps as the host's own users.
        raise PodError(f"{directory}/{poddir.PRIVATE_USERS} is damaged", hint="remove the pod")
    return found


def _prepared_app(directory: str, manifest: PodManifest, app: RuntimeApp, store: Store) -> PreparedApp:
    section = app.app or _image_app(directory, app.name)
    lives = behaviour.of_app(app)
    copied = os.path.exists(poddir.app_info(directory, app.name, "copied"))
    return PreparedApp(
        name=app.name,
        image_id=app.image.id,
        app=section,
        layers=() if copied else layers(directory, app.name, store),
        read_only_root=app.read_only_rootfs,
        mounts=tuple(_mounts(manifest, app, section)),
        streams=lives.streams,
        restart=lives.restart,
        stop_signal=lives.stop_signal,
        reload_signal=lives.reload_signal,
        devices=lives.devices,
        from_oci=lives.from_oci,
        image_name=app.image.full_name,
        notifies=lives.notifies,
        health=lives.health,
    )


def _image_app(directory: str, app: str) -> App:
    path = poddir.app_info(directory, app, "manifest")
    try:
        with open(path, "rb") as file:
            return image_manifest.parse(file.read()).app or App()
    except OSError as error:
        raise PodError(f"open {path}: {reason(error)}") from error


def layers(directory: str, app: str, store: Store) -> tuple[str, ...]:
    """Absolute paths of the layers below an app's root, lowest first. Raises StoreError when one is gone."""
    with open(poddir.app_info(directory, app, "layers"), encoding="utf-8") as file:
        found = tuple(f"{store.root}/{line.strip()}" for line in file)
    for layer in found:
        if not os.path.isdir(layer):
            raise StoreError(f"layer {os.path.basename(layer)} of app {app} is gone", hint="fetch its image again")
    return found


def _mounts(manifest: PodManifest, app: RuntimeApp, section: App) -> list[Mount]:
    """What is mounted into an app. A mount point without a volume shows what the image has there. Raises PodError."""
    found = volumes_by_path(manifest, app, section)
    return [_mount(path, volume, read_only) for path, (volume, read_only) in found.items()]


def volumes_by_path(manifest: PodManifest, app: RuntimeApp, section: App) -> dict[str, tuple[Volume, bool]]:
    """What has a volume in an app, and whether it is read-only there: each explicit mount, and each mount point of the
    image whose name, or whose path's mount, has a volume. Raises PodError."""
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
    return wanted


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
