"""The guest's end of the wire: it does for the apps of the pod in there what the monitor does for those in namespaces.

It opens mounts, makes cgroups and pipes, and hands them to the very supervisor that pods in namespaces have, whose
words it passes on. It is PID 1 of the guest and nothing an app does may end it. When it cannot go on it says why
(`broken`) and the guest is switched off; when the host hangs up, the same. See `stage1.vm.frames` for what is said.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from common import syscalls
from common.errors import EXIT_FAILURE, LaunchError, PodError, located, reason
from common.imports import seal
from common.journal import SEALS
from stage1 import apptree, channel, footprint, namespaces, supervisor, terminal
from stage1.appsockets import AppSocket, weight
from stage1.cgroup import PodCgroup
from stage1.channel import Channel
from stage1.loop import READ, Loop
from stage1.plan import AppPlan, PodPlan, dumps, loads
from stage1.vm import frames, guestmodules
from stage1.vm.frames import MESSAGE, FrameError
from stage1.vm.traffic import Traffic, Wire

STUCK = 10.0
"""Seconds that an app's end is kept from the host because what it wrote cannot be sent."""
_LARGEST = 1 << 20
"""Bytes of a message to the journal that comes as a file in memory."""
_PLACE = os.path.dirname(frames.SOCKETS)


class _App:
    """One app as the agent sees it, from one `start` to the next."""

    def __init__(self, plan: AppPlan, streams: list[int], sockets: list[AppSocket]) -> None:
        self.plan = plan
        self.streams = streams
        """Their numbers; 0 for /dev/null."""
        self.sockets = sockets
        self.pidfd = -1
        """Of the main process, while there is one."""
        self.cgroup = -1
        """The next one, when the app has ended."""
        self.known = True
        """Whether the supervisor has heard of it."""

    @property
    def terminal(self) -> int:
        """The stream of its terminal; 0 for none."""
        return next((number for number, word in zip(self.streams, self.plan.streams, strict=True) if word == "tty"), 0)

    def close(self) -> None:
        for socket in self.sockets:
            socket.close()
        for fd in (self.pidfd, self.cgroup):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.cgroup = -1


class _Command:
    """A command beside an app: a child of ours (the usher) has entered the app's namespaces and waits for it there."""

    def __init__(self, usher: int, report: Channel, streams: list[int]) -> None:
        self.usher = usher
        self.report = report
        self.streams = streams
        self.pidfd = -1
        self.signals: list[int] = []
        """Those that came before it was known to run."""

    def send(self, number: int) -> None:
        if self.pidfd < 0:
            self.signals.append(number)
            return
        with suppress(OSError):  # It has ended, or there is no such signal.
            signal.pidfd_send_signal(self.pidfd, number)

    def runs(self, pidfd: int) -> None:
        self.pidfd = pidfd
        for number in self.signals:
            self.send(number)


