"""Asking a monitor that is not there, or that says nothing."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.errors import PodError
from stage1 import control, kvm, poddir, supervised


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(PodError, match="isn't currently running"):
        control.request(str(tmp_path), {"op": "states"})


def test_whoever_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(tmp_path / poddir.CONTROL))
        silent.listen()
        with pytest.raises(PodError, match="the pod's monitor does not answer"):
            control.request(str(tmp_path), {"op": "states"}, patience=0.01)


def test_a_monitor_that_takes_no_more_callers_runs(tmp_path: Path) -> None:
    with ExitStack() as closing:
        busy = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        busy.bind(str(tmp_path / poddir.CONTROL))
        busy.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                client = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                client.setblocking(False)
                client.connect(str(tmp_path / poddir.CONTROL))
        with pytest.raises(PodError, match="the pod's monitor does not answer"):
            control.request(str(tmp_path), {"op": "states"}, patience=0.01)


def test_a_machine_whose_monitor_does_not_answer_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is suspended."""
    monkeypatch.setattr(kvm, "_PATIENCE", 0.01)
    monitor = os.fork()
    if not monitor:
        os.execv("/bin/sleep", ["sleep", "600"])
    try:
        poddir.write_leader(str(tmp_path), monitor)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.bind(str(tmp_path / poddir.CONTROL))
            silent.listen()
            kvm.stop(str(tmp_path), force=True)
        assert os.waitstatus_to_exitcode(os.waitpid(monitor, 0)[1]) == -signal.SIGKILL
        monitor = 0
    finally:
        if monitor:
            os.kill(monitor, signal.SIGKILL)
            os.waitpid(monitor, 0)


def test_the_monitor_of_an_older_rkpy_is_asked_to_start_an_app_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers with nothing, and knows no question about attempts."""
    asked: list[str] = []

    def request(_directory: str, fields: dict[str, str]) -> dict[str, str]:
        asked.append(fields["op"])
        return {}

    monkeypatch.setattr(control, "request", request)
    supervised.app_start(str(tmp_path), "app")
    supervised.app_restart(str(tmp_path), "app")
    assert asked == ["start", "restart"]
