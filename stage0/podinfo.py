"""What `list` and `status` tell about a pod, read once, and its JSON form."""

from __future__ import annotations

from typing import Any, NamedTuple

from aci.pod_manifest import PodManifest, RuntimeApp
from stage0.pods import Pod, State

_SECOND = 1_000_000_000


class AppMount(NamedTuple):
    name: str
    container_path: str
    host_path: str
    read_only: bool


class AppInfo(NamedTuple):
    """One app of a pod. Times are nanoseconds since the epoch."""

    name: str
    image_name: str
    """`name:version`; empty when the manifest does not say."""
    image_id: str
    state: str = "unknown"
    """created, running, exited or unknown."""
    finished_at: int | None = None
    exit_code: int | None = None
    mounts: tuple[AppMount, ...] = ()
    user_annotations: tuple[tuple[str, str], ...] = ()
    user_labels: tuple[tuple[str, str], ...] = ()


class PodInfo(NamedTuple):
    """A pod as it was at one moment. Times are nanoseconds since the epoch."""

    uuid: str
    state: State
    apps: tuple[AppInfo, ...]
    created_at: int | None
    started_at: int | None
    pid: int | None
    user_annotations: tuple[tuple[str, str], ...] = ()
    user_labels: tuple[tuple[str, str], ...] = ()


def read(pod: Pod) -> PodInfo:
    """Read an observed pod. Missing files are missing values; raises RkpyError when the manifest is there and cannot
    be understood, or the pod may not be read."""
    state = pod.state()
    manifest = None if state in _UNFINISHED and not pod.has_manifest() else pod.manifest()
    leader = pod.leader()
    return PodInfo(
        uuid=pod.uuid,
        state=state,
        apps=() if manifest is None else tuple(_app(pod, state, manifest, app) for app in manifest.apps),
        created_at=pod.created_at,
        started_at=pod.started_at,
        pid=None if leader is None else leader.pid,
        user_annotations=() if manifest is None else manifest.user_annotations,
        user_labels=() if manifest is None else manifest.user_labels,
    )


_UNFINISHED = (State.EMBRYO, State.PREPARING, State.ABORTED_PREPARE, State.GARBAGE, State.DELETING)


def _app(pod: Pod, state: State, manifest: PodManifest, app: RuntimeApp) -> AppInfo:
    version = dict(app.image.labels).get("version")
    exit_code = pod.exit_status(app.name)
    return AppInfo(
        name=app.name,
        image_name=f"{app.image.name}:{version}" if app.image.name and version else app.image.name,
        image_id=app.image.id,
        state=_app_state(state, exit_code),
        finished_at=pod.finished_at(app.name),
        exit_code=exit_code,
        mounts=_mounts(manifest, app),
        user_annotations=app.app.user_annotations if app.app else (),
        user_labels=app.app.user_labels if app.app else (),
    )


def _app_state(state: State, exit_code: int | None) -> str:
    if state is State.RUNNING:
        return "running" if exit_code is None else "exited"
    if state.started:
        return "exited"
    return "created" if state in (State.PREPARED, State.PREPARING) else "unknown"


def _mounts(manifest: PodManifest, app: RuntimeApp) -> tuple[AppMount, ...]:
    volumes = {volume.name: volume for volume in manifest.volumes}
    found = []
    for mount in app.mounts:
        volume = mount.app_volume or volumes.get(mount.volume)
        if volume is not None:
            found.append(AppMount(mount.volume, mount.path, volume.source, volume.read_only))
    return tuple(found)


def to_json(pod: PodInfo) -> dict[str, Any]:
    """rkt's Pod object. Mind the units: times of the pod are in seconds, times of apps in nanoseconds. What is unknown
    or empty is left out."""
    known = {
        "name": pod.uuid,
        "state": str(pod.state),
        "app_names": [app.name for app in pod.apps],
        "apps": [_app_to_json(pod, app) for app in pod.apps],
        "created_at": None if pod.created_at is None else pod.created_at // _SECOND,
        "started_at": None if pod.started_at is None else pod.started_at // _SECOND,
        "user_annotations": dict(pod.user_annotations),
        "user_labels": dict(pod.user_labels),
    }
    return {key: value for key, value in known.items() if value not in (None, [], {})}


def _app_to_json(pod: PodInfo, app: AppInfo) -> dict[str, Any]:
    known = {
        "name": app.name,
        "state": app.state,
        "created_at": pod.created_at,
        "started_at": pod.started_at,
        "finished_at": app.finished_at,
        "exit_code": app.exit_code,
        "image_id": app.image_id,
        "mounts": [mount._asdict() for mount in app.mounts],
        "user_annotations": dict(app.user_annotations),
        "user_labels": dict(app.user_labels),
    }
    return {key: value for key, value in known.items() if value not in (None, [], {})}
