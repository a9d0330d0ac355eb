"""The frames on the wire, and a bridge whose other end is not the guest it should be."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.cgroupfiles import ENFORCED, Report
from stage1.loop import Loop
from stage1.vm import frames
from stage1.vm.bridge import Bridge, Calls
from stage1.vm.frames import CREDIT, DATA, END, MESSAGE, WINDOW, Decoder, FrameError

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=50)
numbers = st.integers(1, 2**32 - 1)
sound = st.one_of(
    st.builds(lambda data: (MESSAGE, 0, data), st.binary(max_size=100)),
    st.builds(lambda stream, data: (DATA, stream, data), numbers, st.binary(min_size=1, max_size=100)),
    st.builds(lambda stream, count: (CREDIT, stream, struct.pack("<I", count)), numbers, numbers),
    st.builds(lambda stream: (END, stream, b""), numbers),
)


@given(st.lists(sound, max_size=10), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[frames.Frame], cuts: list[int]) -> None:
    raw = b"".join(frames.encode(*frame) for frame in sent)
    decoder, at, turn = Decoder(), 0, 0
    found: list[frames.Frame] = []
    while at < len(raw):
        found += decoder.feed(raw[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert found == sent


def passed_on(text: str, blob: bytes = b"") -> tuple[str, bytes]:
    ((kind, stream, payload),) = Decoder().feed(frames.encode_message(text, blob))
    assert (kind, stream) == (MESSAGE, 0)
    return frames.decode_message(payload)


@given(texts, st.binary(max_size=50))
def test_messages(text: str, blob: bytes) -> None:
    assert passed_on(text, blob) == (text, blob)


def test_what_is_no_line_of_unicode_is_made_one() -> None:
    assert passed_on("a\nb \udc80") == ("a b \\udc80", b"")


@pytest.mark.parametrize(
    ("length", "kind", "stream"),
    [
        (0, 4, 1), (0, 2**32 - 1, 1), (1, MESSAGE, 1), (1, DATA, 0), (4, CREDIT, 0), (0, END, 0), (0, DATA, 1),
        (WINDOW + 1, DATA, 1), (3, CREDIT, 1), (5, CREDIT, 1), (1, END, 1), (101, MESSAGE, 0), (2**32 - 1, MESSAGE, 0),
    ],
)  # fmt: skip
def test_a_header_is_enough_to_see_that_a_frame_cannot_be(length: int, kind: int, stream: int) -> None:
    with pytest.raises(FrameError):
        list(Decoder(100).feed(struct.pack("<III", length, kind, stream)))


class Guest:
    """The hostile end, and what the bridge makes of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, theirs = socket.socketpair()
        self.wire = theirs
        self.wire.setblocking(False)
        self.heard: list[tuple[str, int]] = []
        self.calls: list[tuple[object, ...]] = []
        self.masters: list[int] = []
        self.bridge = Bridge(
            self.loop,
            ours.detach(),
            Calls(
                self._hear,
                lambda *words: self.calls.append(("up", *words)),
                lambda *words: self.calls.append(("limits", *words)),
                lambda *words: self.calls.append(("datagram", *words)),
                lambda *words: self.calls.append(("entered", *words)),
                lambda *words: self.calls.append(("refused", *words)),
            ),
        )

    def _hear(self, text: str, fds: list[int]) -> None:
        self.heard.append((text, len(fds)))
        self.masters += fds

    @property
    def said(self) -> list[str]:
        return [text for text, _ in self.heard]

    def say(self, *texts: str, blob: bytes = b"") -> None:
        self.send(*(frames.encode_message(text, blob) for text in texts))

    def send(self, *raw: bytes) -> None:
        """All of it, as far as the bridge takes it."""
        left = b"".join(raw)
        while left:
            try:
                left = left[self.wire.send(left) :]
            except BlockingIOError:
                self.turn()
            except OSError:
                break
        self.settle()

    def turn(self) -> None:
        self.loop.call_later(0, self.loop.stop)
        self.loop.run()

    def settle(self) -> None:
        """Until nothing happens any more at the bridge's end."""
        for _ in range(1000):
            before = (len(self.heard), len(self.calls))
            self.turn()
            if self._is_empty() and before == (len(self.heard), len(self.calls)):
                return

    def _is_empty(self) -> bool:
        if self.bridge._wire.closed:
            return True
        poll = select.poll()
        poll.register(self.bridge._wire._fd, select.POLLIN)
        return not poll.poll(0)

    def received(self) -> list[frames.Frame]:
        found: list[frames.Frame] = []
        decoder = Decoder()
        with contextlib.suppress(BlockingIOError):
            while data := self.wire.recv(65536):
                found += decoder.feed(data)
                self.turn()
        return found

    def close(self) -> None:
        self.bridge.close()
        for fd in self.masters:
            os.close(fd)
        self.wire.close()
        self.loop.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def start(guest: Guest, name: str = "one") -> tuple[int, int, tuple[int, int, int]]:
    """The far ends of its stdin and stdout; its numbers."""
    stdin, typed = os.pipe()
    out, stdout = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    guest.bridge.start(name, (stdin, stdout, null), b"[]")
    for fd in (stdin, stdout, null):
        os.close(fd)
    os.set_blocking(out, False)
    guest.turn()
    message = guest.received()[-1][2]
    text, blob = frames.decode_message(message)
    verb, said, *streams = text.split(" ")
    assert (verb, said, blob, streams[2]) == ("start", name, b"[]", "0")
    return typed, out, (int(streams[0]), int(streams[1]), 0)


