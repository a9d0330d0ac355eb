"""What PID 1 decides, whatever order things come in: the real Supervisor between a monitor that does as the real one
and processes that are only numbers. Messages take their time in both directions."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common import syscalls
from stage1 import channel, supervisor
from stage1.plan import AppPlan, Health, PodPlan, Restart, dumps
from stage1.rootfs import CopiedRoot
from stage2.launch import LaunchSpec

NAMES = ("one", "two", "three")
PATIENCE = 10
NO_RESTART = Restart()
Call = Callable[[], None]


class Pipe:
    """One direction of a channel."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, list[int]]] = []
        self.closed = False


class End:
    """Looks like a Channel. To wait for what will never come is a hang."""

    def __init__(self, number: int, read: Pipe, write: Pipe) -> None:
        self._number, self._read, self._write = number, read, write

    def fileno(self) -> int:
        return self._number

    def send(self, text: str, fds: tuple[int, ...] = ()) -> None:
        self._write.queue.append((text, [os.dup(fd) for fd in fds]))

    def receive(self) -> tuple[str, list[int]]:
        if self._read.queue:
            return self._read.queue.pop(0)
        assert self._read.closed, "waits for ever"
        return "", []

    def close(self) -> None:
        self._write.closed = True


class FakeLoop:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Call]] = []
        self.watched: dict[int, Callable[[int], None]] = {}
        self.stopped = False

    def call_later(self, seconds: float, call: Call) -> SimpleNamespace:
        timer = (self.now + seconds, call)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer) if timer in self.timers else None)

    def pass_time(self) -> None:
        """Until the next timer."""
        timer = min(self.timers, key=lambda timer: timer[0])
        self.timers.remove(timer)
        self.now = timer[0]
        timer[1]()

    def on_signal(self, _number: int, _call: Call) -> None: ...

    def add(self, fd: int, _events: int, call: Callable[[int], None]) -> None:
        self.watched[fd] = call

    def remove(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def stop(self) -> None:
        self.stopped = True

    def run(self) -> None: ...


class Process:
    """A child of the supervisor's: on its way to be an app, an app, or one that runs handlers."""

    def __init__(self, pid: int, app: str, report: tuple[int, End] | None) -> None:
        self.pid = pid
        self.app = app
        self.report = report
        self.handlers = report is None
        self.status: int | None = None
        """As waitpid(2) gives it, once it is dead."""

    @property
    def is_starting(self) -> bool:
        return self.report is not None


def open_files() -> set[int]:
    """Without the one it takes to look."""
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}


