"""What an app sees of the kernel: /proc, /sys and /dev, and the paths in them it does not get.

These steps are applied in the pod's own namespaces, and copy what `stage1.apptree.supervisor_root` has put there.
"""

from __future__ import annotations

import errno
import os
import stat

from common import syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.mounts import NO_NAMESPACES, Bind, Namespaces, Step, attach, is_read_only, new_file_system
from stage1.targets import AppRoot, mount_id, open_plain, open_target

PROC, SYS, NODES, EMPTY, ONLY_CGROUP = "/proc", "/sys", "/nodes", "/empty", "/only-cgroup"
"""What lies where in the supervisor's root."""
NODE_NUMBERS = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
"""The devices every app has, by the numbers Linux gave them (Documentation/admin-guide/devices.txt)."""
QUIET = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


class Kernel(NamedTuple):
    """The supervisor's own procfs or sysfs."""

    place: str
    """Where the supervisor has it: PROC or SYS."""
    target: str
    """A directory of the root itself."""
    read_only: bool
    guarded: bool
    """No volume may cover anything in it."""

    def describe(self) -> str:
        return f"{self.place[1:]} on {self.target}" + (" (read-only)" if self.read_only else "")

    def apply(self, root: AppRoot, source: int) -> None:
        place = open_plain(root, self.target)
        tree = _copy(self.place, QUIET | (syscalls.MOUNT_ATTR_RDONLY if self.read_only else 0))
        attach(tree, place, self.target, self.target)
        if self.guarded:
            root.kernel_mounts.add(mount_id(tree))
        os.close(tree)
        os.close(place)


class FileSystem(NamedTuple):
    """A file system of the kernel that every app has for itself, such as devpts."""

    kind: str
    target: str
    attributes: int
    options: tuple[tuple[str, str | None], ...] = ()

    def describe(self) -> str:
        return f"{self.kind} on {self.target}"

    def apply(self, root: AppRoot, source: int) -> None:
        place = _made(root, self.target)
        try:
            mounted = new_file_system(self.kind, self.attributes, *self.options)
        except OSError as error:
            raise LaunchError(f'cannot mount {self.kind} on "{self.target}" in the app: {reason(error)}') from error
        attach(mounted, place, self.target, self.target)
        os.close(mounted)
        os.close(place)


class Node(NamedTuple):
    """One of the devices every app has."""

    name: str

    @property
    def target(self) -> str:
        return f"/dev/{self.name}"

    def describe(self) -> str:
        return f"device {self.target}"

    def apply(self, root: AppRoot, source: int) -> None:
        place = _made(root, self.target, directory=False)
        tree = copy_node(self.name)
        attach(tree, place, self.target, self.target)
        os.close(tree)
        os.close(place)


