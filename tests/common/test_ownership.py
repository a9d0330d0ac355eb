"""Whose a directory is; what needs other users is in tests/host/test_ordinary_images.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import ownership, users


@pytest.fixture(params=[False, True], ids=["the host's", "a user namespace's"])
def confined(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    inside: bool = request.param or os.geteuid() != 0
    monkeypatch.setattr(users, "confined", lambda: inside)
    return inside


def test_what_we_made_is_ours(tmp_path: Path, confined: bool) -> None:
    ownership.claim(str(tmp_path))
    assert ownership.objection(str(tmp_path)) == ""
    assert os.listdir(tmp_path) == (["userxattr"] if confined else [])


def test_what_is_not_there_is_nobody_elses(tmp_path: Path) -> None:
    assert ownership.objection(str(tmp_path / "missing")) == ""


def test_the_other_kind_of_marks(tmp_path: Path, confined: bool) -> None:
    if not confined:
        (tmp_path / "userxattr").touch()
    expected = "it was made outside of a user namespace" if confined else "it was made in a user namespace"
    assert ownership.objection(str(tmp_path)) == expected


def test_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    assert ownership.objection(str(tmp_path)).startswith("it belongs to ")
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to("/")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat("/").st_uid)
    if os.lstat(link).st_uid != os.geteuid():  # the owner of a symlink may put anything in its place
        assert ownership.objection(str(link)).startswith("it belongs to ")


@pytest.mark.parametrize("inside", [False, True])
def test_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    monkeypatch.setattr(users, "confined", lambda: inside)
    path = tmp_path / "local" / "share" / "rkpy"
    before = os.umask(0)
    try:
        ownership.make_data_directory(str(path))
    finally:
        os.umask(before)
    above = [os.stat(each).st_mode & 0o777 for each in (path.parent, path.parent.parent)]
    assert above == [0o700 if inside else 0o755] * 2  # Whoever could write there could put another in its place.
    assert os.stat(path).st_mode & 0o777 == (0o700 if inside else 0o750)
    os.chmod(path, 0o755)
    ownership.make_data_directory(str(path))
    assert os.stat(path).st_mode & 0o777 == 0o755
