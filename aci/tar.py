"""A streaming reader of tar archives, written for archives nobody vouches for.

Understands POSIX ustar and pax (IEEE 1003.1-2017, pax, "pax Interchange Format"), GNU tar's own headers (long names,
base-256 numbers, sparse files; GNU tar manual, "Tar Internals"), all three pax sparse formats, and extended attributes
as GNU tar and star (`SCHILY.xattr.`) or libarchive (`LIBARCHIVE.xattr.`) write them. What is malformed, ambiguous in a
way that matters, or beyond the limits is an ImageError that names the entry. Names are bytes, exactly as archived.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NoReturn, Protocol

from common.errors import ImageError
from common.records import NamedTuple

BLOCK = 512
READ_SIZE = 1 << 20
NAME_LIMIT = 4096
"""PATH_MAX: no longer path could ever be handed to the kernel."""
EXTENDED_LIMIT = 1 << 20
"""Bytes of one pax header or GNU long name. Go's archive/tar draws the same line."""
GLOBALS_LIMIT = 256
"""Records of global pax headers: they are held, and looked through for every entry."""
SEGMENT_LIMIT = 1 << 17
"""Segments of data in one sparse file."""

FILE, DIRECTORY, SYMLINK, HARDLINK = "file", "directory", "symlink", "hard link"
CHARACTER, BLOCK_DEVICE, FIFO = "character device", "block device", "fifo"

_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE, b"1": HARDLINK, b"2": SYMLINK,
    b"3": CHARACTER, b"4": BLOCK_DEVICE, b"5": DIRECTORY, b"D": DIRECTORY, b"6": FIFO,
}  # fmt: skip
_WITH_DATA = (b"0", b"\0", b"7", b"S", b"D")
"""Types whose size means that content follows. For the others tars in the wild carry a size and nothing behind it."""

Segments = tuple[tuple[int, int], ...]
"""(offset, length) of each stretch of data of a sparse file, in order; all else is holes."""


