"""What the guest's first file system holds, and nothing else."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from common.errors import LaunchError
from stage1.vm import guestmodules, initramfs, kernel, runtime
from stage1.vm.initramfs import Entry, Module
from stage1.vm.runtime import Runtime
from tests.stage1.vm import kernels
from tests.stage1.vm.kernels import Host


@pytest.fixture(scope="module")
def python() -> Runtime:
    return runtime.collect()


@pytest.fixture(scope="module")
def found(python: Runtime) -> dict[str, Entry]:
    return {entry.path: entry for entry in initramfs.entries(python, [])}


def unpack(archive: bytes, place: Path) -> None:
    """Without the devices, which only root can make."""
    place.mkdir()
    words = ["cpio", "--quiet", "-idm", "--no-absolute-filenames", "-f", "dev/*"]
    subprocess.run(words, input=archive, cwd=place, check=True)


# --- the archive


def test_cpio_reads_what_is_written(tmp_path: Path) -> None:
    archive = initramfs.archive(
        [
            Entry("a/b/file", stat.S_IFREG | 0o640, b"12345"),
            Entry("a", stat.S_IFDIR | 0o700),
            Entry("empty", stat.S_IFREG | 0o755),
        ]
    )
    unpack(archive, tmp_path / "x")
    seen = {
        str(path.relative_to(tmp_path / "x")): (stat.filemode(path.stat().st_mode), path.is_file() and path.read_text())
        for path in (tmp_path / "x").rglob("*")
    }
    assert seen == {
        "a": ("drwx------", False),
        "a/b": ("drwxr-xr-x", False),
        "a/b/file": ("-rw-r-----", "12345"),
        "empty": ("-rwxr-xr-x", ""),
    }


def test_the_same_makes_the_same_and_root_owns_it(found: dict[str, Entry]) -> None:
    archive = initramfs.archive(found.values())
    assert initramfs.archive([*found.values()][::-1]) == archive
    listed = subprocess.run(
        ["cpio", "--quiet", "-itvn"], input=archive, capture_output=True, check=True
    ).stdout.decode()
    lines = [line.split() for line in listed.splitlines()]
    assert len(lines) > 100
    assert {(line[2], line[3]) for line in lines} == {("0", "0")}
    devices = [line for line in lines if line[0][0] not in "-d"]
    assert sorted((line[0], line[4].strip(","), line[5], line[-1]) for line in devices) == [
        ("crw-------", "1", "3", "dev/null"),
        ("crw-------", "1", "9", "dev/urandom"),
        ("crw-------", "5", "1", "dev/console"),
    ]


# --- Python


def test_only_what_is_expected_is_in_it(python: Runtime, found: dict[str, Entry]) -> None:
    """Of rkpy what guests run, of Python its library, and shared libraries of the system."""
    library = os.path.dirname(os.__file__).lstrip("/")
    expected = re.compile(
        r"init|modules/(order|network|later)|dev/(console|null|urandom)|rkpy/(common|stage1|stage2)/[a-z0-9_/]+\.pyc"
        rf"|{re.escape(library)}/[A-Za-z0-9_/]+\.pyc|{re.escape(library)}/lib-dynload/[A-Za-z0-9_.-]+\.so"
        rf"|{re.escape(python.interpreter.lstrip('/'))}|([a-z0-9_-]+/)+(ld-|lib)[A-Za-z0-9_.+-]+\.so(\.[0-9]+)*"
    )
    files = [path for path, entry in found.items() if not stat.S_ISDIR(entry.mode)]
    assert [path for path in files if not expected.fullmatch(path)] == []
    assert [path for path in files if "site-packages" in path or "dist-packages" in path] == []
    host = {f"rkpy/stage1/{name}.pyc" for name in ("monitor", "nspawn", "kvm", "flavour", "vm/bridge", "vm/qemu")}
    assert host & {*files} == set()
    assert "rkpy/stage1/supervisor.pyc" in files
    own = [Path(file.source) for file in python.files if file.target.startswith(runtime.PLACE)]
    assert all(path.is_relative_to(runtime.ROOT) for path in own)


def test_modules_are_not_compared_with_anything(python: Runtime, found: dict[str, Entry]) -> None:
    data = found["rkpy/stage1/plan.pyc"].data
    assert data[4:8] == b"\x01\0\0\0"  # by hash, unchecked (PEP 552)
    assert b"part of a PodPlan" not in found["rkpy/stage1/limits.pyc"].data


def test_every_module_that_is_imported_later_is_there(python: Runtime) -> None:
    """Of what the modules of the guest import in their functions, all but what is for the host's side."""
    host = {"stage1.monitor", "stage1.network", "stage1.systemd.registrar", "stage1.systemd.notify", "stage1.systemd"}
    import ast

    there = {
        file.target.removeprefix("/rkpy/").removesuffix(".pyc").removesuffix("/__init__").replace("/", ".")
        for file in python.files
        if file.target.startswith("/rkpy/")
    }
    missing = set()
    for file in python.files:
        if not file.target.startswith("/rkpy/"):
            continue
        tree = ast.parse(Path(file.source).read_text())
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
                full = [f"{node.module}.{name.name}" for name in node.names]
                modules = [name for name in full if (Path(runtime.ROOT) / f"{name.replace('.', '/')}.py").exists()]
                missing |= {name for name in modules or [node.module] if name.startswith(("stage", "aci"))} - there
    assert {name for name in missing if not any(name == one or name.startswith(f"{one}.") for one in host)} == set()


