"""Whose IDs this process knows: all of the host's, or those that a user namespace was given (user_namespaces(7)).

It is asked of the kernel, and so is true for every process of rkpy, however it got there: by `stage0.rootless`, or with
a container that rkpy runs in.
"""

from __future__ import annotations

from functools import cache

from common.records import NamedTuple


class Range(NamedTuple):
    """IDs that follow each other, in the namespace and outside (proc_pid_uid_map(5))."""

    inside: int
    outside: int
    size: int


EVERYTHING = Range(0, 0, 2**32 - 1)
"""What is mapped where there is no user namespace."""


def ranges(kind: str) -> tuple[Range, ...]:
    """The IDs this process knows; `kind` is "uid" or "gid". `outside` is as the namespace has it that we came from."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        return tuple(Range(*map(int, line.split())) for line in file)


@cache
def confined() -> bool:
    """Whether we are in a user namespace: root is then somebody else's name, and a few things are not ours to do. A
    process that changes its namespace must say so (`confined.cache_clear`)."""
    return ranges("uid") != (EVERYTHING,)


def knows(kind: str, number: int) -> bool:
    """Whether the user or group `number` is one that we could become, or give a file to; `kind` as in `ranges`."""
    return any(0 <= number - one.inside < one.size for one in ranges(kind))


def can_drop_groups() -> bool:
    """Whether setgroups(2) is allowed (proc_pid_setgroups(5)). Where it is not, everything we start is in the groups
    that we were started in."""
    with open("/proc/self/setgroups", encoding="ascii") as file:
        return file.read().strip() != "deny"
