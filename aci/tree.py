"""Roots that have to be put together: copies instead of overlays, and images with dependencies or a whitelist.

Layers are stacked here by the rules overlayfs has (Documentation/filesystems/overlayfs.rst), so that a copy and an
overlay show the same files. Layers come from images: nothing in them is followed, every directory is opened with
openat2(2) below its layer and without symlinks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence

from aci.image_manifest import Dependency
from aci.store import TREE, ImageRecord, Store
from aci.types import quote
from common import files, overlay
from common.errors import ImageError, RkpyError, StoreError, reason
from common.records import NamedTuple
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

MAX_PARTS = 1000
"""Images a root is put together of. A chain of diamonds doubles at every step."""
_FICLONE = 0x40049409
"""linux/fs.h, _IOW(0x94, 9, int)."""
_COPY = 64 << 20
_NO_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


# Which images a root is made of


class Whitelist(NamedTuple):
    """The `pathWhitelist` of an image: what survives, and the directories on the way there."""

    paths: frozenset[bytes]
    parents: frozenset[bytes]

    def allows(self, path: bytes, *, is_directory: bool) -> bool:
        return path in self.paths or (is_directory and path in self.parents)


class Part(NamedTuple):
    """One image's contribution to a root."""

    record: ImageRecord
    whitelists: tuple[Whitelist, ...]
    """Its own, and those of the images it is part of."""


class Layer(NamedTuple):
    """A directory to stack, and what of it may show."""

    path: str
    whitelists: tuple[Whitelist, ...] = ()


def parts(store: Store, record: ImageRecord) -> list[Part]:
    """What the root of `record` is made of, lowest first: its dependencies in their order, depth first, then itself
    (spec 0.8.11, "Dependency Matching"). Raises ImageError for a missing dependency and for a circle."""
    found: list[Part] = []
    for part in _parts(store, record, (), ()):
        found.append(part)
        if len(found) > MAX_PARTS:
            raise ImageError(f"{record.manifest.name}: its dependencies come to more than {MAX_PARTS} images")
    # The same contribution further up covers this one entirely.
    identities = [(part.record.id, part.whitelists) for part in found]
    last = {identity: at for at, identity in enumerate(identities)}
    return [part for at, part in enumerate(found) if last[identities[at]] == at]


def _parts(
    store: Store, record: ImageRecord, above: tuple[ImageRecord, ...], whitelists: tuple[Whitelist, ...]
) -> Iterator[Part]:
    above = (*above, record)
    if record.manifest.path_whitelist:
        whitelists = (*whitelists, _whitelist(record.manifest.path_whitelist))
    for dependency in record.manifest.dependencies:
        found = dependency_of(store, record, dependency)
        if any(found.id == one.id for one in above):
            circle = " → ".join(one.manifest.name for one in (*above, found))
            raise ImageError(f"{above[0].manifest.name}: its dependencies go in a circle: {circle}")
        yield from _parts(store, found, above, whitelists)
    yield Part(record, whitelists)


def dependency_of(store: Store, record: ImageRecord, dependency: Dependency) -> ImageRecord:
    """The stored image that `dependency` of `record` means. Raises ImageError."""
    labels = dict(dependency.labels)
    missing = f'{record.manifest.name}: its dependency "{dependency.image_name}" is not in the store'
    if not dependency.image_id:
        found = store.find(dependency.image_name, labels)
        if found is None:
            raise ImageError(missing, hint="fetch it first")
        return found
    try:
        found = store.find_by_id(dependency.image_id)
    except StoreError as error:
        raise ImageError(f"{missing}: {error.message}", hint="fetch it first") from error
    has = dict(found.manifest.labels)
    if found.manifest.name != dependency.image_name or any(has.get(name) != value for name, value in labels.items()):
        raise ImageError(
            f"{record.manifest.name}: its dependency {dependency.image_id[:19]} is {quote(found.manifest.name)},"
            f" not the {quote(dependency.image_name)} it should be"
        )
    return found


def _whitelist(paths: Sequence[str]) -> Whitelist:
    wanted = {os.fsencode(os.path.normpath(path).strip("/")) for path in paths} - {b"."}
    above = {b"/".join(path.split(b"/")[:depth]) for path in wanted for depth in range(1, path.count(b"/") + 1)}
    return Whitelist(frozenset(wanted), frozenset(above))


# Rendering


