"""Changing which apps a pod has while it runs (`rkpy app`).

The pod manifest is the truth: an app is one of the pod's from the moment the manifest that lists it is renamed into
place until one without it is. What lies in the pod directory of an app the manifest does not list was left by somebody
who was interrupted; the next to use that name clears it, and gc takes it with the pod. All of this happens under a lock
of its own in the pod directory, because the pod's lock is held by the pod.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from aci import pod_manifest
from aci.pod_manifest import PodManifest, RuntimeApp, Volume
from aci.store import ImageRecord, Store
from common import files, locks
from common.errors import PodError, UsageError, reason
from stage0 import awaiting, behaviour, podinfo, prepare, rootless
from stage0.podinfo import AppInfo
from stage0.pods import Pod, Pods, State
from stage1 import boot, poddir
from stage1 import flavour as flavours

_IN_WORDS = {"attach": "attach to an app", "send_signal": "signal its apps"}
_LOCK_MODE = 0o640
_OF_APP = ("rootfs", "overlay", "status", "started", "restarts", "health", "sockets", "appsinfo")
"""Directories of the pod in which everything of an app bears its name; what tells about it comes last."""


def operation(pod: Pod, name: str) -> Callable[..., Any]:
    """The function `name` of the pod's flavour, one that not every flavour has. Raises PodError."""
    found = getattr(flavours.load(pod.flavour()), name, None)
    if found is None:
        what = _IN_WORDS.get(name, "change a running pod")
        raise PodError(f'flavour "{pod.flavour()}" cannot {what}', hint="run the pod with another --stage1")
    return cast(Callable[..., Any], found)


def find_running(pods: Pods, name: str) -> Pod:
    """The running pod called `name`, which has a leader. Raises PodError."""
    pod = awaiting.start(pods, pods.find(name))
    state = pod.state()
    if state is not State.RUNNING:
        raise PodError(f'pod "{pod.uuid}" isn\'t currently running: it is {state}')
    return pod


def join(pod: Pod) -> None:
    """Be root where the running `pod` is, for those who are not (`rootless.join`). Raises PodError when it is over."""
    leader = pod.leader()
    try:
        if leader is None:
            raise ProcessLookupError
        rootless.join(leader, mounts=pod.flavour() in boot.FLAVOURS)
    except ProcessLookupError as error:
        raise PodError(f'pod "{pod.uuid}" isn\'t currently running') from error


def require_mutable(pod: Pod) -> None:
    if not behaviour.is_mutable(pod.manifest()):
        raise PodError(f'pod "{pod.uuid}" is immutable', hint="rkpy app sandbox makes pods whose apps can be changed")


def states(pod: Pod) -> dict[str, str]:
    """The state of each app: as the pod's flavour says while it runs, and as was recorded."""
    recorded = {app.name: app.state for app in podinfo.read(pod).apps}
    tell = getattr(flavours.load(pod.flavour()), "app_states", None) if pod.flavour() else None
    if tell is None or pod.state() is not State.RUNNING or pod.leader() is None:
        return recorded  # Nobody can be asked, or nobody yet.
    told: dict[str, str] = tell(pod.path)
    return {name: told.get(name, state) for name, state in recorded.items()}


def info(pod: Pod, name: str) -> AppInfo:
    """What is known of one app, with its state as `states` has it."""
    found = next(app for app in podinfo.read(pod).apps if app.name == name)
    return found._replace(state=states(pod).get(name, found.state))


@contextmanager
def changing(pod: Pod) -> Iterator[None]:
    """Held while the set of the pod's apps changes. Raises PodError."""
    try:
        lock = locks.acquire(f"{pod.path}/{poddir.APPS_LOCK}", exclusive=True, create=_LOCK_MODE)
    except OSError as error:
        raise PodError(f'cannot lock the apps of pod "{pod.uuid}": {reason(error)}') from error
    with lock:
        yield


def add(
    pod: Pod, store: Store, record: ImageRecord, app: RuntimeApp, asked: tuple[str, ...], insecure: Sequence[str]
) -> None:
    """Give the running `pod` one more app, made from the image `record`; it is not started. Raises RkpyError, and then
    the pod is as it was."""
    tell = operation(pod, "app_add")
    with changing(pod):
        before = pod.manifest()
        _require_new(before, app)
        try:
            _clear(pod.path, app)
            _make(pod.path, before, app, record, store)
            after = before._replace(apps=(*before.apps, app))
            prepared = prepare.load(pod, store, manifest=after, asked=asked, insecure=insecure)
            own = prepared.apps[-1]
            prepare.check(prepared._replace(apps=(own,)), flavours.load(pod.flavour()))
            _commit(pod.path, after)
            tell(prepared, own)
        except BaseException as error:
            _undo(pod.path, before, app)
            if isinstance(error, OSError):
                raise PodError(f'cannot add app "{app.name}": {error.filename}: {reason(error)}') from error
            raise


def _require_new(manifest: PodManifest, app: RuntimeApp) -> None:
    if any(other.name == app.name for other in manifest.apps):
        raise UsageError(f'the pod has an app "{app.name}" already', hint="give this one another --name")
    taken = {volume.name for volume in manifest.volumes}
    taken.update(volume.name for other in manifest.apps for volume in _own_volumes(other))
    for volume in _own_volumes(app):
        if volume.name in taken:
            raise UsageError(f'the pod has a volume "{volume.name}" already', hint="choose another name")


def _own_volumes(app: RuntimeApp) -> list[Volume]:
    """The empty volumes that are the app's alone."""
    own = {volume.name: volume for volume in pod_manifest.own_volumes(app)}
    return [volume for volume in own.values() if volume.kind == "empty"]


def _make(directory: str, manifest: PodManifest, app: RuntimeApp, record: ImageRecord, store: Store) -> None:
    for volume in _own_volumes(app):
        prepare.make_volume(poddir.volume(directory, volume.name), volume)
    prepare.write_app_info(directory, app.name, record, store)
    if behaviour.copies_roots(manifest):
        prepare.copy_root(directory, app.name, store)


def _undo(directory: str, before: PodManifest, app: RuntimeApp) -> None:
    """Because of an error, which is the one to report."""
    try:
        _commit(directory, before)
        _clear(directory, app)
    except OSError:
        pass


def remove(pod: Pod, name: str, *, alive: bool) -> None:
    """Take an app from the pod, which runs (`alive`) or is ours, with everything that is the app's own. PodError."""
    with changing(pod):
        before = pod.manifest()
        app = next(app for app in before.apps if app.name == name)
        if alive:
            operation(pod, "app_rm")(pod.path, name)
        try:
            _commit(pod.path, before._replace(apps=tuple(other for other in before.apps if other is not app)))
            _clear(pod.path, app)
        except OSError as error:
            raise PodError(f'cannot remove app "{name}": {error.filename}: {reason(error)}') from error


def _commit(directory: str, manifest: PodManifest) -> None:
    path = f"{directory}/{poddir.MANIFEST}"
    mode = os.stat(path).st_mode & 0o777
    files.replace(path, pod_manifest.dumps(manifest, pretty=False).encode(), mode=mode)


def _clear(directory: str, app: RuntimeApp) -> None:
    """Remove what bears the app's name, and its own volumes. Layers are shared and stay."""
    for parent in _OF_APP:
        _remove(f"{directory}/{parent}", app.name)
    for volume in (*(volume.name for volume in _own_volumes(app)), *poddir.implicit_volumes(directory, app.name)):
        _remove(f"{directory}/volumes", volume)


def _remove(parent: str, name: str) -> None:
    try:
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        files.remove_tree(name, dir_fd=fd)
    finally:
        os.close(fd)
