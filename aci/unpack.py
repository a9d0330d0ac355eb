"""Unpacking an archive into a directory: exact on honest archives, confined to the directory on any other.

How an entry cannot leave the target: names lose leading slashes and may not contain `..`; the directory an entry goes
into is resolved with openat2(2) RESOLVE_IN_ROOT, so that symlinks the archive brought along lead to places inside; the
last component is only ever created, never opened: O_EXCL and mkdir(2), mknod(2), symlink(2), linkat(2) fail on
whatever is already there, which is then removed (without following it) and created anew. Nobody else may write into
the target meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from aci.tar import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, FILE, HARDLINK, SYMLINK, Member, Readable, Reader, show
from common import overlay, users
from common.errors import ImageError, RkpyError, StoreError, reason
from common.records import NamedTuple
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

WHITEOUT = b".wh."
WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"

_OPEN_DIRECTORIES = 128
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STORE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip
_SHOWN = 5
"""Names that a warning lists."""
_IMPLIED = Member(b"", DIRECTORY, 0o755, 0, 0, 0, 0, b"", 0, 0)
"""A directory that no entry describes."""
_DEVICE_TYPE = {CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}


class Limits(NamedTuple):
    """More than any honest image needs, less than what hurts."""

    entries: int = 2_000_000
    size: int = 256 << 30
    """Bytes of all regular files, holes included."""
    depth: int = 256
    """Directories inside each other. Keeps every recursive walk over the result (ours, a removal) shallow."""


class Unpacked(NamedTuple):
    """`size` is the sum of all regular files, in bytes; `warnings` are sentences for the user."""

    entries: int
    size: int
    warnings: tuple[str, ...]


def unpack_layer(
    stream: Readable,
    target: str,
    *,
    whiteouts: bool,
    strip: str = "",
    on_other: Callable[[Member, Reader], None] | None = None,
    unique: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - immutable
) -> Unpacked:
    """Unpack the tar in `stream` into `target`, an existing empty directory, and read `stream` to its end.

    With `strip` only what is below that directory of the archive is unpacked, without it in its name; any other entry
    goes to `on_other` with its name tidied up (`./manifest` is `manifest`), or is refused when there is none. With
    `whiteouts`, OCI's markers (image-spec, layer.md, "Whiteouts") become overlayfs's: a character device 0:0, and
    `common.overlay`'s attribute on a directory. They hide what lower layers have, never what this layer brings. A
    later entry replaces an earlier one of the same name, or with `unique` is refused.

    Raises ImageError for an archive that is malformed, hostile or beyond `limits`, StoreError when the file system
    fails. `target` then holds a part, to be removed."""
    reader = Reader(stream, max_entries=limits.entries)
    with _Tree(target, limits.depth) as tree:
        unpacker = _Unpacker(tree, reader, limits, whiteouts=whiteouts)
        entries = 0
        seen: set[bytes] = set()
        for member in reader:
            path = clean_path(member.name, member.name)
            if unique:
                _check_new(b"/".join(path), seen)
            if strip:
                if path[:1] != [os.fsencode(strip)]:
                    _pass_on(member, path, reader, on_other)
                    continue
                del path[0]
            entries += 1
            unpacker.add(member, path, strip)
        unpacker.finish()
    return Unpacked(entries, unpacker.size, unpacker.warnings())


def _check_new(path: bytes, seen: set[bytes]) -> None:
    if path in seen:
        raise ImageError(f"archive entry {show(path)} is in the archive twice")
    seen.add(path)


def clean_path(name: bytes, entry: bytes) -> list[bytes]:
    """The components of an archived name, none for the root itself. ImageError, about `entry`, for one with `..`."""
    path = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in path:
        raise ImageError(f"archive entry {show(entry)}: '..' is not allowed in {show(name)}")
    return path


def stripped_link(member: Member, strip: str) -> list[bytes]:
    """The components of a hard link's target, below `strip`."""
    path = clean_path(member.link, member.name)
    if strip and path[:1] != [os.fsencode(strip)]:
        raise ImageError(f"archive entry {show(member.name)}: hard link to {show(member.link)} outside of {strip}")
    return path[1:] if strip else path


