"""Logs as they are written and read: every byte comes back, through rotation, while it happens, and across failures."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1 import logreader, logs
from stage1.logs import LogFile

ENTRY = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) [PF] .*")
FAKE = b"2016-10-06T00:17:09.669794202Z stderr F "


def output(pod: Path, *apps: str, stream: str = "stdout") -> bytes:
    return b"".join(entry.data for entry in logreader.read(str(pod), apps or ("app",)) if entry.stream == stream)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def test_format(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "app")
    log.write("stdout", b"one\ntwo\nthr")
    log.write("stderr", b"oops\n")
    log.write("stdout", b"ee\n\n")
    log.close()
    path = tmp_path / "logs" / "app"
    found = lines_of(path)
    assert all(ENTRY.fullmatch(line) for line in found)
    assert [line[logs.STREAM_AT :] for line in found] == [
        b"stdout F one", b"stdout F two", b"stdout P thr", b"stderr F oops", b"stdout F ee", b"stdout F ",
    ]  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~_umask()
    assert output(tmp_path) == b"one\ntwo\nthree\n\n"
    assert output(tmp_path, stream="stderr") == b"oops\n"


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


PIECES = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.one_of(
            st.binary(max_size=60),
            st.lists(st.sampled_from([b"\n", b"\r", b"\0", b"a", FAKE, b"x" * logs.LIMIT]), max_size=9).map(b"".join),
            st.integers(logs.LIMIT - 2, logs.LIMIT + 2).map(lambda count: b"y" * count + b"\n"),
        ),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(pieces=PIECES, segment=st.sampled_from([1, 100, 40_000, 1 << 24]))
def test_any_bytes_come_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, bytes]], segment: int
) -> None:
    pod = tmp_path_factory.mktemp("pod")
    log = LogFile(str(pod), "app", segment=segment, segments=1000)
    for stream, data in pieces:
        log.write(stream, data)
    log.close()
    for stream in ("stdout", "stderr"):
        assert output(pod, stream=stream) == b"".join(data for name, data in pieces if name == stream)
    for path in (pod / "logs").iterdir():
        assert all(ENTRY.fullmatch(line) and len(line) <= logs.TEXT_AT + logs.LIMIT for line in lines_of(path))


def test_a_line_that_was_begun_before_a_restart_is_ended(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "app")
    log.end_lines()
    log.write("stdout", b"dying")
    log.end_lines()
    log.end_lines()
    log.write("stdout", b"born\n")
    log.close()
    assert output(tmp_path) == b"dying\nborn\n"


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "app", segment=1000, segments=3)
    for number in range(100):
        log.write("stdout", b"%03d" % number + b"." * 96 + b"\n")
    log.close()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["app", "app.1", "app.2"]
    assert all(path.stat().st_size <= 1000 for path in (tmp_path / "logs").iterdir())
    numbers = [int(line[:3]) for line in output(tmp_path).splitlines()]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) > 14


def test_a_log_goes_on_when_it_is_opened_again(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = LogFile(str(tmp_path), "app")
        log.write("stdout", text)
        log.close()
    assert output(tmp_path) == b"one\ntwo\n"


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LogFile(str(tmp_path), "app")
    assert not (tmp_path / "elsewhere").exists()


def test_several_apps_in_the_order_of_time(tmp_path: Path) -> None:
    first, second = LogFile(str(tmp_path), "first"), LogFile(str(tmp_path), "second")
    for number in range(5):
        (first if number % 2 else second).write("stdout", b"%d\n" % number)
    assert logreader.apps(str(tmp_path)) == ["first", "second"]
    assert [entry.text for entry in logreader.read(str(tmp_path), ("first", "second"))] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]
    first.close()
    second.close()


def test_since(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "app", segment=200)
    for number in range(20):
        log.write("stdout", b"%d\n" % number)
    log.close()
    everything = list(logreader.read(str(tmp_path), ("app",)))
    for at in (0, 7, 19):
        assert list(logreader.read(str(tmp_path), ("app",), since=everything[at].time)) == everything[at:]
    assert not list(logreader.read(str(tmp_path), ("app",), since="9999-01-01T00:00:00.000000000Z"))


@pytest.mark.parametrize("segment", [300, 1 << 24])
@pytest.mark.parametrize("width", [1, 70, 40_000])
def test_tail(tmp_path: Path, segment: int, width: int) -> None:
    log = LogFile(str(tmp_path), "app", segment=segment, segments=1000)
    for number in range(50):
        log.write("stdout", b"%d" % number * width + b"\n")
    log.write("stdout", b"no end")
    log.close()
    everything = output(tmp_path).splitlines(keepends=True)
    assert len(everything) == 51
    for count in (0, 1, 2, 20, 51, 100):
        found = b"".join(entry.data for entry in logreader.read(str(tmp_path), ("app",), tail=count))
        assert found == b"".join(everything[max(0, 51 - count) :])


def test_tail_does_not_read_everything(tmp_path: Path) -> None:
    """The head of the log is unreadable, and nobody notices."""
    log = LogFile(str(tmp_path), "app")
    log.write("stdout", b"x" * 99 + b"\n")
    for _ in range(20):
        log.write("stdout", (b"y" * 99 + b"\n") * 600)
    log.write("stdout", b"last\n")
    log.close()
    reader = logreader._AppReader(str(tmp_path / "logs" / "app"), "app")
    reader.skip_to_last(10)
    assert os.path.getsize(tmp_path / "logs" / "app") - reader._offset < 300_000
    assert list(reader.take())[-1].text == b"last"
    reader.close()


def test_following_across_rotation(tmp_path: Path) -> None:
    """The log is rotated several times, all kept files at once too, between looks and in the middle of one."""
    log = LogFile(str(tmp_path), "app", segment=2000, segments=6)
    turns = iter(range(30))
    wrote = 0

    def running() -> bool:
        nonlocal wrote
        turn = next(turns, None)
        for _ in range(0 if turn is None else 3 * (turn % 10)):
            log.write("stdout", b"%05d" % wrote + b"." * 94 + b"\n")
            wrote += 1
        return turn is not None

    found = []
    for entry in logreader.read(str(tmp_path), ("app",), running=running):
        found.append(int(entry.text[:5]))
        if len(found) % 40 == 0:
            log.write("stdout", b"%05d" % wrote + b"." * 94 + b"\n")
            wrote += 1
    assert wrote > 300
    assert found == list(range(len(found)))
    assert len(found) >= wrote - 1  # one may have been written while the last was being read
    log.close()


def test_a_follower_that_is_overtaken_goes_on_with_what_there_is(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "app", segment=500, segments=2)
    log.write("stdout", b"first\n")
    reader = logreader._AppReader(log.path, "app")
    assert [entry.text for entry in reader.take()] == [b"first"]
    for number in range(100):
        log.write("stdout", b"%d" % number + b"." * 90 + b"\n")
    numbers = [int(entry.text.partition(b".")[0]) for entry in reader.take()]
    assert numbers[:3] == [0, 1, 2], "what it holds open stays"
    assert numbers[3:] == list(range(numbers[3], 100))
    assert numbers[3] > 3
    reader.close()
    log.close()


def test_entries_that_are_being_written_are_left_until_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "app"
    path.parent.mkdir()
    path.write_bytes(FAKE[:10])
    reader = logreader._AppReader(str(path), "app")
    assert not list(reader.take())
    path.write_bytes(FAKE + b"text")
    assert not list(reader.take())
    path.write_bytes(b"no entry\n" + FAKE + b"text\n")
    assert [entry.text for entry in reader.take()] == [b"text"]
    reader.close()


def test_what_could_not_be_written_is_counted(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: write(2) is cut short and then fails, just the same."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = LogFile(str(tmp_path), "app")
    try:
        log.write("stdout", b"first\nbegun")
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, old_limit[1]))
        log.write("stdout", b" and ended\nsecond\nthird " + b"x" * 100 + b"\nfourth\n")
        log.write("stderr", b"fifth\n")
        assert os.path.getsize(log.path) <= 250
        assert all(ENTRY.fullmatch(line) for line in lines_of(Path(log.path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    log.write("stdout", b"sixth\n")
    log.close()
    assert output(tmp_path) == b"first\nbegun and ended\nsecond\nsixth\n"
    assert output(tmp_path, stream="stderr") == b"rkpy: 3 entries of this log were lost: file too large\n"


def test_a_lost_entry_does_not_join_two_lines(tmp_path: Path) -> None:
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = LogFile(str(tmp_path), "app")
    try:
        log.write("stdout", b"begun")
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, old_limit[1]))
        log.write("stdout", b" and ended\nbegun again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    log.close()
    assert output(tmp_path) == b"begun\n"
    assert output(tmp_path, stream="stderr") == b"rkpy: 2 entries of this log were lost: file too large\n"
