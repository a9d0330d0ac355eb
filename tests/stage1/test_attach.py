"""The client that attaches: which endpoints a mode means, and the session with an app, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from stage1.attach import choose
from stage1.streams import AppStreams
from tests.stage1.test_logs import output
from tests.stage1.test_streams import BIG, Lab, lab
from tests.stage1.test_terminal import KEY, calling

__all__ = ["lab"]
ROOT = Path(__file__).parent.parent.parent
STREAMS = ("stdin", "stdout", "stderr")
TERMINAL = ("tty-in", "tty-out")

CLIENT = """
import os, socket, sys
from stage1.attach import attach
control = socket.socket(fileno=int(sys.argv[1]))
def connect(names, fds):
    socket.send_fds(control, [" ".join(names).encode()], list(fds))
def resize(rows, columns):
    control.send(b"%d %d" % (rows, columns))
attach(sys.argv[2:], connect, resize=resize)
print("left", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("mode", "available", "chosen"),
    [
        ("auto", STREAMS, STREAMS),
        ("auto", ("stdout", "stderr"), ("stdout", "stderr")),
        ("auto", TERMINAL, ("tty",)),
        ("auto", ("stderr", *TERMINAL), ("tty",)),
        ("tty", TERMINAL, ("tty",)),
        ("tty-out", TERMINAL, ("tty-out",)),
        ("tty-in,tty-out", TERMINAL, ("tty",)),
        ("stderr,stdin", STREAMS, ("stdin", "stderr")),
    ],
)
def test_modes(mode: str, available: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    assert choose(mode, available) == chosen


@pytest.mark.parametrize(
    ("mode", "available", "said"),
    [
        ("", STREAMS, "invalid --mode"),
        ("stdin,sterr", STREAMS, "invalid --mode"),
        ("tty", STREAMS, "no tty-in and no tty-out to attach to"),
        ("stdin", ("stdout",), "no stdin to attach to"),
        ("auto", (), "nothing to attach to"),
        ("tty,stdin", (*STREAMS, *TERMINAL), "at the same time"),
    ],
)
def test_modes_that_are_refused(mode: str, available: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose(mode, available)


def _serve(lab: Lab, app: AppStreams) -> tuple[socket.socket, socket.socket]:
    """A control socket as the monitor might have one: its own end, and the client's."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def on_ready(_events: int) -> None:
        data, fds, _, _ = socket.recv_fds(near, 4096, 8)
        if fds:
            app.attach(data.decode().split(), fds)
        elif data:
            rows, columns = map(int, data.split())
            app.resize(rows, columns)
        else:
            lab.loop.remove(near.fileno())

    lab.loop.add(near.fileno(), 1, on_ready)
    return near, far


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_pipeline_through_an_app(lab: Lab, kind: str) -> None:
    """All of the input reaches the app, its end too, and all of the output comes back."""
    app = lab.app("stream", "stream", "stream")
    process = lab.shell(app, "cat; echo end >&2")
    app.close_child_ends()
    near, far = _serve(lab, app)
    (lab.pod / "input").write_bytes(BIG)
    with near, far, open(lab.pod / "input", "rb") as file, open(lab.pod / "errors", "w+b") as errors:
        feeder = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) if kind == "pipe" else None
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(far.fileno()), *STREAMS],
            stdin=feeder.stdout if feeder else file,
            stdout=lab.out[1],
            stderr=errors,
            pass_fds=(far.fileno(),),
            cwd=ROOT,
        )
        out = lab.collect(lab.out[0])
        lab.end(app, process)
        lab.until(lambda: client.poll() is not None and len(out) == len(BIG))
        assert out == BIG
        errors.seek(0)
        assert errors.read() == b"end\nleft\n"
        if feeder:
            assert feeder.stdout
            feeder.stdout.close()
            assert feeder.wait() == 0


def test_only_input(lab: Lab) -> None:
    """The client stays until the app's side has all of it."""
    app = lab.app("stream", "log", "log")
    process = lab.shell(app, "sleep 0.3; wc -c")
    near, far = _serve(lab, app)
    with near, far:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(far.fileno()), "stdin"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(far.fileno(),),
            cwd=ROOT,
        )
        assert client.stdin
        client.stdin.write(b"x" * 5000)
        client.stdin.close()
        app.close_child_ends()
        lab.until(lambda: client.poll() == 0)
        lab.end(app, process)
    assert output(lab.pod) == b"5000\n"


def test_a_terminal_is_attached_to_and_left(lab: Lab) -> None:
    app = lab.app("tty", "tty", "tty")
    master, slave = os.openpty()
    script = "stty -echo; echo ready; read a; stty size; echo got $a; read b"
    process = subprocess.Popen(["sh", "-c", script], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    app.set_terminal(master)
    near, far = _serve(lab, app)
    with near, far:
        with calling(CLIENT, str(far.fileno()), "tty", pass_fds=(far.fileno(),)) as caller:
            lab.until(lambda: caller.is_raw() and app._clients)
            caller.type(b"word\r")
            lab.until(lambda: b"got word\r\n" in caller.look())
            assert b"30 100\r\n" in caller.seen
            caller.type(KEY * 3)
            lab.until(lambda: b"left" in caller.look())
            caller.ended_well()
        lab.until(lambda: not app._clients)
        assert process.poll() is None, "the app goes on"
        process.kill()
        lab.end(app, process)