class Device(NamedTuple):
    """A device of the host that the user granted. Nothing but its own permissions bounds what the app does with it."""

    source: str
    target: str

    def describe(self) -> str:
        return f"device {self.source} on {self.target}"

    def _bind(self) -> Bind:
        about = f'device "{self.source}"'
        return Bind(self.source, self.target, read_only=False, recursive=False, about=about, hardened=True)

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        # Not mapped to the pod's users: the file system devices are on cannot be.
        tree = self._bind().open_source()
        mode = os.fstat(tree).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise LaunchError(f'"{self.source}" is not a device', hint="mount files and directories with --volume")
        try:
            # This keeps nobody from writing to the device, but its owner and mode, which are the host's, as they are.
            syscalls.mount_setattr(tree, self.source, set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        except OSError as error:
            raise LaunchError(f'device "{self.source}": cannot protect its mode: {reason(error)}') from error
        return tree

    def apply(self, root: AppRoot, source: int) -> None:
        self._bind().apply(root, source)


class Link(NamedTuple):
    """A symlink in a directory that was made for the app."""

    target: str
    text: str

    def describe(self) -> str:
        return f"link {self.target} to {self.text}"

    def apply(self, root: AppRoot, source: int) -> None:
        directory, name = os.path.split(self.target)
        parent = _made(root, directory)
        try:
            os.symlink(self.text, name, dir_fd=parent)
        except OSError as error:
            raise LaunchError(f'cannot make the link "{self.target}" in the app: {reason(error)}') from error
        os.close(parent)


class Writable(NamedTuple):
    """A directory that stays writable in a read-only root, if the image has it, with what the image has in it."""

    target: str

    def describe(self) -> str:
        return f"keep {self.target} writable"

    def apply(self, root: AppRoot, source: int) -> None:
        try:
            place = syscalls.openat2(root.fd, self.target, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        # A volume or the kernel's, when the image's symlinks lead there, is as writable as it is.
        if mount_id(place) == mount_id(root.fd) and not os.path.samestat(os.fstat(place), os.fstat(root.fd)):
            tree = _copy_of(place, self.target, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
            attach(tree, place, self.target, self.target)
            root.own_mounts.add(mount_id(tree))
            os.close(tree)
        os.close(place)


class Mask(NamedTuple):
    """A path of the kernel's that the app finds empty."""

    target: str
    cover: str = EMPTY
    """The directory that covers it, if it is one."""

    def describe(self) -> str:
        return f"mask {self.target}"

    def apply(self, root: AppRoot, source: int) -> None:
        place = _found(root, self.target)
        if place is None:
            return
        # Covers are copied from the supervisor's root, which no app can reach, and never from the app's /dev/null: runc
        # masked with whatever lay there (CVE-2025-31133).
        is_directory = stat.S_ISDIR(os.fstat(place).st_mode)
        tree = _copy(self.cover, QUIET | syscalls.MOUNT_ATTR_RDONLY) if is_directory else copy_node("null")
        attach(tree, place, self.target, self.target)
        _require_on_top(root, self.target, tree)
        os.close(tree)
        os.close(place)


class ReadOnlyPath(NamedTuple):
    """A path of the kernel's that the app can read and not write."""

    target: str

    def describe(self) -> str:
        return f"make {self.target} read-only"

    def apply(self, root: AppRoot, source: int) -> None:
        place = _found(root, self.target)
        if place is None:
            return
        tree = _copy_of(place, self.target, QUIET | syscalls.MOUNT_ATTR_RDONLY)
        attach(tree, place, self.target, self.target)
        _require_on_top(root, self.target, tree)
        if not is_read_only(tree):
            raise LaunchError(f'"{self.target}" in the app could not be made read-only')
        os.close(tree)
        os.close(place)


STEPS: tuple[type[Step], ...] = (
    Kernel, FileSystem, Node, Device, Link, Writable, Mask, ReadOnlyPath,
)  # fmt: skip
"""Every kind of step in this module."""


def has_only_cgroup2() -> bool:
    """Whether the host's cgroups are all of the second kind (cgroups(7), "Cgroups version 2")."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def copy_node(name: str) -> int:
    """A detached mount of the supervisor's device `name`."""
    tree = _copy(f"{NODES}/{name}", syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC)
    require_node(tree, name)
    return tree


def require_node(fd: int, name: str) -> None:
    """LaunchError unless `fd` is the device Linux calls `name`."""
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*NODE_NUMBERS[name]):
        raise LaunchError(f'"/dev/{name}" of the host is not the device of that name')


def _copy(path: str, attributes: int) -> int:
    """A detached copy of what is mounted at `path` of the supervisor's."""
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        raise LaunchError(f'cannot copy the supervisor\'s "{path}": {reason(error)}') from error
    try:
        return _copy_of(place, path, attributes)
    finally:
        os.close(place)


def _copy_of(place: int, path: str, attributes: int) -> int:
    try:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        tree = syscalls.open_tree(place, "", flags)
        syscalls.mount_setattr(tree, path, set_attributes=attributes, recursive=True, propagation=syscalls.MS_PRIVATE)
    except OSError as error:
        raise LaunchError(f'cannot copy the mount of "{path}": {reason(error)}') from error
    return tree


def _made(root: AppRoot, path: str, *, directory: bool = True) -> int:
    try:
        return open_target(root, path, directory=directory)
    except OSError as error:
        raise LaunchError(f'cannot reach "{path}" in the app: {error.strerror}') from error


def _found(root: AppRoot, path: str) -> int | None:
    """`path` in the root, None when this kernel has no such thing. LaunchError when it is not where it should be."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
    try:
        return syscalls.openat2(root.fd, path, os.O_PATH, resolve=resolve)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise LaunchError(f'cannot reach "{path}" in the app: {reason(error)}') from error


def _require_on_top(root: AppRoot, path: str, mounted: int) -> None:
    """What the app will see at `path` is the mount `mounted` and no other."""
    seen = _found(root, path)
    if seen is None or mount_id(seen) != mount_id(mounted):
        raise LaunchError(f'"{path}" in the app changed while it was being protected')
    os.close(seen)
