"""The host side of an app's streams: real processes, pipes, sockets and terminals."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import PodError
from stage1 import streams as streams_module
from stage1.logs import LogFile
from stage1.loop import READ, Loop
from stage1.outlet import LIMIT, Outlet
from stage1.streams import AppStreams, Foreground, Streams, when_all_written
from tests.stage1.test_logs import output

DEADLINE = 120.0
BIG = b"".join(b"%07d\n" % number for number in range(200_000))
"""More than any pipe or buffer on the way takes."""


class Lab:
    """A loop, the caller's output as pipes, and a way to run the loop until something is so."""

    def __init__(self, directory: Path) -> None:
        self.pod = directory
        self.loop = Loop()
        self.out = os.pipe()
        self.err = os.pipe()
        self.fds = {*self.out, *self.err}

    def foreground(self, *, prefixed: bool = False) -> Foreground:
        return Foreground(self.loop, prefixed=prefixed, fds=(self.out[1], self.err[1]))

    def app(
        self, *modes: str, name: str = "app", foreground: Foreground | None = None, of_caller: bool = False
    ) -> AppStreams:
        log = LogFile(str(self.pod), name)
        return AppStreams(self.loop, name, Streams(*modes), log=log, foreground=foreground, of_caller=of_caller)

    def start(self, app: AppStreams, *command: str) -> subprocess.Popen[bytes]:
        stdin, stdout, stderr = app.child_fds()
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)
        app.started(process.pid)
        return process

    def shell(self, app: AppStreams, script: str) -> subprocess.Popen[bytes]:
        return self.start(app, "sh", "-c", script)

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until `condition` holds, which is looked at again and again."""
        deadline = time.monotonic() + DEADLINE

        def look() -> None:
            if condition():
                self.loop.stop()
            elif time.monotonic() > deadline:
                pytest.fail("it does not become so")
            else:
                self.loop.call_later(0.005, look)

        look()
        self.loop.run()

    def end(self, app: AppStreams, process: subprocess.Popen[bytes], *others: Foreground) -> None:
        """What the monitor does when an app ends."""
        self.until(lambda: process.poll() is not None)
        app.drain()
        app.close()
        when_all_written([app, *others], self.loop.stop)
        self.loop.run()

    def collect(self, fd: int) -> bytearray:
        """Read `fd` in the loop from now on."""
        got = bytearray()
        os.set_blocking(fd, False)

        def on_ready(_events: int) -> None:
            data = os.read(fd, 1 << 16)
            got.extend(data)
            if not data:
                self.loop.remove(fd)

        self.loop.add(fd, READ, on_ready)
        return got


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.loop.close()
    for fd in made.fds:
        os.close(fd)


# --- logs and the caller


def test_both_streams_are_logged_and_shown(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app(foreground=foreground)
    process = lab.shell(app, "cat; echo out; echo err >&2; printf tail")
    app.close_child_ends()
    out, err = lab.collect(lab.out[0]), lab.collect(lab.err[0])
    lab.end(app, process, foreground)
    lab.until(lambda: out == b"out\ntail" and err == b"err\n")
    assert output(lab.pod) == b"out\ntail"
    assert output(lab.pod, stream="stderr") == b"err\n"


def test_null_and_stream_are_not_logged(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app("null", "null", "stream", foreground=foreground)
    process = lab.shell(app, "echo out; echo err >&2")
    lab.end(app, process, foreground)
    assert not output(lab.pod)
    assert not output(lab.pod, stream="stderr")
    assert fcntl.ioctl(lab.out[0], termios.FIONREAD, bytes(4)) == bytes(4)
    assert fcntl.ioctl(lab.err[0], termios.FIONREAD, bytes(4)) == bytes(4)


def test_a_restart_writes_on(lab: Lab) -> None:
    """No end of the output is seen between two processes of the app."""
    app = lab.app()
    for word in ("one", "two"):
        process = lab.shell(app, f"printf {word}")
        lab.until(lambda process=process: process.poll() is not None)  # type: ignore[misc]
        app.drain()
    lab.end(app, process)
    assert output(lab.pod) == b"one\ntwo"


def test_whole_lines_of_several_apps(lab: Lab) -> None:
    foreground = lab.foreground(prefixed=True)
    apps = [lab.app(name=name, foreground=foreground) for name in ("one", "two")]
    script = "for i in $(seq 500); do printf half; echo line; done; printf end"
    processes = [lab.shell(app, script) for app in apps]
    out = lab.collect(lab.out[0])
    for app, process in zip(apps, processes, strict=True):
        lab.until(lambda process=process: process.poll() is not None)  # type: ignore[misc]
        app.drain()
        app.close()
    expected = sum(501 * (len(f"one[{process.pid}]: halfline\n")) - 5 for process in processes)
    lab.until(lambda: len(out) >= expected)
    found = sorted(out.decode().splitlines())
    prefixes = [f"{name}[{process.pid}]: " for name, process in zip(("one", "two"), processes, strict=True)]
    assert found == sorted([f"{prefix}halfline" for prefix in prefixes] * 500 + [f"{prefix}end" for prefix in prefixes])


def test_one_pipe_for_both_streams_is_never_cut_in_a_line(lab: Lab) -> None:
    foreground = Foreground(lab.loop, prefixed=True, fds=(lab.out[1], lab.out[1]))
    app = lab.app(foreground=foreground)
    process = lab.shell(app, "seq 20000 & seq 20000 >&2; wait")
    out = lab.collect(lab.out[0])
    lab.end(app, process, foreground)
    lab.until(lambda: out.count(b"\n") == 40_000)
    head = f"app[{process.pid}]: ".encode()
    assert all(line.startswith(head) and line[len(head) :].isdigit() for line in bytes(out).splitlines())


def test_a_full_foreground_stops_the_app_and_not_the_loop(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app(foreground=foreground)
    other = lab.app(name="other")
    process = lab.shell(app, "seq -f %07g 0 199999")
    quick = lab.shell(other, "seq -f %07g 0 199999")
    lab.end(other, quick)
    assert output(lab.pod, "other") == BIG, "another app is not held up"
    lab.until(lambda: foreground.outlet("stdout").full)
    lab.loop.call_later(0.1, lab.loop.stop)
    lab.loop.run()
    assert process.poll() is None
    assert len(output(lab.pod)) < len(BIG)
    out = lab.collect(lab.out[0])
    lab.end(app, process, foreground)
    lab.until(lambda: out == BIG)
    assert output(lab.pod) == BIG


def test_a_closed_foreground_is_forgotten(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app(foreground=foreground)
    os.close(lab.out[0])
    lab.fds.discard(lab.out[0])
    process = lab.shell(app, "seq -f %07g 0 199999")
    lab.end(app, process, foreground)
    assert output(lab.pod) == BIG


def test_a_foreground_closed_while_it_is_full_lets_the_app_go_on(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app(foreground=foreground)
    process = lab.shell(app, "seq -f %07g 0 199999")
    lab.until(lambda: foreground.outlet("stdout").full)
    os.close(lab.out[0])
    lab.fds.discard(lab.out[0])
    lab.end(app, process, foreground)
    assert output(lab.pod) == BIG


def test_the_callers_descriptors_stay_blocking(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app(foreground=foreground)
    process = lab.shell(app, "seq 20000")
    out = lab.collect(lab.out[0])
    lab.end(app, process, foreground)
    lab.until(lambda: out.endswith(b"\n20000\n"))
    assert os.get_blocking(lab.out[1])


@pytest.mark.parametrize("target", ["file", "/dev/null", "/dev/full"])
def test_a_foreground_that_is_no_pipe(lab: Lab, target: str) -> None:
    path = str(lab.pod / "file") if target == "file" else target
    with open(path, "wb") as file:
        foreground = Foreground(lab.loop, prefixed=False, fds=(file.fileno(), file.fileno()))
        app = lab.app(foreground=foreground)
        process = lab.shell(app, "seq -f %07g 0 199999")
        lab.end(app, process, foreground)
    assert output(lab.pod) == BIG
    if target == "file":
        assert Path(path).read_bytes() == BIG


def test_a_socket_as_foreground(lab: Lab) -> None:
    """A description of its own cannot be had of a socket: small writes when it is ready."""
    near, far = socket.socketpair()
    with near, far:
        foreground = Foreground(lab.loop, prefixed=False, fds=(near.fileno(), near.fileno()))
        app = lab.app(foreground=foreground)
        process = lab.shell(app, "seq -f %07g 0 199999")
        lab.until(lambda: foreground.outlet("stdout").full)
        out = lab.collect(far.fileno())
        lab.end(app, process, foreground)
        lab.until(lambda: out == BIG)


def test_a_process_that_stays_behind_does_not_hold_up_the_end(lab: Lab) -> None:
    app = lab.app()
    process = lab.shell(app, "echo out; (trap '' PIPE; while :; do echo noise || exit; done) &")
    lab.end(app, process)
    assert output(lab.pod).startswith(b"out\n")


@pytest.fixture
def callers() -> Iterator[Callable[[int, int], None]]:
    """Puts a descriptor in the place of one of the caller's own, for the time of a test."""
    saved = [os.dup(fd) for fd in range(3)]

    def put(fd: int, number: int) -> None:
        os.dup2(fd, number)
        os.close(fd)

    yield put
    for number, fd in enumerate(saved):
        put(fd, number)


