"""rkpy as pip installs it: a wheel made of the clone, in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import images

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "build", "*.egg-info", ".hypothesis", "tests"
)


def run(*words: object, status: int = 0) -> str:
    """Standard output of a command that sees nothing of the clone."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=TIMEOUT, cwd="/", env=environment, check=False
    )
    assert done.returncode == status, done
    return done.stdout


def pip(*words: object) -> None:
    run(sys.executable, "-m", "pip", *words)


def installed(place: Path, *what: object) -> Path:
    """The rkpy of a new virtual environment. What rkpy depends on it has from the one of the tests, rkpy itself not."""
    run(sys.executable, "-m", "venv", "--without-pip", place)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip("--python", place / "bin" / "python", "install", "-q", "--no-deps", *what)
    return place / "bin" / "rkpy"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because building writes into the tree."""
    copy = tmp_path_factory.mktemp("clone") / "rkpy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    return copy


@pytest.fixture(scope="module")
def rkpy(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-q", "--no-deps", "-w", directory, clone)
    return installed(directory / "venv", next(directory.glob("*.whl")))


def test_a_pod_runs(rkpy: Path, tmp_path: Path) -> None:
    aci = images.make_aci(str(tmp_path / "app.aci"), images.manifest(), images.busybox_files())
    words = (f"--dir={tmp_path / 'data'}", "--insecure-options=image", "run", "--net=none", aci, "--")
    assert run(rkpy, *words, "-c", "echo from a wheel") == "from a wheel\n"
    for _ in range(2):
        run(rkpy, f"--dir={tmp_path / 'data'}", "gc", "--grace-period=0s")


def test_the_units_run_the_program_that_installs_them(rkpy: Path, tmp_path: Path) -> None:
    run(rkpy, "install-units", f"--root={tmp_path}")
    unit = (tmp_path / "usr/local/lib/systemd/system/rkpy-gc.service").read_text()
    assert f"ExecStart={rkpy} gc --quiet --grace-period=24h\n" in unit
    sources = {path.name for path in (ROOT / "systemd-units").rglob("*") if path.is_file()}
    present = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    named_otherwise = {name for name in sources if name.endswith(".conf")}
    assert sources - named_otherwise <= present
    for whose in ("system", "user"):
        generator = tmp_path / f"usr/local/lib/systemd/{whose}-generators/rkpy-generator"
        assert os.access(generator, os.X_OK)
        assert f"exec {rkpy} " in generator.read_text()
        assert (generator.parents[1] / whose / "rkpy-gc.timer").exists()
    run(rkpy, "install-units", f"--root={tmp_path}", "--uninstall")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_program_that_systemd_finds_is_named_alone(rkpy: Path, tmp_path: Path) -> None:
    there = tmp_path / "usr" / "local" / "bin"
    there.mkdir(parents=True)
    (there / "rkpy").symlink_to(rkpy)
    run(rkpy, "install-units", f"--root={tmp_path}")
    unit = (tmp_path / "usr/local/lib/systemd/system/rkpy-gc.service").read_text()
    assert "ExecStart=rkpy gc --quiet --grace-period=24h\n" in unit


def test_an_editable_installation_has_the_units_too(clone: Path, tmp_path: Path) -> None:
    rkpy = installed(tmp_path / "venv", "-e", clone)
    assert "system/rkpy-gc.timer" in run(rkpy, "install-units", f"--root={tmp_path / 'root'}", "--dry-run")
