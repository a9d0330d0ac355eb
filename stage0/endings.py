"""How apps ended whose end nobody was there to see: under fly nothing stays of a pod, and a monitor can be killed.

Whoever is the first to find such a pod over says so in the journal, once, with what is known, and writes down that he
did. Of a service systemd knows how its main process ended (ExecMainStatus and its like in org.freedesktop.systemd1(5)),
which under fly is the app: as long as nobody has started the service again, and so at the latest while it runs its
`ExecStopPost=`. Of a scope it knows nothing of the kind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from common.errors import RkpyError, SystemdError
from common.records import NamedTuple
from stage0 import behaviour, caller, events, servicemanager
from stage1 import poddir
from stage1.poddir import Ending
from stage1.systemd import given
from stage1.systemd.manager import SYSTEM

if TYPE_CHECKING:
    from aci.pod_manifest import PodManifest
    from stage0.pods import Pod
    from stage1.systemd.bus import Bus

UNKNOWN = "unknown"
"""What is recorded of an end that was noticed, where nobody knows how it came (`poddir.read_ending` reads nothing from
it)."""
_TIMEOUT = 5.0
"""Seconds that a service manager may take for an answer: whoever collects pods can do without."""
_PATIENCE = 2.0
"""Seconds that it may take to notice what we have noticed already."""
_PAUSE = 0.01
_EXITED = 1
"""CLD_EXITED of sigaction(2): the status is one of exit(3), and not a signal's number."""
_SERVICE = "org.freedesktop.systemd1.Service"


class Seen(NamedTuple):
    """How the main process of a service ended."""

    ending: Ending
    at: int
    """Nanoseconds since the epoch."""
    clean: bool
    """Whether systemd takes that for a success."""


def tell(pod: Pod) -> None:
    """Say of each app of `pod`, which has exited and is ours, that it has ended, unless that was said. Never fails: a
    pod is collected all the same."""
    with suppress(RkpyError, OSError, ValueError):
        names = _unseen(pod)
        if names:
            _tell(pod, names)


def _unseen(pod: Pod) -> list[str]:
    """The apps that were started and of which no end is recorded."""
    if pod.leader() is None:
        return []
    started = poddir.all_started(pod.path)
    if not started and not pod.records_starts() and pod.is_ready():
        # A flavour that does not record starts has started all apps with the pod.
        manifest = pod.manifest()
        started = [] if behaviour.is_mutable(manifest) else [app.name for app in manifest.apps]
    return [name for name in started if not os.path.lexists(poddir.status(pod.path, name))]


def _tell(pod: Pod, names: list[str]) -> None:
    supervised = pod.records_starts()
    seen = None if supervised else _of_service(pod)
    # In the cgroup of a pod with a supervisor any process may have been killed, unless it is a machine's.
    oom = (not supervised or poddir.read_hardware(pod.path) is not None) and _lacked_memory(pod, seen)
    unit = "" if caller.is_ordinary() else poddir.read_word(pod.path, poddir.UNIT)
    for name in names:
        _record(pod, name, seen, oom=oom)
        about = _about(pod, name) | events.noticed(pod.app_started_at(name) or pod.started_at, unit)
        ending = None if seen is None else seen.ending
        events.app_ended(pod.uuid, pod.name(), about, ending, oom=oom, clean=seen is None or seen.clean)
    if supervised:
        events.pod_ended(pod.uuid, pod.name(), events.noticed(pod.started_at, unit))


def _lacked_memory(pod: Pod, seen: Seen | None) -> bool:
    if seen is not None and seen.ending.oom:
        return True
    from stage1 import cgroup

    return cgroup.lacked_memory(pod.path)


def _record(pod: Pod, name: str, seen: Seen | None, *, oom: bool) -> None:
    words = [UNKNOWN]
    if seen is not None:
        ending = seen.ending
        words = [str(ending.status), *(["signal", str(ending.signal)] if ending.signal else [])]
    with suppress(OSError):  # A full disk does not keep a pod from being collected.
        poddir.write_status(pod.path, name, " ".join([*words, *(["oom"] if oom else [])]))
        if seen is not None and seen.at:
            os.utime(poddir.status(pod.path, name), ns=(seen.at, seen.at))


def _about(pod: Pod, name: str) -> dict[str, str]:
    """Fields that say which app of which image it is."""
    manifest: PodManifest | None = None
    with suppress(RkpyError):
        manifest = pod.manifest()
    for app in manifest.apps if manifest is not None else ():
        if app.name == name:
            return {"RKPY_APP": name, "RKPY_IMAGE_ID": app.image.id, "RKPY_IMAGE_NAME": app.image.full_name}
    return {"RKPY_APP": name}


# What systemd knows


def _of_service(pod: Pod) -> Seen | None:
    """How the pod's leader ended, as the service manager saw it whose service's main process it was."""
    leader, unit = pod.leader(), poddir.read_word(pod.path, poddir.UNIT)
    if leader is None or not unit.endswith(".service") or leader.boot_id != poddir.boot_id() or not given.booted():
        return None
    for bus in _managers():
        with suppress(SystemdError), closing(bus):
            if (seen := _main_process(bus, unit, leader.pid)) is not None:
                return seen
    return None


def _managers() -> Iterator[Bus]:
    """Connections to those whose service it may have been. A service manager's own socket is there when the bus is not
    any more: a service may be stopped because the machine is."""
    from stage1.systemd.bus import Bus

    own = servicemanager.find()
    if own is not None:
        with suppress(SystemdError):
            yield Bus(own.private, _TIMEOUT, direct=True)
    if caller.is_ordinary():  # whose pod may be in a service of the system's (User=)
        with suppress(SystemdError):
            yield Bus(SYSTEM.bus, _TIMEOUT)


def _main_process(bus: Bus, unit: str, pid: int) -> Seen | None:
    from stage1.systemd.bus import SYSTEMD

    path = bus.call(SYSTEMD, "GetUnit", "s", (unit,))[0]

    def ask(name: str) -> int:
        return int(bus.get(SYSTEMD[0], path, _SERVICE, name))

    deadline = time.monotonic() + _PATIENCE
    while ask("ExecMainPID") == pid:
        if code := ask("ExecMainCode"):
            result = str(bus.get(SYSTEMD[0], path, _SERVICE, "Result"))
            ending = _ending(code, ask("ExecMainStatus"), result)
            return Seen(ending, ask("ExecMainExitTimestamp") * 1000, clean=result == "success")
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    return None


def _ending(code: int, status: int, result: str) -> Ending:
    """`code` and `status`: si_code and si_status of sigaction(2); `result`: what systemd makes of it."""
    number = 0 if code == _EXITED else status
    return Ending(128 + number if number else status, number, oom=result == "oom-kill")
