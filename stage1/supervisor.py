"""PID 1 of a pod: starts the apps, reaps, starts again or stops, and tells the monitor what happened.

It is a fork of the monitor inside the pod's namespaces. It holds nothing of the host but its channel to the monitor and
the pod's lock, decides by what it was told, and ends with the pod: the kernel then kills whatever is left in the
namespace (pid_namespaces(7)).

The monitor says (descriptors in brackets):
    start [plan stdin stdout stderr cgroup sockets… mounts…]    cgroup is /dev/null where there are no cgroups
    sealed             all apps of the beginning were named; before that none of them ends
    cleared APP [cgroup]    nothing is left of the app that ended; what follows happens in a new cgroup
    stop APP, kill APP, restart APP, remove APP
    signal NUMBER [APP]    to the main process of every app, or of one; what is on its way to be one gets SIGKILL only
    terminate          stop the pod; signals mean the same, see ENDING
    ping               answered by a pong
The supervisor says:
    started APP PID [pidfd]           PID as the pod sees it
    terminal APP [master]
    failed APP STATUS TEXT    it could not be started; an `ended` follows
    ended APP STATUS SIGNAL STOPPED AGAIN    waits for `cleared`; SIGNAL is 0 for an exit, STOPPED 1 when it was asked
                       to end, AGAIN 1 when it is to start again
    again APP          it is being started again, as was said
    idle APP           it is not started, or not started again: it was stopped before
    ready              every app of the beginning has been started
    health APP STATE TEXT    it is starting, healthy or unhealthy now, and why
    stopping           all apps are asked to end now, whoever asked for that
    over STATUS        the pod is over
    pong               it was asked for
"""

from __future__ import annotations

import gc
import os
import select
import signal
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from common import syscalls
from common.errors import EXIT_FAILURE, LaunchError, located, reason
from common.imports import seal
from stage1 import apptree, boot, channel, footprint, namespaces, policy, terminal
from stage1.channel import Channel
from stage1.loop import Loop, Timer
from stage1.plan import AppPlan, PodPlan, loads
from stage2 import listening
from stage2.launch import LaunchSpec, forget_keys, launch, run_and_wait

if TYPE_CHECKING:
    from stage1.health import Check

ENDING = (signal.SIGTERM, signal.SIGINT, *(signal.SIGRTMIN + offset for offset in range(3, 7)))
"""Signals that ask the pod to end, among them those by which an init is told to halt, power off, reboot or kexec
(systemd(1), "Signals"): machined sends them."""
MAX_ERROR = 4096
"""Characters of an error message that are passed on."""


class _App:
    """One app and its main process."""

    def __init__(self, plan: AppPlan, streams: list[int], cgroup: int, fds: list[int]) -> None:
        self.plan = plan
        self.streams = streams
        self.cgroup = cgroup
        self.sockets = [(socket, fds.pop(0)) for socket in plan.listening]
        """Those the app gets at its next start."""
        self.mounts = fds
        """Descriptors for the first start, which makes the app's mount namespace of them."""
        self.namespace = -1
        """The app's mount namespace, once it is furnished."""
        self.pid = 0
        """The main process; 0 while there is none."""
        self.pidfd = -1
        self.handlers = 0
        """The process that runs the post-stop handlers; 0 while there is none."""
        self.clearing = False
        """Whether the monitor is still seeing to what is left of it."""
        self.status = 0
        self.report: Channel | None = None
        """Where a process that has not become the app yet tells of its progress."""
        self.started = False
        self.failed = False
        """It has said that it cannot become the app."""
        self.times = 0
        """How often it was started again by its restart policy."""
        self.timer: Timer | None = None
        self.stopping = False
        self.again = False
        """Whether to start it again once it is stopped (`rkpy app restart`)."""
        self.promised = False
        """Whether the monitor was told that it is to start again."""
        self.removed = False
        self.check: Check | None = None

    @property
    def busy(self) -> bool:
        """Whether something of it runs or will."""
        return bool(self.pid or self.clearing or self.handlers or self.timer)

    def spend(self) -> None:
        """Let go of what only the first start needs, which has it now."""
        for fd in (*self.mounts, *(fd for socket, fd in self.sockets if socket.once)):
            os.close(fd)
        self.mounts = []
        self.sockets = [(socket, fd) for socket, fd in self.sockets if not socket.once]

    def close(self) -> None:
        for fd in (*self.streams, self.cgroup, *(fd for _, fd in self.sockets), *self.mounts, self.namespace):
            if fd >= 0:
                os.close(fd)