class Agent:
    """Runs until the host hangs up, or something breaks: `why` says what then."""

    def __init__(self, loop: Loop, port: int) -> None:
        """`port`: the descriptor of the port, owned from now on."""
        self.why = ""
        self._loop = loop
        self._wire = Wire(loop, port, self._take, self._gone)
        self._traffic = Traffic(loop, self._wire)
        self._apps: dict[str, _App] = {}
        self._commands: dict[int, _Command] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        """Of terminals that are not there yet, by their streams."""
        self._places: set[str] = set()
        """Where in the share there were files of apps, as far as is known still."""
        self._paused = False
        """Whether nothing is taken from any app, because the wire is full."""
        self._unheard: dict[tuple[str, str], int] = {}
        """What of each socket of an app the host has not dealt with."""
        self._supervisor: Channel | None = None

    def run(self) -> None:
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._say(f"up {os.uname().release}")
        self._loop.run()

    def _gone(self, why: str) -> None:
        self.why = self.why or (f"the host {why}" if why else "the host has hung up")
        self._loop.stop()

    def _say(self, text: str, blob: bytes = b"") -> None:
        self._wire.send(frames.encode_message(text, blob))

    def _break(self, text: str) -> None:
        """Say why the pod cannot go on, and be gone when it is said."""
        if not self.why:
            self.why = text
            self._say(f"broken {text}")
            self._wire.when_sent(self._loop.stop)

    def _tell(self, text: str, fds: Sequence[int] = ()) -> None:
        if self._supervisor is not None:
            try:
                self._supervisor.send(text, fds)
            except (BrokenPipeError, ConnectionResetError):
                pass  # That it is gone is what will be heard from it next.

    # --- what the host says

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        if kind != MESSAGE:
            self._traffic.take(kind, stream, payload)
            return
        text, blob = frames.decode_message(payload)
        words = text.split(" ")
        verb = words[0]
        try:
            if verb in _HOST:
                _HOST[verb](self, words[1:], blob)
            else:
                self._tell(text)
        except (LaunchError, PodError) as error:
            self._break(str(error))
        except OSError as error:
            self._break(located(error))
        except FrameError:
            raise
        except Exception as error:
            self._break(f"bug in the agent: {error!r}")

    def _begin(self, _words: list[str], blob: bytes) -> None:
        """The pod's namespaces and PID 1 in them, as the monitor makes them on a host."""
        null = os.open(os.devnull, os.O_RDONLY)  # stands in for the pod's lock
        plan: PodPlan = loads(blob)._replace(lock_fd=null)
        self._plan = plan
        os.makedirs(plan.directory, exist_ok=True)
        self._cgroup = PodCgroup.create(plan.directory, plan.uuid, plan.limits)
        namespaces.bring_up_loopback()
        cgroup = self._cgroup.init_fd()
        _, ours = supervisor.begin(plan, cgroup, (self._loop,))
        for fd in (null, cgroup):
            if fd >= 0:
                os.close(fd)
        self._supervisor = ours
        self._tell("go")
        self._loop.add(ours.fileno(), READ, lambda _events: self._hear(ours))

    def _network(self, _words: list[str], blob: bytes) -> None:
        from stage1.vm import guestnet

        guestmodules.load(guestmodules.NETWORK)
        guestnet.apply(blob)

    def _start(self, words: list[str], blob: bytes) -> None:
        name, numbers = words[0], list(map(int, words[1:4]))
        plan: AppPlan = loads(blob)
        self._forget(name)
        self._look_again()
        self._places.add(os.path.dirname(os.path.dirname(plan.root.place)))
        app = self._apps[name] = _App(plan, numbers, self._listen(plan))
        for number in {number for number, word in zip(numbers, plan.streams, strict=True) if number and word == "tty"}:
            self._traffic.terminal(number, lasting=True)
        stdio = [self._pipe(number, place, plan.streams[place]) for place, number in enumerate(numbers)]
        try:
            self._hand_over(apptree.present(plan), stdio)
        except LaunchError as error:
            if not self._plan.mutable:
                raise
            # Of a pod that changes only this app is lost. The supervisor has not heard of it.
            app.known = False
            self._say(f"failed {name} {error.exit_status} {error}")
            self._say(f"ended {name} {error.exit_status} 0 0 0 0")
        finally:
            for fd in stdio:
                os.close(fd)
            self._report_limits()

    def _hand_over(self, plan: AppPlan, stdio: list[int]) -> None:
        if plan.listening:
            raise LaunchError(f'app "{plan.name}": sockets of the host cannot be handed to a virtual machine')
        opened = [channel.memory_file(dumps(plan)), *stdio]
        try:
            cgroup = self._cgroup.renew(plan.name, plan.limits)
            opened.append(cgroup if cgroup >= 0 else os.open(os.devnull, os.O_RDONLY))
            opened += apptree.open_app(plan, None, None)
            if len(opened) > channel.MAX_FDS:
                raise LaunchError(f'app "{plan.name}" has more mounts than can be passed on ({len(opened)})')
            self._tell("start", opened)
        finally:
            for fd in {*opened} - {*stdio}:
                os.close(fd)

    def _pipe(self, number: int, place: int, word: str = "") -> int:
        """Open a stream; what the app gets of it as `place` (0, 1 or 2)."""
        if not number or word == "tty":
            return os.open(os.devnull, os.O_RDWR)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        if place:
            os.set_blocking(reading, False)
            self._traffic.read(number, reading)
            return writing
        os.set_blocking(writing, False)
        self._traffic.write(number, writing)
        return reading

    def _report_limits(self) -> None:
        import json

        self._say("limits", json.dumps(self._cgroup.report(), separators=(",", ":")).encode())

    def _remove(self, words: list[str], _blob: bytes) -> None:
        app = self._apps.get(words[0])
        if app is not None:
            if app.known:
                self._tell(f"remove {words[0]}")
            self._forget(words[0])
            self._cgroup.remove_app(words[0])

    def _forget(self, name: str) -> None:
        app = self._apps.pop(name, None)
        if app is not None:
            app.close()
            if app.terminal:
                self._traffic.finish(app.terminal)
                self._sizes.pop(app.terminal, None)

    def _look_again(self) -> None:
        """At what the host may have taken away since: this kernel holds on to it until it has seen that it is gone, and
        so does virtiofsd."""
        for place in tuple(self._places):
            try:
                os.stat(place)
            except OSError:
                self._places.discard(place)

    def _cleared(self, words: list[str], _blob: bytes) -> None:
        app = self._apps.get(words[0])
        if app is None or not app.known:
            return
        cgroup, app.cgroup = app.cgroup, -1
        fd = cgroup if cgroup >= 0 else os.open(os.devnull, os.O_RDONLY)
        self._tell(f"cleared {words[0]}", (fd,))
        os.close(fd)

    def _resize(self, words: list[str], _blob: bytes) -> None:
        stream, rows, columns = map(int, words)
        fd = self._traffic.terminal_fd(stream)
        if fd >= 0:
            with suppress(OSError):  # It is gone.
                terminal.set_size(fd, rows, columns)
        elif self._traffic.has_source(stream):
            self._sizes[stream] = rows, columns

    def _attach(self, stream: int, master: int) -> None:
        if stream in self._sizes:
            terminal.set_size(master, *self._sizes.pop(stream))
        self._traffic.attach(stream, master)

    # --- what the supervisor says

    def _hear(self, supervisor: Channel) -> None:
        text, fds = supervisor.receive()
        words = text.split(" ", 2)
        verb, name = words[0], words[1] if len(words) > 1 else ""
        try:
            if not text:
                self._loop.remove(supervisor.fileno())
                self._break("the first process of the pod was killed in the virtual machine")
            elif verb == "ended":
                self._ended(self._apps[name], text)
            elif verb == "over":
                self._loop.remove(supervisor.fileno())
                self._over(text)
            else:
                if verb == "ready":
                    gc.enable()
                    self._loop.call_later(footprint.DELAY, self._load_rest)
                app = self._apps.get(name)
                if verb == "terminal" and app is not None:
                    self._attach(app.terminal, fds.pop())
                elif verb == "started" and app is not None:
                    app.pidfd = fds.pop()
                self._say(text)
        except (LaunchError, PodError) as error:
            self._break(str(error))
        finally:
            for fd in fds:
                os.close(fd)

    def _load_rest(self) -> None:
        try:
            guestmodules.load(guestmodules.LATER)
        except (LaunchError, OSError) as error:
            # The pod does without what they would have been for.
            _write_to_console(f"rkpy: {error}\n")

    def _ended(self, app: _App, text: str) -> None:
        """See that nothing the app started outlives it, and pass it on after all that it wrote."""
        name = app.plan.name
        if app.pidfd >= 0:
            os.close(app.pidfd)
            app.pidfd = -1
        oom = self._cgroup.oom_kills(name) > 0

        def gone() -> None:
            try:
                app.cgroup = self._cgroup.app(name, app.plan.limits)
            except LaunchError as error:
                self._break(str(error))
                return
            for socket in app.sockets:
                socket.take()
            self._when_sent(app.streams, lambda: self._say(f"{text} {oom:d}"))

        what = f'rkpy: app "{name}" has ended, and what it left does not die\n'
        self._cgroup.when_gone(self._loop, name, gone, lambda: _write_to_console(what))

    def _over(self, text: str) -> None:
        os.sync()  # What was written to the host's file systems is there before the guest is not.
        self._when_sent([number for app in self._apps.values() for number in app.streams], lambda: self._say(text))

    def _when_sent(self, streams: list[int], call: Callable[[], None]) -> None:
        """Once everything was sent that there is now of these streams, or nobody has taken it for too long."""
        numbers = {number for number in streams if number and self._traffic.has_source(number)}
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                patience.cancel()
                call()

        patience = self._loop.call_later(STUCK, once)
        if numbers:
            self._say(f"ending {' '.join(map(str, sorted(numbers)))}")
        self._traffic.drain(numbers, once)

    # --- what apps say on their sockets

    def _listen(self, plan: AppPlan) -> list[AppSocket]:
        def heard(name: str) -> Callable[[bytes, list[int]], None]:
            return lambda data, fds: self._pass_on(plan.name, name, data, fds)

        made = [AppSocket(self._loop, _PLACE, plan.name, name, heard(name)) for name in plan.sockets]
        for socket, name in zip(made, plan.sockets, strict=True):
            if not self._may_take(plan.name, name):
                socket.pause()
        return made

    def _pass_on(self, app: str, name: str, data: bytes, fds: list[int]) -> None:
        if len(fds) == 1 and not data:
            data = _read_sealed(fds[0])
        if not data:
            return
        self._say(f"datagram {app} {name}", data)
        self._unheard[app, name] = self._unheard.get((app, name), 0) + weight(data)
        if self._wire.full and not self._paused:
            self._paused = True
            self._wire.when_room(self._resume)
            self._review_sockets()
        elif not self._may_take(app, name):
            self._review_sockets(app)

    def _resume(self) -> None:
        self._paused = False
        self._review_sockets()

    def _heard(self, words: list[str], _blob: bytes) -> None:
        app, name, count = words
        self._unheard[app, name] = self._unheard.get((app, name), 0) - int(count)
        self._review_sockets(app)

    def _may_take(self, app: str, name: str) -> bool:
        return not self._paused and self._unheard.get((app, name), 0) <= frames.UNHEARD

    def _review_sockets(self, only: str = "") -> None:
        """Take from those that may be taken from, and no others."""
        for app in self._apps.values() if not only else filter(None, (self._apps.get(only),)):
            for socket, name in zip(app.sockets, app.plan.sockets, strict=True):
                (AppSocket.resume if self._may_take(app.plan.name, name) else AppSocket.pause)(socket)

    # --- commands beside apps

    def _enter(self, words: list[str], blob: bytes) -> None:
        number, name, streams = int(words[0]), words[1], list(map(int, words[2:5]))
        app = self._apps.get(name)
        try:
            if app is None or app.pidfd < 0:
                raise LaunchError(f'app "{name}" is not running')
            self._begin_command(number, app, streams, blob)
        except (LaunchError, OSError) as error:
            why = str(error) if isinstance(error, LaunchError) else f'cannot enter app "{name}": {reason(error)}'
            self._say_ends(streams)
            self._say(f"refused {number} {EXIT_FAILURE} {why}")

    def _begin_command(self, number: int, app: _App, streams: list[int], blob: bytes) -> None:
        from stage1 import entrance  # noqa: F401  # While nothing of an app's is near.

        stdio: list[int] = []
        procs = self._open_procs(app.plan.name)
        ours, theirs = channel.pair()
        try:
            if streams[0] == streams[1] == streams[2] != 0:
                self._traffic.terminal(streams[0])
            else:
                stdio += (self._pipe(stream, place) for place, stream in enumerate(streams))
            usher = os.fork()
            if usher == 0:
                _usher(theirs, app.pidfd, procs, stdio, blob)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in (*stdio, procs):
                if fd >= 0:
                    os.close(fd)
        command = self._commands[number] = _Command(usher, ours, streams)
        self._loop.add(ours.fileno(), READ, lambda _events: self._hear_usher(number, command))

    def _say_ends(self, streams: list[int]) -> None:
        """Of streams that were not opened, perhaps: the host has opened them."""
        for stream in {*streams} - {0}:
            self._traffic.forget(stream)
            self._wire.send(frames.encode(frames.END, stream))

    def _open_procs(self, name: str) -> int:
        return os.open(f"{self._cgroup.path}/{name}/cgroup.procs", os.O_WRONLY) if self._cgroup.path else -1

    def _hear_usher(self, number: int, command: _Command) -> None:
        text, fds = command.report.receive()
        verb, _, rest = text.partition(" ")
        if verb == "running":
            command.runs(fds.pop())
        elif verb == "terminal":
            self._attach(command.streams[0], fds.pop())
        elif verb in ("entered", "refused"):
            self._when_sent(command.streams, lambda: self._end_command(number, f"{verb} {number} {rest}"))
            self._let_go(command)
        elif not text:
            self._end_command(
                number, f"refused {number} {EXIT_FAILURE} the process that started the command was killed"
            )
            self._let_go(command)
        for fd in fds:
            os.close(fd)

    def _let_go(self, command: _Command) -> None:
        self._loop.remove(command.report.fileno())
        command.report.close()
        if command.pidfd >= 0:
            os.close(command.pidfd)
            command.pidfd = -1

    def _end_command(self, number: int, text: str) -> None:
        """Its streams end with it, whoever still has them."""
        command = self._commands.pop(number)
        for stream in {*command.streams} - {0}:
            self._traffic.finish(stream)
            self._sizes.pop(stream, None)
        self._say(text)

    def _signal_entered(self, words: list[str], _blob: bytes) -> None:
        command = self._commands.get(int(words[0]))
        if command is not None:
            command.send(int(words[1]))

    # --- processes

    def _reap(self) -> None:
        """Ours, and what falls to the first process of all. Only the supervisor's end is news, and that is heard."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


_HOST: dict[str, Callable[[Agent, list[str], bytes], None]] = {
    "pod": Agent._begin,
    "network": Agent._network,
    "start": Agent._start,
    "remove": Agent._remove,
    "cleared": Agent._cleared,
    "resize": Agent._resize,
    "heard": Agent._heard,
    "enter": Agent._enter,
    "signal-entered": Agent._signal_entered,
}
"""What is not simply the supervisor's."""


