"""The mounts inside an app's root as a plan: immutable steps that are arranged, printed and compared without root, and
then applied in order.

Every step opens its source before anything is mounted, so that no mount of the pod can change what a source means, and
attaches it by descriptor, so that no path is walked twice (open_tree(2), mount_setattr(2), move_mount(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from common import syscalls, users
from common.errors import LaunchError, UsageError, reason
from common.records import NamedTuple
from stage1.targets import AppRoot, mount_id, open_plain, open_target

NO_SOURCE = -1
NONE = -1
"""No such namespace."""
HARDENED = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
PROPAGATIONS = {"private": syscalls.MS_PRIVATE, "slave": syscalls.MS_SLAVE, "shared": syscalls.MS_SHARED}


class Namespaces(NamedTuple):
    """Descriptors of namespaces that what is mounted has to do with."""

    users: int = NONE
    """The pod's own user namespace: what it sees belongs to its users as on the host it belongs to the host's."""
    mounts: int = NONE
    """The host's mount namespace, for mounts that appear there too; needed only with propagation "shared"."""


NO_NAMESPACES = Namespaces()


class Step(Protocol):
    """One mount of a plan."""

    @property
    def target(self) -> str:
        """Absolute path in the app's root, normalized."""
        ...

    def describe(self) -> str:
        """The step in one line, for --debug."""
        ...

    def apply(self, root: AppRoot, source: int) -> None:
        """Mount it, from `source` as `open_source` gave it, and close that."""
        ...


@runtime_checkable
class SourcedStep(Step, Protocol):
    """A step that mounts something of the host."""

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        """A detached mount of it. NO_SOURCE only where the step can do without."""
        ...