def test_words_pass_as_they_are(guest: Guest) -> None:
    for fd in start(guest)[:2]:
        os.close(fd)
    guest.say("up 6.1.0", "started one 7", "health one healthy all well", "failed one 127 no such file")
    guest.say("ended one 137 9 0 1 1", "again one", "ready", "pong", "stopping", "over 3")
    assert guest.calls == [("up", "6.1.0")]
    assert guest.said == [
        "started one 7", "health one healthy all well", "failed one 127 no such file", "ended one 137 9 0 1",
        "again one", "ready", "pong", "stopping", "over 3", "",
    ]  # fmt: skip
    assert guest.bridge.out_of_memory("one")


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "started two 7", "started one", "started one -7", "started one seven", "started one 9999999999",
        "ended one 0 0 0 0", "ended one 0 0 0 0 2", "ended one 256 0 0 0 0", "ended one 0 65 0 0 0",
        "ended one 0 0 0 0 0 0", "over", "over 256", "over -1", "over 1 1", "ready now", "datagram one", "terminal two",
        "datagram one /etc/passwd", "datagram two notify", "limits", "entered 1 0", "refused 1 0 no", "ending x",
        "start one", "started one ٣",
    ],
)  # fmt: skip
def test_words_that_cannot_be_end_the_pod(guest: Guest, text: str) -> None:
    for fd in start(guest)[:2]:
        os.close(fd)
    guest.say(text)
    assert len(guest.said) == 1
    assert guest.said[0].startswith("broken the pod's virtual machine ")
    assert not guest.calls
    assert guest.bridge._wire.closed


@pytest.mark.parametrize("text", ["up 6.1", "ready", "over 0"])
def test_what_is_said_once(guest: Guest, text: str) -> None:
    guest.say(text)
    guest.say(text)
    assert guest.said[-1] == "" if text == "over 0" else guest.said[-1].startswith("broken ")
    assert [text for text in guest.said if text.startswith("over")] == (["over 0"] if text == "over 0" else [])


def test_limits(guest: Guest) -> None:
    for fd in start(guest)[:2]:
        os.close(fd)
    reports = [Report("one", "memory", ENFORCED, "memory.max = 1"), Report("", "pids", ENFORCED, "x\x1b[2J")]
    guest.say("limits", blob=json.dumps(reports).encode())
    assert guest.calls == [("limits", [reports[0], Report("", "pids", ENFORCED, "x [2J")])]


@pytest.mark.parametrize(
    ("text", "blob", "expected"),
    [
        ("ending " + " ".join(["1"] * frames.LONGEST), b"", "sent a message of 524294 bytes"),
        ("limits", b"[" + b"[]," * (1 << 17), "sent 393217 bytes of limits"),
    ],
)
def test_what_would_take_much_memory_to_take_apart(guest: Guest, text: str, blob: bytes, expected: str) -> None:
    guest.bridge.start("one", (-1, -1, -1), b"x")
    guest.say(text, blob=blob)
    assert guest.said == [f"broken the pod's virtual machine {expected}"]


