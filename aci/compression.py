"""Reading an archive that may be compressed: detected by magic, digested on the way, decompressed by a second thread.

Reading, hashing and decompressing are C calls that release the interpreter's lock, so one background thread does them
while the caller unpacks what came out before. The two meet at a queue of a few chunks; memory stays at a few MiB
however large the archive is (plus the window of a zstd or xz stream, 128 MiB at most).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

from common.errors import ImageError, reason
from common.records import NamedTuple

if TYPE_CHECKING:
    from hashlib import _Hash

    from zstandard import ZstdDecompressionObj, ZstdDecompressor

RAW_CHUNK = 128 << 10
"""Bytes read at once. Small, because each gzip member that ends inside a chunk costs a copy of the rest of it."""
CHUNK = 512 << 10
"""The most a decompressor may return at once, and so the largest chunk in the queue."""
QUEUED_CHUNKS = 8
WINDOW_LIMIT = 128 << 20
"""Memory one decompressor may take: what `zstd` itself accepts without --long=31, and twice what `xz -9` needs."""


class Bounds(NamedTuple):
    """Where decompression stops being believable. All but `ratio` in bytes.

    gzip reaches 1030:1 on zeros, and honest images do contain files of zeros: the ratio only counts after `grace`."""

    total: int = 256 << 30
    ratio: int = 500
    grace: int = 1 << 30


class Stream:
    """The decompressed bytes of an archive, and after their end the digests of both sides. Made by `open_stream`.

    Use it as a context manager: leaving it ends the background thread wherever it is. Reading raises ImageError for
    damaged, truncated or absurdly compressed data, for anything after the end, and for a file that cannot be read."""

    def __init__(self, source: _Source, content_digest: str, bounds: Bounds) -> None:
        self._source = source
        self._content = _hasher(content_digest)
        self._same = content_digest == source.digest_name
        self._bounds = bounds
        self._size = 0
        self._queue: deque[bytes | BaseException] = deque()
        self._ready = threading.Semaphore(0)
        self._room = threading.Semaphore(QUEUED_CHUNKS)
        self._closed = False
        self._chunk = b""
        self._start = 0
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._pump, name="decompress", daemon=True)
        self._thread.start()

    def read1(self, size: int) -> bytes:
        """At least one and at most `size` bytes, without waiting for more than one chunk; empty at the end.

        With a size of CHUNK or more nothing is copied."""
        if self._start == len(self._chunk):
            self._chunk = self._next()
            self._start = 0
        start = self._start
        self._start = min(start + size, len(self._chunk))
        return self._chunk[start : self._start]

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self.read1(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drain(self) -> None:
        """Read to the end and drop what comes, so that the digests cover all of the file."""
        while self.read1(CHUNK):
            pass

    @property
    def raw_hexdigest(self) -> str:
        """Of the file as it is; empty if none was asked for. Only after the end was read."""
        self._require_end()
        return self._source.digest.hexdigest() if self._source.digest else ""

    @property
    def content_hexdigest(self) -> str:
        """Of the decompressed bytes; empty if none was asked for. Only after the end was read."""
        self._require_end()
        if self._same and self._source.plain:
            return self.raw_hexdigest
        return self._content.hexdigest() if self._content else ""

    @property
    def raw_size(self) -> int:
        """Bytes of the file as it is. Only after the end was read."""
        self._require_end()
        return self._source.size

    def close(self) -> None:
        """End the background thread. The file stays open: it is the caller's."""
        self._closed = True
        self._room.release()
        self._thread.join()
        self._queue.clear()
        self._chunk = b""
        self._start = 0
        self._end = self._end or ValueError("the stream is closed")

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_end(self) -> None:
        if not isinstance(self._end, EOFError):
            raise ValueError("a digest was asked for before the stream was read to its end")

    def _next(self) -> bytes:
        if self._end is None:
            self._ready.acquire()
            item = self._queue.popleft()
            self._room.release()
            if isinstance(item, bytes):
                return item
            self._end = item
        if isinstance(self._end, EOFError):
            return b""
        raise self._end

    def _pump(self) -> None:
        """The background thread: everything it meets, an error or the end too, goes through the queue in order."""
        end: BaseException = EOFError()
        try:
            for chunk in _decompressed(self._source):
                self._count(chunk)
                if not self._put(chunk):
                    return
        except BaseException as error:
            end = error
        self._put(end)

    def _put(self, item: bytes | BaseException) -> bool:
        self._room.acquire()
        if self._closed:
            return False
        self._queue.append(item)
        self._ready.release()
        return True

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        bounds = self._bounds
        if self._size > bounds.total:
            raise ImageError(f"{self._source.name} decompresses to more than {bounds.total} bytes")
        if self._size > bounds.grace and self._size > bounds.ratio * self._source.size:
            raise ImageError(f"{self._source.name} decompresses to more than {bounds.ratio} times its size")
        if self._content and not (self._same and self._source.plain):
            self._content.update(chunk)


