"""A connection to the bus of the system or of a user, for calls to systemd and machined (the D-Bus specification;
org.freedesktop.systemd1(5), org.freedesktop.machine1(5)).

dbus-next's codecs make and read the messages. Its package initializer, which loads asyncio and two whole clients, is
passed by; the socket is ours. So it takes 7 ms instead of 34, and what is read ends exactly where a message ends: the
socket can be given to another process.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812
from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from common.errors import SystemdError, reason
from stage1.systemd.controller import GREETING

TIMEOUT = 25.0
"""Seconds a call may take, as other clients have it."""
TIMED_OUT = "org.freedesktop.DBus.Error.Timeout"
"""The name of the error that a signal has not come in time."""
LARGEST = 1 << 16
"""Bytes of a message that is looked at; what we ask for has answers of a few hundred."""
LAST_SERIAL = 0xFFFF_FFF0
"""Of a message that is made now and sent later, when calls may have been made in between."""
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
MACHINED = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")
"""Name, path and interface of the objects that are called."""
_PROPERTIES = "org.freedesktop.DBus.Properties"


def load() -> None:
    """Import dbus-next's codecs; a second time costs nothing."""
    name = "dbus_next"
    if name not in sys.modules:
        from importlib.machinery import PathFinder
        from types import ModuleType

        spec = PathFinder.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            package = ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[name] = package
    # First, because the modules import each other in a circle.
    import dbus_next.errors
    import dbus_next.message  # noqa: F401


def variant(signature: str, value: object) -> Any:
    """A value with its type, as properties have it."""
    load()
    from dbus_next.signature import Variant

    return Variant(signature, value)


