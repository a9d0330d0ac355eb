"""Small habits with files: replace atomically, create with a mode that holds, remove a hostile tree safely."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from common.records import NamedTuple
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2, syncfs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# linux/fs.h, in the encoding of ioctl numbers that x86-64, arm64, riscv64 and s390x share. Elsewhere the kernel answers
# ENOTTY, and a tree with such attributes is reported instead of removed.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IMMUTABLE_FL = 0x10
_FS_APPEND_FL = 0x20


def replace(path: str, data: bytes, *, mode: int = 0o644, exact: bool = False, durable: bool = False) -> None:
    """Write `path` whole or not at all: a temporary name beside it, then rename(2). `exact`: with `mode` whatever the
    umask.

    `durable` flushes the file before and the directory after the rename; without it a power cut may leave the old
    file, the new one, or (on file systems that reorder) an empty one. Raises OSError; leaves nothing behind."""
    partial = f"{path}.{os.urandom(6).hex()}"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if exact:
                os.fchmod(fd, mode)
            if durable:
                file.flush()
                os.fsync(fd)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    if durable:
        flush_directory(os.path.dirname(path) or ".")


@contextmanager
def replacing(path: str, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file to write, which becomes `path` when the block ends well and is removed when it does not."""
    partial = f"{path}.{os.urandom(6).hex()}"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            yield file
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def flush_directory(path: str) -> None:
    """fsync(2) the directory, so that names created or renamed in it survive a power cut."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_filesystem(path: str) -> None:
    """syncfs(2) for what the directory `path` is on: all that lies in it survives a power cut."""
    fd = os.open(path, _DIRECTORY)
    try:
        syncfs(fd, path)
    finally:
        os.close(fd)


def make_directory(path: str, mode: int) -> bool:
    """mkdir(2) with exactly `mode` whatever the umask; False if it was there already. A set-group-ID bit that the
    kernel hands down from the parent stays."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    found = os.stat(path).st_mode
    if found & 0o777 != mode:
        os.chmod(path, mode | (found & stat.S_ISGID))
    return True


def make_directories(path: str, mode: int) -> None:
    """Those of `path` that are missing, each with `mode` but for what the umask takes away: by os.makedirs(3) all but
    the last would be for everybody to write to where there is no umask."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(each, mode)


class _Level(NamedTuple):
    """A directory being emptied: its name in its parent, who it was when we entered, and what is still to enter."""

    name: str
    identity: tuple[int, int]
    subdirectories: list[str]


def remove_tree(name: str, *, dir_fd: int) -> None:
    """Remove whatever `name` in the directory `dir_fd` is, with everything below it. Missing is fine.

    The tree may belong to an enemy. No symlink is followed and no mount point entered (bind mounts of the same file
    system included): openat2(2) refuses both, and the removal stops with OSError there. At most two descriptors are
    open and no path is ever built, so depth is limited by neither; attributes that forbid removal (chattr +i, +a) are
    taken off. What could be removed before an error is gone."""
    if _remove_leaf(name, dir_fd):
        return
    current = _enter(dir_fd, name)
    try:
        levels = [_Level(name, _identity(current), _empty(current))]
        while True:
            if levels[-1].subdirectories:
                child = levels[-1].subdirectories.pop()
                current = _exchange(current, _enter(current, child))
                levels.append(_Level(child, _identity(current), _empty(current)))
                continue
            done = levels.pop()
            if not levels:
                break
            current = _exchange(current, os.open("..", _DIRECTORY, dir_fd=current))
            if _identity(current) != levels[-1].identity:
                raise OSError(errno.EXDEV, "moved while it was being removed", done.name)
            _unlink(done.name, current, directory=True)
    finally:
        os.close(current)
    _unlink(name, dir_fd, directory=True)


def _exchange(old: int, new: int) -> int:
    os.close(old)
    return new


def _enter(dir_fd: int, name: str) -> int:
    return openat2(dir_fd, name, _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _empty(fd: int) -> list[str]:
    """Remove everything in the directory that is not a directory; the names of those that are."""
    # A list, because a directory that changes while it is read may show an entry twice or not at all.
    with os.scandir(fd) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, is_directory in names if is_directory or not _remove_leaf(name, fd)]


def _remove_leaf(name: str, dir_fd: int) -> bool:
    """Unlink `name`; False when it is a directory."""
    try:
        _unlink(name, dir_fd, directory=False)
    except IsADirectoryError:
        return False
    return True


def _unlink(name: str, dir_fd: int, *, directory: bool) -> None:
    remove = os.rmdir if directory else os.unlink
    try:
        remove(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except PermissionError:
        _allow_removal(name, dir_fd)
        remove(name, dir_fd=dir_fd)


def _allow_removal(name: str, dir_fd: int) -> None:
    """Take off the immutable and append-only attributes (ioctl_iflags(2)) of the directory and of `name` in it."""
    _clear_attributes(dir_fd)
    kind = stat.S_IFMT(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        return  # Opening a device or a pipe can do anything, and these cannot carry the attributes.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    fd = openat2(dir_fd, name, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)
    try:
        _clear_attributes(fd)
    finally:
        os.close(fd)


def _clear_attributes(fd: int) -> None:
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)))[0]
        if flags & (_FS_IMMUTABLE_FL | _FS_APPEND_FL):
            wanted = flags & ~(_FS_IMMUTABLE_FL | _FS_APPEND_FL)
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", wanted))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM):
            raise
