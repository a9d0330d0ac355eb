"""What `list` and `status` tell about a pod, read once, and its JSON form."""

from __future__ import annotations

from typing import Any

from aci.pod_manifest import PodManifest, RuntimeApp
from common.records import NamedTuple
from stage0 import behaviour, podnets
from stage0.podnets import NetworkInfo
from stage0.pods import Pod, State
from stage1 import poddir
from stage1.poddir import Ending, Hardware, LimitReport

_SECOND = 1_000_000_000
_UNKNOWN = Ending(-1)


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
    started_at: int | None = None
    """None when the flavour does not record it; then the app was started with the pod."""
    finished_at: int | None = None
    exit_code: int | None = None
    signal: int = 0
    """The signal that ended it, if one did."""
    oom_killed: bool = False
    restarts: int = 0
    health: str = ""
    """starting, healthy or unhealthy while it runs and somebody looks."""
    health_text: str = ""
    """Why it is unhealthy."""
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
    name: str = ""
    """The name given with --pod-name."""
    mutable: bool = False
    limits: tuple[LimitReport, ...] = ()
    """What became of the limits asked for."""
    networks: tuple[NetworkInfo, ...] = ()
    """Of a pod that has been started."""
    unit: str = ""
    """The unit of systemd that it is in, or was."""
    machine: str = ""
    """Its name with machined."""
    hardware: Hardware | None = None
    """Of a pod that is a virtual machine."""


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
        name=pod.name(),
        mutable=manifest is not None and behaviour.is_mutable(manifest),
        limits=tuple(poddir.read_limits(pod.base)),
        networks=podnets.read(pod.base) if state.started else (),
        unit=poddir.read_word(pod.base, poddir.UNIT),
        machine=poddir.read_word(pod.base, poddir.MACHINE),
        hardware=poddir.read_hardware(pod.base),
    )


_UNFINISHED = (State.EMBRYO, State.PREPARING, State.ABORTED_PREPARE, State.GARBAGE, State.DELETING)


def _app(pod: Pod, state: State, manifest: PodManifest, app: RuntimeApp) -> AppInfo:
    ending = pod.ending(app.name) or _UNKNOWN
    health = poddir.read_health(pod.base, app.name) if state is State.RUNNING and ending is _UNKNOWN else ("", "")
    started_at = pod.app_started_at(app.name)
    # A flavour that records starts has a file for each app it has started; of the others all start with the pod.
    waiting = started_at is None and (pod.records_starts() or behaviour.is_mutable(manifest))
    return AppInfo(
        name=app.name,
        image_name=app.image.full_name,
        image_id=app.image.id,
        state=_app_state(state, ended=ending is not _UNKNOWN, waiting=waiting),
        started_at=started_at,
        finished_at=pod.finished_at(app.name),
        exit_code=None if ending is _UNKNOWN else ending.status,
        signal=ending.signal,
        oom_killed=ending.oom or _lacked_memory(pod, state, unseen=ending is _UNKNOWN and not waiting),
        restarts=pod.restarts(app.name),
        health=health[0],
        health_text=health[1],
        mounts=_mounts(manifest, app),
        user_annotations=app.app.user_annotations if app.app else (),
        user_labels=app.app.user_labels if app.app else (),
    )


def _lacked_memory(pod: Pod, state: State, *, unseen: bool) -> bool:
    """Whether that is what an app has met whose end nobody was there to see, as long as its cgroup tells. Where a
    monitor is to see to that, only if it did not: what was killed then in the cgroup of a machine was the machine."""
    if state is State.RUNNING or not state.started:
        return False
    if pod.records_starts() and not (unseen and poddir.read_hardware(pod.base)):
        return False
    from stage1 import cgroup

    return cgroup.lacked_memory(pod.base)


def _app_state(state: State, *, ended: bool, waiting: bool) -> str:
    if state is State.RUNNING:
        return "exited" if ended else "created" if waiting else "running"
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
        "pod_name": pod.name or None,
        "state": str(pod.state),
        "networks": [podnets.to_json(network) for network in pod.networks],
        "app_names": [app.name for app in pod.apps],
        "apps": [app_to_json(pod, app) for app in pod.apps],
        "created_at": None if pod.created_at is None else pod.created_at // _SECOND,
        "started_at": None if pod.started_at is None else pod.started_at // _SECOND,
        "unit": pod.unit or None,
        "machine": pod.machine or None,
        "hardware": None if pod.hardware is None else pod.hardware._asdict(),
        "limits": [limit._asdict() for limit in pod.limits],
        "user_annotations": dict(pod.user_annotations),
        "user_labels": dict(pod.user_labels),
    }
    return {key: value for key, value in known.items() if value not in (None, [], {})}


def app_to_json(pod: PodInfo, app: AppInfo) -> dict[str, Any]:
    known = {
        "name": app.name,
        "state": app.state,
        "created_at": pod.created_at,
        "started_at": None if app.state == "created" else app.started_at or pod.started_at,
        "finished_at": app.finished_at,
        "exit_code": app.exit_code,
        "signal": app.signal or None,
        "oom_killed": app.oom_killed or None,
        "restarts": app.restarts or None,
        "health": app.health or None,
        "health_reason": app.health_text or None,
        "image_id": app.image_id,
        "mounts": [mount._asdict() for mount in app.mounts],
        "user_annotations": dict(app.user_annotations),
        "user_labels": dict(app.user_labels),
    }
    return {key: value for key, value in known.items() if value not in (None, [], {})}
