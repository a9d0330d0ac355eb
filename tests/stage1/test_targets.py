"""Places in a hostile root, found and made by descriptor; needs no root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.targets import AppRoot, mount_id, open_target


@pytest.fixture
def root(tmp_path: Path) -> Iterator[AppRoot]:
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH)
    yield AppRoot(fd, {mount_id(fd)}, set())
    os.close(fd)


def _where(root: AppRoot, path: str, *, directory: bool = True) -> str:
    """The place as a path below the root."""
    top = os.readlink(f"/proc/self/fd/{root.fd}")
    fd = open_target(root, path, directory=directory)
    place = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert place.startswith(f"{top}/")
    return place.removeprefix(top)


@pytest.mark.parametrize(
    ("links", "path", "place"),
    [
        ({}, "/a/b", "/a/b"),
        ({"a": "/x"}, "/a/b", "/x/b"),
        ({"a": "x/y"}, "/a/b", "/x/y/b"),
        ({"a": "../../x"}, "/a", "/x"),
        ({"a": "/b", "b": "c", "c": "/d/../e"}, "/a/f", "/e/f"),
        ({"a": "/"}, "/a/b", "/b"),
        ({"a": "b/../c"}, "/a", "/c"),
        ({"d/e/f": "/g"}, "/d/e/f/h", "/g/h"),
        ({"d/e/f": "g"}, "/d/e/f/h", "/d/e/g/h"),
    ],
)
def test_links_are_followed_inside(root: AppRoot, tmp_path: Path, links: dict[str, str], path: str, place: str) -> None:
    for name, text in links.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).symlink_to(text)
    assert _where(root, path) == place
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_modes_do_not_depend_on_the_umask(root: AppRoot, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        _where(root, "/a/b/f", directory=False)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.stat(tmp_path / "root" / name).st_mode) for name in ("a", "a/b", "a/b/f")]
    assert modes == [0o755, 0o755, 0o644]


def test_nothing_is_created_outside_the_pods_mounts(root: AppRoot, tmp_path: Path) -> None:
    (tmp_path / "root/there").mkdir()
    foreign = AppRoot(root.fd, set(), set())
    assert _where(foreign, "/there") == "/there"
    with pytest.raises(OSError, match="would write to the host"):
        open_target(foreign, "/there/new", directory=True)
    assert os.listdir(tmp_path / "root/there") == []


def test_a_long_chain_of_links_is_given_up(root: AppRoot, tmp_path: Path) -> None:
    """Each leads through a directory that is missing, where the kernel stops, so the counting is ours."""
    for number in range(60):
        (tmp_path / "root" / f"l{number}").symlink_to(f"/new{number}/../l{number + 1}")
    with pytest.raises(OSError, match="symbolic links"):
        open_target(root, "/l0", directory=True)
    assert _where(root, "/l30") == "/l60"


@pytest.mark.parametrize("path", ["/", "/.", "//", "/..", "/a/.."])
def test_the_root_itself_is_refused(root: AppRoot, path: str) -> None:
    with pytest.raises(OSError, match="the root itself"):
        open_target(root, path, directory=True)


_NAMES = st.sampled_from(["a", "b", "c", "..", "."])
_PATHS = st.lists(_NAMES, min_size=1, max_size=5).map("/".join)
_LINKS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(st.sampled_from(["", "/"]), _PATHS).map("".join))


@settings(max_examples=300, deadline=None)
@given(links=_LINKS, path=_PATHS)
def test_no_tangle_of_links_leads_out(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], path: str
) -> None:
    top = tmp_path_factory.mktemp("tangle")
    (top / "in/root").mkdir(parents=True)
    for name, text in links.items():
        (top / "in/root" / name).symlink_to(text)
    fd = os.open(top / "in/root", os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    try:
        os.close(open_target(AppRoot(fd, {mount_id(fd)}, set()), f"/{path}", directory=True))
    except OSError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)
    assert (os.listdir(top), os.listdir(top / "in")) == (["in"], ["root"])


def test_a_directory_that_was_exchanged_keeps_its_mode(
    root: AppRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that shares a volume with the one that is being started is as quick as it likes to be."""
    top = tmp_path / "root"
    (top / "private").mkdir(mode=0o700)
    mkdir = os.mkdir

    def mkdir_and_exchange(path: str, mode: int, *, dir_fd: int) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        (top / "new").rmdir()
        (top / "private").rename(top / "new")

    monkeypatch.setattr(os, "mkdir", mkdir_and_exchange)
    _where(root, "/new")
    assert stat.S_IMODE((top / "new").stat().st_mode) == 0o700
