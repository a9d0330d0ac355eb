"""Archives that try to get out of the target, to confuse, or to exhaust. Every one is unpacked inside of a Cage, which
fails the test when anything around the target changes, whether the archive was refused or not."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aci.unpack import Limits
from common.errors import ImageError
from tests.host.unpacking import Cage, needs_devices
from tests.tars import (
    END,
    Entry,
    block,
    device,
    directory,
    entry,
    file,
    hardlink,
    header,
    octal,
    pack,
    pax,
    symlink,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CORPUS = Path(__file__).parent.parent / "aci" / "corpus" / "archives"


@pytest.fixture
def cage(tmp_path: Path) -> Cage:
    return Cage(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/../secret", "a/..", "..", "./..", "b/../x"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_dot_dot(cage: Cage, name: str, kind: bytes) -> None:
    with pytest.raises(ImageError, match=r"'\.\.' is not allowed"):
        cage.unpack(pack(file("f"), entry(name, kind, linkname="f")))


def test_dot_dot_in_long_names(cage: Cage) -> None:
    for archive in (
        pax((b"path", b"../secret")) + header(b"harmless") + END,
        header(b"x", b"L", size=octal(9)) + block(b"../secret") + header(b"harmless") + END,
        header(b"secret", prefix=b"..") + END,
    ):
        with pytest.raises(ImageError, match="not allowed"):
            cage.unpack(archive)


@pytest.mark.parametrize(
    "up", ["..", "../..", "/", "../sibling", "../../../../../../..", "/proc/self/root", "/proc/self/cwd"]
)
def test_a_symlink_out_and_a_file_through_it(cage: Cage, up: str) -> None:
    archive = pack(symlink("out", up), file("out/secret", b"overwritten"))
    try:
        cage.unpack(archive)
    except ImageError:
        return
    assert cage.names() >= {"out", "secret"}


def test_a_symlink_to_the_outside_by_its_real_path(cage: Cage) -> None:
    archive = pack(
        directory(str(cage.top)), symlink("out", str(cage.top)), file("out/secret", b"!"), directory("out/a"),
        hardlink("out/b", "out/secret"), symlink("out/c", "secret"), entry("out/p", tarfile.FIFOTYPE),
    )  # fmt: skip
    cage.unpack(archive)
    assert cage.read(str(cage.top)[1:] + "/secret") == "!"
    assert cage.compare(archive) == []


def test_chains_of_symlinks(cage: Cage) -> None:
    archive = pack(
        directory("d"), symlink("d/up", ".."), symlink("two", "d/up/d/up"), symlink("three", "two/.."),
        file("three/f", b"1"),
    )  # fmt: skip
    cage.unpack(archive)
    assert cage.read("f") == "1"


def test_a_loop_of_symlinks(cage: Cage) -> None:
    with pytest.raises(ImageError, match="too many levels of symbolic links"):
        cage.unpack(pack(symlink("a", "b"), symlink("b", "a"), file("a/f")))


def test_a_file_is_never_written_through_a_symlink(cage: Cage) -> None:
    cage.unpack(pack(symlink("f", "../secret"), file("f", b"overwritten")))
    assert not (cage.target / "f").is_symlink()
    assert cage.read("f") == "overwritten"


def test_a_file_is_never_written_through_a_symlink_inside(cage: Cage) -> None:
    cage.unpack(pack(file("g", b"kept"), symlink("f", "g"), file("f", b"new")))
    assert (cage.read("f"), cage.read("g")) == ("new", "kept")


def test_a_file_is_never_written_through_a_hard_link(cage: Cage) -> None:
    cage.unpack(pack(file("g", b"kept"), hardlink("f", "g"), file("f", b"new", mode=0o4777)))
    assert (cage.read("f"), cage.read("g")) == ("new", "kept")
    assert cage.tree()["g"][0] == "0o100644"


def test_metadata_never_goes_through_a_symlink(cage: Cage) -> None:
    """A directory's metadata comes at the end, when a symlink might be in its place."""
    archive = pack(
        directory("d", mode=0o777, uid=99, mtime=1), symlink("d", "../sibling"), directory("e/f", mode=0o777, uid=99),
        symlink("e", "../sibling"),
    )  # fmt: skip
    cage.unpack(archive)
    assert (cage.target / "d").is_symlink()
    assert (cage.target / "e").is_symlink()


