"""The order in which a monitor does things, with an enclosure that has nothing in it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stage1 import poddir
from stage1.cgroupfiles import Report
from stage1.enclosure import Hear
from stage1.loop import Loop
from stage1.monitor import Monitor
from stage1.plan import AppPlan, PodPlan


class Nothing:
    """Looks like an enclosure that is not up yet."""

    pid = 0
    is_up = False
    leader = 1

    def listen(self, loop: Loop, hear: Hear) -> None: ...

    def tell(self, text: str, fds: Sequence[int] = ()) -> None: ...

    def start(self, plan: AppPlan, stdio: Sequence[int], sockets: Sequence[int]) -> None: ...

    def reports(self) -> Iterable[Report]:
        return ()


def in_a_child(call: Callable[[], object]) -> int:
    """The exit status of a process that does this, as waitstatus_to_exitcode gives it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        call()
        status = 0
    finally:
        os._exit(status)


def test_who_knows_the_leader_can_stop_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader of a virtual machine is the monitor: to be asked before it expects that would be its death."""
    made: Any = Monitor("run", PodPlan("", str(tmp_path), -1, (), ""))
    made._enclosure = Nothing()

    def write_leader(directory: str, _pid: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(f"{directory}/{poddir.CONTROL}")

    def supervise() -> None:
        made._loop = Loop()
        made._supervise()
        assert made._status == 128 + signal.SIGTERM

    monkeypatch.setattr(poddir, "write_leader", write_leader)
    assert in_a_child(supervise) == 0
