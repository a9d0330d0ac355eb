"""Waiting for the unit of a detached pod, when systemd does not say that it is up (tests/systemd/inside/detached.py has
the rest)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import SystemdError
from stage0 import detached, starting
from stage1.systemd.bus import TIMED_OUT


class Bus:
    """One that never hears of the job."""

    def __init__(self, *answers: str | SystemdError) -> None:
        self._answers = list(answers)
        self.asked = 0

    def wait(self, _matches: object, _seconds: float) -> Any:
        raise SystemdError("timed out", name=TIMED_OUT)

    def call(self, *_words: object) -> list[str]:
        self.asked += 1
        answer = self._answers.pop(0)
        if isinstance(answer, SystemdError):
            raise answer
        self._state = answer
        return ["/unit"]

    def get(self, *words: object) -> Any:
        state, _, job = self._state.partition(" ")
        return [int(job or 0), "/"] if words[-1] == "Job" else state


def wait(bus: Any) -> None:
    detached._await(bus, "a.service", "/job")


def test_that_it_is_up_is_seen_if_not_heard() -> None:
    gone = SystemdError("left", name="org.freedesktop.DBus.Error.NoReply")
    bus = Bus("inactive 42", gone, "activating 42", "active")
    wait(bus)
    assert bus.asked == 4


@pytest.mark.parametrize(
    "answer",
    ["failed", "inactive", SystemdError("gone", name="org.freedesktop.systemd1.NoSuchUnit"), SystemdError("no bus")],
)
def test_that_it_has_failed_too(answer: str | SystemdError) -> None:
    with pytest.raises(SystemdError) as caught:
        wait(Bus("activating 42", answer))
    assert "journalctl -u a.service" in str(caught.value)


# --- who waits no longer


class Prepared:
    """A pod whose owner is interrupted again while it is taken back."""

    uuid = "the-uuid"
    discarded = False

    def __enter__(self) -> Prepared:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return self

    def __exit__(self, *_: object) -> None: ...

    def take(self) -> None: ...

    def discard(self) -> None:
        self.discarded = True


@pytest.fixture
def signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_who_is_interrupted_twice_has_no_pod_either(monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    pod: Any = Prepared()

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    class Pods:
        def __init__(self, _place: object) -> None: ...

        def require_own(self) -> Pods:
            return self

        def find(self, *_: object) -> Prepared:
            return pod  # type: ignore[no-any-return]

    manager: Any = type("Manager", (), {"bus": ""})
    settings: Any = type("Settings", (), {"pods": None})
    for module, name, value in (
        (detached, "_manager", lambda _request: manager), (detached, "Bus", lambda _place: None),
        (detached, "_launch", interrupted), (detached, "Pods", Pods), (starting, "prepared_pod", lambda *_, **__: pod),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    with pytest.raises(KeyboardInterrupt):
        detached.run(manager, settings, "nspawn")
    assert pod.discarded