class Member(NamedTuple):
    """One entry. `size` is that of the file once written, holes included; `mtime` is in nanoseconds."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    major: int
    minor: int
    xattrs: tuple[tuple[str, bytes], ...] = ()
    segments: Segments | None = None
    """None for a file without holes."""


class Readable(Protocol):
    """What a tar is read from; `read1` is preferred where there is one, and so is `skip`, which drops bytes."""

    def read(self, size: int, /) -> bytes: ...


def show(name: bytes) -> str:
    """`name` for a message: nothing in it can drive a terminal or flood a log."""
    text = name[:200].decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{text}…'" if len(name) > 200 else f"'{text}'"


class Reader:
    """Iterates over the members of a tar; between two steps the content of the current one can be read.

    The end of the archive has to be marked, or it counts as truncated. After it, the stream is read to its end so that
    digests taken on the way cover all of it."""

    def __init__(self, stream: Readable, *, max_entries: int = 2_000_000) -> None:
        self._read = getattr(stream, "read1", stream.read)
        self._drop = getattr(stream, "skip", None)
        self._before = 0
        self._max_entries = max_entries
        self._chunk = b""
        self._view = memoryview(b"")
        self._pos = 0
        self._left = 0
        self._padding = 0
        self._name = b""
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        count = 0
        extended = _Extended()
        while (header := self._header()) is not None:
            count += 1
            if count > self._max_entries:
                raise ImageError(f"the archive has more than {self._max_entries} entries")
            if header.type in b"LKxXgV":
                self._take_extended(header, extended)
                continue
            yield self._member(header, extended)
            self._skip(self._left + self._padding)
            extended = _Extended()
        if extended.given:
            raise ImageError("the archive is truncated: its last header announces an entry that is not there")
        while self._read(READ_SIZE):
            pass

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the current member's content, fewer only at its end. Holes are left out."""
        return b"".join(self.pieces(min(size, self._left)))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes of the current member's stored content, in pieces that are valid until the next one."""
        if size > self._left:
            self._fail("its data is shorter than its sparse map says")
        while size:
            if self._pos == len(self._chunk):
                self._fill()
            piece = self._view[self._pos : self._pos + size]
            taken = len(piece)
            self._pos += taken
            self._left -= taken
            size -= taken
            yield piece

    @property
    def offset(self) -> int:
        """Where in the stream the next byte to be read is: after a step, the content of the current member."""
        return self._before + self._pos

    def _fail(self, why: str) -> NoReturn:
        raise ImageError(f"archive entry {show(self._name)}: {why}")

    def _fill(self) -> None:
        self._before += len(self._chunk)
        self._chunk = self._read(READ_SIZE)
        self._view = memoryview(self._chunk)
        self._pos = 0
        if not self._chunk:
            raise ImageError(f"the archive is truncated in or after entry {show(self._name)}")

    def _take(self, size: int) -> bytes:
        end = self._pos + size
        if end <= len(self._chunk):
            data = self._chunk[self._pos : end]
            self._pos = end
            return data
        parts = []
        while size:
            if self._pos == len(self._chunk):
                self._fill()
            part = self._chunk[self._pos : self._pos + size]
            self._pos += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        self._left = self._padding = 0
        buffered = len(self._chunk) - self._pos
        if self._drop is not None and size > buffered:
            self._drop(size - buffered)
            self._before += len(self._chunk) + size - buffered
            self._chunk, self._view, self._pos = b"", memoryview(b""), 0
            return
        while size > len(self._chunk) - self._pos:
            size -= len(self._chunk) - self._pos
            self._fill()
        self._pos += size

    def _header(self) -> _Header | None:
        """The next header, or None at the end of the archive: two blocks of zeros, or one and nothing after it."""
        raw = self._take(BLOCK)
        if raw == _ZEROS:
            rest = self._chunk[self._pos :] or self._read(READ_SIZE)
            if rest and rest[:BLOCK].strip(b"\0"):
                raise ImageError(f"the archive goes on after a single block of zeros behind {show(self._name)}")
            return None
        fields = _HEADER.unpack(raw)
        name = fields[0].partition(b"\0")[0]
        if fields[9] == b"ustar\x0000" and (prefix := fields[14].partition(b"\0")[0]):
            name = prefix + b"/" + name
        self._name = name
        if not _checksum_holds(raw, fields[6]):
            self._fail("the checksum of its header is wrong, the archive is damaged")
        return _Header(name, fields, raw)

    def _take_extended(self, header: _Header, extended: _Extended) -> None:
        """Read a header that says something about the entry after it (or about all after it)."""
        size = self._number(header.fields[4], "size")
        if header.type == b"V":
            self._skip(size + -size % BLOCK)
            return
        if not 0 <= size <= EXTENDED_LIMIT:
            self._fail(f"its extended header is larger than {EXTENDED_LIMIT} bytes")
        data = self._take(size)
        self._skip(-size % BLOCK)
        extended.given = extended.given or header.type != b"g"
        if header.type == b"L":
            extended.name = data.partition(b"\0")[0]
        elif header.type == b"K":
            extended.link = data.partition(b"\0")[0]
        elif header.type == b"g":
            self._globals.update(self._records(data))
            if len(self._globals) > GLOBALS_LIMIT:
                self._fail(f"more than {GLOBALS_LIMIT} records in global headers")
        else:
            extended.records = self._records(data)

    def _records(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The `LENGTH KEY=VALUE\\n` records of a pax header."""
        records = []
        start = 0
        while start < len(data):
            space = data.find(b" ", start, start + 10)
            digits = data[start : max(space, start)]
            end = start + int(digits) if digits.isdigit() else 0
            if not space < end <= len(data) or data[end - 1 : end] != b"\n":
                self._fail("its pax header is malformed")
            key, equals, value = data[space + 1 : end - 1].partition(b"=")
            if not key or not equals:
                self._fail("its pax header has a record without a key")
            records.append((key, value))
            start = end
        return records

    def _member(self, header: _Header, extended: _Extended) -> Member:
        pax = self._globals if not extended.records else {**self._globals, **dict(extended.records)}
        fields = header.fields
        self._name = name = (
            pax.get(b"GNU.sparse.name") or pax.get(b"path") or extended.name or header.name
        )  # fmt: skip
        link = pax.get(b"linkpath") or extended.link or fields[8].partition(b"\0")[0]
        self._check_name(name, "name")
        kind = _KINDS.get(header.type)
        if kind is None:
            self._fail(f"unknown type {show(header.type)}")
        if kind == FILE and name.endswith(b"/"):
            kind = DIRECTORY  # as archives older than POSIX mark them
        if kind in (SYMLINK, HARDLINK):
            self._check_name(link, "link target")
        stored = self._stored_size(header, pax)
        size, segments = stored, None
        if kind == FILE and (header.type == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax)):
            size, segments = self._sparse(header, extended.records, pax)
        device = kind in (CHARACTER, BLOCK_DEVICE)
        return Member(
            name=name,
            kind=kind,
            mode=self._number(fields[1], "mode") & 0o7777,
            uid=self._id(fields[2], pax.get(b"uid"), "uid"),
            gid=self._id(fields[3], pax.get(b"gid"), "gid"),
            size=size if kind == FILE else 0,
            mtime=self._time(fields[5], pax.get(b"mtime")),
            link=link,
            major=self._in_range(self._number(fields[12], "major"), "major", 1 << 12) if device else 0,
            minor=self._in_range(self._number(fields[13], "minor"), "minor", 1 << 20) if device else 0,
            xattrs=self._xattrs(pax) if pax else (),
            segments=segments,
        )

    def _check_name(self, name: bytes, what: str) -> None:
        if not name:
            self._fail(f"its {what} is empty")
        if len(name) > NAME_LIMIT:
            self._fail(f"its {what} is longer than {NAME_LIMIT} bytes")
        if b"\0" in name:
            self._fail(f"its {what} contains a NUL")

    def _stored_size(self, header: _Header, pax: dict[bytes, bytes]) -> int:
        """Bytes that follow the header; also sets the reader up for them."""
        size = 0
        if header.type in _WITH_DATA:
            text = pax.get(b"size")
            size = self._decimal(text, "size") if text else self._number(header.fields[4], "size")
            self._in_range(size, "size", 1 << 63)
        self._left = size
        self._padding = -size % BLOCK
        return size

    def _number(self, field: bytes, what: str) -> int:
        value = _parse_number(field)
        if value is None:
            self._fail(f"its {what} is not a number")
        return value

    def _decimal(self, text: bytes, what: str) -> int:
        if not text.isdigit() or len(text) > 20:
            self._fail(f"its {what} is not a number")
        return int(text)

    def _in_range(self, value: int, what: str, end: int) -> int:
        if not 0 <= value < end:
            self._fail(f"its {what} is out of range")
        return value

    def _id(self, field: bytes, text: bytes | None, what: str) -> int:
        """A user or group id. The highest one means "leave as it is" to chown(2)."""
        value = self._decimal(text, what) if text else self._number(field, what)
        return self._in_range(value, what, (1 << 32) - 1)

    def _time(self, field: bytes, text: bytes | None) -> int:
        if not text:
            seconds, nanoseconds = self._number(field, "mtime"), 0
        else:
            whole, _, fraction = text.removeprefix(b"-").partition(b".")
            seconds = self._decimal(whole, "mtime")
            nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction.isdigit() else 0
            if fraction and not fraction.isdigit():
                self._fail("its mtime is not a number")
            if text.startswith(b"-"):
                seconds, nanoseconds = -seconds, -nanoseconds
        if abs(seconds) >= 1 << 62:
            self._fail("its mtime is out of range")
        return seconds * 1_000_000_000 + nanoseconds

    def _xattrs(self, pax: dict[bytes, bytes]) -> tuple[tuple[str, bytes], ...]:
        found: dict[str, bytes] = {}
        for key, value in pax.items():
            if key.startswith(b"SCHILY.xattr."):
                name = key[13:].replace(b"%3D", b"=").replace(b"%25", b"%")
                found[self._xattr_name(name)] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                self._libarchive_xattr(key[17:], value, found)
            elif key.startswith(b"SCHILY.acl.") and value:
                found[self._xattr_name(key)] = value
        return tuple(found.items())

    def _xattr_name(self, name: bytes) -> str:
        if not name or len(name) > 255 or b"\0" in name:
            self._fail("the name of an extended attribute is empty, too long or contains a NUL")
        return os.fsdecode(name)

    def _libarchive_xattr(self, name: bytes, value: bytes, found: dict[str, bytes]) -> None:
        """libarchive writes each attribute in both forms; its own has the name URL-encoded and the value in base64."""
        import binascii
        from urllib.parse import unquote_to_bytes

        try:
            content = binascii.a2b_base64(value + b"=" * (-len(value) % 4))
        except binascii.Error:
            self._fail("the value of an extended attribute is not base64")
        found.setdefault(self._xattr_name(unquote_to_bytes(name)), content)

    def _sparse(
        self, header: _Header, records: list[tuple[bytes, bytes]], pax: dict[bytes, bytes]
    ) -> tuple[int, Segments | None]:
        """Size and segments of a sparse file in any of the four formats."""
        version = pax.get(b"GNU.sparse.major", b"0"), pax.get(b"GNU.sparse.minor", b"0")
        if header.type == b"S":
            size, numbers = self._old_sparse(header.raw)
        elif version == (b"1", b"0"):
            size = self._decimal(pax.get(b"GNU.sparse.realsize", b""), "sparse size")
            numbers = self._sparse_map_in_data()
        elif version[0] != b"0":
            self._fail("it is sparse in a format that is not known")
        elif b"GNU.sparse.size" not in pax:
            return self._left, None
        else:
            size = self._decimal(pax[b"GNU.sparse.size"], "sparse size")
            texts = [value for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
            if sparse_map := pax.get(b"GNU.sparse.map"):
                texts = sparse_map.split(b",")
            numbers = [self._decimal(text, "sparse map") for text in texts]
        return size, self._segments(numbers, size)

    def _segments(self, numbers: list[int], size: int) -> Segments:
        """Pair up a map and require what every honest one has: order, no overlap, inside the file, all of the data."""
        if len(numbers) % 2 or len(numbers) > 2 * SEGMENT_LIMIT:
            self._fail("its sparse map is incomplete or too long")
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for offset, length in segments:
            if offset < end or length < 0:
                self._fail("its sparse map is out of order")
            end = offset + length
        if not end <= size < 1 << 63:
            self._fail("its sparse map reaches beyond its size")
        if sum(length for _, length in segments) != self._left:
            self._fail("its sparse map does not fit its data")
        return segments

    def _old_sparse(self, raw: bytes) -> tuple[int, list[int]]:
        """GNU's format of type S: four segments in the header, more of them in the blocks behind it."""
        size = self._number(raw[483:495], "sparse size")
        numbers = self._sparse_fields(raw[386:482])
        more = raw[482]
        while more:
            block = self._take(BLOCK)
            numbers += self._sparse_fields(block[:504])
            more = block[504]
            if len(numbers) > 2 * SEGMENT_LIMIT:
                self._fail("its sparse map is too long")
        return size, numbers

    def _sparse_fields(self, raw: bytes) -> list[int]:
        fields = [raw[start : start + 12] for start in range(0, len(raw), 12)]
        used = next((index for index in range(0, len(fields), 2) if not fields[index][0]), len(fields))
        return [self._number(field, "sparse map") for field in fields[:used]]

    def _sparse_map_in_data(self) -> list[int]:
        """Format 1.0: the data begins with the count of segments and their numbers, a line each, padded to a block."""
        numbers: list[int] = []
        wanted = 1
        rest = b""
        while len(numbers) < wanted:
            if self._left < BLOCK:
                self._fail("its sparse map is incomplete")
            self._left -= BLOCK
            *lines, rest = (rest + self._take(BLOCK)).split(b"\n")
            numbers += [self._decimal(line, "sparse map") for line in lines]
            if len(rest) > BLOCK:
                self._fail("its sparse map is malformed")
            if wanted == 1 and numbers:
                wanted = 1 + 2 * self._in_range(numbers[0], "sparse map", SEGMENT_LIMIT + 1)
        return numbers[1:wanted]


class _Header(NamedTuple):
    name: bytes
    fields: tuple[bytes, ...]
    raw: bytes

    @property
    def type(self) -> bytes:
        return self.fields[7]


class _Extended:
    """What the headers before an entry say about it."""

    __slots__ = ("given", "link", "name", "records")

    def __init__(self) -> None:
        self.given = False
        self.name = b""
        self.link = b""
        self.records: list[tuple[bytes, bytes]] = []


@lru_cache(256)
def _parse_number(field: bytes) -> int | None:
    """A numeric field: octal digits, or base-256 in two's complement when the first bit is set (GNU, star).

    The same few modes, owners and times come again and again, so they are remembered. None if it is no number."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << bits - 1)
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        return None
    return int(text, 8)


def _checksum_holds(raw: bytes, field: bytes) -> bool:
    """Whether the sum over the header, with blanks for the sum's own field, is what the field says. Some old tars
    summed signed bytes."""
    expected = _parse_number(field)
    total = sum(raw) - sum(field) + 8 * 0x20
    if total == expected:
        return True
    high = sum(byte >= 0x80 for byte in raw[:148] + raw[156:])
    return total - 256 * high == expected