class Supervisor:
    """Runs until the pod is over; `status` is the pod's exit status."""

    def __init__(self, plan: PodPlan, monitor: Channel, loop: Loop) -> None:
        self._plan = plan
        self._monitor = monitor
        self._apps: dict[str, _App] = {}
        self._loop = loop
        self._outcome = policy.Outcome(plan.exit_policy)
        self._sealed = False
        self._ready = False
        self._stopping = False
        self._abandoned = False
        self._over = False
        self.status = 0

    def run(self) -> int:
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        for number in ENDING:
            self._loop.on_signal(number, self._terminate)
        # Until here the monitor has had it blocked for us: of PID 1 the kernel drops what has no handler yet.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._loop.add(self._monitor.fileno(), select.EPOLLIN, lambda _events: self._obey())
        self._loop.run()
        return self.status

    def _tell(self, text: str, fds: tuple[int, ...] = ()) -> None:
        try:
            self._monitor.send(text, fds)
        except OSError:
            os._exit(EXIT_FAILURE)  # Without a monitor there is no pod.

    # --- what the monitor says

    def _obey(self) -> None:
        text, fds = self._monitor.receive()
        words = text.split(" ")
        verb, name = words[0], words[-1]
        if verb == "start":
            self._start(fds)
        elif verb == "sealed":
            self._sealed = True
            self._review()
            self._reap()
        elif verb == "ping":
            self._tell("pong")
        elif verb == "signal":
            number = int(words[1])
            for app in self._apps.values():
                # What is on its way to be the app has no use for any other.
                if (app.started or number == signal.SIGKILL) and words[2:] in ([], [app.plan.name]):
                    _kill(app.pid, number)
        elif verb == "terminate":
            self._terminate()
        elif verb == "cleared":
            self._cleared(self._apps[name], fds)
        elif name in self._apps:
            app = self._apps[name]
            app.again = verb == "restart" and bool(app.pid or app.timer or app.promised)
            {"stop": self._stop, "kill": self._kill, "restart": self._stop, "remove": self._remove}[verb](app)
        elif not text:
            os._exit(EXIT_FAILURE)

    def _start(self, fds: list[int]) -> None:
        plan: AppPlan = loads(channel.read_memory_file(fds[0]))
        old = self._apps.pop(plan.name, None)
        if old is not None:
            old.close()
        app = _App(plan, fds[1:4], _cgroup(fds[4]), fds[5:])
        if self._stopping:  # Nobody would stop it any more.
            app.close()
            self._tell(f"idle {plan.name}")
            return
        self._apps[plan.name] = app
        self._launch(app)

    def _remove(self, app: _App) -> None:
        """Its post-stop handlers may still run."""
        app.removed = True
        self._kill(app)

    def _stop(self, app: _App) -> None:
        app.stopping = True
        self._cancel_restart(app)
        if app.pid:
            main = app.pid
            self._loop.call_later(self._plan.stop_timeout, lambda: self._lose_patience(app, main))
            self._ask_to_end(app)
        self._settle(app)

    def _ask_to_end(self, app: _App) -> None:
        """By the app's stop signal, which a stopped process has to be woken up for. One that is still being started is
        asked once it is the app."""
        if app.started:
            _kill(app.pid, app.plan.stop_signal)
            _kill(app.pid, signal.SIGCONT)

    def _lose_patience(self, app: _App, main: int) -> None:
        if app.pid == main:
            self._kill(app)

    def _kill(self, app: _App) -> None:
        app.stopping = True
        self._cancel_restart(app)
        _kill(app.pid, signal.SIGKILL)
        _kill(app.handlers, signal.SIGKILL)
        self._settle(app)

    def _cancel_restart(self, app: _App) -> None:
        if app.timer is not None:
            app.timer.cancel()
            app.timer = None

    def _terminate(self) -> None:
        """Stop all apps; the pod is over when the last has ended."""
        if self._stopping:
            return
        self._stopping = True
        self._tell("stopping")
        for app in list(self._apps.values()):
            app.again = False
            self._stop(app)
        self._loop.call_later(2 * self._plan.stop_timeout, self._abandon)
        self._review()

    def _abandon(self) -> None:
        """Post-stop handlers have had as much time as the apps; those that have not begun by now never will."""
        self._abandoned = True
        for app in list(self._apps.values()):
            self._kill(app)

    # --- what the apps do

    def _launch(self, app: _App) -> None:
        """Start the app's main process, in its cgroup from the first instant."""
        if app.promised:
            self._tell(f"again {app.plan.name}")
        app.started = app.failed = app.stopping = app.again = app.promised = False
        ours, theirs = channel.pair()
        try:
            pid, pidfd = syscalls.clone3(0, app.cgroup)
        except OSError as error:
            ours.close()
            theirs.close()
            self._tell(f"failed {app.plan.name} {EXIT_FAILURE} cannot make a process: {reason(error)}")
            self._ended(app, EXIT_FAILURE, 0)
            return
        if pid == 0:
            ours.close()
            _become(app, theirs, self._plan.window)
        theirs.close()
        app.pid, app.pidfd, app.report = pid, pidfd, ours
        app.spend()
        self._loop.add(ours.fileno(), select.EPOLLIN, lambda _events: self._listen(app, pid))

    def _listen(self, app: _App, pid: int) -> None:
        """One message of a process on its way to be the app. That the channel ends means it has become the app, unless
        it said before that it could not."""
        report = app.report
        if report is None:
            return
        text, fds = report.receive()
        if text == "namespace":
            app.namespace = fds[0]
        elif text == "terminal":
            self._tell(f"terminal {app.plan.name}", (fds[0],))
            os.close(fds[0])
        elif text:
            app.failed = True
            self._tell(f"failed {app.plan.name} {text}")
        else:
            self._loop.remove(report.fileno())
            report.close()
            app.report = None
            if not app.failed:
                app.started = True
                self._tell(f"started {app.plan.name} {pid}", (app.pidfd,))
            os.close(app.pidfd)
            if app.stopping:
                self._ask_to_end(app)
            elif app.pid and app.plan.health is not None:  # or it has ended already: nobody would end the check
                self._watch(app)
            self._review()

    def _reap(self) -> None:
        """Collect every process that has ended: the apps' and, as PID 1, everybody's orphans. Not before all apps of
        the beginning are known, because an app that ends at once does not end before its pod is ready."""
        while self._sealed:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for app in list(self._apps.values()):
                if pid == app.pid:
                    self._main_ended(app, status)
                elif pid == app.handlers:
                    app.handlers = 0
                    self._settle(app)
                elif app.check is not None and pid == app.check.pid:
                    app.check.ended(status)

    def _main_ended(self, app: _App, status: int) -> None:
        """The app's main process is gone. What it still had to say is heard first."""
        pid = app.pid
        app.pid = 0  # from here on it is somebody else's number
        app.clearing = True
        if app.check is not None:
            app.check.end()
            app.check = None
        while app.report is not None:
            self._listen(app, pid)
        code = os.waitstatus_to_exitcode(status)
        self._ended(app, code if code >= 0 else 128 - code, max(-code, 0))

    def _ended(self, app: _App, status: int, number: int) -> None:
        app.status = status
        app.clearing = True
        app.promised = self._restarts(app) or app.again
        self._tell(f"ended {app.plan.name} {status} {number} {app.stopping:d} {app.promised:d}")

    def _restarts(self, app: _App) -> bool:
        return not app.stopping and policy.restarts(app.plan.restart, app.times, app.status)

    def _cleared(self, app: _App, fds: list[int]) -> None:
        """What the app has left behind is gone: go on."""
        app.clearing = False
        if app.cgroup >= 0:
            os.close(app.cgroup)
        app.cgroup = _cgroup(fds[0])
        if self._restarts(app):
            app.timer = self._loop.call_later(policy.delay(app.times), lambda: self._start_again(app))
            app.times += 1
        elif app.plan.post_stop and app.namespace >= 0 and not self._abandoned:
            self._run_handlers(app)
        self._settle(app)

    def _start_again(self, app: _App) -> None:
        app.timer = None
        self._launch(app)

    def _run_handlers(self, app: _App) -> None:
        try:
            pid, pidfd = syscalls.clone3(0, app.cgroup)
        except OSError as error:
            self._tell(f"failed {app.plan.name} {EXIT_FAILURE} cannot run its post-stop handlers: {reason(error)}")
            return
        if pid == 0:
            _run_post_stop(app)
        os.close(pidfd)
        app.handlers = pid

    def _watch(self, app: _App) -> None:
        """See whether it is well, as long as it runs."""
        health = app.plan.health
        if health is None:
            return
        from stage1.health import Check

        name = app.plan.name
        app.check = Check(
            self._loop,
            health,
            lambda output: self._probe(app, output),
            lambda state, text: self._tell(f"health {name} {state} {text}"),
            lambda: self._treat(app, health.on_failure),
        )
        app.check.begin()

    def _probe(self, app: _App, output: int) -> int:
        """Start the command that tells; its PID. Raises OSError."""
        pid, pidfd = syscalls.clone3(0, app.cgroup)
        if pid == 0:
            _run_check(app, output)
        os.close(pidfd)
        return pid

    def _treat(self, app: _App, action: str) -> None:
        """An app that is not well any more. One that is being stopped has all the time it was given."""
        if app.stopping:
            return
        if action == "kill":
            _kill(app.pid, signal.SIGKILL)
        elif action in ("restart", "stop"):
            app.again = action == "restart"
            self._stop(app)

    def _settle(self, app: _App) -> None:
        """Once nothing of the app runs any more: start it again if that was asked, or count its end."""
        if app.busy:
            return
        if app.again and not self._stopping:
            self._launch(app)
        else:
            self._rest(app)
        self._review()

    def _rest(self, app: _App) -> None:
        if app.promised:
            app.promised = False
            self._tell(f"idle {app.plan.name}")
        if app.removed:
            del self._apps[app.plan.name]
            app.close()
        elif not self._plan.mutable:
            self._outcome.ended(app.status)

    def _are_up(self) -> bool:
        """Whether all apps have been started that could be, and the pod is not over because one could not."""
        apps = self._apps.values()
        if self._stopping or self._outcome.over or not all(app.started or not app.busy for app in apps):
            return False
        return not apps or any(app.started for app in apps)

    def _review(self) -> None:
        """What the pod as a whole has come to."""
        apps = self._apps.values()
        if self._sealed and not self._ready and self._are_up():
            self._ready = True
            self._tell("ready")
            gc.enable()
        if self._outcome.over and not self._stopping and not self._plan.mutable:
            self._terminate()
        idle = not any(app.busy for app in apps)
        if idle and not self._over and (self._stopping or (self._sealed and not self._plan.mutable)):
            self._over = True
            self.status = self._outcome.status
            self._tell(f"over {self.status}")
            self._loop.stop()


