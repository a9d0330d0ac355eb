"""The journal's native protocol, towards a socket that stands in for the journal's; and the catalog of our events."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import journal
from stage1 import appjournal

CATALOG = Path(__file__).parents[2] / "systemd-units" / "rkpy.catalog"


DEADLINE = 60


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Somebody who listens on `tmp_path`/socket and has not read anything yet."""
    monkeypatch.setattr(journal, "_stuck", False)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "socket"))
    listener.setblocking(False)
    return listener


@given(st.lists(st.tuples(st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True), st.binary()), min_size=1))
def test_what_is_written_is_what_is_read(fields: list[tuple[str, bytes]]) -> None:
    data = b"".join(journal.field(name, value) for name, value in fields)
    assert list(appjournal.parse(data)) == [[(name.encode(), value) for name, value in fields][:128]]


def test_an_event(place: socket.socket, tmp_path: Path) -> None:
    journal.event(
        journal.STARTED, "two\nlines", {"RKPY_APP": "web", "RKPY_POD_NAME": ""}, path=str(tmp_path / "socket")
    )
    assert list(appjournal.parse(place.recv(65536))) == [
        [
            (b"MESSAGE_ID", journal.STARTED.encode()), (b"PRIORITY", b"6"), (b"SYSLOG_IDENTIFIER", b"rkpy"),
            (b"MESSAGE", b"two\nlines"), (b"RKPY_APP", b"web"),
        ]
    ]  # fmt: skip


def test_a_large_one_comes_sealed(place: socket.socket, tmp_path: Path) -> None:
    text = "x" * (4 << 20)
    journal.event(journal.STARTED, text, {}, path=str(tmp_path / "socket"))
    data, fds, _, _ = socket.recv_fds(place, 65536, 1)
    assert data == b""
    assert fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & journal.SEALS == journal.SEALS
    assert os.pread(fds[0], 5 << 20, 0).endswith(b"MESSAGE=" + text.encode() + b"\n")
    os.close(fds[0])


def test_nobody_is_waited_for(place: socket.socket, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    for _ in range(100_000 // 1000):
        for _ in range(1000):
            journal.event(journal.STARTED, "nobody reads this", {}, path=path)
    taken = 0
    try:
        while place.recv(65536):
            taken += 1
    except BlockingIOError:
        pass
    assert 0 < taken < 100_000


def fill(path: str) -> int:
    """Leave no room for another entry; how many there are now."""
    count = 0
    with contextlib.closing(journal.connect(path)) as sender:
        try:
            while True:
                journal.send(sender, b"FILLED=1\n")
                count += 1
        except BlockingIOError:
            return count


def receive(place: socket.socket) -> bytes:
    place.settimeout(DEADLINE)
    return place.recv(65536)


@pytest.mark.parametrize("size", [10, 4 << 20], ids=["small", "large"])
def test_an_event_waits_for_room(
    size: int, place: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_ROOM", float(DEADLINE))
    path = str(tmp_path / "socket")
    before = fill(path)
    later = threading.Timer(0.1, lambda: [receive(place) for _ in range(before)])
    later.start()
    journal.event(journal.STARTED, "x" * size, {}, path=path)
    later.join()
    data, fds, _, _ = socket.recv_fds(place, 65536, 1)
    assert data.endswith(b"MESSAGE=xxxxxxxxxx\n") if size == 10 else (data, len(fds)) == (b"", 1)
    for fd in fds:
        os.close(fd)


def test_a_journal_that_takes_nothing_is_waited_for_once(
    place: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    fill(path)
    monkeypatch.setattr(journal, "_ROOM", 0.1)
    began = time.monotonic()
    journal.event(journal.STARTED, "nobody reads this", {}, path=path)
    assert time.monotonic() - began >= 0.1
    monkeypatch.setattr(journal, "_ROOM", 3600.0)
    journal.event(journal.STARTED, "nor this", {}, path=path)
    receive(place)
    journal.event(journal.STARTED, "there is room again", {}, path=path)
    assert not journal._stuck


def test_who_has_to_be_known_waits_until_he_was_looked_up_also_where_there_was_no_room(
    place: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE", float(DEADLINE))
    path = str(tmp_path / "socket")
    fill(path)
    speaker = threading.Thread(
        target=lambda: journal.event(journal.STARTED, "up", {}, moved=True, known=True, path=path)
    )
    speaker.start()
    speaker.join(0.2)
    assert speaker.is_alive()
    while b"MESSAGE=up" not in receive(place):
        pass
    assert speaker.is_alive()
    assert receive(place) == b"\n"
    speaker.join(DEADLINE)
    assert not speaker.is_alive()


def test_without_a_journal_nothing_happens(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    journal.event(journal.STARTED, "unheard", {}, path=str(tmp_path / "socket"))
    assert not journal.is_there(str(tmp_path / "socket"))
    assert os.listdir("/proc/self/fd") == before
    (tmp_path / "file").touch()
    journal.event(journal.STARTED, "unheard", {}, path=str(tmp_path / "file"))


def test_every_event_is_in_the_catalog() -> None:
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.M)
    assert set(parts[1::2]) == journal.EVENTS
    assert len(parts[1::2]) == len(journal.EVENTS)
    for text in parts[2::2]:
        head, _, body = text.partition("\n\n")
        assert [line.partition(":")[0] for line in head.splitlines()] == ["Subject", "Defined-By", "Documentation"]
        assert body.strip()


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl")
def test_journalctl_understands_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    said = subprocess.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")
    listed = subprocess.run(["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True)
    assert {line.split()[0] for line in listed.stdout.splitlines()} == journal.EVENTS
