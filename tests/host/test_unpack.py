"""Honest archives: the result is what GNU tar makes of them, or more exact."""

from __future__ import annotations

import errno
import io
import os
import resource
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aci.compression import open_stream
from aci.tar import Member, Reader
from aci.unpack import Limits, unpack_layer
from common.errors import ImageError, StoreError
from tests.host.unpacking import Cage, tree
from tests.tars import MTIME, Entry, device, directory, entry, file, hardlink, header, pack, pax, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CAPABILITY = b"\x01\0\0\x02\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""cap_net_bind_service=ep, as setcap(8) writes it."""


@pytest.fixture
def cage(tmp_path: Path) -> Cage:
    return Cage(tmp_path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with one of everything."""
    top = tmp_path_factory.mktemp("source") / "tree"
    for name in ("bin", "etc/deep/er", "empty", "sticky", "setgid", "locked", "acl"):
        (top / name).mkdir(parents=True)
    (top / "bin/server").write_bytes(b"\x7fELF" * 1000)
    subprocess.run(["setcap", "cap_net_bind_service=ep", top / "bin/server"], check=True)
    (top / "bin/su").write_bytes(b"su")
    (top / "bin/ping").hardlink_to(top / "bin/su")
    (top / "etc/deep/er/größe").write_text("utf-8")
    Path(os.fsdecode(bytes(top) + b"/etc/latin-\xe9")).write_text("not utf-8")
    (top / "etc" / ("long" * 60)).write_text("long")
    (top / "etc" / ("d" * 120) / ("e" * 120)).mkdir(parents=True)
    (top / "etc/new\nline").touch()
    (top / "sbin").symlink_to("bin")
    (top / "etc/dangling").symlink_to("/nowhere/" + "x" * 200)
    os.link(top / "sbin", top / "also-sbin", follow_symlinks=False)
    with (top / "sparse").open("wb") as out:
        out.seek(5_000_000)
        out.write(b"in the middle")
        out.truncate(20_000_000)
    with (top / "hole").open("wb") as out:
        out.truncate(1_000_000)
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.setxattr(top / "bin/server", "user.note", b"\0\xff=\n")
    os.setxattr(top / "empty", "user.note", b"of a directory")
    os.setxattr(top / "etc", "trusted.dropped", b"x")
    _set_acl(top / "acl", "system.posix_acl_access", 0o7)
    _set_acl(top / "acl", "system.posix_acl_default", 0o5)
    _give(top)
    return top


def _set_acl(path: Path, name: str, permissions: int) -> None:
    """An ACL with one named user (1000), in the kernel's form (version, then tag, permissions and id per entry)."""
    entries = (0x01, 7, -1), (0x02, permissions, 1000), (0x04, 5, -1), (0x10, 7, -1), (0x20, 0, -1)
    value = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + allowed.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, allowed, who in entries
    )
    os.setxattr(path, name, value)


def _give(top: Path) -> None:
    os.chown(top / "bin/su", 0, 50)
    os.chmod(top / "bin/su", 0o4750)
    os.chmod(top / "sticky", 0o1777)
    os.chown(top / "setgid", 33, 34)
    os.chmod(top / "setgid", 0o2775)
    os.chmod(top / "locked", 0)
    os.chown(top / "etc/dangling", 1234, 4321, follow_symlinks=False)
    os.chown(top / "fifo", 7, 8)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        nanoseconds = 1_500_000_000_123_456_789 + number * 1_000_000_001
        os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
    os.utime(top, ns=(5, 1_234_567_890_987_654_321))


def _gnu_tar(top: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(top), "--numeric-owner", *options, "-c", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


XATTRS = ("--xattrs", "--xattrs-include=*")


def test_a_pax_archive_of_gnu_tar_comes_out_as_it_went_in(cage: Cage, source: Path) -> None:
    archive = _gnu_tar(source, "--format=posix", "-S", *XATTRS)
    result = cage.unpack(archive)
    expected = tree(source)
    mode, uid, gid, time, first, content, xattrs = expected["etc"]
    expected["etc"] = (mode, uid, gid, time, first, content, {k: v for k, v in xattrs.items() if "trusted" not in k})
    assert cage.tree() == expected
    assert cage.tree()["bin/server"][-1] == {"security.capability": CAPABILITY, "user.note": b"\0\xff=\n"}
    assert result.size == sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) - 2
    assert result.entries == len(expected)
    assert len(result.warnings) == 1
    assert "trusted.dropped" in result.warnings[0]
    assert cage.compare(archive) == []


