"""Capabilities by name, and the set an app is bounded by (capabilities(7); spec 0.8.11, "Linux Isolators")."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from common import syscalls
from common.errors import LaunchError, UsageError
from common.records import NamedTuple

NAMES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Each at the place that is its number (linux/capability.h), without `CAP_`."""


def number(name: str) -> int:
    """The number of the capability `name`, written as in a manifest: `CAP_KILL`. UsageError when there is none."""
    if name.startswith("CAP_") and name[4:] in NAMES:
        return NAMES.index(name[4:])
    raise UsageError(f'there is no capability "{name}"', hint="one looks like CAP_NET_RAW; see capabilities(7)")


def name(number: int) -> str:
    return f"CAP_{NAMES[number]}" if number < len(NAMES) else f"CAP_{number}"


def _numbers(*words: str) -> frozenset[int]:
    return frozenset(NAMES.index(word) for word in words)


DEFAULT: Final = _numbers(
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "KILL", "MKNOD", "NET_RAW", "NET_BIND_SERVICE",
    "SETUID", "SETGID", "SETPCAP", "SETFCAP", "SYS_CHROOT",
)  # fmt: skip
"""What an app has that says nothing about capabilities, as in rkt."""
SYS_ADMIN: Final = NAMES.index("SYS_ADMIN")


class Choice(NamedTuple):
    """The capabilities of an app."""

    bounding: tuple[int, ...]
    missing: tuple[int, ...]
    """Of the default set, those this process has not and cannot give."""


def available() -> frozenset[int]:
    """What this process can give: its bounding set, read up to the last capability the kernel knows."""
    found = set()
    for candidate in range(64):
        try:
            if syscalls.prctl(syscalls.PR_CAPBSET_READ, candidate):
                found.add(candidate)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break
    return frozenset(found)


def choose(retain: Iterable[str] | None, remove: Iterable[str], have: frozenset[int]) -> Choice:
    """The set of an app that retains exactly `retain`, or without that the default less `remove`; all are names, `have`
    is what there is to give. UsageError for a name that means nothing, LaunchError for one in `retain` that cannot be
    given."""
    if retain is None:
        wanted = DEFAULT - {number(text) for text in remove}
        return Choice(tuple(sorted(wanted & have)), tuple(sorted(wanted - have)))
    return Choice(_all_of(retain, have), ())


def choose_ambient(names: Iterable[str], bounding: tuple[int, ...]) -> tuple[int, ...]:
    """The ambient set `names`. LaunchError for what the app is not allowed to have at all."""
    wanted = tuple(sorted({number(text) for text in names}))
    for found in wanted:
        if found not in bounding:
            raise LaunchError(f"{name(found)} cannot be ambient: the app is not allowed it", hint="retain it as well")
    return wanted


def _all_of(names: Iterable[str], have: frozenset[int]) -> tuple[int, ...]:
    wanted = {number(text) for text in names}
    if lacking := sorted(wanted - have):
        raise LaunchError(f"cannot give {', '.join(map(name, lacking))} to the app: rkpy itself has not got it")
    return tuple(sorted(wanted))


def mask(numbers: Iterable[int]) -> int:
    """A set as the bits capset(2) takes."""
    return sum(1 << found for found in set(numbers))
