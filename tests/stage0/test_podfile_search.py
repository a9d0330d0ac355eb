"""Which files count: precedence, masks, drop-ins, templates and instances."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stage0 import caller
from stage0.config import Config
from stage0.podfile import search
from tests.stage0.podfiles import write


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    return tuple(str(tmp_path / name) for name in ("etc", "run", "usr"))


def names(folders: tuple[str, ...]) -> dict[str, str]:
    """Which folder each pod comes from, and what is masked."""
    found, mistakes = search.find(folders)
    assert not mistakes
    return {file.name: "masked" if file.masked else os.path.basename(os.path.dirname(file.path)) for file in found}


def test_the_first_of_a_name_counts(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for place in ("usr/a", "usr/b", "usr/c", "run/b", "run/c", "etc/c"):
        write(tmp_path / f"{place}.pod", "[Pod]\n")
    assert names(folders) == {"a": "usr", "b": "run", "c": "etc"}


@pytest.mark.parametrize(
    ("uid", "expected"),
    [(0, ["/etc/rkpy/pods", "/run/rkpy/pods", "/usr/lib/rkpy/pods"]), (1000, ["/home/me/rkpy/pods"])],
)
def test_a_user_has_his_own_pods_only(monkeypatch: pytest.MonkeyPatch, uid: int, expected: list[str]) -> None:
    monkeypatch.setattr(caller, "UID", uid)
    monkeypatch.setattr(caller, "runtime", lambda environment: "")
    monkeypatch.setenv("HOME", "/home/me")
    assert list(search.directories(Config(user_config="/home/me/rkpy"))) == expected


def test_no_folders_no_pods(folders: tuple[str, ...]) -> None:
    assert search.find(folders) == ([], [])


def test_masks(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"usr/{name}.pod", "[Pod]\n")
    write(tmp_path / "etc/a.pod", "")
    (tmp_path / "etc/b.pod").symlink_to("/dev/null")
    (tmp_path / "etc/c.pod").symlink_to("../usr/c.pod")
    assert names(folders) == {"a": "masked", "b": "masked", "c": "etc"}


def test_other_files_are_none_of_ours(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write(tmp_path / "etc/a.json", "{}")
    write(tmp_path / "etc/a.pod.d/x.conf", "")
    write(tmp_path / "etc/a.pod~", "")
    (tmp_path / "etc/dir.pod").mkdir()
    assert names(folders) == {}


@pytest.mark.parametrize("name", ["a b", "@x", "é", "a" * 250, "a@b c"])
def test_names_no_unit_can_have(tmp_path: Path, folders: tuple[str, ...], name: str) -> None:
    write(tmp_path / f"etc/{name}.pod", "[Pod]\n")
    found, (mistake,) = search.find(folders)
    assert not found
    assert "cannot be the name of a unit" in mistake.message


def test_a_symlink_that_leads_nowhere(tmp_path: Path, folders: tuple[str, ...]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a.pod").symlink_to("nowhere")
    ((file,), _) = search.find(folders)
    assert [str(mistake) for mistake in search.read(file).mistakes] == [f"{file.path}: no such file or directory"]


def test_no_file_can_hold_the_boot_up(tmp_path: Path, folders: tuple[str, ...]) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/a.pod")
    ((file,), _) = search.find(folders)
    assert search.read(file).entries == ()
    # With somebody at its other end there is something to wait for.
    writer = os.open(tmp_path / "etc/a.pod", os.O_RDWR | os.O_NONBLOCK)
    assert [str(mistake) for mistake in search.read(file).mistakes] == [f"{file.path}: this is not a regular file"]
    os.close(writer)


def merged(folders: tuple[str, ...], name: str) -> list[str]:
    return [entry.value for entry in search.read(next(f for f in search.find(folders)[0] if f.name == name)).entries]


def test_drop_ins_by_name_from_all_folders(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write(tmp_path / "usr/web.pod", "[Pod]\nImage=main\n")
    for place, value in {"usr": "1", "run": "2", "etc": "3"}.items():
        write(tmp_path / f"{place}/web.pod.d/{value}0.conf", f"[Pod]\nX={value}0\n")
        write(tmp_path / f"{place}/web.pod.d/same.conf", f"[Pod]\nX=same-{value}\n")
    write(tmp_path / "usr/web.pod.d/masked.conf", "[Pod]\nX=masked\n")
    (tmp_path / "etc/web.pod.d/masked.conf").symlink_to("/dev/null")
    write(tmp_path / "etc/web.pod.d/README", "[Pod]\nX=readme\n")
    assert merged(folders, "web") == ["main", "10", "20", "30", "same-3"]


def test_drop_ins_of_more_than_one_pod(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write(tmp_path / "etc/a-b-c@1.pod", "[Pod]\nImage=main\n")
    for order, name in enumerate(("pod.d", "a-.pod.d", "a-b-.pod.d", "a-b-c@.pod.d", "a-b-c@1.pod.d")):
        write(tmp_path / f"etc/{name}/{order}.conf", f"[Pod]\nX={name}\n")
        write(tmp_path / f"etc/{name}/same.conf", f"[Pod]\nX=same {name}\n")
    write(tmp_path / "etc/a-b-c.pod.d/x.conf", "[Pod]\nX=no\n")
    assert merged(folders, "a-b-c@1") == [
        "main", "pod.d", "a-.pod.d", "a-b-.pod.d", "a-b-c@.pod.d", "a-b-c@1.pod.d", "same a-b-c@1.pod.d",
    ]  # fmt: skip


def test_instances_by_symlink(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write(tmp_path / "usr/web@.pod", "[Pod]\nImage=%i\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/web@1.pod").symlink_to(tmp_path / "usr/web@.pod")
    write(tmp_path / "etc/web@1.pod.d/x.conf", "[Pod]\nMemory=1G\n")
    found = {file.name: file for file in search.find(folders)[0]}
    assert found.keys() == {"web@", "web@1"}
    assert found["web@"].is_template
    assert not found["web@1"].is_template
    assert merged(folders, "web@1") == ["%i", "1G"]
    assert merged(folders, "web@") == ["%i"]


def test_a_file_by_its_path(tmp_path: Path, folders: tuple[str, ...]) -> None:
    elsewhere = write(tmp_path / "home/web.pod", "[Pod]\n")
    write(tmp_path / "home/web.pod.d/1.conf", "[Pod]\n")
    inside = write(tmp_path / "usr/web.pod", "[Pod]\n")
    write(tmp_path / "etc/web.pod.d/2.conf", "[Pod]\n")
    assert search.at(elsewhere, folders).dropins == (str(tmp_path / "home/web.pod.d/1.conf"),)
    assert search.at(inside, folders).dropins == (str(tmp_path / "etc/web.pod.d/2.conf"),)
