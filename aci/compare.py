"""Whether a directory still is what was unpacked from an archive (`rkpy image verify`).

The archive is replayed into a model of the tree it makes, with digests in place of contents, and the model is compared
with the directory. The model follows links and replaces entries on its own account, so that the comparison does not
rest on the code that did the unpacking.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from aci.tar import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, FILE, HARDLINK, SYMLINK, Member, Readable, Reader, show
from aci.unpack import (
    WHITEOUT,
    Limits,
    Mark,
    clean_path,
    device_allowed,
    stripped_link,
    whiteout_mark,
    xattr_allowed,
)  # fmt: skip
from common import overlay
from common.errors import ImageError, StoreError, reason
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_MAX_SYMLINKS = 40
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_MINIMAL_ACL = 28
"""Size of an ACL that says no more than the mode does; the kernel keeps none."""
_TYPES = {
    FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, CHARACTER: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO,
}  # fmt: skip
_WHITEOUT = Member(b"", CHARACTER, 0, 0, 0, 0, 0, b"", 0, 0)


def compare_layer(
    stream: Readable,
    target: str,
    *,
    whiteouts: bool,
    strip: str = "",
    on_other: Callable[[Member, Reader], None] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
) -> list[str]:
    """The differences between what `unpack_layer` with the same arguments makes of `stream` and what is in `target`,
    a sentence each and none if they are the same; `stream` is read to its end. Entries outside of `strip` are ignored
    unless `on_other` takes them. Times of directories that the archive does not mention are not looked at.

    Raises ImageError as `unpack_layer` does, StoreError when `target` cannot be read."""
    model = _Model(whiteouts=whiteouts)
    reader = Reader(stream, max_entries=limits.entries)
    for member in reader:
        path = clean_path(member.name, member.name)
        if strip:
            if path[:1] != [os.fsencode(strip)]:
                if on_other is not None and path:
                    on_other(member._replace(name=b"/".join(path)), reader)
                continue
            del path[0]
        model.add(member, path, strip, reader)
    model.place_whiteouts(model.root)
    try:
        return list(_Comparison(target).differences(model.root))
    except OSError as error:
        raise StoreError(f"cannot compare {error.filename or target} with its archive: {reason(error)}") from error


class _Node:
    """A file of the model; hard links to it are the same object. `member` is None for a directory only implied."""

    __slots__ = ("children", "digest", "hidden", "linked", "member", "opaque")

    def __init__(self, member: Member | None) -> None:
        self.member = member
        self.children: dict[bytes, _Node] = {}
        self.digest = b""
        self.linked = False
        self.hidden: set[bytes] = set()
        self.opaque = False

    @property
    def kind(self) -> str:
        return self.member.kind if self.member else DIRECTORY


class _Model:
    def __init__(self, *, whiteouts: bool) -> None:
        self.root = _Node(None)
        self._whiteouts = whiteouts

    def add(self, member: Member, path: list[bytes], strip: str, reader: Reader) -> None:
        """Replay one entry as the unpacker treats it."""
        if self._whiteouts and WHITEOUT in member.name:
            mark = whiteout_mark(path, member.name)
            if mark is not None:
                self._mark(mark, path, member)
                return
        if not path:
            self.root.member = member
            return
        siblings = self._directory(path[:-1], member).children
        before = siblings.get(path[-1])
        if member.kind == HARDLINK:
            siblings[path[-1]] = self._linked(stripped_link(member, strip), member)
        elif member.kind == DIRECTORY and before is not None and before.kind == DIRECTORY:
            before.member = member
        else:
            node = siblings[path[-1]] = _Node(member)
            if member.kind == FILE:
                node.digest = _archived_digest(reader, member)

    def place_whiteouts(self, node: _Node) -> None:
        """Turn the marks into what the unpacker leaves on disk, once everything else is there."""
        todo = [node]
        while todo:
            directory = todo.pop()
            for name in [name for name, child in directory.children.items() if not _can_be_there(child)]:
                del directory.children[name]
            for name in directory.hidden:
                there = directory.children.setdefault(name, _Node(_WHITEOUT))
                there.opaque = there.opaque or there.kind == DIRECTORY
            todo += [child for child in directory.children.values() if child.kind == DIRECTORY]

    def _mark(self, mark: Mark, path: list[bytes], member: Member) -> None:
        if mark == Mark():
            return
        directory = self._directory(path[:-1], member)
        directory.opaque = directory.opaque or mark.opaque
        if mark.hides:
            directory.hidden.add(mark.hides)

    def _linked(self, path: list[bytes], member: Member) -> _Node:
        node = self._directory(path[:-1], member).children.get(path[-1]) if path else None
        if node is None or node.kind == DIRECTORY:
            raise ImageError(f"archive entry {show(member.name)}: hard link to {show(member.link)}, which is no file")
        node.linked = True
        return node

    def _directory(self, path: list[bytes], member: Member) -> _Node:
        """The directory at `path`, symlinks on the way followed inside of the root."""
        trail = [self.root]
        todo = path[::-1]
        symlinks = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                trail = trail[:-1] or [self.root]
                continue
            node = trail[-1].children.setdefault(part, _Node(None))
            if node.kind == DIRECTORY:
                trail.append(node)
                continue
            symlinks += 1
            if node.member is None or node.kind != SYMLINK or symlinks > _MAX_SYMLINKS:
                raise ImageError(f"archive entry {show(member.name)}: {show(part)} on its way is not a directory")
            if node.member.link.startswith(b"/"):
                trail = [self.root]
            todo += node.member.link.split(b"/")[::-1]
        return trail[-1]


def _can_be_there(node: _Node) -> bool:
    return node.member is None or device_allowed(node.member)


def _archived_digest(reader: Reader, member: Member) -> bytes:
    """SHA-256 of a file's content, holes as zeros."""
    digest = hashlib.sha256()
    position = 0
    whole = ((0, member.size),)
    for offset, length in whole if member.segments is None else member.segments:
        _zeros(digest, offset - position)
        for piece in reader.pieces(length):
            digest.update(piece)
        position = offset + length
    _zeros(digest, member.size - position)
    return digest.digest()


