"""The order in which a monitor does things, with an enclosure that has nothing in it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import PodError
from stage1 import monitor, poddir
from stage1.cgroupfiles import Report
from stage1.enclosure import Hear
from stage1.loop import Loop
from stage1.monitor import Monitor
from stage1.plan import AppPlan, PodPlan
from stage1.rootfs import CopiedRoot
from stage2.launch import LaunchSpec


class Nothing:
    """Looks like an enclosure that is not up yet."""

    pid = 0
    is_up = False
    leader = 1

    def __init__(self) -> None:
        self.left: list[Callable[[], None]] = []
        """To be called once what an app has left has died."""
        self.told: list[str] = []

    def listen(self, loop: Loop, hear: Hear) -> None: ...

    def tell(self, text: str, fds: Sequence[int] = ()) -> None:
        self.told.append(text)

    def start(self, plan: AppPlan, stdio: Sequence[int], sockets: Sequence[int]) -> None: ...

    def ended(self, plan: AppPlan) -> bool:
        return False

    def when_gone(self, plan: AppPlan, call: Callable[[], None]) -> None:
        self.left.append(call)

    def lacked_memory(self) -> bool:
        return False

    def clear(self, name: str) -> None: ...

    def end(self) -> int:
        return signal.SIGKILL

    def reports(self) -> Iterable[Report]:
        return ()


def with_nothing(directory: Path, *apps: AppPlan) -> Any:
    made: Any = Monitor("run", PodPlan("", str(directory), -1, apps, ""))
    made._enclosure = Nothing()
    return made


def app(name: str, **fields: Any) -> AppPlan:
    launch = LaunchSpec(name, ("/x",), (), "0", "0", (), "/", no_new_privileges=False, keep_fds=())
    return AppPlan(name, CopiedRoot("/none"), (), launch)._replace(**fields)


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
    made = with_nothing(tmp_path)

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


def test_an_app_has_ended_as_it_did_whatever_does_not_die(tmp_path: Path) -> None:
    """What it left is killed, and the supervisor before it is gone."""
    made = with_nothing(tmp_path, app("one"), app("two"))
    made._journal = None
    one, two = made._apps.values()
    for each in (one, two):
        each.state = monitor.RUNNING
        made._hear(f"started {each.plan.name} 7", [])
    made._hear("ended one 3 0 0 0", [])
    assert one.state == monitor.RUNNING
    assert poddir.read_ending(str(tmp_path), "one") is None
    made._end()
    assert poddir.read_ending(str(tmp_path), "one") == poddir.Ending(3)
    assert poddir.read_ending(str(tmp_path), "two") == poddir.Ending(137, 9, stopped=True)


def test_a_kill_in_the_pause_before_a_restart_is_no_end_of_the_app(tmp_path: Path) -> None:
    made = with_nothing(tmp_path, app("one"))
    made._journal = None
    made._hear("started one 7", [])
    made._hear("ended one 3 0 0 1", [])
    for call in made._enclosure.left:
        call()
    made._hear("again one", [])
    made._end()
    assert poddir.read_ending(str(tmp_path), "one") == poddir.Ending(3)


def test_a_reload_is_refused_where_nobody_hears_of_it(tmp_path: Path) -> None:
    made = with_nothing(tmp_path, app("one", reload_signal=signal.SIGHUP), app("two"))
    made._journal, made._loop = None, Loop()

    def reload() -> Any:
        return made._answer("reload", "", {}, [])

    made._hear("started two 8", [])
    with pytest.raises(PodError, match="no app that can reload has been started yet"):
        reload()
    made._hear("started one 7", [])
    assert reload() == {}
    made._ask_to_end()
    with pytest.raises(PodError, match="the pod is ending"):
        reload()
    assert made._enclosure.told == [f"signal {signal.SIGHUP:d} one"]
    made._loop.close()


def test_where_no_app_can_reload_it_is_said_what_is_missing(tmp_path: Path) -> None:
    made = with_nothing(tmp_path, app("two"))
    with pytest.raises(PodError, match="no app of the pod has a signal to reload by"):
        made._answer("reload", "", {}, [])


@pytest.mark.parametrize(("patience", "shown"), [(1000.0, [True]), (-1.0, [])])
def test_a_pod_that_is_ending_is_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, shown: list[bool]
) -> None:
    """What was written is shown all the same, unless that takes too long already."""
    monkeypatch.setattr(monitor, "_PATIENCE", patience)
    made = with_nothing(tmp_path)
    made._journal, made._loop = None, Loop()
    written: list[bool] = []

    def when_written(callback: Callable[[], None]) -> None:
        def write() -> None:
            written.append(True)
            callback()

        made._loop.call_later(0.01, write)

    made._foreground = SimpleNamespace(when_written=when_written, close=lambda: None)
    made._loop.on_signal(signal.SIGTERM, lambda: None)
    os.kill(os.getpid(), signal.SIGTERM)
    made._flush()
    made._loop.close()
    assert written == shown
