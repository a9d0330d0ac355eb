"""A connection to a real bus of our own, and the lines that recognize systemd's request to stop."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SystemdError
from stage1.loop import Loop
from stage1.systemd import bus, controller
from stage1.systemd.bus import Bus
from stage1.systemd.controller import Controller
from tests import buses
from tests.buses import NAME, SELF, Daemon, broadcast, request_stop


@pytest.fixture
def path(daemon: Daemon) -> str:
    """Where it listens."""
    return daemon.path


def test_calls_are_answered(path: str) -> None:
    connection = Bus(path)
    assert connection.name.startswith(":1.")
    assert connection.owner("org.freedesktop.DBus") == "org.freedesktop.DBus"
    assert connection.get(*SELF[:2], SELF[2], "Features") is not None
    connection.close()


def test_an_error_has_its_name(path: str) -> None:
    connection = Bus(path)
    with pytest.raises(SystemdError) as caught:
        connection.owner("org.example.nobody")
    assert caught.value.name == "org.freedesktop.DBus.Error.NameHasNoOwner"
    connection.close()


def test_what_is_not_text_cannot_be_said(path: str) -> None:
    connection = Bus(path)
    with pytest.raises(SystemdError, match="not UTF-8"):
        connection.owner("\udcff")
    assert connection.owner("org.freedesktop.DBus")
    connection.close()


def test_a_signal_that_came_before_an_answer_is_not_lost(path: str) -> None:
    one, other = Bus(path), Bus(path)
    one.listen("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.example.x'")
    one.owner("org.freedesktop.DBus")
    buses.own(other, "org.example.x")
    assert one.owner("org.example.x") == other.name
    signal = one.wait(lambda message: message.member == "NameOwnerChanged")
    assert signal.body == ["org.example.x", "", other.name]
    one.close()
    other.close()


def test_no_bus_and_no_answer_are_errors(tmp_path: Path, path: str) -> None:
    with pytest.raises(SystemdError, match="no such file or directory"):
        Bus(f"{tmp_path}/nothing")
    connection = Bus(path)
    connection._timeout = 0.2  # but for connecting it has the usual time
    with pytest.raises(SystemdError, match="timed out"):
        connection.wait(lambda _message: False)
    connection.close()


@pytest.mark.parametrize("size", [3, 100_000], ids=["short", "too long"])
def test_a_deadline_in_the_middle_of_a_message_costs_nothing_of_it(path: str, size: int) -> None:
    """Nor does it take anything of what comes after: that may be for somebody else."""
    connection = Bus(path)
    connection.socket.close()
    connection.socket, peer = socket.socketpair()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    first, second = broadcast("first", "s", ["x" * size]), broadcast("second", "", [])
    for piece in (first[:10], first[10:20], first[20:-1]):
        peer.sendall(piece)
        with pytest.raises(SystemdError) as caught:
            connection.wait(lambda _message: True, 0.05)
        assert caught.value.name == bus.TIMED_OUT
    peer.sendall(first[-1:] + second + b"more")
    expected = ["first", "second"] if size < bus.LARGEST else ["second"]
    assert [connection.wait(lambda _message: True).member for _ in expected] == expected
    assert connection.socket.recv(100) == b"more"
    connection.close()
    peer.close()


class Watched:
    """A controller on a connection of a real bus."""

    def __init__(self, path: str) -> None:
        connection = Bus(path)
        connection.listen("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='" + NAME + "'")
        connection.owner("org.freedesktop.DBus")
        self.name = connection.name
        self.loop = Loop()
        self.heard: list[str] = []
        self.systemd = Bus(path)
        fd = os.dup(connection.socket.fileno())
        connection.close()
        self.controller = Controller(
            self.loop, fd, self.systemd.name, stop=lambda: self.note("stop"), lost=lambda: self.note("lost")
        )

    def note(self, word: str) -> None:
        self.heard.append(word)
        self.loop.stop()

    def run(self, seconds: float = 60) -> list[str]:
        timer = self.loop.call_later(seconds, lambda: self.note("nothing"))
        self.loop.run()
        timer.cancel()
        return self.heard

    def close(self) -> None:
        self.controller.close()
        self.loop.close()


def test_systemd_can_ask_for_the_end(path: str) -> None:
    watched = Watched(path)
    request_stop(watched.systemd, watched.name)
    assert watched.run() == ["stop"]
    watched.close()


def test_nobody_else_can(path: str) -> None:
    watched = Watched(path)
    stranger = Bus(path)
    request_stop(stranger, watched.name)
    request_stop(watched.systemd, watched.name, "SomethingElse")
    stranger.owner("org.freedesktop.DBus")
    assert watched.run(0.5) == ["nothing"]
    watched.close()
    stranger.close()


def test_a_field_that_nobody_knows_hides_no_sender() -> None:
    """As a bus passes it on that does not take such fields away: the true sender comes last."""
    watched, bus_end = socket.socketpair()
    heard: list[str] = []
    loop = Loop()
    made = Controller(loop, watched.detach(), ":1.1", stop=lambda: heard.append("stop"), lost=lambda: None)
    for sender, hidden in ((":1.9", True), (":1.1", True), (":1.9", False), (":1.1", False)):
        bus_end.send(signal_with(sender, hidden))
        made._receive()
        heard.append(sender)
    assert heard == [":1.9", ":1.1", ":1.9", "stop", ":1.1"]
    made.close()
    bus_end.close()
    loop.close()


def signal_with(sender: str, hidden: bool) -> bytes:
    """A signal RequestStop; in an array of bytes in a field of its own there may be another sender, ":1.1", and what
    makes the rest look like the value of one more field."""

    def text(code: int, value: bytes) -> bytes:
        made = struct.pack("<4BI", code, 1, ord("s"), 0, len(value)) + value + b"\0"
        return made + bytes(-len(made) % 8)

    end = text(7, sender.encode())
    fields = text(3, b"RequestStop")
    if hidden:
        # Read as other kinds of four bytes are: then its content looks like fields.
        rest = struct.pack("<4BI", 201, 1, ord("s"), 0, len(end) - 1)
        inner = bytes(-(len(fields) + 9) % 8) + text(7, b":1.1") + rest
        fields += bytes((200, 2)) + b"ay\0" + bytes(3) + struct.pack("<I", len(inner)) + inner
        fields = fields + bytes(-len(fields) % 8)
    fields += end
    return struct.pack("<4BIII", ord("l"), 4, 0, 1, 0, 1, len(fields.rstrip(b"\0")) + 1) + fields


@pytest.mark.parametrize("kind", ["forged", "odd", "long"])
def test_what_strangers_send_is_neither_an_answer_nor_a_signal(path: str, kind: str) -> None:
    connection, stranger = Bus(path), Bus(path)
    connection.listen("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.example.x'")
    text = "x" * 20_000_000 if kind == "long" else "x"
    for _ in range(1 if kind == "long" else 2):
        request_stop(stranger, connection.name, "NameOwnerChanged", text, serial=2 if kind == "odd" else 77)
    assert connection.owner("org.freedesktop.DBus") == "org.freedesktop.DBus"
    buses.own(stranger, "org.example.x")
    found = connection.wait(lambda message: message.member == "NameOwnerChanged")
    assert found.body == ["org.example.x", "", stranger.name]
    connection.close()
    stranger.close()


def test_messages_that_are_too_long_are_passed_over(path: str) -> None:
    watched = Watched(path)
    for size in (10, 70_000, 1_000_000):
        request_stop(watched.systemd, watched.name, "Noise", "x" * size)
    request_stop(watched.systemd, watched.name)
    assert watched.run() == ["stop"]
    watched.close()


def test_a_systemd_that_was_executed_anew_can_ask_as_well(path: str) -> None:
    watched = Watched(path)
    anew = Bus(path)
    buses.own(anew)
    request_stop(anew, watched.name)
    assert watched.run() == ["stop"]
    watched.close()
    anew.close()


def test_a_call_is_waited_for_until_it_is_answered(path: str) -> None:
    watched = Watched(path)
    began = time.monotonic()
    watched.controller.ask(bus.call_for_later(SELF, "GetId", "", (), answer=True), 60)
    watched.controller.ask(bus.call_for_later(SELF, "NoSuchCall", "", (), serial=7, answer=True), 60)
    assert time.monotonic() - began < 60
    watched.controller.ask(bus.call_for_later(SELF, "GetId", "", ()), 0.05)  # Nobody is going to.
    request_stop(watched.systemd, watched.name)
    assert watched.run() == ["stop"]
    watched.close()


def test_an_answer_is_found_among_signals() -> None:
    signal = struct.pack("<cBBBIII", b"l", 4, 0, 1, 5, 1, 3) + bytes(8 + 5)
    answer = struct.pack(">cBBBIII", b"B", 2, 0, 1, 0, 1, 0)
    for count in range(3):
        assert controller.has_answer(signal * count + answer)
        assert not controller.has_answer(signal * count + answer[:15])


def test_that_the_bus_is_gone_is_noticed(daemon: Daemon) -> None:
    watched = Watched(daemon.path)
    daemon.process.kill()
    assert watched.run() == ["lost"]
    watched.controller.send(b"whatever")
    watched.close()


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    try:
        controller.parse(data)
    except (struct.error, IndexError, UnicodeDecodeError):
        pass