@pytest.mark.parametrize(
    "blob",
    [b"{}}", b"[" * 100_000, b'[["one", "memory", "fine", ""]]', b'[["", "", "enforced"]]', b"[[1, 2, 3, 4]]", b"3"],
)
def test_limits_that_are_none(guest: Guest, blob: bytes) -> None:
    guest.say("limits", blob=blob)
    assert guest.said == ["broken the pod's virtual machine sent limits that are none"]


def test_text_for_people_is_one_line_of_printable_characters(guest: Guest) -> None:
    for fd in start(guest)[:2]:
        os.close(fd)
    guest.say("failed one 1 \x1b]0;title\x07\r\tx", f"broken {'y' * 100_000}")
    assert guest.said[0] == "failed one 1  ]0;title   x"
    assert len(guest.said[1]) < 5000


def test_output_and_its_credit(guest: Guest) -> None:
    typed, out, (_, stream, _) = start(guest)
    found = b""
    for part in range(40):
        guest.send(frames.encode(DATA, stream, bytes([part]) * 60_000))
        guest.turn()
        with contextlib.suppress(BlockingIOError):
            found += os.read(out, 1 << 20)
        guest.turn()
    guest.send(frames.encode(END, stream))
    while True:
        guest.turn()
        try:
            data = os.read(out, 1 << 20)
        except BlockingIOError:
            continue
        if not data:
            break
        found += data
    assert found == b"".join(bytes([part]) * 60_000 for part in range(40))
    credit = sum(frames.decode_credit(payload) for kind, _, payload in guest.received() if kind == CREDIT)
    assert 2_400_000 - WINDOW < credit <= 2_400_000
    for fd in (typed, out):
        os.close(fd)


