"""What is done about pasta's process besides starting it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import syscalls, users
from common.errors import NetworkError
from stage1 import poddir
from stage1.network import detach, pasta, record, usermode
from stage1.network.pasta import Decided
from stage1.network.record import Attachment, Record

UUID = "c6a1d1b2-9c5b-4c61-9d0d-0a8a5f5c2b11"
CONF = pasta.network("default", Decided("/usr/bin/pasta", ("172.16.29.2/24",), ("172.16.29.1",))).conf


@pytest.fixture
def pod(tmp_path: Path) -> str:
    directory = tmp_path / UUID
    (directory / "net").mkdir(parents=True)
    return str(directory)


@pytest.fixture
def process(pod: str) -> Iterator[subprocess.Popen[bytes]]:
    """Which the pod's directory says is its pasta."""
    with subprocess.Popen(["sleep", "1000"]) as made:
        note(pod, made.pid)
        yield made
        made.kill()


def note(pod: str, pid: int, later: int = 0, boot: str = "") -> None:
    started = poddir.start_time(pid)
    assert started is not None
    Path(pod, usermode.PROCESS).write_text(f"{pid} {started + later} {boot or poddir.boot_id()}\n")


def test_it_is_ended_and_its_networks_are_over(pod: str, process: subprocess.Popen[bytes]) -> None:
    record.write(pod, Record(UUID, attachments=(Attachment("default", "eth0", CONF),)))
    assert usermode.is_alive(pod)
    assert detach.detach(pod) == []
    assert process.wait(60) == -signal.SIGKILL
    assert not usermode.is_alive(pod)
    found = record.read(pod)
    assert found is not None
    assert [attachment.over for attachment in found.attachments] == [True]
    assert not Path(pod, usermode.PROCESS).exists()
    assert detach.detach(pod) == []


def test_what_keeps_the_pod_from_the_hosts_loopback_is_not_done_without(
    pod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers, and services with SystemCallFilter=, may have no pidfd_getfd(2)."""
    monkeypatch.setattr(usermode, "_TUN", os.devnull)
    refused = PermissionError(errno.EPERM, "")
    monkeypatch.setattr(syscalls, "pidfd_getfd", lambda *_: (_ for _ in ()).throw(refused))
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as made:
        note(pod, made.pid)
        with pytest.raises(NetworkError, match="loopback: pidfd_getfd: operation not permitted") as found:
            usermode._keep_from_loopback(pod, -1)
        made.kill()
    assert "filter of system calls" in found.value.hint


@pytest.mark.parametrize(("later", "boot"), [(1, ""), (0, "an-earlier-boot")])
def test_whoever_has_its_pid_by_now_is_left_alone(
    pod: str, process: subprocess.Popen[bytes], later: int, boot: str
) -> None:
    note(pod, process.pid, later, boot)
    record.write(pod, Record(UUID, attachments=(Attachment("default", "eth0", CONF),)))
    assert not usermode.is_alive(pod)
    assert detach.detach(pod) == []
    assert process.poll() is None


def test_a_damaged_record_does_not_keep_it(
    pod: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "confined", lambda: True)
    Path(pod, record.RECORD).write_text("{")
    problems = detach.detach(pod)
    assert len(problems) == 1
    assert "makes no sense" in problems[0]
    assert process.wait(60) == -signal.SIGKILL
    assert detach.detach(pod) == []


def test_ports_are_those_that_were_asked_for() -> None:
    mapping = {"protocol": "tcp", "hostPort": 8080, "containerPort": 80}
    attachments = (
        Attachment("default", "eth0", CONF, runtime='{"portMappings": [{"protocol": "tcp", "hostPort": 8080, '
                                                    '"containerPort": 80}]}'),
        Attachment("damaged", "eth1", CONF, runtime="["),
    )  # fmt: skip
    assert usermode.published(Record(UUID, attachments=attachments)) == [mapping]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"Failed to send 54 bytes to syslog\nFailed to bind any port for '-t 82:80', exiting\n",
         "Failed to bind any port for '-t 82:80'"),
        (b"\x1b[31mred\n\n", "[31mred"),
        (b"", ""),
    ],
)  # fmt: skip
def test_its_last_words_are_one_plain_line(said: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "said"
    file.write_bytes(said)
    with file.open("rb") as opened:
        assert usermode._last_words(opened.fileno()) == words