Put = Callable[[int, int], None]


def test_the_callers_own_pipes_are_given_and_left_alone(lab: Lab, callers: Put) -> None:
    for number in range(3):
        reading, writing = os.pipe()
        lab.fds.add(reading if number else writing)
        callers(writing if number else reading, number)
    app = lab.app("stream", of_caller=True)
    assert app.child_fds() == (0, 1, 2)
    app.close_child_ends()
    app.drain()
    app.close()
    os.fstat(0)
    assert app.endpoints() == ()


def test_the_callers_files_are_given_by_pipes(lab: Lab, callers: Put, tmp_path: Path) -> None:
    """And read as far as the app has read them."""
    (tmp_path / "in").write_bytes(b"one\n" + b"x" * 200_000 + b"\n")
    os.mkfifo(tmp_path / "fifo")
    callers(os.open(tmp_path / "in", os.O_RDONLY), 0)
    callers(os.open(tmp_path / "fifo", os.O_RDWR), 1)
    callers(os.open(os.devnull, os.O_WRONLY), 2)
    app = lab.app("stream", foreground=lab.foreground(), of_caller=True)
    process = lab.shell(app, "read -r line; echo got $line")
    lab.end(app, process)
    assert os.read(lab.out[0], 100) == b"got one\n"
    assert os.lseek(0, 0, os.SEEK_CUR) == len("one\n")


# --- attached clients


def _attach(lab: Lab, app: AppStreams, *names: str) -> list[socket.socket]:
    pairs = [socket.socketpair() for _ in names]
    app.attach(names, [far.detach() for _, far in pairs])
    return [near for near, _ in pairs]


def test_clients_get_output_and_give_input(lab: Lab) -> None:
    app = lab.app("stream", "stream", "log")
    assert app.endpoints() == ("stdin", "stdout", "stderr")
    process = lab.shell(app, "cat; echo end >&2")
    app.close_child_ends()
    stdin, stdout, stderr = _attach(lab, app, "stdin", "stdout", "stderr")
    out, err = lab.collect(stdout.fileno()), lab.collect(stderr.fileno())
    stdin.sendall(b"hello\n")
    lab.until(lambda: out == b"hello\n")
    rest = memoryview(BIG)
    stdin.setblocking(False)

    def feed() -> bool:
        nonlocal rest
        try:
            rest = rest[stdin.send(rest) :]
        except BlockingIOError:
            pass
        return not rest

    lab.until(feed)
    stdin.shutdown(socket.SHUT_WR)  # the end of the input reaches the app after all of it
    lab.end(app, process)
    lab.until(lambda: out == b"hello\n" + BIG and err == b"end\n")
    assert not output(lab.pod)
    assert output(lab.pod, stream="stderr") == b"end\n"


