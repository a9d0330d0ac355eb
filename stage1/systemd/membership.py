"""A pod's place among systemd's units and machines, as the process sees it that is the pod."""

from __future__ import annotations

import errno
import os
import select
import signal
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress

from common.errors import reason
from stage1 import boot, channel, poddir
from stage1.channel import Channel
from stage1.loop import Loop, Timer
from stage1.systemd.controller import GREETING, Controller, has_answer

_ATTEMPTS = 10
_CHUNK = 1 << 16
_PATIENCE = 1.0
"""Seconds that systemd may take to give up a scope, or machined to forget a pod."""
_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds until systemd is asked once more to give up the scope, the last again and again, of which the caller hears
then. It may be busy with itself for a while (systemctl daemon-reload, daemon-reexec) when the bus has just gone."""


class Membership:
    """Goes through `join`, `watch`, `announce` and `leave`. Nothing here ever fails: a pod runs without it, too."""

    def __init__(self, command: str, directory: str, registrar: Channel, pid: int) -> None:
        self._command = command
        self._directory = directory
        self._registrar: Channel | None = registrar
        self._pid = pid
        self._bus = -1
        self._systemd = ""
        self._asked = False
        """Whether systemd has asked for the pod's end before we could hear it."""
        self._private = ""
        self._loop: Loop | None = None
        self._controller: Controller | None = None
        self._farewell = b""
        self._giving_up = b""
        self._failures = 0
        """Of attempts to have the scope given up."""
        self._again: Timer | None = None

    def join(self) -> bool:
        """Wait until the registrar has done its part; whether this process is in a scope of the pod's now."""
        text, fds = self._hear()
        verb, _, rest = text.partition(" ")
        if verb not in ("scoped", "kept"):
            boot.complain(self._command, f"the pod is not registered with systemd: {rest or 'nobody answers'}")
            self._dismiss()
            return False
        self._bus = fds[0]
        unit, _, rest = rest.partition(" ")
        poddir.write_word(self._directory, poddir.UNIT, unit)
        if verb == "scoped":
            self._systemd, asked, self._private = rest.split(" ", 2)
            self._asked = asked == "1"
            self._giving_up = channel.read_memory_file(fds[1])
        return verb == "scoped"

    def watch(self, loop: Loop, stop: Callable[[], None]) -> None:
        """Let systemd ask for the pod's end."""
        self._loop = loop
        if self._bus >= 0:
            self._controller = Controller(loop, self._bus, self._systemd, stop=stop, lost=self._abandon)
        if self._asked:
            loop.call_later(0, stop)

    def _abandon(self) -> None:
        """Without the bus systemd cannot ask us any more, and would wait for us in vain. A scope that its controller
        gave up is stopped by SIGTERM, as any other; systemd itself is told, on its private socket."""
        self._again = None
        if not self._giving_up:
            return
        socket = Socket(AF_UNIX, SOCK_STREAM, 0)
        try:
            socket.settimeout(_PATIENCE / _ATTEMPTS)
            socket.connect(self._private)
            _insist(socket, self._giving_up)
        except OSError as error:
            self._abandon_later(f"{self._private}: {reason(error)}")
        finally:
            socket.close()

    def _abandon_later(self, why: str) -> None:
        if self._loop is None:
            return
        self._again = self._loop.call_later(_PAUSES[min(self._failures, len(_PAUSES) - 1)], self._abandon)
        self._failures += 1
        if self._failures == len(_PAUSES):
            boot.complain(self._command, f"the pod will not hear that its scope is to be stopped: {why}")

    def announce(self, leader: int) -> None:
        """The pod has its namespaces and networks: it can be a machine."""
        registrar = self._registrar
        if registrar is None or self._loop is None:
            return
        with suppress(OSError):
            registrar.send(f"machine {leader}")
        self._loop.add(registrar.fileno(), select.EPOLLIN, lambda _events: self._hear_of_machine())

    def _hear_of_machine(self) -> None:
        text, fds = self._hear()
        verb, _, rest = text.partition(" ")
        if verb == "machine":
            self._farewell = channel.read_memory_file(fds[0])
            poddir.write_word(self._directory, poddir.MACHINE, rest)
        elif text:  # Of what is to be no machine nothing more is said.
            boot.complain(self._command, f"the pod is not registered with machined: {rest}")
        self._dismiss()

    def leave(self) -> None:
        """The pod is over. The scope goes by itself, with its last process; a service may stay, and with it what was
        registered."""
        self._dismiss()
        if self._again is not None:
            self._again.cancel()
        if self._controller is not None:
            if self._farewell and not self._giving_up:
                self._controller.ask(self._farewell, _PATIENCE)
            self._controller.close()

    def _hear(self) -> tuple[str, list[int]]:
        try:
            return self._registrar.receive() if self._registrar is not None else ("", [])
        except OSError:
            return "", []

    def _dismiss(self) -> None:
        """It has nothing more to do, or nobody waits for it."""
        registrar, self._registrar = self._registrar, None
        if registrar is None:
            return
        if self._loop is not None:
            self._loop.remove(registrar.fileno())
        registrar.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _insist(socket: Socket, call: bytes) -> None:
    """Until systemd has answered, because it hears no more of who leaves before that. What it has received together
    with the greeting it looks at when the next thing arrives (sd-bus), so this is said again. Raises OSError."""
    socket.send(GREETING)
    heard = b""
    for left in range(_ATTEMPTS, 0, -1):
        socket.send(call)
        try:
            # Before the answer there may be signals of all kinds.
            while not has_answer(b"".join(heard.split(b"\r\n", 2)[2:])):
                heard += (data := socket.recv(_CHUNK))
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            return
        except TimeoutError:
            if left == 1:
                raise
