"""An app's root file system: layers stacked by overlayfs, or a tree that was copied for the pod."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from common import syscalls
from common.errors import LaunchError, reason
from stage1.targets import AppRoot, mount_id

MAX_MOUNT_DATA = 4095
"""mount(2) takes one page of options and silently drops the rest; pages are at least 4 KiB."""

# A redirect or a metadata-only file in a layer could only come from a hostile image, and without them the upper
# directory stays a plain difference that can be read without overlayfs.
_FIXED_OPTIONS = (("redirect_dir", "nofollow"), ("metacopy", "off"))


class OverlayRoot(NamedTuple):
    """Read-only layers under a writable directory of the pod's own."""

    layers: tuple[str, ...]
    """Absolute paths, lowest first."""
    state: str
    """The directory that holds `upper` and `work`."""
    place: str
    """The directory the root is mounted on, in the pod's own mount namespace."""
    label: str
    """The mount's source as mountinfo shows it: the pod's UUID, which `stage1.fly` recognizes its processes by."""

    def describe(self) -> str:
        return f"overlay {':'.join(reversed(self.layers))} under {self.state}/upper on {self.place}"

    def attach(self) -> AppRoot:
        """Stack the layers and mount them. LaunchError when a layer is missing or overlayfs refuses."""
        self._prepare_state()
        fds = [_open_directory(layer) for layer in self.layers]
        upper, work = (_open_directory(f"{self.state}/{name}") for name in ("upper", "work"))
        try:
            self._mount(fds, upper, work)
        except OSError as error:
            raise LaunchError(
                f"cannot stack the app's {len(fds)} layers: {error.strerror or reason(error)}",
                hint="--no-overlay copies them instead, on file systems that overlayfs cannot write to",
            ) from error
        for fd in (*fds, upper, work):
            os.close(fd)
        return _open_root(self.place)

    def _prepare_state(self) -> None:
        """Overlayfs shows the upper directory's owner and mode as those of the root: take them from the top layer."""
        for directory in (f"{self.state}/work", self.place):
            os.makedirs(directory, exist_ok=True)
        upper = f"{self.state}/upper"
        try:
            os.mkdir(upper)
        except FileExistsError:
            return
        try:
            top = os.stat(self.layers[-1])
        except OSError as error:
            raise _missing_layer(self.layers[-1], error) from error
        os.chown(upper, top.st_uid, top.st_gid)
        os.chmod(upper, top.st_mode & 0o7777)

    def _mount(self, layers: list[int], upper: int, work: int) -> None:
        try:
            _mount_by_context(layers, (upper, work), self.label, self.place)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # Linux before 6.5 has no `lowerdir+`. Where both ways fail, the first says more about the reason.
            try:
                _mount_by_options(layers, (upper, work), self.label, self.place)
            except OSError as second:
                raise (second if second.errno == errno.E2BIG else error) from None


class CopiedRoot(NamedTuple):
    """A tree that belongs to the pod alone, mounted on itself so that it can be pivoted into and made read-only."""

    place: str

    def describe(self) -> str:
        return f"bind {self.place} on itself"

    def attach(self) -> AppRoot:
        try:
            flags = syscalls.OPEN_TREE_CLONE
            tree = syscalls.open_tree(syscalls.AT_FDCWD, self.place, flags)
            syscalls.mount_setattr(tree, self.place, set_attributes=0, recursive=False, propagation=syscalls.MS_PRIVATE)
            _move(tree, self.place)
        except OSError as error:
            raise LaunchError(f'cannot use the app\'s root "{self.place}": {reason(error)}') from error
        return _open_root(self.place)


def show_layers(layers: tuple[str, ...], place: str) -> None:
    """Stack `layers` (lowest first, two at least) read-only at `place`, in a mount namespace that this process enters
    for it and that ends with it. Writes nothing: a pod's upper directory may be the topmost. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    fds = [_open_directory(layer) for layer in layers]
    try:
        _mount_by_context(fds, None, "rkpy", place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _mount_by_options(fds, None, "rkpy", place)
    for fd in fds:
        os.close(fd)


def _mount_by_context(layers: list[int], state: tuple[int, int] | None, label: str, place: str) -> None:
    """One `lowerdir+` each, topmost first. Layers go by descriptor: fsconfig(2) takes at most 255 bytes a string, and
    neither a colon nor a comma in a path can then mean anything."""
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig(context, "source", label)
        for layer in reversed(layers):
            syscalls.fsconfig(context, "lowerdir+", f"/proc/self/fd/{layer}")
        for key, fd in zip(("upperdir", "workdir"), state or (), strict=False):
            syscalls.fsconfig(context, key, f"/proc/self/fd/{fd}")
        for key, value in _FIXED_OPTIONS:
            syscalls.fsconfig(context, key, value)
        mounted = syscalls.fsmount(context, 0, "overlay")
    finally:
        os.close(context)
    _move(mounted, place)


def _mount_by_options(layers: list[int], state: tuple[int, int] | None, label: str, place: str) -> None:
    """The same as one option string to mount(2)."""
    lower = ":".join(f"/proc/self/fd/{layer}" for layer in reversed(layers))
    fixed = ",".join(f"{key}={value}" for key, value in _FIXED_OPTIONS)
    own = f"upperdir=/proc/self/fd/{state[0]},workdir=/proc/self/fd/{state[1]}," if state else ""
    data = f"lowerdir={lower},{own}{fixed}"
    if len(data) > MAX_MOUNT_DATA:
        raise OSError(errno.E2BIG, "too many layers for this kernel", place)
    syscalls.mount(label, place, "overlay", 0, data)


def _move(tree: int, place: str) -> None:
    target = _open_directory(place)
    syscalls.move_mount(tree, target, place)
    os.close(target)
    os.close(tree)


def _open_root(place: str) -> AppRoot:
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
    return AppRoot(fd, {mount_id(fd)})


def _open_directory(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _missing_layer(path, error) from error


def _missing_layer(path: str, error: OSError) -> LaunchError:
    return LaunchError(f'cannot open layer "{os.path.basename(path)}": {reason(error)}', hint="fetch the image again")