def open_stream(
    file: IO[bytes] | int,
    *,
    raw_digest: str = "",
    content_digest: str = "",
    length: int | None = None,
    name: str = "the archive",
    bounds: Bounds = Bounds(),  # noqa: B008 - immutable
) -> Stream:
    """Start reading `file` (an object with `read`, or a descriptor) from where it stands, at most `length` bytes.

    `raw_digest` and `content_digest` name the hashes (`sha256`, `sha512`) to take of the file's and of the decompressed
    bytes; `name` names the file in errors. Nothing else may read the file until the stream is closed."""
    return Stream(_Source(file, length, raw_digest, name), content_digest, bounds)


class _Source:
    """The file's bytes in chunks, counted and hashed."""

    def __init__(self, file: IO[bytes] | int, length: int | None, digest: str, name: str) -> None:
        self._file = file
        self._left = length
        self.digest = _hasher(digest)
        self.digest_name = digest
        self.plain = False
        self.name = name
        self.size = 0

    def read(self) -> bytes:
        wanted = RAW_CHUNK if self._left is None else min(RAW_CHUNK, self._left)
        try:
            data = os.read(self._file, wanted) if isinstance(self._file, int) else self._file.read(wanted)
        except OSError as error:
            raise ImageError(f"cannot read {self.name}: {reason(error)}") from error
        if self._left is not None:
            self._left -= len(data)
            if wanted and not data:
                raise ImageError(f"{self.name} is truncated: {self._left} more bytes were announced")
        self.size += len(data)
        if self.digest:
            self.digest.update(data)
        return data

    def blocks(self) -> Iterator[bytes]:
        while data := self.read():
            yield data


class _Decompressor(Protocol):
    """One member (gzip), stream (xz, bzip2) or frame (zstd), as `bz2.BZ2Decompressor` does it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Format(NamedTuple):
    name: str
    open: Callable[[], _Decompressor]
    errors: tuple[type[Exception], ...]
    padding: bytes = b""
    """Bytes that may stand between and after members."""


def _detect(head: bytes) -> Callable[[], _Format] | None:
    """The format whose magic `head` shows. A bare tar begins with a name that could look like bzip2's short magic,
    so the magic of its first block (or of an empty stream's end) has to be there as well."""
    if head.startswith(b"\x1f\x8b\x08"):
        return _gzip
    if head.startswith(b"\xfd7zXZ\0"):
        return _xz
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return _zstd
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return _bzip2
    return None


def _gzip() -> _Format:
    from isal import igzip_lib

    def member() -> Any:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    return _Format("gzip", member, (igzip_lib.IsalError, ValueError))  # type: ignore[arg-type]


def _bzip2() -> _Format:
    import bz2

    return _Format("bzip2", bz2.BZ2Decompressor, (OSError, ValueError))


def _xz() -> _Format:
    import lzma

    def stream() -> _Decompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_LIMIT)

    return _Format("xz", stream, (lzma.LZMAError,), b"\0")


def _zstd() -> _Format:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
    return _Format("zstd", lambda: _ZstdFrame(decompressor), (zstandard.ZstdError,))


def _decompressed(source: _Source) -> Iterator[bytes]:
    """The content of `source` in chunks of at most CHUNK bytes."""
    head = source.read()
    while 0 < len(head) < 10 and (more := source.read()):
        head += more
    known = _detect(head)
    if known is None:
        source.plain = True
        yield from _plain(head, source)
        return
    form = known()
    try:
        yield from _members(form, head, source)
    except form.errors as error:
        raise ImageError(f"{source.name} is not valid {form.name} data: {error}") from error


