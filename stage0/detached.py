"""`--detach`: a pod is prepared by the caller and started by systemd, as a transient service. There is no daemon of
rkpy's for that and never will be: systemd is one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

from aci.store import Store
from common.errors import PodError, SystemdError, UsageError
from stage0 import (
    behaviour,
    caller,
    invocation,
    machines,
    options,
    podservice,
    podunit,
    prepare,
    servicemanager,
    starting,
)
from stage0.config import Config
from stage0.grammar import Request
from stage0.pods import PREPARED, RUN, Pod, Pods
from stage1 import cgroup, resources
from stage1 import flavour as flavours
from stage1.flavour import PreparedPod
from stage1.limits import Limits
from stage1.systemd import given, units
from stage1.systemd.bus import SYSTEMD, TIMED_OUT, Bus
from stage1.systemd.manager import Manager
from stage1.systemd.registrar import EXECUTED_ANEW, JOBS, SYSTEMDS, await_systemd, require_done, start
from stage1.systemd.units import Property

_PAUSE = 10.0
"""Seconds without news until we look ourselves: news are lost while systemd is executed anew (daemon-reexec). How long
a start may take is for the unit to say."""
_UNIT = "org.freedesktop.systemd1.Unit"
_NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
_NO_JOB = "/"
_HERE = ("detach", "uuid-file-save")
"""Flags that are seen to before systemd has its turn."""


def run(request: Request, settings: Config, flavour: str) -> int:
    """`rkpy run --detach`: prints the pod's UUID once it is up."""
    manager = _manager(request)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
    bus = Bus(manager.bus)  # before there is anything to take back
    pod = starting.prepared_pod(request, settings, flavour, manager=manager)
    try:
        return _launch(bus, pod, "run-prepared", request, settings)
    except BaseException:
        # Who is interrupted once more is to have it no less: it would keep its name for a day.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _give_back(settings, pod.uuid)
        raise