def xattr_allowed(name: str) -> bool:
    """Whether an archive may set the extended attribute. `trusted.*` and `user.overlay.*` would steer overlayfs, and
    labels of security modules (`security.selinux`) mean nothing outside of the system they were made on."""
    if name.startswith("user."):
        return not name.startswith("user.overlay.")
    return name in ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


def device_allowed(member: Member) -> bool:
    """Whether the kernel lets us make what `member` describes. In a user namespace it makes no device nodes, whoever
    asks, but for the one that stands for a whiteout (mknod(2))."""
    if member.kind not in (CHARACTER, BLOCK_DEVICE):
        return True
    return (member.kind, member.major, member.minor) == (CHARACTER, 0, 0) or not users.confined()


class Mark(NamedTuple):
    """What a whiteout entry says about the directory it is in. Neither hiding nor opaque: aufs's own bookkeeping
    (other names that begin with `.wh..wh.`), which means nothing here."""

    hides: bytes = b""
    opaque: bool = False


def whiteout_mark(path: list[bytes], entry: bytes) -> Mark | None:
    """The mark an entry at `path` stands for; None if it is no whiteout. ImageError for one that makes no sense."""
    for part in path[:-1]:
        if part.startswith(WHITEOUT_META):
            return Mark()
        if part.startswith(WHITEOUT):
            raise ImageError(f"archive entry {show(entry)}: it is inside of a whiteout")
    name = path[-1] if path else b""
    if not name.startswith(WHITEOUT):
        return None
    if name.startswith(WHITEOUT_META):
        return Mark(opaque=name == OPAQUE)
    hides = name.removeprefix(WHITEOUT)
    if hides in (b"", b".", b".."):
        raise ImageError(f"archive entry {show(entry)}: a whiteout of nothing")
    return Mark(hides)


def _pass_on(
    member: Member, path: list[bytes], reader: Reader, on_other: Callable[[Member, Reader], None] | None
) -> None:
    if not path and member.kind == DIRECTORY:
        return  # `./`, as `tar -C dir .` begins
    if on_other is None:
        raise ImageError(f"archive entry {show(member.name)} does not belong here")
    on_other(member._replace(name=b"/".join(path)), reader)


class _Pending:
    """What is done to a directory at the end: anything created in it later would change its mtime, and its default
    ACL or set-group-ID bit would be handed down."""

    __slots__ = ("absent", "hidden", "member", "opaque")

    def __init__(self) -> None:
        self.member: Member | None = None
        self.hidden: set[bytes] = set()
        self.absent: set[bytes] = set()
        """Device nodes that it would have, were we allowed to make them."""
        self.opaque = False


