"""Apps in a virtual machine: the enclosure of the kvm flavour, on the monitor's side.

QEMU and virtiofsd are children of the monitor's and end with it. What the agent in the guest says has come through the
bridge, which lets nothing pass that cannot be; what this module believes of it concerns the pod alone.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.errors import LaunchError, PodError
from stage1 import appsockets, apptree, channel, footprint
from stage1.cgroup import PodCgroup
from stage1.cgroupfiles import Report
from stage1.channel import Channel
from stage1.enclosure import Hear
from stage1.loop import READ, Loop
from stage1.plan import AppPlan, PodPlan, dumps
from stage1.vm import guestplan, oomkills, qemu
from stage1.vm.bridge import Bridge, Calls
from stage1.vm.console import Console
from stage1.vm.guestplan import Place
from stage1.vm.machine import Machine
from stage1.vm.oomkills import OomKills
from stage1.vm.share import Served, Share
from stage1.vm.visits import Visits

_LINES = 64
"""Of the console, among which a reason is looked for."""
_CONSOLE = 64
"""Pieces of it that are read at most when the machine has ended."""
_HEARD = 1 << 16
"""Of a socket's datagrams, how much is dealt with before the guest is told so."""
_GRACE = 2.0
"""Seconds in which all of a machine should be gone once virtiofsd is."""
_GONE = 20.0
"""Seconds that QEMU may take to end once the machine is of no use any more. Its ports are closed some time before it
is gone, on a machine that is busy a long time."""
_PATIENCE = 120.0
"""Seconds beyond those that apps and their handlers have to end, until a pod is given up that is asked to stop."""
_OF_HOST = ("io_bandwidth", "io_operations")
"""Limits that are kept on the host: files are not of any disk in the guest."""


