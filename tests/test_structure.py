"""The design, held: which room imports which, and what the start path may cost."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED = {
    "common": {"common"},
    "aci": {"aci", "common"},
    "stage2": {"stage2", "common"},
    "stage1": {"stage1", "stage2", "aci", "common"},
    "stage0": {"stage0", "stage1", "stage2", "aci", "common", "rkpy"},
}
HEAVY = {
    "click", "dataclasses", "pathlib", "uuid", "subprocess", "logging", "gnupg", "isal", "zstandard", "tempfile",
    "shutil", "hashlib", "tarfile", "datetime", "urllib", "asyncio", "inspect", "socket", "threading", "random",
    "cryptography", "yaml",
}  # fmt: skip


def _imports(path: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    rooms = {*ALLOWED, "rkpy"}
    wrong = {
        str(path.relative_to(ROOT)): _imports(path) & rooms - ALLOWED[room]
        for path in (ROOT / room).rglob("*.py")
        if _imports(path) & rooms - ALLOWED[room]
    }
    assert not wrong


def test_two_modules_know_ctypes() -> None:
    users = {
        str(path.relative_to(ROOT))
        for room in ALLOWED
        for path in (ROOT / room).rglob("*.py")
        if "ctypes" in _imports(path)
    }
    assert users == {"common/libseccomp.py", "common/syscalls.py"}


@pytest.mark.parametrize("module", ["stage0.starting", "stage1.fly", "stage2.launch", "aci.store", "stage1.nspawn"])
def test_the_start_path_imports_nothing_heavy(module: str) -> None:
    code = f"import sys; import stage0.main, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not HEAVY & {name.partition(".")[0] for name in loaded.stdout.split()}


@pytest.mark.parametrize("module", ["stage1.boot", "stage1.monitor", "stage1.supervisor", "stage1.entrance"])
def test_what_stays_with_a_pod_is_small(module: str) -> None:
    """These run while the pod does, under an interpreter that was started for them alone."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {module}; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not (HEAVY | {"stage0", "aci", "site"}) & {name.partition(".")[0] for name in loaded}


def test_named_tuples_are_the_cheap_ones() -> None:
    users = {
        str(path.relative_to(ROOT))
        for room in ALLOWED
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "typing" and "NamedTuple" in {n.name for n in node.names}
    }
    assert users == {"common/records.py"}
