"""Open-file-description locks on regular files (fcntl_locking(2), F_OFD_SETLK).

They belong to the open file, not to the process: a child that inherits the descriptor holds the lock too, the lock ends
with the last copy of the descriptor, and closing another descriptor of the same file does not drop it (as it does with
traditional POSIX locks). Unlike flock(2) they can be *asked about* without being taken (F_OFD_GETLK), so a reader never
stands in the way of somebody who wants the lock.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Self

# l_type, l_whence, l_start, l_len, l_pid; the trailing "0q" pads to the alignment of the C structure. A length of 0
# means to the end of the file however far it grows, and l_pid must be 0 for the OFD commands.
_FLOCK = struct.Struct("hhqqi0q")
waiting = 0
"""How many locks this process is waiting for just now, for those who have to tell why it does not get on."""


def _flock(kind: int, first: int = 0, length: int = 0) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, first, length, 0)


class Lock:
    """A lock held through `fd`. A context manager; leaving it closes the descriptor.

    Closing gives the lock up only when no other process inherited the descriptor. An exclusive lock needs a descriptor
    open for writing, a shared one a descriptor open for reading (the kernel says EBADF otherwise)."""

    __slots__ = ("_first", "fd", "path")

    def __init__(self, fd: int, path: str, first: int = 0) -> None:
        self.fd = fd
        self.path = path
        self._first = first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def convert(self, *, exclusive: bool, blocking: bool = True) -> None:
        """Upgrade or downgrade. The kernel replaces the lock in one step, so a downgrade has no unlocked moment; when
        an upgrade fails the shared lock is still held.

        Raises BlockingIOError if not `blocking` and somebody else is in the way."""
        global waiting
        command = fcntl.F_OFD_SETLKW if blocking else fcntl.F_OFD_SETLK
        waiting += blocking
        try:
            fcntl.fcntl(self.fd, command, _flock(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, self._first))
        except OSError as error:
            error.filename = self.path
            raise
        finally:
            waiting -= blocking

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """The descriptor, which from now on is the caller's to close."""
        fd, self.fd = self.fd, -1
        return fd


def acquire(
    path: str, *, exclusive: bool, blocking: bool = True, create: int | None = None, quietly: bool = False
) -> Lock:
    """Lock the file `path`, through a descriptor that is close-on-exec; symlinks are not followed.

    A shared lock opens the file read-only, so those who may only read it can take it, and whoever inherits the
    descriptor can do nothing else with it. `create`: the mode to create the file with if it is missing. `quietly`: keep
    others away, but do not show in `held`; such a lock leaves out the first byte, which is the one that is asked about.

    Raises BlockingIOError if not `blocking` and somebody is in the way, or any OSError of open(2)."""
    flags = (os.O_RDWR if exclusive else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags) if create is None else os.open(path, flags | os.O_CREAT, create)
    lock = Lock(fd, path, first=1 if quietly else 0)
    try:
        lock.convert(exclusive=exclusive, blocking=blocking)
    except BaseException:
        lock.close()
        raise
    return lock


SHARED, EXCLUSIVE, FREE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def is_locked(path: str) -> bool:
    """Whether anybody holds a lock on `path`, shared or exclusive; see `held`."""
    return held(path) != FREE


def held(path: str) -> int:
    """Which kind of lock somebody holds on `path`: SHARED, EXCLUSIVE or FREE. Takes nothing and disturbs nobody.

    Raises OSError (FileNotFoundError, PermissionError) when the file cannot be opened for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # "Could I have an exclusive lock?" conflicts with every lock there is; asking does not need a writable file.
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, length=1))
    finally:
        os.close(fd)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind
