"""Apps of a pod whose monitor and supervisor are the two ends of a byte stream, as with a virtual machine."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import appsockets
from stage1.plan import Restart, dumps
from stage1.streams import Streams
from tests.host.wired import TTY, Host, wired


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with wired(tmp_path) as made:
        yield made


def test_output_and_status(host: Host) -> None:
    assert host.run("one", "echo out; echo err >&2; exit 3") == "ended one 3 0 0 0"
    assert (host.out("one"), host.out("one", "stderr")) == ("out\n", "err\n")
    host.until(lambda: host.said[-1] == "")
    assert [text for text in host.said if text != "ready"] == ["started one 2", *host.said[-4:]]
    assert host.said[-4:] == ["ended one 3 0 0 0", "stopping", "over 3", ""]


def test_a_signal_is_an_end(host: Host) -> None:
    assert host.run("one", "kill -9 $$") == "ended one 137 9 0 0"


def test_what_cannot_be_started_says_why(host: Host) -> None:
    launch = host.plan("one", "").launch._replace(argv=("/bin/none",))
    assert host.run("one", "", launch=launch) == "ended one 127 0 0 0"
    assert host.until_said("failed one ") == 'failed one 127 program "/bin/none" not found'


def test_a_root_that_is_not_there_breaks_the_pod(host: Host) -> None:
    root = host.plan("one", "").root._replace(place="/nowhere")
    host.begin()
    host.start("one", "true", root=root)
    host.until(lambda: host.broken)
    assert 'cannot use the app\'s root "/nowhere"' in host.broken


def test_input_goes_in_and_ends(host: Host) -> None:
    host.begin()
    host.start("one", "cat; echo end", streams=Streams("stream", "log", "log"))
    host.bridge.tell("sealed")
    host.until_said("started")
    to_app = host.streams["one"].input
    assert to_app is not None
    text = b"0123456789abcdef" * 40_000
    to_app.write(text)
    host.streams["one"]._end_input()
    host.until_said("ended one 0")
    assert host.logs["one"].said["stdout"] == text + b"end\n"


def test_all_output_is_there_when_the_end_is_heard(host: Host) -> None:
    """More than fits into the windows and pipes on the way together."""
    host.run("one", "seq 300000")
    assert len(host.seen["one"].splitlines()) == 300_000


def test_slow_readers_get_everything(host: Host) -> None:
    """The log takes nothing until the app has ended: what it could write before is found then."""
    host.begin()
    host.start("one", "dd if=/dev/zero bs=4096 count=70", streams=Streams("null", "log", "null"))
    host.logs["one"].full = True
    host.bridge.tell("sealed")
    host.until_said("ended one 0")
    assert len(host.seen["one"]) == 4096 * 70


def test_who_is_not_read_waits_alone(host: Host) -> None:
    host.begin()
    host.start("stuck", "seq 100000000", streams=Streams("null", "log", "null"))
    host.logs["stuck"].full = True
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("one", "two"):
        host.start(name, "seq 200000")
    host.bridge.tell("sealed")
    host.until(lambda: {"one", "two"} <= host.seen.keys())
    assert len(host.out("two").splitlines()) == 200_000
    assert len(host.logs["stuck"].said["stdout"]) < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    host.bridge.tell("kill stuck")
    host.until_said("ended stuck 137 9 1 0")


def test_who_has_no_reader_is_told(host: Host) -> None:
    """As in a pipeline whose reader has gone (SIGPIPE)."""
    reading, writing = os.pipe()
    host.begin()
    host.give("one", "while :; do echo x; done", (-1, writing, -1))
    os.close(writing)
    # What comes is written by the loop, which does not run while we read.
    host.until(lambda: select.select([reading], [], [], 0)[0])
    assert os.read(reading, 2) == b"x\n"
    os.close(reading)
    assert host.until_said("ended one ") == "ended one 141 13 0 0"


def test_the_callers_own_pipe_gets_everything_after_the_end(host: Host) -> None:
    """However late it is read: what a pipe of the caller's does not take waits in the bridge."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    host.begin()
    host.give("one", "dd if=/dev/zero bs=4096 count=70", (-1, writing, -1))
    os.close(writing)
    host.until_said("ended one 0")
    host.until_said("over 0")
    found = 0
    while data := os.read(reading, 65536):
        found += len(data)
    assert found == 4096 * 70
    os.close(reading)


