"""The journal as the log of a pod's apps: an entry for each line, sent by the monitor under its own name.

So an entry has the pod's unit (`_SYSTEMD_UNIT`, …) however short an app lives: the journal looks its sender up, and the
monitor does not end before the journal has taken everything. docs/logs.md describes the entries.
"""

from __future__ import annotations

import errno
import time
from _socket import socket as Socket  # noqa: N812
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from common import journal
from common.errors import reason
from stage1.appsockets import JOURNAL
from stage1.logs import LIMIT
from stage1.loop import WRITE, Loop
from stage1.plan import JOURNALD, AppPlan, PodPlan

if TYPE_CHECKING:
    from stage1.appjournal import AppJournal

PATIENCE = 10.0
"""Seconds without a journal, or without it taking anything at the end, until entries are given up."""
_BRIEFLY = 1.0
"""The same where it is not the log, and gets events only."""
_PAUSE = 0.1
"""Seconds until the next attempt to reach it."""
_SELDOM = 1.0
"""The same once it was given up."""
_AT_ONCE = 512
"""Entries that are sent before others have their turn."""
_GLANCE = 0.002
_PRIORITIES = {"stdout": "6", "stderr": "3"}
"""As podman and docker have them."""
NOT_FOR_ALL = b"1"
"""What apps have instead of priority 0, which would be shown to everybody who is logged in (`ForwardToWall=`,
journald.conf(5))."""
_PREFIXES = {b"<%d>" % number: str(max(1, number)) for number in range(8)}
"""What a line may begin with (sd-daemon(3))."""


