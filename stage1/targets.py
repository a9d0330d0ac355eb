"""Where a mount goes: a place inside an app's root, found and if need be made without ever leaving that root.

The root's content is hostile: any component may be a symlink to anywhere, whole or dangling. Every lookup therefore
goes through openat2(2) with RESOLVE_IN_ROOT, and nothing is created except in mounts that belong to the pod, so that a
target can never make files appear in a directory of the host (rkt/rkt#3228).
"""

from __future__ import annotations

import errno
import os

from common import syscalls
from common.records import NamedTuple

MAX_LINKS = 40
"""As many symlinks as the kernel itself follows in one path (path_resolution(7))."""


class AppRoot(NamedTuple):
    """The attached root of an app while it is being furnished."""

    fd: int
    """O_PATH descriptor of the root directory."""
    own_mounts: set[int]
    """IDs of the mounts that are the pod's own: missing targets may be created there, and nowhere else."""
    kernel_mounts: set[int]
    """IDs of the mounts that show the kernel, which no volume may cover."""


def mount_id(fd: int) -> int:
    """The ID of the mount `fd` was opened through (proc(5), fdinfo)."""
    # As bytes: where the root is empty already, Python cannot load the codec any more.
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line[7:]) for line in file if line.startswith(b"mnt_id:"))


def open_target(root: AppRoot, path: str, *, directory: bool) -> int:
    """An O_PATH descriptor of `path` in the root, created as an empty directory (0755) or file (0644) when missing.

    Raises OSError: EXDEV when creating it would write to the host, EBUSY when it is the root itself, else the kernel's.
    """
    try:
        fd = syscalls.openat2(root.fd, path, os.O_PATH)
    except FileNotFoundError:
        fd = _create(root, path, directory=directory)
    if os.path.samestat(os.fstat(fd), os.fstat(root.fd)):
        os.close(fd)
        raise OSError(errno.EBUSY, "this is the root itself", path)
    return fd


def open_plain(root: AppRoot, path: str) -> int:
    """An O_PATH descriptor of the directory `path` ("/NAME") in the root itself. An image has no say in where it is: a
    symlink or a file in its place is removed first, and a missing one made."""
    name = path.strip("/")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=root.fd)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        os.unlink(name, dir_fd=root.fd)
    _make(root.fd, name, directory=True)
    return os.open(name, flags, dir_fd=root.fd)


def _create(root: AppRoot, path: str, *, directory: bool) -> int:
    """Walk `path` one component at a time and make what is missing. A dangling symlink is replaced in the walk by what
    it says, because mkdir(2) does not create through links."""
    done = "/"
    links = 0
    pending = path.split("/")[::-1]
    while pending:
        name = pending.pop()
        if not name:
            continue
        step = f"{done}/{name}"
        if not _exists(root, step):
            link = _create_one(root, done, name, directory=directory or any(pending))
            if link is not None:
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                pending.extend(link.split("/")[::-1])
                done = "/" if link.startswith("/") else done
                continue
        done = step
    return syscalls.openat2(root.fd, done, os.O_PATH)


def _exists(root: AppRoot, path: str) -> bool:
    try:
        os.close(syscalls.openat2(root.fd, path, os.O_PATH))
    except FileNotFoundError:
        return False
    return True


def _create_one(root: AppRoot, parent: str, name: str, *, directory: bool) -> str | None:
    """Make `name` in the existing directory `parent`; the text of the symlink when a dangling one is in the way."""
    parent_fd = syscalls.openat2(root.fd, parent, os.O_PATH | os.O_DIRECTORY)
    try:
        if mount_id(parent_fd) not in root.own_mounts:
            raise OSError(errno.EXDEV, "it is missing, and creating it would write to the host", name)
        _make(parent_fd, name, directory=directory)
    except FileExistsError:
        return os.readlink(name, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
    return None


def _make(parent_fd: int, name: str, *, directory: bool) -> None:
    """An empty directory or file whose mode does not depend on the caller's umask. The mode is given with the making:
    by the time it could be changed, an app that shares the volume may have put something else in this place."""
    umask = os.umask(0)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent_fd)
        else:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=parent_fd))
    finally:
        os.umask(umask)
