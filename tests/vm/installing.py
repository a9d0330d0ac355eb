"""rkpy as its users install it: its wheel, by pip, for Debian's own Python, and what it needs beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.machine import ROOT, packages

PYTHON = "/usr/bin/python3"
_NOT_SOURCE = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")


def tree(place: Path) -> Path:
    """A directory whose content is to be copied to `/`."""
    installed = place / "installed"
    (wheel,) = build(place).glob("rkpy-*.whl")
    # As root of Debian's Python, which would rather have packages of Debian's; nobody there has any of these.
    _pip(
        f"--python={PYTHON}", "install", "--no-deps", "--no-index", "--break-system-packages",
        "--no-warn-script-location", "--root-user-action=ignore", f"--root={installed}", wheel,
    )  # fmt: skip
    # The machine has no network; these are what pip would find.
    for source, target in packages("usr/local/lib/python3.11/dist-packages", "rkpy").items():
        (installed / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, installed / target)
    return installed


def build(place: Path) -> Path:
    """A directory with the wheel of this checkout, which stays as it is."""
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=_NOT_SOURCE)
    _pip("wheel", "--no-deps", f"--wheel-dir={place}/wheels", place / "source")
    return place / "wheels"


def _pip(*words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)], check=True
    )