def _plain(head: bytes, source: _Source) -> Iterator[bytes]:
    if head:
        yield head
    yield from source.blocks()


def _members(form: _Format, head: bytes, source: _Source) -> Iterator[bytes]:
    """Every member must be whole, and nothing but members may follow: the next one fails on its magic otherwise."""
    member: _Decompressor | None = None
    data = head
    while data:
        if member is None:
            data = data.lstrip(form.padding) if form.padding else data
            member = form.open() if data else None
        if member is not None:
            while True:
                if chunk := member.decompress(data, CHUNK):
                    yield chunk
                if member.eof or member.needs_input:
                    break
                data = b""
            data = member.unused_data if member.eof else b""
            member = None if member.eof else member
        data = data or source.read()
    if member is not None:
        raise ImageError(f"{source.name} is truncated: the {form.name} data ends too early")


_ZSTD_BLOCK = 128 << 10


class _ZstdFrame:
    """One zstd frame (RFC 8878), decompressed block by block.

    The binding's own objects decompress all they are given at once (a block of 4 bytes can become 128 KiB) or do not
    tell a truncated frame from a whole one. So this walks the block headers and hands over as many whole blocks as may
    come out at once."""

    def __init__(self, decompressor: ZstdDecompressor) -> None:
        self._decompressor = decompressor
        self._frame: ZstdDecompressionObj | None = None
        self._pending = b""
        self._skip = 0
        self._started = False
        self._last = False
        self._checksum = 0
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """As `bz2.BZ2Decompressor.decompress`; `max_length` must leave room for a block."""
        self._pending = pending = self._pending + data if self._pending else data
        if self._skip:
            return self._skip_some()
        start = 0
        if not self._started:
            start = self._start(pending)
            if start == 0:
                return b""
        end = self._whole_blocks(pending, start, max_length)
        if self._last and len(pending) >= end + self._checksum:
            end += self._checksum
            self.eof = True
        self._frame = self._frame or self._decompressor.decompressobj()
        content = self._frame.decompress(pending[:end]) if end else b""
        self._pending = pending[end:]
        if self.eof:
            self.unused_data = self._pending
            if not self._frame.eof:
                raise _zstd_error("the frame goes on after its last block")
        return content

    def _start(self, pending: bytes) -> int:
        """Read the frame header; its size, or 0 while it is not all there."""
        if pending[1:4] == b"\x2a\x4d\x18" and pending[0] & 0xF0 == 0x50:
            if len(pending) >= 8:
                self._skip = 8 + int.from_bytes(pending[4:8], "little")
                self._skip_some()
            return 0
        if not b"\x28\xb5\x2f\xfd".startswith(pending[:4]):
            raise _zstd_error("unknown frame")
        if len(pending) < 5:
            return 0
        descriptor = pending[4]
        single = descriptor >> 5 & 1
        content_size = (single, 2, 4, 8)[descriptor >> 6]
        size = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content_size
        self._checksum = 4 * (descriptor >> 2 & 1)
        self._started = len(pending) >= size
        return size if self._started else 0

    def _skip_some(self) -> bytes:
        skipped = min(self._skip, len(self._pending))
        self._skip -= skipped
        self._pending = self._pending[skipped:]
        if self._skip == 0:
            self.eof = True
            self.unused_data = self._pending
        return b""

    def _whole_blocks(self, pending: bytes, end: int, room: int) -> int:
        """Where the last block ends that is all there and fits into `room` bytes of content."""
        self.needs_input = True
        while not self._last:
            header = int.from_bytes(pending[end : end + 3], "little")
            kind, size = header >> 1 & 3, header >> 3
            stop = end + 3 + (1 if kind == 1 else size)
            if size > _ZSTD_BLOCK:
                raise _zstd_error("a block is too large")
            if len(pending) < stop or len(pending) < end + 3:
                break
            room -= _ZSTD_BLOCK if kind == 2 else size
            if room < 0:
                self.needs_input = False
                break
            end = stop
            self._last = bool(header & 1)
        return end


def _zstd_error(why: str) -> Exception:
    from zstandard import ZstdError

    return ZstdError(why)


def _hasher(name: str) -> _Hash | None:
    if not name:
        return None
    import hashlib

    return hashlib.new(name)
