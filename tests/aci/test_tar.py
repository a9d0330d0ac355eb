"""The tar reader: what the usual tools write, field by field, and everything that is refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aci.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    EXTENDED_LIMIT,
    FIFO,
    FILE,
    HARDLINK,
    NAME_LIMIT,
    SYMLINK,
    Member,
    Reader,
    show,
)
from common.errors import ImageError
from tests.tars import END, MTIME, block, device, directory, entry, file, hardlink, header, octal, pack, pax, symlink


def _members(data: bytes) -> list[Member]:
    return list(Reader(io.BytesIO(data)))


def _only(data: bytes) -> Member:
    (member,) = _members(data)
    return member


def _contents(data: bytes) -> dict[bytes, bytes]:
    reader = Reader(io.BytesIO(data))
    return {member.name: reader.read(1 << 20) for member in reader}


def _refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        _members(data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind(form: int) -> None:
    archive = pack(
        directory("d/", mode=0o1777),
        file("d/f", b"content", mode=0o4755, uid=1000, gid=100),
        symlink("s", "../d/f"),
        hardlink("h", "d/f"),
        device("c", tarfile.CHRTYPE, 1, 3),
        device("b", tarfile.BLKTYPE, 8, 1),
        entry("p", tarfile.FIFOTYPE, mode=0o600),
        form=form,
    )
    found = {member.name: member for member in _members(archive)}
    assert [member.kind for member in found.values()] == [
        DIRECTORY, FILE, SYMLINK, HARDLINK, CHARACTER, BLOCK_DEVICE, FIFO,
    ]  # fmt: skip
    assert found[b"d/f"] == Member(b"d/f", FILE, 0o4755, 1000, 100, 7, MTIME * 10**9, b"", 0, 0)
    assert found[b"d/" if b"d/" in found else b"d"].mode == 0o1777
    assert (found[b"s"].link, found[b"h"].link) == (b"../d/f", b"d/f")
    assert (found[b"c"].major, found[b"c"].minor, found[b"b"].major, found[b"b"].minor) == (1, 3, 8, 1)
    assert _contents(archive)[b"d/f"] == b"content"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links(form: int) -> None:
    name, link = "n/" * 400 + "f", "l/" * 500
    member = _only(pack(symlink(name, link), form=form))
    assert (member.name, member.link) == (name.encode(), link.encode())


def test_ustar_prefix() -> None:
    assert (
        _only(pack(file("p" * 100 + "/" + "n" * 90), form=tarfile.USTAR_FORMAT)).name == b"p" * 100 + b"/" + b"n" * 90
    )


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["größe", "日本語", os.fsdecode(b"latin1-\xe9"), "new\nline", "per%cent"])
def test_names_are_bytes(form: int, name: str) -> None:
    assert _only(pack(file(name), form=form)).name == os.fsencode(name)


def test_large_numbers() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = _only(pack(file("f", uid=2**32 - 2, gid=2**31, mtime=2**33), form=form))
        assert (member.uid, member.gid, member.mtime) == (2**32 - 2, 2**31, 2**33 * 10**9)
    assert _only(pack(file("f", mtime=-5), form=tarfile.GNU_FORMAT)).mtime == -5 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", 1_500_000_000), ("0.000000001", 1), ("7.1234567899", 7_123_456_789), ("-1.5", -1_500_000_000),
        ("3", 3_000_000_000), ("3.", 3_000_000_000), ("-0.5", -500_000_000),
    ],
)  # fmt: skip
def test_fractions_of_a_second(text: str, expected: int) -> None:
    assert _only(pack(file("f", pax={"mtime": text}))).mtime == expected


def test_global_headers_count_until_overridden() -> None:
    archive = (
        pax((b"uid", b"7"), (b"comment", b"x"), kind=b"g") + header(b"a") + pax((b"uid", b"8")) + header(b"b")
        + header(b"c") + pax((b"uid", b""), kind=b"g") + header(b"d") + END
    )  # fmt: skip
    assert [member.uid for member in _members(archive)] == [7, 8, 7, 0]


def test_extended_attributes() -> None:
    archive = (
        pax(
            (b"SCHILY.xattr.user.raw", b"\x00=\n\xff"),
            (b"SCHILY.xattr.user.a%3Db%25", b"1"),
            (b"LIBARCHIVE.xattr.user.only%20here", b"dmFsdWU"),
            (b"LIBARCHIVE.xattr.user.raw", b"b3RoZXI="),
        )
        + header()
        + END
    )
    assert dict(_only(archive).xattrs) == {"user.raw": b"\x00=\n\xff", "user.a=b%": b"1", "user.only here": b"value"}


def test_old_directories_have_a_slash() -> None:
    archive = header(b"d/", b"\0") + header(b"e/", b"0") + header(b"f", b"\0") + END
    assert [member.kind for member in _members(archive)] == [DIRECTORY, DIRECTORY, FILE]


def test_a_size_on_what_has_no_content_is_ignored() -> None:
    archive = (
        header(b"h", b"1", linkname=b"f", size=octal(5000)) + header(b"d", b"5", size=octal(9)) + header(b"f") + END
    )
    assert [member.size for member in _members(archive)] == [0, 0, 0]


def test_volume_labels_are_skipped() -> None:
    assert [member.name for member in _members(header(b"label", b"V") + header(b"f") + END)] == [b"f"]


def test_signed_checksums_of_old_tars() -> None:
    raw = header("é".encode(), checksum=b" " * 8)
    signed = sum(byte - 256 if byte > 127 else byte for byte in raw)
    assert _only(raw[:148] + b"%06o\0 " % signed + raw[156:] + END).name == "é".encode()


def test_the_stream_is_read_to_its_end() -> None:
    stream = io.BytesIO(pack(file("f")) + b"behind" * 999)
    list(Reader(stream))
    assert stream.read() == b""


def test_content_across_small_reads() -> None:
    data = os.urandom(5000)
    reader = Reader(io.BufferedReader(io.BytesIO(pack(file("a", data), file("b", data))), buffer_size=300))
    for _ in reader:
        assert b"".join(bytes(piece) for piece in reader.pieces(1000)) == data[:1000]
        assert reader.read(10_000) == data[1000:]
        assert reader.read(1) == b""


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 30 segments, more than a header of GNU's old format and one block behind it hold."""
    path = tmp_path_factory.mktemp("sparse") / "holes"
    with path.open("wb") as out:
        for index in range(30):
            out.seek(index * 65536)
            out.write(b"%04d" % index * 1024)
        out.truncate(9_000_001)
    return path


