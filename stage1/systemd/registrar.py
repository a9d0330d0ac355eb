"""The process that makes a pod known to systemd: a scope of its own, or the service it was started in, and a machine.

Forked when rkpy starts, like the network's worker: it loads what it needs and connects while the engine is at work. It
is the child of the process that becomes the pod, and over as soon as the pod is registered.

It hears, from the engine and then from the monitor (descriptors in brackets):
    pod [registration]  a Registration
    machine LEADER      the pod's leader exists and is attached to its networks; only for pods that are machines
It says, to the monitor (under fly, to the engine):
    scoped UNIT SYSTEMD ASKED PRIVATE [bus call]    the monitor is in its scope. By the bus's socket systemd, under
                        that unique name, asks for the scope to be stopped, and has done so already if ASKED is 1; the
                        call, a memory file, tells systemd itself, on the socket PRIVATE, that nobody listens any more
    kept UNIT [bus]     it stays in the unit it was started in
    apart TEXT          there is no scope, for this reason; nothing follows
    machine NAME [call] registered with machined; the call, a memory file, takes it back
    unknown TEXT        not registered with machined, for this reason
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from common.errors import RkpyError, SystemdError, located
from common.records import NamedTuple
from stage1 import channel
from stage1.channel import Channel
from stage1.limits import Limits
from stage1.systemd import bus, units
from stage1.systemd.bus import MACHINED, SYSTEMD, Bus
from stage1.systemd.manager import Manager
from stage1.systemd.units import Property

if TYPE_CHECKING:
    from stage1.flavour import PreparedPod

TIMEOUT = 25.0
"""Seconds that systemd may take for one answer. Whoever starts a pod is waiting, but of fifty that are started at once,
as at boot, each is to be registered."""
SERVICE = "rkpy"
"""How machined has pods."""
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""A terminal sends them to us too; it is the monitor that decides, and lets go of our channel when we are to end."""
JOBS = f"type='signal',sender='{SYSTEMD[0]}',interface='{SYSTEMD[2]}',member='JobRemoved'"
SYSTEMDS = f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{SYSTEMD[0]}'"
_START = "ssa(sv)a(sa(sv))"
_NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
_NOBODY = "org.freedesktop.DBus.Error.NameHasNoOwner"
EXECUTED_ANEW = frozenset({_NO_REPLY, _NOBODY, "org.freedesktop.DBus.Error.ServiceUnknown"})
"""What a call to a systemd comes to that leaves the bus for a moment, as it does in `systemctl daemon-reexec`."""
_SETTLING = 5.0
"""Seconds until a process is in a scope that systemd had begun to make when it was executed anew."""
_UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
_MACHINE_EXISTS = "org.freedesktop.machine1.MachineExists"
_MACHINE = "org.freedesktop.machine1.Machine"


class Registrar(NamedTuple):
    """The registrar as its parent, the engine and the monitor see it."""

    pid: int
    channel: Channel


class Registration(NamedTuple):
    """A pod as systemd is to know it."""

    uuid: str
    name: str
    directory: str
    """The pod directory."""
    root: str
    """What machined is told to be the root directory; empty for none that the host has."""
    keep: bool
    """Whether it stays in the unit it was started in."""
    machine: bool
    """Whether it is registered with machined."""
    stop_timeout: int
    limits: Limits = Limits()
    disk: str = ""
    """The device that the pod's files are on, a path."""
    kind: str = ""
    """Of machine: "container" or "vm"; empty for what has no monitor, which could be asked to end."""
    worker: int = 0
    """Another process for the scope; 0 for none."""


def begin(manager: Manager) -> Registrar:
    """Fork the registrar, which speaks to `manager` and ends by itself once nobody holds the other end of its
    channel."""
    ours, theirs = channel.pair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        # Whatever happens: nobody of the callers' is to run here.
        os._exit(_main(manager, theirs, parent))
    theirs.close()
    return Registrar(pid, ours)


