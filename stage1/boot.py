"""The way into the small process that looks after a pod: the interpreter, executed anew from a read-only mount.

A process of the pod that gets hold of /proc/PID/exe of one of ours has the host's interpreter in its hands, and could
write to it once nothing runs it (CVE-2019-5736). Through a mount that is read-only it cannot, whoever it is. The new
process also starts without anything the engine had loaded.

An interpreter takes its time to start. With `begin` it does so while the engine is still at work, which goes on in a
child and hands over the plan: the process that was called is the one that becomes the monitor.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from common import syscalls, users
from common.errors import EXIT_FAILURE, LaunchError, RkpyError, located, reason
from stage1 import channel
from stage1.channel import Channel

if TYPE_CHECKING:
    from stage1.network.worker import Worker
    from stage1.plan import PodPlan
    from stage1.systemd.manager import Manager
    from stage1.systemd.notify import Latest
    from stage1.systemd.registrar import Registrar

FLAVOURS = frozenset({"nspawn", "kvm"})
"""Those whose pods start this way."""
_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from stage1.boot import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_CLEAN = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_ATTENTION = 1000
"""Milliseconds that whoever reads our standard error has to make room."""
_PATIENCE, _LONG_PATIENCE = 1.0, 20.0
"""Seconds that a service manager has to make room for the last that the engine wants it to hear; and where that is to
have more time, because there may be no more than those left."""
_told: Latest | None = None
"""What the service manager was told by this process itself."""
_begun: Channel | None = None
"""In the engine after `begin`: where the plan goes."""
_worker: Worker | None = None
"""The process that will attach the pod to its networks, once it was begun."""
_registrar: Registrar | None = None
"""The process that will register the pod with systemd, once it was begun."""


def begin(job: str, *, networks: bool = False, manager: Manager | None = None) -> None:
    """Become the process that does `job`, as by `execute`, before there is a plan. Returns in a child, which goes on as
    the engine; when it ends without `execute`, its exit status is passed on. `networks`: there will be some, as far as
    one can tell; `manager`: the service manager that is to know of the pod. LaunchError when that is not possible."""
    global _begun
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if manager is not None:
            begin_registrar(manager)
        if networks:
            begin_worker()
        interpreter = _interpreter()
        ours, theirs = channel.pair()
        engine = os.fork()
    except OSError as error:
        raise _cannot(error) from error
    if engine:
        ours.close()
        try:
            _execute(interpreter, job, theirs, engine=engine)
        except OSError as error:
            complain(job, str(_cannot(error)))
            os._exit(EXIT_FAILURE)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    theirs.close()
    os.close(interpreter)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    _begun = ours


def begin_worker() -> Worker:
    """The worker (`stage1.network.worker`), a child of the process that is to be the monitor; begun now if need be,
    which must be that process then. Raises OSError."""
    global _worker
    if _worker is None:
        from stage1.network import worker

        _worker = worker.begin()
    return _worker


def begin_registrar(manager: Manager) -> Registrar:
    """The registrar (`stage1.systemd.registrar`) for `manager`, with the same proviso. Raises OSError."""
    global _registrar
    if _registrar is None:
        from stage1.systemd import registrar

        _registrar = registrar.begin(manager)
    return _registrar


def tell_manager(address: str, text: str) -> None:
    """Have the process that was called say `text` to its service manager (`stage1.systemd.notify`), which may not
    listen to others (NotifyAccess= in systemd.service(5)). Waits for nobody: what there is no room for is said with
    what comes next."""
    global _told
    if _begun is None:
        from stage1.systemd import notify

        _told = _told or notify.Latest(address)
        _told.say(text)
        return
    with suppress(OSError):
        _begun.send(f"tell {address}\n{text}")


def insist() -> None:
    """Nothing follows what this process has told the service manager."""
    if _told is not None:
        _told.say(patience=_LONG_PATIENCE if "EXTEND_TIMEOUT_USEC" in _told.due else _PATIENCE)


def ours() -> set[int]:
    """PIDs of all there is of us until the pod lives: this process, the one that is to be its monitor, the helpers."""
    found = {os.getpid()}
    if _begun is not None:
        found.add(os.getppid())
    return found | {helper.pid for helper in (_worker, _registrar) if helper is not None}


def _interrupt_once(_number: int, _frame: object) -> None:
    """A terminal's SIGINT comes twice: to both processes, and the other one passes it on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def execute(job: str, plan: bytes, *, keep: Sequence[int] = ()) -> NoReturn:
    """Become the process that does `job` (a key of `_JOBS`, and the rkpy command that errors are reported for) with
    `plan` (`plan.dumps`). It gets the descriptors `keep`. LaunchError when that is not possible."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        message = ("plan", (channel.memory_file(plan), *keep))
        if _begun is not None:
            _begun.send(*message)
            os._exit(0)
        ours, theirs = channel.pair()
        ours.send(*message)
        ours.close()
        _execute(_interpreter(), job, theirs, engine=0)
    except OSError as error:
        raise _cannot(error) from error


def _interpreter() -> int:
    # What we run is in the mount namespace that we were executed in, which `stage0.rootless` has left.
    return read_only_clone(os.readlink("/proc/self/exe") if users.confined() else "/proc/self/exe")


def read_only_clone(path: str) -> int:
    """A descriptor of the file `path` in a read-only mount that nobody else has."""
    tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(tree, path, set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    return tree


def _execute(interpreter: int, job: str, source: Channel, *, engine: int) -> NoReturn:
    """The plan comes from `source`; `engine` is the child that will send it, 0 for none."""
    # Until `main` is ready for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    # Whatever else the caller left open is not for processes that live as long as the pod.
    syscalls.close_range(3, syscalls.LAST_FD, syscalls.CLOSE_RANGE_CLOEXEC)
    os.set_inheritable(source.fileno(), True)
    words = [sys.executable, "-I", "-S", "-c", _CODE, _ROOT, job, str(source.fileno()), str(engine)]
    os.execve(interpreter, words, _environment())  # noqa: S606


def _environment() -> dict[str, str]:
    """Of the caller's, what the interpreter and the apps' terminals need. The rest may be secrets, and would be in the
    memory of processes that are inside the pod."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("TERM", "LANG", "LD_LIBRARY_PATH") or name.startswith("LC_")
    }