class VirtualMachine:
    """The enclosure (`stage1.enclosure`) of the kvm flavour."""

    def __init__(self, plan: PodPlan, machine: Machine, cgroup: PodCgroup) -> None:
        self.pid = 0
        self.is_up = False
        self._plan = plan
        self._machine = machine
        self._cgroup = cgroup
        self._places: dict[str, Place] = {}
        """Where in the share each app has its files."""
        self._reports: list[Report] = []
        self._unsaid: dict[tuple[str, str], int] = {}
        """What of each socket of an app was heard, and the guest not told."""
        self._bridge: Bridge | None = None
        self._loop: Loop | None = None
        self._virtiofsd: Served | None = None
        self._oom_kills = OomKills(())
        self._status: int | None = None
        """QEMU's wait status, once it is gone."""
        self._is_over = False
        self._is_ending = False
        self._switched_off = False

    @property
    def leader(self) -> int:
        # Who sends QEMU a signal would pull the plug.
        return os.getpid()

    def begin(self, unwanted: Iterable[Channel]) -> None:
        """Switch the machine on. What is `unwanted` it would not get anyway."""
        self._share = Share(self._plan.directory)
        self._console = Console(self._plan.directory)
        cgroup = self._cgroup.init_fd()
        try:
            self._qemu = qemu.start(self._machine, self._plan, cgroup)
            self.pid = self._qemu.pid
            self._oom_kills = oomkills.of(self.pid)
            self._virtiofsd = self._share.serve(
                self._machine, self._qemu.pidfd, self._qemu.share, self._qemu.complaints, cgroup
            )
        except LaunchError as error:
            if not self.pid:
                raise
            # Nothing can be started in a namespace whose first process, QEMU, has ended (ENOMEM in pid_namespaces(7)).
            why = self._end_of_qemu() if isinstance(error.__cause__, OSError) else ""
            self.end()
            raise LaunchError(why or f"{error.message}{self._last()}", hint=error.hint) from error
        finally:
            if cgroup >= 0:
                os.close(cgroup)

    def listen(self, loop: Loop, hear: Hear) -> None:
        self._loop, self._monitor = loop, hear
        for fd in (self._qemu.console, self._qemu.errors):
            loop.add(fd, READ, lambda _events, fd=fd: self._read_console(fd))  # type: ignore[misc]
        calls = Calls(
            self._hear, self._is_up, self._set_limits, self._relay,
            lambda number, status: self._visits.entered(number, status),
            lambda number, status, text: self._visits.refused(number, status, text),
        )  # fmt: skip
        self._bridge = Bridge(loop, self._qemu.port, calls)
        self._visits = Visits(loop, self._bridge)
        self._bridge.tell("pod", dumps(guestplan.for_guest(self._plan, self._machine)))
        self._deadline = loop.call_later(self._machine.boot_timeout, self._is_late)
        if self._virtiofsd is not None:
            loop.add(self._virtiofsd.pidfd, READ, lambda _events: self._miss_virtiofsd())

    # --- what the agent says

    def _is_up(self, _kernel: str) -> None:
        self._deadline.cancel()
        self.is_up = True
        if self._loop is not None:
            # Of the kernel and the initramfs the guest has copies, and of QEMU most was for the start. Not at once: the
            # next machine boots from the same.
            self._loop.call_later(footprint.INTERVAL, lambda: footprint.page_out(self.pid, self._qemu.pidfd))
        self._monitor("up", [])

    def _is_late(self) -> None:
        self._fail(f"the virtual machine was not up after {self._machine.boot_timeout} s")

    def _hear(self, text: str, fds: list[int]) -> None:
        self._is_over = self._is_over or text.startswith(("over ", "broken "))
        verb, _, rest = text.partition(" ")
        if verb == "again":
            self._visits.expect(rest)
        elif verb in ("started", "ended", "idle"):
            self._visits.admit(rest.partition(" ")[0])
        if text or self._is_over or self._switched_off:
            self._monitor(text, fds)
        else:
            self._monitor(f"broken {self._why()}", [])

    def _why(self) -> str:
        """The guest has hung up: it has switched itself off, or the machine is gone."""
        self._collect_virtiofsd()
        return self._end_of_qemu() or f"the virtual machine has hung up{self._last()}"

    def _end_of_qemu(self) -> str:
        """How it has ended; empty when it had to be made to."""
        poll = select.poll()
        poll.register(self._qemu.pidfd, select.POLLIN)
        by_itself = poll.poll(_GONE * 1000)
        status = self.end()
        if not by_itself:
            return ""
        if os.WIFSIGNALED(status):
            how = self._oom_kills.why() or f"by signal {os.WTERMSIG(status)}"
            return f"QEMU was killed {how}{self._last()}"
        if status:
            return f"QEMU has ended with status {os.WEXITSTATUS(status)}{self._last()}"
        return f"the virtual machine has switched itself off{self._last(of_qemu=False)}"

    def _read_console(self, fd: int) -> None:
        if not self._console.take(fd, complaints=fd == self._qemu.errors) and self._loop is not None:
            self._loop.remove(fd)

    def _last(self, *, of_qemu: bool = True) -> str:
        """What there was to be read, where it may tell why."""
        for fd in (self._qemu.console, self._qemu.errors):
            for _ in range(_CONSOLE):
                self._console.take(fd, complaints=fd == self._qemu.errors)
        lines = self._console.last_lines(_LINES)
        reasons = (line for line in lines if "Kernel panic" in line or line.startswith("rkpy: "))
        line = (of_qemu and self._console.complaint()) or next(reasons, "") or "".join(lines[-1:])
        return f": {line}" if line else ""

    def _miss_virtiofsd(self) -> None:
        """Without it no file can be had any more. It ends as well when QEMU does, which is heard of by the bridge, soon
        after virtiofsd has been collected at the latest."""
        self._collect_virtiofsd()
        why = self._oom_kills.why()
        how = f"was killed {why}" if why else "has ended"
        text = f"virtiofsd {how}, which the virtual machine has its files from"
        if self._loop is not None:
            self._loop.call_later(_GRACE, lambda: self._fail(text))

    def _fail(self, text: str) -> None:
        """The machine cannot go on, unless it has ended already."""
        if self._status is None:
            self._monitor(f"broken {text}{self._last()}", [])

    def _set_limits(self, reports: list[Report]) -> None:
        self._reports = reports
        self._monitor("limits", [])

    def _relay(self, app: str, socket: str, data: bytes) -> None:
        weight = appsockets.weight(data)
        appsockets.deliver(self._plan.directory, app, socket, data, lambda: self._heard(app, socket, weight))

    def _heard(self, app: str, socket: str, weight: int) -> None:
        heard = self._unsaid.get((app, socket), 0) + weight
        if heard >= _HEARD:
            self.tell(f"heard {app} {socket} {heard}")
            heard = 0
        self._unsaid[app, socket] = heard

    # --- what the monitor says

    def tell(self, text: str, fds: Sequence[int] = ()) -> None:
        if text == "terminate":
            self._await_end()
        if self._bridge is not None:
            self._bridge.tell(text)

    def _await_end(self) -> None:
        if not self._is_ending and self._loop is not None:
            self._is_ending = True
            time = 2 * self._plan.stop_timeout + _PATIENCE
            text = f"the virtual machine did not stop within {time:.0f} s"
            self._loop.call_later(time, lambda: self._fail(text))

    def attached(self, fds: Sequence[int]) -> None:
        for fd in fds:
            if self._bridge is not None:
                self._bridge.tell("network", channel.read_memory_file(os.dup(fd)))

    def start(self, plan: AppPlan, stdio: Sequence[int], sockets: Sequence[int]) -> None:
        self._hide(plan.name)
        shared = guestplan.of_host(plan)
        opened = apptree.open_app(shared, None)
        try:
            place = self._share.show(opened, guestplan.about(plan))
        finally:
            for fd in opened:
                os.close(fd)
        self._places[plan.name] = place
        if self._bridge is not None:
            self._bridge.start(plan.name, stdio, dumps(guestplan.app_for_guest(plan, place)))
            self._visits.expect(plan.name)

    def resize(self, name: str, rows: int, columns: int) -> bool:
        if self._bridge is not None:
            self._bridge.resize(name, rows, columns)
        return True

    def ended(self, plan: AppPlan) -> bool:
        return self._bridge is not None and self._bridge.out_of_memory(plan.name)

    def when_gone(self, plan: AppPlan, call: Callable[[], None]) -> None:
        call()  # The agent has seen to it.

    def lacked_memory(self) -> bool:
        return bool(self._oom_kills.why())

    def clear(self, name: str) -> None:
        self.tell(f"cleared {name}")

    def reports(self) -> Iterable[Report]:
        # Of the host only what the guest cannot know of: the machine's other limits are larger than the pod's.
        return [*(report for report in self._cgroup.report() if report.name in _OF_HOST), *self._reports]

    def remove(self, name: str) -> None:
        self._hide(name)

    def _hide(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            self._share.hide(place)

    def answer(self, op: str, asked: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        if op == "switch-off":
            self._switched_off = True
            if self._status is None:  # or the number may be another process's
                os.kill(self.pid, signal.SIGKILL)
            return {}
        if op == "process":
            return {"pid": self.pid}
        if op == "enter":
            if self._bridge is None:
                raise PodError("the pod's virtual machine is not up yet")
            if asked["app"] not in self._places:
                raise PodError(f'app "{asked["app"]}" is not running')
            self._visits.begin(asked["app"], fds)
            return {}
        return None

    def end(self) -> int:
        if self._status is None:
            if self._bridge is not None:
                self._bridge.close()
            os.kill(self.pid, signal.SIGKILL)
            # QEMU, as PID 1 of its namespace, is not gone before all others in it are, and these are ours to collect.
            self._collect_virtiofsd()
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def _collect_virtiofsd(self) -> None:
        virtiofsd, self._virtiofsd = self._virtiofsd, None
        if virtiofsd is not None:
            if self._loop is not None:
                self._loop.remove(virtiofsd.pidfd)
            os.kill(virtiofsd.pid, signal.SIGKILL)
            os.waitpid(virtiofsd.pid, 0)
            os.close(virtiofsd.pidfd)
