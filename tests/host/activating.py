"""A service manager in a few lines: starts rkpy with sockets and credentials, as sd_listen_fds(3) has it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tests.host.flavours import DEADLINE, Ground, Result, Running, shell_status

_CODE = """
import fcntl, os, sys
names, fds, command = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",") if fd], sys.argv[3:]
raised = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
for number, fd in enumerate(raised, 3):
    os.dup2(fd, number)
if fds:
    os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))
    if names:
        os.environ["LISTEN_FDNAMES"] = names
os.execv(command[0], command)
"""


class Handed(NamedTuple):
    """What rkpy is started with."""

    sockets: Sequence[tuple[str, socket.socket]] = ()
    environment: Mapping[str, str] = {}


def start(ground: Ground, handed: Handed, *words: object) -> subprocess.Popen[str]:
    fds = [other.fileno() for _, other in handed.sockets]
    names = ":".join(name for name, _ in handed.sockets)
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, names, ",".join(map(str, fds)), *ground.rkpy.command(*words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
        env={**ground.rkpy.environment(), **handed.environment},
    )


def run(ground: Ground, handed: Handed, *words: object) -> Result:
    """A command to its end."""
    process = start(ground, handed, *words)
    out, err = process.communicate(timeout=DEADLINE)
    return Result(shell_status(process.returncode), out, err)


@contextmanager
def running(ground: Ground, handed: Handed, words: Sequence[object], rest: Sequence[str]) -> Iterator[Running]:
    """A command that starts a pod, ended by force when the test leaves it running."""
    file = ground.new("uuid") / "uuid"
    process = start(ground, handed, *words, f"--uuid-file-save={file}", *rest)
    try:
        yield Running(process, file)
    finally:
        if file.exists():
            ground.rkpy("stop", "--force", file.read_text().strip())
        process.communicate(timeout=DEADLINE)


def listening(kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the internet on a port of the kernel's choosing."""
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def port(made: socket.socket) -> int:
    number: int = made.getsockname()[1]
    return number


def ask(made: socket.socket) -> str:
    """What is said to somebody who connects."""
    with socket.create_connection(made.getsockname(), timeout=DEADLINE) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