def test_a_client_that_leaves_does_not_end_the_input(lab: Lab) -> None:
    app = lab.app("stream", "log", "log")
    process = lab.shell(app, "read a; read b; echo $a $b")
    for word in (b"one\n", b"two\n"):
        (stdin,) = _attach(lab, app, "stdin")
        stdin.sendall(word)
        stdin.close()
        lab.until(lambda: not app._clients)
    lab.end(app, process)
    assert output(lab.pod) == b"one two\n"


def test_a_stuck_client_is_sent_away(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "STUCK", 0.3)
    app = lab.app()
    stuck, brisk = (_attach(lab, app, "stdout")[0] for _ in range(2))
    out = lab.collect(brisk.fileno())
    process = lab.shell(app, "seq -f %07g 0 199999")
    lab.until(lambda: any(client.full for client in app._clients))
    assert process.poll() is None, "it waits for a while"
    lab.end(app, process)
    lab.until(lambda: out == BIG)
    assert output(lab.pod) == BIG
    stuck.setblocking(True)
    assert len(b"".join(iter(lambda: stuck.recv(1 << 16), b""))) < len(BIG)


@pytest.mark.parametrize("lines", [50_000, 200_000])
@pytest.mark.parametrize("stays", [True, False])
def test_a_client_has_time_as_long_as_it_reads(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, lines: int, stays: bool
) -> None:
    """When the app has ended, be it that the client has held it up or not."""
    monkeypatch.setattr(streams_module, "STUCK", 1e6)
    app = lab.app()
    (far,) = _attach(lab, app, "stdout")
    (client,) = app._clients
    far.setblocking(False)
    process = lab.shell(app, f"seq -f %07g 0 {lines - 1}")
    lab.until(lambda: process.poll() is not None or client.full)
    process.kill()
    process.wait()
    app.drain()
    app.close()
    done: list[int] = []
    app.when_written(lambda: done.append(1))
    got = bytearray()

    def after_reading() -> bool:
        with contextlib.suppress(BlockingIOError):
            got.extend(far.recv(1 << 13))
        return True

    def time_passes() -> None:
        for timer in lab.loop._timers[:]:
            timer.cancel()
            timer.callback()

    before = client._outlet.waiting
    lab.until(lambda: after_reading() and client._outlet.waiting < before and not client.full)
    time_passes()
    assert not done, "it has read"
    if stays:
        lab.until(lambda: after_reading() and done)
        far.setblocking(True)
        got.extend(b"".join(iter(lambda: far.recv(1 << 16), b"")))
        assert got == output(lab.pod)
    else:
        time_passes()
        assert done
    far.close()


def test_a_client_that_has_died(lab: Lab) -> None:
    app = lab.app()
    (client,) = _attach(lab, app, "stdout")
    process = lab.shell(app, "seq -f %07g 0 199999")
    lab.until(lambda: any(client.full for client in app._clients))
    client.close()
    lab.end(app, process)
    assert output(lab.pod) == BIG


def test_what_cannot_be_attached_to(lab: Lab) -> None:
    app = lab.app()
    assert app.endpoints() == ("stdout", "stderr")
    near, far = socket.socketpair()
    fd = far.detach()
    with near, pytest.raises(PodError, match="no stdin and no tty-in"):
        app.attach(["stdin", "tty-in"], [fd])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    with pytest.raises(PodError, match="cannot be attached to"):
        app.attach(["stdout"], [os.open("/dev/null", os.O_RDWR)])


# --- terminals


