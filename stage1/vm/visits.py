"""Commands beside the apps of a virtual machine, `rkpy enter`: the monitor's side of `stage1.vm.visitor`."""

from __future__ import annotations

import os
import signal
import stat
from _socket import socket as Socket  # noqa: N812

from common.errors import PodError
from common.records import NamedTuple
from stage1 import channel
from stage1.channel import Channel
from stage1.loop import READ, Loop
from stage1.vm.bridge import Bridge


class _Visit(NamedTuple):
    """What a client has handed over."""

    spec: bytes
    link: Channel
    streams: list[int]


class Visits:
    """Those that are under way."""

    def __init__(self, loop: Loop, bridge: Bridge) -> None:
        self._loop = loop
        self._bridge = bridge
        self._links: dict[int, Channel] = {}
        """To the clients, by the numbers of their commands."""
        self._waiting: dict[str, list[_Visit]] = {}
        """For apps that are being started: what was asked meanwhile."""

    def expect(self, app: str) -> None:
        """The app is on its way to be executed: commands beside it wait until `admit`."""
        self._waiting.setdefault(app, [])

    def admit(self, app: str) -> None:
        """It runs now, or does not: commands beside it are begun, or refused by the guest."""
        for visit in self._waiting.pop(app, ()):
            self._begin(app, visit)

    def begin(self, app: str, fds: list[int]) -> None:
        """`fds`: the command's LaunchSpec, a memory file; the link; the far ends of its streams, three, or one for a
        terminal. Takes out of the list what it keeps. Raises PodError."""
        if len(fds) not in (3, 5) or not stat.S_ISSOCK(os.fstat(fds[1]).st_mode):
            raise PodError("the monitor does not understand the request")
        plan, link, *streams = fds
        fds.clear()
        visit = _Visit(channel.read_memory_file(plan), Channel(Socket(fileno=link)), streams)
        if app in self._waiting:
            self._waiting[app].append(visit)
        else:
            self._begin(app, visit)

    def _begin(self, app: str, visit: _Visit) -> None:
        spec, client, streams = visit
        number = self._bridge.enter(app, streams, spec)
        for fd in streams:
            os.close(fd)
        self._links[number] = client
        self._loop.add(client.fileno(), READ, lambda _events: self._hear(number))

    def _hear(self, number: int) -> None:
        text, fds = self._links[number].receive()
        for fd in fds:
            os.close(fd)
        verb, *words = text.split(" ")
        if not text:
            self._bridge.signal_entered(number, signal.SIGHUP)
            self._forget(number)
        elif verb == "resize" and len(words) == 2:
            self._bridge.resize_entered(number, int(words[0]), int(words[1]))
        elif verb == "signal" and len(words) == 1:
            self._bridge.signal_entered(number, int(words[0]))

    def entered(self, number: int, status: int) -> None:
        """The command has ended."""
        self._answer(number, f"entered {status}")

    def refused(self, number: int, status: int, text: str) -> None:
        """It could not be run."""
        self._answer(number, f"refused {status} {text}")

    def _answer(self, number: int, text: str) -> None:
        link = self._links.get(number)
        if link is None:
            return
        try:
            link.send(text)
        except OSError:
            pass  # The client has left.
        self._forget(number)

    def _forget(self, number: int) -> None:
        link = self._links.pop(number)
        self._loop.remove(link.fileno())
        link.close()
