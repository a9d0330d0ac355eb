"""What an app sends to the journal itself, passed on by the monitor with the pod's fields.

An app that speaks the journal's native protocol (sd_journal_send(3)) or syslog(3) finds the sockets it looks for
(`stage1.appsockets`), with the monitor behind them. The journal believes the monitor, who is root; so nothing passes by
which an entry would be taken for one of somebody else: docs/logs.md says what an app may set.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator

from common import journal
from stage1 import appsockets
from stage1.appsockets import AppSocket
from stage1.journallog import NOT_FOR_ALL, Journal
from stage1.loop import Loop

LARGEST = 1 << 20
"""Bytes of a message that comes as a file in memory."""
_MAX_ENTRIES = 64
"""Of one message."""
_MAX_FIELDS = 128
"""Of one entry."""
_QUEUED = 8
"""How often a socket is looked at until what was there is taken (net.unix.max_dgram_qlen is 512 with systemd)."""
_MUCH = 4 << 20
"""Bytes after which what an app left behind is not taken any more."""
_NAME = re.compile(rb"[A-Z][A-Z0-9_]{0,63}")
_SINGLE = (b"MESSAGE", b"PRIORITY", b"MESSAGE_ID")
"""Fields of which an entry has one."""
_RESERVED = re.compile(rb"(RKPY|CONTAINER|COREDUMP|OBJECT)_.*|IMAGE_NAME|UNIT|USER_UNIT")
"""Fields by which an entry would be about another pod, unit or process: journalctl(1) and coredumpctl(1) believe them
of root."""
_IDENTIFIER = b"SYSLOG_IDENTIFIER"
_SYSLOG = re.compile(
    rb"(?:<(\d{1,3})>)?(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?(?:([^\s:\[]{1,255})(?:\[(\d{1,10})\])?:[ \t]*)?"
)
_USER = 1
"""The facility of what names none (syslog(3), LOG_USER)."""
_INFO = 6

Fields = list[tuple[bytes, bytes]]


class AppJournal:
    """The two sockets of one app."""

    def __init__(self, loop: Loop, way: Journal, pod: str, app: str, fields: bytes) -> None:
        """`fields` are those that all entries of the app have. Raises LaunchError."""
        self._way = way
        self._fields = fields
        self._paused = False
        self._heard = 0
        """Bytes, in all."""
        self._sockets = (
            AppSocket(loop, pod, app, appsockets.JOURNAL, self._hear_native),
            AppSocket(loop, pod, app, appsockets.SYSLOG, self._hear_syslog),
        )

    def drain(self) -> None:
        """Take what is there now, within reason."""
        start = self._heard
        for socket in self._sockets:
            for _ in range(_QUEUED):
                if self._heard - start < _MUCH:
                    socket.take()

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._sockets = ()  # type: ignore[assignment]  # `_resume` may still be called

    def _hear_native(self, data: bytes, fds: list[int]) -> None:
        if len(fds) == 1 and not data:
            data = _read_sealed(fds[0])
        elif fds:
            return
        self._pass_on(b"RKPY_STREAM=journal\n", parse(data))

    def _hear_syslog(self, data: bytes, _fds: list[int]) -> None:
        self._pass_on(b"RKPY_STREAM=syslog\n", iter((parse_syslog(data),)))

    def _pass_on(self, origin: bytes, entries: Iterator[Fields]) -> None:
        head = self._fields + origin
        found = [head + _text(fields) for fields in map(allowed, entries) if fields]
        self._heard += sum(map(len, found))
        self._way.put(iter(found))
        if self._way.full and not self._paused:
            self._paused = True
            for socket in self._sockets:
                socket.pause()
            self._way.when_room(self._resume)

    def _resume(self) -> None:
        self._paused = False
        for socket in self._sockets:
            socket.resume()


def _read_sealed(fd: int) -> bytes:
    """The content of a file in memory that nobody can change any more; nothing of any other, which could be changed,
    or keep us waiting."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & journal.SEALS != journal.SEALS or os.fstat(fd).st_size > LARGEST:
            return b""
        return os.pread(fd, LARGEST, 0)
    except OSError:
        return b""


def parse(data: bytes) -> Iterator[Fields]:
    """The entries of a message in the native protocol, as far as it can be understood."""
    at = 0
    for _ in range(_MAX_ENTRIES):
        fields, at = _parse_entry(data, at)
        if fields:
            yield fields
        if at >= len(data):
            return


def _parse_entry(data: bytes, at: int) -> tuple[Fields, int]:
    """The fields from `at` on, and where the next entry begins."""
    found: Fields = []
    while (end := data.find(b"\n", at)) >= 0:
        line, at = data[at:end], end + 1
        if not line:
            return found, at
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[at : at + 8], "little")
            value, at = data[at + 8 : at + 8 + size], at + 8 + size + 1
            if data[at - 1 : at] != b"\n":
                break
        if len(found) == _MAX_FIELDS:
            break  # There may be hundreds of thousands more, and others wait meanwhile.
        found.append((name, value))
    return found, len(data)


def parse_syslog(data: bytes) -> Fields:
    """A message as syslog(3) sends it to /dev/log: `<PRIORITY>TIME TAG[PID]: TEXT`, all but the text optional."""
    match = _SYSLOG.match(data)
    number, tag, pid = match.groups() if match else (None, None, None)
    said = int(number or _INFO) & 0x3FF
    fields = [
        (b"PRIORITY", b"%d" % (said & 7)),
        (b"SYSLOG_FACILITY", b"%d" % (said >> 3 or _USER)),
        (_IDENTIFIER, tag or b""),
        (b"SYSLOG_PID", pid or b""),
        (b"MESSAGE", data[match.end() if match else 0 :].rstrip(b"\0\n\r\t ")),
    ]
    return [(name, value) for name, value in fields if value]


def allowed(fields: Fields) -> Fields:
    """What of an entry is passed on; nothing of one without anything to tell."""
    found: Fields = []
    seen: set[bytes] = set()
    for name, value in fields:
        if name == _IDENTIFIER:
            found.append((b"RKPY_SYSLOG_IDENTIFIER", value))
        elif _NAME.fullmatch(name) and not _RESERVED.fullmatch(name) and name not in seen and _is_sound(name, value):
            if name in _SINGLE:
                seen.add(name)
            found.append((name, value))
    if b"PRIORITY" not in seen:
        found.append((b"PRIORITY", b"%d" % _INFO))
    return found if b"MESSAGE" in seen else []


def _is_sound(name: bytes, value: bytes) -> bool:
    if name == b"PRIORITY":
        return len(value) == 1 and value in b"01234567"
    return name != b"MESSAGE_ID" or value.replace(b"-", b"").lower().decode("ascii", "replace") not in journal.EVENTS


def _text(fields: Fields) -> bytes:
    return b"".join(
        journal.field(name.decode("ascii"), NOT_FOR_ALL if (name, value) == (b"PRIORITY", b"0") else value)
        for name, value in fields
    )
