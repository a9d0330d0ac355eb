"""What machines boot from, kept: when it is used again, when it is made anew, and what goes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common import files
from common.errors import LaunchError
from stage1.vm import bootfiles, kernel
from stage1.vm.bootfiles import BootFiles
from tests.stage1.vm.kernels import Host, bzimage, elf


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """In the place of this machine's kernels."""
    made = Host(tmp_path)
    choose = kernel.choose
    monkeypatch.setattr(kernel, "choose", lambda wanted: choose(wanted, **made.where()))
    made.install("6.1.0")
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "data" / "cache" / "kvm"


def make(cache: Path, wanted: str = "") -> BootFiles:
    return bootfiles.boot_files(wanted, str(cache))


def names(cache: Path, kind: str = "") -> set[str]:
    return {path.name for path in cache.iterdir() if kind in path.name}


def inode(path: str) -> int:
    return os.stat(path).st_ino


def test_everything_is_there_and_only_root_gets_at_it(host: Host, cache: Path) -> None:
    found = make(cache)
    assert found.release == "6.1.0"
    assert os.path.dirname(found.kernel) == os.path.dirname(found.initramfs) == str(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    modes = {path.name.partition("-")[0].rpartition(".")[2]: path.stat().st_mode & 0o777 for path in cache.iterdir()}
    assert modes == {"lock": 0o600, "record": 0o644, "vmlinux": 0o644, "initramfs": 0o644}


def test_qemu_may_read_it_whatever_the_umask(host: Host, cache: Path) -> None:
    """It is not root, and is shown the files where nobody else is."""
    host.install("6.2.0", image=bzimage("6.2.0")).chmod(0o600)
    umask = os.umask(0o077)
    try:
        found = [make(cache, version) for version in ("6.1.0", "6.2.0")]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert {os.stat(path).st_mode & 0o777 for boots in found for path in (boots.kernel, boots.initramfs)} == {0o644}
    assert Path(found[1].kernel).read_bytes() == (host.boot / "vmlinuz-6.2.0").read_bytes()
    assert make(cache, "6.2.0") == found[1]


def test_it_is_made_once(host: Host, cache: Path) -> None:
    first = make(cache)
    before = {name: os.stat(cache / name).st_ctime_ns for name in names(cache)}
    assert make(cache) == first
    assert {name: os.stat(cache / name).st_ctime_ns for name in names(cache)} == before


def test_a_kernel_that_cannot_be_started_directly_is_used_as_it_is(host: Host, cache: Path) -> None:
    path = host.install("6.2.0", image=bzimage("6.2.0"))
    found = make(cache)
    assert (found.kernel, found.release) == (str(path), "6.2.0")
    assert make(cache) == found
    assert not names(cache, "vmlinux")


@pytest.mark.parametrize(
    "change",
    [
        "module",
        "order",
        "image",
        "initramfs gone",
        "initramfs cut",
        "initramfs damaged",
        "vmlinux gone",
        "vmlinux damaged",
        "record cut",
        "record of others",
    ],
)
def test_it_is_made_anew_when_it_does_not_hold(change: str, host: Host, cache: Path) -> None:
    first = make(cache)
    before = inode(first.initramfs)
    record = cache / names(cache, ".record").pop()
    match change:
        case "module":
            (host.modules / "6.1.0/kernel/fs/fuse/fuse.ko").write_bytes(b"another")
        case "order":
            with open(host.modules / "6.1.0/modules.dep", "a") as file:
                file.write("\n")
        case "image":
            os.utime(host.boot / "vmlinuz-6.1.0")
        case "initramfs gone":
            os.rename(first.initramfs, f"{first.initramfs}x")  # so that its inode is not used again
        case "initramfs cut":
            os.truncate(first.initramfs, 100)
        case "initramfs damaged":
            _damage(first.initramfs)
        case "vmlinux damaged":
            _damage(first.kernel)
        case "vmlinux gone":
            os.unlink(first.kernel)
        case "record cut":
            os.truncate(record, 100)
        case "record of others":
            record.chmod(0o666)
    again = make(cache)
    assert inode(again.initramfs) != before
    assert Path(again.kernel).read_bytes() == elf()
    assert make(cache) == again


def _damage(path: str) -> None:
    """Without a change of its size."""
    with open(path, "r+b") as file:
        file.write(b"another")


def test_a_change_of_what_runs_in_the_guest_is_seen(host: Host, cache: Path) -> None:
    make(cache)
    sources = json.loads((cache / names(cache, ".record").pop()).read_text())["sources"]
    parts = (
        "/stage1/supervisor.py",
        "/stage1/vm/runtime.py",
        "/libc.so.6",
        "/python",
        "/virtiofs.ko",
        "/vmlinuz-6.1.0",
    )
    assert [part for part in parts if not any(part in path for path in sources)] == []


def test_kernels_do_not_get_in_each_others_way(host: Host, cache: Path) -> None:
    first = make(cache)
    host.install("6.2.0")
    second = make(cache)
    assert make(cache, "6.1.0") == first != second == make(cache)


def test_only_the_newest_are_kept(host: Host, cache: Path) -> None:
    for minor in range(2, 9):
        host.install(f"6.{minor}.0")
        make(cache)
    assert len(names(cache, ".record")) == 4
    assert len(names(cache, "vmlinux-") | names(cache, "initramfs-")) <= 2 * 4 + 4
    assert make(cache).release == "6.8.0"


def test_what_was_left_half_is_cleared_away(host: Host, cache: Path) -> None:
    found = make(cache)
    (cache / f"{os.path.basename(found.initramfs)}.0123456789ab").write_bytes(b"half")
    os.utime(host.boot / "vmlinuz-6.1.0")
    make(cache)
    assert not names(cache, "0123456789ab")


def _make(wanted: str, cache: str, root: str) -> None:
    choose = kernel.choose
    where = {"boot": f"{root}/boot", "modules": f"{root}/modules", "beside": f"{root}/modules"}
    kernel.choose = partial(choose, **where)
    bootfiles.boot_files(wanted, cache)


def test_several_at_once_make_one(host: Host, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=make, args=(cache,)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(120)
    assert [process.exitcode for process in several] == [0, 0, 0]
    assert len(names(cache)) == 4


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_whoever_is_killed_leaves_nothing_half(call: str, host: Host, cache: Path, tmp_path: Path) -> None:
    """In the middle of each such call, one after the other."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.stage1.vm.test_bootfiles import _make\n"
        "call, left = getattr(os, sys.argv[2]), int(sys.argv[3])\n"
        "def killed(*arguments):\n"
        "    global left\n"
        "    left -= 1\n"
        "    left or os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return call(*arguments)\n"
        "setattr(os, sys.argv[2], killed)\n"
        "_make('', *sys.argv[4:])\n"
    )
    root = str(Path(bootfiles.__file__).parents[2])
    statuses = []
    for number in range(1, 9):
        words = [sys.executable, "-c", code, root, call, str(number), str(cache), str(tmp_path)]
        statuses.append(subprocess.run(words, check=False).returncode)
        if statuses[-1] == 0:
            break
    assert statuses[:2] == [-signal.SIGKILL] * 2
    found = make(cache)
    states = json.loads((cache / names(cache, ".record").pop()).read_text())["states"]
    assert [os.path.getsize(path) for path in (found.kernel, found.initramfs)] == [state[0] for state in states]
    assert not [name for name in names(cache) if "." in name and not name.endswith(".record")]


def test_what_is_needed_is_kept_before_what_takes_the_room(
    host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is nearly full has none left after the kernel, which boots as it was installed too."""
    replace, kept = files.replace, []

    def remember(path: str, data: bytes, **how: Any) -> None:
        kept.append(os.path.basename(path).partition("-")[0].rpartition(".")[2])
        replace(path, data, **how)

    monkeypatch.setattr(files, "replace", remember)
    make(cache)
    assert kept == ["initramfs", "vmlinux", "record"]


def test_a_full_disk_is_said(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_how: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(LaunchError, match=r"boot from in [^:]*/cache/kvm: no space left on device$"):
        make(cache)


def test_a_cache_that_cannot_be_is_said(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"cannot keep what virtual machines boot from in .*/file/kvm"):
        make(tmp_path / "file" / "kvm")


def test_whether_all_modules_are_signed_is_known(host: Host, cache: Path) -> None:
    assert not make(cache).signed
    modules = sorted(host.modules.rglob("*.ko"))
    for path in modules:
        path.write_bytes(b"module, its signature, and what is known of it~Module signature appended~\n")
    assert make(cache).signed
    assert make(cache).signed  # as the record says
    modules[0].write_bytes(b"module")
    assert not make(cache).signed