SPARSE_FORMATS = {
    "gnu": ["--format=gnu"],
    "pax-0.0": ["--format=pax", "--sparse-version=0.0"],
    "pax-0.1": ["--format=pax", "--sparse-version=0.1"],
    "pax-1.0": ["--format=pax", "--sparse-version=1.0"],
}


@pytest.mark.parametrize("form", SPARSE_FORMATS)
def test_sparse_files(form: str, holes: Path) -> None:
    command = ["tar", "-C", str(holes.parent), "-S", *SPARSE_FORMATS[form], "-c", "holes"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    reader = Reader(io.BytesIO(archive))
    (member,) = (member._replace(link=reader.read(1 << 20)) for member in reader)
    assert (member.name, member.size) == (b"holes", 9_000_001)
    assert member.segments is not None
    assert [length for _, length in member.segments if length] == [4096] * 30
    content = io.BytesIO(member.link)
    whole = bytearray(member.size)
    for offset, length in member.segments:
        whole[offset : offset + length] = content.read(length)
    assert bytes(whole) == holes.read_bytes()


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "truncated"),
        (b"x", "truncated"),
        (header(), "truncated"),
        (header(size=octal(5)), "truncated in or after entry 'f'"),
        (header(size=octal(513)) + bytes(600), "truncated"),
        (b"\xff" * 512 + END, "checksum"),
        (header(checksum=b"0000000\0") + END, "checksum"),
        (header(checksum=b"9999999\0") + END, "checksum"),
        (header(b"") + END, "name is empty"),
        (header(kind=b"Z") + END, "unknown type"),
        (header(kind=b"M") + END, "unknown type"),
        (header(kind=b"2") + END, "link target is empty"),
        (header(size=b"-0000000001") + END, "size is not a number"),
        (header(size=b"0000000009") + END, "size is not a number"),
        (header(size=b"0x10") + END, "size is not a number"),
        (header(size=b"1_0") + END, "size is not a number"),
        (header(size=b"\xff" * 12) + END, "size is out of range"),
        (header(size=b"\x80" + b"\x7f" * 11) + END, "size is out of range"),
        (header(uid=b"\x80\0\0\0\xff\xff\xff\xff") + END, "uid is out of range"),
        (header(gid=b"\xff" * 8) + END, "gid is out of range"),
        (header(mtime=b"\x80" + b"\x7f" * 11) + END, "mtime is out of range"),
        (header(kind=b"3", major=b"0777777") + END, "major is out of range"),
        (header(kind=b"3", minor=b"\x80\0\0\0\0\xff\xff\xff") + END, "minor is out of range"),
        (header() + bytes(512) + header() + END, "goes on after a single block"),
        (pax((b"path", b"x")) + END, "announces an entry"),
        (pax((b"path", b"a\0b")) + header() + END, "name contains a NUL"),
        (pax((b"path", b"x" * (NAME_LIMIT + 1))) + header() + END, "name is longer"),
        (pax((b"linkpath", b"x" * (NAME_LIMIT + 1))) + header(kind=b"2") + END, "link target is longer"),
        (pax((b"size", b"-1")) + header() + END, "size is not a number"),
        (pax((b"size", b"9" * 5000)) + header() + END, "size is not a number"),
        (pax((b"uid", b"4294967295")) + header() + END, "uid is out of range"),
        (pax((b"mtime", b"1e9")) + header() + END, "mtime is not a number"),
        (pax((b"mtime", b"1.x")) + header() + END, "mtime is not a number"),
        (pax((b"mtime", b"9" * 20)) + header() + END, "mtime is out of range"),
        (pax((b"SCHILY.xattr.", b"x")) + header() + END, "extended attribute"),
        (pax((b"SCHILY.xattr.user." + b"x" * 300, b"x")) + header() + END, "extended attribute"),
        (pax((b"LIBARCHIVE.xattr.user.x", b"a")) + header() + END, "not base64"),
        (pax((b"GNU.sparse.major", b"2")) + header() + END, "sparse in a format"),
        (header(b"x", b"x", size=octal(EXTENDED_LIMIT + 1)) + END, "extended header is larger"),
        (header(b"L", b"L", size=b"\xff" * 12) + END, "extended header is larger"),
        (header(b"x", b"x", size=octal(4)) + block(b"4 ab") + header() + END, "pax header is malformed"),
        (header(b"x", b"x", size=octal(6)) + block(b"99 a=b") + header() + END, "pax header is malformed"),
        (header(b"x", b"x", size=octal(5)) + block(b"5 ab\n") + header() + END, "without a key"),
        (header(b"x", b"x", size=octal(5)) + block(b"5 =b\n") + header() + END, "without a key"),
        (header(b"x", b"x", size=octal(6)) + block(b"0 a=b\n") + header() + END, "pax header is malformed"),
    ],
)
def test_refused(archive: bytes, why: str) -> None:
    _refused(archive, why)