def test_metadata_of_a_symlink_is_its_own(cage: Cage) -> None:
    cage.unpack(pack(symlink("s", "../secret", uid=99, mode=0o777, mtime=1), symlink("t", "../sibling", uid=99)))
    assert cage.tree()["s"][1] == 99


def test_a_directory_over_a_symlink_to_the_outside(cage: Cage) -> None:
    cage.unpack(pack(symlink("d", "../sibling"), directory("d", mode=0o700), file("d/new")))
    assert cage.names() == {"d", "d/new"}


def test_a_directory_entry_below_a_symlink(cage: Cage) -> None:
    with pytest.raises(ImageError, match="symlink to nowhere"):
        cage.unpack(pack(symlink("d", "../sibling"), directory("d/new", mode=0o777)))


@pytest.mark.parametrize("to", ["../secret", "../../secret", "a/../../secret", "/../secret"])
def test_hard_links_with_dot_dot(cage: Cage, to: str) -> None:
    with pytest.raises(ImageError, match=r"'\.\.' is not allowed"):
        cage.unpack(pack(hardlink("h", to), file("h", b"overwritten")))


@pytest.mark.parametrize("to", ["/etc/passwd", "secret", "a/secret", "/", ".", "d"])
def test_hard_links_to_what_is_not_a_file_of_the_archive(cage: Cage, to: str) -> None:
    with pytest.raises(ImageError, match="hard link to"):
        cage.unpack(pack(directory("d"), hardlink("h", to)))


def test_a_hard_link_to_the_outside_by_its_real_path(cage: Cage) -> None:
    with pytest.raises(ImageError, match="not in the archive"):
        cage.unpack(pack(hardlink("h", str(cage.top / "secret"))))


def test_a_hard_link_through_a_symlink(cage: Cage) -> None:
    with pytest.raises(ImageError, match="not in the archive"):
        cage.unpack(pack(symlink("out", ".."), hardlink("h", "out/secret")))
    second = Cage(cage.top / "second")
    with pytest.raises(ImageError):
        second.unpack(pack(symlink("out", str(second.top)), hardlink("h", "out/secret")))


def test_a_hard_link_to_a_symlink_to_the_outside(cage: Cage) -> None:
    """It is a second name for the symlink, never for what that points to; and it is replaced, not written through."""
    cage.unpack(pack(symlink("s", "../secret"), hardlink("h", "s"), file("h", b"overwritten", mode=0o777)))
    assert (cage.target / "s").is_symlink()
    assert not (cage.target / "h").is_symlink()


def test_a_hard_link_whose_target_goes_away_for_it(cage: Cage) -> None:
    with pytest.raises(ImageError, match="link: no such file"):
        cage.unpack(pack(file("d/f"), hardlink("d", "d/f")))


def test_a_parent_that_is_a_file(cage: Cage) -> None:
    for parent in (file("f"), entry("f", tarfile.FIFOTYPE), device("f", major=1, minor=3)):
        with pytest.raises(ImageError, match="'f/g': open: not a directory"):
            Cage(cage.top / parent[0].type.hex()).unpack(pack(parent, file("f/g")))


def test_replacing_a_tree_does_not_follow_links(cage: Cage) -> None:
    archive = pack(
        directory("d/e"), symlink("d/out", "../../sibling"), symlink("d/e/out", str(cage.top)), hardlink("k", "d/out"),
        file("d"),
    )  # fmt: skip
    cage.unpack(archive)
    assert cage.names() == {"d", "k"}