class _Directory(NamedTuple):
    fd: int
    """O_PATH."""
    path: bytes
    """Where it really is, relative to the target, symlinks resolved; empty for the target."""
    pending: _Pending

    def at(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name


class _Tree:
    """The directories of the target: found by archived path, opened once, remembered by where they really are."""

    def __init__(self, target: str, depth: int) -> None:
        self._depth = depth
        self._root = _open_empty(target)
        self._prefix = len(_real_path(self._root).rstrip(b"/")) + 1
        self.pending = {b"": _Pending()}
        self._open: dict[bytes, _Directory] = {}
        self._stale = False

    def __enter__(self) -> _Tree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_directories()
        os.close(self._root)

    def begin_entry(self) -> None:
        """Between two entries no directory is in use: the time to close those that are stale or too many."""
        if self._stale or len(self._open) > _OPEN_DIRECTORIES:
            self._close_directories()

    def directory(self, path: bytes) -> _Directory:
        """The directory at an archived path; what is missing of it is created. Good until the next `begin_entry`."""
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = self._open_directory(path)
        return found

    def _open_directory(self, path: bytes) -> _Directory:
        self._check_depth(path)
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            fd = openat2(self._root, path or b".", flags)
        except FileNotFoundError:
            above, _, name = path.rpartition(b"/")
            try:
                self.make_directory(self.directory(above), name)
            except FileExistsError:
                raise ImageError(f"the archive puts files below {show(path)}, a symlink to nowhere") from None
            fd = openat2(self._root, path, flags)
        try:
            real = _real_path(fd)[self._prefix :]
            self._check_depth(real)
            return _Directory(fd, real, self.pending[real])
        except BaseException:
            os.close(fd)
            raise

    def _check_depth(self, path: bytes) -> None:
        """A path through symlinks can lead deeper than its own length says, so both are looked at."""
        if path.count(b"/") >= self._depth - 1:
            raise ImageError(f"the archive nests directories more than {self._depth} deep at {show(path)}")

    def make_directory(self, parent: _Directory, name: bytes) -> _Pending:
        """Create a directory, or find it there, and say what is pending for it."""
        if name in parent.pending.absent:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                return self.pending[parent.at(name)]
            raise
        pending = self.pending[parent.at(name)] = _Pending()
        return pending

    def remove(self, parent: _Directory, name: bytes) -> None:
        """Remove whatever is at `name`, all of it, and forget what was to be done to it."""
        mode = os.lstat(name, dir_fd=parent.fd).st_mode
        if stat.S_ISDIR(mode):
            self._remove_tree(parent.fd, name, parent.at(name))
            self._stale = True
        else:
            os.unlink(name, dir_fd=parent.fd)
            self._stale = self._stale or stat.S_ISLNK(mode)

    def reopen(self, path: bytes) -> int:
        """A readable descriptor of the directory that really is at `path`."""
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        return openat2(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY, resolve=resolve)

    def _remove_tree(self, parent: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            with os.scandir(fd) as entries:
                inside = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
            for child, is_directory in inside:
                if is_directory:
                    self._remove_tree(fd, child, path + b"/" + child)
                else:
                    os.unlink(child, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
        del self.pending[path]

    def _close_directories(self) -> None:
        for directory in self._open.values():
            os.close(directory.fd)
        self._open.clear()
        self._stale = False


def _unmapped(member: Member) -> str:
    """The owners that do not exist in our user namespace."""
    return " and ".join(
        f"{what} {number}"
        for kind, what, number in (("uid", "user", member.uid), ("gid", "group", member.gid))
        if not any(one.inside <= number < one.inside + one.size for one in users.ranges(kind))
    )


def _open_empty(target: str) -> int:
    try:
        if os.listdir(target):
            raise StoreError(f"{target}: not an empty directory, nothing is unpacked into it")
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{target}: cannot unpack into it: {reason(error)}") from error


def _real_path(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)


class _Unpacker:
    """Turns members into files, and keeps the accounts."""

    def __init__(self, tree: _Tree, reader: Reader, limits: Limits, *, whiteouts: bool) -> None:
        self._tree = tree
        self._reader = reader
        self._limits = limits
        self._whiteouts = whiteouts
        self._dropped: dict[str, int] = {}
        self._meaningless = 0
        self._left_out: list[bytes] = []
        """The first device nodes that were left out, of `_absent`."""
        self._absent = 0
        self._call = ""
        self.size = 0

    def add(self, member: Member, path: list[bytes], strip: str) -> None:
        """Create what `member` describes at `path`."""
        try:
            self._tree.begin_entry()
            self._add(member, path, strip)
        except OSError as error:
            raise self._failure(error, member) from error

    def finish(self) -> None:
        """Put the whiteouts in, then give the directories their metadata."""
        member = _IMPLIED
        try:
            pending = self._tree.pending
            for path, directory in pending.items():
                member = _IMPLIED._replace(name=path or b".")
                if directory.hidden:
                    self._hide(path, directory.hidden)
            for path, directory in pending.items():
                member = directory.member or _IMPLIED._replace(name=path or b".")
                self._finish_directory(path, directory)
        except OSError as error:
            raise self._failure(error, member) from error

    def warnings(self) -> tuple[str, ...]:
        """What was left out, a sentence per reason."""
        found = []
        if self._dropped:
            names = ", ".join(f"{show(os.fsencode(name))} ({count}x)" for name, count in self._dropped.items())
            found.append(
                f"extended attributes that an image may not set or the store cannot keep were dropped: {names}"
            )
        if self._meaningless:
            found.append(f"{self._meaningless} entries of aufs's own bookkeeping (.wh..wh.*) were left out")
        if self._left_out:
            names = ", ".join(map(show, self._left_out))
            more = f" and {self._absent - _SHOWN} more" if self._absent > _SHOWN else ""
            found.append(f"device nodes, which only root of the host can make, were left out: {names}{more}")
        return tuple(found)

    def _failure(self, error: OSError, member: Member) -> RkpyError:
        message = f"cannot unpack archive entry {show(member.name)}: {self._call}: {reason(error)}"
        if error.errno == errno.EINVAL and self._call == "chown" and (ids := _unmapped(member)):
            return ImageError(
                f"archive entry {show(member.name)} belongs to {ids}, which is none of the IDs that you may use",
                hint="have more of them in /etc/subuid and /etc/subgid, see docs/rootless.md",
            )
        if error.errno == errno.ENOTSUP and self._call == "setxattr":
            # What the archive has of them is dropped then; this one is overlayfs's.
            return StoreError(message, hint="layers need a file system with extended attributes, see --dir")
        if error.errno in _STORE_ERRORS:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return StoreError(message, hint="free some space, `rkpy image gc` may help" if full else "")
        return ImageError(message)

    def _add(self, member: Member, path: list[bytes], strip: str) -> None:
        if self._whiteouts and WHITEOUT in member.name:
            mark = whiteout_mark(path, member.name)
            if mark is not None:
                self._mark(mark, path)
                return
        self._call = "open"
        if not path:
            if member.kind != DIRECTORY:
                raise ImageError(f"archive entry {show(member.name)}: the root can only be a directory")
            self._tree.pending[b""].member = member
            return
        source = stripped_link(member, strip) if member.kind == HARDLINK else None
        name = path.pop()
        parent = self._tree.directory(b"/".join(path))
        if not device_allowed(member) or (source is not None and self._is_left_out(source)):
            self._leave_out(member, parent, name)
            return
        parent.pending.absent.discard(name)
        if source is None:
            self._create(member, parent, name)
        else:
            self._link(source, parent, name, member)

    def _is_left_out(self, source: list[bytes]) -> bool:
        """Whether a hard link is to a device node that was left out, and so has to be left out as well."""
        if not self._left_out or not source:
            return False
        return source[-1] in self._tree.directory(b"/".join(source[:-1])).pending.absent

    def _leave_out(self, member: Member, parent: _Directory, name: bytes) -> None:
        """It takes the place of what was there before all the same."""
        self._call = "remove"
        with suppress(FileNotFoundError):
            self._tree.remove(parent, name)
        parent.pending.absent.add(name)
        self._absent += 1
        if self._absent <= _SHOWN:
            self._left_out.append(member.name)

    def _create(self, member: Member, parent: _Directory, name: bytes) -> None:
        """Once more without what is in the way, if something is."""
        create = self._creators[member.kind]
        try:
            create(self, member, parent, name)
        except FileExistsError:
            self._call = "remove"
            self._tree.remove(parent, name)
            create(self, member, parent, name)

    def _file(self, member: Member, parent: _Directory, name: bytes) -> None:
        self.size += member.size
        if self.size > self._limits.size:
            raise ImageError(f"the archive holds more than {self._limits.size} bytes of files at {show(member.name)}")
        self._call = "open"
        fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        try:
            self._call = "write"
            if member.segments is None:
                self._copy(fd, member.size)
            else:
                for offset, length in member.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._copy(fd, length)
                self._call = "truncate"
                os.ftruncate(fd, member.size)
            self._describe(fd, member)
        finally:
            os.close(fd)

    def _copy(self, fd: int, size: int) -> None:
        for piece in self._reader.pieces(size):
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, piece[written:])

    def _describe(self, fd: int, member: Member) -> None:
        """Owner, mode, attributes, mtime: chown(2) clears set-user-ID bits and capabilities, and sets ctime only, so
        it comes first; an ACL may narrow the mode, so it comes after that."""
        self._call = "chown"
        os.fchown(fd, member.uid, member.gid)
        self._call = "chmod"
        os.fchmod(fd, member.mode)
        if member.xattrs:
            self._set_xattrs(fd, member)
        self._call = "utime"
        os.utime(fd, ns=(member.mtime, member.mtime))

    def _set_xattrs(self, where: int | bytes, member: Member) -> None:
        self._call = "setxattr"
        for name, value in member.xattrs:
            if not xattr_allowed(name):
                self._drop(name)
                continue
            try:
                os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
            except OSError as error:
                on_special = error.errno == errno.EPERM and member.kind not in (FILE, DIRECTORY)
                if error.errno != errno.ENOTSUP and not on_special:
                    raise
                self._drop(name)

    def _drop(self, name: str) -> None:
        if name in self._dropped or len(self._dropped) < 8:
            self._dropped[name] = self._dropped.get(name, 0) + 1

    def _directory(self, member: Member, parent: _Directory, name: bytes) -> None:
        self._call = "mkdir"
        self._tree.make_directory(parent, name).member = member

    def _symlink(self, member: Member, parent: _Directory, name: bytes) -> None:
        self._call = "symlink"
        os.symlink(member.link, name, dir_fd=parent.fd)
        self._describe_special(member, parent, name)

    def _device(self, member: Member, parent: _Directory, name: bytes) -> None:
        self._call = "mknod"
        mode = _DEVICE_TYPE[member.kind] | 0o600
        os.mknod(name, mode, os.makedev(member.major, member.minor), dir_fd=parent.fd)
        self._describe_special(member, parent, name)

    def _describe_special(self, member: Member, parent: _Directory, name: bytes) -> None:
        """As `_describe`, for what must not be opened."""
        self._call = "chown"
        os.chown(name, member.uid, member.gid, dir_fd=parent.fd, follow_symlinks=False)
        if member.kind != SYMLINK:
            self._call = "chmod"
            os.chmod(name, member.mode, dir_fd=parent.fd)
        if member.xattrs:
            self._set_xattrs(b"/proc/self/fd/%d/%s" % (parent.fd, name), member)
        self._call = "utime"
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=parent.fd, follow_symlinks=False)

    def _link(self, source: list[bytes], parent: _Directory, name: bytes, member: Member) -> None:
        """A second name for an entry unpacked before, be it a symlink; all metadata is already there."""
        self._call = "link"
        origin = self._tree.directory(b"/".join(source[:-1]))
        self._check_link(source, origin, member)
        here = {"src_dir_fd": origin.fd, "dst_dir_fd": parent.fd}
        try:
            os.link(source[-1], name, **here, follow_symlinks=False)
        except FileExistsError:
            if origin.at(source[-1]) != parent.at(name):
                self._tree.remove(parent, name)
                os.link(source[-1], name, **here, follow_symlinks=False)

    def _check_link(self, source: list[bytes], origin: _Directory, member: Member) -> None:
        why = "which is not in the archive"
        if source:
            try:
                if not stat.S_ISDIR(os.lstat(source[-1], dir_fd=origin.fd).st_mode):
                    return
                why = "which is a directory"
            except FileNotFoundError:
                pass
        raise ImageError(f"archive entry {show(member.name)}: hard link to {show(member.link)}, {why}")

    def _mark(self, mark: Mark, path: list[bytes]) -> None:
        if mark == Mark():
            self._meaningless += 1
            return
        self._call = "open"
        pending = self._tree.directory(b"/".join(path[:-1])).pending
        pending.opaque = pending.opaque or mark.opaque
        if mark.hides:
            pending.hidden.add(mark.hides)

    def _hide(self, path: bytes, names: set[bytes]) -> None:
        """Whiteouts for what this layer does not have itself. One for a directory it does have hides the contents the
        lower layers have there."""
        fd = self._tree.reopen(path)
        self._call = "mknod"
        try:
            for name in sorted(names):
                try:
                    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)
                except FileExistsError:
                    own = self._tree.pending.get(path + b"/" + name if path else name)
                    if own is not None:
                        own.opaque = True
        finally:
            os.close(fd)

    def _finish_directory(self, path: bytes, pending: _Pending) -> None:
        member = pending.member
        if not path and member is None and not pending.opaque:
            return
        self._call = "open"
        fd = self._tree.reopen(path)
        try:
            if pending.opaque:
                self._call = "setxattr"
                os.setxattr(fd, overlay.opaque(), b"y")
            if member is not None:
                self._describe(fd, member)
            elif path:
                self._call = "chmod"
                os.fchmod(fd, 0o755)
        finally:
            os.close(fd)

    _creators: dict[str, Callable[[_Unpacker, Member, _Directory, bytes], None]] = {  # noqa: RUF012
        FILE: _file, DIRECTORY: _directory, SYMLINK: _symlink,
        CHARACTER: _device, BLOCK_DEVICE: _device, FIFO: _device,
    }  # fmt: skip