def _zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        digest.update(_ZEROS[:count])
        count -= _PIECE


def _stored_digest(fd: int) -> bytes:
    digest = hashlib.sha256()
    while data := os.read(fd, _PIECE):
        digest.update(data)
    return digest.digest()


class _Comparison:
    """One walk over the model and the directory side by side."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._inodes: dict[_Node, int] = {}

    def differences(self, root: _Node) -> Iterator[str]:
        fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if root.member is not None:
                yield from self._metadata(fd, b".", b".", root.member, os.fstat(fd))
            yield from self._xattrs(fd, b".", b".", root)
            yield from self._children(fd, b"", root)
        finally:
            os.close(fd)

    def _children(self, fd: int, path: bytes, node: _Node) -> Iterator[str]:
        present = {os.fsencode(name) for name in os.listdir(fd)}
        for name in sorted(present | set(node.children)):
            at = path + b"/" + name if path else name
            if name not in present:
                yield f"{show(at)} is missing"
            elif name not in node.children:
                yield f"{show(at)} is not in the archive"
            else:
                yield from self._entry(fd, name, at, node.children[name])

    def _entry(self, parent: int, name: bytes, path: bytes, node: _Node) -> Iterator[str]:
        status = os.lstat(name, dir_fd=parent)
        if stat.S_IFMT(status.st_mode) != _TYPES[node.kind]:
            yield f"{show(path)} is not a {node.kind} any more"
            return
        if node.member is not None and node.member is not _WHITEOUT:
            yield from self._metadata(parent, name, path, node.member, status)
        yield from self._xattrs(parent, name, path, node)
        if node.kind == DIRECTORY:
            fd = openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
            try:
                yield from self._children(fd, path, node)
            finally:
                os.close(fd)
            return
        if status.st_nlink > 1 and not node.linked:
            yield f"{show(path)} has got other hard links"
        if node.linked and self._inodes.setdefault(node, status.st_ino) != status.st_ino:
            yield f"{show(path)} is not the hard link it was"
        if node.kind == FILE and node.member is not None:
            yield from self._content(parent, name, path, node, status)

    def _metadata(self, parent: int, name: bytes, path: bytes, member: Member, status: os.stat_result) -> Iterator[str]:
        mode = stat.S_IMODE(status.st_mode)
        if member.kind != SYMLINK and mode != member.mode:
            yield f"{show(path)} has mode {mode:04o} instead of {member.mode:04o}"
        if (status.st_uid, status.st_gid) != (member.uid, member.gid):
            yield f"{show(path)} belongs to {status.st_uid}:{status.st_gid} instead of {member.uid}:{member.gid}"
        if status.st_mtime_ns != member.mtime:
            yield f"{show(path)} was modified at {status.st_mtime_ns} instead of {member.mtime} (ns)"
        if member.kind == SYMLINK and (link := os.readlink(name, dir_fd=parent)) != member.link:
            yield f"{show(path)} points to {show(link)} instead of {show(member.link)}"
        if member.kind in (CHARACTER, BLOCK_DEVICE) and status.st_rdev != os.makedev(member.major, member.minor):
            yield f"{show(path)} is another device than {member.major}:{member.minor}"

    def _xattrs(self, parent: int, name: bytes, path: bytes, node: _Node) -> Iterator[str]:
        expected = {key: value for key, value in node.member.xattrs if xattr_allowed(key)} if node.member else {}
        if node.opaque:
            expected[overlay.opaque()] = b"y"
        where = b"/proc/self/fd/%d/%s" % (parent, name)
        present = {
            key: os.getxattr(where, key, follow_symlinks=False)
            for key in os.listxattr(where, follow_symlinks=False)
            if xattr_allowed(key) or key == overlay.opaque()
        }
        for key in sorted(expected.keys() | present.keys()):
            implied = key == "system.posix_acl_access" and len(expected.get(key, b"")) <= _MINIMAL_ACL
            if expected.get(key) != present.get(key) and not (implied and key not in present):
                yield f"{show(path)} has another extended attribute {show(os.fsencode(key))}"

    def _content(self, parent: int, name: bytes, path: bytes, node: _Node, status: os.stat_result) -> Iterator[str]:
        size = node.member.size if node.member else 0
        if status.st_size != size:
            yield f"{show(path)} has {status.st_size} bytes instead of {size}"
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if _stored_digest(fd) != node.digest:
                yield f"{show(path)} has other content"
        finally:
            os.close(fd)
