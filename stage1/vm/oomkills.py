"""Whether the host has killed a machine for want of memory, by the counters of the cgroup that its programs are in.

The kernel counts there what its OOM killer has killed: `oom_kill` in memory.events (Documentation/admin-guide/
cgroup-v2.rst), or on a hierarchy of version 1 in memory.oom_control (Documentation/admin-guide/cgroup-v1/memory.rst).
Whose limit it was for is counted in the memory.events.local of that one (`oom`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from stage1 import cgroup
from stage1.cgroupfiles import counter, read

_KILLS = (("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill"))
_EXHAUSTED = ("memory.events.local", "oom")


class OomKills:
    """What is counted from when it is made: there may be other processes in such a cgroup, and have been."""

    def __init__(self, own: Iterable[str], above: Iterable[str] = ()) -> None:
        """`own`: directories of the machine's cgroup, one in each hierarchy; `above`: of version 2 it and those it is
        in, the innermost first."""
        self._kills = dict(_counters(own, _KILLS))
        self._exhausted = dict(_counters(above, (_EXHAUSTED,)))

    def why(self) -> str:
        """Why a process of the machine was killed; empty when none was for want of memory."""
        if not any(_have_grown(self._kills)):
            return ""
        place = next(_have_grown(self._exhausted), "")
        return f"for want of memory: memory.max of {place} was reached" if place else "for want of memory"


def of(pid: int) -> OomKills:
    """For the machine that the process `pid` is, from now on."""
    own = cgroup.of_process(pid)
    return OomKills(filter(None, (own, _of_version_1(pid))), _and_above(own))


def _counters(places: Iterable[str], kinds: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str, str], int]]:
    kinds = tuple(kinds)
    for place in places:
        for file, key in kinds:
            yield (place, file, key), counter(f"{place}/{file}", key)


def _have_grown(before: dict[tuple[str, str, str], int]) -> Iterator[str]:
    """The directories of the counters that have."""
    return (place for (place, file, key), count in before.items() if counter(f"{place}/{file}", key) > count)


def _and_above(place: str) -> Iterator[str]:
    """The cgroup and those it is in, but for the root, which has no limit."""
    while place and os.path.exists(f"{place}/cgroup.type"):
        yield place
        place = os.path.dirname(place)


def _of_version_1(pid: int) -> str:
    """The process's cgroup for memory on a hierarchy of version 1, as a path; empty when there is none, or it is the
    root of what can be seen, in which anybody may be."""
    fields = (line.split(":", 2) for line in read(f"/proc/{pid}/cgroup").splitlines())
    own = next((path for _, names, path in fields if "memory" in names.split(",")), "/")
    for line in read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, place = before.split(" ")[3:5]
        above = f"{root.rstrip('/')}/"
        if kind == "cgroup" and "memory" in options.split(",") and own.startswith(above) and own != above:
            return f"{place}/{own.removeprefix(above)}"
    return ""
