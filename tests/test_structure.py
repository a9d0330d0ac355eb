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
LIBRARY = {
    "abc", "binascii", "codecs", "collections", "contextlib", "copyreg", "ctypes", "encodings", "enum", "errno",
    "fcntl", "functools", "gc", "genericpath", "io", "itertools", "json", "keyword", "marshal", "operator", "os",
    "posix", "posixpath", "re", "reprlib", "select", "signal", "stat", "struct", "sys", "termios", "time", "types",
    "typing", "warnings", "zipimport",
}  # fmt: skip
"""What of Python's library the processes that stay may have loaded, besides its private modules (`_socket`)."""


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


@pytest.mark.parametrize(
    "module", ["stage0.starting", "stage1.fly", "stage2.launch", "aci.store", "stage1.nspawn", "stage1.kvm"]
)
def test_the_start_path_imports_nothing_heavy(module: str) -> None:
    code = f"import sys; import stage0.main, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not HEAVY & {name.partition(".")[0] for name in loaded.stdout.split()}


@pytest.mark.parametrize(
    "module", ["monitor", "supervisor", "entrance", "journallog", "appjournal", "vm.virtualmachine"]
)
def test_what_stays_resident_is_small(module: str) -> None:
    """Started as `stage1.boot` starts them. No room but those the apps are launched from, and little of the library."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import stage1.boot, stage1.{module}; print(*sys.modules)"
    words = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition(".")[0] for name in loaded} - {"__main__", "builtins"}
    assert "stage1.boot" in loaded
    assert not [name for name in loaded if name.startswith("stage1.network")]
    assert {name for name in names if not name.startswith("_")} <= LIBRARY | {"common", "stage1", "stage2"}
    assert not HEAVY & names


@pytest.mark.parametrize("module", ["stage1.health", "stage1.systemd.service", "stage1.systemd.notify"])
def test_what_not_every_pod_needs_is_not_resident(module: str) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import stage1.boot, stage1.monitor; print(*sys.modules)"
    words = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert "stage1.supervisor" in loaded
    assert module not in loaded


def test_named_tuples_are_the_cheap_ones() -> None:
    users = {
        str(path.relative_to(ROOT))
        for room in ALLOWED
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "typing" and "NamedTuple" in {n.name for n in node.names}
    }
    assert users == {"common/records.py"}
