"""An app's root file system: layers stacked by overlayfs, or a tree that was copied for the pod."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from common import overlay, syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1 import poddir
from stage1.mounts import NONE, map_owners, new_file_system
from stage1.targets import AppRoot, mount_id

MAX_MOUNT_DATA = 4095
"""mount(2) takes one page of options and silently drops the rest; pages are at least 4 KiB."""

# A redirect or a metadata-only file in a layer could only come from a hostile image, and without them the upper
# directory stays a plain difference that can be read without overlayfs.
_Option = tuple[str, str | None]
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
        return _attach_root(self._open(0, NONE), self.place)

    def open(self, users: int = NONE) -> int:
        """The same as a detached mount on which devices do not work. With `users`, a descriptor of a user namespace,
        its users see the owners that are on disk, and what they write lies in `upper` under the IDs the host knows."""
        return self._open(syscalls.MOUNT_ATTR_NODEV, users)

    def _open(self, attributes: int, users: int) -> int:
        poddir.make_place(self.state)
        for directory in (f"{self.state}/work", self.place):
            os.makedirs(directory, exist_ok=True)
        with ExitStack() as undo:
            layers = [_opened(layer, undo) for layer in self.layers]
            if users != NONE:
                layers = [self._mapped(*pair, users, undo) for pair in zip(layers, self.layers, strict=True)]
            try:
                self._prepare_upper(os.fstat(layers[-1]))
                writable = {f"{name}dir": _opened(f"{self.state}/{name}", undo) for name in ("upper", "work")}
                return _mount(layers, writable, self.label, attributes, self.place)
            except OSError as error:
                raise LaunchError(
                    f"cannot stack the app's {len(layers)} layers: {error.strerror or reason(error)}",
                    hint="--no-overlay copies them instead, on file systems that overlayfs cannot write to",
                ) from error

    def _mapped(self, layer: int, name: str, users: int, undo: ExitStack) -> int:
        """A mapped copy of the layer's mount. Overlayfs takes no detached mount for a layer on every kernel, so it is
        attached for as long as the layers are being stacked, where nobody but this process looks."""
        try:
            tree = syscalls.open_tree(layer, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
            undo.callback(os.close, tree)
            map_owners(tree, users, name, recursive=False)
        except OSError as error:
            raise LaunchError(
                f'layer "{os.path.basename(name)}" cannot be mapped to the users of the pod: {reason(error)}',
                hint="keep the store on a file system that can be (ext4, xfs, btrfs), or leave out --private-users",
            ) from error
        _attach(tree, self.place)
        undo.callback(let_go, self.place)
        return tree

    def _prepare_upper(self, top: os.stat_result) -> None:
        """Overlayfs shows the upper directory's owner and mode as those of the root: take them from the top layer."""
        upper = f"{self.state}/upper"
        try:
            os.mkdir(upper)
        except FileExistsError:
            return
        try:
            os.chown(upper, top.st_uid, top.st_gid)
        except OSError as error:
            os.rmdir(upper)
            if error.errno != errno.EINVAL:
                raise
            raise LaunchError(
                "the owner of the image's top directory is nobody in this user namespace",
                hint="without root IDs come from /etc/subuid and /etc/subgid, see docs/rootless.md",
            ) from error
        os.chmod(upper, top.st_mode & 0o7777)


class CopiedRoot(NamedTuple):
    """A tree that belongs to the pod alone, mounted on itself so that it can be pivoted into and made read-only."""

    place: str

    def describe(self) -> str:
        return f"bind {self.place} on itself"

    def attach(self) -> AppRoot:
        return _attach_root(self._open(0, NONE), self.place)

    def open(self, users: int = NONE) -> int:
        """As `OverlayRoot.open`, except that what the app writes has the owners it sees."""
        return self._open(syscalls.MOUNT_ATTR_NODEV, users)

    def _open(self, attributes: int, users: int) -> int:
        try:
            tree = syscalls.open_tree(syscalls.AT_FDCWD, self.place, syscalls.OPEN_TREE_CLONE)
            syscalls.mount_setattr(
                tree, self.place, set_attributes=attributes, recursive=False, propagation=syscalls.MS_PRIVATE
            )
            if users != NONE:
                map_owners(tree, users, self.place, recursive=False)
        except OSError as error:
            raise LaunchError(f'cannot use the app\'s root "{self.place}": {reason(error)}') from error
        return tree


