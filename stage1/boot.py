"""The way into the small process that looks after a pod: the interpreter, executed anew from a read-only mount.

A process of the pod that gets hold of /proc/PID/exe of one of ours has the host's interpreter in its hands, and could
write to it once nothing runs it (CVE-2019-5736). Through a mount that is read-only it cannot, whoever it is. The new
process also starts without anything the engine had loaded.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from common import syscalls
from common.errors import EXIT_FAILURE, LaunchError, RkpyError, reason
from stage1 import channel, plan

_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from stage1.boot import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def execute(job: str, value: Any, *, keep: tuple[int, ...] = ()) -> NoReturn:
    """Become the process that does `job` (a key of `_JOBS`, and the rkpy command that errors are reported for) with the
    plan `value`. The descriptors `keep` stay open. LaunchError when that is not possible."""
    fd = channel.memory_file(plan.dumps(value))
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter would answer ^C with a traceback until `main` has told it otherwise.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        interpreter = read_only_clone("/proc/self/exe")
        for inherited in (fd, *keep):
            os.set_inheritable(inherited, True)
        words = [sys.executable, "-I", "-S", "-c", _CODE, _ROOT, job, str(fd)]
        os.execve(interpreter, words, _environment())  # noqa: S606
    except OSError as error:
        raise LaunchError(f"cannot execute the Python interpreter again: {reason(error)}") from error


def _environment() -> dict[str, str]:
    """Of the caller's, what the interpreter and the apps' terminals need. The rest may be secrets, and would be in the
    memory of processes that are inside the pod."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("TERM", "LANG", "LD_LIBRARY_PATH") or name.startswith("LC_")
    }


def read_only_clone(path: str) -> int:
    """A descriptor of the file `path` in a read-only mount that nobody else has."""
    tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(tree, path, set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    return tree


def _run(value: plan.PodPlan) -> int:
    from stage1.monitor import Monitor

    return Monitor("run", value).run()


def _enter(value: plan.EnterPlan) -> int:
    from stage1.entrance import enter

    return enter(value)


_JOBS: dict[str, Callable[[Any], int]] = {"run": _run, "enter": _enter}


def main() -> NoReturn:
    """What the executed interpreter runs: its arguments are the job and the descriptor of the plan."""
    gc.disable()  # until the start is over
    job, fd = sys.argv[1:]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Whoever starts us may have blocked signals that we wait for.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    try:
        value = plan.loads(channel.read_memory_file(int(fd)))
        status = _JOBS[job](value)
    except RkpyError as error:
        complain(job, str(error))
        status = error.exit_status
    except OSError as error:
        complain(job, f"{error.filename or ''}: {error.strerror}".removeprefix(": "))
        status = EXIT_FAILURE
    sys.exit(status)


def complain(command: str, text: str) -> None:
    """One line on standard error, whatever is in the names it repeats."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    try:
        os.write(2, f"rkpy: {command}: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # The exit status still says that it failed.
