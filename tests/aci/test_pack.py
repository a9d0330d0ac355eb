"""Archives as they are written, read back by the reader that is used for everybody's."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aci import pack
from aci.image_manifest import ImageManifest
from aci.tar import Reader

MANIFEST = ImageManifest("example.com/app")
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and b"/" not in name)
XATTRS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=40).map(
        lambda name: f"user.{name}"
    ),
    st.binary(max_size=200),
    max_size=3,
)


@given(
    NAMES,
    st.integers(0, 2**32 - 2),
    st.integers(0, 0o7777),
    st.integers(0, 2**62),
    st.integers(-(2**63), 2**63 - 1),
    XATTRS,
)
@example(b"x" * 100, 0o7777777, 0, 0o77777777777, 10**9 + 1, {})
@example(b"x" * 101, 0o10000000, 0, 0o100000000000, 8**11 * 10**9, {"user.a=b%": b"\x00=\n"})
def test_a_header_says_what_it_was_told(
    name: bytes, owner: int, mode: int, size: int, mtime: int, xattrs: dict[str, bytes]
) -> None:
    header = pack._header(
        b"rootfs/" + name, b"0", mode=mode, uid=owner, gid=owner, size=size, mtime=mtime, xattrs=list(xattrs.items())
    )
    assert len(header) % 512 == 0
    member = next(iter(Reader(io.BytesIO(header + bytes(1024)))))
    assert (member.name, member.mode, member.uid, member.gid) == (b"rootfs/" + name, mode, owner, owner)
    assert (member.size, dict(member.xattrs)) == (size, xattrs)
    assert member.mtime == mtime


@given(
    st.binary(min_size=1, max_size=150).filter(lambda key: b"=" not in key and b"\n" not in key),
    st.binary(max_size=1200),
)
def test_the_length_of_a_record_counts_itself(key: bytes, value: bytes) -> None:
    record = pack._record(key, value)
    assert int(record.partition(b" ")[0]) == len(record)


def test_a_tree_is_what_other_programs_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"x" * 1025)
    os.utime(root / "a/b/file", ns=(5, 1_234_567_890_123_456_789))
    (root / "a/link").symlink_to("../b" * 60)
    odd = os.fsencode(root) + b"/\xff\n odd"
    with open(odd, "wb"):
        pass
    os.link(odd, root / "again")
    out = io.BytesIO()
    assert pack.write(MANIFEST, str(root), out) == []
    assert len(out.getvalue()) % 512 == 0
    out.seek(0)
    with tarfile.open(fileobj=out, errors="surrogateescape") as archive:
        found = {info.name: info for info in archive}
        file = archive.extractfile("rootfs/a/b/file")
        assert file is not None and file.read() == b"x" * 1025
    assert list(found)[:2] == ["manifest", "rootfs"]
    assert found["rootfs/a/link"].linkname == "../b" * 60
    assert float(found["rootfs/a/b/file"].mtime) == pytest.approx(1_234_567_890.123456789)
    first, second = "rootfs/\udcff\n odd", "rootfs/again"
    assert {found[first].type, found[second].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}


def test_a_tree_that_is_deeper_than_a_path_may_be_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("x" * 200, dir_fd=fd)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(OSError, match="File name too long"):
        pack.write(MANIFEST, str(root), io.BytesIO())
    from common import files

    top = os.open(tmp_path, os.O_RDONLY)
    files.remove_tree("root", dir_fd=top)
    os.close(top)