def _cannot(error: OSError) -> LaunchError:
    return LaunchError(f"cannot execute the Python interpreter again: {reason(error)}")


# --- in the new interpreter

_Act = Callable[[Any, list[int]], int]
"""Takes the plan and the descriptors that come with it; an exit status."""


def _run() -> _Act:
    from stage1.monitor import Monitor

    def act(value: PodPlan, kept: list[int]) -> int:
        fds = iter(kept)
        value = value._replace(lock_fd=next(fds))
        worker = _channel(next(fds)) if value.worker else None
        registrar = _channel(next(fds)) if value.registrar else None
        credentials = next(fds) if value.credentials else -1
        return Monitor("run", value, worker, registrar, credentials, tuple(fds)).run()

    return act


def _channel(fd: int) -> Channel:
    return Channel(Socket(fileno=fd))


def _enter() -> _Act:
    from stage1.entrance import enter

    return lambda value, _kept: enter(value)


_JOBS = {"run": _run, "enter": _enter}
"""Each loads what it takes, and says what is to be done then."""


def main() -> NoReturn:
    """What the executed interpreter runs."""
    gc.disable()  # until the start is over
    job, fd, engine = sys.argv[1:]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # instead of a traceback
    os.set_inheritable(int(fd), False)
    call_ourselves(f"rkpy-{job}")
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    try:
        status = _do(job, _channel(int(fd)), int(engine))
    except RkpyError as error:
        complain(job, str(error))
        status = error.exit_status
    except OSError as error:
        complain(job, located(error))
        status = EXIT_FAILURE
    if job == "run":
        _end_like(status)
    # Without taking the interpreter apart, which takes longer than the kernel's clearing up.
    os._exit(status)


def _end_like(status: int) -> None:
    """Of the signal that ended the app, where it is one by which a process is asked to end. A shell sees no difference,
    but a service manager: such an end is no failure ("SuccessExitStatus=" in systemd.service(5))."""
    number = status - 128
    if number in _CLEAN:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)


def call_ourselves(name: str) -> None:
    """What ps(1) and systemctl(1) call this process, where our command line says but "python" (proc(5), comm)."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def _do(job: str, source: Channel, engine: int) -> int:
    ending = _Ending(engine)
    # Whoever starts us may have blocked signals that we wait for, as have we.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    act = _JOBS[job]()
    from stage1 import plan

    text, fds = source.receive()
    while text.startswith("tell "):
        address, _, words = text.removeprefix("tell ").partition("\n")
        tell_manager(address, words)
        text, fds = source.receive()
    source.close()
    insist()
    status = ending.wait()
    if status or not text:
        return status
    return act(plan.loads(channel.read_memory_file(fds[0])), fds[1:])


class _Ending:
    """While the engine is our child: what would end it, had it been the process that was called, ends both."""

    def __init__(self, engine: int) -> None:
        self._engine = engine
        self._caught = 0
        self._numbers = [number for number in _FORWARDED if engine and signal.getsignal(number) != signal.SIG_IGN]
        for number in self._numbers:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._caught = number
        with suppress(ProcessLookupError):  # It has just ended.
            os.kill(self._engine, number)

    def wait(self) -> int:
        """The exit status of the engine, which is not 0 after any of these signals."""
        if not self._engine:
            return 0
        code = os.waitstatus_to_exitcode(os.waitpid(self._engine, 0)[1])
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        if code == 0 and self._caught:
            return 128 + self._caught
        return code if code >= 0 else 128 - code


def complain(command: str, text: str) -> None:
    """One line on standard error, whatever is in the names it repeats."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    say(f"rkpy: {command}: {line}\n")  # If that fails, the exit status still says that something did.


def say(line: str) -> bool:
    """Write to standard error, if somebody listens: who does not read his pipe is not to keep a pod from its end."""
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        return bool(poll.poll(_ATTENTION)) and os.write(2, line.encode("utf-8", "backslashreplace")) > 0
    except OSError:
        return False
