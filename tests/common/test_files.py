"""Removal of trees that do not want to be removed, and replacing files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import files


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_replace_writes_whole_files_with_a_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(str(path), b"one", mode=0o600)
    files.replace(str(path), b"two", mode=0o640, durable=True)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_replace_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace(str(tmp_path / "directory"), b"x")
    assert os.listdir(tmp_path) == ["directory"]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_make_directory_is_not_bent_by_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert files.make_directory(str(tmp_path / "new"), 0o750)
        assert not files.make_directory(str(tmp_path / "new"), 0o700)
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750


def test_make_directory_keeps_an_inherited_group_bit(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    before = os.umask(0o077)
    try:
        files.make_directory(str(tmp_path / "new"), 0o750)
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o2750


def test_remove_missing_is_fine(top: int) -> None:
    files.remove_tree("nothing", dir_fd=top)


def test_remove_a_file_and_a_symlink_itself(tmp_path: Path, top: int) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "link").symlink_to("kept")
    files.remove_tree("link", dir_fd=top)
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["file"]
    files.remove_tree("kept", dir_fd=top)
    assert os.listdir(tmp_path) == []


def test_remove_a_tree_with_every_kind_of_entry(tmp_path: Path, top: int) -> None:
    tree = tmp_path / "tree"
    for directory in ("a/b/c", "a/d", "e"):
        (tree / directory).mkdir(parents=True)
    for name in ("a/file", "a/b/new\nline", "a/b/c/-rf", "e/\udcff"):
        (tree / name).touch()
    (tree / "a/up").symlink_to("../..")
    (tree / "a/loop").symlink_to("loop")
    os.mkfifo(tree / "a/pipe")
    os.link(tree / "a/file", tree / "e/link")
    files.remove_tree("tree", dir_fd=top)
    assert os.listdir(tmp_path) == []


def test_nothing_outside_the_tree_is_touched(tmp_path: Path, top: int) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/absolute").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/relative").symlink_to("../outside")
    files.remove_tree("tree", dir_fd=top)
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_a_tree_deeper_than_any_path(tmp_path: Path, top: int) -> None:
    """20000 levels: too deep for a path (4096 bytes), for recursion, and for one descriptor a level."""
    current = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20000):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("file", os.O_CREAT, dir_fd=current))
    os.close(current)
    files.remove_tree("d", dir_fd=top)
    assert os.listdir(tmp_path) == []


def test_a_wide_tree(tmp_path: Path, top: int) -> None:
    for number in range(300):
        (tmp_path / f"wide/{number}/x").mkdir(parents=True)
    files.remove_tree("wide", dir_fd=top)
    assert os.listdir(tmp_path) == []


def test_no_descriptor_is_left(tmp_path: Path, top: int) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    files.remove_tree("a", dir_fd=top)
    assert os.listdir("/proc/self/fd") == before


def test_a_directory_that_is_moved_away_meanwhile_leads_nowhere(
    tmp_path: Path, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `..` would be somewhere else, and so would what is removed next."""
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "elsewhere/b").mkdir(parents=True)
    empty = files._empty

    def move_when_inside(fd: int) -> list[str]:
        names = empty(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/a/b"):
            os.rename(tmp_path / "tree/a/b", tmp_path / "elsewhere/moved")
        return names

    monkeypatch.setattr(files, "_empty", move_when_inside)
    with pytest.raises(OSError, match="moved while it was being removed"):
        files.remove_tree("tree", dir_fd=top)
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["b", "moved"]


@pytest.mark.parametrize("attribute", ["i", "a"])
def test_attributes_that_forbid_removal(tmp_path: Path, top: int, attribute: str) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").touch()
    names = ["tree/sub/file", "tree/sub", "tree"]
    try:
        for name in names:
            done = subprocess.run(["chattr", f"+{attribute}", tmp_path / name], capture_output=True, check=False)
            if done.returncode:
                pytest.skip("the file system or the user cannot set attributes")
        files.remove_tree("tree", dir_fd=top)
    finally:
        for name in reversed(names):
            subprocess.run(["chattr", f"-{attribute}", tmp_path / name], capture_output=True, check=False)
    assert os.listdir(tmp_path) == []


def test_no_directory_on_the_way_is_for_all_to_write_to(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.make_directories(str(tmp_path / "a" / "b" / "c"), 0o755)
        files.make_directories(str(tmp_path / "a" / "b" / "c"), 0o700)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")] == [0o755] * 3
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.make_directories(str(tmp_path / "file" / "d"), 0o755)