@pytest.mark.parametrize("options", [["--format=gnu", "-S"], ["--format=gnu"], ["--format=posix"], ["--format=oldgnu"]])
def test_the_same_as_gnu_tar_extracts(cage: Cage, source: Path, tmp_path: Path, options: list[str]) -> None:
    archive = _gnu_tar(source, *options)
    theirs = tmp_path / "a" / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "--numeric-owner", "-xp"], input=archive, check=True)
    cage = Cage(tmp_path / "cage")
    cage.unpack(archive)
    assert cage.tree() == tree(theirs)
    assert cage.compare(archive) == []


def test_ustar_of_gnu_tar(cage: Cage, source: Path) -> None:
    archive = _gnu_tar(
        source, "--format=ustar", "--exclude=disk", "--exclude=dangling", "--exclude=long*", "--exclude=ddd*"
    )
    cage.unpack(archive)
    assert cage.names() == {
        name
        for name in tree(source)
        if name not in (".", "disk", "etc/dangling") and not name.startswith(("etc/long", "etc/ddd"))
    }
    assert cage.compare(archive) == []


@pytest.mark.parametrize("form", [[], *([f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")), ["--format=gnu"]])
def test_sparse_files_stay_sparse(cage: Cage, source: Path, form: list[str]) -> None:
    options = form if "--format=gnu" in form else ["--format=posix", *form]
    command = ["tar", "-C", str(source), "-S", *options, "-c", "sparse", "hole"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    cage.unpack(archive)
    for name in ("sparse", "hole"):
        assert (cage.target / name).read_bytes() == (source / name).read_bytes()
        assert (cage.target / name).stat().st_blocks * 512 < 100_000
    assert cage.compare(archive) == []


def test_a_compressed_stream(tmp_path: Path, source: Path) -> None:
    archive = tmp_path / "layer.tar.gz"
    command = ["tar", "-C", str(source), "--numeric-owner", "-z", "-S", *XATTRS, "-cf", str(archive), "."]
    subprocess.run(command, check=True)
    target = tmp_path / "target"
    target.mkdir()
    with archive.open("rb") as raw, open_stream(raw, content_digest="sha256") as stream:
        unpack_layer(stream, str(target), whiteouts=True)
        assert len(stream.content_hexdigest) == 64
    assert (target / "bin/ping").stat().st_nlink == 2
    assert set(tree(target)) == set(tree(source))


def test_python_tarfile_makes_the_same(cage: Cage, tmp_path: Path) -> None:
    archive = pack(
        directory("d", mode=0o700, uid=5, gid=6), file("d/f", b"x" * 70_000, mode=0o640, uid=1, mtime=1.25),
        symlink("l", "d/f", uid=3), hardlink("h", "d/f", mode=0o640, uid=1, mtime=1.25),
        device("zero", major=1, minor=5, mode=0o666), entry("p", tarfile.FIFOTYPE, mode=0o622),
    )  # fmt: skip
    theirs = tmp_path / "theirs"
    with tarfile.open(fileobj=io.BytesIO(archive)) as reference:
        reference.extractall(theirs, numeric_owner=True)
    ours = Cage(tmp_path / "cage")
    ours.unpack(archive)
    expected = tree(theirs)
    assert {**ours.tree(), ".": None, "l": None} == {**expected, ".": None, "l": None}
    assert ours.tree()["l"][1:4] == (3, 0, MTIME * 10**9)


def test_the_root_entry_describes_the_target(cage: Cage) -> None:
    cage.unpack(pack(directory("./", mode=0o711, uid=12, gid=13, pax={"SCHILY.xattr.user.a": "b"}), file("./f")))
    mode, uid, gid, time, _, _, xattrs = cage.tree()["."]
    assert (mode, uid, gid, time, xattrs) == (oct(0o40711), 12, 13, MTIME * 10**9, {"user.a": b"b"})


def test_without_a_root_entry_the_target_keeps_its_mode(cage: Cage) -> None:
    os.chmod(cage.target, 0o750)
    cage.unpack(pack(file("f")))
    assert stat.S_IMODE(cage.target.stat().st_mode) == 0o750


def test_missing_parents_and_the_umask(cage: Cage) -> None:
    before = os.umask(0o077)
    try:
        cage.unpack(pack(file("a/b/f", mode=0o666), directory("d", mode=0o777)))
    finally:
        os.umask(before)
    modes = {name: value[0] for name, value in cage.tree().items()}
    assert (modes["a"], modes["a/b"], modes["a/b/f"], modes["d"]) == ("0o40755", "0o40755", "0o100666", "0o40777")


def test_times_of_directories_that_are_entered_again(cage: Cage) -> None:
    cage.unpack(pack(directory("a"), file("a/1"), directory("b"), file("b/1"), file("a/2"), file("a/c/3")))
    assert {cage.tree()[name][3] for name in ("a", "b")} == {MTIME * 10**9}


def test_a_default_acl_is_not_handed_down(cage: Cage, source: Path) -> None:
    acl = os.getxattr(source / "acl", "system.posix_acl_default")
    record = (b"SCHILY.xattr.system.posix_acl_default", acl)
    rest = pack(file("d/f", mode=0o640), directory("d/e", mode=0o750))
    cage.unpack(pax(record) + header(b"d", b"5", mode=b"0002775") + rest)
    found = cage.tree()
    assert "system.posix_acl_default" in found["d"][-1]
    assert found["d/f"][0::6] == ("0o100640", {})
    assert found["d/e"][0::6] == ("0o40750", {})


def test_set_id_bits_and_capabilities_survive_the_change_of_owner(cage: Cage) -> None:
    record = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}
    cage.unpack(pack(file("su", b"x", mode=0o6755, uid=9, gid=10), file("ping", b"x", uid=9, gid=10, pax=record)))
    assert cage.tree()["su"][:3] == ("0o106755", 9, 10)
    assert cage.tree()["ping"][-1] == {"security.capability": CAPABILITY}


def test_absolute_and_dotted_names_stay_inside(cage: Cage) -> None:
    cage.unpack(pack(file("/etc/passwd", b"1"), file("./././b//c", b"2")))
    assert cage.names() == {"etc", "etc/passwd", "b", "b/c"}


def test_symlinked_parents_lead_to_places_inside(cage: Cage) -> None:
    archive = pack(
        directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/relative", b"1"),
        symlink("abs", "/usr/lib"), file("abs/absolute", b"2"), symlink("up", "../../../usr"), file("up/lib/up", b"3"),
        directory("lib/sub"), file("usr/lib/sub/f", b"4"),
    )  # fmt: skip
    cage.unpack(archive)
    assert {name for name in cage.names() if name.startswith("usr/lib/")} == {
        "usr/lib/relative", "usr/lib/absolute", "usr/lib/up", "usr/lib/sub", "usr/lib/sub/f",
    }  # fmt: skip
    assert cage.compare(archive) == []


def test_later_entries_replace_earlier_ones(cage: Cage) -> None:
    archive = pack(
        file("f", b"old"), hardlink("kept", "f"), file("f", b"new"),
        directory("d/sub", mode=0o700), file("d/sub/f"), symlink("d", "elsewhere"),
        symlink("s", "/etc"), directory("s"), file("s/inside", b"1"),
        file("x"), directory("x"), file("x/y"),
        directory("e", mode=0o711), file("e/f"), directory("e", mode=0o750), file("e/g"),
    )  # fmt: skip
    cage.unpack(archive)
    assert (cage.read("f"), cage.read("kept")) == ("new", "old")
    assert os.readlink(cage.target / "d") == "elsewhere"
    assert cage.tree()["s"][0] == "0o40755"
    assert cage.names() >= {"s/inside", "x/y", "e/f", "e/g"}
    assert cage.tree()["e"][0] == "0o40750"
    assert cage.compare(archive) == []


def test_a_directory_that_is_replaced_and_comes_back_is_a_new_one(cage: Cage) -> None:
    archive = pack(
        directory("d", mode=0o700), file("d/a/b/old"), symlink("link", "d/a"), file("link/b/older"),
        file("d"), file("e"), directory("d/a/b", mode=0o711), file("link/b/new"),
    )  # fmt: skip
    with pytest.raises(ImageError, match="not a directory"):
        cage.unpack(archive)
    again = Cage(cage.top / "again")
    archive = pack(
        directory("d", mode=0o700), file("d/a/b/old"), symlink("link", "d/a"), file("link/b/older"),
        file("d"), directory("d"), directory("d/a/b", mode=0o711), file("link/b/new"),
    )  # fmt: skip
    again.unpack(archive)
    assert again.names() == {"d", "d/a", "d/a/b", "d/a/b/new", "link"}
    assert again.compare(archive) == []


@pytest.mark.parametrize("instead", [symlink("s", "two"), directory("s")])
def test_a_symlink_that_is_replaced_leads_somewhere_else(cage: Cage, instead: Entry) -> None:
    archive = pack(directory("one"), directory("two"), symlink("s", "one"), file("s/a"), instead, file("s/b"))
    cage.unpack(archive)
    assert cage.names() - {"one", "two", "s"} == {"one/a", f"{instead[0].linkname or 's'}/b"}


def test_hard_links_to_symlinks_and_among_each_other(cage: Cage) -> None:
    archive = pack(
        symlink("s", "/etc/passwd"), hardlink("t", "s"), file("f", b"x"), hardlink("g", "f"), hardlink("h", "./g"),
        hardlink("h", "f"), hardlink("f", "f"), directory("d"),
        symlink("dd", "d"), hardlink("dd/i", "h"), hardlink("d/i", "dd/i"),
    )  # fmt: skip
    cage.unpack(archive)
    assert os.readlink(cage.target / "t") == "/etc/passwd"
    assert (cage.target / "f").stat().st_nlink == 4
    assert cage.compare(archive) == []


class TestStrip:
    ARCHIVE = pack(
        directory("./"), file("./manifest", b"{}"), directory("rootfs", mode=0o750), file("rootfs/bin/sh", b"sh"),
        hardlink("rootfs/bin/bash", "rootfs/bin/sh"), file("other", b"?"),
    )  # fmt: skip

    def test_only_what_is_below(self, cage: Cage) -> None:
        seen: dict[bytes, bytes] = {}

        def note(member: Member, reader: Reader) -> None:
            seen[member.name] = reader.read(member.size)

        result = cage.unpack(self.ARCHIVE, strip="rootfs", on_other=note)
        assert seen == {b"manifest": b"{}", b"other": b"?"}
        assert cage.names() == {"bin", "bin/sh", "bin/bash"}
        assert cage.tree()["."][0] == "0o40750"
        assert result.entries == 3
        assert cage.compare(self.ARCHIVE, strip="rootfs") == []

    def test_other_entries_are_refused_without_a_taker(self, cage: Cage) -> None:
        with pytest.raises(ImageError, match=r"'\./manifest' does not belong here"):
            cage.unpack(self.ARCHIVE, strip="rootfs")

    @pytest.mark.parametrize("to", ["bin/sh", "../rootfs/f", "manifest", "rootfsx/f", "/etc/passwd"])
    def test_hard_links_out_of_the_root(self, cage: Cage, to: str) -> None:
        with pytest.raises(ImageError):
            cage.unpack(pack(file("rootfs/f"), hardlink("rootfs/g", to)), strip="rootfs")

    def test_the_root_must_be_a_directory(self, cage: Cage) -> None:
        for root in (symlink("rootfs", "/"), file("rootfs"), hardlink("rootfs", "rootfs/x")):
            with pytest.raises(ImageError):
                cage.unpack(pack(root, file("rootfs/etc/x")), strip="rootfs")


def test_a_target_that_is_not_empty(cage: Cage) -> None:
    (cage.target / "f").touch()
    with pytest.raises(StoreError, match="not an empty directory"):
        cage.unpack(pack(file("g")))


def test_a_target_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file or directory"):
        unpack_layer(io.BytesIO(pack(file("f"))), str(tmp_path / "missing"), whiteouts=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_full_disk_is_the_stores_error(small_disk: Path) -> None:
    target = small_disk / "target"
    target.mkdir()
    with pytest.raises(StoreError, match="archive entry 'big': write: no space left on device") as caught:
        unpack_layer(io.BytesIO(pack(file("f"), file("big", bytes(2 << 20)))), str(target), whiteouts=False)
    assert caught.value.hint


def test_no_descriptors_are_left(cage: Cage) -> None:
    before = os.listdir("/proc/self/fd")
    cage.unpack(pack(*(file(f"{index}/{index}/f") for index in range(300)), form=tarfile.GNU_FORMAT))
    for archive in (pack(file("f"), hardlink("g", "no")), pack(*(directory(f"d{i}") for i in range(9)), file("../x"))):
        with pytest.raises(ImageError):
            Cage(cage.top / archive.hex()[-1100:-1090] / str(len(os.listdir(cage.top)))).unpack(archive)
    assert os.listdir("/proc/self/fd") == before


def test_few_descriptors_suffice(cage: Cage) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        cage.unpack(pack(*(file(f"{index}/f") for index in range(900)), file("n/" * 60 + "f")), limits=Limits())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(cage.names()) == 1861


def test_errors_name_entry_call_and_reason(cage: Cage) -> None:
    with pytest.raises(ImageError, match=f"'{'n' * 200}…': open: {os.strerror(errno.ENAMETOOLONG).lower()}"):
        cage.unpack(pack(file("n" * 256)))
