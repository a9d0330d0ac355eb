"""Jobs in processes of their own, two or more at a time: unpacking is system calls and Python, which threads would
take turns at. What a job tells, its result or its failure come back as data; one that dies takes nothing else with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from common import errors
from common.errors import ImageError, RkpyError, StoreError
from common.syscalls import PR_SET_PDEATHSIG, prctl

MAX_WORKERS = 4

Job = Callable[[], Any]
"""Returns what JSON can hold."""
Tell = Callable[[Any], None]
"""Passes what JSON can hold on to the process that began the job."""


class Feed(Protocol):
    """Says which jobs have what they need."""

    def fileno(self) -> int:
        """Readable when there is something to say."""
        ...

    def ready(self) -> Sequence[int]:
        """The positions of what has become ready since. Raises RkpyError when there will be no more."""
        ...


class Process:
    """A process that runs `job`, which may tell things before it returns."""

    def __init__(self, job: Callable[[Tell], Any]) -> None:
        parent = os.getpid()
        self._fd, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _work(job, writer, parent)
        os.close(writer)
        self._said = b""
        self._outcome: dict[str, Any] | None = None
        self.ended = False

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> list[Any]:
        """What it has told since; waits for something. When it is over `ended` is set, and `result` has the rest."""
        part = os.read(self._fd, 1 << 16)
        lines = (self._said + part).split(b"\n")
        self._said = lines.pop()
        told = []
        for line in lines:
            outcome = json.loads(line)
            if "told" in outcome:
                told.append(outcome["told"])
            else:
                self._outcome = outcome
        self.ended = not part
        return told

    def result(self) -> Any:
        """What the job returned, once it has ended. What it raised is raised here: a RkpyError as it was, anything else
        as RuntimeError."""
        status = self._close()
        if self._outcome is None:
            code = os.waitstatus_to_exitcode(status)
            hint = "it may have run out of memory" if code == -signal.SIGKILL else ""
            raise StoreError(f"a process that fetched or unpacked a layer died (exit status {code})", hint=hint)
        if "result" in self._outcome:
            return self._outcome["result"]
        if "bug" in self._outcome:
            raise RuntimeError(self._outcome["bug"])
        kind = getattr(errors, self._outcome["error"], ImageError)
        raise kind(self._outcome["message"], hint=self._outcome["hint"])

    def kill(self) -> None:
        """End it wherever it is."""
        if self._fd >= 0:
            os.kill(self._pid, signal.SIGKILL)
            self._close()

    def _close(self) -> int:
        os.close(self._fd)
        self._fd = -1
        return os.waitpid(self._pid, 0)[1]


def run(jobs: Sequence[Job], feed: Feed | None = None, awaited: Sequence[int] = ()) -> list[Any]:
    """The results of `jobs`, which are begun in order; in this process when there is only one. Those in `awaited` begin
    when `feed` says so, which knows them by their positions in `awaited`.

    The first failure ends all others and is raised here: a RkpyError as it was, anything else as RuntimeError."""
    if len(jobs) == 1 and not awaited:
        return [json.loads(json.dumps(jobs[0]()))]
    workers = max(2, min(len(os.sched_getaffinity(0)), MAX_WORKERS))
    results: list[Any] = [None] * len(jobs)
    absent = set(awaited)
    waiting = [index for index in range(len(jobs)) if index not in absent]
    running: dict[Process, int] = {}
    try:
        while waiting or running or absent:
            while waiting and len(running) < workers:
                index = waiting.pop(0)
                running[Process(_silent(jobs[index]))] = index
            sources: list[Any] = [*running, *([feed] if absent else [])]
            for source in select.select(sources, [], [])[0]:
                if source is feed and feed is not None:
                    arrived = [awaited[position] for position in feed.ready()]
                    absent -= set(arrived)
                    waiting = sorted((*waiting, *arrived))
                    continue
                source.receive()
                if source.ended:
                    results[running.pop(source)] = source.result()
    finally:
        for process in running:
            process.kill()
    return results


def _silent(job: Job) -> Callable[[Tell], Any]:
    return lambda tell: job()


def _work(job: Callable[[Tell], Any], writer: int, parent: int) -> NoReturn:
    def say(outcome: dict[str, Any]) -> None:
        # One write each: threads of the job may tell things at once.
        data = memoryview(json.dumps(outcome).encode() + b"\n")
        while data:
            data = data[os.write(writer, data) :]

    try:
        # Without the process that wanted it nobody would put the result to use, or clean up.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        outcome: dict[str, Any] = {"result": job(lambda told: say({"told": told}))}
    except RkpyError as error:
        outcome = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except BaseException:
        import traceback

        outcome = {"bug": traceback.format_exc()}
    try:
        say(outcome)
    finally:
        os._exit(0)
