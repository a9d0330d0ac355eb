"""Apps in namespaces of this kernel: the supervisor is a child of the monitor's, and gets everything by descriptor."""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from common.errors import LaunchError
from stage1 import apptree, boot, channel, namespaces, supervisor
from stage1.cgroup import INIT, PodCgroup
from stage1.cgroupfiles import Report
from stage1.enclosure import Hear
from stage1.loop import Loop
from stage1.plan import AppPlan, PodPlan, dumps


class Namespaced:
    """The enclosure (`stage1.enclosure`) of the nspawn flavour."""

    def __init__(self, plan: PodPlan, cgroup: PodCgroup, host_mounts: int) -> None:
        """`host_mounts` is a descriptor of the host's mount namespace."""
        self.pid = 0
        self.is_up = True
        self._plan = plan
        self._cgroup = cgroup
        self._host_mounts = host_mounts
        self._idmap: int | None = None
        self._loop: Loop | None = None
        self._connection = -1
        self._next: dict[str, int] = {}
        """The cgroup of an app that is gone, for what comes after."""

    @property
    def leader(self) -> int:
        return self.pid

    def begin(self, unwanted: Iterable[channel.Channel]) -> None:
        cgroup = self._cgroup.init_fd()
        with namespaces.joined(self._plan.join):
            self.pid, self._channel = supervisor.begin(self._plan, cgroup, unwanted)
        if cgroup >= 0:
            os.close(cgroup)

    def listen(self, loop: Loop, hear: Hear) -> None:
        if self._plan.private_range[1]:
            namespaces.map_ids(self.pid, self._plan.private_range)
            self._idmap = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY)
        self.tell("go")
        self._loop = loop
        loop.add(self._channel.fileno(), select.EPOLLIN, lambda _events: hear(*self._channel.receive()))

    def tell(self, text: str, fds: Sequence[int] = ()) -> None:
        try:
            self._channel.send(text, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # That it is gone is what will be heard from it next.

    def attached(self, fds: Sequence[int]) -> None:
        """The network namespace is the apps' own. What connects it comes along, if a process does (`network.usermode`):
        its pidfd."""
        self._connection = fds[0] if fds else -1
        if self._loop is not None and fds:
            self._loop.add(self._connection, select.EPOLLIN, self._disconnected)

    def _disconnected(self, _events: int) -> None:
        self._disconnect()
        boot.complain("run", "pasta has ended: the pod goes on without a network")

    def _disconnect(self) -> None:
        process, self._connection = self._connection, -1
        if process < 0:
            return
        if self._loop is not None:
            self._loop.remove(process)
        with suppress(ProcessLookupError, ChildProcessError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.waitid(os.P_PIDFD, process, os.WEXITED)
        os.close(process)

    def start(self, plan: AppPlan, stdio: Sequence[int], sockets: Sequence[int]) -> None:
        if plan.launch.owns_streams:
            self._give_to_pod(stdio)
        opened = [channel.memory_file(dumps(plan))]
        null = os.open(os.devnull, os.O_RDWR)  # stands in where the supervisor makes a terminal
        try:
            cgroup = self._cgroup.renew(plan.name, plan.limits, plan.asked)
            opened.append(cgroup if cgroup >= 0 else os.open(os.devnull, os.O_RDONLY))
            opened += apptree.open_app(plan, self._idmap, self._host_mounts)
            streams = (null if fd < 0 else fd for fd in stdio)
            fds = (*opened[:1], *streams, *opened[1:2], *sockets, *opened[2:])
            if len(fds) > channel.MAX_FDS:
                raise LaunchError(f'app "{plan.name}" has more mounts and sockets than can be passed on ({len(fds)})')
            self.tell("start", fds)
        finally:
            for fd in (*opened, null):
                os.close(fd)

    def _give_to_pod(self, fds: Iterable[int]) -> None:
        """Make the pod's root the owner of the app's pipes: in a user namespace it could not give them on otherwise."""
        owner = namespaces.owner(self._plan)
        for fd in fds:
            if owner is not None and fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, owner[0], owner[1])

    def resize(self, name: str, rows: int, columns: int) -> bool:
        return False

    def ended(self, plan: AppPlan) -> bool:
        return self._cgroup.oom_kills(plan.name) > 0

    def when_gone(self, plan: AppPlan, call: Callable[[], None]) -> None:
        if self._loop is None:
            return

        def gone() -> None:
            if self._loop is not None:
                self._next[plan.name] = self._cgroup.app(plan.name, plan.limits)
                call()

        what = f'app "{plan.name}" has ended, and what it left does not die: nothing comes after it before that has'
        self._cgroup.when_gone(self._loop, plan.name, gone, lambda: boot.complain("run", what))

    def lacked_memory(self) -> bool:
        return self._cgroup.oom_kills(INIT) > 0

    def clear(self, name: str) -> None:
        cgroup = self._next.pop(name, -1)
        fd = cgroup if cgroup >= 0 else os.open(os.devnull, os.O_RDONLY)
        self.tell(f"cleared {name}", (fd,))
        os.close(fd)

    def reports(self) -> Iterable[Report]:
        return self._cgroup.report()

    def remove(self, name: str) -> None:
        self._cgroup.remove_app(name)

    def answer(self, op: str, asked: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        return None

    def end(self) -> int:
        if self._loop is not None:
            self._loop.remove(self._channel.fileno())
        os.kill(self.pid, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        self._disconnect()
        self._loop = None
        return status
