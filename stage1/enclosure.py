"""What keeps a pod's apps apart from the host, as the monitor sees it: namespaces of this kernel (`stage1.namespaces`)
or a virtual machine (`stage1.vm.virtualmachine`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from stage1.cgroup import Report
from stage1.loop import Loop
from stage1.plan import AppPlan

Hear = Callable[[str, list[int]], None]
"""Gets what the supervisor says, as `stage1.supervisor` has it, with descriptors that it closes or keeps; the empty text
when the enclosure is gone."""


class Enclosure(Protocol):
    """One pod's. Failures are LaunchErrors."""

    pid: int
    """What it lives and dies with, from `begin` on; the pod's network namespace is that process's."""

    def begin(self) -> None:
        """Make it. Nothing in it runs on its own account before `listen`."""
        ...

    def listen(self, loop: Loop, hear: Hear) -> None:
        """Let the supervisor in it begin, and hear it."""
        ...

    def tell(self, text: str, fds: Sequence[int] = ()) -> None:
        """Say something to the supervisor. That it is gone is heard, not raised."""
        ...

    def attached(self, fds: Sequence[int]) -> None:
        """The pod's network namespace is furnished; `fds` came with that news from the worker."""
        ...

    def start(self, plan: AppPlan, stdio: Sequence[int], sockets: Sequence[int]) -> None:
        """Open what the app needs and hand it to the supervisor. `stdio`: the app's ends of its streams, -1 where a
        terminal comes."""
        ...

    def ended(self, plan: AppPlan) -> tuple[bool, int]:
        """See that nothing is left of the app: whether it ran out of memory, and a descriptor of its next cgroup for
        the supervisor's "cleared", -1 for none."""
        ...

    def reports(self) -> Iterable[Report]:
        """What became of the limits so far."""
        ...

    def remove(self, name: str) -> None:
        """Forget an app."""
        ...

    def answer(self, op: str, asked: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Serve a request of one of rkpy's commands (`stage1.control`) that concerns the enclosure; None when it does
        not."""
        ...

    def end(self) -> int:
        """Kill what is left of it; the wait status of `pid` (waitpid(2))."""
        ...