class World:
    """The kernel and the monitor, as far as the supervisor sees them."""

    def __init__(self, plan: PodPlan, apps: dict[str, AppPlan]) -> None:
        self.plans = apps
        self.processes: dict[int, Process] = {}
        self.to_supervisor, self.to_monitor = Pipe(), Pipe()
        self.loop = FakeLoop()
        self.fails_to_clone = False
        self.said: list[str] = []
        self.states: dict[str, str] = {}
        """By app: what the monitor believes."""
        self.restarts: dict[str, int] = {}
        self.launches: dict[str, int] = {}
        self.uncleared: set[str] = set()
        self.signals: list[int] = []
        self.directory = tempfile.mkdtemp()
        self.open_before = open_files()
        self._pids = iter(range(100, 1_000_000))
        self._numbers = iter(range(1000, 1_000_000))
        self._next: tuple[int, End] | None = None
        with self.patched():
            monitor = End(999, self.to_supervisor, self.to_monitor)
            self.pod = supervisor.Supervisor(plan, monitor, self.loop)  # type: ignore[arg-type]

    def close(self) -> None:
        shutil.rmtree(self.directory)
        for fd in open_files() - self.open_before:
            os.close(fd)

    @contextmanager
    def patched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervisor, "Loop", lambda: self.loop)
            patch.setattr(channel, "pair", self._pair)
            patch.setattr(syscalls, "clone3", self._clone3)
            patch.setattr(os, "kill", self._kill)
            patch.setattr(os, "waitpid", self._waitpid)
            yield

    def _pair(self) -> tuple[End, End]:
        there, back = Pipe(), Pipe()
        ours, theirs = End(next(self._numbers), back, there), End(0, there, back)
        self._next = (ours.fileno(), theirs)
        # The supervisor closes its copy of the child's end, the child has its own.
        return ours, SimpleNamespace(close=lambda: None)  # type: ignore[return-value]

    def _clone3(self, _flags: int, cgroup: int) -> tuple[int, int]:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{cgroup}"))
        report, self._next = self._next, None
        if report is not None:
            assert not self.alive(name), "an app must not run twice"
            assert name not in self.uncleared, "the monitor has not cleared what was left"
            assert not self.pod._stopping, "nothing is started in a pod that ends"
        if self.fails_to_clone:
            self.fails_to_clone = False
            self.uncleared.update([name] if report is not None else [])
            raise BlockingIOError(11, "Resource temporarily unavailable")
        process = Process(next(self._pids), name, report)
        self.processes[process.pid] = process
        if report is not None:
            self.launches[name] = self.launches.get(name, 0) + 1
        return process.pid, os.open(os.devnull, os.O_RDONLY)

    def _kill(self, pid: int, number: int) -> None:
        process = self.processes[pid]
        if process.status is not None:
            return
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.die(process, number)

    def _waitpid(self, _pid: int, _flags: int) -> tuple[int, int]:
        for pid, process in self.processes.items():
            if process.status is not None:
                del self.processes[pid]
                return pid, process.status
        if self.processes:
            return 0, 0
        raise ChildProcessError

    def die(self, process: Process, status: int) -> None:
        process.status = status
        if not process.handlers:
            self.uncleared.add(process.app)
        if process.report is not None:
            process.report[1].close()

    def alive(self, name: str) -> list[Process]:
        return [found for found in self.processes.values() if found.app == name and found.status is None]

    def kill_all(self, name: str) -> None:
        """What renewing a cgroup does."""
        for process in self.alive(name):
            self.die(process, signal.SIGKILL)

    # The monitor, as stage1.monitor has it

    def tell(self, text: str, fds: tuple[int, ...] = ()) -> None:
        self.to_supervisor.queue.append((text, [os.dup(fd) for fd in fds]))

    def start(self, name: str) -> None:
        self.kill_all(name)
        self.states[name] = "running"
        self.uncleared.discard(name)
        null = os.open(os.devnull, os.O_RDWR)
        fds = (channel.memory_file(dumps(self.plans[name])), null, null, null, self.cgroup(name), null)
        self.tell("start", fds)
        for fd in set(fds):
            os.close(fd)

    def cgroup(self, name: str) -> int:
        """A directory that bears the app's name: `_clone3` tells by it whose process is made."""
        os.makedirs(f"{self.directory}/{name}", exist_ok=True)
        return os.open(f"{self.directory}/{name}", os.O_RDONLY)

    def hear(self) -> None:
        text, fds = self.to_monitor.queue.pop(0)
        for fd in fds:
            os.close(fd)
        self.said.append(text)
        verb, *words = text.split(" ")
        if verb == "ended":
            name, _, _, _, again = words
            self.kill_all(name)
            self.uncleared.discard(name)
            self.states[name] = "running" if again == "1" else "exited"
            cgroup = self.cgroup(name)
            self.tell(f"cleared {name}", (cgroup,))
            os.close(cgroup)
        elif verb == "idle":
            self.states[words[0]] = "exited"
        elif verb == "again":
            self.restarts[words[0]] = self.restarts.get(words[0], 0) + 1


def plan_of(name: str, restart: Restart, *, handlers: bool, health: Health | None = None) -> AppPlan:
    launch = LaunchSpec(name, ("/x",), (), "0", "0", (), "/", no_new_privileges=False, keep_fds=())
    post_stop = (launch,) if handlers else ()
    return AppPlan(name, CopiedRoot("/none"), (), launch, post_stop=post_stop, restart=restart, health=health)


restarts = st.builds(Restart, st.sampled_from(["no", "on-failure", "always"]), st.integers(0, 3))
names = st.sampled_from(NAMES)
codes = st.sampled_from([0, 256, 3 * 256, 9, 15, 11])
pick = st.integers(0, 10)