class Journal:
    """A way to the journal that takes entries as they are made. While it is `full`, whoever makes many waits, as the
    apps do. Nothing is lost while the journal is slow, or away for less than PATIENCE; then what is lost is counted."""

    def __init__(self, loop: Loop, path: str = journal.SOCKET, patience: float = PATIENCE) -> None:
        self.lost = 0
        """Entries nobody took and nobody was told about."""
        self.why = ""
        self._loop = loop
        self._path = path
        self._patience = patience
        self._socket: Socket | None = None
        self._away_since = 0.0
        """When it was missed first; 0 while it is there."""
        self._given_up = False
        self._queue: deque[Iterator[bytes]] = deque()
        self._next = b""
        self._sent = 0
        self._waiting = False
        """For room, or for the journal to come back."""
        self._watched = False
        self._room: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        return bool(self._queue)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call once, when this is not full any more."""
        self._room.append(callback)

    def put(self, entries: Iterator[bytes]) -> None:
        """Send these, after all that came before."""
        if self._given_up:
            self.lost += sum(1 for _ in entries)
            return
        self._queue.append(entries)
        if not self._waiting:
            self._advance()

    def when_taken(self, callback: Callable[[], None]) -> None:
        """Call once, when the journal has received everything, or does not for too long."""
        seen, deadline = self._progress(), time.monotonic() + self._patience

        def look() -> None:
            nonlocal seen, deadline
            if seen != (seen := self._progress()):
                deadline = time.monotonic() + self._patience
            taken = not self._queue and seen[1] == 0
            if not taken and not self._given_up and time.monotonic() > deadline:
                self.why = self.why or "it does not take them"
                self._give_up()
            if taken or self._given_up:
                callback()
            else:
                self._loop.call_later(_GLANCE, look)

        look()

    def give_up(self, why: str) -> None:
        """Send nothing more: what was not sent is lost."""
        if self._queue:
            self.why = self.why or why
            self._give_up()

    def close(self) -> None:
        self._watch(False)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _progress(self) -> tuple[int, int]:
        """Entries that were sent, and bytes of them that were not received ."""
        if self._socket is None:
            return self._sent, 0
        return self._sent, journal.unread(self._socket)

    def _advance(self) -> None:
        self._waiting = True  # until everything is sent; what is put meanwhile waits its turn
        try:
            if self._socket is None:
                self._connect()
            all_sent = self._send_some()
        except BlockingIOError:
            self._watch(True)
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ENOMEM):
                self._loop.call_later(_PAUSE, self._advance)
            else:
                self._miss(reason(error))
        else:
            if all_sent:
                self._rest()
            elif not self._watched:
                self._loop.call_later(0, self._advance)

    def _send_some(self) -> bool:
        """Whether that was all. OSError where the next one cannot be sent; it stays the next one."""
        socket = self._socket
        if socket is None:
            return False
        for _ in range(_AT_ONCE):
            while not self._next:
                if not self._queue:
                    return True
                self._next = next(self._queue[0], b"")
                if not self._next:
                    self._queue.popleft()
            journal.send(socket, self._next)
            self._next = b""
            self._sent += 1
        return False

    def _rest(self) -> None:
        self._watch(False)
        self._waiting = False
        self._room, calls = [], self._room
        for call in calls:
            call()

    def _watch(self, on: bool) -> None:
        if on != self._watched and self._socket is not None:
            if on:
                self._loop.add(self._socket.fileno(), WRITE, lambda _events: self._advance())
            else:
                self._loop.remove(self._socket.fileno())
            self._watched = on

    # --- when there is no journal

    def _connect(self) -> None:
        self._socket = journal.connect(self._path)
        journal.forget_unit(self._socket)
        self._away_since = 0.0
        self._given_up = False
        if self.lost:
            text = f"{self.lost} entries were lost: the journal could not be reached: {self.why}"
            notice = {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": journal.IDENTIFIER}
            self._queue.appendleft(iter((journal.entry(notice.items()),)))
            self.lost = 0

    def _miss(self, why: str) -> None:
        """Look for it until it is there again."""
        self.why = why
        self.close()
        self._away_since = self._away_since or time.monotonic()
        if time.monotonic() - self._away_since > self._patience:
            self._give_up()
        self._loop.call_later(_SELDOM if self._given_up else _PAUSE, self._advance)

    def _give_up(self) -> None:
        """Nobody waits for it any more."""
        self._given_up = True
        self.lost += bool(self._next) + sum(1 for entries in self._queue for _ in entries)
        self._next = b""
        self._queue.clear()
        self._room, calls = [], self._room
        for call in calls:
            call()


class JournalLog:
    """The log of one app (`streams.Log`)."""

    def __init__(self, way: Journal, fields: bytes) -> None:
        self._way = way
        self._fields = fields
        self._pid = b""
        self._begun = {"stdout": b"", "stderr": b""}
        self._cut = {"stdout": "", "stderr": ""}
        """The priority of a line whose beginning was sent."""

    @property
    def full(self) -> bool:
        return self._way.full

    def when_room(self, callback: Callable[[], None]) -> None:
        self._way.when_room(callback)

    def close(self) -> None:
        self.ended()

    def started(self, pid: int) -> None:
        self.ended()
        self._pid = b"SYSLOG_PID=%d\n" % pid if pid else b""

    def ended(self) -> None:
        """What was left in the middle of a line is all there will be of it."""
        for stream, begun in self._begun.items():
            if begun:
                self.write(stream, b"\n")

    def write(self, stream: str, data: bytes) -> None:
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            lines = (self._begun[stream] + whole).split(b"\n")
            self._way.put(self._entries(stream, lines, self._cut[stream]))
            self._begun[stream], self._cut[stream] = rest, ""
        else:
            self._begun[stream] += rest
        if len(self._begun[stream]) > LIMIT:
            self._send_beginning(stream)

    def _send_beginning(self, stream: str) -> None:
        """Of a line that is too long to wait for its end."""
        begun = self._begun[stream]
        if not self._cut[stream]:
            self._cut[stream], begun = _priority(stream, begun)
        kept = (len(begun) - 1) // LIMIT * LIMIT
        self._way.put(self._parts(self._head(stream, self._cut[stream]), begun[:kept]))
        self._begun[stream] = begun[kept:]

    def _entries(self, stream: str, lines: Sequence[bytes], cut: str) -> Iterator[bytes]:
        """`cut` is the priority of the first line, when it is the rest of one."""
        heads = {number: self._head(stream, number) for number in _PREFIXES.values()}
        usual = heads[_PRIORITIES[stream]]
        for at, line in enumerate(lines):
            head = usual
            if cut and not at:
                head = heads[cut]
            elif line[:1] == b"<":
                priority, line = _priority(stream, line)
                head = heads[priority]
            if line[-1:] == b"\r":  # as every line from a terminal has
                line = line[:-1]
            if len(line) > LIMIT:
                kept = (len(line) - 1) // LIMIT * LIMIT
                yield from self._parts(head, line[:kept])
                line = line[kept:]
            yield b"%bMESSAGE=%b\n" % (head, line)

    def _parts(self, head: bytes, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), LIMIT):
            yield b"%bCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=%b\n" % (head, data[at : at + LIMIT])

    def _head(self, stream: str, priority: str) -> bytes:
        own = journal.entry((("RKPY_STREAM", stream), ("PRIORITY", priority)))
        return b"%b%b%b" % (self._fields, self._pid, own)


def _priority(stream: str, line: bytes) -> tuple[str, bytes]:
    """What the line says of its priority, and the rest of it."""
    said = _PREFIXES.get(line[:3])
    return (_PRIORITIES[stream], line) if said is None else (said, line[3:])


class PodJournal:
    """What a pod has to do with the journal: its events, and where it was chosen the logs of its apps."""

    def __init__(self, loop: Loop, plan: PodPlan, path: str = journal.SOCKET) -> None:
        self._plan = plan
        self._way = Journal(loop, path, PATIENCE if plan.log_driver == JOURNALD else _BRIEFLY)
        self._loop = loop
        self._listeners: dict[str, AppJournal] = {}
        self._pod = f'pod "{plan.name or plan.uuid}"'

    def log(self, app: AppPlan) -> JournalLog:
        return JournalLog(self._way, app_fields(self._plan, app))

    def listen(self, app: AppPlan) -> None:
        """Hear what the app has to say itself, if it has the sockets for that. Raises LaunchError."""
        if JOURNAL not in app.sockets or app.name in self._listeners:
            return
        from stage1.appjournal import AppJournal

        fields = app_fields(self._plan, app)
        self._listeners[app.name] = AppJournal(self._loop, self._way, self._plan.directory, app.name, fields)

    def removed(self, app: str) -> None:
        if app in self._listeners:
            self._listeners.pop(app).close()

    def pod_started(self) -> None:
        self._event(journal.STARTED, f"P{self._pod[1:]} started", {})

    def app_started(self, app: AppPlan, pid: int) -> None:
        fields = image_fields(app) | {"RKPY_PID": str(pid) if pid > 0 else ""}
        self._event(journal.STARTED, f'App "{app.name}" of {self._pod} started', fields)

    def app_ended(self, app: AppPlan, status: int, number: int, *, oom: bool, asked: bool) -> None:
        """As `poddir.Ending` has it."""
        if app.name in self._listeners:
            self._listeners[app.name].drain()
        about = f'App "{app.name}" of {self._pod}'
        fields = image_fields(app) | _ending(status, number)
        if oom:
            self._event(journal.OOM, f"{about} ran out of the memory it may have", fields, journal.WARNING)
            fields["RKPY_OOM"] = "1"
        priority = journal.INFO if status == 0 or asked else journal.NOTICE
        self._event(journal.EXITED, f"{about} {journal.how_ended(status, number)}", fields, priority)

    def pod_ended(self, status: int, why: str = "") -> None:
        """`why`: what kept it from starting, which its caller was told."""
        for name in tuple(self._listeners):
            self._listeners[name].drain()
            self.removed(name)
        fields = _ending(status, 0) | ({"RKPY_REASON": why} if why else {})
        self._event(journal.EXITED, f"P{self._pod[1:]} ended with status {status}", fields)

    def _event(self, message_id: str, message: str, fields: Mapping[str, str], priority: int = journal.INFO) -> None:
        """After what the apps have said, where that is in the journal."""
        about = {**pod_fields(self._plan), **fields}
        self._way.put(iter((journal.event_entry(message_id, message, about, priority),)))

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once, when the journal has it all. That of an entry it has not looked up the sender's unit yet does no
        harm if that was sent as the last of several: the one before was looked up."""
        self._way.when_taken(callback)

    def losses(self) -> str:
        """Send nothing more. What became of entries of whose loss the journal could not be told; empty for nothing."""
        self._way.give_up("they were not waited for")
        lost = self._way.lost
        return f"{lost} entries for the journal were lost: {self._way.why}" if lost else ""