def _terminal_app(
    lab: Lab, script: str, foreground: Foreground | None = None
) -> tuple[AppStreams, subprocess.Popen[bytes]]:
    app = lab.app("tty", "tty", "tty", foreground=foreground)
    assert app.child_fds() == (-1, -1, -1)
    master, slave = os.openpty()
    process = subprocess.Popen(["sh", "-c", script], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    app.set_terminal(master)
    app.started(process.pid)
    return app, process


def test_a_terminal_is_one_stream_both_ways(lab: Lab) -> None:
    foreground = lab.foreground()
    app, process = _terminal_app(lab, "stty -echo; echo ready; read a; echo got $a; stty size", foreground=foreground)
    assert app.endpoints() == ("tty-in", "tty-out")
    (client,) = _attach(lab, app, "tty")
    out, seen = lab.collect(client.fileno()), lab.collect(lab.out[0])
    lab.until(lambda: b"ready" in out)
    app.resize(33, 99)
    client.sendall(b"word\n")
    lab.end(app, process, foreground)
    lab.until(lambda: out == b"ready\r\ngot word\r\n33 99\r\n")
    lab.until(lambda: seen == out)
    assert output(lab.pod) == out


def test_a_new_terminal_after_a_restart(lab: Lab) -> None:
    app, process = _terminal_app(lab, "stty -echo; echo one; read a")
    lab.until(lambda: b"one" in output(lab.pod))
    process.kill()
    lab.until(lambda: process.poll() is not None)
    app.drain()
    master, slave = os.openpty()
    process = subprocess.Popen(["sh", "-c", "stty -echo; echo two; read a; echo $a"], stdin=slave, stdout=slave)
    os.close(slave)
    app.set_terminal(master)
    app.started(process.pid)
    lab.until(lambda: b"two" in output(lab.pod))
    assert app.input is not None
    app.input.write(b"three\n")
    lab.end(app, process)
    assert output(lab.pod) == b"one\r\ntwo\r\nthree\r\n"


def test_a_terminal_of_an_app_that_is_over_is_closed(lab: Lab, tmp_path: Path) -> None:
    """Its log is closed, and the number of that descriptor another file's, to which a machine's guest could write."""
    app = lab.app("tty", "tty", "tty")
    app.close()
    others = [os.open(tmp_path / f"other{number}", os.O_CREAT | os.O_RDWR) for number in range(8)]
    ours, theirs = socket.socketpair()
    theirs.send(b"forged\n")
    app.set_terminal(ours.detach())
    lab.loop.call_later(0, lab.loop.stop)
    lab.loop.run()
    assert app.input is None
    assert [os.fstat(fd).st_size for fd in others] == [0] * len(others)
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)  # closed, and nothing of it was read
    theirs.close()
    for fd in others:
        os.close(fd)


def test_many_terminals_wait_once_for_a_full_foreground(lab: Lab) -> None:
    foreground = lab.foreground()
    app = lab.app("tty", "tty", "tty", foreground=foreground)
    outlet = foreground.outlet("stdout")
    while not outlet.full:
        outlet.write(bytes(LIMIT))
    ends = [socket.socketpair() for _ in range(20)]
    for ours, _ in ends:
        app.set_terminal(ours.detach())
    assert len(outlet._room) == 1
    ends[-1][1].send(b"at last\n")
    seen = lab.collect(lab.out[0])
    lab.until(lambda: seen.endswith(b"at last\n"))
    app.close()
    foreground.close()
    for _, theirs in ends:
        theirs.close()


def test_much_output_on_a_terminal(lab: Lab) -> None:
    app, process = _terminal_app(lab, "stty -opost; seq -f %07g 0 199999")
    lab.end(app, process)
    assert output(lab.pod) == BIG


# --- outlets


def test_an_outlet_on_a_terminal_that_is_stopped(lab: Lab) -> None:
    master, slave = os.openpty()
    outlet = Outlet(lab.loop, slave, nonblocking=False)
    outlet.write(b"x" * (LIMIT * 4))
    assert outlet.full
    lab.loop.call_later(0.05, lab.loop.stop)
    lab.loop.run()
    assert outlet.full
    got = lab.collect(master)
    lab.until(lambda: len(got) == LIMIT * 4)
    assert not outlet.full
    outlet.close()
    os.close(slave)
    lab.loop.remove(master)
    os.close(master)


def test_descriptors_are_given_back(lab: Lab) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # What earlier tests left must not be closed meanwhile.
    before = count()
    foreground = lab.foreground()
    app = lab.app("stream", "log", "log", foreground=foreground)
    clients = _attach(lab, app, "stdin", "stdout")
    process = lab.start(app, sys.executable, "-c", "print(1)")
    lab.end(app, process)
    foreground.close()
    for client in clients:
        client.close()
    assert count() == before