class Pod(RuleBasedStateMachine):
    @initialize(
        mutable=st.booleans(),
        exit_policy=st.sampled_from(["on-any-failure", "on-any", "until-all"]),
        settings_of=st.tuples(*[st.tuples(restarts, st.booleans())] * len(NAMES)),
        count=st.integers(0, len(NAMES)),
    )
    def begin(self, mutable: bool, exit_policy: str, settings_of: tuple[tuple[Restart, bool], ...], count: int) -> None:
        self.mutable = mutable
        apps = {name: plan_of(name, one[0], handlers=one[1]) for name, one in zip(NAMES, settings_of, strict=True)}
        plan = PodPlan("", "", -1, (), "", exit_policy=exit_policy, stop_timeout=PATIENCE, mutable=mutable)
        self.world = World(plan, apps)
        self.sealed = False
        self.initial = NAMES[: count if mutable else max(count, 1)]

    # Everything the supervisor does goes through here

    def act(self, call: Callable[[], object]) -> None:
        with self.world.patched():
            call()

    # The monitor

    @precondition(lambda self: not self.sealed)
    @rule()
    def begin_apps(self) -> None:
        for name in self.initial:
            self.world.start(name)
        self.world.tell("sealed")
        self.sealed = True

    @precondition(lambda self: self.sealed and self.mutable)
    @rule(name=names)
    def add_or_start(self, name: str) -> None:
        if self.world.states.get(name) != "running":
            self.world.start(name)

    @precondition(lambda self: self.mutable)
    @rule(name=names, verb=st.sampled_from(["stop", "kill", "restart"]))
    def command(self, name: str, verb: str) -> None:
        if self.world.states.get(name) == "running":
            self.world.tell(f"{verb} {name}")

    @precondition(lambda self: self.mutable)
    @rule(name=names)
    def remove(self, name: str) -> None:
        if self.world.states.get(name) == "exited":
            self.world.tell(f"remove {name}")
            self.world.kill_all(name)
            del self.world.states[name]

    @precondition(lambda self: self.sealed)
    @rule()
    def terminate(self) -> None:
        self.world.tell("terminate")

    @rule()
    def sigterm(self) -> None:
        self.act(self.world.pod._terminate)

    # What takes its time

    @precondition(lambda self: self.world.to_monitor.queue)
    @rule()
    def monitor_hears(self) -> None:
        self.world.hear()

    @precondition(lambda self: self.world.to_supervisor.queue and not self.world.loop.stopped)
    @rule()
    def supervisor_hears(self) -> None:
        self.act(self.world.pod._obey)

    @precondition(lambda self: self.world.loop.timers and not self.world.loop.stopped)
    @rule()
    def time_passes(self) -> None:
        self.act(self.world.loop.pass_time)

    @precondition(lambda self: not self.world.loop.stopped)
    @rule()
    def reap(self) -> None:
        self.act(self.world.pod._reap)

    @rule()
    def everything_is_heard(self) -> None:
        while self.world.to_monitor.queue or (self.world.to_supervisor.queue and not self.world.loop.stopped):
            self._hear_all()

    # Processes

    def _one(self, number: int, starting: bool | None = None) -> Process | None:
        found = [one for one in self.world.processes.values() if one.status is None]
        found = [one for one in found if starting is None or one.is_starting is starting]
        return found[number % len(found)] if found else None

    @rule(number=pick)
    def becomes_the_app(self, number: int) -> None:
        process = self._one(number, starting=True)
        if process is not None and process.report is not None:
            app = self.world.pod._apps.get(process.app)
            if app is None or app.namespace < 0:
                process.report[1].send("namespace", (0,))
            process.report[1].close()
            process.report = None

    @rule(number=pick)
    def fails_to_start(self, number: int) -> None:
        process = self._one(number, starting=True)
        if process is not None and process.report is not None:
            process.report[1].send("127 not found")
            self.world.die(process, 127 * 256)

    @rule(number=pick, status=codes)
    def dies(self, number: int, status: int) -> None:
        process = self._one(number)
        if process is not None:
            self.world.die(process, status)

    @precondition(lambda self: not self.world.loop.stopped)
    @rule(number=pick)
    def report_is_heard(self, number: int) -> None:
        watched = self.world.loop.watched
        ready = [app for app in self.world.pod._apps.values() if app.report and app.report.fileno() in watched]
        ready = [app for app in ready if app.report._read.queue or app.report._read.closed]  # type: ignore[union-attr]
        if ready:
            fd = ready[number % len(ready)].report.fileno()  # type: ignore[union-attr]
            self.act(lambda: watched[fd](0))

    @rule()
    def the_next_clone_fails(self) -> None:
        self.world.fails_to_clone = True

    # What must hold

    @invariant()
    def said_once(self) -> None:
        said = [text for text, _ in self.world.to_monitor.queue] + self.world.said
        assert sum(text.startswith("over") for text in said) <= 1
        assert said.count("ready") <= 1
        assert "ready" not in said or self.sealed

    @invariant()
    def over_when_nothing_runs(self) -> None:
        assert self.world.loop.stopped is self.world.pod._over
        if self.world.pod._over:
            assert not [app for app in self.world.pod._apps.values() if app.busy]
            assert not [one for one in self.world.processes.values() if one.status is None]

    @invariant()
    def restarts_are_limited(self) -> None:
        for app in self.world.pod._apps.values():
            restart = app.plan.restart
            assert app.times == 0 or restart.policy != "no"
            assert not restart.limit or app.times <= restart.limit

    @invariant()
    def the_monitor_knows(self) -> None:
        """Once everything is said, it takes for running what runs or will."""
        world = self.world
        if world.to_monitor.queue or world.to_supervisor.queue:
            return
        for name, state in world.states.items():
            app = world.pod._apps.get(name)
            runs = app is not None and bool(app.pid or app.timer or (app.promised and app.busy))
            assert (state == "running") is runs or world.loop.stopped, (name, state)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self._must_end()
                self._keeps_nothing_open()
            finally:
                self.world.close()

    def _must_end(self) -> None:
        """However things stand: asked to end, with handlers and apps that never end by themselves, it does."""
        world = self.world
        if not self.sealed:
            self.begin_apps()
        world.tell("terminate")
        for _ in range(200):
            while world.to_monitor.queue or (world.to_supervisor.queue and not world.loop.stopped):
                self._hear_all()
            if world.loop.stopped:
                break
            self.act(world.pod._reap)
            if world.to_monitor.queue:
                continue
            if not world.pod._over and world.loop.timers:
                self.act(world.loop.pass_time)
        assert world.pod._over, "it never ends"
        assert sum(text.startswith("over") for text in world.said) == 1

    def _keeps_nothing_open(self) -> None:
        for _text, fds in (*self.world.to_supervisor.queue, *self.world.to_monitor.queue):
            for fd in fds:
                os.close(fd)
        for app in self.world.pod._apps.values():
            app.close()
        assert not open_files() - self.world.open_before

    def _hear_all(self) -> None:
        while self.world.to_monitor.queue:
            self.world.hear()
        if self.world.to_supervisor.queue and not self.world.loop.stopped:
            self.act(self.world.pod._obey)


