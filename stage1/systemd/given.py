"""What a service manager hands to the process it starts, taken out of the environment: it is meant for rkpy, and what
of it the apps are to have they are given in their own terms (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3),
"Credentials" in systemd.exec(5))."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from common.records import NamedTuple

FIRST_SOCKET = 3
"""SD_LISTEN_FDS_START."""
_VARIABLES = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
    "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "INVOCATION_ID", "MAINPID", "MANAGERPID",
)  # fmt: skip
_MOST = 1024
"""Sockets that are believed in; systemd passes no more than a unit's file limit."""


class Given(NamedTuple):
    """Empty where nothing was handed over."""

    notify: str = ""
    """Address of the socket that states are sent to: a path, or `@` and an abstract name."""
    watchdog: int = 0
    """Microseconds within which a sign of life is expected."""
    sockets: tuple[str, ...] = ()
    """The names of descriptors 3, 4, …; "unknown" for one without a name."""
    credentials: str = ""
    """The directory of the service's credentials."""
    journal: tuple[int, ...] = ()
    """Which of descriptors 1 and 2 lead to the journal already."""


def booted() -> bool:
    """Whether systemd is PID 1 here (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def take(environment: MutableMapping[str, str]) -> Given:
    """What this process was given; the variables are removed, so that no app inherits them by chance. Call it in the
    process that was started: for its children these variables do not count."""
    found = {name: environment.pop(name, "") for name in _VARIABLES}
    return Given(
        notify=found["NOTIFY_SOCKET"] if found["NOTIFY_SOCKET"][:1] in ("/", "@") else "",
        watchdog=_number(found["WATCHDOG_USEC"]) if _is_ours(found["WATCHDOG_PID"], absent=True) else 0,
        sockets=_sockets(found),
        credentials=found["CREDENTIALS_DIRECTORY"] if found["CREDENTIALS_DIRECTORY"].startswith("/") else "",
        journal=tuple(fd for fd in (1, 2) if _leads_to(fd, found["JOURNAL_STREAM"])),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _is_ours(pid: str, *, absent: bool) -> bool:
    return pid == str(os.getpid()) if pid else absent


def _sockets(found: dict[str, str]) -> tuple[str, ...]:
    count = _number(found["LISTEN_FDS"])
    if not _is_ours(found["LISTEN_PID"], absent=False) or not 0 < count <= _MOST:
        return ()
    for fd in range(FIRST_SOCKET, FIRST_SOCKET + count):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            return ()  # Whoever started us closed them.
    names = found["LISTEN_FDNAMES"].split(":") if found["LISTEN_FDNAMES"] else []
    return tuple((names + ["unknown"] * count)[:count])


def _leads_to(fd: int, stream: str) -> bool:
    """Whether the descriptor is the one that JOURNAL_STREAM names, by device and inode."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
