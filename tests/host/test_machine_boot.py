"""The host's own kernel and Python, in a virtual machine that is emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import LaunchError
from stage1.vm import acceleration, bootfiles, initramfs, kernel, runtime
from stage1.vm.bootfiles import BootFiles

PATIENCE = 240.0


@pytest.fixture(scope="module")
def qemu() -> str:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("needs qemu-system-x86")
    return found


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootFiles]:
    try:
        kernel.choose()
    except LaunchError as error:
        pytest.skip(f"needs a kernel for guests: {error}")
    cache = tmp_path_factory.mktemp("data") / "cache" / "kvm"
    yield bootfiles.boot_files("", str(cache))
    shutil.rmtree(cache)


def test_the_kernel_starts_python(qemu: str, boots: BootFiles) -> None:
    assert "vmlinux-" in boots.kernel
    assert acceleration.prove(qemu, boots, accelerator="tcg", kind="q35", patience=PATIENCE).problem == ""


def test_python_needs_nothing_but_what_is_in_there(tmp_path: Path) -> None:
    python = runtime.collect()
    root = tmp_path / "root"
    root.mkdir()
    archive = initramfs.archive(initramfs.entries(python, []))
    subprocess.run(["cpio", "--quiet", "-idm", "--no-absolute-filenames"], input=archive, cwd=root, check=True)
    code = f"import sys; sys.path[:0] = {runtime.FIRST!r}; import stage1.supervisor; print(sys.flags.utf8_mode)"
    said = subprocess.run(
        [python.interpreter, "-ISXutf8", "-c", code],
        capture_output=True,
        text=True,
        env={},
        check=False,
        preexec_fn=lambda: os.chroot(root),
        cwd="/",
    )
    assert (said.stdout, said.stderr) == ("1\n", "")