def _interrupt(number: int, _frame: object) -> None:
    """Who waits no longer, as timeout(1), is to find as little left as after Ctrl-C."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def again(verb: str, request: Request, settings: Config, uuid: str) -> int:
    """`rkpy run-prepared --detach` and `rkpy start --detach`."""
    bus = Bus(_manager(request).bus)
    return _launch(bus, Pods(settings.pods).require_own().find(uuid), verb, request, settings)


def _manager(request: Request) -> Manager:
    """Who is to run it. Raises UsageError when nobody can."""
    if not given.booted():
        raise UsageError(
            "--detach: systemd is not running here, and rkpy has no daemon", hint="leave it out, and use &"
        )
    if request.flags.boolean("interactive"):
        raise UsageError("--interactive: a detached pod has no terminal", hint="rkpy attach connects to its apps")
    if request.flags.get("set-credential") is not None:
        # A unit's properties are for everybody to read.
        hint = "--load-credential reads it from a file"
        raise UsageError("--set-credential: the unit of a detached pod would show the value", hint=hint)
    for text in request.flags.all("load-credential"):
        if not text.partition(":")[2].startswith("/"):
            raise UsageError("--load-credential of a detached pod takes ID:PATH with an absolute path")
    found = servicemanager.find()
    if found is None:
        hint = "loginctl enable-linger has it run, and Debian has its bus in dbus-user-session"
        raise UsageError("--detach: this user has no service manager with a bus", hint=hint)
    return found


def _launch(bus: Bus, pod: Pod, verb: str, request: Request, settings: Config) -> int:
    uuid, name = pod.uuid, pod.name()
    with pod:
        properties = [*_service(pod, verb, request, settings)]
        last = pod.leader()
    starting.save_uuid(request.flags.get("uuid-file-save"), uuid)
    bus.listen(JOBS)
    bus.listen(SYSTEMDS)
    names = units.names(uuid, name, "service")
    while (begun := _begin(bus, names, properties)) is None:
        with Pods(settings.pods).find(uuid) as found:
            if found.leader() != last:
                raise SystemdError(f'pod "{uuid}" has ended already', hint=f"rkpy status {uuid} says how")
    _await(bus, *begun)
    sys.stdout.write(f"{uuid}\n")
    return 0


def _begin(bus: Bus, names: list[str], properties: list[Property]) -> tuple[str, str] | None:
    """Have the unit started: its name and the job. None when systemd was executed anew meanwhile (daemon-reexec) and
    has no such unit, be it that it was never told or that the unit is gone already."""
    try:
        return start(bus, list(names), properties)
    except SystemdError as error:
        if error.name not in EXECUTED_ANEW:
            raise
    while True:
        await_systemd(bus)
        try:
            return _find(bus, names, properties)
        except SystemdError as error:
            if error.name not in EXECUTED_ANEW:
                raise


def _find(bus: Bus, names: list[str], properties: list[Property]) -> tuple[str, str] | None:
    """The unit that is ours, which its description tells, and its job; "/" when that is done."""
    ours = next(value for name, _, value in properties if name == "Description")
    for unit in names:
        try:
            path = bus.call(SYSTEMD, "GetUnit", "s", (unit,))[0]
            if bus.get(SYSTEMD[0], path, _UNIT, "Description") == ours:
                return unit, str(bus.get(SYSTEMD[0], path, _UNIT, "Job")[1])
        except SystemdError as error:
            if error.name != _NO_SUCH_UNIT:
                raise
    return None


def _await(bus: Bus, unit: str, job: str) -> None:
    try:
        if job != _NO_JOB or _state(bus, unit) != "active":
            while not _is_done(bus, unit, job):
                pass
    except SystemdError as error:
        journalctl = "journalctl --user" if caller.is_ordinary() else "journalctl"
        raise SystemdError(error.message, hint=f"{journalctl} -u {unit} says why") from error
    except KeyboardInterrupt:
        bus.call(SYSTEMD, "StopUnit", "ss", (unit, "replace"))
        raise


def _is_done(bus: Bus, unit: str, job: str) -> bool:
    """Whether the unit has been started; raises SystemdError when it could not be."""
    try:
        require_done(bus, unit, job, _PAUSE)
    except SystemdError as error:
        if error.name != TIMED_OUT and error.name not in EXECUTED_ANEW:
            raise
        return _state(bus, unit) == "active"
    return True


def _state(bus: Bus, unit: str) -> str:
    """ActiveState of the unit; empty while systemd does not say. Raises SystemdError when it has failed, or is no
    more."""
    try:
        path = bus.call(SYSTEMD, "GetUnit", "s", (unit,))[0]
        state = str(bus.get(SYSTEMD[0], path, _UNIT, "ActiveState"))
        waits = bool(bus.get(SYSTEMD[0], path, _UNIT, "Job")[0])  # for others to be started before it
    except SystemdError as error:
        if error.name not in (_NO_SUCH_UNIT, ""):
            return ""  # It is being executed anew at this very moment.
        raise
    if state in ("failed", "inactive") and not waits:
        raise SystemdError(f"systemd could not start {unit}: {state}")
    return state


def _service(pod: Pod, verb: str, request: Request, settings: Config) -> Iterator[Property]:
    manifest = pod.manifest()
    stop_timeout = behaviour.of_pod(manifest).stop_timeout
    can_reload = bool(behaviour.reload_signals(manifest))
    rkpy = [*invocation.absolute(), *podunit.global_words(request.flags), *_places(request, settings)]
    words = [*rkpy, verb, *podunit.words(request.flags, options.RUNTIME, but=_HERE), pod.uuid]
    disk = cgroup.disk(pod.path)
    yield from units.about(pod.uuid, pod.name(), f"{pod.root}/{RUN}/{pod.uuid}")
    reload = [*rkpy, "reload", pod.uuid] if can_reload else None
    yield from units.of_service(words, [*rkpy, *podservice.after_stop("")], stop_timeout, reload)
    yield from units.resources(_limits(pod, settings), f"/dev/block/{disk}" if disk else "")


def _limits(pod: Pod, settings: Config) -> Limits:
    """Those of the service. Raises RkpyError for a pod that could not be started either."""
    flavour = flavours.load(pod.flavour())
    prepared = machines.settle(prepare.load(pod, Store(settings.store)), flavour, settings, os.environ)
    of_unit: Callable[[PreparedPod], Limits] = getattr(flavour, "of_unit", resources.of_unit)
    return of_unit(prepared)


def _places(request: Request, settings: Config) -> Iterator[str]:
    """Where a user's things are: by variables of his shell, which his service manager may not have."""
    if caller.is_ordinary():
        for flag, path in (("dir", settings.data_dir), ("user-config", settings.user_config)):
            if request.flags.get(flag) is None:
                yield f"--{flag}={path}"


def _give_back(settings: Config, uuid: str) -> None:
    """What was prepared for nothing."""
    try:
        with Pods(settings.pods).require_own().find(uuid, (PREPARED,)) as pod:
            pod.take()
            pod.discard()
    except PodError:
        pass  # It got further than that, and tells more as it is.
