"""Whole files decompressed within bounds: the payload of a kernel, and its modules.

Apart from `aci.compression`, which is made for endless streams, because kernels use lz4 in its legacy form as well
(lz4_Frame_format.md of lz4, "Legacy frame"), which nothing else does any more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

LIMIT = 512 << 20
"""Bytes nothing here is believed to exceed: a kernel with all it has built in takes a tenth."""
_WINDOW = 256 << 20
"""Memory a decompressor may take: kernels are made by `zstd -22 --ultra`, whose window is 128 MiB."""
_PORTION = 4 << 10
"""Bytes that zstd gets at once, since it does not say no to what comes of them."""
_LZ4_BLOCK = 8 << 20
"""Bytes a block of a legacy frame holds, the last one excepted."""


def decompress(data: bytes | memoryview, *, limit: int = LIMIT) -> bytes:
    """What the first gzip, xz, zstd or lz4 stream in `data` holds; what follows it is not looked at.

    Raises ValueError for anything else, for damaged data and for more than `limit` bytes."""
    for magic, read in _FORMATS.items():
        if bytes(data[: len(magic)]) == magic:
            return read(data, limit)
    raise ValueError(f"not compressed in a way known here: it begins with {bytes(data[:4]).hex(' ')}")


def _gzip(data: bytes | memoryview, limit: int) -> bytes:
    import zlib

    member = zlib.decompressobj(31)  # with the header of gzip
    return _all(member, lambda: member.decompress(data, limit + 1), zlib.error, limit)


def _xz(data: bytes | memoryview, limit: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW)
    return _all(stream, lambda: stream.decompress(data, limit + 1), lzma.LZMAError, limit)


def _all(stream: Any, read: Callable[[], bytes], failure: type[Exception], limit: int) -> bytes:
    try:
        found = read()
    except failure as error:
        raise ValueError(f"damaged: {error}") from error
    if len(found) > limit:
        raise ValueError(f"larger than {limit} bytes")
    if not stream.eof:
        raise ValueError("damaged: it ends too early")
    return found


def _zstd(data: bytes | memoryview, limit: int) -> bytes:
    import zstandard

    frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    found = bytearray()
    try:
        for start in range(0, len(data), _PORTION):
            found += frame.decompress(data[start : start + _PORTION])
            if len(found) > limit:
                raise ValueError(f"larger than {limit} bytes")
            if frame.eof:
                return bytes(found)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged: {error}") from error
    raise ValueError("damaged: it ends too early")


def _lz4(data: bytes | memoryview, limit: int) -> bytes:
    found, at = [], 4
    left = limit
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        block = _lz4_block(bytes(data[at : at + size]))
        if at + size > len(data) or len(block) > min(left, _LZ4_BLOCK):
            raise ValueError(f"damaged, or larger than {limit} bytes")
        found.append(block)
        at += size
        left -= len(block)
        if len(block) < _LZ4_BLOCK:
            break  # The last one: the format has no other mark of its end.
    return b"".join(found)


def _lz4_block(data: bytes) -> bytearray:
    """One block (lz4_Block_format.md). Python is quick enough: there are two million sequences in a kernel, and they
    take less than a second."""
    found = bytearray()
    at, end = 0, len(data)
    try:
        while True:
            token = data[at]
            at += 1
            run = token >> 4
            if run == 15:
                run, at = _lz4_length(data, at, run)
            found += data[at : at + run]
            at += run
            if at >= end:
                if at > end:
                    raise ValueError("damaged: it ends too early")
                return found
            distance = data[at] | data[at + 1] << 8
            at += 2
            length = token & 15
            if length == 15:
                length, at = _lz4_length(data, at, length)
            length += 4
            start = len(found) - distance
            if start < 0 or not distance or len(found) > _LZ4_BLOCK:
                raise ValueError("damaged: it refers to what is not there")
            if distance >= length:
                found += found[start : start + length]
            else:
                found += (found[start:] * (length // distance + 1))[:length]
    except IndexError:
        raise ValueError("damaged: it ends too early") from None


def _lz4_length(data: bytes, at: int, length: int) -> tuple[int, int]:
    while True:
        more = data[at]
        at += 1
        length += more
        if length > _LZ4_BLOCK:
            raise ValueError("damaged: a sequence longer than its block")
        if more != 255:
            return length, at


_FORMATS = {b"\x1f\x8b": _gzip, b"\xfd7zXZ\0": _xz, b"\x28\xb5\x2f\xfd": _zstd, b"\x02\x21\x4c\x18": _lz4}
