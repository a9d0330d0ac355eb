"""Sockets that are listened on for the app already: where it finds them and how it is told (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence

from common.errors import LaunchError, reason

FIRST = 3
"""SD_LISTEN_FDS_START."""

Sockets = Sequence[tuple[str, int]]
"""The name and the present descriptor of each."""


def raised(sockets: Sockets) -> list[int]:
    """Copies of the sockets above where the app is to have them, whatever is there now. Raises LaunchError."""
    above = FIRST + len(sockets)
    try:
        return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for _, fd in sockets]
    except OSError as error:
        raise LaunchError(f"cannot take the sockets that were handed over: {reason(error)}") from error


def place(copies: Iterable[int]) -> None:
    """Move what `raised` gave to descriptors 3, 4, … of the app."""
    for number, fd in enumerate(copies, FIRST):
        os.dup2(fd, number)
        os.close(fd)


def variables(sockets: Sockets) -> dict[str, str]:
    """What tells the process, which must be the one that will be the app; nothing without sockets."""
    if not sockets:
        return {}
    names = ":".join(name for name, _ in sockets)
    return {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names, "LISTEN_PID": str(os.getpid())}
