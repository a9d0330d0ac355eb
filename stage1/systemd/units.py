"""Units of systemd as far as pods are concerned: which one we are in, and what a pod's own is made with
(systemd.scope(5), systemd.resource-control(5), org.freedesktop.systemd1(5))."""

from __future__ import annotations

from collections.abc import Iterator

from stage1 import cgroup
from stage1.limits import Limits

SLICE = "machine.slice"
"""Where systemd has virtual machines and containers (systemd.special(7))."""
DEFAULT_TASKS = 16384
"""What systemd lets a machine have; without a word a scope has what is meant for a program."""
MARGIN = 15
"""Seconds beyond what the pod allows its apps and their handlers until systemd kills what is left."""

Property = tuple[str, str, object]
"""A name, a D-Bus signature, and a value."""


def innermost(text: str) -> str:
    """The unit that a process is in, by its /proc/PID/cgroup; empty when it is in none. systemd goes by the cgroup2
    hierarchy where there is one, and else by its own."""
    lines = dict(line.partition(":")[2].partition(":")[::2] for line in text.splitlines())
    path = lines.get("") if lines.get("", "/") != "/" else lines.get("name=systemd", "")
    parts = [part for part in (path or "").split("/") if part.endswith((".service", ".scope"))]
    return parts[-1] if parts else ""


def own() -> str:
    """The unit we are in ourselves."""
    return of("self")


def of(pid: int | str) -> str:
    """The unit a process is in. Raises OSError."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return innermost(file.read())


def stays(keep_unit: bool) -> bool:
    """Whether a pod started here is to stay in our unit: a service is what an administrator wants it to be in, and what
    was delegated to us was so on purpose. A shell's scope is neither."""
    return keep_unit or own().endswith(".service") or cgroup.find().delegated


def warnings(keep_unit: bool) -> list[str]:
    """What is not as one would expect of a unit a pod stays in."""
    if not stays(keep_unit) or cgroup.find().delegated:
        return []
    unit = own() or "this unit"
    return [f"{unit} does not bound the pod, which machined will not know either; Delegate=yes changes both"]


def names(uuid: str, name: str, kind: str) -> list[str]:
    """What a pod's unit ("scope" or "service") may be called, the best first. Names of pods have nothing that would
    have to be escaped."""
    return [*([f"rkpy-{name}.{kind}"] if name else []), f"rkpy-{uuid}.{kind}"]


def about(uuid: str, name: str, directory: str) -> Iterator[Property]:
    """What tells people which pod a unit is."""
    yield "Description", "s", f"Pod {name} ({uuid})" if name else f"Pod {uuid}"
    # systemd wants URLs in ASCII, and D-Bus has no words for what is not UTF-8.
    yield "Documentation", "as", ["man:rkpy(1)", *([f"file:{directory}/pod"] if directory.isascii() else [])]
    # At the machine's end it is stopped before what it takes to be stopped, and to end well.
    yield "After", "as", ["dbus.service", "dbus.socket", "network.target"]
    if can_be_said(directory):
        yield "RequiresMountsFor", "as", [directory]


def can_be_said(path: str) -> bool:
    """Whether D-Bus can carry it: what is not UTF-8 in names of files are lone surrogates here (PEP 383)."""
    return not any("\udc80" <= char <= "\udcff" for char in path)


def of_scope(pids: list[int], controller: str, stop_timeout: int) -> Iterator[Property]:
    """What every pod's scope has. `controller`: the bus name of who is asked to stop it; `stop_timeout`: of the pod."""
    yield "PIDs", "au", pids
    if controller:
        yield "Controller", "s", controller
    yield from _of_any(stop_timeout)


def of_service(
    command: list[str], stop_post: list[str], stop_timeout: int, reload: list[str] | None = None
) -> Iterator[Property]:
    """What a service has that runs one pod once (systemd.service(5)). Commands begin with an absolute path; `reload` is
    of a pod that can."""
    yield "Type", "s", "notify"
    yield "ExecStart", "a(sasb)", [[command[0], command, False]]
    if reload:
        yield "ExecReload", "a(sasb)", [[reload[0], reload, False]]
    yield "ExecStopPost", "a(sasb)", [[stop_post[0], stop_post, True]]
    yield "KillMode", "s", "mixed"
    # As `stage0.podservice` has it.
    yield "SuccessExitStatus", "(aiai)", [[143], []]
    yield from _of_any(stop_timeout)


def _of_any(stop_timeout: int) -> Iterator[Property]:
    yield "Slice", "s", SLICE
    yield "Delegate", "b", True
    # Where a pod failed is in its directory; a unit of that name must not be in the way of the next.
    yield "CollectMode", "s", "inactive-or-failed"
    yield "TimeoutStopUSec", "t", (2 * stop_timeout + MARGIN) * 1_000_000
    for kind in ("CPU", "Memory", "Tasks", "IO"):
        yield f"{kind}Accounting", "b", True


def resources(limits: Limits, disk: str) -> Iterator[Property]:
    """The limits of a pod. `disk`: the device of its files, a path; without it there are no limits of I/O."""
    if limits.memory:
        yield "MemoryMax", "t", limits.memory
        yield "MemorySwapMax", "t", limits.memory
    if limits.cpu:
        # As stage1.cgroup has it: a share too small for the kernel gets a longer period.
        yield "CPUQuotaPerSecUSec", "t", limits.cpu * 1000
        if limits.cpu < 10:
            yield "CPUQuotaPeriodUSec", "t", 1_000_000
    if limits.cpu_weight:
        yield "CPUWeight", "t", limits.cpu_weight
    yield "TasksMax", "t", limits.pids or DEFAULT_TASKS
    for value, kind in ((limits.io_bandwidth, "Bandwidth"), (limits.io_operations, "IOPS")):
        if value and disk:
            yield f"IORead{kind}Max", "a(st)", [[disk, value]]
            yield f"IOWrite{kind}Max", "a(st)", [[disk, value]]