def test_what_does_not_import_is_said() -> None:
    with pytest.raises(LaunchError, match=r"cannot ask .* ModuleNotFoundError: No module named 'stage1.nothing'"):
        runtime.collect(["stage1.nothing"])
    with pytest.raises(LaunchError, match=r"stage0/__init__\.py is not for guests"):
        runtime.collect(["stage0"])


# --- modules of the kernel


def chosen(host: Host) -> kernel.Kernel:
    return kernel.choose(**host.where())


def test_modules_come_after_those_they_need(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install("6.1.0")
    made = initramfs.modules(chosen(host))
    assert [module.name for module in made] == [
        "virtio_ring", "virtio", "virtio_pci", "virtio_console", "fuse", "virtiofs", "overlay", "virtio_rng",
    ]  # fmt: skip
    assert [module.name for module in made if module.among != guestmodules.ORDER] == ["virtio_rng"]


def test_a_module_that_is_missing_is_named(tmp_path: Path) -> None:
    host = Host(tmp_path)
    dependencies = "".join(line for line in kernels.DEPENDENCIES.splitlines(True) if "overlay" not in line)
    host.install("6.1.0", dependencies=dependencies)
    with pytest.raises(LaunchError, match="cannot be a guest: there is no overlay in"):
        initramfs.modules(chosen(host))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_modules_are_not_compressed_in_there(ending: str, tmp_path: Path, python: Runtime) -> None:
    path = tmp_path / f"x.ko{ending}"
    path.write_bytes(PACKERS[ending](b"\x7fELF module"))
    modules = [Module("x", str(path)), Module("y", str(path), guestmodules.LATER)]
    made = {e.path: e for e in initramfs.entries(python._replace(files=()), modules)}
    assert made["modules/x.ko"].data == b"\x7fELF module"
    assert made["modules/order"].data == b"/modules/x.ko\n"
    assert made["modules/later"].data == b"/modules/y.ko\n"


def test_a_damaged_module_is_named(tmp_path: Path, python: Runtime) -> None:
    (tmp_path / "x.ko.zst").write_bytes(b"nonsense")
    with pytest.raises(LaunchError, match=r"kernel module .*x\.ko\.zst: not compressed"):
        list(initramfs.entries(python, [Module("x", str(tmp_path / "x.ko.zst"))]))
