"""The host's side of a pod: one small process that opens what the apps need, carries their output, and writes down how
they fare. The pod ends with it (PR_SET_PDEATHSIG), and it ends with the pod.

It is root on the host, in a mount namespace of its own, and nothing in the pod can see it. It decides nothing about
the apps: that is the supervisor's. See docs/nspawn.md.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common import syscalls
from common.errors import EXIT_FAILURE, LaunchError, PodError, RkpyError, reason
from stage1 import apptree, boot, channel, control, credentials, footprint, namespaces, poddir
from stage1.cgroup import PodCgroup
from stage1.enclosure import Enclosure
from stage1.logs import LogFile
from stage1.loop import Loop
from stage1.namespaced import Namespaced
from stage1.plan import JOURNALD, READY_STARTED, AppPlan, PodPlan, loads
from stage1.streams import AppStreams, Foreground, Log, Streams, when_all_written
from stage1.terminal import Keyboard

if TYPE_CHECKING:
    from stage1.journallog import PodJournal
    from stage1.systemd.membership import Membership
    from stage1.systemd.service import Service

CREATED, RUNNING, EXITED = "created", "running", "exited"
NONE, COMING, MAIN = "none", "coming", "main"
"""What an app has of a process: COMING is one on its way to be the app, or soon will be."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask the pod to end; but see `Monitor._asked_by`."""
_OF_MACHINED = tuple(signal.SIGRTMIN + offset for offset in range(3, 7))
"""The same, as machined sends them to a leader (`supervisor.ENDING`)."""
_PATIENCE = 1.0
"""Seconds in which the signal that ended the pod may come again, as when several send it to all there is."""
_KILLED = 128 + signal.SIGKILL


class _App:
    """One app as the monitor sees it."""

    def __init__(self, plan: AppPlan, process: str = NONE) -> None:
        self.plan = plan
        self.streams: AppStreams | None = None
        self.state = CREATED
        self.process = process
        self.executed = False
        """Whether it ran, this time."""
        self.attempts = 0
        """How often it was executed, or could not be."""
        self.trouble = ""
        """Why it could not be, if that is what came of the last attempt."""
        self.restarts = 0
        self.ending: poddir.Ending | None = None
        """How it has ended, as long as something of it is left."""


