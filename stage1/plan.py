"""What a flavour that supervises its pod is told: the pod with every decision taken, ready to be carried out.

It is made by the engine (`stage1.compiling`), which knows images and manifests, and carried out by the monitor and the
supervisor, which know neither. Between those processes it travels as JSON (`dumps`, `loads`).
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any

from common.records import NamedTuple
from stage1 import kernelfs, mounts, rootfs
from stage1.credentials import Credentials
from stage1.limits import Limits
from stage1.streams import Streams
from stage1.systemd.given import Given
from stage2.launch import LaunchSpec

if TYPE_CHECKING:
    from stage1.vm.machine import Machine

ON_ANY_FAILURE, ON_ANY, UNTIL_ALL = EXIT_POLICIES = ("on-any-failure", "on-any", "until-all")
"""What ends a pod before all its apps have ended: an app that fails (as rkt has it), any app that ends, or nothing."""
READY_STARTED, READY_NOTIFY, HEALTHY = READINESS = ("started", "notify", "healthy")
"""When a pod is ready: its apps have been executed, have said so themselves, or pass their health checks."""


LOG_DRIVERS = AUTO, JOURNALD, FILE = ("auto", "journald", "file")
"""Where the apps' output is kept: in the journal, in files of the pod directory, or in these if there is no journal."""


class Restart(NamedTuple):
    """When the supervisor starts an app again after it has ended."""

    policy: str = "no"
    """"no", "on-failure" or "always"."""
    limit: int = 0
    """How many times at most; 0 for no limit."""


class Health(NamedTuple):
    """How to tell whether an app is well. Times are seconds."""

    argv: tuple[str, ...]
    """A command beside the app that ends with 0 when it is."""
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    """Failures in a row that make it unhealthy."""
    start_period: float = 0.0
    """From the start of the app, in which failures do not count."""
    on_failure: str = "none"
    """What follows when it becomes unhealthy: "none", "kill", "restart" or "stop"."""


class HandedSocket(NamedTuple):
    """A descriptor of the service manager's that an app gets (sd_listen_fds(3))."""

    number: int
    """Which one, in `Given.sockets`."""
    name: str
    once: bool = False
    """For the app's first start only: a connection, which must end when the app closes it."""


class AppPlan(NamedTuple):
    """One app."""

    name: str
    root: rootfs.OverlayRoot | rootfs.CopiedRoot
    steps: tuple[mounts.Step, ...]
    """Everything mounted into the root, in order."""
    launch: LaunchSpec
    pre_start: tuple[LaunchSpec, ...] = ()
    """Run one after the other before every start; a failure keeps the app from starting."""
    post_stop: tuple[LaunchSpec, ...] = ()
    """Run after the app has ended, however it ended."""
    streams: Streams = Streams()
    restart: Restart = Restart()
    stop_signal: int = 15
    limits: Limits = Limits()
    asked: tuple[str, ...] = ()
    """Command-line options that were typed for this run: limits of theirs are kept, or the app does not start."""
    image_id: str = ""
    image_name: str = ""
    sockets: tuple[str, ...] = ()
    """The sockets of the monitor's that it has, by the names of `stage1.appsockets`."""
    health: Health | None = None
    listening: tuple[HandedSocket, ...] = ()
    """In the order of the app's descriptors 3, 4, …"""
    reload_signal: int = 0
    """What asks it to read its files anew; 0 when nothing does."""


class PodPlan(NamedTuple):
    """One pod."""

    uuid: str
    directory: str
    lock_fd: int
    apps: tuple[AppPlan, ...]
    hostname: str
    host_network: bool = False
    join: str = ""
    """Path of a network namespace the pod is to live in instead of one of its own."""
    worker: int = 0
    """PID of the process that attaches the pod to its networks (`stage1.network.worker`); 0 when there are none."""
    delegated: bool = False
    """Whether the cgroup we are in is known to be ours to divide (`stage1.cgroup.find`, `delegated`)."""
    registrar: int = 0
    """PID of the process that registers the pod with systemd (`stage1.systemd.registrar`); 0 when there is none."""
    private_ipc: bool = True
    private_range: tuple[int, int] = (0, 0)
    """The first host ID of the pod's user namespace and how many there are; (0, 0) for the host's namespace."""
    exit_policy: str = ON_ANY_FAILURE
    stop_timeout: int = 10
    """Seconds between asking the apps to end and killing them."""
    interactive: bool = False
    window: tuple[int, int] = (0, 0)
    """Rows and columns of the caller's terminal, which the app's begins with."""
    mutable: bool = False
    limits: Limits = Limits()
    debug: bool = False
    name: str = ""
    """The one given with --pod-name."""
    given: Given = Given()
    """What the service manager handed over. Its sockets come with the plan, after all other descriptors."""
    log_driver: str = FILE
    journal: bool = False
    """Whether there is a journal, for events if for nothing else."""
    ready: str = READY_STARTED
    """What being ready means, one of READINESS."""
    credentials: bool = False
    """Whether a mount of the pod's credentials comes with the plan, before the sockets."""
    machine: Machine | None = None
    """The virtual machine to put the pod in; None for namespaces."""


class EnterPlan(NamedTuple):
    """A command beside a running app: what to run and whom to follow."""

    directory: str
    app: str
    pid: int
    """The app's main process."""
    start_time: int
    launch: LaunchSpec
    """Its argv is empty for a shell."""


_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        AppPlan, PodPlan, EnterPlan, Restart, Health, HandedSocket, Streams, Limits, Given, LaunchSpec,
        rootfs.OverlayRoot, rootfs.CopiedRoot, *mounts.STEPS, *kernelfs.STEPS, Credentials,
    )
}  # fmt: skip
_ELSEWHERE = {
    "Machine": "stage1.vm.machine",
    **dict.fromkeys(("NetworkPlan", "Network", "Names", "Port"), "stage1.network.plan"),
    "Registration": "stage1.systemd.registrar",
}
"""Types of modules that are not for processes that stay as long as the pod."""


def dumps(value: Any) -> bytes:
    """A plan, or a part of one, as JSON: a named tuple is a list led by its type's name, any other tuple one led by "",
    and bytes are an object."""
    return json.dumps(_encode(value), separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:
    """What `dumps` was given. ValueError when it is not such a thing."""
    return _decode(json.loads(data))


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        name = type(value).__name__ if hasattr(value, "_fields") else ""
        return [name, *map(_encode, value)]
    if isinstance(value, bytes):
        return {"bytes": b2a_base64(value, newline=False).decode("ascii")}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        items = tuple(map(_decode, value[1:]))
        if value[:1] == [""]:
            return items
        try:
            return _type(value[0] if value else None)(*items)
        except TypeError as error:
            raise ValueError(f"not a {value[0]} as this version has it") from error
    if isinstance(value, dict):
        return a2b_base64(value.get("bytes", "-"), strict_mode=True)
    return value


def _type(name: object) -> type[Any]:
    if name in _ELSEWHERE:
        import importlib

        found: type[Any] = getattr(importlib.import_module(_ELSEWHERE[str(name)]), str(name))
        return found
    if not isinstance(name, str) or name not in _TYPES:
        raise ValueError(f"no part of a plan: {name!r}")
    return _TYPES[name]