class Bind(NamedTuple):
    """A directory, file, socket or device of the host at a place in the app."""

    source: str
    target: str
    read_only: bool
    recursive: bool
    about: str
    """What the user calls it, for messages: `volume "data"`."""
    own: bool = False
    """The source belongs to the pod, so that missing targets below may be created in it."""
    hardened: bool = False
    """No set-ID programs and no devices in it; a device that is itself the source works."""
    propagation: str = ""
    """"private", "slave" or "shared" (mount_namespaces(7)); empty leaves it to the fields above."""

    def describe(self) -> str:
        flags = (("read-only", self.read_only), ("recursive", self.recursive), ("hardened", self.hardened))
        words = [*(word for word, on in flags if on), *filter(None, (self.propagation,))]
        return f"bind {self.source} on {self.target}" + (f" ({', '.join(words)})" if words else "")

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        """A detached copy of the source's mount, final in all its attributes before anyone can see it."""
        if self.propagation != "shared":
            return self._open_source(namespaces)
        if namespaces.mounts == NONE or namespaces.users != NONE:
            raise LaunchError(f'{self.about}: propagation "shared" is not possible here', hint="use slave or private")
        with _Visiting(namespaces.mounts):
            return self._open_source(namespaces)

    def _open_source(self, namespaces: Namespaces) -> int:
        place = self._open_place()
        try:
            tree = self._clone(place, _is_device(os.fstat(place).st_mode))
            if namespaces.users != NONE:
                self._map_owners(tree, namespaces.users)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(place)
        if self.read_only and not is_read_only(tree):
            raise LaunchError(f"{self.about}: it could not be made read-only")
        return tree

    def require_source(self) -> None:
        """LaunchError unless the source is there and, as far as can be told beforehand, can be mounted as asked. Needs
        no privileges."""
        place = self._open_place()
        try:
            if users.confined() and not self.recursive:
                os.close(syscalls.open_tree(place, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH))
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(place)

    def _open_place(self) -> int:
        # Symlinks are followed as mount(8) does, except the magic ones of /proc, which name other processes' files.
        try:
            place = syscalls.openat2(syscalls.AT_FDCWD, self.source, os.O_PATH, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError as error:
            hint = "create it, or name another source"
            raise LaunchError(f'{self.about}: host path "{self.source}" does not exist', hint=hint) from error
        except OSError as error:
            raise self._unusable(error) from error
        self._refuse_read_only_device(os.fstat(place).st_mode)
        return place

    def _unusable(self, error: OSError) -> LaunchError:
        if error.errno == errno.EINVAL and not self.recursive and users.confined():
            # mount_namespaces(7): what came from a more privileged namespace is locked together.
            return LaunchError(
                f'{self.about}: the mounts below host path "{self.source}" cannot be left out without root',
                hint="use recursive=true",
            )
        return LaunchError(f'{self.about}: cannot use host path "{self.source}": {reason(error)}')

    def _clone(self, place: int, is_device: bool) -> int:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        tree = syscalls.open_tree(place, "", flags | (syscalls.AT_RECURSIVE if self.recursive else 0))
        # What the host mounts later below a recursive source appears in the app too; below a read-only one it must
        # not, because it would arrive writable, and below a hardened one, because devices in it would work.
        follow_host = self.recursive and not self.read_only and not self.hardened
        attributes = syscalls.MOUNT_ATTR_RDONLY if self.read_only else 0
        if self.hardened:
            attributes |= syscalls.MOUNT_ATTR_NOSUID if is_device else HARDENED
        propagation = syscalls.MS_SLAVE if follow_host else syscalls.MS_PRIVATE
        syscalls.mount_setattr(
            tree,
            self.source,
            set_attributes=attributes,
            recursive=True,
            propagation=PROPAGATIONS.get(self.propagation, propagation),
        )
        return tree

    def _map_owners(self, tree: int, users: int) -> None:
        try:
            map_owners(tree, users, self.source, recursive=self.recursive)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            # The kernel does not say which file system it was that cannot do it, nor whether one was mapped before.
            raise LaunchError(
                f'{self.about}: the file system of "{self.source}" cannot be mapped to the users of the pod',
                hint="use a volume on another file system, or leave out --private-users",
            ) from error

    def _refuse_read_only_device(self, mode: int) -> None:
        if self.read_only and _is_device(mode):
            raise LaunchError(
                f'{self.about}: a read-only mount does not keep the app from writing to the device "{self.source}"',
                hint="use readOnly=false, and the device's own permissions",
            )

    def apply(self, root: AppRoot, source: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
        target = _open_target(self, root, directory=is_directory)
        if mount_id(target) in root.kernel_mounts:
            raise LaunchError(f'{self.about}: "{self.target}" in the app leads into a file system of the kernel')
        if stat.S_ISDIR(os.fstat(target).st_mode) != is_directory:
            kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
            raise LaunchError(
                f'{self.about}: "{self.source}" is {kinds[0]} and "{self.target}" in the app is {kinds[1]}'
            )
        attach(source, target, self.target, self.about)
        os.close(target)
        if self.read_only and self.hardened:
            self._verify_read_only(source)
        if self.own:
            root.own_mounts.add(mount_id(source))
        os.close(source)

    def _verify_read_only(self, source: int) -> None:
        """What the app will see, looked at where it is: this mount and all that came with it."""
        mounts = mount_table()
        pending = [mount_id(source)]
        while pending:
            current = pending.pop()
            if b"ro" not in mounts[current][1].split(b","):
                raise LaunchError(f"{self.about}: it could not be made read-only")
            pending += [other for other, (parent, _) in mounts.items() if parent == current]


class HostFile(NamedTuple):
    """A configuration file of the host or the pod, read-only, where the image has none or an empty one."""

    target: str
    source: str = ""
    """Where the file is, when not at the same place on the host."""
    always: bool = False
    """Whatever the image has."""
    optional: bool = False
    """Nothing is mounted when there is no such file once the app is started."""

    def is_there(self) -> bool:
        return not self.optional or os.path.isfile(self.source or self.target)

    def describe(self) -> str:
        where = f"bind {self.source or self.target} on {self.target} (read-only)"
        there = " if it is there" if self.optional else ""
        return f"{where}{there}" if self.always else f"{where}{there} unless the image has one"

    def _bind(self, *, hardened: bool) -> Bind:
        source = self.source or self.target
        return Bind(source, self.target, read_only=True, recursive=False, about=self.target, hardened=hardened)

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        """NO_SOURCE when the host has no such file either."""
        if not os.path.isfile(self.source or self.target):
            return NO_SOURCE
        # Nobody minds who owns such a file, as long as everybody can read it.
        return self._bind(hardened=bool(self.source)).open_source()

    def apply(self, root: AppRoot, source: int) -> None:
        if source == NO_SOURCE:
            return
        try:
            target = open_target(root, self.target, directory=False) if self._is_wanted(root) else NO_SOURCE
        except OSError:
            # An image whose /etc leads into /proc, or is a file, does without: nobody asked for this mount.
            target = NO_SOURCE
        if target != NO_SOURCE:
            if mount_id(target) not in root.kernel_mounts and not stat.S_ISDIR(os.fstat(target).st_mode):
                attach(source, target, self.target, self.target)
            os.close(target)
        os.close(source)

    def _is_wanted(self, root: AppRoot) -> bool:
        if self.always:
            return True
        try:
            fd = syscalls.openat2(root.fd, self.target, os.O_PATH)
        except FileNotFoundError:
            return True
        status = os.fstat(fd)
        os.close(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size == 0


class Sockets(NamedTuple):
    """The directory of an app's sockets (`stage1.appsockets`), which the monitor has filled by the time it is opened.

    It keeps its owners: in a user namespace they are nobody, and who may write to a socket is said by its mode, which
    a read-only mount does not change."""

    source: str
    target: str
    required: bool
    """Otherwise an app whose image or volumes have no place for it does without."""

    def describe(self) -> str:
        return f"bind {self.source} on {self.target} (read-only, hardened)" + ("" if self.required else " if possible")

    def _bind(self) -> Bind:
        return Bind(self.source, self.target, True, recursive=False, about="sockets", hardened=True)

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        return self._bind().open_source()

    def apply(self, root: AppRoot, source: int) -> None:
        try:
            self._bind().apply(root, source)
        except LaunchError:
            if self.required:
                raise


class Tmpfs(NamedTuple):
    """An empty file system in memory, gone with the pod."""

    target: str
    mode: int
    size: int = 0
    """Bytes at most; 0 for the kernel's default, half of the memory."""
    no_exec: bool = False
    plain: bool = False
    """The target is a directory in the root and no symlink: what the image has there instead is replaced."""

    def describe(self) -> str:
        return f"tmpfs on {self.target} (mode {self.mode:o})" + (f" of {self.size} bytes" if self.size else "")

    def apply(self, root: AppRoot, source: int) -> None:
        place = open_plain(root, self.target) if self.plain else _open_target(self, root, directory=True)
        options = f"mode={self.mode:o}" + (f",size={self.size}" if self.size else "")
        try:
            _mount_tmpfs(place, options, syscalls.MS_NOEXEC if self.no_exec else 0)
        except OSError as error:
            raise LaunchError(f'cannot mount a tmpfs on "{self.target}" in the app: {reason(error)}') from error
        os.close(place)
        mounted = syscalls.openat2(root.fd, self.target, os.O_PATH)
        root.own_mounts.add(mount_id(mounted))
        os.close(mounted)


class MemoryVolume(NamedTuple):
    """An empty volume of limited size: a tmpfs over its directory in the pod, seen only by those who carry the plan
    out, from which each app gets a copy of the mount."""

    bind: Bind
    size: int
    mode: int
    uid: int
    gid: int

    @property
    def target(self) -> str:
        return self.bind.target

    def describe(self) -> str:
        return f"tmpfs of {self.size} bytes (mode {self.mode:o}, owner {self.uid}:{self.gid}); {self.bind.describe()}"

    def open_source(self, namespaces: Namespaces = NO_NAMESPACES) -> int:
        place = self.bind.source
        try:
            if os.stat(place).st_dev == os.stat(os.path.dirname(place)).st_dev:
                target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
                _mount_tmpfs(target, f"mode={self.mode:o},size={self.size},uid={self.uid},gid={self.gid}", 0)
                os.close(target)
        except OSError as error:
            raise LaunchError(f"{self.bind.about}: cannot mount a tmpfs: {reason(error)}") from error
        return self.bind.open_source(namespaces)

    def apply(self, root: AppRoot, source: int) -> None:
        self.bind.apply(root, source)


class ReadOnlyRoot(NamedTuple):
    """The app's root turned read-only, the mounts in it left as they are. Comes last: the places of the other mounts
    may have to be created first."""

    target: str = "/"

    def describe(self) -> str:
        return "make / read-only"

    def apply(self, root: AppRoot, source: int) -> None:
        try:
            syscalls.mount_setattr(root.fd, "/", set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        except OSError as error:
            raise LaunchError(f"cannot make the app's root read-only: {reason(error)}") from error


STEPS: tuple[type[Step], ...] = (Bind, HostFile, Sockets, Tmpfs, MemoryVolume, ReadOnlyRoot)
"""Every kind of step in this module, for those who pass plans between processes."""


def open_source(step: Step, namespaces: Namespaces = NO_NAMESPACES) -> int:
    """A descriptor of what `step` will mount, or NO_SOURCE. Called before anything is mounted."""
    return step.open_source(namespaces) if isinstance(step, SourcedStep) else NO_SOURCE


class _Visiting:
    """In the mount namespace `fd` refers to, and back. Only for a process of a single thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        self._own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        syscalls.setns(self._fd, syscalls.CLONE_NEWNS)

    def __exit__(self, *_: object) -> None:
        syscalls.setns(self._own, syscalls.CLONE_NEWNS)
        os.close(self._own)


def _mount_tmpfs(place: int, options: str, flags: int) -> None:
    # mount(2) walks the magic link, which leads to exactly the directory that was opened.
    syscalls.mount("tmpfs", f"/proc/self/fd/{place}", "tmpfs", flags | syscalls.MS_NOSUID | syscalls.MS_NODEV, options)


def new_file_system(kind: str, attributes: int, *options: tuple[str, str | None]) -> int:
    """A detached mount of a new file system. OSError says what the kernel did not like."""
    context = syscalls.fsopen(kind)
    try:
        for key, value in options:
            syscalls.fsconfig(context, key, value)
        return syscalls.fsmount(context, attributes, kind)
    finally:
        os.close(context)


def map_owners(tree: int, users: int, path: str, *, recursive: bool) -> None:
    """Show the detached mount `tree` to the user namespace `users` with the owners it has on disk (Linux 5.12)."""
    attributes = syscalls.MOUNT_ATTR_IDMAP
    syscalls.mount_setattr(tree, path, set_attributes=attributes, recursive=recursive, namespace=users)


def is_read_only(fd: int) -> bool:
    """Whether the mount `fd` was opened through is."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def mount_table() -> dict[int, tuple[int, bytes]]:
    """The mounts of this namespace by ID: the parent's ID and the options (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ", 6) for line in file]
    return {int(line[0]): (int(line[1]), line[5]) for line in fields}


def _is_device(mode: int) -> bool:
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def normalize(path: str) -> str:
    """`path` without `.`, `..`, and doubled or trailing slashes, as the user reads it; `..` stops at the root."""
    return "/" + os.path.normpath("/" + path).lstrip("/")


def arrange(volumes: Iterable[Step], defaults: Iterable[Step]) -> tuple[Step, ...]:
    """All steps in the order of mounting: outer before inner, by name where that says nothing. A volume takes the place
    of the default at the same target. UsageError when two volumes want one target, or one wants the whole root."""
    chosen: dict[str, Step] = {}
    for step in volumes:
        other = chosen.setdefault(step.target, step)
        if other is not step:
            raise UsageError(f'two volumes want the same target "{step.target}": {_about(other)} and {_about(step)}')
        if step.target == "/":
            raise UsageError(f"{_about(step)} cannot be mounted over the app's root")
    for step in defaults:
        chosen.setdefault(step.target, step)
    return tuple(sorted(chosen.values(), key=lambda step: (step.target.count("/"), step.target)))


def _about(step: Step) -> str:
    if isinstance(step, MemoryVolume):
        step = step.bind
    return step.about if isinstance(step, Bind) else step.target


def _open_target(step: Step, root: AppRoot, *, directory: bool) -> int:
    try:
        return open_target(root, step.target, directory=directory)
    except OSError as error:
        hint = ""
        if error.errno == errno.EXDEV:
            hint = "create it in the volume that covers it, or mount elsewhere"
        why = error.strerror if error.errno in (errno.EXDEV, errno.EBUSY) else reason(error)
        raise LaunchError(f'{_about(step)}: cannot reach "{step.target}" in the app: {why}', hint=hint) from error


def attach(source: int, target: int, path: str, about: str) -> None:
    """move_mount(2) the detached mount `source` onto `target`; LaunchError says what could not be mounted where."""
    try:
        syscalls.move_mount(source, target, path)
    except OSError as error:
        raise LaunchError(f'{about}: cannot mount on "{path}" in the app: {reason(error)}') from error