TestPod = Pod.TestCase
TestPod.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.generate),
)


class Story:
    """One pod of one app, step by step."""

    def __init__(
        self,
        restart: Restart = NO_RESTART,
        *,
        mutable: bool = False,
        handlers: bool = False,
        health: Health | None = None,
        sealed: bool = True,
    ) -> None:
        plan = PodPlan("", "", -1, (), "", stop_timeout=PATIENCE, mutable=mutable)
        self.world = World(plan, {"one": plan_of("one", restart, handlers=handlers, health=health)})
        self.world.start("one")
        if sealed:
            self.world.tell("sealed")
        self.hear()

    def hear(self) -> None:
        """Until nobody has anything to say."""
        world = self.world
        with world.patched():
            while world.to_monitor.queue or (world.to_supervisor.queue and not world.loop.stopped):
                while world.to_monitor.queue:
                    world.hear()
                if world.to_supervisor.queue and not world.loop.stopped:
                    world.pod._obey()

    def tell(self, text: str) -> None:
        self.world.tell(text)
        self.hear()

    def execute(self) -> None:
        """What is being started becomes the app, which nobody has heard yet."""
        (process,) = self.world.alive("one")
        assert process.report is not None
        process.report[1].send("namespace", (0,))
        process.report[1].close()
        process.report = None

    def run(self) -> None:
        """What is being started becomes the app."""
        self.execute()
        with self.world.patched():
            for listen in list(self.world.loop.watched.values()):
                listen(0)
                listen(0)
        self.hear()

    def reap(self) -> None:
        with self.world.patched():
            self.world.pod._reap()

    def end(self, status: int = 0) -> None:
        """Whatever runs dies."""
        for process in self.world.alive("one"):
            self.world.die(process, status)
        self.reap()
        self.hear()

    @property
    def launches(self) -> int:
        return self.world.launches["one"]

    @property
    def state(self) -> str:
        return self.world.states["one"]


@pytest.fixture
def story() -> Iterator[Callable[..., Story]]:
    told: list[Story] = []

    def begin(
        restart: Restart = NO_RESTART,
        *,
        mutable: bool = False,
        handlers: bool = False,
        health: Health | None = None,
        sealed: bool = True,
    ) -> Story:
        told.append(Story(restart, mutable=mutable, handlers=handlers, health=health, sealed=sealed))
        return told[-1]

    yield begin
    for one in told:
        one.world.close()


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_stopped_while_it_waits_to_be_started_again(story: Callable[..., Story], verb: str) -> None:
    one = story(Restart("always"), mutable=True)
    one.run()
    one.end()
    assert one.state == "running"
    one.tell(f"{verb} one")
    assert (one.state, one.launches, one.world.restarts) == ("exited", 1, {})


