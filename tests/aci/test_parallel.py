"""Jobs in processes of their own: results, failures, and nobody left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aci import parallel
from common.errors import ImageError, StoreError, TrustError

DEADLINE = 120.0


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def _is_gone(pid: int) -> bool:
    """Whether the process has ended; whoever is its parent may not have noticed yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_results_come_back_in_the_order_of_the_jobs() -> None:
    def job(number: int) -> Any:
        time.sleep(0.02 * (5 - number))
        return [number, "x" * 200_000 * number]

    jobs = [partial(job, number) for number in range(6)]
    assert parallel.run(jobs) == [[number, "x" * 200_000 * number] for number in range(6)]
    assert parallel.run(jobs[:1]) == [[0, ""]]
    assert parallel.run([]) == []


def _fail(kind: type[Exception], message: str) -> Any:
    raise kind(message)


@pytest.mark.parametrize("kind", [ImageError, StoreError, TrustError])
def test_the_first_failure_ends_the_others(kind: type[Exception]) -> None:
    before, begun = _children(), time.monotonic()
    with pytest.raises(kind, match="this went wrong"):
        parallel.run([partial(time.sleep, DEADLINE), partial(_fail, kind, "this went wrong")])
    assert time.monotonic() - begun < DEADLINE
    assert _children() == before


def test_a_bug_shows_where_it_was() -> None:
    with pytest.raises(RuntimeError, match="in _fail"):
        parallel.run([partial(_fail, ValueError, "x"), partial(time.sleep, 0)])


def test_a_job_that_dies_is_an_error() -> None:
    def die() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StoreError, match=r"died \(exit status -9\)"):
        parallel.run([die, partial(time.sleep, 0)])


def test_jobs_do_not_outlive_who_wanted_them() -> None:
    reader, writer = os.pipe()

    def job() -> Any:
        os.write(writer, b"%d\n" % os.getpid())
        time.sleep(DEADLINE)

    parent = os.fork()
    if parent == 0:
        try:
            parallel.run([job, job])
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader) as file:
        workers = [int(file.readline()), int(file.readline())]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _until(lambda: all(_is_gone(pid) for pid in workers))
