"""The pod's own log of an app: files `logs/APP`, `logs/APP.1` (older), … in the pod directory.

The format is that of Kubernetes' container runtimes, an entry a line:

    2016-10-06T00:17:09.669794202Z stdout F The content of the log entry 1
    2016-10-06T00:17:09.669794202Z stderr P The beginning of a line,

`P` marks a part of a line that goes on in the next entry of its stream, `F` the rest of it, or all of it. An app's
output is written as it comes, so nothing is held back: what ends in the middle of a line is a `P`.
`stage1.logreader` reads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from common.errors import reason

LIMIT = 16384
"""Bytes of a line in one entry; a longer one is cut into several."""
SEGMENT = 16 << 20
"""Bytes in a file before the next one is begun."""
SEGMENTS = 16
"""How many files of an app are kept, the one being written included."""
STREAM_AT = len("2016-10-06T00:17:09.669794202Z ")
"""Where an entry names its stream: times have a fixed width."""
TAG_AT = STREAM_AT + len("stdout ")
"""Where an entry has its P or F: both streams' names are six letters long."""
TEXT_AT = TAG_AT + len("F ")

_OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def directory(pod: str) -> str:
    """Where the logs of a pod are."""
    return f"{pod}/logs"


class LogFile:
    """The log of one app, being written.

    Never raises for what happens to the disk and never waits for room: what cannot be written is counted, and the count
    is written once writing works again."""

    def __init__(self, pod: str, app: str, *, segment: int = SEGMENT, segments: int = SEGMENTS) -> None:
        """Raises OSError when the log cannot be opened."""
        try:
            os.mkdir(directory(pod), 0o750)
        except FileExistsError:
            pass
        self.path = f"{directory(pod)}/{app}"
        self._segment = segment
        self._segments = segments
        self._fd = os.open(self.path, _OPEN, 0o640)
        self._size = os.fstat(self._fd).st_size
        self._clock = _Clock()
        self._unfinished: set[bytes] = set()
        self._lost = 0
        self._why = ""

    def close(self) -> None:
        self._append(b"")
        os.close(self._fd)
        self._fd = -1  # the number is somebody else's soon

    def write(self, stream: str, data: bytes) -> None:
        """Log what came from "stdout" or "stderr", in pieces as they were read."""
        self._append(entries(self._clock.now() + b" " + stream.encode("ascii"), data))

    def end_lines(self) -> None:
        """Complete what was left in the middle of a line: whatever comes next does not belong to it."""
        self._append(self._completions())

    full = False

    def when_room(self, callback: Callable[[], None]) -> None:
        callback()

    def started(self, pid: int) -> None:
        self.end_lines()

    def ended(self) -> None:
        """Nothing was held back."""

    def _completions(self) -> bytes:
        return b"".join(b"%b %b F \n" % (self._clock.now(), name) for name in sorted(self._unfinished))

    def _append(self, text: bytes) -> None:
        notice = b""
        if self._lost:
            said = f"rkpy: {self._lost} entries of this log were lost: {self._why}\n"
            notice = self._completions() + self._clock.now() + b" stderr F " + said.encode()
        kept = self._write(notice + text)
        if notice and kept >= len(notice):
            self._unfinished.clear()
            self._lost = 0
        self._lost += text.count(b"\n", max(0, kept - len(notice)))
        self._note_unfinished(text[: max(0, kept - len(notice))])

    def _note_unfinished(self, text: bytes) -> None:
        """Remember whether the stream of the last entry in `text` is in the middle of a line."""
        if text:
            last = text.rfind(b"\n", 0, len(text) - 1) + 1
            name = text[last + STREAM_AT : last + TAG_AT - 1]
            (self._unfinished.discard if text[last + TAG_AT] == ord("F") else self._unfinished.add)(name)

    def _write(self, text: bytes) -> int:
        """How many bytes, all of them whole entries, went into the log."""
        if self._size and self._size + len(text) > self._segment:
            self._rotate()
        written = 0
        try:
            while written < len(text):
                written += os.write(self._fd, text[written:] if written else text)
        except OSError as error:
            self._why = reason(error)
            whole = text.rfind(b"\n", 0, written) + 1
            if whole < written:
                self._take_back(written - whole)
            written = whole
        self._size += written
        return written

    def _take_back(self, count: int) -> None:
        """Remove the beginning of an entry; whole ones stay, because a reader may have seen them."""
        try:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - count)
        except OSError:  # Readers pass over what is no entry.
            pass

    def _rotate(self) -> None:
        """Begin a new file. When that is not possible now, this one grows until it is."""
        new = f"{self.path}.new"
        try:
            fd = os.open(new, _OPEN | os.O_TRUNC, 0o640)
        except OSError:
            return
        names = [self.path, *(f"{self.path}.{number}" for number in range(1, self._segments))]
        try:
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                if os.path.lexists(newer):
                    os.rename(newer, older)
            os.rename(new, self.path)
        except OSError:
            os.close(fd)
            return
        os.close(self._fd)
        self._fd = fd
        self._size = 0


class _Clock:
    """The time as RFC 3339 has it, with nanoseconds."""

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def now(self) -> bytes:
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode("ascii")
        return b"%b.%09dZ" % (self._text, rest)


def entries(head: bytes, data: bytes) -> bytes:
    """`data` as entries that begin with `head`, time and stream. Lines are never looked at one by one: as many whole
    ones as surely fit are found with one search and marked with one replacement."""
    full, part = head + b" F ", head + b" P "
    between = b"\n" + full
    made: list[bytes] = []
    start = 0
    while start < len(data):
        # A piece that begins with a line and is no longer than one may be has no line that is too long.
        end = data.rfind(b"\n", start, start + LIMIT + 1)
        if end >= 0:
            made += full, data[start:end].replace(b"\n", between), b"\n"
            start = end + 1
        else:
            made += part, data[start : start + LIMIT], b"\n"
            start += LIMIT
    return b"".join(made)
