"""Mounts whose attributes the pod cannot take away again, be its root as mighty as it may in its own user namespace.

The kernel locks read-only, nodev and nosuid, and the mounts below another, where a mount namespace is copied into a
user namespace with less rights (mount_namespaces(7), "Restrictions on mount namespaces"). A mount that is only handed
over is not locked: an app with CAP_SYS_ADMIN could make a read-only volume writable, and a device in its image work.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from stage1 import channel
from stage1.rootfs import let_go, switch_root


def lock(fds: list[int], users: int, place: str) -> list[int]:
    """Copies of the detached mounts `fds`, locked for the user namespace `users`. `place` is a directory that is good
    for being mounted on, in a mount namespace of ours alone. The originals stay open. Raises LaunchError."""
    try:
        with ExitStack() as undo:
            syscalls.mount("tmpfs", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=700")
            undo.callback(let_go, place)
            for number, fd in enumerate(fds):
                _attach(fd, f"{place}/{number}")
            return _copied(len(fds), users, place)
    except OSError as error:
        raise LaunchError(f"cannot lock the app's mounts: {error.strerror or reason(error)}") from error


def _attach(fd: int, path: str) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.mkdir(path, 0o700)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    target = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        syscalls.move_mount(fd, target, path)
    finally:
        os.close(target)


def _copied(count: int, users: int, place: str) -> list[int]:
    """The copies, made by a child that is in `users`, where this process could not come back from."""
    ours, theirs = channel.pair()
    child = os.fork()
    if child == 0:
        _copy(count, users, place, theirs)
    theirs.close()
    found: list[int] = []
    try:
        while len(found) < count:
            said, fds = ours.receive()
            found += fds
            if not fds:
                code = int(said or "0")
                raise OSError(code, os.strerror(code) if code else "the process that does it died")
    except BaseException:
        for fd in found:
            os.close(fd)
        raise
    finally:
        ours.close()
        os.waitpid(child, 0)
    return found


def _copy(count: int, users: int, place: str, answer: channel.Channel) -> NoReturn:
    try:
        # The copies are in a mount namespace that belongs to the pod's user namespace, for a moment: an app that may
        # administer that one can find and enter it (`nspawn._dangers`). It is to see nothing there of the host's.
        syscalls.unshare(syscalls.CLONE_NEWNS)
        switch_root(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        syscalls.setns(users, syscalls.CLONE_NEWUSER)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
        trees = [syscalls.open_tree(syscalls.AT_FDCWD, f"/{number}", flags) for number in range(count)]
        for start in range(0, count, channel.MAX_FDS):
            answer.send("0", trees[start : start + channel.MAX_FDS])
    except OSError as error:
        answer.send(f"{error.errno or 0}")
    finally:
        os._exit(0)
