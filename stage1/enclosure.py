"""What keeps a pod's apps apart from the host, as the monitor sees it: namespaces of this kernel (`stage1.namespaced`)
or a virtual machine (`stage1.vm.virtualmachine`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from stage1.cgroupfiles import Report
from stage1.channel import Channel
from stage1.loop import Loop
from stage1.plan import AppPlan

Hear = Callable[[str, list[int]], None]
"""Gets what the supervisor says, as `stage1.supervisor` has it, with descriptors that it takes out of the list when it
keeps them; an empty text when the enclosure is gone, "limits" when `reports` has changed, and "up" when `is_up` has.
The rest is closed by whoever called."""


class Enclosure(Protocol):
    """One pod's. Failures are LaunchErrors."""

    pid: int
    """What it lives and dies with, from `begin` on; the pod's network namespace is that process's."""

    is_up: bool
    """Whether the supervisor is there, from `listen` on. What it is told before waits for it."""

    @property
    def leader(self) -> int:
        """Who is asked to stop the pod, by the signals `stage1.supervisor.ENDING`, from `listen` on."""
        ...

    def begin(self, unwanted: Iterable[Channel]) -> None:
        """Make it, with nothing `unwanted` of ours in it. It waits for `listen`."""
        ...

    def listen(self, loop: Loop, hear: Hear) -> None:
        """Let the supervisor in it begin, and call `hear` with what it says."""
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

    def resize(self, name: str, rows: int, columns: int) -> bool:
        """Set the size of the app's terminal; False where what came as its master is one (`terminal.set_size`)."""
        ...

    def ended(self, plan: AppPlan) -> bool:
        """The app's main process has ended: whether it ran out of memory."""
        ...

    def when_gone(self, plan: AppPlan, call: Callable[[], None]) -> None:
        """See that nothing is left of the app that ended, and call then, so that its streams can be drained: at once as
        a rule, and never after `end`."""
        ...

    def lacked_memory(self) -> bool:
        """Whether that is what it was killed for, when it has ended by itself and its apps with it."""
        ...

    def clear(self, name: str) -> None:
        """The app that is gone is written down: let the supervisor go on with it."""
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
