"""`rkpy enter` for a pod in a virtual machine: the client's side.

The command runs beside its app in there; its streams come and go as those of an app that is attached to. Besides them
there is a link to the monitor, a channel. On it the client says

    resize ROWS COLUMNS
    signal NUMBER

and the monitor, once all that the command wrote was sent,

    entered STATUS
    refused STATUS TEXT

When the client is gone the command is hung up (SIGHUP). Three signals end the client whatever the command does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from common.errors import EXIT_FAILURE, LaunchError, PodError
from stage1 import channel, control
from stage1.attach import Session, pairs
from stage1.loop import READ
from stage1.plan import dumps
from stage2.launch import LaunchSpec

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_INSISTING = 3
"""So many of them end the client: a machine that hangs has nobody who would hand them on."""


def visit(directory: str, app: str, launch: LaunchSpec) -> int:
    """Run the command beside the app; its exit status. On a terminal it gets one of its own. LaunchError when it could
    not be run."""
    terminal = os.isatty(0)
    names = ("tty",) if terminal else ("stdin", "stdout", "stderr")
    link, theirs = channel.pair()
    near, far = pairs(len(names))
    plan = channel.memory_file(dumps(launch))
    try:
        request = {"op": "enter", "app": app, "terminal": terminal}
        control.request(directory, request, (plan, theirs.fileno(), *far))
    finally:
        theirs.close()
        for fd in (plan, *far):
            os.close(fd)
    return _Visitor(link, names, near).status


class _Visitor:
    """Carries everything until the command has ended."""

    def __init__(self, link: channel.Channel, names: Sequence[str], near: Sequence[int]) -> None:
        self._link = link
        self._heard = ""
        self._left = False
        self._signals = 0
        self._given_up = 0
        """The signal by which the command was left to itself, if it was."""
        session = Session((0, 1, 2), lambda rows, columns: self._say(f"resize {rows} {columns}"), stay=True)
        self._loop = session.loop
        for number in _HANDED_ON:
            self._loop.on_signal(number, lambda number=number: self._hand_on(number))  # type: ignore[misc]
        self._loop.add(link.fileno(), READ, lambda _events: self._hear())
        try:
            for name, fd in zip(names, near, strict=True):
                session.add(name, fd)
            self._loop.run()
            self._left = session.left
            if not self._left and not self._given_up:
                session.finish()
        finally:
            session.close()
        self.status = self._result()

    def _hand_on(self, number: int) -> None:
        self._say(f"signal {number:d}")
        self._signals += 1
        if self._signals == _INSISTING:
            self._given_up = number
            self._loop.stop()

    def _say(self, text: str) -> None:
        try:
            self._link.send(text)
        except OSError:
            pass  # The pod has ended, which will be heard.

    def _hear(self) -> None:
        self._heard, _ = self._link.receive()
        self._loop.remove(self._link.fileno())
        self._loop.stop()

    def _result(self) -> int:
        verb, _, rest = self._heard.partition(" ")
        status, _, text = rest.partition(" ")
        if verb == "entered":
            return int(status)
        if self._given_up:
            return 128 + self._given_up
        if self._left:
            return 128 + signal.SIGHUP
        if verb == "refused":
            raise LaunchError(text, exit_status=int(status) if status.isdigit() else EXIT_FAILURE)
        raise PodError("the pod has ended")