def open_image(layers: tuple[str, ...], label: str, place: str) -> int:
    """What the layers alone show, to be read by the host: a directory of a detached mount. `label` and `place` are as
    those of `OverlayRoot`. Raises OSError."""
    with ExitStack() as undo:
        fds = [_opened(layer, undo) for layer in layers]
        if len(fds) == 1:
            return os.dup(fds[0])
        return _mount(fds, {}, label, syscalls.MOUNT_ATTR_RDONLY, place)


def show_layers(layers: tuple[str, ...], place: str) -> None:
    """Stack `layers` (lowest first, two at least) read-only at `place`, in a mount namespace that this process enters
    for it and that ends with it. Writes nothing: a pod's upper directory may be the topmost. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    tree = open_image(layers, "rkpy", place)
    _attach(tree, place)
    os.close(tree)


def switch_root(root_fd: int) -> None:
    """Make the attached mount `root_fd` the root of the namespace and let go of every other one, so that the pod keeps
    nothing of the host busy. On an initramfs, whose root cannot be pivoted, the app's root is moved over it instead."""
    os.fchdir(root_fd)
    try:
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise LaunchError(f"cannot enter the new root: {reason(error)}") from error
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
    os.chdir("/")


def _mount(layers: list[int], writable: dict[str, int], label: str, attributes: int, place: str) -> int:
    """A detached overlay mount; `writable` names the directories it writes to, if it does."""
    places = ((key, f"/proc/self/fd/{fd}") for key, fd in writable.items())
    others: list[_Option] = [*places, *_FIXED_OPTIONS, *overlay.options()]
    try:
        return _mount_by_context(layers, others, label, attributes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # Linux before 6.5 has no `lowerdir+`. Where both ways fail, the first says more about the reason.
        try:
            return _mount_by_options(layers, others, label, attributes, place)
        except OSError as second:
            raise (second if second.errno == errno.E2BIG else error) from None


def _mount_by_context(layers: list[int], others: list[_Option], label: str, attributes: int) -> int:
    """One `lowerdir+` each, topmost first. Layers go by descriptor: fsconfig(2) takes at most 255 bytes a string, and
    neither a colon nor a comma in a path can then mean anything."""
    lower = [("lowerdir+", f"/proc/self/fd/{layer}") for layer in reversed(layers)]
    return new_file_system("overlay", attributes, ("source", label), *lower, *others)


def _mount_by_options(layers: list[int], others: list[_Option], label: str, attributes: int, place: str) -> int:
    """The same as one option string to mount(2), and then a detached copy of what was mounted."""
    lower = ":".join(f"/proc/self/fd/{layer}" for layer in reversed(layers))
    data = ",".join(key if value is None else f"{key}={value}" for key, value in [("lowerdir", lower), *others])
    if len(data) > MAX_MOUNT_DATA:
        raise OSError(errno.E2BIG, "too many layers for this kernel", place)
    syscalls.mount(label, place, "overlay", 0, data)
    try:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, place, syscalls.OPEN_TREE_CLONE)
    finally:
        let_go(place)
    syscalls.mount_setattr(tree, place, set_attributes=attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
    return tree


def _attach(tree: int, place: str) -> None:
    target = _open_directory(place)
    try:
        syscalls.move_mount(tree, target, place)
    finally:
        os.close(target)


def _attach_root(tree: int, place: str) -> AppRoot:
    _attach(tree, place)
    os.close(tree)
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
    return AppRoot(fd, {mount_id(fd)}, set())


def let_go(place: str) -> None:
    """Unmount what is mounted on `place`, whoever uses it still."""
    syscalls.umount2(place, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)


def _opened(path: str, undo: ExitStack) -> int:
    fd = _open_directory(path)
    undo.callback(os.close, fd)
    return fd


def _open_directory(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _missing_layer(path, error) from error


def _missing_layer(path: str, error: OSError) -> LaunchError:
    hint = "fetch the image again" if error.errno in (errno.ENOENT, errno.ENOTDIR) else ""
    return LaunchError(f'cannot open layer "{os.path.basename(path)}": {reason(error)}', hint=hint)