class Monitor:
    """One pod, from its enclosure to its exit status."""

    def __init__(
        self,
        command: str,
        plan: PodPlan,
        worker: channel.Channel | None = None,
        registrar: channel.Channel | None = None,
        credentials: int = -1,
        sockets: tuple[int, ...] = (),
    ) -> None:
        self._command = command
        self._plan = plan
        self._worker = worker
        """The process that attaches the pod to its networks, as long as it lives."""
        self._membership = _membership(command, plan, registrar)
        self._credentials = credentials
        self._sockets = sockets
        """What systemd listens on for the pod, in the order of `plan.given.sockets`."""
        self._apps = {app.name: _App(app, COMING) for app in plan.apps}
        self._attached = False
        self._asked = signal.SIGTERM.value
        """The signal that asked the pod to end, if one did."""
        self._stopping = False
        """Whether the apps have been asked to end."""
        self._status: int | None = None
        """The pod's, once the supervisor has said it."""
        self._keyboard: Keyboard | None = None
        self._service: Service | None = None
        """Where it matters to somebody how the pod fares."""

    def run(self) -> int:
        """The pod's exit status. LaunchError when it cannot be started; nothing of it is left then."""
        self._hide()
        plan = self._plan
        scope = self._membership is not None and self._membership.join()
        helpers = [pid for pid in (plan.worker, plan.registrar) if pid]
        self._cgroup = PodCgroup.create(
            plan.directory,
            plan.uuid,
            plan.limits,
            namespaces.owner(plan),
            helpers=helpers,
            scope=scope,
            delegated=plan.delegated,
        )
        try:
            self._enclosure = _enclosure(plan, self._cgroup, self._host_mounts)
            self._enclosure.begin(() if self._worker is None else (self._worker,))
            self._loop = Loop()
            footprint.keep_small(self._loop)
            self._journal = self._open_journal()
            self._foreground = Foreground(
                self._loop,
                prefixed=len(self._apps) != 1 or self._plan.mutable,
                silent=self._plan.given.journal if self._plan.log_driver == JOURNALD else (),
            )
            try:
                self._supervise()
            finally:
                self._end()
                self._flush()
        finally:
            self._cgroup.remove()
        return EXIT_FAILURE if self._status is None else self._status

    def _open_journal(self) -> PodJournal | None:
        if not self._plan.journal:
            return None
        from stage1.journallog import PodJournal

        return PodJournal(self._loop, self._plan)

    def _hide(self) -> None:
        """A mount namespace of our own, which hears of the host's mounts and never tells it of ours."""
        self._host_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            _protect_null()
        except OSError as error:
            raise LaunchError(f"cannot make a mount namespace: {reason(error)}") from error
        if self._plan.credentials:
            credentials.show(self._credentials, poddir.credentials(self._plan.directory))

    def _supervise(self) -> None:
        open(f"{self._plan.directory}/{poddir.STARTING}", "w").close()
        self._on_terminal = _has_terminal()  # It is taken from us before we hear that it is gone.
        for number in (*_ENDING, *_OF_MACHINED):
            # What the caller ignores, as nohup(1) does, is not for us.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._loop.on_signal(number, lambda number=number: self._asked_by(number))  # type: ignore[misc]
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            self._loop.on_signal(number, lambda number=number: self._tell(f"signal {number:d}"))  # type: ignore[misc]
        if self._membership is not None:
            self._membership.watch(self._loop, self._ask_to_end)
        self._server = control.Server(self._loop, self._plan.directory, self._serve)
        # Who wants to stop the pod, or to ask us, waits for this file and no longer.
        poddir.write_leader(self._plan.directory, self._enclosure.leader)
        self._enclosure.listen(self._loop, self._hear)
        if self._plan.given.notify or self._plan.ready != READY_STARTED or any(map(_speaks, self._plan.apps)):
            self._serve_as_service()
        if self._worker is None:
            self._start_all()
        else:
            self._attach_to_networks(self._worker)
        self._loop.run()

    def _serve_as_service(self) -> Service:
        from stage1.systemd.service import Service

        self._service = Service(self._loop, self._plan, self._is_ready, self._tell)
        return self._service

    def _asked_by(self, number: int) -> None:
        """By a signal. SIGHUP, by which systemd asks services to reload (Type=notify-reload in systemd.service(5)), is
        such a request where apps can; not where it may mean that the terminal is gone."""
        if number == signal.SIGHUP and not self._on_terminal and self._can_reload():
            self._reload()
            return
        self._asked = number
        self._ask_to_end()

    def _can_reload(self) -> bool:
        return any(app.plan.reload_signal for app in self._apps.values())

    def _reload(self) -> bool:
        """Signal the apps that have a signal for that; whether there are any. None of those that are ended: after
        SIGTERM there may come a SIGHUP as well (SendSIGHUP= in systemd.kill(5))."""
        if self._stopping:
            return False
        told = [app.plan for app in self._apps.values() if app.plan.reload_signal and app.process == MAIN]
        if self._service is not None:
            self._service.reload([plan.name for plan in told])
        for plan in told:
            self._tell(f"signal {plan.reload_signal:d} {plan.name}")
        return bool(told)

    def _ask_to_end(self) -> None:
        self._stopping = True
        if self._service is not None:
            self._service.stopping()
        if self._enclosure.is_up:
            self._tell("terminate")
            return
        self._status = 128 + self._asked  # No app was run, and whether one ever will be is not known.
        self._loop.stop()

    def _attach_to_networks(self, worker: channel.Channel) -> None:
        """Have it done; the apps are started when it is."""
        if self._service is not None:
            self._service.status("attaching to networks")
        try:
            namespace = os.open(f"/proc/{self._enclosure.pid}/ns/net", os.O_RDONLY)
        except FileNotFoundError:
            return  # It has failed already, and what it said will be heard.
        try:
            worker.send("netns", (namespace,))
        except (BrokenPipeError, ConnectionResetError):
            pass  # It has failed already, and said why.
        finally:
            os.close(namespace)
        self._loop.add(worker.fileno(), select.EPOLLIN, lambda _events: self._hear_of_networks(worker))

    def _hear_of_networks(self, worker: channel.Channel) -> None:
        text, fds = worker.receive()
        verb, _, rest = text.partition(" ")
        if verb == "ready":
            self._attached = True
            self._enclosure.attached(fds)
            self._start_all()
            return
        self._let_go_of_worker()
        if self._attached:
            return
        status, _, words = rest.partition(" ")
        if verb != "failed":
            raise LaunchError("the process that attaches the pod to its networks was killed")
        raise LaunchError(words, exit_status=int(status))

    def _let_go_of_worker(self) -> None:
        """Wait for its end: what it has to take back is taken back then."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._loop.remove(worker.fileno())
        worker.close()
        try:
            os.waitpid(self._plan.worker, 0)
        except ChildProcessError:
            pass  # The engine's child, and not ours.

    def _start_all(self) -> None:
        if self._membership is not None:
            self._membership.announce(self._enclosure.leader)
        if self._service is not None and not self._enclosure.is_up:
            self._service.boots()
        for app in self._apps.values():
            self._start(app)
        # What else held a connection would keep it from its end.
        for fd in self._sockets:
            os.close(fd)
        self._sockets = ()
        self._tell("sealed")
        self._report_limits()

    def _report_limits(self) -> None:
        """Where `rkpy status` finds what became of them."""
        poddir.write_limits(self._plan.directory, self._enclosure.reports())

    def _tell(self, text: str, fds: tuple[int, ...] = ()) -> None:
        self._enclosure.tell(text, fds)

    def _start(self, app: _App) -> None:
        """Make the app's streams and sockets, and hand it all to the supervisor."""
        plan = apptree.present(app.plan)
        if app.streams is not None:
            app.streams.close()
        streams = app.streams = self._streams(plan)
        if self._service is not None or _speaks(plan):
            (self._service or self._serve_as_service()).listen(plan)
        if self._journal is not None:
            self._journal.listen(plan)
        try:
            sockets = [self._sockets[socket.number] for socket in plan.listening]
            self._enclosure.start(plan, streams.child_fds(), sockets)
        finally:
            streams.close_child_ends()
        app.state, app.process, app.executed = RUNNING, COMING, False

    def _streams(self, plan: AppPlan) -> AppStreams:
        if not self._plan.interactive or "tty" in plan.streams:
            return AppStreams(self._loop, plan.name, plan.streams, log=self._log(plan), foreground=self._foreground)
        modes = Streams(stdin="stream")
        giving = self._plan.machine is None
        return AppStreams(
            self._loop, plan.name, modes, foreground=self._foreground, of_caller=True, giving=giving
        )  # fmt: skip

    def _log(self, plan: AppPlan) -> Log:
        if self._plan.log_driver == JOURNALD and self._journal is not None:
            return self._journal.log(plan)
        return LogFile(self._plan.directory, plan.name)

    # --- what the supervisor says

    def _hear(self, text: str, fds: list[int]) -> None:
        verb, _, rest = text.partition(" ")
        if verb == "ready":
            gc.enable()
            (self._is_ready if self._service is None else self._service.all_started)()
        elif verb == "pong" and self._service is not None:
            self._service.alive()
        elif verb == "up" and self._service is not None:
            self._service.booted()
        elif verb == "stopping":
            self._stopping = True
            if self._service is not None:
                self._service.stopping()
        elif verb == "over":
            self._status = int(rest)
        elif verb == "limits":
            self._report_limits()
        elif verb == "broken":
            raise LaunchError(rest)
        elif not text:
            self._loop.stop()
        elif verb in ("started", "terminal", "failed", "ended", "again", "idle", "health"):
            name, _, rest = rest.partition(" ")
            if name in self._apps:
                getattr(self, f"_{verb}")(self._apps[name], rest, fds)
        for fd in fds:
            os.close(fd)

    def _is_ready(self) -> None:
        os.unlink(f"{self._plan.directory}/{poddir.STARTING}")
        if self._journal is not None:
            self._journal.pod_started()

    def _started(self, app: _App, rest: str, fds: list[int]) -> None:
        if app.streams is not None:
            app.streams.started(int(rest))
        app.process, app.executed = MAIN, True
        app.attempts += 1
        app.trouble = ""
        pid = _pid_behind(fds[0]) if fds else 0
        self._record(poddir.write_started, app, pid)
        if self._journal is not None:
            self._journal.app_started(app.plan, pid)
        if self._service is not None:
            self._service.started(app.plan)

    def _terminal(self, app: _App, _rest: str, fds: list[int]) -> None:
        if app.streams is None or not fds:
            return
        app.streams.set_terminal(fds.pop())
        if self._plan.interactive and self._keyboard is None:
            streams = app.streams
            self._keyboard = Keyboard(
                self._loop,
                lambda: streams.input,
                resize=lambda rows, columns: self._set_size(app, rows, columns),
                leave=self._ask_to_end,
            )
        elif self._keyboard is not None:
            self._keyboard.update_size()

    def _failed(self, app: _App, rest: str, _fds: list[int]) -> None:
        text = rest.partition(" ")[2]
        if app.process == COMING:
            app.trouble = text
        boot.complain(self._command, text if len(self._apps) == 1 else f'app "{app.plan.name}": {text}')

    def _ended(self, app: _App, rest: str, _fds: list[int]) -> None:
        """See that nothing the app started outlives it. What does not die, or not yet, is no matter of the others'."""
        status, number, stopped, again = map(int, rest.split())
        if app.process == COMING:
            app.attempts += 1
            app.trouble = app.trouble or "it ended before it was executed"
        app.process = NONE
        ending = app.ending = poddir.Ending(status, number, self._enclosure.ended(app.plan), bool(stopped))
        self._enclosure.when_gone(app.plan, lambda: self._gone(app, ending, again=bool(again)))

    def _gone(self, app: _App, ending: poddir.Ending, *, again: bool) -> None:
        how = self._write_ending(app, ending)
        if self._service is not None:
            self._service.ended(app.plan, how, again)
        if again:
            app.state = RUNNING
        elif app.streams is not None and not app.plan.post_stop:
            app.streams.close()
        self._enclosure.clear(app.plan.name)

    def _write_ending(self, app: _App, ending: poddir.Ending) -> str:
        """Write down how the app has ended, after all it wrote; the same in a few words."""
        app.ending = None
        if app.streams is not None:
            app.streams.drain()
        words = [str(ending.status), *(["signal", str(ending.signal)] if ending.signal else [])]
        failed = f"failed ({' '.join(words)})"
        words += [*(["oom"] if ending.oom else []), *(["stopped"] if ending.stopped else [])]
        self._write_status(app, words)
        if self._journal is not None:
            self._journal.app_ended(app.plan, ending.status, ending.signal, oom=ending.oom, asked=ending.stopped)
        return "ended" if not ending.status or ending.stopped else "ran out of memory" if ending.oom else failed

    def _again(self, app: _App, _rest: str, _fds: list[int]) -> None:
        app.process = COMING
        app.restarts += 1
        self._record(poddir.write_restarts, app, app.restarts)

    def _idle(self, app: _App, _rest: str, _fds: list[int]) -> None:
        app.state, app.process = EXITED, NONE
        if app.streams is not None:
            app.streams.close()

    def _health(self, app: _App, rest: str, _fds: list[int]) -> None:
        state, _, _ = rest.partition(" ")
        text = "".join(char if char.isprintable() else " " for char in rest)
        self._record(poddir.write_health, app, text.strip())
        if self._service is not None:
            self._service.health(app.plan.name, state)

    def _write_status(self, app: _App, words: list[str]) -> None:
        app.state = EXITED
        self._record(poddir.write_status, app, " ".join(words))

    def _record(self, write: Callable[[str, str, Any], None], app: _App, value: object) -> None:
        """An app may have filled the disk: that is no reason to end the others."""
        try:
            write(self._plan.directory, app.plan.name, value)
        except OSError as error:
            boot.complain(self._command, f'cannot record how app "{app.plan.name}" fares: {reason(error)}')

    # --- what rkpy's commands ask for

    def _serve(self, asked: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return self._answer(asked["op"], asked.get("app", ""), asked, fds)

    def _answer(self, op: str, name: str, asked: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if op == "states":
            return {"states": {app.plan.name: app.state for app in self._apps.values()}}
        if op == "signal":
            return self._signal(asked["signal"], name)
        if op == "terminate":
            self._ask_to_end()
            return {}
        if op == "reload":
            if not self._can_reload():
                raise PodError("no app of the pod has a signal to reload by", hint="--reload-signal gives it one")
            if self._stopping:
                raise PodError("the pod is ending")
            if not self._reload():
                raise PodError("no app that can reload has been started yet", hint="try again")
            return {}
        if (found := self._enclosure.answer(op, asked, fds)) is not None:
            return found
        if op == "add":
            return self._add(loads(channel.read_memory_file(fds.pop())))
        app = self._apps.get(name)
        if app is None:
            if op == "rm":
                return {}  # It was never heard of here: whoever adds apps was interrupted.
            raise PodError(f'no app "{name}" in the pod')
        if op in ("attach", "endpoints", "resize"):
            return {"attach": self._attach, "endpoints": self._endpoints, "resize": self._resize}[op](app, asked, fds)
        if op == "attempts":
            return {"state": app.state, "attempts": app.attempts, "trouble": app.trouble}
        self._require_mutable()
        if op == "start":
            self._start_later(app)
        elif op == "rm":
            self._remove(app)
        elif op in ("stop", "kill", "restart"):
            _require_running(app)
            self._tell(f"{op} {name}")
            # An attempt that is under way comes to something before the one that is asked for here.
            return {"attempts": app.attempts + (app.process == COMING)}
        return {"attempts": app.attempts}

    def _signal(self, number: int, name: str) -> dict[str, Any]:
        """To the main process of every app, or of one, which has to run then. What is on its way to be an app can be
        killed, but has no use for another signal, and the app, if it got that later, might die of it before it expects
        any: whoever sends it is told."""
        if name:
            if name not in self._apps:
                raise PodError(f'no app "{name}" in the pod')
            if self._apps[name].process == NONE:
                _require_running(self._apps[name])
        asked = [self._apps[name]] if name else [app for app in self._apps.values() if app.process != NONE]
        missed = []
        for app in asked:
            begun = app.process == COMING and app.state == RUNNING
            if app.process == MAIN or (begun and number == signal.SIGKILL):
                self._tell(f"signal {number:d} {app.plan.name}")
            else:
                missed.append(f'"{app.plan.name}"')
        if missed:
            many = len(missed) > 1
            raise PodError(
                f"app{'s' if many else ''} {', '.join(missed)} {'are' if many else 'is'} being started, and"
                f" {'were' if many else 'was'} not signalled",
                hint="try again with --app=NAME",
            )
        return {}

    def _attach(self, app: _App, asked: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        streams = _require_running(app)
        endpoints = list(map(str, asked["endpoints"]))
        taken = tuple(fds)
        fds.clear()
        streams.attach(endpoints, taken)
        return {}

    def _endpoints(self, app: _App, _asked: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        return {"endpoints": app.streams.endpoints() if app.streams is not None else ()}

    def _resize(self, app: _App, asked: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        if app.streams is not None:
            self._set_size(app, asked["rows"], asked["columns"])
        return {}

    def _set_size(self, app: _App, rows: int, columns: int) -> None:
        if app.streams is not None and not self._enclosure.resize(app.plan.name, rows, columns):
            app.streams.resize(rows, columns)

    def _require_mutable(self) -> None:
        if not self._plan.mutable:
            raise PodError("the pod was not made to be changed", hint="rkpy app works on pods of rkpy app sandbox")

    def _add(self, plan: AppPlan) -> dict[str, Any]:
        self._require_mutable()
        if plan.name in self._apps:
            raise PodError(f'app "{plan.name}" is in the pod already')
        self._apps[plan.name] = _App(plan)
        return {}

    def _start_later(self, app: _App) -> None:
        if app.state == RUNNING:
            raise PodError(f'app "{app.plan.name}" is running already')
        self._start(app)
        self._report_limits()

    def _remove(self, app: _App) -> None:
        if app.state == RUNNING:
            raise PodError(f'app "{app.plan.name}" is running', hint="stop it first")
        self._tell(f"remove {app.plan.name}")
        if app.streams is not None:
            app.streams.close()
        if self._service is not None:
            self._service.removed(app.plan.name)
        if self._journal is not None:
            self._journal.removed(app.plan.name)
        self._enclosure.remove(app.plan.name)
        del self._apps[app.plan.name]

    # --- the end

    def _end(self) -> None:
        """The pod is over, one way or another: nothing of it may be left, and nothing it said be lost."""
        if self._keyboard is not None:
            self._keyboard.close()
        error = sys.exc_info()[1]
        if self._service is not None:
            self._service.stopping("stopping" if error is None else f"failed: {error}")
            self._service.close()
        status = self._enclosure.end()
        killed = self._status is None
        if killed and os.WIFSIGNALED(status):
            self._status = 128 + os.WTERMSIG(status)
        for app in self._apps.values():
            if app.streams is not None:
                app.streams.drain()
            if app.ending is not None:
                self._write_ending(app, app.ending)
            elif killed and app.state == RUNNING and not (app.process == COMING and app.restarts):
                self._write_killed(app, asked=error is None)
            if app.streams is not None:
                app.streams.close()
        for name in (poddir.STARTING, poddir.CONTROL):
            try:
                os.unlink(f"{self._plan.directory}/{name}")
            except FileNotFoundError:
                pass
        if self._membership is not None:
            self._membership.leave()
        if self._plan.worker:
            self._let_go_of_worker()
            self._detach_from_networks()
            if not self._attached and self._status == 0:
                self._status = 128 + self._asked  # No app was run.
        if self._journal is not None:
            if isinstance(error, RkpyError):  # and not the death of a supervisor that had to be killed
                self._journal.pod_ended(error.exit_status, error.message)
            else:
                self._journal.pod_ended(EXIT_FAILURE if self._status is None else self._status)

    def _write_killed(self, app: _App, *, asked: bool) -> None:
        """How an app has ended that nobody tells of any more; `asked`: as far as the monitor has heard."""
        if not app.executed:
            self._write_status(app, [str(EXIT_FAILURE)])
            return
        number, oom = int(signal.SIGKILL), self._enclosure.lacked_memory()
        asked = asked and not oom
        words = [str(_KILLED), "signal", str(number), *(["oom"] if oom else []), *(["stopped"] if asked else [])]
        self._write_status(app, words)
        if self._journal is not None:
            self._journal.app_ended(app.plan, _KILLED, number, oom=oom, asked=asked)

    def _detach_from_networks(self) -> None:
        """In a child, where the host's mounts are: a namespace's mount can only be taken away there. It is not awaited,
        but what it does: its end is put off by the kernel (`removal`). Nor are plugins that take long when somebody
        asks us to end once more; what they leave is for `rkpy gc`."""
        done, doing = os.pipe()
        lifeline, our_end = os.pipe()
        if os.fork():
            for fd in (doing, lifeline):
                os.close(fd)
            self._wait(done, our_end)
            return
        try:
            for fd in (done, our_end):
                os.close(fd)
            syscalls.setns(self._host_mounts, syscalls.CLONE_NEWNS)
            from stage1.network import programs, removal
            from stage1.network.detach import detach

            removal.unclosed = []
            programs.depend_on(lifeline)
            for problem in detach(self._plan.directory):
                boot.complain(self._command, problem)
        except BaseException as error:
            boot.complain(self._command, f"cannot detach the pod from its networks: {error}")
        finally:
            try:
                # Nobody is to wait for what we hold, be it the pod's lock or a pipe.
                syscalls.close_all_but(link.fileno() for link in removal.unclosed or ())
            finally:
                os._exit(0)

    def _wait(self, done: int, lifeline: int) -> None:
        """For the other end of `done` to be closed; when we are asked to end, close `lifeline`."""
        held, start = [lifeline], time.monotonic()

        def let_go(*_: object) -> None:
            while held and time.monotonic() > start + _PATIENCE:
                os.close(held.pop())

        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, let_go)
        os.read(done, 1)
        os.close(done)
        while held:
            os.close(held.pop())

    def _flush(self) -> None:
        """Show what the caller has not read yet. Who does not read any more can still send a signal; one that was for a
        pod just ending is not meant so."""
        start = time.monotonic()

        def asked() -> None:
            if time.monotonic() > start + _PATIENCE:
                self._loop.stop()

        streams = [app.streams for app in self._apps.values() if app.streams is not None]
        journals = [] if self._journal is None else [self._journal]
        when_all_written([self._foreground, *streams, *journals], self._loop.stop)
        for number in (*_ENDING, *_OF_MACHINED):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._loop.on_signal(number, asked)
        self._loop.run()
        self._foreground.close()
        if self._journal is not None and (losses := self._journal.losses()):
            boot.complain(self._command, losses)


def _speaks(plan: AppPlan) -> bool:
    """Whether an app has something to tell that the pod's being ready depends on."""
    return "notify" in plan.sockets or plan.health is not None


def _has_terminal() -> bool:
    """Whether we have a controlling terminal (proc_pid_stat(5), field 7)."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[4] != "0"


def _enclosure(plan: PodPlan, cgroup: PodCgroup, host_mounts: int) -> Enclosure:
    if plan.machine is None:
        return Namespaced(plan, cgroup, host_mounts)
    from stage1.vm.virtualmachine import VirtualMachine

    return VirtualMachine(plan, plan.machine, cgroup)


def _membership(command: str, plan: PodPlan, registrar: channel.Channel | None) -> Membership | None:
    if registrar is None:
        return None
    from stage1.systemd.membership import Membership

    return Membership(command, plan.directory, registrar, plan.registrar)


def _require_running(app: _App) -> AppStreams:
    if app.streams is None or app.state != RUNNING:
        raise PodError(f'app "{app.plan.name}" is not running')
    return app.streams


def _protect_null() -> None:
    """Apps are given descriptors of /dev/null, through which the pod's root could change the owner and mode of the
    host's node: not through a mount that is read-only."""
    tree = boot.read_only_clone(os.devnull)
    place = os.open(os.devnull, os.O_PATH)
    syscalls.move_mount(tree, place, os.devnull)
    os.close(place)
    os.close(tree)


def _pid_behind(pidfd: int) -> int:
    """The PID a pidfd stands for in our PID namespace; -1 when the process is gone (pidfd_open(2), fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next((int(line[4:]) for line in file if line.startswith("Pid:")), -1)
