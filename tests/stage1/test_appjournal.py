"""What apps send to the journal themselves: understood as the journal does, and stripped of what is not theirs."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import journal
from stage1 import appjournal
from stage1.appjournal import allowed, parse, parse_syslog


def test_several_entries() -> None:
    assert list(parse(b"A=1\nB=2\n\n\nC\n\3\0\0\0\0\0\0\0x\ny\nD=\n")) == [
        [(b"A", b"1"), (b"B", b"2")],
        [(b"C", b"x\ny"), (b"D", b"")],
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"A=1\nB", b"A=1\nB\n\3\0\0", b"A=1\nB\n\3\0\0\0\0\0\0\0xyz", b"A=1\nB\n\3\0\0\0\0\0\0\0xyzz",
        b"A=1\nB\n\xff\xff\xff\xff\xff\xff\xff\xffxyz\n", b"A=1\nB\n\3\0\0\0\0\0\0\0x\n",
    ],
)  # fmt: skip
def test_what_is_cut_off(data: bytes) -> None:
    assert list(parse(data)) == [[(b"A", b"1")]]


@given(st.binary())
def test_anything(data: bytes) -> None:
    for entry in parse(data):
        for name, value in allowed(entry):
            assert journal.field(name.decode("ascii"), value)
    for name, value in allowed(parse_syslog(data)):
        assert journal.field(name.decode("ascii"), value)


def test_bounds() -> None:
    assert sum(1 for _ in parse(b"MESSAGE=1\n\n" * 10_000)) == 64
    (entry,) = parse(b"A=1\n" * 10_000)
    assert len(entry) == 128
    assert len(list(parse(b"A=1\n" * 128 + b"\nB=2\n"))) == 2
    assert len(list(parse(b"A=1\n" * 129 + b"\nB=2\n"))) == 1


def test_no_message_takes_long() -> None:
    begun = time.process_time()
    for part in (b"A=\n", b"\n", b"A\n" + bytes(8) + b"\n", b"A=\n" * 128 + b"\n"):
        for _ in range(10):
            list(map(allowed, parse(part * (appjournal.LARGEST // len(part)))))
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    "name",
    [
        b"_UID", b"_SYSTEMD_UNIT", b"__CURSOR", b"RKPY_POD_UUID", b"RKPY_STREAM", b"RKPY_ANYTHING", b"CONTAINER_ID",
        b"CONTAINER_PARTIAL_MESSAGE", b"IMAGE_NAME", b"OBJECT_PID", b"COREDUMP_UNIT", b"UNIT", b"USER_UNIT", b"lower",
        b"", b"1A", b"A B", b"A" * 65, b"A\0", b"\xc3\x84",
    ],
)  # fmt: skip
def test_fields_an_app_cannot_set(name: bytes) -> None:
    assert allowed([(name, b"x"), (b"MESSAGE", b"m")]) == [(b"MESSAGE", b"m"), (b"PRIORITY", b"6")]


def test_fields_an_app_can_set() -> None:
    own = [(b"MESSAGE", b"m"), (b"PRIORITY", b"3"), (b"CODE_LINE", b"7"), (b"OWN", b"1"), (b"OWN", b"2")]
    assert allowed(own) == own
    assert allowed([(b"MESSAGE", b"m"), (b"MESSAGE", b"other"), (b"PRIORITY", b"9")]) == [
        (b"MESSAGE", b"m"), (b"PRIORITY", b"6"),
    ]  # fmt: skip
    assert allowed([(b"OWN", b"without a message")]) == []


def test_names_of_others() -> None:
    assert allowed([(b"SYSLOG_IDENTIFIER", b"sshd"), (b"MESSAGE", b"m"), (b"PRIORITY", b"1")]) == [
        (b"RKPY_SYSLOG_IDENTIFIER", b"sshd"), (b"MESSAGE", b"m"), (b"PRIORITY", b"1"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", [str.lower, str.upper, lambda text: f"{text[:8]}-{text[8:]}"])
def test_our_events_are_ours(form: object) -> None:
    assert callable(form)
    for event in journal.EVENTS:
        assert allowed([(b"MESSAGE_ID", form(event).encode()), (b"MESSAGE", b"m"), (b"PRIORITY", b"1")]) == [
            (b"MESSAGE", b"m"), (b"PRIORITY", b"1"),
        ]  # fmt: skip
    other = (b"MESSAGE_ID", b"0" * 32)
    assert other in allowed([other, (b"MESSAGE", b"m")])


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"<30>Nov 25 22:00:01 web[12]: hello\n\0", ("6", "3", "web", "12", "hello")),
        (b"<4>Nov  5 22:00:01 web: hello", ("4", "1", "web", "", "hello")),
        (b"<13>web: a: b", ("5", "1", "web", "", "a: b")),
        (b"plain text", ("6", "1", "", "", "plain text")),
        (b"<999>x", ("7", "124", "", "", "x")),
        (b"<30>no tag here", ("6", "3", "", "", "no tag here")),
        (b"<30>two\nlines", ("6", "3", "", "", "two\nlines")),
        (b"<>x", ("6", "1", "", "", "<>x")),
    ],
)
def test_syslog(data: bytes, wanted: tuple[str, ...]) -> None:
    found = dict(parse_syslog(data))
    names = (b"PRIORITY", b"SYSLOG_FACILITY", b"SYSLOG_IDENTIFIER", b"SYSLOG_PID", b"MESSAGE")
    assert tuple(found.get(name, b"").decode() for name in names) == wanted


def test_a_message_without_text_is_none() -> None:
    assert allowed(parse_syslog(b"")) == []
    assert allowed(parse_syslog(b"<30>web:   ")) == []


def test_files_in_memory() -> None:
    import fcntl

    def file(data: bytes, seals: int) -> int:
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    large = b"x" * (appjournal.LARGEST + 1)
    pipe = os.pipe()
    fds = [file(b"ok", journal.SEALS), file(b"no", fcntl.F_SEAL_WRITE), file(large, journal.SEALS), *pipe]
    assert [appjournal._read_sealed(fd) for fd in fds] == [b"ok", b"", b"", b"", b""]
    for fd in fds:
        os.close(fd)