def _cgroup(fd: int) -> int:
    """`fd` when it is a cgroup; -1 for what stands in where there are none."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return -1


def _kill(pid: int, number: int) -> None:
    """Signal a child of ours; 0 is nobody. It cannot have been reaped: only we do that."""
    if pid:
        os.kill(pid, number)


# --- in the child that becomes the app


def _become(app: _App, report: Channel, window: tuple[int, int]) -> NoReturn:
    """Enter or make the app's mount namespace, take its streams, and execute it; or say why not."""
    sockets = [(socket.name, fd) for socket, fd in app.sockets]
    try:
        report = report.above(listening.FIRST + len(sockets))
        credentials = _prepare(app, report, window)
        for handler in app.plan.pre_start:
            run_and_wait(handler, "pre-start handler")
        launch(app.plan.launch, report=report.fileno(), sockets=sockets, credentials=credentials)
    except LaunchError as error:
        _give_up(report, error.exit_status, str(error))
    except OSError as error:
        _give_up(report, EXIT_FAILURE, located(error))
    except BaseException as error:
        _give_up(report, EXIT_FAILURE, f"bug in the launcher: {error!r}")
    finally:
        os._exit(EXIT_FAILURE)


def _give_up(report: Channel, status: int, text: str) -> NoReturn:
    try:
        report.send(f"{status} {text[:MAX_ERROR]}")
    finally:
        os._exit(status)


