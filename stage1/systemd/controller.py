"""The monitor's end of the bus: systemd asks here for the pod's scope to be stopped.

A scope with a controller is not simply killed: systemd sends the controller a signal, RequestStop, and waits
(org.freedesktop.systemd1(5), "Scope Unit Objects"). So the apps get their own stop signals in their own time. The
connection was made by the registrar with a library; all that is left is to recognize two kinds of message.
"""

from __future__ import annotations

import select
import struct
import time
from _socket import MSG_DONTWAIT
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Iterator

from stage1.loop import Loop

GREETING = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
"""What a client begins with ("Authentication Protocol" in the D-Bus specification). The server knows who we are by the
socket's credentials, and we may not: root of a user namespace is somebody else outside. So we say no name, and what
would be asked for next in the same breath. The answers are two lines, `DATA` and `OK …`."""
_LARGEST = 1 << 16
"""Bytes of a message that is looked at; ours have a few hundred. Longer ones are passed over."""
_CHUNK = 1 << 16
_PATH, _INTERFACE, _MEMBER, _SENDER = 1, 2, 3, 7
"""Header fields (D-Bus specification, "Message Format")."""
_SIGNAL = 4
_ANSWERS = (2, 3)
"""Kinds of message: a method's return, an error."""


class Controller:
    """Watches the bus until the pod's end."""

    def __init__(
        self, loop: Loop, fd: int, systemd: str, *, stop: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """`fd` is ours from now on; `systemd` is the unique name of who may ask for `stop`. `lost`: the bus is gone."""
        self._loop = loop
        self._socket = Socket(fileno=fd)
        self._systemd = systemd
        self._stop = stop
        self._lost = lost
        self._data = bytearray()
        self._skip = 0
        self._open = True
        self._answered = False
        loop.add(fd, select.EPOLLIN, lambda _events: self._receive())

    def send(self, message: bytes) -> None:
        """A message without an answer. Whether it arrives does not matter enough to wait for it."""
        if self._open:
            try:
                self._socket.send(message, MSG_DONTWAIT)
            except OSError:
                self.close()

    def ask(self, message: bytes, seconds: float) -> None:
        """A call, until it is answered, or for so long: of who has left the bus meanwhile machined cannot learn who he
        is, and refuses."""
        self._answered = False
        self.send(message)
        end = time.monotonic() + seconds
        poll = select.poll()
        while self._open and not self._answered and (left := end - time.monotonic()) > 0:
            poll.register(self._socket.fileno(), select.POLLIN)
            if poll.poll(left * 1000):
                self._receive()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove(self._socket.fileno())
            self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._lost()
            return
        dropped = min(self._skip, len(data))
        self._skip -= dropped
        self._data += data[dropped:]
        for message in self._messages():
            self._look_at(message)

    def _messages(self) -> Iterator[bytes]:
        """Whole messages out of what was received."""
        while len(self._data) >= 16:
            order = "<" if self._data[:1] == b"l" else ">"
            body, _, fields = struct.unpack_from(f"{order}III", self._data, 4)
            length = 16 + (fields + 7) // 8 * 8 + body
            if length > _LARGEST:
                self._skip = max(0, length - len(self._data))
                del self._data[:length]
            elif length > len(self._data):
                return
            else:
                yield bytes(self._data[:length])
                del self._data[:length]

    def _look_at(self, message: bytes) -> None:
        """Anybody on the bus may send us signals; who sent one is the bus's own word."""
        self._answered = self._answered or message[1] in _ANSWERS
        if message[1] != _SIGNAL:
            return
        try:
            fields, body = parse(message)
        except (struct.error, IndexError, UnicodeDecodeError):
            return
        sender, member = fields.get(_SENDER), fields.get(_MEMBER)
        if sender == self._systemd and member == "RequestStop":
            self._stop()
        elif sender == "org.freedesktop.DBus" and member == "NameOwnerChanged":
            # systemd was executed anew (systemctl daemon-reexec), and connected again.
            name, _, new = body
            if name == "org.freedesktop.systemd1" and new:
                self._systemd = new


def has_answer(messages: bytes) -> bool:
    """Whether an answer is among messages, of which the last may be but a part."""
    at = 0
    while at + 16 <= len(messages):
        if messages[at + 1] in _ANSWERS:
            return True
        body, _, fields = struct.unpack_from("<III" if messages[at] == ord("l") else ">III", messages, at + 4)
        at += 16 + (fields + 7) // 8 * 8 + body
    return False


def parse(message: bytes) -> tuple[dict[int, str], tuple[str, str, str]]:
    """The textual header fields of a message, and its body if that is three strings. Raises struct.error, IndexError
    or UnicodeDecodeError for what is no message."""
    order = "<" if message[:1] == b"l" else ">"
    (length,) = struct.unpack_from(f"{order}I", message, 12)
    at, end = 16, 16 + length
    fields: dict[int, str] = {}
    while at < end:
        at = (at + 7) // 8 * 8
        code, kind = message[at], message[at + 1 : at + 4]
        at += 4  # the code, and the value's signature: its length, one letter, a zero byte
        if kind in (b"\1s\0", b"\1o\0"):
            if code in fields:
                raise IndexError(at)
            fields[code], at = _string(message, at, order)
        elif kind == b"\1g\0":
            at += 2 + message[at]
        elif kind == b"\1u\0":
            at = (at + 3) // 4 * 4 + 4
        else:
            # None of systemd's, nor of the bus's: a bus may pass on fields it does not know (dbus-broker does), and in
            # one of these there could be anything that looks like a field.
            raise IndexError(at)
    at = (end + 7) // 8 * 8
    texts: list[str] = []
    while at < len(message) and len(texts) < 3:
        text, at = _string(message, at, order)
        texts.append(text)
    one, two, three = (*texts, "", "", "")[:3]
    return fields, (one, two, three)


def _string(message: bytes, at: int, order: str) -> tuple[str, int]:
    at = (at + 3) // 4 * 4
    (length,) = struct.unpack_from(f"{order}I", message, at)
    if at + 4 + length > len(message):
        raise IndexError(at)
    return message[at + 4 : at + 4 + length].decode(), at + 5 + length
