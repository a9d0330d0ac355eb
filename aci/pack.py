"""Writes a tree as an App Container Image: a tar of `manifest` and `rootfs/` in the pax format (pax(1), POSIX.1-2017).

The tree may belong to an enemy: it is walked by descriptor and no symlink in it is followed.
"""

from __future__ import annotations

import os
import stat
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from aci import image_manifest
from aci.image_manifest import ImageManifest
from aci.unpack import xattr_allowed
from common.errors import ImageError
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

OwnerMap = Callable[[int], int]
"""From a user or group ID on disk to the one in the archive."""


class Writable(Protocol):
    def write(self, data: bytes, /) -> Any: ...


_COPY = 1 << 20
_BLOCK = 512
_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777
_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_LINK = b"1"
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_NAMED = (0x02, 0x08)
"""ACL_USER and ACL_GROUP, the entries with an ID (linux/posix_acl.h)."""
_CAPABILITY = "security.capability"
_CAPABILITY_2, _CAPABILITY_3 = 0x02000000, 0x03000000


def write(manifest: ImageManifest, root: str, out: Writable, owner: OwnerMap = lambda number: number) -> list[str]:
    """Write the image of `manifest` and the tree at `root` to `out`, uncompressed; a sentence for each thing that no
    archive can hold. Raises OSError, and ImageError when the tree changes meanwhile."""
    data = image_manifest.dumps(manifest, pretty=False).encode()
    out.write(_header(b"manifest", b"0", mode=0o644, size=len(data)))
    _write_padded(out, data)
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _Writer(fd, out, owner).run()
    finally:
        os.close(fd)


class _Writer:
    def __init__(self, root: int, out: Writable, owner: OwnerMap) -> None:
        self._root = root
        self._out = out
        self._owner = owner
        self._links: dict[tuple[int, int], bytes] = {}
        self._left_out: list[str] = []

    def run(self) -> list[str]:
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            fd = self._open(path)
            try:
                self._entry(path, os.fstat(fd), b"/proc/self/fd/%d" % fd)
                waiting.extend(self._children(fd, path))
            finally:
                os.close(fd)
        self._out.write(bytes(2 * _BLOCK))
        return self._left_out

    def _open(self, path: bytes) -> int:
        """A directory of the tree; by path, so that its depth costs no descriptors."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
        return openat2(self._root, path or b".", flags, resolve=resolve)

    def _children(self, fd: int, path: bytes) -> Iterator[bytes]:
        """Write what is in a directory, but its subdirectories; their paths."""
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            inside = path + b"/" + name if path else name
            if stat.S_ISDIR(status.st_mode):
                yield inside
            elif stat.S_ISREG(status.st_mode):
                self._file(fd, name, inside)
            else:
                self._special(fd, name, inside, status)

    def _file(self, directory: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f'"{os.fsdecode(path)}" changes while it is read')
            if not self._is_link(path, status):
                self._entry(path, status, b"/proc/self/fd/%d" % fd, size=status.st_size)
                self._contents(fd, status.st_size, path)
        finally:
            os.close(fd)

    def _contents(self, fd: int, size: int, path: bytes) -> None:
        left = size
        while left:
            chunk = os.read(fd, min(_COPY, left))
            if not chunk:
                raise ImageError(f'"{os.fsdecode(path)}" shrinks while it is read')
            self._out.write(chunk)
            left -= len(chunk)
        self._out.write(bytes(-size % _BLOCK))

    def _special(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISSOCK(status.st_mode):
            self._left_out.append(f'the socket "{os.fsdecode(path)}" is left out')
        elif not self._is_link(path, status):
            target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
            self._entry(path, status, b"/proc/self/fd/%d/%s" % (directory, name), link=target, follow=False)

    def _is_link(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the entry was written as another name of one before."""
        if status.st_nlink < 2:
            return False
        known = self._links.setdefault((status.st_dev, status.st_ino), path)
        if known is path:
            return False
        self._out.write(_header(b"rootfs/" + path, _LINK, mode=stat.S_IMODE(status.st_mode), link=b"rootfs/" + known))
        return True

    def _entry(
        self,
        path: bytes,
        status: os.stat_result,
        where: bytes,
        *,
        size: int = 0,
        link: bytes = b"",
        follow: bool = True,
    ) -> None:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        name = (b"rootfs/" + path).rstrip(b"/") + (b"/" if kind == b"5" else b"")
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in b"34" else (0, 0)
        header = _header(
            name,
            kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=self._owner(status.st_uid),
            gid=self._owner(status.st_gid),
            size=size,
            mtime=status.st_mtime_ns,
            link=link,
            device=device,
            xattrs=self._xattrs(where, follow=follow),
        )
        self._out.write(header)

    def _xattrs(self, where: bytes, *, follow: bool) -> list[tuple[str, bytes]]:
        names = sorted(filter(xattr_allowed, os.listxattr(where, follow_symlinks=follow)))
        found = [(name, os.getxattr(where, name, follow_symlinks=follow)) for name in names]
        return [(name, _mapped(name, value, self._owner)) for name, value in found]


