"""The two processes of `rkpy run` under nspawn before there is a pod: to the caller they are one."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.commands import TIMEOUT, Rkpy


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A registry that never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        yield server


@pytest.fixture
def waiting(tmp_path: Path, silent: socket.socket) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`rkpy run` at work as the engine, and that engine's PID."""
    rkpy = Rkpy(tmp_path)
    image = f"docker://127.0.0.1:{silent.getsockname()[1]}/a:b"
    words = ("--insecure-options=all-fetch", "run", "--stage1=nspawn", "--net=none", image)
    with subprocess.Popen(
        rkpy.command(*words), stderr=subprocess.PIPE, text=True, env=rkpy.environment(), start_new_session=True
    ) as process:
        connection, _ = silent.accept()
        (engine,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield process, int(engine)
        process.kill()
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("whom", ["called", "engine", "both"])
def test_what_ends_one_ends_both(waiting: tuple[subprocess.Popen[str], int], number: int, whom: str) -> None:
    process, engine = waiting
    pidfd = os.pidfd_open(engine)
    if whom == "both":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "called" else engine, number)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in said
    assert select.select([pidfd], [], [], TIMEOUT)[0]
    os.close(pidfd)


def test_the_engines_failure_is_the_commands(tmp_path: Path) -> None:
    done = Rkpy(tmp_path)("run", "--stage1=nspawn", "--net=none", "--pull-policy=never", "example.com/nothing")
    assert done.status == 254
    assert done.err.count("\n") == 1
    assert done.err.startswith("rkpy: run: ")


def test_a_signal_when_the_engine_has_just_ended(tmp_path: Path) -> None:
    code = (
        "import os, signal, subprocess, sys; from stage1 import boot; "
        "gone = subprocess.Popen(['true']); gone.wait(); ending = boot._Ending(gone.pid); "
        "os.kill(os.getpid(), signal.SIGTERM); print('alive')"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, env=Rkpy(tmp_path).environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
