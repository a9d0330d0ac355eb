"""Apps' lines as journal entries, towards a socket that stands in for the journal's: one that can be slow, and go."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import journal
from stage1 import appjournal, journallog
from stage1.journallog import Journal, JournalLog
from stage1.logs import LIMIT
from stage1.loop import Loop
from stage1.plan import JOURNALD, AppPlan, PodPlan
from stage1.rootfs import CopiedRoot
from stage1.streams import AppStreams, Streams
from stage2.launch import LaunchSpec

DEADLINE = 300.0


class Place:
    """A socket at which entries arrive, and a loop."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.loop = Loop()
        self.listener: socket.socket | None = None
        self.heard: list[dict[bytes, bytes]] = []

    def listen(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(self.path)
        self.listener.setblocking(False)

    def go(self) -> None:
        """As the journal does when its socket is stopped."""
        if self.listener is not None:
            self.listener.close()
            os.unlink(self.path)
        self.listener = None

    def hear(self) -> None:
        """Take all that is there."""
        try:
            while self.listener is not None:
                self.heard += map(dict, appjournal.parse(self.listener.recv(1 << 20)))
        except BlockingIOError:
            pass

    def run(self, condition: Callable[[], object], *, hearing: bool = True) -> None:
        deadline = time.monotonic() + DEADLINE

        def look() -> None:
            if hearing:
                self.hear()
            if condition():
                self.loop.stop()
            else:
                assert time.monotonic() < deadline
                self.loop.call_later(0.001, look)

        look()
        self.loop.run()

    def finish(self, way: Journal) -> None:
        done: list[bool] = []
        way.when_taken(lambda: done.append(True))
        self.run(lambda: done)
        self.hear()

    def messages(self, stream: bytes = b"stdout") -> list[bytes]:
        return [entry[b"MESSAGE"] for entry in self.heard if entry.get(b"RKPY_STREAM") == stream]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.listen()
    yield made
    made.go()
    made.loop.close()


def heard(place: Place, *written: tuple[str, bytes]) -> list[dict[bytes, bytes]]:
    way = Journal(place.loop, place.path)
    log = JournalLog(way, b"OURS=1\n")
    log.started(7)
    for stream, data in written:
        log.write(stream, data)
    log.close()
    place.finish(way)
    way.close()
    return place.heard


def test_a_line_is_an_entry(place: Place) -> None:
    one, two = heard(place, ("stdout", b"hello\n"), ("stderr", b"\xff\0oops\n"))
    assert one == {
        b"OURS": b"1", b"SYSLOG_PID": b"7", b"RKPY_STREAM": b"stdout", b"PRIORITY": b"6", b"MESSAGE": b"hello",
    }  # fmt: skip
    assert (two[b"PRIORITY"], two[b"MESSAGE"], two[b"RKPY_STREAM"]) == (b"3", b"\xff\0oops", b"stderr")


def test_priorities(place: Place) -> None:
    lines = [b"<%d>text" % number for number in range(10)] + [b"<x>", b"<", b"<3", b" <3>", b"<33>"]
    found = heard(place, ("stdout", b"\n".join(lines) + b"\n"))
    assert [(entry[b"PRIORITY"], entry[b"MESSAGE"]) for entry in found] == [
        # Nobody's terminal is written to because an app says so.
        (b"1", b"text"),
        *((b"%d" % number, b"text") for number in range(1, 8)),
        (b"6", b"<8>text"), (b"6", b"<9>text"), (b"6", b"<x>"), (b"6", b"<"), (b"6", b"<3"), (b"6", b" <3>"),
        (b"6", b"<33>"),
    ]  # fmt: skip


def test_pieces_of_lines(place: Place) -> None:
    found = heard(place, ("stdout", b"be"), ("stderr", b"o"), ("stdout", b"gun\n\nun"), ("stdout", b"finished"))
    assert [entry[b"MESSAGE"] for entry in found if entry[b"RKPY_STREAM"] == b"stdout"] == [
        b"begun",
        b"",
        b"unfinished",
    ]
    assert place.messages(b"stderr") == [b"o"]


def test_a_terminals_line_ends(place: Place) -> None:
    heard(place, ("stdout", b"one\r\ntwo\rthree\r\n"))
    assert place.messages() == [b"one", b"two\rthree"]


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 2 * LIMIT, 5 * LIMIT + 3])
@pytest.mark.parametrize("step", [1000, LIMIT, 65536])
def test_long_lines(place: Place, size: int, step: int) -> None:
    line = b"<4>" + b"x" * (size - 1) + b"."
    pieces = [line[at : at + step] for at in range(0, len(line), step)]
    found = heard(place, *(("stdout", piece) for piece in pieces), ("stdout", b"\nnext\n"))
    *parts, last, after = found
    assert b"".join(entry[b"MESSAGE"] for entry in (*parts, last)) == line[3:]
    assert all(len(entry[b"MESSAGE"]) <= LIMIT and entry[b"PRIORITY"] == b"4" for entry in (*parts, last))
    assert all(entry[b"CONTAINER_PARTIAL_MESSAGE"] == b"true" for entry in parts)
    assert b"CONTAINER_PARTIAL_MESSAGE" not in last
    assert (after[b"MESSAGE"], after[b"PRIORITY"]) == (b"next", b"6")
    assert len(parts) == (size - 1) // LIMIT


