"""Processes born in a cgroup, as the monitor and the supervisor make them."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CLONE3 = 435
CLONE_INTO_CGROUP = 0x200000000
DEADLINE = 300.0
"""Seconds until a test gives up waiting; far above what anything takes."""

_syscall = ctypes.PyDLL(None, use_errno=True).syscall


def born_in(cgroup: int, action: Callable[[], object]) -> int:
    """The PID of a child that begins its life in `cgroup` (a descriptor), does `action` and ends with status 0, or 1
    when it raised. OSError when clone3(2) refuses."""
    arguments = struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    pid: int = _syscall(ctypes.c_long(CLONE3), arguments, ctypes.c_long(len(arguments)))
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def sleep() -> None:
    while True:
        signal.pause()


def born_asleep(cgroup: int) -> int:
    return born_in(cgroup, sleep)


def end(pid: int) -> int:
    """The wait status of a child, as os.waitstatus_to_exitcode has it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def of(pid: int) -> str:
    """The cgroup v2 path of a process."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        return next(line[3:].rstrip("\n") for line in file if line.startswith("0::"))


@contextmanager
def opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