def test_stop_and_start_again(host: Host) -> None:
    host.begin(mutable=True)
    host.start("one", "echo up; sleep 1000")
    host.bridge.tell("sealed")
    host.until(lambda: host.out("one") == "up\n")
    host.bridge.tell("stop one")
    host.until_said("ended one 143 15 1 0")
    host.said.clear()
    host.start("one", "echo again; exit 4")
    assert host.until_said("ended one ") == "ended one 4 0 0 0"
    assert host.out("one") == "again\n"
    host.bridge.tell("remove one")
    host.bridge.tell("ping")
    host.until_said("pong")
    host.bridge.tell("terminate")
    host.until_said("over ")


def test_a_start_that_fails_is_one_apps_in_a_pod_that_changes(host: Host) -> None:
    host.begin(mutable=True)
    host.bridge.tell("sealed")
    host.start("bad", "true", root=host.plan("bad", "").root._replace(place="/nowhere"))
    assert "/nowhere" in host.until_said("failed bad 254 ")
    host.until_said("ended bad 254 0 0 0")
    host.start("good", "echo yes")
    host.until_said("ended good 0 0 0 0")
    assert host.out("good") == "yes\n"


def test_restarts_keep_their_streams(host: Host) -> None:
    host.begin()
    host.start("one", "echo x; exit 1", restart=Restart("on-failure", 2))
    host.bridge.tell("sealed")
    host.until_said("over 1")
    assert host.out("one") == "x\n" * 3
    assert [text for text in host.said if text.startswith("again")] == ["again one"] * 2


def test_a_terminal(host: Host) -> None:
    host.begin(window=(24, 80))
    script = "stty size; tty; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done"
    host.start("one", script, streams=TTY)
    host.bridge.tell("sealed")
    host.until(lambda: "ready" in host.out("one"))
    assert host.out("one").split() == ["24", "80", "/dev/pts/0", "ready"]
    host.bridge.resize("one", 50, 132)
    assert host.until_said("ended one ") == "ended one 5 0 0 0"
    assert host.out("one").split()[-2:] == ["50", "132"]


def test_a_terminal_takes_input_and_comes_anew_with_each_start(host: Host) -> None:
    host.begin()
    host.start("one", "read x; echo got:$x; exit 1", streams=TTY, restart=Restart("on-failure", 1))
    host.bridge.tell("sealed")
    for count, word in enumerate(("first", "second"), 1):
        host.until(lambda count=count: sum(text.startswith("started") for text in host.said) == count)  # type: ignore[misc]
        to_app = host.streams["one"].input
        assert to_app is not None
        to_app.write(f"{word}\n".encode())
        host.until(lambda word=word: f"got:{word}" in host.out("one"))  # type: ignore[misc]
    host.until_said("over 1")


def test_a_terminal_that_is_let_go_of_hangs_up(host: Host) -> None:
    host.begin()
    host.start("one", "echo up; sleep 1000", streams=TTY)
    host.bridge.tell("sealed")
    host.until(lambda: "up" in host.out("one"))
    host.streams["one"].close()
    assert host.until_said("ended one ").startswith("ended one 129 1 ")


def test_datagrams(host: Host) -> None:
    """What was sent to a socket of the monitor's, by syslog(3) here, before the app's end."""
    assert host.run("one", "logger -t me hello", sockets=(appsockets.SYSLOG,)) == "ended one 0 0 0 0"
    (found,) = (words for words in host.heard if words[0] == "datagram")
    assert found[1:3] == ("one", "journal/dev-log")
    assert str(found[3]).endswith("me: hello'")