PIECES = st.lists(
    st.lists(st.sampled_from((b"a", b"b" * 100, b"\n", b"<4>", b"\0\xff", b"=", b"c" * 9000)), max_size=8)
)


@given(PIECES)
def test_no_byte_is_lost(pieces: list[list[bytes]]) -> None:
    sent: list[bytes] = []

    class Way:
        full = False

        def put(self, entries: Iterator[bytes]) -> None:
            sent.extend(entries)

    log = JournalLog(Way(), b"")  # type: ignore[arg-type]
    for piece in pieces:
        log.write("stdout", b"".join(piece))
    log.close()
    text = b"".join(b"".join(piece) for piece in pieces)
    wanted = [line.removeprefix(b"<4>") for line in text.split(b"\n")]
    found: list[bytes] = [b""]
    for entry in (dict(entry) for data in sent for entry in appjournal.parse(data)):
        found[-1] += entry[b"MESSAGE"]
        if b"CONTAINER_PARTIAL_MESSAGE" not in entry:
            found.append(b"")
    assert found[:-1] == (wanted if wanted[-1] or text.endswith(b"<4>") else wanted[:-1])


def test_events_of_a_pod(place: Place) -> None:
    """What no test with a real journal can bring about everywhere: an app that runs out of memory."""
    launch = LaunchSpec("web", ("/bin/web",), (), "0", "0", (), "/", False, ())
    app = AppPlan("web", CopiedRoot("/"), (), launch, image_id="sha512-1", image_name="example.com/web:1")
    plan = PodPlan("uuid", "/", -1, (app,), "host", log_driver=JOURNALD, journal=True)
    told = journallog.PodJournal(place.loop, plan, place.path)
    log = told.log(app)
    told.app_started(app, 12)
    log.started(1)
    log.write("stdout", b"unfinished")
    log.ended()
    told.app_ended(app, 137, 9, oom=True, asked=False)
    told.pod_ended(137)
    done: list[bool] = []
    told.when_written(lambda: done.append(True))
    place.run(lambda: done)
    place.hear()
    started, line, oom, ended, over = place.heard
    assert (started[b"MESSAGE"], started[b"RKPY_PID"]) == (b'App "web" of pod "uuid" started', b"12")
    assert (line[b"MESSAGE"], line[b"CONTAINER_NAME"], line[b"IMAGE_NAME"]) == (
        b"unfinished", b"uuid-web", b"example.com/web:1",
    )  # fmt: skip
    assert (oom[b"MESSAGE_ID"], oom[b"PRIORITY"]) == (journal.OOM.encode(), b"4")
    assert (ended[b"RKPY_OOM"], ended[b"RKPY_EXIT_SIGNAL"], ended[b"RKPY_EXIT_STATUS"]) == (b"1", b"9", b"137")
    assert ended[b"RKPY_IMAGE_NAME"] == b"example.com/web:1"
    assert b"RKPY_APP" not in over
    assert {entry[b"RKPY_POD_UUID"] for entry in place.heard} == {b"uuid"}
    assert told.losses() == ""


def pod_with_files(place: Place) -> journallog.PodJournal:
    return journallog.PodJournal(place.loop, PodPlan("uuid", "/", -1, (), "host", journal=True), place.path)


def test_with_files_events_wait_only_briefly(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journallog, "_BRIEFLY", 0.1)
    told = pod_with_files(place)
    told.pod_started()
    place.hear()
    assert [entry[b"MESSAGE"] for entry in place.heard] == [b'Pod "uuid" started']
    place.go()
    told.pod_ended(0)
    done: list[bool] = []
    told.when_written(lambda: done.append(True))
    place.run(lambda: done)
    assert told.losses().startswith("1 entries for the journal were lost: ")


