"""A real message bus of our own, and what systemd says on it, said by a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stage1.systemd import bus
from stage1.systemd.bus import Bus

CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
"""
SELF = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
NAME = "org.freedesktop.systemd1"


class Daemon(NamedTuple):
    path: str
    """Where it listens."""
    process: subprocess.Popen[bytes]


def _accepts(address: str) -> bool:
    """Whether somebody listens there: a socket has its name a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


@contextmanager
def running(directory: Path) -> Iterator[Daemon]:
    """A dbus-daemon."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("needs dbus-daemon")
    address = f"/tmp/rkpy-bus-{os.getpid()}"
    (directory / "config").write_text(CONFIG.format(path=address))
    process = subprocess.Popen([program, f"--config-file={directory}/config", "--nofork"])
    try:
        end = time.monotonic() + 60
        while not _accepts(address):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        yield Daemon(address, process)
    finally:
        process.kill()
        process.wait()
        os.unlink(address)


def own(connection: Bus, name: str = NAME) -> None:
    """Have the connection known by this name: by default as systemd."""
    connection.call(SELF, "RequestName", "su", (name, 0))


def broadcast(member: str, signature: str, body: list[object]) -> bytes:
    """A signal of systemd's for all who listen, as its bytes."""
    bus.load()
    from dbus_next.constants import MessageType
    from dbus_next.message import Message

    _, path, interface = bus.SYSTEMD
    message: Any = Message(
        path=path, interface=interface, member=member, message_type=MessageType.SIGNAL, signature=signature, body=body,
        serial=1,
    )  # fmt: skip
    return _bytes(message)


def request_stop(sender: Bus, receiver: str, member: str = "RequestStop", text: str = "", serial: int = 77) -> None:
    bus.load()
    from dbus_next.constants import MessageType
    from dbus_next.message import Message

    message: Any = Message(
        destination=receiver, path="/x", interface="org.freedesktop.systemd1.Scope", member=member,
        message_type=MessageType.SIGNAL, signature="s" if text else "", body=[text] if text else [], serial=serial,
    )  # fmt: skip
    sender.socket.sendall(_bytes(message))


def next_call(systemd: Bus) -> Any:
    """The next call that somebody makes of what owns the name, a message of dbus-next."""
    end = time.monotonic() + 60
    while True:
        message = systemd._receive(end)
        if message is not None and message.message_type.name == "METHOD_CALL":
            return message


def reply(sender: Bus, call: Any, signature: str, body: list[object]) -> None:
    from dbus_next.message import Message

    made: Any = Message.new_method_return(call, signature, body)
    made.serial = 99
    sender.socket.sendall(_bytes(made))


def refuse(sender: Bus, call: Any, name: str) -> None:
    """Answer with the error of that name."""
    from dbus_next.message import Message

    made: Any = Message.new_error(call, name, "no")
    made.serial = 99
    sender.socket.sendall(_bytes(made))


def _bytes(message: Any) -> bytes:
    return bytes(message._marshall(False))