class Bus:
    """One connection. SystemdError when there is no bus, it does not answer in time, or it says no; the error's `name`
    is then D-Bus's name for it."""

    def __init__(self, path: str, timeout: float = TIMEOUT, *, direct: bool = False) -> None:
        """`path`: the bus's socket, or with `direct` that of the one service which is called, without a bus."""
        load()
        self._serial = 0
        self._signals: deque[Any] = deque()
        self._read = b""
        """What has come of a message, when a deadline passed before all of it had."""
        self._passed = 0
        """Bytes that were passed over, of one that is too long."""
        self.asked: set[str] = set()
        """Who has asked us to stop something, by a signal that is sent to us alone: unique names on the bus."""
        self._timeout = timeout
        self.socket = Socket(AF_UNIX, SOCK_STREAM, 0)
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(path)
            self._send(GREETING)
            answer = self._line() and self._line()
        except OSError as error:
            self.socket.close()
            raise SystemdError(f"cannot connect to the bus {path}: {reason(error)}") from error
        if not answer.startswith(b"OK "):
            raise SystemdError(f"the bus {path} does not let us in")
        self.name: str = "" if direct else self.call(_BUS, "Hello")[0]

    def call(
        self, target: tuple[str, str, str], member: str, signature: str = "", body: Sequence[object] = ()
    ) -> list[Any]:
        """Call a method and return what it returns."""
        self._serial += 1
        _, _, interface = target
        message = _call(target, member, signature, body, self._serial)
        try:
            self._send(_packed(message))
            return self._reply(self._serial)
        except OSError as error:
            raise SystemdError(f"{interface}.{member}: {reason(error)}", name="") from error
        except UnicodeEncodeError as error:
            raise SystemdError(f"{interface}.{member}: D-Bus takes nothing that is not UTF-8", name="") from error

    def get(self, service: str, path: str, interface: str, name: str) -> Any:
        """A property of an object."""
        return self.call((service, path, _PROPERTIES), "Get", "ss", (interface, name))[0].value

    def listen(self, rule: str) -> None:
        """Have signals sent to us that match (AddMatch)."""
        self._tell(_BUS, "AddMatch", "s", (rule,))

    def ignore(self, rule: str) -> None:
        """No more of what `listen` asked for."""
        self._tell(_BUS, "RemoveMatch", "s", (rule,))

    def owner(self, name: str) -> str:
        """The unique name behind a well-known one."""
        owner: str = self.call(_BUS, "GetNameOwner", "s", (name,))[0]
        return owner

    def wait(self, matches: Callable[[Any], bool], seconds: float | None = None) -> Any:
        """The first signal that matches, a message of dbus-next. `seconds`: how long, if not as for a call."""
        deadline = time.monotonic() + (self._timeout if seconds is None else seconds)
        try:
            while True:
                message = self._signals.popleft() if self._signals else self._receive(deadline)
                if _is_signal(message) and matches(message):
                    return message
        except TimeoutError as error:
            raise SystemdError(f"waiting for the bus: {reason(error)}", name=TIMED_OUT) from error
        except OSError as error:
            raise SystemdError(f"waiting for the bus: {reason(error)}") from error

    def forget_signals(self) -> None:
        """Those that have come so far, for `wait` to find none of an earlier matter."""
        self._signals.clear()

    def close(self) -> None:
        self.socket.close()

    def _tell(self, target: tuple[str, str, str], member: str, signature: str, body: Sequence[object]) -> None:
        """A call whose answer is not waited for, because the bus does things in their order."""
        self._serial += 1
        try:
            self._send(call_for_later(target, member, signature, body, serial=self._serial))
        except OSError as error:
            raise SystemdError(f"{member}: {reason(error)}") from error

    def _reply(self, serial: int) -> list[Any]:
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._receive(deadline)
            if _is_signal(message):
                self._signals.append(message)
            if not _answers(message, serial):
                continue
            if message.message_type.name == "ERROR":
                raise SystemdError(
                    str(message.body[0] if message.body else message.error_name), name=message.error_name
                )
            body: list[Any] = message.body
            return body

    def _send(self, data: bytes) -> None:
        self.socket.settimeout(self._timeout)
        while data:
            data = data[self.socket.send(data) :]

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n") and len(line) < 4096:
            line += self._some(1, time.monotonic() + self._timeout)
        return line

    def _receive(self, deadline: float) -> Any:
        """The next message; None for one that cannot be for us. Anybody on the bus may send us any. TimeoutError leaves
        the beginning of one for the next call."""
        from dbus_next._private.unmarshaller import Unmarshaller

        head = self._first(16, deadline)
        order = "<" if head[:1] == b"l" else ">"
        body, _, fields = struct.unpack(f"{order}III", head[4:])
        rest = (fields + 7) // 8 * 8 + body
        data = b"" if rest > LARGEST else self._first(16 + rest, deadline)
        while not data and self._passed < rest:
            self._passed += len(self._some(min(rest - self._passed, LARGEST), deadline))
        self._read, self._passed = b"", 0
        reader: Any = Unmarshaller
        try:
            message = reader(BytesIO(data)).unmarshall() if data else None
        except Exception:
            # The library knows no fields but those of its day, and says so in many ways.
            return None
        if message is not None and _asks_to_stop(message):
            self.asked.add(message.sender)
        return message

    def _first(self, count: int, deadline: float) -> bytes:
        """Of the message that is being read. Not a byte more: whoever has the socket after us begins with a whole
        message."""
        while len(self._read) < count:
            self._read += self._some(count - len(self._read), deadline)
        return self._read[:count]

    def _some(self, count: int, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(110, os.strerror(110))
        self.socket.settimeout(left)
        piece = self.socket.recv(count)
        if not piece:
            raise ConnectionResetError(104, os.strerror(104))
        return piece


def _is_signal(message: Any) -> bool:
    """One by a rule of ours (`listen`), which says whose. What is sent to us alone may be anybody's."""
    return message is not None and message.message_type.name == "SIGNAL" and not message.destination


def _asks_to_stop(message: Any) -> bool:
    return bool(message.message_type.name == "SIGNAL" and message.member == "RequestStop")


def _answers(message: Any, serial: int) -> bool:
    """Whether it is the answer to a call; the bus passes on none that was not asked for."""
    kinds = ("METHOD_RETURN", "ERROR")
    return message is not None and message.message_type.name in kinds and message.reply_serial == serial


def _packed(message: Any) -> bytes:
    return bytes(message._marshall(False))


def call_for_later(
    target: tuple[str, str, str],
    member: str,
    signature: str,
    body: Sequence[object],
    *,
    serial: int = LAST_SERIAL,
    answer: bool = False,
) -> bytes:
    """A call as a message. Without `serial` it is for whoever has the connection's socket last. `answer`: whether there
    is to be one."""
    load()
    flag = "NO_AUTOSTART" if answer else "NO_REPLY_EXPECTED"
    return _packed(_call(target, member, signature, body, serial, flag))


def _call(
    target: tuple[str, str, str],
    member: str,
    signature: str,
    body: Sequence[object],
    serial: int,
    flag: str = "NONE",
) -> Any:
    from dbus_next.constants import MessageFlag
    from dbus_next.message import Message

    destination, path, interface = target
    return Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
        flags=MessageFlag[flag],
        serial=serial,
    )
