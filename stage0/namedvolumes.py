"""Volumes with a name of their own, which outlive the pods that use them (`--volume=…,kind=named`).

Each is a directory below `volumes` in the data directory, made when a pod first wants it, with what the image has where
that pod mounts it, and removed by nobody but `rkpy volume rm`. To the pod it is a directory of the host like any other,
and so it stands in the pod's manifest.

`volumes/.lock` is held shared by who writes a manifest with such volumes in it, and exclusively by who removes one: so
nothing is removed that a pod is about to use. `volumes/.making` is held by who makes some, which may take its time: of
two pods that want a new one the second finds it, and no other waits. Whether they are ours to work on is asked of the
pods beside them (`Pods.require_own`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from aci.image_manifest import App
from aci.pod_manifest import PodManifest, RuntimeApp, Volume, own_volumes
from aci.store import ImageRecord, Store
from common import files, locks, ownership
from common.errors import PodError, RkpyError, reason
from common.locks import Lock
from common.records import NamedTuple
from stage0 import prepare
from stage0.pods import DIRECTORIES, EMBRYO, Pods
from stage0.values import NAMED, is_volume_name
from stage1 import poddir

_LOCK = ".lock"
_MAKING = ".making"
_REMOVAL = ".removal"
_NEW = ".new"
_GONE = ".gone"
_WRITTEN = tuple(name for name in DIRECTORIES if name != EMBRYO)
"""Where pods may have a manifest."""
_MODE = 0o700
"""A set-ID program that an app has left in a volume is for nobody to execute, as with what lies in pods."""
_made_here: list[str] = []
"""Paths of volumes that this process has made."""


class _Place(NamedTuple):
    """What a new volume begins with: the directory `path` of an image."""

    layers: tuple[str, ...]
    """Lowest first."""
    path: str


def directory(pods: Pods) -> str:
    """Where the volumes are that pods of this data directory use."""
    return f"{os.path.dirname(pods.root)}/volumes"


@contextmanager
def settled(
    manifest: PodManifest, pods: Pods, records: Mapping[str, ImageRecord], store: Store
) -> Iterator[PodManifest]:
    """`manifest` with directories of the host for its named volumes, those that are missing made; they stay at least
    until it is left, when the manifest has to be where `users` finds it. `records` holds the image of each app by the
    app's name. Raises PodError."""
    root = directory(pods)
    wanted = [volume for volume in (*manifest.volumes, *own_volumes(*manifest.apps)) if volume.kind == NAMED]
    try:
        lock = _made(root, wanted, lambda volume: _place(manifest, volume, records, store))
    except OSError as error:
        raise PodError(f"make volume: {error.filename or root}: {reason(error)}") from error
    with lock:
        volumes = tuple(_of_host(root, volume) for volume in manifest.volumes)
        yield manifest._replace(volumes=volumes, apps=tuple(_with_own(root, app) for app in manifest.apps))


def _with_own(root: str, app: RuntimeApp) -> RuntimeApp:
    mounts = [
        mount._replace(app_volume=_of_host(root, mount.app_volume)) if mount.app_volume else mount
        for mount in app.mounts
    ]
    return app._replace(mounts=tuple(mounts))


def _of_host(root: str, volume: Volume) -> Volume:
    if volume.kind != NAMED:
        return volume
    return Volume(name=volume.name, kind="host", source=f"{root}/{volume.source}", read_only=volume.read_only)


def _made(root: str, wanted: list[Volume], place: Callable[[Volume], _Place | None]) -> Lock:
    """A shared lock under which all that are wanted are there."""
    if files.make_directory(root, _MODE):
        files.flush_directory(os.path.dirname(root))
    while True:
        lock = locks.acquire(f"{root}/{_LOCK}", exclusive=False, create=0o600)
        try:
            missing = [volume for volume in wanted if not _is_there(root, volume.source)]
        except BaseException:
            lock.close()
            raise
        if not missing:
            return lock
        lock.close()
        with _making(root):
            for volume in missing:
                if not _is_there(root, volume.source):
                    _make(root, volume, place(volume))


def _making(root: str, *, blocking: bool = True) -> Lock:
    return locks.acquire(f"{root}/{_MAKING}", exclusive=True, blocking=blocking, create=0o600)


def _is_there(root: str, name: str) -> bool:
    """Raises PodError for something else of that name."""
    try:
        found = os.lstat(f"{root}/{name}")
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise PodError(
            f'volume "{name}": {root}/{name} is not a directory', hint="use kind=host for what lies elsewhere"
        )
    return True


def _place(manifest: PodManifest, volume: Volume, records: Mapping[str, ImageRecord], store: Store) -> _Place | None:
    """Where the first app has it that has it at all, by whatever name the pod has for it."""
    for app in manifest.apps:
        record = records[app.name]
        section = app.app or record.manifest.app or App()
        for path, (mounted, _) in prepare.volumes_by_path(manifest, app, section).items():
            if (mounted.kind, mounted.source) == (NAMED, volume.source):
                return _Place(tuple(store.root_layers(record)), path)
    return None


