"""Units and what goes with them, installed below a directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from common import files
from common.errors import ConfigError, RkpyError
from stage0 import installing, invocation
from stage0.commands import install_units

UNITS = Path(__file__).parents[2] / "systemd-units"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One date for the manual pages, and the umask as it was."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    before = os.umask(0o077)
    yield
    os.umask(before)


def run(*words: object) -> Result:
    return CliRunner().invoke(install_units.command, list(map(str, words)), standalone_mode=False)


def ok(*words: object) -> list[str]:
    done = run(*words)
    assert done.exception is None, done
    return done.stdout.splitlines()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_everything_has_a_place(tmp_path: Path) -> None:
    sources = [str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file()]
    assert all(map(installing.place_of, sources))
    assert len({installing.place_of(source) for source in sources}) == len(sources)
    assert installing.place_of("rkpy-generator") == "systemd/system-generators/rkpy-generator"
    assert installing.place_of("user/rkpy-generator") == "systemd/user-generators/rkpy-generator"
    assert installing.place_of("rkpy@.service") == "systemd/system/rkpy@.service"
    assert installing.place_of("user/rkpy@.service") == "systemd/user/rkpy@.service"
    assert installing.place_of("rkpy.catalog") == "systemd/catalog/rkpy.catalog"
    assert installing.place_of("rkpy.tmpfiles.conf") == "tmpfiles.d/rkpy.conf"
    assert installing.place_of("README.md") == installing.place_of("other.conf") == ""
    ok(f"--root={tmp_path}")
    present = tree(tmp_path)
    for name in (
        "usr/local/lib/systemd/system/rkpy-gc.service",
        "usr/local/lib/systemd/system-preset/80-rkpy.preset",
        "usr/local/lib/sysusers.d/rkpy.conf",
        "usr/local/share/man/man1/rkpy-run.1",
        "usr/local/share/man/man5/rkpy.pod.5",
        "usr/local/share/bash-completion/completions/rkpy",
        "usr/local/share/zsh/site-functions/_rkpy",
        "etc/fish/completions/rkpy.fish",
    ):
        assert present[name]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.service")} == {0o644}


def test_all_of_it_goes_again_and_nothing_else(tmp_path: Path) -> None:
    there = tmp_path / "usr/local/lib/systemd/system"
    there.mkdir(parents=True)
    (there / "other.service").write_text("[Unit]\n")
    installed = [line.removeprefix("installed ") for line in ok(f"--root={tmp_path}")]
    assert all(Path(path).exists() for path in installed)
    removed = [line.removeprefix("removed ") for line in ok(f"--root={tmp_path}", "--uninstall=true")]
    assert sorted(removed) == sorted(installed)
    assert list(tree(tmp_path)) == ["usr/local/lib/systemd/system/other.service"]
    assert not (tmp_path / "usr/local/share").exists()
    assert not (tmp_path / "etc").exists()
    assert ok(f"--root={tmp_path}", "--uninstall=true") == []


def test_a_second_time_nothing_is_done_and_a_new_version_replaces(tmp_path: Path) -> None:
    ok(f"--root={tmp_path}", "--program=rkpy")
    assert ok(f"--root={tmp_path}", "--program=rkpy") == []
    ok(f"--root={tmp_path}", "--program='/opt/a b/rkpy'")
    unit = tmp_path / "usr/local/lib/systemd/system/rkpy-gc.service"
    assert 'ExecStart="/opt/a b/rkpy" gc --quiet --grace-period=24h\n' in unit.read_text()


def test_what_a_new_version_does_not_have_is_removed(tmp_path: Path) -> None:
    ok(f"--root={tmp_path}")
    record = tmp_path / "usr/local/share/rkpy/installed.json"
    old = tmp_path / "usr/local/lib/systemd/system/rkpy-old.service"
    old.write_text("[Unit]\n")
    value = json.loads(record.read_text())
    value["files"]["/usr/local/lib/systemd/system/rkpy-old.service"] = [installing._sum(b"[Unit]\n")]
    record.write_text(json.dumps(value))
    assert ok(f"--root={tmp_path}") == [f"removed {old}"]
    assert not old.exists()


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_somebody_else_s_file_is_in_the_way(tmp_path: Path, kind: str) -> None:
    there = tmp_path / "usr/local/lib/systemd/system/rkpy-gc.service"
    there.parent.mkdir(parents=True)
    if kind == "file":
        there.write_text("mine")
    elif kind == "link":
        there.symlink_to("/dev/null")
    else:
        there.mkdir()
    error = run(f"--root={tmp_path}").exception
    assert isinstance(error, ConfigError) and "/system/rkpy-gc.service" in str(error)
    assert not (tmp_path / "usr/local/share").exists()


def test_what_was_changed_stays(tmp_path: Path) -> None:
    ok(f"--root={tmp_path}")
    unit = tmp_path / "usr/local/lib/systemd/system/rkpy-gc.service"
    unit.write_text("mine")
    assert isinstance(run(f"--root={tmp_path}").exception, ConfigError)
    done = run(f"--root={tmp_path}", "--uninstall=true")
    assert done.exception is None and "was changed and stays" in done.stderr
    assert tree(tmp_path) == {str(unit.relative_to(tmp_path)): b"mine"}


def test_an_installation_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(f"--root={tmp_path}", "--program=/old/rkpy")
    real = files.replace
    written: list[str] = []

    def replace(path: str, data: bytes, *, mode: int = 0o644) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device", path)
        written.append(path)
        real(path, data, mode=mode)

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", replace)
        assert isinstance(run(f"--root={tmp_path}", "--program=/new/rkpy").exception, RkpyError)
    ok(f"--root={tmp_path}", "--program=/new/rkpy")
    ok(f"--root={tmp_path}", "--uninstall=true")
    assert tree(tmp_path) == {}


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    assert ok(f"--root={tmp_path}", "--dry-run=true")
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "usr").mkdir(parents=True)
    outside.mkdir()
    (root / "usr/local").symlink_to(outside)
    assert "leads out of" in str(run(f"--root={root}").exception)
    assert list(outside.iterdir()) == []


def test_the_record_is_not_written_outside_either(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "usr/local/share").mkdir(parents=True)
    outside.mkdir()
    (root / "usr/local/share/rkpy").symlink_to(outside)
    assert "leads out of" in str(run(f"--root={root}").exception)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("path", ["/../outside/empty", "-beside"])
def test_a_record_names_nothing_outside(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    record = root / "usr/local/share/rkpy/installed.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"files": {}, "directories": [path]}))
    (tmp_path / "outside/empty").mkdir(parents=True)
    (tmp_path / "root-beside").mkdir()
    assert "leads out of" in str(run(f"--root={root}", "--uninstall=true").exception)
    assert (tmp_path / "outside/empty").exists()
    assert (tmp_path / "root-beside").exists()


@pytest.mark.parametrize("text", ["[", '{"files": [], "directories": []}', '{"files": {"/a": 1}, "directories": []}'])
def test_a_broken_record(tmp_path: Path, text: str) -> None:
    record = tmp_path / "usr/local/share/rkpy/installed.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    assert isinstance(run(f"--root={tmp_path}").exception, ConfigError)


def test_below_usr_debian_s_zsh_and_fish_look_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "usr/share/zsh/vendor-completions").mkdir(parents=True)
    ok(f"--root={tmp_path}", "--prefix=/usr")
    assert (tmp_path / "usr/share/zsh/vendor-completions/_rkpy").exists()
    assert (tmp_path / "usr/share/fish/vendor_completions.d/rkpy.fish").exists()
    assert not (tmp_path / "etc").exists()


def test_the_generator_runs_this_program_too() -> None:
    script = b"#!/bin/sh\nexec rkpy unit generate\n"
    assert installing._running(script, ["/a b/rkpy"]) == b"#!/bin/sh\nexec '/a b/rkpy' unit generate\n"
    unit = b"[Service]\nExecStart=rkpy gc\nExecStopPost=-rkpy gc\n# rkpy\nDescription=rkpy x\n"
    changed = b"[Service]\nExecStart=/r gc\nExecStopPost=-/r gc\n# rkpy\nDescription=rkpy x\n"
    assert installing._running(unit, ["/r"]) == changed


def test_the_program_is_named_as_systemd_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv, first, second = (tmp_path / name for name in ("venv", "first", "second"))
    for directory in (venv, first, second):
        directory.mkdir()
    own = venv / "rkpy"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setattr(invocation, "SEARCHED", (str(first), str(second)))
    monkeypatch.setattr("sys.argv", [str(own)])
    assert invocation.command() == (str(own),)
    (second / "rkpy").symlink_to(own)
    assert invocation.command() == ("rkpy",)
    (first / "rkpy").write_text("#!/bin/sh\n# another\n")
    (first / "rkpy").chmod(0o755)
    assert invocation.command() == (str(own),)
    monkeypatch.setattr("sys.argv", ["/x/rkpy.py"])
    assert invocation.command() == (sys.executable, "/x/rkpy.py")