def rendered(store: Store, record: ImageRecord) -> str:
    """The rendered root of an image, made if it has not been. Raises ImageError and StoreError."""
    found = parts(store, record)
    path = store.tree_path(_name(found))
    if os.path.isdir(path):
        return path
    layers = [Layer(store.layer_path(name), part.whitelists) for part in found for name in part.record.layers]
    with store.staging() as staged:
        target = f"{staged}/tree"
        files.make_directory(target, 0o755)
        merge(layers, target)
        _publish(target, path)
    return path


def _publish(target: str, path: str) -> None:
    try:
        files.flush_filesystem(target)
        try:
            os.rename(target, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # Somebody else rendered the same.
                raise
        files.flush_directory(os.path.dirname(path))
    except OSError as error:
        raise StoreError(f"cannot store the tree {path}: {reason(error)}") from error


def current(store: Store, record: ImageRecord, existing: Sequence[str]) -> list[str]:
    """The names of the trees of `record` to keep: the one it would be rendered to now, or all there are when its
    dependencies are not all stored."""
    try:
        return [_name(parts(store, record))]
    except RkpyError:
        return [name for name in existing if name.startswith(_prefix(record))]


def _prefix(record: ImageRecord) -> str:
    return f"{record.id[:39]}-"


def _name(found: Sequence[Part]) -> str:
    """Another tree for every other combination: an image whose dependency was replaced must not show the old one."""
    identity = [[part.record.id, [sorted(map(os.fsdecode, one.paths)) for one in part.whitelists]] for part in found]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return _prefix(found[-1].record) + digest[:32]


# Stacking


def merge_layers(layers: Sequence[str], target: str) -> None:
    """Copy what an overlay of `layers` (directories, lowest first) shows into the empty directory `target`: metadata,
    extended attributes, hard links and holes included. Shares the data where the file system can. Raises StoreError;
    `target` then holds a part."""
    merge([Layer(path) for path in layers], target)


def merge(layers: Sequence[Layer], target: str) -> None:
    """As `merge_layers`, with whitelists."""
    try:
        with _Merge(layers, target) as merging:
            merging.run()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, `rkpy image gc` may help" if full else ""
        about = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise StoreError(f"cannot put files together in {target}: {reason(error)}{about}", hint=hint) from error


class _Leaf(NamedTuple):
    layer: int
    status: os.stat_result


class _Directory:
    """A directory of the result. `layers` (topmost first) contribute; the first lends its metadata."""

    __slots__ = ("layers", "open", "path", "status")

    def __init__(self, path: bytes, layers: list[int], status: os.stat_result, *, open_: bool) -> None:
        self.path = path
        self.layers = layers
        self.status = status
        self.open = open_
        """Whether layers further down may still contribute."""


_Slot = _Leaf | _Directory | None
"""None where a whiteout hides whatever is below."""


class _Merge:
    """One stacking. Few descriptors are open at any time: the layers' roots, and the directories of one path."""

    def __init__(self, layers: Sequence[Layer], target: str) -> None:
        self._layers = layers
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._target = os.open(target, flags)
        self._roots: list[int] = []
        self._links: dict[tuple[int, int], bytes] = {}
        self._clones = True
        try:
            for layer in layers:
                self._roots.append(os.open(layer.path, flags))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> _Merge:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._roots, self._target):
            os.close(fd)

    def run(self) -> None:
        order = list(range(len(self._roots) - 1, -1, -1))
        top = self._open(self._roots[order[0]], b"")
        try:
            root = _Directory(b"", order, os.fstat(top), open_=True)
        finally:
            os.close(top)
        waiting, done = [root], []
        while waiting:
            directory = waiting.pop()
            done.append(directory)
            waiting.extend(self._fill(directory))
        # Last, for whatever is created in a directory changes its mtime; children first does not matter to anything.
        for directory in done:
            self._finish(directory)

    def _open(self, root: int, path: bytes) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
        return openat2(root, path or b".", flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def _fill(self, directory: _Directory) -> list[_Directory]:
        """Create what is in `directory`; its subdirectories, which are still empty."""
        sources = {layer: self._open(self._roots[layer], directory.path) for layer in directory.layers}
        target = self._open(self._target, directory.path)
        try:
            slots: dict[bytes, _Slot] = {}
            for layer, fd in sources.items():
                self._look(layer, fd, directory.path, slots)
            subdirectories = []
            for name, slot in slots.items():
                if isinstance(slot, _Directory):
                    os.mkdir(name, 0o700, dir_fd=target)
                    subdirectories.append(slot)
                elif slot is not None:
                    self._copy(slot, sources[slot.layer], target, name, directory.path)
            return subdirectories
        finally:
            for fd in (*sources.values(), target):
                os.close(fd)

    def _look(self, layer: int, fd: int, path: bytes, slots: dict[bytes, _Slot]) -> None:
        """Add what `layer`, being below those looked at before, has in the directory `path`."""
        whitelists = self._layers[layer].whitelists
        for entry in os.listdir(fd):
            name = os.fsencode(entry)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            inside = path + b"/" + name if path else name
            hides = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            if not hides and not all(one.allows(inside, is_directory=is_directory) for one in whitelists):
                continue
            slot = slots.get(name)
            if name not in slots:
                if is_directory:
                    slots[name] = _Directory(inside, [layer], status, open_=not _is_opaque(fd, name))
                else:
                    slots[name] = None if hides else _Leaf(layer, status)
            elif isinstance(slot, _Directory) and slot.open:
                if is_directory:
                    slot.layers.append(layer)
                slot.open = is_directory and not _is_opaque(fd, name)

    def _copy(self, leaf: _Leaf, source: int, target: int, name: bytes, path: bytes) -> None:
        status = leaf.status
        key = (leaf.layer, status.st_ino)
        if status.st_nlink > 1:
            if known := self._links.get(key):
                os.link(known, name, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
                return
            self._links[key] = path + b"/" + name if path else name
        if stat.S_ISREG(status.st_mode):
            self._copy_file(status, source, target, name)
        else:
            _copy_special(status, source, target, name)

    def _copy_file(self, status: os.stat_result, source: int, target: int, name: bytes) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            _Descriptor(os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source)) as old,
            _Descriptor(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)) as new,
        ):
            if status.st_size and not self._clone(old, new):
                _copy_data(old, new, status)
            _describe(old, new, status)

    def _clone(self, old: int, new: int) -> bool:
        if not self._clones:
            return False
        try:
            fcntl.ioctl(new, _FICLONE, old)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._clones = False
        return self._clones

    def _finish(self, directory: _Directory) -> None:
        with (
            _Descriptor(self._open(self._roots[directory.layers[0]], directory.path)) as old,
            _Descriptor(self._open(self._target, directory.path)) as new,
        ):
            _describe(old, new, directory.status)