def announce(
    manager: Manager, registrar: Registrar, pod: PreparedPod, limits: Limits, *, kind: str, worker: int = 0
) -> None:
    """Tell the registrar of the pod; `kind`: as machined is to know it, empty when it is no machine. `worker`: the
    process that is to come along into the pod's scope, 0 for none."""
    from stage1 import cgroup, poddir
    from stage1.plan import dumps

    disk = cgroup.disk(pod.directory)
    keep = units.stays(pod.keep_unit)
    copied = [app.name for app in pod.apps if not app.layers]
    # Where layers are stacked it is an empty directory: that is done in mount namespaces of the pod's own.
    root = poddir.rootfs(pod.directory, copied[0]) if len(copied) == len(pod.apps) == 1 else ""
    registration = Registration(
        uuid=pod.uuid,
        name=pod.name,
        directory=pod.directory,
        root=root if units.can_be_said(root) else "",
        keep=keep,
        # machined finds a machine's unit by its leader's cgroup, which is nowhere in a unit that is not ours to divide.
        # And it takes none of those of ordinary users.
        machine=bool(kind) and manager.is_system and pod.register and (not keep or cgroup.find().delegated),
        stop_timeout=pod.stop_timeout,
        limits=limits,
        disk=f"/dev/block/{disk}" if disk else "",
        kind=kind,
        worker=worker,
    )
    with suppress(BrokenPipeError, ConnectionResetError):  # It has failed already, and said why.
        registrar.channel.send("pod", (channel.memory_file(dumps(registration)),))


def _main(manager: Manager, source: Channel, parent: int) -> int:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        _work(manager, source, parent)
    except RkpyError as error:
        _send(source, f"apart {error}")
    except OSError as error:
        _send(source, f"apart {located(error)}")
    except Exception as error:
        # Whoever waits for us has to hear of it.
        _send(source, f"apart {error!r}")
    return 0


def _send(source: Channel, text: str, fds: tuple[int, ...] = ()) -> bool:
    try:
        source.send(text, fds)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _work(manager: Manager, source: Channel, parent: int) -> None:
    connection = Bus(manager.bus, TIMEOUT)
    connection.listen(JOBS)
    connection.listen(SYSTEMDS)
    before = await_systemd(connection)
    message, fds = source.receive()
    if message != "pod":
        return
    from stage1.plan import loads

    pod: Registration = loads(channel.read_memory_file(fds[0]))
    unit = "" if pod.keep else make_scope(connection, pod, parent)
    connection.ignore(JOBS)
    systemd = await_systemd(connection)
    connected = connection.socket.fileno()
    if unit:
        giving_up = channel.memory_file(bus.call_for_later(SYSTEMD, "AbandonScope", "s", (unit,), answer=True))
        asked = not connection.asked.isdisjoint((before, systemd))
        said = _send(source, f"scoped {unit} {systemd} {asked:d} {manager.private}", (connected, giving_up))
    else:
        said = _send(source, f"kept {units.own()}", (connected,))
    if said and pod.machine:
        # The monitor reads what comes from that connection; ours is another from now on.
        connection.close()
        _register(Bus(manager.bus, TIMEOUT), pod, source)


# The scope


def make_scope(connection: Bus, pod: Registration, pid: int) -> str:
    """Put the process into a scope for the pod; its name. Raises SystemdError."""
    properties = [
        *units.about(pod.uuid, pod.name, pod.directory),
        *units.of_scope(
            [pid, *([pod.worker] if pod.worker else [])], connection.name if pod.kind else "", pod.stop_timeout
        ),
        *units.resources(pod.limits, pod.disk),
    ]
    names, again = units.names(pod.uuid, pod.name, "scope"), False
    while True:
        # It may have been executed anew while the engine was at work, which is none of this matter.
        await_systemd(connection)
        connection.forget_signals()
        try:
            unit, job = start(connection, list(names), properties)
            require_done(connection, unit, job)
            return unit
        except SystemdError as error:
            if error.name not in EXECUTED_ANEW and not (again and error.name == _UNIT_EXISTS):
                raise
            # What it had been told may be lost, or only its answer.
            await_systemd(connection)
            if unit := _entered(pid, names, _SETTLING if again else 0):
                return unit
            if error.name == _UNIT_EXISTS:
                raise
        again = True


def _entered(pid: int, names: list[str], seconds: float) -> str:
    """Which of these units the process comes to be in within so many seconds, or empty."""
    end = time.monotonic() + seconds
    while (unit := units.of(pid)) not in names:
        if time.monotonic() >= end:
            return ""
        time.sleep(0.05)
    return unit