def _mapped(name: str, value: bytes, owner: OwnerMap) -> bytes:
    """An attribute with the IDs inside it mapped."""
    if name in _ACLS:
        return _mapped_acl(value, owner)
    if name == _CAPABILITY:
        return _mapped_capability(value, owner)
    return value


def _mapped_acl(value: bytes, owner: OwnerMap) -> bytes:
    """A version, then entries of tag, permissions and ID (linux/posix_acl_xattr.h)."""
    result = bytearray(value)
    for at in range(4, len(value) - 7, 8):
        if int.from_bytes(value[at : at + 2], "little") in _ACL_NAMED:
            mapped = owner(int.from_bytes(value[at + 4 : at + 8], "little"))
            result[at + 4 : at + 8] = mapped.to_bytes(4, "little")
    return bytes(result)


def _mapped_capability(value: bytes, owner: OwnerMap) -> bytes:
    """Version 3 names the root user of the name space it counts in; for the image's own root that is version 2
    (capabilities(7), "File capability extended attribute versioning")."""
    magic = int.from_bytes(value[:4], "little")
    if magic & 0xFF000000 != _CAPABILITY_3 or len(value) != 24:
        return value
    root = owner(int.from_bytes(value[20:], "little"))
    if root:
        return value[:20] + root.to_bytes(4, "little")
    return (magic & 0x00FFFFFF | _CAPABILITY_2).to_bytes(4, "little") + value[4:20]


# The format


def _write_padded(out: Writable, data: bytes) -> None:
    out.write(data + bytes(-len(data) % _BLOCK))


def _header(
    name: bytes,
    kind: bytes,
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: list[tuple[str, bytes]] | tuple[()] = (),
) -> bytes:
    """The header of one entry, led by an extended one when its fields cannot hold everything. `mtime`: nanoseconds."""
    seconds, fraction = divmod(abs(mtime), 1_000_000_000)
    sign = b"-" if mtime < 0 else b""
    records = [_xattr_record(*pair) for pair in xattrs]
    too_long = ((b"path", name, len(name) > 100), (b"linkpath", link, len(link) > 100))
    records += [_record(key, value) for key, value, wanted in too_long if wanted]
    too_big = ((b"uid", uid, _OCTAL_7), (b"gid", gid, _OCTAL_7), (b"size", size, _OCTAL_11))
    records += [_record(key, b"%d" % value) for key, value, limit in too_big if value > limit]
    if fraction or sign or seconds > _OCTAL_11:
        records.append(_record(b"mtime", b"%s%d.%09d" % (sign, seconds, fraction)))
    plain = _ustar(
        name[:100],
        kind,
        mode,
        uid & _OCTAL_7,
        gid & _OCTAL_7,
        size & _OCTAL_11,
        seconds & _OCTAL_11,
        link[:100],
        device,
    )
    if not records:
        return plain
    data = b"".join(records)
    leader = _ustar(b"PaxHeaders/entry", b"x", 0o644, 0, 0, len(data), 0, b"", (0, 0))
    return leader + data + bytes(-len(data) % _BLOCK) + plain


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _xattr_record(name: str, value: bytes) -> bytes:
    raw = os.fsencode(name)
    if b"=" not in raw:
        return _record(b"SCHILY.xattr." + raw, value)
    from urllib.parse import quote_from_bytes

    quoted = quote_from_bytes(raw, safe="").encode()
    return _record(b"LIBARCHIVE.xattr." + quoted, b2a_base64(value, newline=False).rstrip(b"="))


def _ustar(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    """One block (POSIX.1-2017, pax, "ustar Interchange Format")."""
    fields = (
        name.ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, b"%011o\0" % size,
        b"%011o\0" % mtime, b" " * 8, kind, link.ljust(100, b"\0"), b"ustar\x0000", bytes(64),
        b"%07o\0" % (device[0] & _OCTAL_7), b"%07o\0" % (device[1] & _OCTAL_7), bytes(155 + 12),
    )  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
