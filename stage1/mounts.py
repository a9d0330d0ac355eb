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
from typing import NamedTuple, Protocol

from common import syscalls
from common.errors import LaunchError, UsageError, reason
from stage1.targets import AppRoot, mount_id, open_target

NO_SOURCE = -1


class Step(Protocol):
    """One mount of a plan."""

    @property
    def target(self) -> str:
        """Absolute path in the app's root, normalized."""
        ...

    def describe(self) -> str:
        """The step in one line, for --debug."""
        ...

    def open_source(self) -> int:
        """A descriptor of what will be mounted, or NO_SOURCE. Called before anything is mounted."""
        ...

    def apply(self, root: AppRoot, source: int) -> None:
        """Mount it."""
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

    def describe(self) -> str:
        words = [word for word, on in (("read-only", self.read_only), ("recursive", self.recursive)) if on]
        return f"bind {self.source} on {self.target}" + (f" ({', '.join(words)})" if words else "")

    def open_source(self) -> int:
        """A detached copy of the source's mount, final in all its attributes before anyone can see it."""
        place = self._open_place()
        try:
            return self._clone(place)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(place)

    def require_source(self) -> None:
        """LaunchError unless the source is there and can be mounted as asked. Needs no privileges."""
        os.close(self._open_place())

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
        return LaunchError(f'{self.about}: cannot use host path "{self.source}": {reason(error)}')

    def _clone(self, place: int) -> int:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        tree = syscalls.open_tree(place, "", flags | (syscalls.AT_RECURSIVE if self.recursive else 0))
        # What the host mounts later below a recursive source appears in the app too; below a read-only one it must
        # not, because it would arrive writable.
        follow_host = self.recursive and not self.read_only
        syscalls.mount_setattr(
            tree,
            self.source,
            set_attributes=syscalls.MOUNT_ATTR_RDONLY if self.read_only else 0,
            recursive=True,
            propagation=syscalls.MS_SLAVE if follow_host else syscalls.MS_PRIVATE,
        )
        return tree

    def _refuse_read_only_device(self, mode: int) -> None:
        if self.read_only and (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
            raise LaunchError(
                f'{self.about}: a read-only mount does not keep the app from writing to the device "{self.source}"',
                hint="use readOnly=false, and the device's own permissions",
            )

    def apply(self, root: AppRoot, source: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
        target = _open_target(self, root, directory=is_directory)
        if stat.S_ISDIR(os.fstat(target).st_mode) != is_directory:
            kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
            raise LaunchError(
                f'{self.about}: "{self.source}" is {kinds[0]} and "{self.target}" in the app is {kinds[1]}'
            )
        _attach(self, source, target)
        os.close(target)
        if self.own:
            root.own_mounts.add(mount_id(source))
        os.close(source)


class HostFile(NamedTuple):
    """A configuration file of the host, read-only, where the image has none or an empty one."""

    target: str

    def describe(self) -> str:
        return f"bind {self.target} on {self.target} (read-only) unless the image has one"

    def _bind(self) -> Bind:
        return Bind(self.target, self.target, read_only=True, recursive=False, about=self.target)

    def open_source(self) -> int:
        """NO_SOURCE when the host has no such file either."""
        return self._bind().open_source() if os.path.isfile(self.target) else NO_SOURCE

    def apply(self, root: AppRoot, source: int) -> None:
        if source == NO_SOURCE:
            return
        try:
            wanted = self._is_wanted(root)
            target = open_target(root, self.target, directory=False) if wanted else NO_SOURCE
        except OSError:
            # An image whose /etc leads into /proc, or is a file, does without: nobody asked for this mount.
            target = NO_SOURCE
        if target != NO_SOURCE:
            _attach(self, source, target)
            os.close(target)
        os.close(source)

    def _is_wanted(self, root: AppRoot) -> bool:
        try:
            fd = syscalls.openat2(root.fd, self.target, os.O_PATH)
        except FileNotFoundError:
            return True
        status = os.fstat(fd)
        os.close(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size == 0


class Tmpfs(NamedTuple):
    """An empty file system in memory, gone with the pod."""

    target: str
    mode: int

    def describe(self) -> str:
        return f"tmpfs on {self.target} (mode {self.mode:o})"

    def open_source(self) -> int:
        return NO_SOURCE

    def apply(self, root: AppRoot, source: int) -> None:
        place = _open_target(self, root, directory=True)
        try:
            # mount(2) walks the magic link, which leads to exactly the directory that was opened.
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
            syscalls.mount("tmpfs", f"/proc/self/fd/{place}", "tmpfs", flags, f"mode={self.mode:o}")
        except OSError as error:
            raise LaunchError(f'cannot mount a tmpfs on "{self.target}" in the app: {reason(error)}') from error
        os.close(place)
        mounted = syscalls.openat2(root.fd, self.target, os.O_PATH)
        root.own_mounts.add(mount_id(mounted))
        os.close(mounted)


class ReadOnlyRoot(NamedTuple):
    """The app's root turned read-only, the mounts in it left as they are. Comes last: the places of the other mounts
    may have to be created first."""

    target: str = "/"

    def describe(self) -> str:
        return "make / read-only"

    def open_source(self) -> int:
        return NO_SOURCE

    def apply(self, root: AppRoot, source: int) -> None:
        try:
            syscalls.mount_setattr(root.fd, "/", set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        except OSError as error:
            raise LaunchError(f"cannot make the app's root read-only: {reason(error)}") from error


STEPS: tuple[type[Step], ...] = (Bind, HostFile, Tmpfs, ReadOnlyRoot)
"""Every kind of step, for those who pass plans between processes."""


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


def _attach(step: Step, source: int, target: int) -> None:
    try:
        syscalls.move_mount(source, target, step.target)
    except OSError as error:
        raise LaunchError(f'{_about(step)}: cannot mount on "{step.target}" in the app: {reason(error)}') from error
