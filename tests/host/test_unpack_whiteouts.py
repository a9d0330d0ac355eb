"""OCI whiteouts become overlayfs's: seen through a real overlay mount where that is what matters."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common import overlay
from common.errors import ImageError, StoreError
from tests.host.unpacking import Cage
from tests.tars import Entry, device, directory, file, pack, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OPAQUE = {overlay.opaque(): b"y"}
LOWER = pack(
    directory("d", mode=0o755), file("d/one", b"lower"), file("d/two", b"lower"), directory("d/sub"), file("d/sub/f"),
    file("top", b"lower"), symlink("link", "top"),
)  # fmt: skip


@pytest.fixture
def cage(tmp_path: Path) -> Cage:
    return Cage(tmp_path)


@contextmanager
def _overlay(tmp_path: Path, lower: Cage, upper: Cage) -> Iterator[Path]:
    merged = tmp_path / "merged"
    merged.mkdir()
    options = ",".join([f"lowerdir={upper.target}:{lower.target}", *(name for name, _ in overlay.options())])
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


def _merged(tmp_path: Path, *entries: Entry) -> set[str]:
    """The paths seen when a layer of `entries` lies on LOWER."""
    lower, upper = Cage(tmp_path / "1"), Cage(tmp_path / "2")
    lower.unpack(LOWER, whiteouts=True)
    archive = pack(*entries)
    upper.unpack(archive, whiteouts=True)
    assert upper.compare(archive, whiteouts=True) == []
    with _overlay(tmp_path, lower, upper) as merged:
        return {str(path.relative_to(merged)) for path in merged.rglob("*")}


ALL = {"d", "d/one", "d/two", "d/sub", "d/sub/f", "top", "link"}


def test_a_whiteout_hides_a_file(tmp_path: Path) -> None:
    assert _merged(tmp_path, directory("d"), file("d/.wh.one"), file(".wh.link")) == ALL - {"d/one", "link"}


def test_a_store_without_extended_attributes(tmp_path: Path) -> None:
    """It cannot mark a directory as opaque, and what it hides must not be seen."""
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        with pytest.raises(StoreError, match=r"'d/?': setxattr: operation not supported"):
            Cage(tmp_path).unpack(pack(directory("d"), file("d/.wh..wh..opq")), whiteouts=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_whiteout_hides_a_tree(tmp_path: Path) -> None:
    assert _merged(tmp_path, file(".wh.d")) == {"top", "link"}


def test_a_whiteout_of_what_is_not_there(tmp_path: Path) -> None:
    assert _merged(tmp_path, file(".wh.nothing"), directory("d"), file("d/.wh.nothing")) == ALL


@pytest.mark.parametrize(
    "entries",
    list(itertools.permutations([directory("d"), file("d/.wh..wh..opq"), file("d/new"), file("d/two", b"!")])),
)
def test_an_opaque_directory_hides_lower_layers_only(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    assert _merged(tmp_path, *entries) == {"d", "d/new", "d/two", "top", "link"}


@pytest.mark.parametrize("entries", list(itertools.permutations([file(".wh.top"), file("top", b"upper")])))
def test_a_file_of_the_same_layer_wins(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    assert _merged(tmp_path, *entries) == ALL


@pytest.mark.parametrize("entries", list(itertools.permutations([file(".wh.d"), directory("d"), file("d/new")])))
def test_a_directory_of_the_same_layer_starts_empty(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    """Without it, nothing below `d` of the lower layer would be hidden although the whiteout says so."""
    assert _merged(tmp_path, *entries) == {"d", "d/new", "top", "link"}


def test_the_forms_on_disk(cage: Cage) -> None:
    cage.unpack(pack(file("a/.wh.gone"), file("b/.wh..wh..opq"), file(".wh..wh..opq")), whiteouts=True)
    found = cage.tree()
    assert stat.S_ISCHR(int(found["a/gone"][0], 8))
    assert found["a/gone"][5] == (0, 0)
    assert (found["."][-1], found["b"][-1], found["a"][-1]) == (OPAQUE, OPAQUE, {})
    assert cage.names() == {"a", "a/gone", "b"}


def test_any_type_of_entry_is_a_whiteout_by_its_name(cage: Cage) -> None:
    cage.unpack(pack(directory(".wh.a"), symlink(".wh.b", "/"), device(".wh.c", tarfile.BLKTYPE, 8, 1)), whiteouts=True)
    assert {name: value[5] for name, value in cage.tree().items() if name != "."} == dict.fromkeys("abc", (0, 0))


def test_a_plain_device_0_0_is_one_too(tmp_path: Path) -> None:
    assert _merged(tmp_path, device("top"), directory("d"), device("d/one")) == ALL - {"top", "d/one"}


def test_a_mark_goes_with_the_directory_that_is_replaced(cage: Cage) -> None:
    archive = pack(directory("d"), file("d/.wh.x"), file("d/.wh..wh..opq"), file("d"), directory("d"))
    cage.unpack(archive, whiteouts=True)
    assert cage.names() == {"d"}
    assert cage.tree()["d"][-1] == {}
    assert cage.compare(archive, whiteouts=True) == []


def test_the_time_of_a_directory_with_whiteouts(cage: Cage) -> None:
    cage.unpack(pack(directory("d", mtime=77), file("d/.wh.x"), file("d/.wh..wh..opq")), whiteouts=True)
    assert cage.tree()["d"][3] == 77 * 10**9


def test_a_marker_through_a_symlink_stays_inside(cage: Cage) -> None:
    cage.unpack(pack(directory("d"), symlink("s", "/d"), file("s/.wh.x"), file("s/.wh..wh..opq")), whiteouts=True)
    assert cage.names() == {"d", "d/x", "s"}
    assert cage.tree()["d"][-1] == OPAQUE


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.d/f", "a/.wh.d/b/f", ".wh.d/.wh.f"])
def test_whiteouts_without_sense(cage: Cage, name: str) -> None:
    with pytest.raises(ImageError, match="whiteout"):
        cage.unpack(pack(file(name)), whiteouts=True)


def test_the_bookkeeping_of_aufs_is_left_out(cage: Cage) -> None:
    archive = pack(directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs"), file("f"))
    result = cage.unpack(archive, whiteouts=True)
    assert cage.names() == {"f"}
    assert "3 entries" in result.warnings[0]
    assert cage.compare(archive, whiteouts=True) == []


def test_an_aci_has_no_whiteouts(cage: Cage) -> None:
    cage.unpack(pack(file(".wh.f"), directory("d"), file("d/.wh..wh..opq")))
    assert cage.names() == {".wh.f", "d", "d/.wh..wh..opq"}


def test_names_that_only_contain_the_prefix(cage: Cage) -> None:
    cage.unpack(pack(file("a.wh.b"), file(".wh"), file("c.wh./d")), whiteouts=True)
    assert cage.names() == {"a.wh.b", ".wh", "c.wh.", "c.wh./d"}
