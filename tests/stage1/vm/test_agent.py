"""What of the agent can be seen without a guest; tests/host/test_machine_wire.py has the rest."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from stage1.loop import Loop
from stage1.vm import agent, frames
from stage1.vm.frames import DATA, MESSAGE, WINDOW


class Host:
    """Its end of the wire, which gives no credit."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, theirs = socket.socketpair()
        self.agent = agent.Agent(self.loop, theirs.detach())
        self.wire = ours
        self.wire.setblocking(False)
        self._decoder = frames.Decoder()
        self.data = b""
        self.said: list[str] = []

    def turn(self) -> None:
        self.loop.call_later(0.01, self.loop.stop)
        self.loop.run()
        try:
            for kind, _, payload in self._decoder.feed(self.wire.recv(1 << 20)):
                if kind == DATA:
                    self.data += payload
                elif kind == MESSAGE:
                    self.said.append(frames.decode_message(payload)[0])
        except BlockingIOError:
            pass


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.agent._traffic.close()
    made.agent._wire.close()
    made.wire.close()
    made.loop.close()


def stream(host: Host, size: int) -> int:
    """The writing end of stream 5, from which `size` bytes can be read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    assert os.write(writing, bytes(size)) == size
    os.set_blocking(reading, False)
    host.agent._traffic.read(5, reading)
    return writing


def test_an_end_comes_after_all_that_was_written_before(host: Host) -> None:
    writing = stream(host, WINDOW + 1000)
    ended: list[bool] = []
    host.agent._when_sent([5, 0], lambda: ended.append(True))
    for _ in range(20):
        host.turn()
    assert (host.said, len(host.data), ended) == (["ending 5"], WINDOW, [])
    host.wire.send(frames.encode_credit(5, 999))
    for _ in range(20):
        host.turn()
    assert not ended
    os.write(writing, b"of somebody else's, later")
    host.wire.send(frames.encode_credit(5, 1))
    while not ended:
        host.turn()
    assert host.data == bytes(WINDOW + 1000)
    os.close(writing)


def test_an_end_is_not_kept_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "STUCK", 0.1)
    writing = stream(host, 2 * WINDOW)
    ended: list[bool] = []
    host.agent._when_sent([5], lambda: ended.append(True))
    while not ended:
        host.turn()
    host.wire.send(frames.encode_credit(5, WINDOW))
    while len(host.data) < 2 * WINDOW:
        host.turn()
    assert ended == [True]
    os.close(writing)


def test_nothing_is_waited_for_where_nothing_is(host: Host) -> None:
    ended: list[bool] = []
    host.agent._when_sent([0, 7], lambda: ended.append(True))
    assert ended == [True]


def test_without_a_host_there_is_nothing_to_do(host: Host) -> None:
    host.wire.close()
    host.loop.run()
    assert host.agent.why == "the host has hung up"
    host.wire = socket.socket()