def _make(root: str, volume: Volume, place: _Place | None) -> None:
    """With its content, owner and mode from the first moment, whenever this is interrupted."""
    _remove(root, _NEW)
    new = f"{root}/{_NEW}"
    try:
        files.make_directory(new, 0o755)
        if place is not None:
            _copy(place, new, volume)
        prepare.own_volume(new, volume)
        if place is not None and volume.copy:  # It is the volume's from now on, and nowhere else.
            files.flush_filesystem(new)
        os.rename(new, f"{root}/{volume.source}")
    except BaseException:
        with suppress(OSError):
            _remove(root, _NEW)
        raise
    _made_here.append(f"{root}/{volume.source}")
    # What an app flushes into it is not to be lost with its name.
    files.flush_directory(root)


def _copy(place: _Place, new: str, volume: Volume) -> None:
    from stage1.implicit import copy_directory
    from stage1.rootfs import open_image

    try:
        image = open_image(place.layers, "rkpy", new)
        try:
            copy_directory(image, place.path, new, content=volume.copy)
        finally:
            os.close(image)
    except (OSError, RkpyError) as error:
        why, hint = (reason(error), "") if isinstance(error, OSError) else (error.message, error.hint)
        raise PodError(
            f'fill volume "{volume.source}" with what the image has at {place.path}: {why}', hint=hint
        ) from error


def names(pods: Pods) -> list[str]:
    """The volumes there are. Raises PodError when that cannot be told."""
    root = directory(pods)
    try:
        with os.scandir(root) as found:
            return sorted(
                each.name for each in found if is_volume_name(each.name) and each.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PodError(f"list {root}: {reason(error)}") from error


def users(pods: Pods) -> dict[str, list[str]]:
    """By name: the UUIDs of the pods that use a volume, until they are collected. Raises PodError for a pod of which
    that cannot be told; such a pod may be half there after a power cut."""
    found: dict[str, list[str]] = {}
    root = os.path.realpath(directory(pods))
    for pod in pods.all(_WRITTEN):
        try:
            manifest = pod.manifest()
        except RkpyError as error:
            if not os.path.lexists(f"{pod.base}/{poddir.MANIFEST}"):
                continue  # Being made, without volumes yet; or being removed, which was the last of it.
            hint = f"rkpy rm {pod.uuid} removes the pod"
            raise PodError(f'volumes of pod "{pod.uuid}": {error.message}', hint=hint) from error
        volumes = (*manifest.volumes, *own_volumes(*manifest.apps))
        sources = {os.path.normpath(volume.source) for volume in volumes if volume.source}
        for source in sources:
            if os.path.realpath(os.path.dirname(source)) == root:
                found.setdefault(os.path.basename(source), []).append(pod.uuid)
    return found


def take_back(pods: Pods) -> None:
    """Remove the volumes that this process has made, for a pod that is not to be: what they begin with may not be what
    the next one would have had. Those that another pod uses meanwhile stay."""
    while _made_here:
        root, name = os.path.split(_made_here.pop())
        if root == directory(pods):
            with suppress(RkpyError):
                remove(pods, name)


def remove(pods: Pods, name: str) -> None:
    """Remove a volume with all that is in it. Raises PodError, for one that a pod uses too."""
    root = directory(pods)
    try:
        finish(pods)
        if not is_volume_name(name) or not os.path.lexists(f"{root}/{name}"):
            raise PodError(f'there is no volume "{name}"', hint="see `rkpy volume list`")
        with locks.acquire(f"{root}/{_REMOVAL}", exclusive=True, create=0o600):
            _remove(root, _GONE)
            with locks.acquire(f"{root}/{_LOCK}", exclusive=True, create=0o600):
                _refuse_used(pods, name)
                if _is_there(root, name):
                    os.rename(f"{root}/{name}", f"{root}/{_GONE}")
            # It may take its time: pods do not wait for it.
            _remove(root, _GONE)
    except OSError as error:
        hint = ownership.foreign_files(error)
        raise PodError(f'remove volume "{name}": {error.filename or root}: {reason(error)}', hint=hint) from error


def finish(pods: Pods) -> None:
    """Remove what is left of volumes whose removal or making was interrupted. Raises OSError."""
    root = directory(pods)
    if os.path.lexists(f"{root}/{_NEW}"):
        # Who is at work on it holds that, and will finish it himself.
        with (
            suppress(BlockingIOError),
            locks.acquire(f"{root}/{_MAKING}", exclusive=True, blocking=False, create=0o600),
        ):
            _remove(root, _NEW)
    if os.path.lexists(f"{root}/{_GONE}"):
        with locks.acquire(f"{root}/{_REMOVAL}", exclusive=True, create=0o600):
            _remove(root, _GONE)


def _refuse_used(pods: Pods, name: str) -> None:
    used = users(pods).get(name)
    if used:
        raise PodError(f'volume "{name}" is used by pod "{used[0]}"', hint="remove the pod first: rkpy rm")


def _remove(root: str, name: str) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.remove_tree(name, dir_fd=fd)
    finally:
        os.close(fd)