def test_more_than_there_is_credit_for(guest: Guest) -> None:
    typed, out, (_, stream, _) = start(guest)
    for _ in range(2 * WINDOW // 50_000):
        guest.send(frames.encode(DATA, stream, bytes(50_000)))
    assert guest.said == [f"broken the pod's virtual machine sent more on stream {stream} than it was allowed to"]
    for fd in (typed, out):
        os.close(fd)


def test_more_credit_than_there_is(guest: Guest) -> None:
    typed, out, (stream, _, _) = start(guest)
    guest.send(frames.encode_credit(stream, 1))
    assert guest.said == [f"broken the pod's virtual machine gave more credit on stream {stream} than there is"]
    for fd in (typed, out):
        os.close(fd)


def test_input_is_sent_as_far_as_there_is_credit(guest: Guest) -> None:
    typed, out, (stream, _, _) = start(guest)
    os.set_blocking(typed, False)
    sent = 0
    got: list[frames.Frame] = []
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            sent += os.write(typed, bytes(65536))
        guest.turn()
        got += guest.received()
    assert sum(len(payload) for kind, number, payload in got if (kind, number) == (DATA, stream)) == WINDOW
    assert sent <= WINDOW + 65536
    guest.send(frames.encode_credit(stream, WINDOW))
    os.close(typed)
    for _ in range(100):
        guest.turn()
        got += guest.received()
    assert sum(len(payload) for kind, _, payload in got if kind == DATA) == sent
    assert got[-1] == (END, stream, b"")
    os.close(out)


def test_a_file_is_sent_whole_however_its_credit_comes(guest: Guest, tmp_path: Path) -> None:
    """It is always ready: nothing is to be read of it without credit, which would look like its end."""
    data = os.urandom(5 * WINDOW + 1)
    (tmp_path / "input").write_bytes(data)
    stdin, null = os.open(tmp_path / "input", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    guest.bridge.start("one", (stdin, null, null), b"[]")
    for fd in (stdin, null):
        os.close(fd)
    got: list[frames.Frame] = []
    for _ in range(1000):
        guest.turn()
        found = [frame for frame in guest.received() if frame[0] in (DATA, END)]
        got += found
        if got and got[-1][0] == END:
            break
        for _, stream, payload in found:
            guest.wire.send(frames.encode_credit(stream, len(payload)))
    assert b"".join(payload for _, _, payload in got) == data


def test_streams_nobody_knows_cost_nothing(guest: Guest) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(500):
        guest.send(frames.encode(DATA, 1000 + number, bytes(WINDOW)), frames.encode(END, 1000 + number))
    assert not guest.said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_a_reader_that_has_gone_is_told_to_the_guest(guest: Guest) -> None:
    typed, out, (_, stream, _) = start(guest)
    os.close(out)
    guest.settle()
    assert (END, stream, b"") in guest.received()
    guest.send(frames.encode(DATA, stream, b"late"))
    assert not guest.said
    os.close(typed)


def test_a_terminal_comes_as_a_socket_each_time(guest: Guest) -> None:
    guest.bridge.start("one", (-1, -1, -1), b"x")
    text, _ = frames.decode_message(guest.received()[-1][2])
    assert text == "start one 1 1 1"
    for word in (b"first", b"second"):
        guest.say("terminal one")
        assert guest.heard[-1] == ("terminal one", 1)
        guest.send(frames.encode(DATA, 1, word))
        assert os.read(guest.masters[-1], 100) == word
    os.write(guest.masters[-1], b"typed")
    guest.settle()
    assert guest.received()[-1] == (DATA, 1, b"typed")


def test_a_terminal_of_an_app_without_one(guest: Guest) -> None:
    for fd in start(guest)[:2]:
        os.close(fd)
    guest.say("terminal one")
    assert not guest.masters


@pytest.mark.parametrize("who", ["guest", "host"])
def test_all_that_was_sent_is_written_whoever_hangs_up(guest: Guest, who: str) -> None:
    typed, out, (_, stream, _) = start(guest)
    guest.send(frames.encode(DATA, stream, bytes(WINDOW)))
    if who == "guest":
        guest.wire.close()
        guest.settle()
    else:
        guest.bridge.close()
    assert guest.said == [""][: who == "guest"]
    found = 0
    while data := os.read(out, 1 << 20):
        found += len(data)
    assert found == WINDOW
    for fd in (typed, out):
        os.close(fd)


def test_a_guest_that_does_not_listen_is_given_up(guest: Guest) -> None:
    for _ in range(100):
        guest.bridge.tell("pod", bytes(1 << 20))
    assert guest.said == ["broken the pod's virtual machine has stopped to listen"]


@given(st.lists(st.one_of(st.binary(max_size=60), sound.map(lambda frame: frames.encode(*frame))), max_size=8))
def test_garbage_ends_the_pod_or_is_dropped(parts: list[bytes]) -> None:
    guest = Guest()
    try:
        guest.send(*parts)
        assert len(guest.said) <= 1
        assert all(text.startswith("broken ") for text in guest.said)
        assert guest.bridge._wire.closed == bool(guest.said)
    finally:
        guest.close()


words = st.one_of(
    st.sampled_from(["one", "0", "1", "2", "255", "notify", "x", "", "-1", "9" * 30]), st.integers().map(str), texts
)
verbs = st.sampled_from(
    ["started", "terminal", "failed", "ended", "again", "idle", "ready", "health", "stopping", "over", "pong", "broken",
     "up", "ending", "limits", "datagram", "entered", "refused"]
)  # fmt: skip


@given(st.lists(st.tuples(verbs, st.lists(words, max_size=7), st.binary(max_size=30)), max_size=6))
def test_any_words_are_heard_well_formed_or_not_at_all(said: list[tuple[str, list[str], bytes]]) -> None:
    guest = Guest()
    try:
        guest.bridge.start("one", (-1, -1, -1), b"x")
        guest.bridge.enter("one", (guest.wire.fileno(),) * 3, b"x")
        guest.send(*(frames.encode_message(" ".join((verb, *rest)), blob) for verb, rest, blob in said))
        for text in guest.said:
            assert all(char.isprintable() for char in text)
            if text.startswith("ended"):
                assert all(word.isdigit() for word in text.split(" ")[2:])
                assert len(text.split(" ")) == 6
        assert sum(text == "ready" for text in guest.said) <= 1
    finally:
        guest.close()


def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest = Guest()
    typed, out, (stdin, stdout, _) = start(guest)
    guest.bridge.start("two", (-1, -1, -1), b"x")
    pair = socket.socketpair()
    guest.bridge.enter("one", (pair[0].fileno(),), b"x")
    for end in pair:
        end.close()
    guest.say("terminal two", "terminal two", "terminal one")
    guest.send(frames.encode(DATA, stdout, bytes(WINDOW)), frames.encode(END, stdout), frames.encode(END, stdin))
    for fd in (typed, out):
        os.close(fd)
    guest.close()
    assert len(os.listdir("/proc/self/fd")) == before