def _write_to_console(line: str) -> None:
    os.write(2, line.encode("utf-8", "backslashreplace"))


def _read_sealed(fd: int) -> bytes:
    """The content of a file in memory that nobody can change any more; nothing of any other."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS or os.fstat(fd).st_size > _LARGEST:
            return b""
        return os.pread(fd, _LARGEST, 0)
    except OSError:
        return b""


def _usher(report: Channel, pidfd: int, procs: int, stdio: list[int], spec: bytes) -> NoReturn:
    """In a child of the agent: enter the app's namespaces, start the command there, and tell how it fares."""
    from stage1 import entrance

    status = EXIT_FAILURE
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # But for the console: who holds an end of a pipe keeps others from seeing it closed.
        syscalls.close_all_but((report.fileno(), pidfd, procs, *stdio), first=3)
        what = loads(spec)
        seal()
        syscalls.setns(pidfd, entrance.NAMESPACES)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        ours, theirs = channel.pair()
        pid, command = syscalls.clone3(0)
        if pid == 0:
            ours.close()
            entrance.become(what, theirs, procs, (lambda: _take_streams(stdio)) if stdio else None)
        theirs.close()
        for fd in (*stdio, procs, pidfd):
            if fd >= 0:
                os.close(fd)
        report.send("running", (command,))
        report.send(_accompany(pid, ours, report))
        status = 0
    except OSError as error:
        report.send(f"refused {EXIT_FAILURE} cannot enter the app's namespaces: {reason(error)}")
    except BaseException as error:
        report.send(f"refused {EXIT_FAILURE} bug in the agent: {error!r}")
    finally:
        os._exit(status)


def _take_streams(stdio: list[int]) -> None:
    for place, fd in enumerate(stdio):
        os.dup2(fd, place)


def _accompany(pid: int, command: Channel, report: Channel) -> str:
    """Until it has ended: what there is to say."""
    failed = ""
    while True:
        text, fds = command.receive()
        if text == "terminal":
            report.send(text, fds)
            for fd in fds:
                os.close(fd)
        elif text:
            failed = text
        else:
            break
    command.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"refused {failed[: supervisor.MAX_ERROR]}" if failed else f"entered {code if code >= 0 else 128 - code}"


def serve(port: int) -> str:
    """Be the agent on the open port, owned from now on, until there is nothing more to do; why that is."""
    loop = Loop()
    agent = Agent(loop, port)
    agent.run()
    return agent.why