class _Descriptor:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _is_opaque(fd: int, name: bytes) -> bool:
    try:
        return os.getxattr(b"/proc/self/fd/%d/%s" % (fd, name), overlay.opaque(), follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _copy_data(old: int, new: int, status: os.stat_result) -> None:
    """The contents, holes left as holes."""
    os.ftruncate(new, status.st_size)
    at = 0
    while at < status.st_size:
        try:
            start = os.lseek(old, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # Nothing but a hole up to the end.
            raise
        at = os.lseek(old, start, os.SEEK_HOLE)
        _copy_range(old, new, start, at)


def _copy_range(old: int, new: int, start: int, end: int) -> None:
    while start < end:
        wanted = min(_COPY, end - start)
        try:
            count = os.copy_file_range(old, new, wanted, offset_src=start, offset_dst=start)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            os.lseek(new, start, os.SEEK_SET)
            count = os.sendfile(new, old, start, wanted)
        if count == 0:
            raise OSError(errno.EIO, "a file of a layer shrinks while it is copied")
        start += count


def _describe(old: int, new: int, status: os.stat_result) -> None:
    """Owner, mode, attributes, times, in the order in which none undoes the one before (chown(2), "NOTES")."""
    os.fchown(new, status.st_uid, status.st_gid)
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(old):
        if not name.startswith(overlay.prefix()):
            os.setxattr(new, name, os.getxattr(old, name))
    os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _copy_special(status: os.stat_result, source: int, target: int, name: bytes) -> None:
    """Symlinks, devices and pipes: what must not be opened."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=target)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
    old, new = b"/proc/self/fd/%d/%s" % (source, name), b"/proc/self/fd/%d/%s" % (target, name)
    for attribute in os.listxattr(old, follow_symlinks=False):
        if not attribute.startswith(overlay.prefix()):
            os.setxattr(new, attribute, os.getxattr(old, attribute, follow_symlinks=False), follow_symlinks=False)
    os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


__all__ = ["TREE", "Layer", "Part", "current", "merge", "merge_layers", "parts", "rendered"]
