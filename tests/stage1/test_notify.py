"""Messages to a service manager: where they go, and that they never get in the way."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from stage1 import boot, channel
from stage1.systemd.notify import Latest, Sender, send
from tests.cgroups import until

DEADLINE = 60


def listener(address: str | bytes) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(address)
    made.settimeout(DEADLINE)
    return made


def test_paths(tmp_path: Path) -> None:
    with listener(str(tmp_path / "notify")) as host:
        send(str(tmp_path / "notify"), "READY=1\nSTATUS=ä")
        assert host.recv(100) == "READY=1\nSTATUS=ä".encode()


def test_long_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ("x" * 100)
    place.mkdir()
    monkeypatch.chdir(place)
    with listener("notify") as host:
        send(str(place / "notify"), "READY=1")
        assert host.recv(100) == b"READY=1"


def test_abstract_names() -> None:
    name = f"rkpy-test-notify-{os.getpid()}"
    with listener(b"\0" + name.encode()) as host:
        send(f"@{name}", "READY=1")
        assert host.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    "address", ["", "/nowhere/at/all", "@rkpy-nobody", "/" + "x" * 300, "@" + "x" * 300, "/dev/null"]
)
def test_nobody_listens(address: str) -> None:
    send(address, "READY=1")


def test_who_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    with listener(str(tmp_path / "notify")), Sender(str(tmp_path / "notify")) as sender:
        sent = [sender.send("STATUS=" + "x" * 1000) for _ in range(5000)]
        assert not all(sent), "it is told when there is no room"
        start = time.monotonic()
        assert not sender.send("READY=1", 0.2)
        assert time.monotonic() - start >= 0.2


def test_who_reads_late_is_waited_for_as_long_as_it_was_said(tmp_path: Path) -> None:
    with listener(str(tmp_path / "notify")) as host, Sender(str(tmp_path / "notify")) as sender:
        while sender.send("STATUS=before"):
            pass
        later = threading.Timer(0.3, host.recv, [100])
        later.start()
        assert sender.send("READY=1", DEADLINE)
        later.join()
        while (text := host.recv(100)) == b"STATUS=before":
            pass
        assert text == b"READY=1"


def fill(address: str) -> None:
    """Leave no room for another message."""
    with Sender(address) as sender:
        while sender.send("STATUS=before"):
            pass


def drain(host: socket.socket) -> str:
    """What came after `fill`, which is waited for."""
    while (text := host.recv(1000)) == b"STATUS=before":
        pass
    return text.decode()


def test_what_there_was_no_room_for_is_said_with_what_comes_next(tmp_path: Path) -> None:
    with listener(str(tmp_path / "notify")) as host:
        fill(str(tmp_path / "notify"))
        told = Latest(str(tmp_path / "notify"))
        for text in ("EXTEND_TIMEOUT_USEC=1", "STATUS=one=1", "EXTEND_TIMEOUT_USEC=2\nX=y"):
            told.say(text)
        assert told.due == {"EXTEND_TIMEOUT_USEC": "2", "STATUS": "one=1", "X": "y"}
        while host.recv(1000) == b"STATUS=before" and told.due:
            told.say("STATUS=two")
        assert drain(host) == "EXTEND_TIMEOUT_USEC=2\nSTATUS=two\nX=y"
        told.say("STATUS=three")
        assert drain(host) == "STATUS=three"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "_told", None)
    monkeypatch.setattr(boot, "_PATIENCE", 0.05)
    monkeypatch.setattr(boot, "_LONG_PATIENCE", float(DEADLINE))


@pytest.mark.usefixtures("hasty")
def test_that_the_start_takes_longer_is_heard_of_by_a_manager_that_was_busy(tmp_path: Path) -> None:
    """The last time that the engine says so nothing follows to say it with."""
    address = str(tmp_path / "notify")
    ours, theirs = channel.pair()
    with listener(address) as host:
        fill(address)
        heard: list[str] = []

        def listen() -> None:
            until(lambda: boot._told is not None and "EXTEND_TIMEOUT_USEC" in boot._told.due)
            heard.append(drain(host))

        later = threading.Thread(target=listen)
        ours.send(f"tell {address}\nSTATUS=preparing the pod")
        ours.send(f"tell {address}\nEXTEND_TIMEOUT_USEC=20000000")
        ours.close()
        later.start()
        assert boot._do("run", theirs, 0) == 0
        later.join()
    assert heard == ["STATUS=preparing the pod\nEXTEND_TIMEOUT_USEC=20000000"]


@pytest.mark.usefixtures("hasty")
def test_nobody_waits_long_for_less_than_that(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listener(address):
        fill(address)
        boot.tell_manager(address, "STATUS=preparing the pod")
        boot.insist()
        assert boot._told is not None and boot._told.due


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with listener(str(tmp_path / "notify")):
        for _ in range(10):
            send(str(tmp_path / "notify"), "x")
            send(f"{tmp_path}/{'y' * 200}/z", "x")
    assert os.listdir("/proc/self/fd") == before
