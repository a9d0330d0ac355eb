"""Credentials ("Credentials" in systemd.exec(5)) on their way to the apps: in file systems in memory, never on disk,
and out of the memory of the processes that stay.

The engine writes them to one that is mounted nowhere (`pack`) and hands that on. Who carries the plan out mounts it in
the pod directory, in a mount namespace where nobody else sees it (`show`), and makes each app a copy (`Credentials`).
The app's child gives that to the app's user (`stage2.launch`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from common import syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.mounts import NO_NAMESPACES, Namespaces, attach, new_file_system
from stage1.targets import AppRoot, mount_id, open_target

TARGET = "/run/host/credentials"
"""Where an app finds them (systemd.io/CONTAINER_INTERFACE, "Environment Variables")."""
VARIABLE = "CREDENTIALS_DIRECTORY"
_QUIET = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


def pack(values: Mapping[str, bytes]) -> int:
    """A detached mount of a file system that holds `values`, for root only. Raises LaunchError."""

    def fill(name: str, fd: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            file.write(values[name])

    try:
        return _filled({name: len(value) for name, value in values.items()}, fill, 0)
    except OSError as error:
        raise LaunchError(f"cannot keep the credentials in memory: {error.strerror or reason(error)}") from error


def show(mount: int, place: str) -> None:
    """Mount what `pack` gave at the directory `place`, in a mount namespace of the caller's own; closes it."""
    try:
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        syscalls.move_mount(mount, directory, place)
        os.close(directory)
        os.close(mount)
    except OSError as error:
        raise LaunchError(f"cannot mount the credentials: {reason(error)}") from error


class Credentials(NamedTuple):
    """The app's own copy of the pod's credentials. Root's until the app's child gives it to the app's user."""

    source: str
    """Where `show` has mounted them."""
    owner: int = 0
    """The host ID of the pod's root."""
    target: str = TARGET

    def describe(self) -> str:
        return f"credentials on {self.target}"

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        try:
            return _copied(self.source, self.owner)
        except OSError as error:
            raise LaunchError(f"cannot copy the credentials: {error.strerror or reason(error)}") from error

    def apply(self, root: AppRoot, source: int) -> None:
        try:
            place = open_target(root, self.target, directory=True)
        except OSError as error:
            hint = "create it in the volume that covers it" if error.errno == errno.EXDEV else ""
            why = error.strerror or reason(error)
            raise LaunchError(
                f'cannot reach "{self.target}" in the app, for its credentials: {why}', hint=hint
            ) from error
        if mount_id(place) in root.kernel_mounts:
            raise LaunchError(f'"{self.target}" in the app leads into a file system of the kernel')
        attach(source, place, self.target, "credentials")
        os.close(place)
        os.close(source)


def _copied(directory: str, owner: int) -> int:
    """By the kernel, so that the values are never in our memory, which can be swapped out."""
    with ExitStack() as opened:
        files = {name: opened.enter_context(open(f"{directory}/{name}", "rb")) for name in os.listdir(directory)}
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in files.items()}

        def fill(name: str, fd: int) -> None:
            done = 0
            while done < sizes[name]:
                done += os.sendfile(fd, files[name].fileno(), done, sizes[name] - done)

        return _filled(sizes, fill, owner)


def _filled(sizes: Mapping[str, int], fill: Callable[[str, int], None], owner: int) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    mount = _memory(sum(-(-size // page) + 1 for size in sizes.values()) * page, len(sizes) + 1)
    try:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
        try:
            for name in sizes:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400, dir_fd=directory)
                try:
                    fill(name, fd)
                    os.fchown(fd, owner, owner)
                    os.fchmod(fd, 0o400)
                finally:
                    os.close(fd)
            os.fchown(directory, owner, owner)
            os.fchmod(directory, 0o500)
        finally:
            os.close(directory)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _memory(size: int, inodes: int) -> int:
    """A file system that is never swapped out: tmpfs does that from Linux 6.4 on, ramfs always. Neither is possible in
    a user namespace; there it is tmpfs as it was."""
    options: tuple[tuple[str, str | None], ...] = (("mode", "700"), ("size", str(size)), ("nr_inodes", str(inodes)))
    for kind, chosen in (("tmpfs", (*options, ("noswap", None))), ("ramfs", options[:1])):
        try:
            return new_file_system(kind, _QUIET, *chosen)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.ENODEV):
                raise
    return new_file_system("tmpfs", _QUIET, *options)
