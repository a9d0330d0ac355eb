"""A sealed process takes nothing from the file system any more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEAL = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from common.imports import seal; seal(); "


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["colorsys", "encodings.punycode", "stage1"])
def test_modules_are_not_looked_for(name: str) -> None:
    assert python(SEAL.replace("seal(); ", f"import {name}")).returncode == 0, "the control"
    done = python(SEAL + f"import {name}")
    assert done.returncode == 1
    assert done.stderr == f"ModuleNotFoundError: No module named '{name}'\n"


def test_what_was_imported_stays() -> None:
    done = python(SEAL + r"import os, time; print('\x01\u200b'.encode('unicode_escape').decode())")
    assert (done.returncode, done.stdout) == (0, "\\x01\\u200b\n"), done
