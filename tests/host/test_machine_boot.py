"""The host's own kernel and Python, in a virtual machine that is emulated."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import LaunchError
from stage1.vm import acceleration, bootfiles, initramfs, kernel, runtime
from stage1.vm.bootfiles import BootFiles
from stage1.vm.initramfs import Entry

PATIENCE = 240.0
_INIT = f"""\
import sys
sys.path[:0] = {runtime.FIRST!r}
import os
import stage1.supervisor, stage1.entrance, stage2.launch
from common import syscalls
syscalls.mount("proc", "/proc", "proc", 0)
from stage1.vm import guestmodules
for name in (guestmodules.ORDER, guestmodules.NETWORK, guestmodules.LATER):
    guestmodules.load(name)
with open("/proc/modules") as file:
    loaded = {{line.split()[0] for line in file}}
print("release", os.uname().release, "modules", sorted(loaded), "done", flush=True)
"""


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
    assert acceleration.prove(qemu, boots, accelerator="tcg", kind="q35", patience=PATIENCE) == ""


def test_python_has_what_guests_import_and_the_kernel_its_modules(qemu: str, boots: BootFiles, tmp_path: Path) -> None:
    chosen, python = kernel.choose(), runtime.collect()
    modules = initramfs.modules(chosen)
    init = f"#!{python.interpreter} -ISXutf8\n{_INIT}".encode()
    entries = [*initramfs.entries(python, modules), Entry("init", stat.S_IFREG | 0o755, init)]
    (tmp_path / "initramfs").write_bytes(initramfs.archive(entries))
    words = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35,accel=tcg",
        "-cpu", acceleration.CPU["tcg"], "-m", "256", "-kernel", boots.kernel, "-initrd", str(tmp_path / "initramfs"),
        "-append", acceleration.PARAMETERS, "-serial", "stdio",
    ]  # fmt: skip
    said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True).stdout
    names = sorted(module.name for module in modules)
    assert f"release {boots.release} modules {names} done" in said.decode("ascii", "replace")


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
