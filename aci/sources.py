"""Where the files of an image come from: an OCI layout directory, or a tar archive that holds the same files.

A source is only ever asked for a file by its name and answers with a span of bytes. What is hostile about names, links
and sizes ends here.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from aci.tar import DIRECTORY, FILE, HARDLINK, SYMLINK, Member, Reader, show
from aci.unpack import clean_path
from common.errors import ImageError, reason
from common.records import NamedTuple
from common.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

MAX_ENTRIES = 100_000
"""Files in an archive of an image; every layer is one or a few."""
MAX_LINKS = 8
_BLOCK = 8 << 10
_COPY = 64 << 20
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What copy_file_range(2) says where it does not apply, as across file systems of different types."""


class Span(NamedTuple):
    """`size` bytes at `offset` of the file open as `fd`, which belongs to the source it came from."""

    fd: int
    offset: int
    size: int

    def read(self, limit: int, what: str) -> bytes:
        """All of it, when it is not larger than `limit`."""
        if self.size > limit:
            raise ImageError(f"{what} is larger than {limit} bytes")
        parts = []
        done = 0
        while done < self.size:
            part = os.pread(self.fd, self.size - done, self.offset + done)
            if not part:
                raise ImageError(f"{what} is truncated")
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def head(self, size: int) -> bytes:
        """The first bytes."""
        return os.pread(self.fd, min(size, self.size), self.offset)

    def copy(self, target: int, what: str) -> None:
        """Append it to the file open as `target`, inside the kernel and where possible without moving bytes. Raises
        OSError for what the file system does, ImageError for a source that is too short."""
        done = 0
        while done < self.size:
            wanted = min(_COPY, self.size - done)
            try:
                count = os.copy_file_range(self.fd, target, wanted, offset_src=self.offset + done)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
                count = os.sendfile(target, self.fd, self.offset + done, wanted)
            if count == 0:
                raise ImageError(f"{what} is truncated")
            done += count


class Source(Protocol):
    """The files of one or more images."""

    name: str
    """For messages."""

    def has(self, path: str) -> bool:
        """Whether there is a file at `path`."""
        ...

    def span(self, path: str) -> Span:
        """The file at `path`; ImageError when there is none that can be taken as one. Good until the source closes."""
        ...

    def close(self) -> None: ...


class Directory:
    """An OCI image layout directory (image-spec, image-layout.md). No symlink in it is followed: a layout is data that
    somebody else put together, and a link in it could name any file of this host."""

    def __init__(self, path: str) -> None:
        self.name = path
        try:
            self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"open {path}: {reason(error)}") from error
        self._open: dict[str, int] = {}

    def has(self, path: str) -> bool:
        try:
            self.span(path)
        except ImageError:
            return False
        return True

    def span(self, path: str) -> Span:
        fd = self._open.get(path)
        if fd is None:
            fd = self._open[path] = self._open_file(path)
        return Span(fd, 0, os.fstat(fd).st_size)

    def open_directory(self, path: str) -> int | None:
        """A descriptor of the directory `path` in it, the caller's to close; None when there is none. ImageError."""
        try:
            return openat2(
                self._root, path, os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ImageError(f"open {self.name}/{path}: {reason(error)}") from error

    def _open_file(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = openat2(self._root, path, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except OSError as error:
            raise ImageError(f"open {self.name}/{path}: {reason(error)}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{self.name}/{path} is not a regular file")
        return fd

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self._root)


class _Entry(NamedTuple):
    kind: str
    offset: int
    size: int
    link: str


class Archive:
    """A tar archive, indexed once; its files are then read where they lie."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._fd = open_file(path)
        try:
            self._entries = dict(self._index())
        except BaseException:
            os.close(self._fd)
            raise

    def _index(self) -> Iterator[tuple[str, _Entry]]:
        seen: set[bytes] = set()
        for path, member, offset in members(self._fd):
            if member.kind == DIRECTORY:
                continue
            if path in seen:
                raise ImageError(f"{self.name}: {show(path)} is in the archive twice")
            seen.add(path)
            if member.segments is not None:
                raise ImageError(f"{self.name}: {show(path)} is stored as a sparse file")
            yield os.fsdecode(path), _Entry(member.kind, offset, member.size, os.fsdecode(member.link))

    def has(self, path: str) -> bool:
        return path in self._entries

    def span(self, path: str) -> Span:
        entry = self._entries.get(path)
        if entry is None:
            raise ImageError(f"{self.name}: there is no {show(os.fsencode(path))} in the archive")
        if entry.kind != FILE:
            raise ImageError(f"{self.name}: {show(os.fsencode(path))} is a {entry.kind}, not a file")
        return Span(self._fd, entry.offset, entry.size)

    def follow(self, path: str) -> str:
        """The name of the file that `path` leads to. `docker save` stores a layer that occurs twice as a link, whose
        target is looked up inside the archive and nowhere else."""
        found = posixpath.normpath(path)
        for _ in range(MAX_LINKS):
            entry = self._entries.get(found)
            if entry is None or entry.kind not in (SYMLINK, HARDLINK):
                return found
            base = posixpath.dirname(found) if entry.kind == SYMLINK else ""
            found = posixpath.normpath(posixpath.join(base, entry.link))
            if found.startswith(("../", "/")):
                raise ImageError(f"{self.name}: {show(os.fsencode(path))} is a link out of the archive")
        raise ImageError(f"{self.name}: {show(os.fsencode(path))} is a link to links without end")

    def close(self) -> None:
        os.close(self._fd)


def open_file(path: str) -> int:
    """A descriptor of the regular file at `path`; ImageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"open {path}: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{path} is not a regular file")
    return fd


@contextmanager
def opened(path: str) -> Iterator[int]:
    """`open_file`, closed at the end."""
    fd = open_file(path)
    try:
        yield fd
    finally:
        os.close(fd)


def members(fd: int) -> Iterator[tuple[bytes, Member, int]]:
    """Name (tidied up), entry and offset of the content for each member of the uncompressed tar open as `fd`."""
    reader = Reader(_File(fd), max_entries=MAX_ENTRIES)
    for member in reader:
        path = b"/".join(clean_path(member.name, member.name))
        if path:
            yield path, member, reader.offset


class _File:
    """A file for the tar reader, which jumps over contents instead of reading them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._at = 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, min(size, _BLOCK), self._at)
        self._at += len(data)
        return data

    def skip(self, size: int) -> None:
        if size > self._size - self._at:
            raise ImageError("the archive is truncated")
        self._at += size
