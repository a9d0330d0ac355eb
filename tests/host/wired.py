"""Both ends of the wire of a virtual machine, without one: the agent is the first process of namespaces that stand for
the guest, and the bridge is a monitor's as far as the agent can tell."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common import syscalls
from common.errors import LaunchError
from stage1 import appsockets, kernelfs, mounts
from stage1.app_steps import DEV_SIZE
from stage1.cgroupfiles import Report
from stage1.loop import Loop
from stage1.plan import AppPlan, PodPlan, dumps
from stage1.rootfs import CopiedRoot
from stage1.streams import AppStreams, Streams
from stage1.vm import frames
from stage1.vm.bridge import Bridge, Calls
from stage2.launch import LaunchSpec

DEADLINE = 300.0
ROOT = Path(__file__).parent.parent.parent
# As /init, but that namespaces stand for the machine: everything of it that lasts is in file systems in memory.
_GUEST = """
import gc, os, sys
gc.disable()
sys.path.insert(0, sys.argv[1])
from common import syscalls
flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNET
syscalls.unshare(flags | syscalls.CLONE_NEWPID)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.umount2("/sys/fs/cgroup", syscalls.MNT_DETACH)
syscalls.mount("proc", "/proc", "proc", 0)
syscalls.mount("tmpfs", "/run", "tmpfs", 0)
from stage1.vm import agent
print(agent.serve(int(sys.argv[2])))
"""
TTY = Streams("tty", "tty", "tty")


def steps(name: str, sockets: Sequence[str] = ()) -> Iterator[mounts.Step]:
    """What a shell needs of the kernel."""
    yield kernelfs.Kernel(kernelfs.PROC, "/proc", read_only=False, guarded=True)
    yield mounts.Tmpfs("/dev", 0o755, size=DEV_SIZE, no_exec=True, plain=True)
    yield from map(kernelfs.Node, kernelfs.NODE_NUMBERS)
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    yield kernelfs.FileSystem("devpts", "/dev/pts", attributes, (("ptmxmode", "666"), ("mode", "620")))
    if sockets:
        yield mounts.Sockets(f"{frames.SOCKETS}/{name}", appsockets.TARGET, required=True)
        yield kernelfs.Link("/dev/log", f"{appsockets.TARGET}/{appsockets.SYSLOG}")


class Kept:
    """A log that keeps everything in memory, for as long as it is not `full`."""

    def __init__(self) -> None:
        self.full = False
        self.said: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._room: list[Callable[[], None]] = []

    def write(self, stream: str, data: bytes) -> None:
        self.said[stream] += data

    def when_room(self, callback: Callable[[], None]) -> None:
        self._room.append(callback)

    def make_room(self) -> None:
        self.full = False
        self._room, calls = [], self._room
        for call in calls:
            call()

    def started(self, pid: int) -> None: ...

    def ended(self) -> None: ...

    def close(self) -> None: ...


class Host:
    """What the monitor would be."""

    def __init__(self, end: int, place: Path) -> None:
        self.loop = Loop()
        self.place = place
        self.said: list[str] = []
        """What the supervisor said."""
        self.heard: list[tuple[object, ...]] = []
        """What the agent said for itself."""
        self.logs: dict[str, Kept] = {}
        self.streams: dict[str, AppStreams] = {}
        self.plans: dict[str, AppPlan] = {}
        self.seen: dict[str, bytes] = {}
        """What was there of an app's output when its end was heard."""
        self.broken = ""
        self.bridge = Bridge(
            self.loop,
            end,
            Calls(
                self._hear,
                lambda kernel: self._note("up", kernel),
                self._limits,
                lambda *words: self._note("datagram", *words),
                lambda *words: self._note("entered", *words),
                lambda *words: self._note("refused", *words),
            ),
        )

    def _note(self, *words: object) -> None:
        self.heard.append(words)

    def _limits(self, reports: list[Report]) -> None:
        self._note("limits", *reports)

    def _hear(self, text: str, fds: list[int]) -> None:
        self.said.append(text)
        verb, _, rest = text.partition(" ")
        name = rest.partition(" ")[0]
        if verb == "broken":
            self.broken = rest
        elif verb == "started":
            self.streams[name].started(int(rest.split()[1]))
        elif verb == "terminal":
            self.streams[name].set_terminal(fds.pop())
        elif verb == "ended":
            self.streams[name].drain()
            self.seen[name] = self.logs[name].said["stdout"]
            self.bridge.tell(f"cleared {name}")
        for fd in fds:
            os.close(fd)

    def begin(self, **fields: object) -> None:
        """`fields` of the PodPlan."""
        plan = PodPlan("3a9c1a3e-0000-4000-8000-000000000001", "/run/rkpy/pod", -1, (), "wired", host_network=True)
        self.bridge.tell("pod", dumps(plan._replace(**fields)))  # type: ignore[arg-type]

    def plan(self, name: str, script: str, **fields: object) -> AppPlan:
        """An app that is a shell. `fields` of the AppPlan."""
        root = self.place / name
        if not root.exists():
            make_root(root)
        launch = LaunchSpec(name, ("/bin/sh", "-c", script), (), "0", "0", (), "/", False, (), owns_streams=True)
        sockets = fields.get("sockets", ())
        made = AppPlan(name, CopiedRoot(str(root)), tuple(steps(name, sockets)), launch)  # type: ignore[arg-type]
        return made._replace(**fields)  # type: ignore[arg-type]

    def start(self, name: str, script: str, **fields: object) -> None:
        plan = self.plans[name] = self.plan(name, script, **fields)
        if name in self.streams:
            self.streams[name].close()
        log = self.logs[name] = Kept()
        streams = self.streams[name] = AppStreams(self.loop, name, plan.streams, log=log)
        self.bridge.start(name, streams.child_fds(), dumps(plan))
        streams.close_child_ends()

    def give(self, name: str, script: str, stdio: tuple[int, int, int]) -> None:
        """Start it as all there is, with these descriptors; -1 for /dev/null."""
        null = os.open(os.devnull, os.O_RDWR)
        self.logs[name] = Kept()
        self.streams[name] = AppStreams(self.loop, name, Streams("null", "null", "null"))
        self.bridge.start(name, [null if fd < 0 else fd for fd in stdio], dumps(self.plan(name, script)))
        os.close(null)
        self.bridge.tell("sealed")

    def run(self, name: str, script: str, **fields: object) -> str:
        """Alone in the pod, to its end: how that was said."""
        self.begin()
        self.start(name, script, **fields)
        self.bridge.tell("sealed")
        return self.until_said(f"ended {name} ")

    def out(self, name: str, stream: str = "stdout") -> str:
        return self.logs[name].said[stream].decode()

    def until(self, condition: Callable[[], object]) -> None:
        def fail() -> None:
            raise AssertionError(
                f"never came: {self.said} {self.heard} { {n: log.said for n, log in self.logs.items()} }"
            )

        end = self.loop.call_later(DEADLINE, fail)
        tick = [self.loop.call_later(0, self.loop.stop)]
        while not condition():
            tick[0].cancel()
            tick[0] = self.loop.call_later(0.01, self.loop.stop)
            self.loop.run()
        tick[0].cancel()
        end.cancel()

    def until_said(self, start: str) -> str:
        self.until(lambda: any(text.startswith(start) for text in self.said))
        return next(text for text in self.said if text.startswith(start))

    def until_heard(self, verb: str) -> tuple[object, ...]:
        self.until(lambda: any(words[0] == verb for words in self.heard))
        return next(words for words in self.heard if words[0] == verb)

    def close(self) -> None:
        for streams in self.streams.values():
            streams.close()
        self.bridge.close()
        self.loop.close()


def make_root(root: Path) -> None:
    for name in ("bin", "dev", "proc", "run"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LaunchError("busybox is missing")
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "cat", "stty", "sleep", "seq", "dd", "head", "ps", "kill", "tty", "true", "logger"):
        (root / "bin" / name).symlink_to("busybox")


@contextmanager
def wired(place: Path) -> Iterator[Host]:
    """A host and its guest, which says why it has ended when the host hangs up."""
    ours, theirs = socket.socketpair()
    words = [sys.executable, "-I", "-S", "-c", _GUEST, str(ROOT), str(theirs.fileno())]
    guest = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)
    theirs.close()
    host = Host(ours.detach(), place)
    try:
        host.until_heard("up")
        yield host
    finally:
        host.close()
        why = guest.communicate(timeout=DEADLINE)[0]
    assert guest.returncode == 0
    assert why == "the host has hung up\n" or host.broken, why
