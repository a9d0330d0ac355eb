"""Terminals, real ones: a process with a controlling terminal of its own, whose other side is the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.terminal import LEAVE_KEY, Escape, RawMode, get_size, open_pty, set_size

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 120.0
KEY = bytes([LEAVE_KEY])
MULTIPLEXER = "/dev/pts/ptmx" if os.access("/dev/pts/ptmx", os.R_OK | os.W_OK) else "/dev/ptmx"

PROXY = """
import os, sys
from stage1.terminal import open_pty, take_terminal, proxy
master, slave = open_pty(os.getuid(), multiplexer=sys.argv[1])
if os.fork() == 0:
    take_terminal(slave)
    os.close(master)
    os.execvp("sh", ["sh", "-c", sys.argv[2]])
os.close(slave)
proxy(master)
print("left", flush=True)
"""

BACKGROUND = """
if os.fork():
    os.wait()
    sys.exit()
os.setpgid(0, 0)
proxy(master)
"""


class Caller:
    """A process in the foreground of a terminal, which the test sits at."""

    def __init__(self, code: str, *words: str, pass_fds: tuple[int, ...] = ()) -> None:
        self.master, self.slave = os.openpty()
        set_size(self.master, 30, 100)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=ROOT,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.set_blocking(self.master, False)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def look(self) -> bytes:
        try:
            self.seen += os.read(self.master, 65536)
        except BlockingIOError:
            time.sleep(0.005)
        return self.seen

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.seen
            self.look()

    def shows(self, text: bytes) -> None:
        self.until(lambda: text in self.seen)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def ended_well(self) -> None:
        """It ended, and the terminal is as it was."""
        self.until(lambda: self.process.poll() is not None)
        assert termios.tcgetattr(self.slave) == self.before


@contextmanager
def calling(code: str, *words: str, pass_fds: tuple[int, ...] = ()) -> Iterator[Caller]:
    caller = Caller(code, *words, pass_fds=pass_fds)
    try:
        yield caller
    finally:
        caller.process.kill()
        caller.process.wait()
        os.close(caller.master)
        os.close(caller.slave)


def proxied(script: str) -> AbstractContextManager[Caller]:
    return calling(PROXY, MULTIPLEXER, script)


# --- the keys that leave


@given(data=st.lists(st.sampled_from([b"a", KEY, KEY]), max_size=30).map(b"".join), cut=st.integers(0, 30))
def test_three_in_a_row_leave_however_they_come(data: bytes, cut: int) -> None:
    escape = Escape(clock=lambda: 0.0)
    text, left = b"", False
    for part in (data[:cut], data[cut:]):
        if not left:
            more, left = escape.feed(part)
            text += more
    at = data.find(KEY * 3)
    assert left == (at >= 0)
    assert text == (data[: at + 2] if left else data)


def test_three_slow_ones_do_not_leave() -> None:
    now = 0.0
    escape = Escape(clock=lambda: now)
    for _ in range(10):
        assert escape.feed(KEY) == (KEY, False)
        now += 0.6
    now += 1.0
    escape.feed(KEY)
    now += 0.1
    escape.feed(KEY)
    now += 0.1
    assert escape.feed(KEY) == (b"", True)


# --- raw mode


def test_raw_mode_is_left_as_it_was_found() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    with pytest.raises(ZeroDivisionError), RawMode(slave):
        os.write(master, b"\x03\x1a\x04\x11\r")
        assert os.read(slave, 100) == b"\x03\x1a\x04\x11\r"
        raise ZeroDivisionError
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_size() -> None:
    master, slave = os.openpty()
    set_size(master, 12, 34)
    assert get_size(slave) == (12, 34)
    os.close(master)
    os.close(slave)
    with open("/dev/null") as file:
        assert get_size(file.fileno()) == (0, 0)


# --- a session


def test_a_session_from_end_to_end() -> None:
    with proxied("stty -echo; stty size; tty; read a; echo got $a") as caller:
        caller.shows(b"30 100\r\n")
        assert caller.is_raw()
        caller.type(b"word\r")
        caller.shows(b"got word\r\n")
        caller.shows(b"left")
        caller.ended_well()
        assert b"/dev/pts/" in caller.seen


def test_interrupt_and_suspend_keys_are_the_apps() -> None:
    with proxied("trap 'echo interrupted' INT; echo ready; read a; read b; echo end") as caller:
        caller.shows(b"ready")
        caller.until(caller.is_raw)
        caller.type(b"\x03")
        caller.shows(b"interrupted")
        assert caller.process.poll() is None
        caller.type(b"\r\r\r")
        caller.shows(b"left")
        caller.ended_well()


def test_a_new_size_is_handed_on() -> None:
    with proxied("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done") as caller:
        caller.shows(b"ready")
        caller.until(caller.is_raw)
        set_size(caller.master, 41, 81)
        caller.shows(b"41 81")
        caller.type(KEY * 3)
        caller.shows(b"left")
        caller.ended_well()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_put_the_terminal_right(number: signal.Signals) -> None:
    with proxied("echo ready; sleep 100") as caller:
        caller.shows(b"ready")
        caller.until(caller.is_raw)
        caller.process.send_signal(number)
        caller.ended_well()


def test_much_output_is_whole() -> None:
    with proxied("stty -opost; seq 100000") as caller:
        caller.shows(b"99999\n100000\n")
        caller.shows(b"left")
        assert caller.seen.startswith(b"".join(b"%d\n" % number for number in range(1, 100_001)))
        caller.ended_well()


def test_a_terminal_that_is_hung_up() -> None:
    with proxied("echo ready; sleep 100") as caller:
        caller.shows(b"ready")
        caller.until(caller.is_raw)
        os.close(caller.master)
        assert caller.process.wait(timeout=DEADLINE) is not None
        caller.master = os.open("/dev/null", os.O_RDONLY)


def test_in_the_background_nothing_stops_or_reads() -> None:
    """Another process group has the terminal, as after `command &`: we go on, and take no key of theirs."""
    code = PROXY.replace("proxy(master)", BACKGROUND)
    with calling(code, MULTIPLEXER, "echo ready; sleep 0.5; echo end") as caller:
        caller.shows(b"ready")
        assert not caller.is_raw()
        caller.type(b"theirs\r")
        caller.shows(b"end")
        caller.ended_well()
        caller.shows(b"left")


# --- the app's side


def test_a_pseudo_terminal_has_its_owner_and_is_found_by_no_name() -> None:
    master, slave = open_pty(os.getuid(), multiplexer=MULTIPLEXER)
    found = os.fstat(slave)
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o620)
    assert os.isatty(slave)
    assert os.ttyname(slave).startswith("/dev/pts/")
    assert not os.get_inheritable(master)
    assert not os.get_inheritable(slave)
    os.close(master)
    os.close(slave)
