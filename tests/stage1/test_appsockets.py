"""The sockets on which the monitor listens to apps, and what hostile apps send there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import appsockets
from stage1.appsockets import NOTIFY, AppSocket
from stage1.loop import Loop

SECONDS = 20
"""Far more than anything here takes."""


class Ground:
    """One socket, what it heard, and an app's end of it."""

    def __init__(self, pod: Path) -> None:
        self.heard: list[tuple[bytes, int]] = []
        self.loop = Loop()
        self.place = pod / "sockets"
        self.socket = AppSocket(self.loop, str(pod), "web", NOTIFY, lambda data, fds: self.hear(data, fds))
        self.app = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.app.connect(str(self.place / "web" / NOTIFY))

    def say_more(self) -> None:
        self.app.send(b"y")

    def hear(self, data: bytes, fds: list[int]) -> None:
        self.heard.append((data, len(fds)))
        if data == b"y":
            self.loop.stop()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    before = len(os.listdir("/proc/self/fd"))
    made = Ground(tmp_path)
    yield made
    made.socket.close()
    made.app.close()
    made.loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_others_do_not_speak_for_an_app(ground: Ground) -> None:
    """The directory is the only way in for those who may look at the pod's."""
    assert stat.S_IMODE(ground.place.stat().st_mode) == 0o700
    assert stat.S_IMODE((ground.place / "web").stat().st_mode) == 0o755
    assert stat.S_IMODE((ground.place / "web" / NOTIFY).stat().st_mode) == 0o666


def test_every_descriptor_is_closed(ground: Ground) -> None:
    ends = os.pipe()
    for count in (1, 16, 253):
        socket.send_fds(ground.app, [b"x"], [ends[1]] * count)
    ground.socket.take()
    assert ground.heard == [(b"x", 1), (b"x", 16), (b"x", 253)]
    os.close(ends[1])
    assert os.read(ends[0], 1) == b""
    os.close(ends[0])


@pytest.mark.parametrize("way", ["taken", "closed"])
@pytest.mark.parametrize("nested", [False, True])
def test_no_descriptor_keeps_us(ground: Ground, nested: bool, way: str) -> None:
    sent, theirs = lingering()
    if nested:  # Under way in a socket, and that in ours.
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        socket.send_fds(one, [b"x"], [sent.fileno()])
        one.close()
        sent.close()
        sent = two
    socket.send_fds(ground.app, [b"x"], [sent.fileno()])
    sent.close()
    begun = time.monotonic()
    (ground.socket.take if way == "taken" else ground.socket.close)()
    assert time.monotonic() - begun < SECONDS / 2
    theirs.close()


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_for_a_process_it_is_done_later(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """As an app can see to that makes as many processes as the pod may have."""
    monkeypatch.setattr(appsockets, "_PAUSE", 0.05)
    us, fork = os.getpid(), os.fork

    def bounded() -> int:
        if room and os.getpid() == us:
            return fork()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", bounded)
    one, two = socket.socketpair()
    socket.send_fds(ground.app, [b"x"], [two.fileno()])
    two.close()
    ground.loop.call_later(0.02, monkeypatch.undo)
    ground.loop.call_later(0.02, ground.say_more)
    ground.loop.call_later(0.01, lambda: held.append(len(ground.socket._held)))
    ground.loop.call_later(SECONDS, ground.loop.stop)
    held: list[int] = []
    ground.loop.run()
    assert held == [1]
    assert ground.heard == [(b"x", 1), (b"y", 0)]
    one.settimeout(SECONDS)
    assert one.recv(1) == b""
    one.close()


def lingering() -> tuple[socket.socket, socket.socket]:
    """A connection with something to deliver that nobody takes, whose end is a wait for that (SO_LINGER in socket(7)),
    and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    try:
        while ours.send(bytes(1 << 16)):
            pass
    except BlockingIOError:
        ours.setblocking(True)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, SECONDS))
    return ours, theirs


# --- what comes from a virtual machine


def test_what_is_delivered_while_nothing_is_taken_comes_later_and_in_order(ground: Ground) -> None:
    done: list[int] = []
    ground.socket.deliver(b"0", lambda: done.append(0))
    ground.socket.pause()
    for number in (1, 2, 3):
        ground.socket.deliver(b"%d" % number, lambda number=number: done.append(number))  # type: ignore[misc]
    assert (ground.heard, done) == ([(b"0", 0)], [0])
    ground.socket.resume()
    assert [data for data, _ in ground.heard] == [b"0", b"1", b"2", b"3"]
    assert done == [0, 1, 2, 3]


def test_what_is_kept_is_bounded_and_nothing_is_owed_for_the_rest(ground: Ground) -> None:
    done: list[bytes] = []
    ground.socket.pause()
    for data in (b"a" * (1 << 20), b"b" * (1 << 20), *([b"c"] * 10000)):
        ground.socket.deliver(data, lambda data=data: done.append(data))  # type: ignore[misc]
    assert done[0].startswith(b"b")
    ground.socket.take()
    assert len(ground.heard) < 5000
    assert len(done) == 10002


def test_who_is_not_listened_to_is_not_kept_waiting(tmp_path: Path) -> None:
    done: list[int] = []
    appsockets.deliver(str(tmp_path), "web", NOTIFY, b"x", lambda: done.append(1))
    assert done == [1]


def test_what_was_delivered_before_the_end_is_dealt_with(ground: Ground) -> None:
    done: list[int] = []
    ground.socket.pause()
    ground.socket.deliver(b"x", lambda: done.append(1))
    ground.socket.close()
    assert (ground.heard, done) == ([], [1])
