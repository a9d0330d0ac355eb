"""The monitor's end of what the registrar does: what it hears, and what it makes of that."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import channel
from stage1.channel import Channel
from stage1.loop import Loop
from stage1.systemd import membership
from stage1.systemd.controller import GREETING
from stage1.systemd.membership import Membership


class Registered:
    """A pod whose registrar is the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.private = str(directory / "private")
        self.registrar, monitors = channel.pair()
        self.bus, self.monitors_bus = socket.socketpair()
        self.loop = Loop()
        self.heard: list[str] = []
        # The registrar's process: there is none to be ended any more.
        self.membership = Membership("run", str(directory), monitors, _ended())

    def joins(self, *, asked: int = 0) -> None:
        call = channel.memory_file(b"call")
        words = f"scoped rkpy-web.scope :1.7 {asked} {self.private}"
        self.registrar.send(words, (self.monitors_bus.fileno(), call))
        os.close(call)
        self.monitors_bus.close()
        assert self.membership.join()
        self.membership.watch(self.loop, lambda: self.note("stop"))

    def note(self, word: str) -> None:
        self.heard.append(word)
        self.loop.stop()

    def run(self, seconds: float = 60) -> list[str]:
        timer = self.loop.call_later(seconds, lambda: self.note("nothing"))
        self.loop.run()
        timer.cancel()
        return self.heard

    def close(self) -> None:
        self.membership.leave()
        self.loop.close()
        self.registrar.close()
        self.bus.close()


def _ended() -> int:
    """The PID of a child that has ended."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    return pid


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Registered]:
    made = Registered(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(("asked", "heard"), [(1, ["stop"]), (0, ["nothing"])])
def test_who_was_asked_to_end_before_he_could_hear_it_ends(
    asked: int, heard: list[str], registered: Registered
) -> None:
    registered.joins(asked=asked)
    assert registered.run(60 if asked else 0.2) == heard
    assert (registered.directory / "unit").read_text() == "rkpy-web.scope\n"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("unknown it is full", "rkpy: run: the pod is not registered with machined: it is full\n"),
        ("apart no bus", "rkpy: run: the pod is not registered with machined: no bus\n"),
        ("", ""),
    ],
)
def test_why_it_is_no_machine_is_said_where_it_was_to_be_one(
    said: str, complaint: str, registered: Registered, capfd: pytest.CaptureFixture[str]
) -> None:
    """The registrar of a pod that is to be none ends without a word."""
    registered.joins()
    registered.membership.announce(os.getpid())
    registrar: Channel = registered.registrar
    assert registrar.receive() == (f"machine {os.getpid()}", [])
    if said:
        registrar.send(said)
    registrar.close()
    while registered.membership._registrar is not None:
        registered.run(0.05)
    assert capfd.readouterr().err == complaint


def systemd_that_answers(place: str, at: int) -> tuple[threading.Thread, list[bytes]]:
    """Its private socket, where the first `at` that come are turned away without an answer; what the next one says."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    said: list[bytes] = []

    def serve() -> None:
        for _ in range(at):
            listener.accept()[0].close()
        connection, _ = listener.accept()
        with connection:
            while b"call" not in b"".join(said):
                said.append(connection.recv(4096))
            connection.sendall(b"DATA\r\nOK 0\r\n" + struct.pack("<4BIII", ord("l"), 2, 0, 1, 0, 1, 0))
            connection.recv(4096)  # Until it is let go of.
        listener.close()

    made = threading.Thread(target=serve, daemon=True)
    made.start()
    return made, said


@pytest.mark.parametrize(("refusals", "complaints"), [(0, 0), (2, 0), (4, 1), (6, 1)])
def test_a_systemd_that_is_busy_is_told_again_that_nobody_listens(
    refusals: int,
    complaints: int,
    registered: Registered,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(membership, "_PAUSES", (0.01, 0.02, 0.02, 0.02))
    monkeypatch.setattr(membership, "_PATIENCE", 600.0)
    systemd, said = systemd_that_answers(registered.private, refusals)
    registered.joins()
    registered.bus.close()
    end = time.monotonic() + 60
    while systemd.is_alive():
        registered.run(0.02)
        assert time.monotonic() < end
    assert b"".join(said).startswith(GREETING + b"call")
    assert capfd.readouterr().err.count("the pod will not hear that its scope is to be stopped: ") == complaints


def test_nobody_is_told_when_the_pod_is_over(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_PAUSES", (0.05,))
    registered.joins()
    registered.bus.close()
    while registered.membership._again is None:
        registered.run(0.01)
    registered.membership.leave()
    failures = registered.membership._failures
    registered.run(0.2)
    assert registered.membership._failures == failures
