"""Reading the logs that `stage1.logs` writes, also while they are written and rotated."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from common.records import NamedTuple
from stage1.logs import STREAM_AT, TAG_AT, TEXT_AT, directory

_BLOCK = 1 << 18
_PAUSE = 0.1
_SECONDS = "%Y-%m-%dT%H:%M:%S"
_WIDTH = len("2016-10-06T00:17:09")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_HEAD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (?:stdout|stderr) [PF] ")
_FULL = re.compile(rb"\n\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (?:stdout|stderr) F ")


class Entry(NamedTuple):
    """A line of an app's output, or a part of one."""

    app: str
    time: str
    """RFC 3339 in UTC with nine digits: earlier ones sort first."""
    stream: str
    full: bool
    """Whether a line ends here."""
    text: bytes

    @property
    def data(self) -> bytes:
        """What the app wrote."""
        return self.text + b"\n" if self.full else self.text


def apps(pod: str) -> list[str]:
    """The apps that have a log in the pod directory `pod`. Raises OSError, but not when there are no logs at all."""
    try:
        names = os.listdir(directory(pod))
    except FileNotFoundError:
        return []
    return sorted({name.partition(".")[0] for name in names})


def read(
    pod: str,
    names: Sequence[str],
    *,
    since: str = "",
    tail: int = -1,
    running: Callable[[], bool] | None = None,
) -> Iterator[Entry]:
    """The logs of the apps `names` in the order of time. Only what is not older than `since` (as `Entry.time`) and of
    that only the last `tail` lines, if that is not negative; then, with `running`, what is added for as long as it
    says that the pod runs, and what was added until then. Raises OSError."""
    reader = _Reader(pod, names)
    try:
        reader.skip_before(since)
        if tail >= 0:
            reader.skip_to_last(tail)
        entries = (entry for entry in reader.take() if entry.time >= since)
        yield from entries if tail < 0 else last_lines(entries, tail)
        while running is not None:
            is_last = not running()  # asked first: what is read afterwards is all there will ever be
            yield from (entry for entry in reader.take() if entry.time >= since)
            if is_last:
                return
            time.sleep(_PAUSE)
    finally:
        reader.close()


def last_lines(entries: Iterator[Entry], count: int) -> list[Entry]:
    """The entries of the last `count` lines in the order of their ends, then of those that have none yet."""
    lines: deque[list[Entry]] = deque(maxlen=count)
    begun: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        line = begun.setdefault((entry.app, entry.stream), [])
        line.append(entry)
        if entry.full:
            lines.append(begun.pop((entry.app, entry.stream)))
    lines.extend(begun.values())
    return [entry for line in lines for entry in line]


class _Reader:
    """The logs of some apps. Close it."""

    def __init__(self, pod: str, names: Sequence[str]) -> None:
        self._files = [_AppReader(f"{directory(pod)}/{name}", name) for name in names]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def skip_before(self, when: str) -> None:
        for file in self._files:
            file.skip_before(when)

    def skip_to_last(self, lines: int) -> None:
        for file in self._files:
            file.skip_to_last(lines)

    def take(self) -> Iterator[Entry]:
        """What has come since this was last called."""
        return _merge([file.take() for file in self._files])


def _merge(sources: list[Iterator[Entry]]) -> Iterator[Entry]:
    """By time; entries of one source stay in order even when the clock was set back."""
    heads = [(source, entry) for source in sources if (entry := next(source, None)) is not None]
    while heads:
        at = min(range(len(heads)), key=lambda index: heads[index][1].time)
        source, entry = heads[at]
        yield entry
        following = next(source, None)
        if following is None:
            del heads[at]
        else:
            heads[at] = source, following


class _AppReader:
    """The log of one app: its files, oldest first, each held open so that it stays the same whatever it is called."""

    def __init__(self, path: str, app: str) -> None:
        self._path = path
        self._app = app
        self._fds = self._snapshot()
        self._offset = 0

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _snapshot(self) -> list[int]:
        """Every file of the log, oldest first. They are opened newest first, in the direction in which rotation moves
        them: so none is missed, though one may be met twice."""
        found: list[int] = []
        seen: set[int] = set()
        number = missing = 0
        while missing < 2:  # for an instant one name of the row may be free
            try:
                fd = os.open(f"{self._path}.{number}" if number else self._path, _OPEN)
            except FileNotFoundError:
                missing += 1
            else:
                missing = 0
                inode = os.fstat(fd).st_ino
                if inode in seen:
                    os.close(fd)
                else:
                    seen.add(inode)
                    found.append(fd)
            number += 1
        return found[::-1]

    def take(self) -> Iterator[Entry]:
        # Once there is a newer file, nothing is added to the ones before it.
        self._find_newer()
        while self._fds:
            yield from self._rest_of_file()
            if len(self._fds) == 1:
                return
            self._forget(1)

    def _find_newer(self) -> None:
        """Open what was begun since."""
        if self._fds and self._is_current(self._fds[-1]):
            return
        last = os.fstat(self._fds[-1]).st_ino if self._fds else -1
        found = self._snapshot()
        inodes = [os.fstat(fd).st_ino for fd in found]
        known = inodes.index(last) + 1 if last in inodes else 0
        for fd in found[:known]:
            os.close(fd)
        self._fds += found[known:]

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path, follow_symlinks=False))
        except FileNotFoundError:  # in the middle of a rotation
            return False

    def _forget(self, files: int, offset: int = 0) -> None:
        """Begin `files` later, at `offset`."""
        for fd in self._fds[:files]:
            os.close(fd)
        self._fds = self._fds[files:]
        self._offset = offset

    def _rest_of_file(self) -> Iterator[Entry]:
        """Whole entries only: the writer may be in the middle of one, or take the beginning of one back. And only what
        is there now, so that this ends however fast the app is."""
        fd = self._fds[0]
        limit = os.fstat(fd).st_size
        while block := os.pread(fd, min(_BLOCK, limit - self._offset), self._offset):
            end = block.rfind(b"\n") + 1
            if not end:  # no entry is as long as a block
                return
            self._offset += end
            for line in block[: end - 1].split(b"\n"):
                if _HEAD.match(line):
                    yield self._entry(line)

    def _entry(self, line: bytes) -> Entry:
        head = line[:TEXT_AT].decode("ascii")
        return Entry(
            self._app, head[: STREAM_AT - 1], head[STREAM_AT : TAG_AT - 1], head[TAG_AT] == "F", line[TEXT_AT:]
        )

    def skip_before(self, when: str) -> None:
        """Leave out files that were not written to since `when`."""
        for fd in tuple(self._fds[:-1]):
            if time.strftime(_SECONDS, time.gmtime(os.fstat(fd).st_mtime)) < when[:_WIDTH]:
                self._forget(1)
            else:
                return

    def skip_to_last(self, lines: int) -> None:
        """Go to where at least the last `lines` lines begin, without reading what is before them."""
        for at in range(len(self._fds) - 1, -1, -1):
            end = os.fstat(self._fds[at]).st_size
            while end > 0:
                start = max(0, end - _BLOCK)
                block = os.pread(self._fds[at], end - start, start)
                # A head that begins in one block and ends in the next is not counted, nor is the first of a file: that
                # only leads further back than needed.
                lines -= len(_FULL.findall(block))
                if lines < 0:
                    self._forget(at, start + block.index(b"\n") + 1)
                    return
                end = start