# --- commands beside apps


def entered(host: Host, *argv: str, terminal: bool = False) -> tuple[int, list[socket.socket]]:
    """Number, and our ends of its streams."""
    spec = host.plans["one"].launch._replace(argv=argv)
    pairs = [socket.socketpair() for _ in range(1 if terminal else 3)]
    number = host.bridge.enter("one", [theirs.fileno() for _, theirs in pairs], dumps(spec))
    for ours, theirs in pairs:
        theirs.close()
        ours.setblocking(False)
    return number, [ours for ours, _ in pairs]


def read_all(host: Host, end: socket.socket) -> bytes:
    """Until it is closed."""
    found = bytearray()

    def over() -> bool:
        while True:
            try:
                data = end.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            found.extend(data)
            if not data:
                return True

    host.until(over)
    return bytes(found)


@pytest.fixture
def sleeping(host: Host) -> Host:
    host.begin()
    host.start("one", "echo up; exec sleep 1000")
    host.bridge.tell("sealed")
    host.until(lambda: host.out("one") == "up\n")
    return host


def test_enter_with_streams(sleeping: Host) -> None:
    number, (stdin, out, err) = entered(sleeping, "/bin/sh", "-c", "cat; echo err >&2; ps; exit 6")
    stdin.send(b"typed")
    stdin.shutdown(socket.SHUT_WR)
    said = read_all(sleeping, out)
    assert said.startswith(b"typed") and b"sleep 1000" in said
    assert read_all(sleeping, err) == b"err\n"
    assert sleeping.until_heard("entered") == ("entered", number, 6)
    for end in (stdin, out, err):
        end.close()


def test_enter_ends_however_long_its_children_live(sleeping: Host) -> None:
    number, ends = entered(sleeping, "/bin/sh", "-c", "sleep 1000 & echo done")
    assert read_all(sleeping, ends[1]) == b"done\n"
    assert sleeping.until_heard("entered") == ("entered", number, 0)
    for end in ends:
        end.close()


def test_enter_on_a_terminal(sleeping: Host) -> None:
    number, (terminal,) = entered(sleeping, "/bin/sh", "-c", "read x; stty size; tty; exit 2", terminal=True)
    sleeping.bridge.resize_entered(number, 33, 99)
    sleeping.bridge.tell("ping")
    sleeping.until_said("pong")
    terminal.send(b"go\n")
    said = read_all(sleeping, terminal).split()
    assert said[0] == b"go" and said[-1] == b"/dev/pts/0"
    assert sleeping.until_heard("entered") == ("entered", number, 2)
    terminal.close()


def test_enter_is_signalled(sleeping: Host) -> None:
    number, ends = entered(sleeping, "/bin/sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    got = bytearray()

    def up() -> bool:
        try:
            got.extend(ends[1].recv(100))
        except BlockingIOError:
            return False
        return got == b"up\n"

    sleeping.until(up)
    sleeping.bridge.signal_entered(number, signal.SIGTERM)
    assert sleeping.until_heard("entered") == ("entered", number, 9)
    for end in ends:
        end.close()


def test_enter_what_is_not_there(sleeping: Host) -> None:
    number, ends = entered(sleeping, "/bin/none")
    heard = sleeping.until_heard("refused")
    assert heard[:3] == ("refused", number, 127) and "/bin/none" in str(heard[3])
    for end in ends:
        assert read_all(sleeping, end) == b""
        end.close()


def test_enter_an_app_that_does_not_run(host: Host) -> None:
    host.begin(mutable=True)
    host.start("one", "exit 0")
    host.bridge.tell("sealed")
    host.until_said("ended one 0")
    number, ends = entered(host, "/bin/sh")
    assert host.until_heard("refused") == ("refused", number, 254, 'app "one" is not running')
    for end in ends:
        assert read_all(host, end) == b""
        end.close()
