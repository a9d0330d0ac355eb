"""`rkpy enter`: a command beside a running app, in its namespaces and its cgroup."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from common import syscalls
from common.errors import EXIT_FAILURE, LaunchError, PodError, located, reason
from common.imports import seal
from stage1 import cgroup, channel, terminal
from stage1.channel import Channel
from stage1.loop import READ, Loop
from stage1.plan import EnterPlan
from stage1.processes import Process
from stage1.streams import AppStreams, Foreground, Streams
from stage2.launch import LaunchSpec, forget_keys, launch

_SHELLS = ("/bin/bash", "/bin/sh")
_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWCGROUP
)  # fmt: skip


def enter(plan: EnterPlan) -> int:
    """Run the command to its end; its exit status, as shells report it."""
    interactive = os.isatty(0)
    # Before anything is the pod's: a descriptor of the caller's is opened again by its name in /proc.
    streams = None if interactive else _Streams(plan.app)
    seal()
    try:
        procs = _join(plan)
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PodError(f'app "{plan.app}" is not running') from error
    except OSError as error:
        raise LaunchError(f"cannot enter the pod's namespaces: {reason(error)}") from error
    ours, theirs = channel.pair()
    pid, pidfd = syscalls.clone3(0)
    if pid == 0:
        ours.close()
        become(plan.launch, theirs, procs, None if streams is None else streams.take)
    theirs.close()
    if procs >= 0:
        os.close(procs)
    return _accompany(pid, pidfd, ours, streams)


class _Streams:
    """Those of the caller's, where there is no terminal."""

    def __init__(self, app: str) -> None:
        self._loop = Loop()
        self._foreground = Foreground(self._loop, prefixed=False)
        self._streams = AppStreams(
            self._loop, app, Streams(stdin="stream"), foreground=self._foreground, of_caller=True
        )

    def take(self) -> None:
        """In the child."""
        for number, fd in enumerate(self._streams.child_fds()):
            os.dup2(fd, number)

    def carry(self, pidfd: int) -> None:
        """Until the process has ended and what it wrote is written."""
        self._streams.close_child_ends()
        self._streams.started(0)
        self._loop.add(pidfd, READ, lambda _events: self._loop.stop())
        self._loop.run()
        self._loop.remove(pidfd)
        self._streams.drain()
        self._streams.close()
        for number in _HANDED_ON:
            signal.signal(number, signal.SIG_DFL)
        self._foreground.when_written(self._loop.stop)
        self._loop.run()
        self._foreground.close()
        self._loop.close()


def _join(plan: EnterPlan) -> int:
    """Enter the namespaces of the app's main process (setns(2) with a pidfd, Linux 5.8), and of no other: they count
    only if the process is found alive afterwards. Returns the open cgroup.procs of the app, or -1."""
    with Process(plan.pid, plan.start_time) as process:
        procs = cgroup.open_procs(plan.directory, plan.app)
        flags = NAMESPACES
        if os.stat(f"/proc/{plan.pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            flags |= syscalls.CLONE_NEWUSER
        process.require_alive()
        syscalls.setns(process.fd, flags)
    if flags & syscalls.CLONE_NEWUSER:
        os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    # Entering a user namespace made us dumpable or not by a system-wide setting (suid_dumpable in proc(5)).
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    return procs


def follow(procs: int) -> None:
    """Into the cgroup whose cgroup.procs this is. An ordinary user may not leave that of his session."""
    try:
        os.write(procs, b"0")
    except PermissionError as error:
        from stage1 import boot

        boot.complain("enter", f"the limits of the pod do not bound the command: cgroup.procs: {reason(error)}")
    os.close(procs)


def become(spec: LaunchSpec, report: Channel, procs: int, take: Callable[[], None] | None) -> NoReturn:
    """In the child, the first of ours inside the pod's PID namespace, when all NAMESPACES are the app's: be the command
    (without argv: a shell). `procs` is the open cgroup.procs of the app, or -1. `take` makes the streams 0 to 2;
    without it they are a new terminal of the app's.

    `report` hears `terminal` (with the master), or why it cannot be: `STATUS TEXT`. That it closes means it can."""
    try:
        if procs >= 0:
            follow(procs)
        os.setsid()
        forget_keys()
        if take is not None:
            take()
        else:
            master, slave = terminal.open_pty(0)
            report.send("terminal", (master,))
            os.close(master)
            terminal.take_terminal(slave)
        argv = spec.argv or (next((shell for shell in _SHELLS if os.access(shell, os.X_OK)), _SHELLS[-1]),)
        launch(spec._replace(argv=argv, owns_streams=take is None), report=report.fileno())
    except LaunchError as error:
        report.send(f"{error.exit_status} {error}")
        os._exit(error.exit_status)
    except OSError as error:
        report.send(f"{EXIT_FAILURE} {located(error)}")
    except BaseException as error:
        report.send(f"{EXIT_FAILURE} bug in the launcher: {error!r}")
    finally:
        os._exit(EXIT_FAILURE)


def _accompany(pid: int, pidfd: int, report: Channel, streams: _Streams | None) -> int:
    """Carry a terminal's traffic and the caller's signals until the command has ended."""
    for number in _HANDED_ON:
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    master = -1
    while True:
        text, fds = report.receive()
        if text == "terminal":
            master = fds[0]
        elif text:
            status, _, message = text.partition(" ")
            os.waitpid(pid, 0)
            raise LaunchError(message, exit_status=int(status))
        else:
            break
    if master >= 0:
        terminal.proxy(master)
    elif streams is not None:
        streams.carry(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
