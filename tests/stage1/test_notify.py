"""Messages to a service manager: where they go, and that they never get in the way."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stage1.systemd.notify import Sender, send


def listener(address: str | bytes) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(address)
    made.settimeout(10)
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
        for _ in range(5000):
            sender.send("STATUS=" + "x" * 1000)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with listener(str(tmp_path / "notify")):
        for _ in range(10):
            send(str(tmp_path / "notify"), "x")
            send(f"{tmp_path}/{'y' * 200}/z", "x")
    assert os.listdir("/proc/self/fd") == before
