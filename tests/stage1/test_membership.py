"""The monitor's end of what the registrar does: what it hears, and what it makes of that."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import channel
from stage1.channel import Channel
from stage1.loop import Loop
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
