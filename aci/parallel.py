"""Jobs in processes of their own, two or more at a time: unpacking is system calls and Python, which threads would
take turns at. A job's result, or its failure, comes back as data; a job that dies takes no other result with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from common import errors
from common.errors import ImageError, RkpyError, StoreError
from common.syscalls import PR_SET_PDEATHSIG, prctl

MAX_WORKERS = 4

Job = Callable[[], Any]
"""Returns what JSON can hold."""


def run(jobs: Sequence[Job]) -> list[Any]:
    """The results of `jobs`, which are begun in order; in this process when there is only one.

    The first failure ends all others and is raised here: a RkpyError as it was, anything else as RuntimeError."""
    if len(jobs) == 1:
        return [json.loads(json.dumps(jobs[0]()))]
    workers = max(2, min(len(os.sched_getaffinity(0)), MAX_WORKERS))
    results: list[Any] = [None] * len(jobs)
    waiting = list(range(len(jobs)))
    running: dict[int, tuple[int, int, bytearray]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index = waiting.pop(0)
                fd, pid = _start(jobs[index])
                running[fd] = (index, pid, bytearray())
            for fd in select.select(list(running), [], [])[0]:
                index, pid, said = running[fd]
                if part := os.read(fd, 1 << 16):
                    said += part
                    continue
                del running[fd]
                os.close(fd)
                results[index] = _result(said, os.waitpid(pid, 0)[1])
    finally:
        _end(running)
    return results


def _end(running: dict[int, tuple[int, int, bytearray]]) -> None:
    for fd, (_, pid, _) in running.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


def _start(job: Job) -> tuple[int, int]:
    """A pipe to read the outcome from, and the process that works."""
    parent = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _work(job, writer, parent)
    os.close(writer)
    return reader, pid


def _work(job: Job, writer: int, parent: int) -> NoReturn:
    try:
        # Without the process that wanted it nobody would put the result to use, or clean up.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        outcome: dict[str, Any] = {"result": job()}
    except RkpyError as error:
        outcome = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except BaseException:
        import traceback

        outcome = {"bug": traceback.format_exc()}
    try:
        with open(writer, "wb") as file:
            file.write(json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _result(said: bytearray, status: int) -> Any:
    if not said:
        code = os.waitstatus_to_exitcode(status)
        hint = "it may have run out of memory" if code == -signal.SIGKILL else ""
        raise StoreError(f"a process that unpacked a layer died (exit status {code})", hint=hint)
    outcome = json.loads(said)
    if "result" in outcome:
        return outcome["result"]
    if "bug" in outcome:
        raise RuntimeError(outcome["bug"])
    kind = getattr(errors, outcome["error"], ImageError)
    raise kind(outcome["message"], hint=outcome["hint"])
