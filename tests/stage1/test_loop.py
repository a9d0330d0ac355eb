"""The event loop, on real descriptors and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from stage1.loop import HANGUP, READ, WRITE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    # What would hang fails instead.
    made.call_later(30, lambda: pytest.fail("nothing stopped the loop"))
    yield made
    made.close()


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def test_a_descriptor_calls_back_until_it_is_removed(loop: Loop, pipe: tuple[int, int]) -> None:
    got: list[bytes] = []

    def on_ready(events: int) -> None:
        assert events & READ
        got.append(os.read(pipe[0], 1))
        if len(got) == 2:
            loop.remove(pipe[0])
            loop.call_later(0.05, loop.stop)

    loop.add(pipe[0], READ, on_ready)
    os.write(pipe[1], b"abc")
    loop.run()
    assert got == [b"a", b"b"]


def test_modify(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    on_ready = both(lambda: seen.append(1), lambda: loop.modify(pipe[1], 0))
    loop.add(pipe[1], WRITE, lambda _events: on_ready())
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert seen == [1]
    os.close(pipe[0])
    loop.modify(pipe[1], 0)
    loop.remove(pipe[1])
    loop.add(pipe[1], 0, lambda events: both(lambda: seen.append(events), loop.stop)())
    loop.run()
    assert seen[1] & HANGUP


def test_what_is_removed_in_a_turn_is_not_called_in_it(loop: Loop) -> None:
    """Both are ready in the same turn; whichever comes first removes the other, closes it, and its number goes to a
    third, which is not ready."""
    first, second, third = os.pipe(), os.pipe(), os.pipe()
    calls: list[str] = []

    def take_over(other: int) -> None:
        calls.append("ready")
        loop.remove(first[0])
        loop.remove(second[0])
        os.dup2(third[0], other)
        loop.add(other, READ, lambda _events: calls.append("stale"))
        loop.call_later(0.05, loop.stop)

    loop.add(first[0], READ, lambda _events: take_over(second[0]))
    loop.add(second[0], READ, lambda _events: take_over(first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    loop.run()
    assert calls == ["ready"]
    for fd in (*first, *second, *third):
        os.close(fd)


def test_a_regular_file_cannot_be_waited_for(loop: Loop) -> None:
    with open(__file__, "rb") as file, pytest.raises(PermissionError):
        loop.add(file.fileno(), READ, lambda _events: None)


def test_timers_are_called_in_order_and_can_be_cancelled(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0.04, loop.stop)
    loop.call_later(0.02, lambda: calls.append("second"))
    cancelled = loop.call_later(0.01, lambda: calls.append("cancelled"))
    loop.call_later(0, both(lambda: calls.append("first"), both(cancelled.cancel, cancelled.cancel)))
    loop.run()
    assert calls == ["first", "second"]


def test_a_timer_cancelled_by_one_that_is_due_at_the_same_time(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0, lambda: later.cancel())
    later = loop.call_later(0, lambda: calls.append("cancelled"))
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert calls == []


def test_a_signal_interrupts_waiting(loop: Loop) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, both(lambda: calls.append("usr1"), loop.stop))
    loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    loop.run()
    assert calls == ["usr1"]


def test_signals_that_came_before_running_and_many_of_them(loop: Loop) -> None:
    calls: list[int] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append(1))
    loop.on_signal(signal.SIGUSR2, lambda: calls.append(2))
    for _ in range(100_000):
        signal.raise_signal(signal.SIGUSR1)  # more than the wakeup pipe takes
    signal.raise_signal(signal.SIGUSR2)
    loop.call_later(0, loop.stop)
    loop.run()
    assert sorted(calls) == [1, 2]
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert sorted(calls) == [1, 2], "and none of them twice"


def test_stop_before_run_and_what_a_callback_raises(loop: Loop) -> None:
    loop.stop()
    loop.run()
    loop.call_later(0, lambda: os.close(-1))
    with pytest.raises(OSError, match="Bad file"):
        loop.run()


def test_closing_gives_signals_back() -> None:
    old = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    loop.on_signal(signal.SIGUSR1, lambda: None)
    loop.on_signal(signal.SIGUSR1, lambda: None)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == old
    assert signal.set_wakeup_fd(-1) == -1
