"""A virtual machine that keeps its disk, is asked things while it runs, and may lose its power at any moment.

It is the machine of machine.py with a root of its own. On its second disk is an agent that takes commands from a virtio
port and answers with their output and status.

To cut the power is to kill QEMU: what the guest had not written to its disk is gone, half of what it was about to do is
done. What it had written, flushed or not, is in the host's memory and stays; so this is a disk that loses and reorders
nothing of its own cache, and what is tested is rkpy and not the drive.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm.machine import emulator, make_payload

PORT = "rkpy.agent"
DEADLINE = 900.0
"""Seconds for a boot or a command; emulated on a busy machine a boot may take a minute."""

PATIENCE = 900
"""Seconds that something in the machine may take to come true."""

START = f"""\
until [ -e /dev/virtio-ports/{PORT} ]; do sleep 0.1; done
exec /usr/bin/python3 -I -S /payload/agent.py
"""
# A line of JSON each way. Nobody at the other end is an end of file (virtio-console), which passes.
AGENT = f"""\
import json, os, subprocess, time
port = os.open("/dev/virtio-ports/{PORT}", os.O_RDWR)

def say(value):
    data = json.dumps(value).encode() + b"\\n"
    while data:
        data = data[os.write(port, data):]

with open("/proc/sys/kernel/random/boot_id") as file:
    say({{"boot": file.read().strip()}})
heard = b""
while True:
    read = os.read(port, 65536)
    if not read:
        time.sleep(0.1)
    heard += read
    while b"\\n" in heard:
        line, _, heard = heard.partition(b"\\n")
        streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        done = subprocess.run(json.loads(line), **streams)
        say({{"status": done.returncode, "output": done.stdout.decode(errors="replace")}})
"""


class Answer(NamedTuple):
    """What became of a command in the machine; its streams are one."""

    status: int
    output: str


class Persistent:
    """A machine with the disk `place`/disk, off until `boot`."""

    def __init__(self, place: Path, root: Path, content: Mapping[Path, str]) -> None:
        """A copy of `root` becomes its disk. The files `content` are there below /payload."""
        self.place = place
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", root, place / "disk"], check=True)
        (place / "agent.py").write_text(AGENT)
        make_payload(place / "payload", START, {place / "agent.py": "agent.py", **content})
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._heard = b""

    def boot(self) -> None:
        """Switch it on; it is up when this returns."""
        self._heard = b""
        path = self.place / "agent"
        path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *emulator(self.place / "console"), "-no-reboot",
                "-drive", f"file={self.place}/disk,format=raw,if=virtio",
                "-drive", f"file={self.place}/payload,format=raw,if=virtio,snapshot=on",
                "-chardev", f"socket,id=agent,path={path},server=on,wait=off",
                "-device", f"virtserialport,chardev=agent,name={PORT}",
            ],
            stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + DEADLINE
        while self._socket is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                self._socket = connection
            except OSError:
                connection.close()
                assert self._process.poll() is None and time.monotonic() < deadline, self.console
                time.sleep(0.05)
        self._await_boot()

    def reboot(self) -> None:
        """As an administrator does; it is up again when this returns."""
        assert self._process is not None, "it is off"
        # The agent may be gone before it has answered.
        self._send(["systemctl", "reboot", "--no-block"])
        # A new QEMU: after a reset an emulated machine is some three times as slow.
        self._process.wait(timeout=DEADLINE)
        self.cut()
        self.boot()

    def cut(self) -> None:
        """Cut the power. Harmless when it is off."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def run(self, *words: str, deadline: float = DEADLINE) -> Answer:
        """What a command as root comes to."""
        self._send(words)
        answer = self._hear(deadline)
        return Answer(answer["status"], answer["output"])

    def sh(self, script: str, deadline: float = DEADLINE) -> str:
        """The output of a shell script that has to succeed."""
        answer = self.run("/bin/sh", "-euc", script, deadline=deadline)
        assert answer.status == 0, f"{script}\n{answer}"
        return answer.output

    def until(self, script: str, pause: float = 0.2) -> str:
        """Run a script again and again until it succeeds; its output then."""
        # In the guest, so that little time passes between what is waited for and the answer.
        return self.sh(
            f"end=$(($(date +%s) + {PATIENCE})); until {{ {script}\n}}; do sleep {pause};"
            "[ $(date +%s) -lt $end ] || { journalctl --no-pager --lines=40; exit 124; }; done",
            deadline=2 * PATIENCE,
        )

    @property
    def console(self) -> str:
        path = self.place / "console"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _await_boot(self) -> None:
        assert "boot" in self._hear(DEADLINE)
        self.until("systemctl is-active --quiet multi-user.target")

    def _send(self, words: Any) -> None:
        assert self._socket is not None, "it is off"
        self._socket.sendall(json.dumps(list(words)).encode() + b"\n")

    def _hear(self, seconds: float) -> dict[str, Any]:
        """The agent's next line."""
        assert self._socket is not None, "it is off"
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                data = b""
            assert data, f"the machine does not answer:\n{self.console}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value
