"""Streams: every format, digests of both sides, damage, bombs, and no thread left behind."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from aci.compression import CHUNK, Bounds, open_stream
from common.errors import ImageError

CONTENT = random.Random(1).randbytes(300_000) + bytes(3_000_000) + b"text " * 50_000


def _zstd(data: bytes, *, checksum: bool = True, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized).compress(data)


def _plain(data: bytes) -> bytes:
    return data


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": _plain,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": _zstd,
    "zstd-bare": lambda data: _zstd(data, checksum=False, sized=False),
}
PACKED = {name: compress(CONTENT) for name, compress in COMPRESS.items()}
COMPRESSED = [name for name in COMPRESS if name != "plain"]


def _read(data: bytes, size: int = CHUNK) -> bytes:
    with open_stream(io.BytesIO(data)) as stream:
        parts = []
        while part := stream.read1(size):
            assert len(part) <= size
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("name", COMPRESS)
def test_content_and_both_digests(name: str) -> None:
    packed = PACKED[name]
    with open_stream(io.BytesIO(packed), raw_digest="sha256", content_digest="sha512") as stream:
        assert stream.read(len(CONTENT) + 1) == CONTENT
        assert stream.raw_hexdigest == hashlib.sha256(packed).hexdigest()
        assert stream.content_hexdigest == hashlib.sha512(CONTENT).hexdigest()
        assert stream.raw_size == len(packed)


@pytest.mark.parametrize("name", COMPRESS)
def test_both_digests_of_one_kind(name: str) -> None:
    with open_stream(io.BytesIO(PACKED[name]), raw_digest="sha256", content_digest="sha256") as stream:
        stream.drain()
        assert stream.raw_hexdigest == hashlib.sha256(PACKED[name]).hexdigest()
        assert stream.content_hexdigest == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("name", COMPRESSED)
def test_members_one_after_the_other(name: str) -> None:
    assert _read(PACKED[name] * 3) == CONTENT * 3


@pytest.mark.parametrize("name", COMPRESSED)
def test_truncation_anywhere(name: str) -> None:
    packed = COMPRESS[name](CONTENT[:5000])
    for length in [*range(10, len(packed), 101), *range(len(packed) - 30, len(packed))]:
        with pytest.raises(ImageError):
            _read(packed[:length])


@pytest.mark.parametrize("garbage", [b"x", b"garbage after the end", bytes(511) + b"x"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_garbage_after_the_end(name: str, garbage: bytes) -> None:
    with pytest.raises(ImageError):
        _read(PACKED[name] + garbage)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_damage_is_noticed(name: str) -> None:
    packed = bytearray(COMPRESS[name](CONTENT[:5000]))
    packed[len(packed) // 2] ^= 1
    with pytest.raises(ImageError):
        _read(bytes(packed))


def test_gzip_checks_its_trailer() -> None:
    packed = bytearray(gzip.compress(CONTENT))
    packed[-6] ^= 1
    with pytest.raises(ImageError, match="gzip"):
        _read(bytes(packed))


def test_zstd_skips_what_is_to_be_skipped() -> None:
    skippable = b"\x5f\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    assert _read(skippable + PACKED["zstd"] + skippable) == CONTENT
    with pytest.raises(ImageError, match="truncated"):
        _read(PACKED["zstd"] + skippable[:-1])


def test_xz_padding() -> None:
    assert _read(PACKED["xz"] + bytes(8) + PACKED["xz"] + bytes(4)) == CONTENT * 2


def test_a_tar_whose_first_name_looks_like_bzip2() -> None:
    data = b"BZh9 is a name".ljust(512, b"\0")
    assert _read(data) == data


def test_read_gives_what_was_asked_for() -> None:
    with open_stream(io.BytesIO(PACKED["gzip"])) as stream:
        assert stream.read(1) == CONTENT[:1]
        assert stream.read(2_000_000) == CONTENT[1:2_000_001]
        assert stream.read(0) == b""
        stream.drain()
        assert stream.read(1) == b""


def test_slice_of_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "outer"
    path.write_bytes(b"before" + PACKED["gzip"] + b"behind")
    with path.open("rb") as file:
        os.lseek(file.fileno(), 6, os.SEEK_SET)
        with open_stream(file.fileno(), length=len(PACKED["gzip"])) as stream:
            assert stream.read(len(CONTENT) + 1) == CONTENT
        assert os.read(file.fileno(), 10) == b"behind"


def test_slice_that_ends_too_early() -> None:
    with pytest.raises(ImageError, match="truncated"), open_stream(io.BytesIO(b"short"), length=9) as stream:
        stream.drain()


def test_digests_only_after_the_end() -> None:
    with open_stream(io.BytesIO(PACKED["plain"]), raw_digest="sha256") as stream:
        stream.read(5)
        with pytest.raises(ValueError, match="before"):
            _ = stream.raw_hexdigest


def test_ratio_limit() -> None:
    bomb = gzip.compress(bytes(8 << 20))
    with open_stream(io.BytesIO(bomb), bounds=Bounds(grace=9 << 20, ratio=10)) as stream:
        stream.drain()
    strict = open_stream(io.BytesIO(bomb), bounds=Bounds(grace=1 << 20, ratio=100))
    with pytest.raises(ImageError, match="100 times"), strict as stream:
        stream.drain()


def test_total_limit() -> None:
    with (
        pytest.raises(ImageError, match="more than 1000000 bytes"),
        open_stream(io.BytesIO(CONTENT), bounds=Bounds(total=1_000_000)) as stream,
    ):
        stream.drain()


def test_a_zstd_bomb_stays_small_in_memory() -> None:
    """Blocks of four bytes that become 128 KiB each: 128 KiB of them are 4 GiB."""
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + (((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"x") * 30_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        pytest.raises(ImageError, match="decompresses to more"),
        open_stream(io.BytesIO(frame), bounds=Bounds(total=1 << 30)) as stream,
    ):
        stream.drain()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_zstd_window_limit() -> None:
    huge = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"  # asks for a window of 2 GiB
    with pytest.raises(ImageError, match="zstd"):
        _read(huge + bytes(600))


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with open_stream(io.BytesIO(CONTENT * 10)) as stream:
        stream.read(10)
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="the caller"), open_stream(io.BytesIO(CONTENT * 10)) as stream:
        raise RuntimeError("the caller fails")
    with pytest.raises(ImageError), open_stream(io.BytesIO(PACKED["gzip"][:-1])) as stream:
        stream.drain()
    assert threading.active_count() == before


def test_reading_after_the_close() -> None:
    with open_stream(io.BytesIO(CONTENT * 10)) as stream:
        stream.read(1)
    with pytest.raises(ValueError, match="closed"):
        stream.read(CHUNK)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with (
            pytest.raises(ImageError, match=r"layer\.tar: is a directory"),
            open_stream(fd, name="layer.tar") as stream,
        ):
            stream.drain()
    finally:
        os.close(fd)


@given(st.sampled_from(COMPRESSED), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_damaged_data_is_an_image_error_or_the_content(name: str, damage: list[tuple[int, int]]) -> None:
    content = CONTENT[299_900:300_400]
    packed = bytearray(COMPRESS[name](content))
    for place, value in damage:
        packed[place % len(packed)] = value
    try:
        _read(bytes(packed))
    except ImageError as error:
        assert str(error)


@given(st.binary(max_size=3000), st.integers(1, 700), st.sampled_from(sorted(COMPRESS)))
def test_any_content_in_any_step(content: bytes, step: int, name: str) -> None:
    prefix = b"#"  # content that happens to begin with a magic is not plain
    assert _read(COMPRESS[name](prefix + content), step) == prefix + content
