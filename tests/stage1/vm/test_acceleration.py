"""KVM works when a guest was seen to start with it. QEMU is a script here: what it may do wrong is the point."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import LaunchError
from stage1.vm import acceleration
from stage1.vm.bootfiles import BootFiles
from stage1.vm.initramfs import ALIVE, PROBE


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.qemu, self.state, self.runs = root / "qemu-system", root / "run" / "kvm", root / "runs"
        for name in ("kernel", "initramfs", "kvm"):
            (root / name).write_text("")
        self.boots = BootFiles(str(root / "kernel"), str(root / "initramfs"), "6.1.0", True)

    def qemu_does(self, script: str) -> None:
        self.qemu.write_text(f'#!/bin/sh\necho "$*" >> {self.runs}\n{script}\n')
        self.qemu.chmod(0o755)

    def choose(self, wanted: str = "auto", *, patience: float = 60, waits: Callable[[], None] = lambda: None) -> str:
        """Acceleration and type of the machine."""
        state, device = str(self.state), str(self.root / "kvm")
        found = acceleration.choose(
            wanted, str(self.qemu), self.boots, state=state, device=device, patience=patience, waits=waits
        )
        return "/".join(found)

    def later(self, seconds: float) -> None:
        """So much time passes for what was found."""
        found = json.loads(self.state.read_text())
        self.state.write_text(json.dumps({**found, "at": found["at"] - seconds}))

    def tried(self) -> int:
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.qemu_does(f"echo SeaBIOS; echo {ALIVE}; exec sleep 1000")
    return made


def test_a_guest_that_is_there_is_proof_and_is_ended(site: Site) -> None:
    assert site.choose() == "kvm/microvm"
    said = site.runs.read_text()
    assert "-accel kvm -cpu host" in said
    assert f"-append {acceleration.PARAMETERS} {PROBE}" in said
    assert not _running(site)


def _running(site: Site) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and str(site.root).encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
        except OSError:
            continue
    return [name for name in found if int(name) != os.getpid()]


def test_it_is_tried_once(site: Site) -> None:
    assert [site.choose(), site.choose()] == ["kvm/microvm", "kvm/microvm"]
    assert site.tried() == 1


def test_the_larger_machine_is_taken_where_the_smaller_one_does_not_start(site: Site) -> None:
    site.qemu_does(f'case "$*" in *microvm*) exit 1;; esac; echo {ALIVE}')
    assert [site.choose(), site.choose()] == ["kvm/q35", "kvm/q35"]
    assert site.tried() == 2


@pytest.mark.parametrize("change", ["qemu", "kernel", "boot"])
def test_another_qemu_kernel_or_boot_is_tried_anew(change: str, site: Site) -> None:
    site.choose()
    if change == "qemu":
        site.qemu_does(f"echo '{ALIVE}' and more")
    elif change == "kernel":
        (site.root / "kernel").write_text("another")
    else:
        site.state.write_text(site.state.read_text().replace(json.loads(site.state.read_text())["of"][0], "x"))
    assert site.choose() == "kvm/microvm"
    assert site.tried() == 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "echo 'qemu-system-x86_64: failed to initialize kvm: Permission denied' >&2; exit 1",
            "QEMU says: failed to initialize kvm: Permission denied",
        ),
        ("exit 1", "QEMU ended without a word"),
        ("printf 'Booting from ROM..\\n\\033[2JKernel panic\\n'", "the guest's last words: [2JKernel panic"),
        ("kill -ABRT $$", "QEMU ended without a word"),
    ],
)
def test_why_it_does_not_work_is_said_and_remembered(script: str, why: str, site: Site) -> None:
    site.qemu_does(script)
    for _ in range(2):
        with pytest.raises(LaunchError, match=re.escape(f"KVM does not work here: {why}")) as caught:
            site.choose()
        assert "--kvm-accel=tcg" in caught.value.hint
    assert site.tried() == 2  # the smaller machine and the larger one, once each


def test_a_failure_is_not_remembered_for_ever(site: Site) -> None:
    site.qemu_does("exit 1")
    with pytest.raises(LaunchError):
        site.choose()
    site.later(500)
    with pytest.raises(LaunchError):
        site.choose()
    assert site.tried() == 2
    site.later(500)
    with pytest.raises(LaunchError):
        site.choose()
    assert site.tried() == 4


def test_that_it_took_too_long_is_believed_just_long_enough_for_those_who_waited_with_us(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty pods that are started at once are not to wait for one trial each."""
    assert acceleration._SOON < 60
    monkeypatch.setattr(acceleration, "_SOON", 300)
    site.qemu_does(f"[ -e {site.root}/idle ] || exec sleep 1000; echo {ALIVE}")
    for _ in range(2):
        with pytest.raises(LaunchError, match="did not start within"):
            site.choose(patience=0.2)
    assert site.tried() == 2
    (site.root / "idle").touch()
    site.later(301)
    assert site.choose() == "kvm/microvm"