def _ending(status: int, number: int) -> dict[str, str]:
    return {"RKPY_EXIT_STATUS": str(status), "RKPY_EXIT_SIGNAL": str(number) if number else ""}


def pod_fields(plan: PodPlan) -> dict[str, str]:
    return {"RKPY_POD_UUID": plan.uuid, "RKPY_POD_NAME": plan.name}


def image_fields(app: AppPlan) -> dict[str, str]:
    return {"RKPY_APP": app.name, "RKPY_IMAGE_ID": app.image_id, "RKPY_IMAGE_NAME": app.image_name}


def app_fields(plan: PodPlan, app: AppPlan) -> bytes:
    """The fields that all entries of an app have: ours, and those of other engines that tools look for."""
    short = plan.uuid.partition("-")[0]
    containers = {
        "SYSLOG_IDENTIFIER": app.name,
        "CONTAINER_ID": short,
        "CONTAINER_ID_FULL": plan.uuid,
        "CONTAINER_NAME": f"{plan.name or short}-{app.name}",
        "CONTAINER_TAG": app.name,
        "IMAGE_NAME": app.image_name,
    }
    ours = {**pod_fields(plan), "RKPY_APP": app.name, "RKPY_IMAGE_ID": app.image_id}
    return journal.entry((*ours.items(), *containers.items()))