def await_systemd(connection: Bus) -> str:
    """Its unique name, once it is on the bus. Raises SystemdError."""
    while True:
        try:
            return connection.owner(SYSTEMD[0])
        except SystemdError as error:
            if error.name != _NOBODY:
                raise
        connection.wait(_is_of_systemd)


def _is_of_systemd(signal: Any) -> bool:
    """Whether it tells that systemd has left the bus, or come back."""
    return bool(signal.member == "NameOwnerChanged" and signal.body[0] == SYSTEMD[0])


def start(connection: Bus, names: list[str], properties: list[Property]) -> tuple[str, str]:
    """Have a transient unit started, by the first of `names` that is free: its name and the job. Raises
    SystemdError."""
    packed = [[name, bus.variant(signature, value)] for name, signature, value in properties]
    while True:
        unit = names.pop(0)
        try:
            return unit, connection.call(SYSTEMD, "StartTransientUnit", _START, (unit, "fail", packed, []))[0]
        except SystemdError as error:
            # One of that name lies about, or somebody else's pod has it.
            if error.name != _UNIT_EXISTS or not names:
                raise


def require_done(connection: Bus, unit: str, job: str, seconds: float | None = None) -> None:
    """Wait for the end of a job; the connection hears of JOBS. Raises SystemdError when it has failed."""
    removed = connection.wait(lambda signal: _is_end(signal, job) or _is_of_systemd(signal), seconds)
    if not _is_end(removed, job):
        raise SystemdError(f"systemd was executed anew while it started {unit}", name=_NO_REPLY)
    result = removed.body[3]
    if result != "done":
        raise SystemdError(f"systemd could not start {unit}: {result}")


def _is_end(signal: Any, job: str) -> bool:
    return bool(signal.member == "JobRemoved" and signal.body[1] == job)


# The machine


def _register(connection: Bus, pod: Registration, source: Channel) -> None:
    message, _ = source.receive()
    verb, _, leader = message.partition(" ")
    if verb != "machine":
        return
    try:
        name = register(connection, pod, int(leader))
    except SystemdError as error:
        _send(source, f"unknown {error}")
        return
    call = channel.memory_file(bus.call_for_later(MACHINED, "UnregisterMachine", "s", (name,), answer=True))
    _send(source, f"machine {name}", (call,))


def register(connection: Bus, pod: Registration, leader: int) -> str:
    """Make the pod a machine; its name. Raises SystemdError."""
    names = [*([pod.name] if pod.name else []), f"rkpy-{pod.uuid}"]
    for name in names:
        arguments = (
            name, bytes.fromhex(pod.uuid.replace("-", "")), SERVICE, pod.kind, leader, pod.root,
            list(_interfaces(pod.directory)),
        )  # fmt: skip
        for _ in range(2):
            try:
                connection.call(MACHINED, "RegisterMachineWithNetwork", "sayssusai", arguments)
                return name
            except SystemdError as error:
                if error.name != _MACHINE_EXISTS:
                    raise
                if not _forget_dead(connection, name):
                    break
    raise SystemdError(f"there is a machine {names[-1]} already")


def _forget_dead(connection: Bus, name: str) -> bool:
    """Unregister a machine whose leader is gone: one in a service stays when its pod was killed."""
    try:
        path = connection.call(MACHINED, "GetMachine", "s", (name,))[0]
        leader = connection.get(MACHINED[0], path, _MACHINE, "Leader")
        if os.path.exists(f"/proc/{leader}"):
            return False
        connection.call(MACHINED, "UnregisterMachine", "s", (name,))
    except SystemdError:
        pass  # It has just gone.
    return True


def _interfaces(directory: str) -> Iterator[int]:
    """The host's ends of the pod's networks."""
    from stage1.network import record

    done = record.read(directory)
    for attachment in done.attachments if done is not None else ():
        result: dict[str, Any] = json.loads(attachment.result or "{}")
        for interface in result.get("interfaces", ()):
            if not interface.get("sandbox"):
                yield from _index(interface["name"])


def _index(name: str) -> Iterator[int]:
    try:
        with open(f"/sys/class/net/{name}/ifindex", encoding="ascii") as file:
            yield int(file.read())
    except OSError:
        pass
