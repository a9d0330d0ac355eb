"""Stands in for the service manager of a pod: a socket that hears what a service tells of itself (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.host.flavours import DEADLINE, Ground, Running, shell_status

PAYLOAD = Path(__file__).parent / "payload"


def build_service(directory: Path) -> bytes:
    """The scripted service (payload/service.c)."""
    path = directory / "service"
    subprocess.run(["cc", "-static", "-O1", "-o", path, PAYLOAD / "service.c"], check=True)
    return path.read_bytes()


class Message(NamedTuple):
    pid: int
    """In whose name it was sent."""
    fields: dict[str, str]


class Manager:
    """One socket, and what has come so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[Message] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)

    def close(self) -> None:
        self.socket.close()

    def hear(self, timeout: float) -> bool:
        """Take one message, if one comes within so many seconds."""
        self.socket.settimeout(max(timeout, 0.001))
        try:
            data, extra, _, _ = self.socket.recvmsg(1 << 16, 1 << 12)
        except TimeoutError:
            return False
        pid = next((struct.unpack("3i", raw[:12])[0] for _, kind, raw in extra if kind == socket.SCM_CREDENTIALS), 0)
        self.heard.append(Message(pid, dict(line.split("=", 1) for line in data.decode().split("\n"))))
        return True

    def fill(self) -> None:
        """Leave no room for another message."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self.socket.getsockname())
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.send(b"FILLED=1")

    def drain(self) -> None:
        while self.hear(0):
            pass

    def until(self, key: str, value: str | None = None, *, after: int = 0) -> Message:
        """The first message with this field; any value will do for None. Those before `after` do not count."""
        end = time.monotonic() + DEADLINE
        while True:
            for message in self.heard[after:]:
                if key in message.fields and value in (None, message.fields[key]):
                    return message
            assert time.monotonic() < end, f"no {key}={value} in {self.heard}"
            self.hear(0.2)

    def until_silent(self, key: str, seconds: float = 1.0) -> None:
        """Wait until no message with this field has come for so long."""
        end, before = time.monotonic() + DEADLINE, -1
        while (count := len(self.values(key))) != before:
            assert time.monotonic() < end, f"{key} never stops: {self.heard}"
            before = count
            time.sleep(seconds)

    def values(self, key: str) -> list[str]:
        self.drain()
        return [message.fields[key] for message in self.heard if key in message.fields]


@contextmanager
def manager(directory: Path, address: str = "") -> Iterator[Manager]:
    made = Manager(address or str(directory / "notify"))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def service(
    ground: Ground, words: Sequence[object], apps: Sequence[Sequence[str]], **environment: str
) -> Iterator[Running]:
    """A command that starts a pod, with variables of a service manager's; ended by force when it is left running."""
    file = ground.new("uuid") / "uuid"
    joined: list[str] = []
    for app in apps:
        joined += [*(["---"] if joined else []), *app]
    process = subprocess.Popen(
        ground.rkpy.command(*words, f"--uuid-file-save={file}", *joined),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ground.rkpy.environment(), **environment},
        start_new_session=True,  # Services have no terminal.
    )
    try:
        yield Running(process, file)
    finally:
        if file.exists():
            ground.rkpy("stop", "--force", file.read_text().strip())
        try:
            process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, 9)
            process.communicate()
            raise


def status(process: subprocess.Popen[str]) -> int:
    process.wait(timeout=DEADLINE)
    return shell_status(process.returncode)