def test_stopped_while_it_is_being_restarted(story: Callable[..., Story]) -> None:
    """The stop comes while the handlers of the first run are at work."""
    one = story(mutable=True, handlers=True)
    one.run()
    one.tell("restart one")
    one.end()
    assert one.world.alive("one")[0].handlers
    one.tell("stop one")
    one.end()
    assert (one.state, one.launches) == ("exited", 1)


def test_restart_of_one_that_has_just_ended(story: Callable[..., Story]) -> None:
    """The monitor has closed its streams already, so there is nothing to start it with."""
    one = story(mutable=True)
    one.run()
    one.world.tell("restart one")
    one.world.die(one.world.alive("one")[0], 0)
    one.reap()
    one.hear()
    assert (one.state, one.launches) == ("exited", 1)


def test_no_start_in_a_pod_that_ends(story: Callable[..., Story]) -> None:
    one = story(mutable=True)
    one.run()
    one.world.plans["two"] = plan_of("two", NO_RESTART, handlers=False)
    with one.world.patched():
        one.world.pod._terminate()
    one.world.start("two")
    one.hear()
    assert one.world.states["two"] == "exited"
    one.end(15)
    assert one.world.said[-1] == "over 0"


def test_killed_while_it_is_being_started(story: Callable[..., Story]) -> None:
    """Its number is nobody's, or somebody else's, once it is reaped: it must not be asked to end any more."""
    one = story()
    one.tell("terminate")
    one.end(9)
    assert one.world.said[-2:] == ["ended one 137 9 1 0", "over 137"]


def test_no_process_for_the_handlers(story: Callable[..., Story]) -> None:
    one = story(handlers=True)
    one.run()
    one.world.die(one.world.alive("one")[0], 0)
    one.reap()
    one.world.fails_to_clone = True
    one.hear()
    assert one.world.said[-2].startswith("failed one 254 cannot run its post-stop handlers: ")
    assert one.world.said[-1] == "over 0"


def test_handlers_that_begin_too_late(story: Callable[..., Story]) -> None:
    """Nobody would end them any more."""
    one = story(handlers=True)
    one.run()
    one.world.tell("terminate")
    one.hear()
    one.world.die(one.world.alive("one")[0], 9)
    with one.world.patched():
        one.world.pod._reap()
        while one.world.loop.timers:
            one.world.loop.pass_time()
    one.hear()
    assert one.world.said[-1] == "over 137"


def test_removed_while_its_handlers_run(story: Callable[..., Story]) -> None:
    one = story(mutable=True, handlers=True)
    one.run()
    one.end()
    one.tell("remove one")
    one.end()
    assert not one.world.pod._apps


def test_one_that_ends_at_once_is_not_looked_at(story: Callable[..., Story]) -> None:
    """That it has become the app is heard only when it is gone. A check begun then would outlive it, and kill what has
    its number by then."""
    one = story(Restart("always"), health=Health(("/well",)))
    one.execute()
    one.end()
    assert one.world.said[-1].startswith("ended one 0 ")
    assert len(one.world.loop.timers) == 1  # the next start
    with one.world.patched():
        one.world.loop.pass_time()
    one.run()
    assert [text for text in one.world.said if text.startswith("health")] == ["health one starting "]


def test_one_that_ends_at_once_ends_after_its_pod_was_ready(story: Callable[..., Story]) -> None:
    """Also when it has ended before the supervisor has heard that there are no more."""
    one = story(sealed=False)
    one.execute()
    one.end()
    assert one.world.said == []
    one.tell("sealed")
    assert one.world.said == ["started one 100", "ready", "ended one 0 0 0 0", "over 0"]


def test_signals_are_for_apps_only(story: Callable[..., Story]) -> None:
    """What is on its way to be one has no use for them and would die."""
    one = story()
    one.tell(f"signal {signal.SIGUSR1:d}")
    assert one.world.signals == []
    one.run()
    one.tell(f"signal {signal.SIGUSR1:d}")
    assert one.world.signals == [signal.SIGUSR1]


def test_what_is_on_its_way_to_be_an_app_can_be_killed(story: Callable[..., Story]) -> None:
    one = story(Restart("always"))
    one.tell(f"signal {signal.SIGKILL:d} one")
    assert one.world.signals == [signal.SIGKILL]
    one.end()
    assert one.world.said[-1] == "ended one 137 9 0 1"