@pytest.mark.parametrize("root", [file("."), symlink("./", ".."), hardlink("/", "f"), device("./.")])
def test_the_root_stays_a_directory(cage: Cage, root: Entry) -> None:
    with pytest.raises(ImageError):
        cage.unpack(pack(file("f"), root))


@needs_devices
def test_devices_keep_their_numbers_and_modes_their_limits(cage: Cage) -> None:
    cage.unpack(header(b"d", b"3", mode=b"7777777", major=b"0000001", minor=b"0000003") + END)
    assert cage.tree()["d"][0] == oct(stat.S_IFCHR | 0o7777)
    assert cage.tree()["d"][5] == (1, 3)


@pytest.mark.parametrize(
    "name",
    [
        "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.x",
        "user.overlay.opaque", "user.overlay.whiteout", "security.selinux", "security.ima", "system.nfs4_acl", "bogus",
    ],
)  # fmt: skip
def test_extended_attributes_that_steer_the_host(cage: Cage, name: str) -> None:
    record = {f"SCHILY.xattr.{name}": "y", "SCHILY.xattr.user.fine": "y"}
    result = cage.unpack(pack(directory("d", pax=record), file("d/f", pax=record), directory("./", pax=record)))
    assert [cage.tree()[path][-1] for path in (".", "d", "d/f")] == [{"user.fine": b"y"}] * 3
    assert result.warnings == (
        f"extended attributes that an image may not set or the store cannot keep were dropped: '{name}' (3x)",
    )


def test_warnings_do_not_grow_with_the_archive(cage: Cage) -> None:
    result = cage.unpack(pack(*(file(str(n), pax={f"SCHILY.xattr.trusted.{n}": "y"}) for n in range(100))))
    assert len(result.warnings) == 1
    assert len(result.warnings[0]) < 1000


def test_user_attributes_where_linux_has_none(cage: Cage) -> None:
    record = {"SCHILY.xattr.user.x": "y"}
    archive = pack(symlink("s", "/", pax=record), entry("p", tarfile.FIFOTYPE, pax=record))
    assert "'user.x' (2x)" in cage.unpack(archive).warnings[0]


def test_an_attribute_the_kernel_refuses(cage: Cage) -> None:
    with pytest.raises(ImageError, match="'f': setxattr: invalid argument"):
        cage.unpack(pack(file("f", pax={"SCHILY.xattr.security.capability": "garbage"})))


def test_deep_nesting(cage: Cage) -> None:
    deep = "/".join(["d"] * 63)
    cage.unpack(pack(directory(deep), file(deep + "/f")))
    for archive in (
        pack(directory("/".join(["d"] * 66))),
        pack(file("/".join(["d"] * 2000))),
        pack(*(directory("/".join(["d"] * depth)) for depth in range(1, 70))),
        pack(directory(deep), symlink("s", deep), file("s/d/d/f")),
        pack(hardlink("h", "/".join(["d"] * 2000))),
    ):
        with pytest.raises(ImageError, match="more than 64 deep"):
            Cage(cage.top / str(len(os.listdir(cage.top)))).unpack(archive)


def test_the_deepest_archive_that_is_allowed(cage: Cage) -> None:
    """Made, compared, and removed again for an entry that replaces it."""
    deep = "/".join(["d"] * 256)
    archive = pack(file(deep))
    cage.unpack(archive, limits=Limits())
    assert cage.compare(archive) == []
    again = Cage(cage.top / "again")
    again.unpack(pack(file(deep), file("d", b"x")), limits=Limits())
    assert again.read("d") == "x"


def test_paths_longer_than_the_kernel_takes(cage: Cage) -> None:
    name = "n" * 250
    steps: list[Entry] = []
    for number in range(30):
        above = f"s{number - 1}/" if number else ""
        steps += [directory(above + name), symlink(f"s{number}", above + name)]
    with pytest.raises(ImageError, match="file name too long"):
        cage.unpack(pack(*steps))


