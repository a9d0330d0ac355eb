"""Processes held by pidfd and known by their start time, so that a reused PID is never taken for one of them."""

from __future__ import annotations

import errno
import os
import select
import signal

from stage1 import poddir


class Process:
    """One living process; a context manager. ProcessLookupError when it is gone."""

    def __init__(self, pid: int, start_time: int) -> None:
        self.fd = os.pidfd_open(pid)
        if poddir.start_time(pid) != start_time:
            os.close(self.fd)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def require_alive(self) -> None:
        """A pidfd becomes readable when its process ends (pidfd_open(2))."""
        if select.select([self.fd], [], [], 0)[0]:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def send(pid: int, started: int, number: int) -> bool:
    """Whether the process was there to be signalled."""
    try:
        with Process(pid, started) as process:
            signal.pidfd_send_signal(process.fd, number)
    except ProcessLookupError:
        return False
    return True
