"""What pods have left in the journal, by python-systemd: their apps' output, as `stage1.logreader` tells it of files.

Any process of the machine may send entries to the journal, and put into them what it likes, but for the fields that the
journal adds itself: these begin with an underscore (systemd.journal-fields(7)). Only entries of a process of the root
user count here, and of whoever reads, sent in the native protocol; and of what apps send themselves the monitor lets
none of our fields pass.
"""

from __future__ import annotations

import errno
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common import journal
from common.errors import PodError
from stage0 import caller
from stage1 import logreader
from stage1.logreader import Entry

STREAMS = ("stdout", "stderr", "journal", "syslog")
"""What RKPY_STREAM of an app's entry says: which of its outputs it came from."""
_PREFIX = re.compile(r"[0-9a-f]{8}[0-9a-f-]*")
_WHOLE = 36
_ALL_NAMESPACES = 1 << 5
"""SD_JOURNAL_ALL_NAMESPACES of sd_journal_open(3), which python-systemd has no name for: a pod in a service with
`LogNamespace=` has its output there."""
_PAUSE = 0.2
_SECONDS = "%Y-%m-%dT%H:%M:%S"
_VACUUMED = (errno.EBADMSG, errno.EADDRNOTAVAIL)
"""What reading an entry fails with whose file has just been emptied; journalctl(1) passes it over, too."""


def is_installed() -> bool:
    try:
        import systemd.journal  # noqa: F401
    except ImportError:
        return False
    return True


def open_journal(**matches: str) -> Any:
    """A reader of trusted entries with these fields. Raises PodError."""
    try:
        from systemd import journal as library
    except ImportError as error:
        wanted = " ".join(f"{name}={value}" for name, value in matches.items() if name != "MESSAGE_ID")
        raise PodError(
            "reading the journal takes the Python package systemd-python, which is not installed",
            hint=f"install rkpy[systemd], or use journalctl {wanted}",
        ) from error
    try:
        reader = library.Reader(flags=library.LOCAL_ONLY | _ALL_NAMESPACES)
    except ValueError:  # a library that knows of none
        reader = library.Reader()
    for uid in dict.fromkeys((0, caller.UID)):
        reader.add_match(f"_UID={uid}")
    for name, value in {"_TRANSPORT": "journal", **matches}.items():
        reader.add_match(f"{name}={value}")
    return reader


def find(text: str) -> str:
    """The UUID of a pod that is in the journal: by its UUID, by eight or more characters that this begins with, or by
    name, of which the youngest is meant. Empty when there is none. Raises PodError."""
    if not _PREFIX.fullmatch(text):
        return _by_name(text)
    if len(text) == _WHOLE:
        return text if _is_known(text) else ""
    with open_journal() as reader:
        claimed = sorted(value for value in map(str, reader.query_unique("RKPY_POD_UUID")) if value.startswith(text))
    found = [uuid for uuid in claimed if _is_known(uuid)]
    if len(found) > 1:
        raise PodError(f'ambiguous UUID "{text}": {len(found)} matches in the journal', hint="give more of it")
    return found[0] if found else ""


def _is_known(uuid: str) -> bool:
    with open_journal(RKPY_POD_UUID=uuid) as reader:
        reader.seek_head()
        return bool(reader._next())


def _by_name(name: str) -> str:
    with open_journal(RKPY_POD_NAME=name) as reader:
        reader.seek_tail()
        return _text(reader, "RKPY_POD_UUID") if reader._previous() else ""


def apps(uuid: str) -> list[str]:
    """The apps of a pod that were started. Raises PodError."""
    # Of a unit that says too much the journal drops entries, and so the events of a start there.
    return _apps(RKPY_POD_UUID=uuid, MESSAGE_ID=journal.STARTED) or _apps(RKPY_POD_UUID=uuid)


def _apps(**matches: str) -> list[str]:
    found = set()
    with open_journal(**matches) as reader:
        reader.seek_head()
        while reader._next():
            found.add(_text(reader, "RKPY_APP"))
    return sorted(found - {""})


def read(
    uuid: str,
    names: Sequence[str],
    *,
    since: str = "",
    tail: int = -1,
    running: Callable[[], bool] | None = None,
) -> Iterator[Entry]:
    """As `logreader.read` does. Raises PodError."""
    with open_journal(RKPY_POD_UUID=uuid) as reader:
        for name in names:
            reader.add_match(f"RKPY_APP={name}")
        for stream in STREAMS:
            reader.add_match(f"RKPY_STREAM={stream}")
        reader.seek_realtime(_microseconds(since)) if since else reader.seek_head()
        limit = time.time_ns() // 1000 if running is None else 0
        entries = iter(_tail(reader, tail, since)) if tail >= 0 else _take(reader, limit)
        yield from (entry for entry in entries if entry.time >= since)
        while running is not None:
            is_last = not running()  # asked first: what is read afterwards is all there will ever be
            reader.process()
            yield from (entry for entry in _take(reader) if entry.time >= since)
            if is_last:
                return
            reader.wait(_PAUSE)


def _take(reader: Any, limit: int = 0) -> Iterator[Entry]:
    """What comes next; with `limit` this ends with what the journal has received later than then."""
    while reader._next():
        try:
            if limit and reader._get_realtime() > limit:
                return
            entry = _entry(reader)
        except OSError as error:
            if error.errno not in _VACUUMED:
                raise
            continue
        yield entry


def _tail(reader: Any, count: int, since: str) -> list[Entry]:
    """The entries of the last `count` lines. Their beginnings are looked for, too: what a line goes on from may lie
    before other lines."""
    found: deque[Entry] = deque()
    lines = 0
    unbegun: set[tuple[str, str]] = set()
    reader.seek_tail()
    end = ""
    while (lines < count or unbegun) and reader._previous():
        try:
            end = end or reader._get_cursor()
            entry = _entry(reader)
        except OSError as error:
            if error.errno not in _VACUUMED:
                raise
            break  # What is older goes as well.
        if entry.time < since:
            break
        found.appendleft(entry)
        key = entry.app, entry.stream
        if entry.full:
            unbegun.discard(key)
            if lines < count:
                unbegun.add(key)
            lines += 1
    if end:
        reader.seek_cursor(end)
        reader._next()
    else:
        reader.seek_head()
    return logreader.last_lines(iter(found), count)


def _entry(reader: Any) -> Entry:
    return Entry(
        app=_text(reader, "RKPY_APP"),
        time=_time(reader),
        stream=_text(reader, "RKPY_STREAM"),
        full=not _field(reader, "CONTAINER_PARTIAL_MESSAGE"),
        text=_field(reader, "MESSAGE"),
    )


def _field(reader: Any, name: str) -> bytes:
    try:
        value: bytes = reader._get(name)
    except KeyError:
        return b""
    return value


def _text(reader: Any, name: str) -> str:
    return _field(reader, name).decode("utf-8", "replace")


def _time(reader: Any) -> str:
    """When the entry was sent, as far as the journal knows."""
    source = _field(reader, "_SOURCE_REALTIME_TIMESTAMP")
    seconds, rest = divmod(int(source) if source.isdigit() else reader._get_realtime(), 1_000_000)
    return time.strftime(_SECONDS, time.gmtime(seconds)) + f".{rest:06d}000Z"


def _microseconds(when: str) -> int:
    from datetime import UTC, datetime

    moment = datetime.strptime(when[: len("2016-10-06T00:17:09")], _SECONDS).replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000
