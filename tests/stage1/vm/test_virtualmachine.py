"""What is said of a machine that cannot be switched on."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import LaunchError
from stage1.vm import qemu, virtualmachine
from stage1.vm.virtualmachine import VirtualMachine


class Dead:
    """A share that finds QEMU's namespace without its first process, or virtiofsd wanting."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def serve(self, *_arguments: object) -> None:
        if self.in_time:
            raise LaunchError("cannot start virtiofsd: exec format error")
        raise LaunchError("cannot start virtiofsd: cannot allocate memory") from OSError(errno.ENOMEM, "")

    in_time = False


class NoCgroup:
    def init_fd(self) -> int:
        return -1


@pytest.mark.parametrize(
    ("in_time", "lingers", "said"),
    [
        (False, 0, "QEMU has ended with status 3: qemu: no such machine"),
        (False, 0.3, "QEMU has ended with status 3: qemu: no such machine"),
        (True, 0, "cannot start virtiofsd: exec format error: qemu: no such machine"),
    ],
)
def test_who_ended_first_is_to_blame(
    in_time: bool, lingers: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU ends when virtiofsd does not come, and virtiofsd cannot be started when QEMU has ended, or is about to: it
    is waited for longer than the rest of a machine."""
    console, far = os.pipe()
    errors, complaints = os.pipe()
    opened = [console, far, errors, complaints]
    for fd in (console, errors):
        os.set_blocking(fd, False)

    def start(*_arguments: object) -> qemu.Started:
        pid = os.fork()
        if not pid:
            os.write(complaints, b"qemu: no such machine\n")
            time.sleep(lingers)
            os._exit(3)
        pidfd = os.pidfd_open(pid)
        opened.append(pidfd)
        if not lingers:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        return qemu.Started(pid, pidfd, -1, console, errors, -1, complaints)

    monkeypatch.setattr(qemu, "start", start)
    monkeypatch.setattr(virtualmachine, "_GRACE", 0.0)
    monkeypatch.setattr(virtualmachine, "Share", Dead)
    monkeypatch.setattr(Dead, "in_time", in_time)
    plan: Any = type("Plan", (), {"directory": str(tmp_path)})
    machine: Any = None
    cgroup: Any = NoCgroup()
    try:
        with pytest.raises(LaunchError) as caught:
            VirtualMachine(plan, machine, cgroup).begin(())
        assert caught.value.message == said
    finally:
        for fd in opened:
            os.close(fd)