def _sparse(*records: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    return pax(*records) + header(size=octal(len(data))) + block(data) + END


def _sparse_1(size: bytes, numbers: bytes, data: bytes = b"") -> bytes:
    records = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", size)
    return _sparse(*records, data=block(numbers) + data)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (_sparse((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,5"), data=b"four"), "does not fit its data"),
        (_sparse((b"GNU.sparse.size", b"3"), (b"GNU.sparse.map", b"0,4"), data=b"four"), "beyond its size"),
        (_sparse((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"4,2,0,2"), data=b"four"), "out of order"),
        (_sparse((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,3,2,1"), data=b"four"), "out of order"),
        (_sparse((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,4,5"), data=b"four"), "incomplete"),
        (_sparse((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"-1,4"), data=b"four"), "not a number"),
        (_sparse((b"GNU.sparse.size", b"9" * 19), (b"GNU.sparse.map", b"0,4"), data=b"four"), "beyond its size"),
        (_sparse_1(b"9", b"1\n0\n4\n"), "does not fit its data"),
        (_sparse_1(b"9", b"1\n0\n"), "incomplete"),
        (_sparse_1(b"9", b"999999999\n"), "out of range"),
        (_sparse_1(b"9", b"9" * 2000), "malformed"),
        (_sparse_1(b"9", b""), "incomplete"),
        (_sparse_1(b"x", b"0\n"), "sparse size is not a number"),
    ],
)
def test_sparse_maps_that_lie(archive: bytes, why: str) -> None:
    _refused(archive, why)


def test_sparse_sizes_without_data_are_only_numbers() -> None:
    assert _only(_sparse_1(b"8" * 18, b"0\n")).size == int("8" * 18)


def test_more_entries_than_allowed() -> None:
    archive = pack(*(file(str(index)) for index in range(6)), form=tarfile.USTAR_FORMAT)
    assert len(list(Reader(io.BytesIO(archive), max_entries=6))) == 6
    with pytest.raises(ImageError, match="more than 5 entries"):
        list(Reader(io.BytesIO(archive), max_entries=5))


def test_headers_without_entries_count_as_well() -> None:
    with pytest.raises(ImageError, match="more than 5 entries"):
        list(Reader(io.BytesIO(pax((b"comment", b"x"), kind=b"g") * 6 + END), max_entries=5))


def test_global_headers_do_not_pile_up() -> None:
    _refused(b"".join(pax((b"key%d" % number, b"x"), kind=b"g") for number in range(300)) + header() + END, "global")


def test_names_in_messages_are_harmless() -> None:
    assert show(b"a\x1b[31m\n\xff") == r"'a\x1b[31m\n\xff'"
    assert show("größe".encode()) == "'größe'"
    assert len(show(b"x" * 4000)) < 210


@settings(max_examples=300)
@given(st.data())
def test_damaged_archives_are_image_errors(data: st.DataObject) -> None:
    archive = bytearray(
        pack(
            directory("d"), file("d/f", b"x" * 600, pax={"SCHILY.xattr.user.a": "b"}), symlink("s", "t" * 200),
            form=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        )[:6144]
    )  # fmt: skip
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 6143), st.integers(0, 255)), max_size=5)):
        archive[place % len(archive)] = value
    if data.draw(st.booleans()):
        _repair_checksums(archive)
    try:
        _contents(bytes(archive))
    except ImageError as error:
        assert str(error)


def _repair_checksums(archive: bytearray) -> None:
    for start in range(0, len(archive), 512):
        raw = archive[start : start + 512]
        if raw[257:262] == b"ustar":
            archive[start + 148 : start + 156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:]) + 256)