def test_with_files_events_wait_for_room(place: Place) -> None:
    """What others have to say fills the journal's queue."""
    with contextlib.closing(journal.connect(place.path)) as other, pytest.raises(BlockingIOError):
        while True:
            journal.send(other, b"MESSAGE=other\n")
    told = pod_with_files(place)
    told.pod_started()
    told.pod_ended(3)
    done: list[bool] = []
    told.when_written(lambda: done.append(True))
    place.run(lambda: done)
    events = [entry[b"MESSAGE"] for entry in place.heard if entry.get(b"RKPY_POD_UUID")]
    assert events == [b'Pod "uuid" started', b'Pod "uuid" ended with status 3']
    assert told.losses() == ""


def test_a_slow_journal_holds_the_app_up(place: Place) -> None:
    """And loses nothing: the app's pipe fills, and is read again as the journal reads."""
    lines = [b"%06d" % number for number in range(30_000)]  # more than the pipe and whoever reads it hold
    way = Journal(place.loop, place.path)
    app = AppStreams(place.loop, "app", Streams(), log=JournalLog(way, b""))
    writer = os.dup(app.child_fds()[1])
    app.close_child_ends()
    app.started(1)
    os.set_blocking(writer, False)
    data, at = b"\n".join(lines) + b"\n", 0

    def feed() -> None:
        nonlocal at
        if at < len(data) and select.select([], [writer], [], 0)[1]:
            at += os.write(writer, data[at : at + 4096])

    def is_stuck() -> bool:
        before = at
        feed()
        return way.full and at == before

    place.run(is_stuck, hearing=False)
    assert at < len(data)

    def is_over() -> bool:
        feed()
        return at == len(data)

    place.run(is_over)
    os.close(writer)
    app.drain()
    app.close()
    place.finish(way)
    assert place.messages() == lines
    assert way.lost == 0
    way.close()


def test_a_journal_that_comes_back_in_time(place: Place) -> None:
    way = Journal(place.loop, place.path)
    log = JournalLog(way, b"")
    log.write("stdout", b"before\n")
    place.hear()
    place.go()
    log.write("stdout", b"while it was away\n")
    assert way.full
    place.listen()
    place.finish(way)
    assert place.messages() == [b"before", b"while it was away"]
    assert not way.full
    assert way.lost == 0
    way.close()


def test_a_journal_that_stays_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journallog, "_SELDOM", 0.05)
    way = Journal(place.loop, place.path, patience=0.3)
    log = JournalLog(way, b"")
    place.go()
    log.write("stdout", b"one\ntwo\n")
    called: list[bool] = []
    way.when_room(lambda: called.append(True))
    place.run(lambda: called)
    log.write("stdout", b"three\n")
    assert not way.full
    assert way.lost == 3
    place.listen()
    place.run(lambda: place.heard)
    log.write("stdout", b"four\n")
    place.finish(way)
    assert place.messages() == [b"four"]
    (notice,) = (entry[b"MESSAGE"] for entry in place.heard if b"RKPY_STREAM" not in entry)
    assert notice.startswith(b"3 entries were lost: the journal could not be reached: ")
    way.close()


def test_a_journal_that_takes_nothing_is_not_waited_for_in_the_end(place: Place) -> None:
    way = Journal(place.loop, place.path, patience=0.3)
    way.put(iter([b"MESSAGE=1\n"] * 10_000))
    done: list[bool] = []
    way.when_taken(lambda: done.append(True))
    place.run(lambda: done, hearing=False)
    assert 0 < way.lost < 10_000
    assert way.why
    way.close()


def test_what_is_not_waited_for_is_counted(place: Place) -> None:
    plan = PodPlan("uuid", "/", -1, (), "host", log_driver=JOURNALD, journal=True)
    told = journallog.PodJournal(place.loop, plan, place.path)
    for _ in range(10_000):
        told.pod_started()
    told.when_written(lambda: None)
    losses = told.losses()
    place.hear()
    assert losses == f"{10_000 - len(place.heard)} entries for the journal were lost: they were not waited for"
    assert told.losses() == losses


def test_it_is_waited_until_the_journal_has_read_everything(place: Place) -> None:
    way = Journal(place.loop, place.path)
    way.put(iter([b"MESSAGE=1\n"]))
    done: list[bool] = []
    way.when_taken(lambda: done.append(True))
    place.loop.call_later(0.05, place.loop.stop)
    place.loop.run()
    assert not done
    place.run(lambda: done)
    way.close()