def test_the_smaller_machine_is_tried_again_where_it_was_only_too_slow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = acceleration.prove
    busy = True

    def slowly(*args: Any, kind: str, **named: Any) -> acceleration.Proof:
        found = prove(*args, kind=kind, **named)
        return acceleration.Proof("too slow", late=True) if busy and kind == "microvm" else found

    monkeypatch.setattr(acceleration, "prove", slowly)
    assert site.choose() == "kvm/q35"
    site.later(500)
    busy = False
    assert site.choose() == "kvm/q35"
    site.later(500)
    assert site.choose() == "kvm/microvm"
    site.later(1_000_000)
    assert site.choose() == "kvm/microvm"
    assert site.tried() == 3


def test_who_waits_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_GLANCE", 0.01)
    site.qemu_does(f"until [ -e {site.root}/go ]; do sleep 0.01; done; echo {ALIVE}; exec sleep 1000")
    told: list[int] = []

    def waits() -> None:
        told.append(1)
        if len(told) == 3:
            (site.root / "go").touch()

    assert site.choose(waits=waits) == "kvm/microvm"
    assert len(told) >= 3


def test_a_guest_that_hangs_is_ended(site: Site) -> None:
    site.qemu_does("echo Booting from ROM; exec sleep 1000")
    with pytest.raises(LaunchError, match=r"a guest did not start within 0\.2 seconds"):
        site.choose(patience=0.2)
    assert not _running(site)


def test_nothing_stays_when_we_are_killed(site: Site) -> None:
    site.qemu_does(f"echo $$ > {site.root}/pid.new; mv {site.root}/pid.new {site.root}/pid; exec sleep 1000")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from stage1.vm import acceleration, bootfiles\n"
        "boots = bootfiles.BootFiles(sys.argv[3], sys.argv[3], '', True)\n"
        "acceleration.prove(sys.argv[2], boots, accelerator='kvm', kind='q35', patience=1000)\n"
    )
    root = str(Path(acceleration.__file__).parents[2])
    words = [sys.executable, "-c", code, root, str(site.qemu), str(site.root / "kernel")]
    with subprocess.Popen(words) as process:
        pid = site.root / "pid"
        _until(pid.exists)
        guest = int(pid.read_text())
        process.send_signal(signal.SIGKILL)
    _until(lambda: not _is_alive(guest))


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_emulation_asks_for_nothing(site: Site) -> None:
    (site.root / "kvm").unlink()
    assert site.choose("tcg") == "tcg/q35"


def test_kvm_by_name_is_taken_at_its_word(site: Site) -> None:
    assert site.choose("kvm") == "kvm/q35"
    assert site.tried() == 0


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
def test_without_the_device_there_is_none(wanted: str, site: Site) -> None:
    (site.root / "kvm").unlink()
    with pytest.raises(LaunchError, match=r"KVM does not work here: open .*/kvm: no such file or directory"):
        site.choose(wanted)
    assert site.tried() == 0


def test_a_qemu_that_is_not_there_is_said(site: Site) -> None:
    site.qemu.unlink()
    with pytest.raises(LaunchError, match=r"it cannot be tried: .*/qemu-system: no such file or directory"):
        site.choose()


def test_a_kernel_insists_on_signed_modules_only_where_they_are_and_nobody_says_otherwise() -> None:
    """It would take none of the others, and does not take it back."""
    for accelerated in ("kvm", "tcg"):
        assert acceleration.LOCKED in acceleration.parameters(accelerated, 1, signed=True).split()
        assert "lockdown" not in acceleration.parameters(accelerated, 1, signed=False)
        other = acceleration.parameters(accelerated, 2, signed=True, more="loglevel=7 lockdown=integrity").split()
        assert [word for word in other if word.startswith("lockdown")] == ["lockdown=integrity"]


def test_a_processor_that_was_chosen_is_taken_and_emulated_has_randomness() -> None:
    assert [acceleration.cpu(name) for name in ("kvm", "tcg")] == ["host", "Nehalem,+rdrand"]
    assert [acceleration.cpu(name, "Haswell") for name in ("kvm", "tcg")] == ["Haswell", "Haswell,+rdrand"]