def _prepare(app: _App, report: Channel, window: tuple[int, int]) -> int:
    credentials = _enter_namespace(app, report)
    os.setsid()
    streams = app.plan.streams
    if "tty" in streams:
        master, slave = terminal.open_pty(0)
        report.send("terminal", (master,))
        os.close(master)
        terminal.set_size(slave, *window)
        apptree.show_console(slave)
        terminal.take_terminal(slave, tuple(fd for fd, word in enumerate(streams) if word == "tty"))
    for fd, word in enumerate(streams):
        if word != "tty":
            os.dup2(app.streams[fd], fd)
    return credentials


def _enter_namespace(app: _App, report: Channel) -> int:
    """The first start makes the app's mount namespace, later ones find it as the app left it. Returns the mount of its
    credentials where these are still to be given to its user, else -1."""
    _part()
    if app.namespace >= 0:
        syscalls.setns(app.namespace, syscalls.CLONE_NEWNS)
        return -1
    syscalls.unshare(syscalls.CLONE_NEWNS)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    credentials = apptree.furnish(app.plan, app.mounts)
    report.send("namespace", (namespace,))
    os.close(namespace)
    return credentials


def _part() -> None:
    """From what is the host's and not in the app's mount namespace. The cgroup namespace is new each time: its root is
    the cgroup of whoever makes it (cgroup_namespaces(7))."""
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    forget_keys()