def test_depth_through_chained_symlinks(cage: Cage) -> None:
    """Each link adds its depth to the one before: 40 of them, as many as the kernel follows."""
    entries = [directory("/".join("ddddddddd"))]
    for number in range(30):
        below = "/".join("ddddddddd") if number == 0 else f"s{number - 1}/" + "/".join("ddddddddd")
        entries += [directory(below), symlink(f"s{number}", below)]
    with pytest.raises(ImageError, match="more than 64 deep"):
        cage.unpack(pack(*entries))


def test_too_many_entries(cage: Cage) -> None:
    with pytest.raises(ImageError, match="more than 10 entries"):
        cage.unpack(pack(*(file(str(n)) for n in range(11))), limits=Limits(entries=10))


def test_too_many_bytes(cage: Cage) -> None:
    with pytest.raises(ImageError, match="more than 1000 bytes of files at 'b'"):
        cage.unpack(pack(file("a", bytes(600)), file("b", bytes(600))), limits=Limits(size=1000))


def test_a_size_that_lies_is_stopped_before_anything_is_written(cage: Cage) -> None:
    huge = header(b"f", size=b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7) + END
    with pytest.raises(ImageError, match="bytes of files"):
        cage.unpack(huge)
    assert cage.names() == set()


def test_a_sparse_file_of_absurd_size(cage: Cage) -> None:
    records = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9" * 18)
    with pytest.raises(ImageError, match="bytes of files"):
        cage.unpack(pax(*records) + header(size=octal(512)) + block(b"0\n") + END)


def test_a_truncated_file(cage: Cage) -> None:
    with pytest.raises(ImageError, match="truncated in or after entry 'f'"):
        cage.unpack(header(size=octal(5000)) + bytes(512))


def test_names_too_long_for_the_file_system(cage: Cage) -> None:
    with pytest.raises(ImageError, match="file name too long"):
        cage.unpack(pack(file("n" * 300)))
    with pytest.raises(ImageError, match="file name too long"):
        cage.unpack(pack(file("n" * 300 + "/f")))


def test_terminal_sequences_in_errors(cage: Cage) -> None:
    with pytest.raises(ImageError) as caught:
        cage.unpack(pack(file("\x1b[2J/../x")))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*")), ids=lambda path: path.name)
@pytest.mark.parametrize("whiteouts", [False, True])
def test_what_fuzzing_found(cage: Cage, path: Path, whiteouts: bool) -> None:
    archive = path.read_bytes()
    try:
        cage.unpack(archive, whiteouts=whiteouts)
    except ImageError:
        return
    assert cage.compare(archive, whiteouts=whiteouts) == []


NAMES = st.lists(
    st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "é"]), min_size=1, max_size=4
).map("/".join)
TARGETS = NAMES | st.sampled_from(["/", "..", "../secret", "../../secret", "/a", "../sibling", "/proc/self/root"])
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    ]
)
ENTRIES = st.builds(
    lambda name, kind, link, mode, uid: entry(
        name or "z", kind, linkname=link or "z", mode=mode, uid=uid, data=b"data" if kind == tarfile.REGTYPE else b""
    ),
    NAMES, KINDS, TARGETS, st.sampled_from([0o644, 0o4755, 0o1777, 0]), st.sampled_from([0, 1000, 2**31]),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries=st.lists(ENTRIES, max_size=10), whiteouts=st.booleans(), strip=st.sampled_from(["", "", "", "a"]))
def test_any_sequence_of_entries_stays_inside(
    tmp_path: Path, entries: list[Entry], whiteouts: bool, strip: str
) -> None:
    """And what does not raise an ImageError is what an independent model of the archive says it should be."""
    cage = Cage(tmp_path / str(len(os.listdir(tmp_path))))
    archive = pack(*entries)
    try:
        cage.unpack(archive, whiteouts=whiteouts, strip=strip, on_other=lambda member, reader: None)
    except ImageError:
        return
    assert cage.compare(archive, whiteouts=whiteouts, strip=strip) == []
    assert not whiteouts or not [name for name in cage.names() if os.path.basename(name).startswith(".wh.")]
