"""When an app is healthy: the clock and the checks are the test's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from stage1.health import Check
from stage1.loop import Loop, Timer
from stage1.plan import Health


class Bench(Loop):
    """A loop whose time is made, and checks that end as they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, check: Health) -> None:
        super().__init__()
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(os, "killpg", lambda _pid, _number: None)
        monkeypatch.setattr(os, "kill", self._kill)
        self.well = True
        self.hang = False
        self.looks: list[float] = []
        self.told: list[tuple[float, str, str]] = []
        self.acts = 0
        self.waiting: Callable[[], None] | None = None
        self.check = Check(self, check, self._start, lambda state, text: self._tell(state, text), self._act)

    def _start(self, _output: int) -> int:
        self.looks.append(self.now - 1000.0)
        if not self.hang:
            self.call_later(0.0, self._end)
        return 4711

    def _end(self) -> None:
        self.check.ended(0 if self.well else 256)

    def _kill(self, pid: int, number: int) -> None:
        assert (pid, number) == (4711, 9)
        self.call_later(0.0, lambda: self.check.ended(9))

    def _tell(self, state: str, text: str) -> None:
        self.told.append((self.now - 1000.0, state, text))

    def _act(self) -> None:
        self.acts += 1

    def until(self, seconds: float) -> None:
        """Let time pass."""
        end = 1000.0 + seconds
        while due := [timer for timer in self._timers if timer.due <= end]:
            first: Timer = min(due, key=lambda timer: timer.due)
            self.now = max(self.now, first.due)
            self._timers.remove(first)
            first.callback()
        self.now = end


def states(bench: Bench) -> list[str]:
    return [state for _, state, _ in bench.told]


def test_an_app_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",)))
    bench.check.begin()
    bench.until(60)
    assert states(bench) == ["starting", "healthy"]
    assert bench.looks == [0.0, 30.0, 60.0]


def test_failures_at_the_start_count_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=10.0, retries=3))
    bench.well = False
    bench.check.begin()
    bench.until(29)
    assert states(bench) == ["starting"]
    assert bench.looks[:6] == [0.0, 0.25, 0.75, 1.75, 3.75, 7.75]
    bench.until(40)
    assert bench.told[1:] == [(30.0, "unhealthy", "exit status 1")]
    assert bench.acts == 1


def test_the_start_period(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=10.0, retries=1, start_period=100.0))
    bench.well = False
    bench.check.begin()
    bench.until(99)
    assert states(bench) == ["starting"]
    bench.until(120)
    assert bench.told[1][:2] == (100.0, "unhealthy")


def test_an_app_gets_well_early(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=1000.0))
    bench.well = False
    bench.check.begin()
    bench.until(5)
    bench.well = True
    bench.until(8)
    assert bench.told[-1][:2] == (7.75, "healthy")


def test_only_failures_in_a_row_count(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=1.0, retries=2))
    bench.check.begin()
    for second in range(20):
        bench.well = second % 2 == 0
        bench.until(second + 0.5)
    assert states(bench) == ["starting", "healthy"]
    bench.well = False
    bench.until(30)
    bench.well = True
    bench.until(40)
    assert states(bench) == ["starting", "healthy", "unhealthy", "healthy"]


def test_a_check_that_hangs_is_killed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=1.0, timeout=5.0, retries=1))
    bench.hang = True
    bench.check.begin()
    bench.until(7)
    assert bench.told[-1] == (5.0, "unhealthy", "took longer than 5 s")
    assert bench.looks == [0.0, 6.0]


def test_nothing_happens_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Health(("/x",), interval=1.0))
    bench.check.begin()
    bench.until(2)
    bench.check.end()
    before = len(bench.looks)
    bench.until(20)
    assert len(bench.looks) == before