def _run_post_stop(app: _App) -> NoReturn:
    """Every handler, whatever becomes of those before it; what goes wrong is said in the app's log."""
    try:
        _part()
        syscalls.setns(app.namespace, syscalls.CLONE_NEWNS)
        os.setsid()
        for fd in range(3):
            os.dup2(app.streams[fd], fd)
        for handler in app.plan.post_stop:
            _run_handler(handler)
    finally:
        os._exit(0)


def _run_check(app: _App, output: int) -> NoReturn:
    """As the app is run, but for where what it says goes, and that it does not speak for the app."""
    status = EXIT_FAILURE
    try:
        _part()
        syscalls.setns(app.namespace, syscalls.CLONE_NEWNS)
        os.setsid()
        for fd in (1, 2):
            os.dup2(output, fd)
        own = tuple(pair for pair in app.plan.launch.environment if pair[0] not in ("NOTIFY_SOCKET", "WATCHDOG_USEC"))
        argv = app.plan.health.argv if app.plan.health is not None else ()
        launch(app.plan.launch._replace(argv=argv, environment=own, owns_streams=True))
    except LaunchError as error:
        status = error.exit_status
        os.write(2, str(error).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(status)


def _run_handler(handler: LaunchSpec) -> None:
    try:
        run_and_wait(handler, "post-stop handler")
    except LaunchError as error:
        os.write(2, f"rkpy: {error}\n".encode("utf-8", "backslashreplace"))


# --- the beginning


def begin(plan: PodPlan, cgroup: int, unwanted: Iterable[Channel | Loop] = ()) -> tuple[int, Channel]:
    """Make the pod's namespaces, and PID 1 in them, born in the cgroup that the descriptor `cgroup` is of (-1: in
    ours): its PID, and our end of the channel to it, on which it waits for `go`. It has nothing `unwanted` of ours.
    LaunchError when it cannot be."""
    ours, theirs = channel.pair()
    # `rkpy stop` may come as soon as the leader is known. The supervisor lets it in when it listens.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    gc.freeze()  # A later collection would write to what the two processes share.
    try:
        pid, pidfd = syscalls.clone3(namespaces.flags(plan), cgroup)
    except OSError as error:
        raise LaunchError(f"cannot make the pod's namespaces: {reason(error)}") from error
    if pid == 0:
        boot.call_ourselves("rkpy-init")
        for end in (ours, *unwanted):
            end.close()
        main(plan, theirs)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    theirs.close()
    os.close(pidfd)
    return pid, ours


def main(plan: PodPlan, monitor: Channel) -> NoReturn:
    """Be PID 1. Runs in the process that was just cloned."""
    status = EXIT_FAILURE
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        # What has no handler the kernel keeps from the first process of a namespace (pid_namespaces(7)).
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # In a virtual machine apps are not known beforehand.
        if plan.mutable or not plan.apps or any(app.health is not None for app in plan.apps):
            import stage1.health  # noqa: F401  # While that can be done.
        seal()
        _shed(plan, monitor)
        if monitor.receive()[0] != "go":
            os._exit(EXIT_FAILURE)
        _settle_in(plan)
        loop = Loop()
        footprint.keep_small(loop)
        status = Supervisor(plan, monitor, loop).run()
    except LaunchError as error:
        monitor.send(f"broken {error}")
    except OSError as error:
        monitor.send(f"broken {located(error)}")
    except BaseException as error:
        monitor.send(f"broken bug in the supervisor: {error!r}")
    finally:
        os._exit(status)


def _shed(plan: PodPlan, monitor: Channel) -> None:
    """Let go of the caller's session and of every descriptor but our own."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    syscalls.close_all_but((monitor.fileno(), plan.lock_fd), first=3)
    os.set_inheritable(plan.lock_fd, False)


def _settle_in(plan: PodPlan) -> None:
    """Become root of the user namespace, name the host, bring up the loopback interface, and leave the host's files."""
    if plan.private_range[1]:
        os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # Changing identity made us dumpable or not by a system-wide setting (suid_dumpable in proc(5)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    namespaces.name_host(plan.hostname)
    if not plan.host_network and not plan.join:
        namespaces.bring_up_loopback()
    apptree.supervisor_root()
