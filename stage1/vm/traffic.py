"""What both ends of the wire have in common: the wire itself, and streams that go over it under credit.

A stream of this side is a descriptor: what is read from it is sent, or what is received is written to it, or (a
terminal) both. Nobody waits for anybody: what the other side may send is bounded by the window it was given, and it is
given more once that is written. So a descriptor that nobody reads holds up its stream and no other, and costs WINDOW
bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from _socket import SO_SNDBUF, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable

from stage1.loop import HANGUP, READ, WRITE, Loop
from stage1.vm import frames
from stage1.vm.frames import CREDIT, DATA, END, WINDOW, FrameError

_CHUNK = 65536
_SAFE = 4096
"""What a pipe, socket or terminal that can be written to takes at once; see `stage1.outlet`."""
_LIMIT = 1 << 18
"""Bytes that may wait for the wire before nothing more is read from streams for it."""
_OVERLOAD = 1 << 26
"""Bytes that wait for the wire when the other side has plainly stopped reading."""
_ROOM = 1 << 20
"""Bytes a pipe or socket is made to hold when no more comes: what its stream has waiting and what the other side still
has, four times over. Nobody but root needs to be asked for as much (pipe-max-size in proc(5))."""
_SO_SNDBUFFORCE = 32
"""asm-generic/socket.h: what x86-64, arm64, riscv64 and s390x share."""


class Wire:
    """Frames over a stream socket or a port of virtio-serial."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        take: Callable[[int, int, bytes], None],
        gone: Callable[[str], None],
        largest: int = frames.LARGEST,
    ) -> None:
        """`fd` is owned. `take` gets each frame; a FrameError of it counts as one of the frame. `gone` is called once,
        when the wire is closed already: with what the other side did wrong (`FrameError`), or empty when it has hung
        up."""
        self.full = False
        self._loop = loop
        self._fd = fd
        self._take = take
        self._gone = gone
        self._decoder = frames.Decoder(largest)
        self._events = READ
        self._waiting = bytearray()
        self._room: list[Callable[[], None]] = []
        self._sent: list[Callable[[], None]] = []
        os.set_blocking(fd, False)
        loop.add(fd, READ, self._on_ready)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """What waits is forgotten. Nobody is told."""
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._waiting.clear()
            self.full = False
            self._call_room()

    def send(self, frame: bytes) -> None:
        """Sooner or later. Takes everything, so who sends a lot looks at `full`."""
        if self._fd < 0:
            return
        was_empty = not self._waiting
        self._waiting += frame
        if was_empty:
            self._write()
        if len(self._waiting) > _OVERLOAD:
            self._end("has stopped to listen")

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call once, when this is not full any more."""
        self._room.append(callback)

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call once, when nothing waits any more: perhaps at once."""
        if self._waiting:
            self._sent.append(callback)
        else:
            callback()

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        if self._fd >= 0 and events & (READ | HANGUP):
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end("")
            return
        try:
            for kind, stream, payload in self._decoder.feed(data):
                self._take(kind, stream, payload)
                if self._fd < 0:
                    return
        except FrameError as error:
            self._end(str(error))

    def _write(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            # What it has sent before is read first, and then its end is found.
            self._waiting.clear()
        self.full = len(self._waiting) > (_LIMIT // 2 if self.full else _LIMIT)
        events = READ | WRITE if self._waiting else READ
        if events != self._events:
            self._events = events
            self._loop.modify(self._fd, events)
        if not self._waiting:
            self._sent, calls = [], self._sent
            for call in calls:
                call()
        if not self.full:
            self._call_room()

    def _call_room(self) -> None:
        self._room, calls = [], self._room
        for call in calls:
            call()

    def _end(self, why: str) -> None:
        if self._fd >= 0:
            self.close()
            self._gone(why)


class _Source:
    """The direction of a stream in which a descriptor is read and sent."""

    def __init__(self, traffic: Traffic, number: int, lasting: bool) -> None:
        self.fd = -1
        self._traffic = traffic
        self._number = number
        self._lasting = lasting
        self._credit = WINDOW
        self._watched = False
        self._is_due = False
        """Whether a regular file is about to be read."""
        self._waits = False
        """Whether the wire is to say when there is room."""
        self._left = 0
        """Bytes still to be read until it is drained; -1 when only the descriptor knows."""
        self._drained: list[Callable[[], None]] = []

    def attach(self, fd: int) -> None:
        self.detach()
        self.fd = fd
        self._flow()

    def detach(self) -> None:
        self._pause()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._is_drained()

    def more(self, count: int) -> None:
        if self._credit + count > WINDOW:
            raise FrameError(f"gave more credit on stream {self._number} than there is")
        self._credit += count
        self._read_on() if self._drained else self._flow()

    def drain(self, callback: Callable[[], None]) -> None:
        """Call once, when everything is sent that was there now; others may go on writing."""
        if self.fd < 0:
            callback()
            return
        self._left = -1
        if stat.S_ISFIFO(os.fstat(self.fd).st_mode):
            self._left = struct.unpack("i", fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4)))[0]
        self._drained.append(callback)
        if self._left == 0:
            self._is_drained()
        else:
            self._read_on()

    def _read_on(self) -> None:
        """While there is credit; that nothing is there to be read is news for who drains it."""
        while self._drained and self.fd >= 0 and self._credit and not self._traffic.wire.full:
            self._on_ready()
        self._flow()

    def _flow(self) -> None:
        if self.fd < 0:
            return
        full = self._traffic.wire.full
        if not self._credit or full:
            self._pause()
            if full and not self._waits:
                self._waits = True
                self._traffic.wire.when_room(self._has_room)
        elif not self._watched:
            try:
                self._traffic.loop.add(self.fd, READ, self._on_ready)
                self._watched = True
            except PermissionError:  # a regular file: always ready
                if not self._is_due:
                    self._is_due = True
                    self._traffic.loop.call_later(0, self._read_file)

    def _read_file(self) -> None:
        self._is_due = False
        self._on_ready()

    def _has_room(self) -> None:
        self._waits = False
        self._read_on() if self._drained else self._flow()

    def _pause(self) -> None:
        if self._watched:
            self._traffic.loop.remove(self.fd)
            self._watched = False

    def _on_ready(self, _events: int = 0) -> None:
        if self.fd < 0 or not self._credit:  # To read nothing would look like the end.
            return
        try:
            data = os.read(self.fd, min(self._credit, _CHUNK))
        except BlockingIOError:
            self._is_drained()
            return
        except OSError:  # A terminal's end is EIO.
            data = b""
        if not data:
            self._ends()
            return
        self._credit -= len(data)
        self._traffic.wire.send(frames.encode(DATA, self._number, data))
        if self._left > 0:
            self._left = max(self._left - len(data), 0)
            if not self._left:
                self._is_drained()
        self._flow()

    def _ends(self) -> None:
        if self._lasting:
            self.detach()
        else:
            self._traffic.finish(self._number)

    def _is_drained(self) -> None:
        self._drained, calls = [], self._drained
        for call in calls:
            call()


class _Sink:
    """The direction of a stream in which what is received is written to a descriptor."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        self.fd = -1
        self.waiting = bytearray()
        self._traffic = traffic
        self._number = number
        self._nonblocking = True
        self._allowed = WINDOW
        """Bytes the other side may still send."""
        self._owed = 0
        """Bytes that were written, and of which it was not told."""
        self._waits = False
        self._ending = False
        self._events = -1
        """What the descriptor is watched for; -1 when it cannot be."""
        self._lost = False
        """Whether there was a descriptor: what comes before there is one waits for it."""

    def attach(self, fd: int, *, nonblocking: bool) -> None:
        """Write to `fd` from now on. What waited for another is dropped."""
        if self.fd >= 0:
            self.detach()
        self.fd = fd
        self._nonblocking = nonblocking
        self._lost = False
        try:
            self._traffic.loop.add(fd, 0, self._on_ready)
            self._events = 0
        except PermissionError:  # a regular file: always ready
            self._events = -1
        if self.waiting:
            self._advance_or_watch()

    def detach(self) -> None:
        """Drop what there is and what comes."""
        if self.fd >= 0:
            self._traffic.loop.remove(self.fd)
            os.close(self.fd)
            self.fd = -1
        self._lost = True
        self._drop()

    def take(self, data: bytes) -> None:
        if len(data) > self._allowed or self._ending:
            raise FrameError(f"sent more on stream {self._number} than it was allowed to")
        self._allowed -= len(data)
        self.waiting += data
        if self._lost:
            self._drop()
        elif self.fd >= 0:
            self._advance_or_watch()

    def _advance_or_watch(self) -> None:
        if self._nonblocking or self._events < 0:
            self.advance()
        else:
            self._watch()

    def finish(self) -> None:
        """Nothing more comes. What waits is still written, if there is somebody to take it."""
        self._ending = True
        if not self.waiting or self.fd < 0:
            self._traffic.forget(self._number)

    def make_room(self) -> None:
        """For what there is and what is still to come, in the kernel: whoever looks there finds it all."""
        if self.fd < 0:
            return
        try:
            if stat.S_ISFIFO(os.fstat(self.fd).st_mode):
                if fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ) < _ROOM:
                    fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _ROOM)
            else:
                _enlarge(self.fd)
        except OSError:
            pass  # It has the room it has, then.
        if self._nonblocking:
            self.advance()

    def advance(self) -> None:
        """Write what can be written."""
        while self.waiting and self.fd >= 0 and self._write():
            if not self._nonblocking and self._events >= 0:
                break
        self._watch()
        self._settle()

    def _write(self) -> bool:
        try:
            written = os.write(self.fd, self.waiting[: _CHUNK if self._nonblocking else _SAFE])
        except BlockingIOError:
            return False
        except OSError:
            self._lose()
            return False
        del self.waiting[:written]
        self._owe(written)
        return True

    def _watch(self) -> None:
        events = WRITE if self.waiting else 0
        if self.fd >= 0 and self._events not in (-1, events):
            self._traffic.loop.modify(self.fd, events)
            self._events = events

    def _on_ready(self, events: int) -> None:
        if events & HANGUP:
            self._lose()
        else:
            self.advance()

    def _lose(self) -> None:
        """Nobody reads any more. Of a terminal it is who reads that tells its end: there may be more to be read."""
        if self._traffic.has_source(self._number):
            self.detach()
        else:
            self._traffic.finish(self._number)

    def _drop(self) -> None:
        count = len(self.waiting)
        self.waiting.clear()
        if count:
            self._owe(count)
            self._settle()

    def _owe(self, count: int) -> None:
        self._owed += count
        if self._owed >= WINDOW // 2 and not self._waits:
            if self._traffic.wire.full:
                self._waits = True
                self._traffic.wire.when_room(self._pay)
            else:
                self._pay()

    def _pay(self) -> None:
        self._waits = False
        owed, self._owed = self._owed, 0
        self._allowed += owed
        self._traffic.wire.send(frames.encode_credit(self._number, owed))

    def _settle(self) -> None:
        if not self.waiting:
            if self._ending:
                self._traffic.forget(self._number)
            self._traffic.written()


class Traffic:
    """The streams of one wire, by their numbers."""

    def __init__(self, loop: Loop, wire: Wire) -> None:
        self.loop = loop
        self.wire = wire
        self._sources: dict[int, _Source] = {}
        self._sinks: dict[int, _Sink] = {}
        self._written: list[Callable[[], None]] = []

    def read(self, number: int, fd: int) -> None:
        """Open a stream: send what is read from `fd`, which is owned. That it has come to its end is the stream's."""
        self._sources[number] = source = _Source(self, number, lasting=False)
        source.attach(fd)

    def write(self, number: int, fd: int, *, nonblocking: bool = True) -> None:
        """Open a stream: what comes is written to `fd`, which is owned. `nonblocking` says that O_NONBLOCK is set on
        it; if not, it is only written to when it is ready. When nobody reads there any more, the stream is ended."""
        self._sinks[number] = sink = _Sink(self, number)
        sink.attach(fd, nonblocking=nonblocking)

    def terminal(self, number: int, *, lasting: bool = False) -> None:
        """Open a stream of two directions, for `attach`. A `lasting` one outlives the terminals attached to it."""
        self._sources[number] = _Source(self, number, lasting)
        self._sinks[number] = _Sink(self, number)

    def attach(self, number: int, fd: int) -> None:
        """Both directions are `fd`'s from now on, which is owned; harmless for a stream that is not there."""
        os.set_blocking(fd, False)
        if number not in self._sources or number not in self._sinks:
            os.close(fd)
            return
        self._sinks[number].attach(os.dup(fd), nonblocking=True)  # One number of a descriptor is watched for one thing.
        self._sources[number].attach(fd)

    def has_source(self, number: int) -> bool:
        return number in self._sources

    def terminal_fd(self, number: int) -> int:
        """What is attached; -1 when nothing is."""
        return self._sources[number].fd if number in self._sources and number in self._sinks else -1

    def take(self, kind: int, number: int, payload: bytes) -> None:
        """A frame about a stream. Raises FrameError."""
        source, sink = self._sources.get(number), self._sinks.get(number)
        if kind == DATA and sink is not None:
            sink.take(payload)
        elif kind == CREDIT and source is not None:
            source.more(frames.decode_credit(payload))
        elif kind == END:
            if source is not None:
                del self._sources[number]
                source.detach()
            if sink is not None:
                sink.finish()

    def finish(self, number: int) -> None:
        """End a stream from this side: nothing more is read or written, and the other side is told."""
        if number in self._sources or number in self._sinks:
            self.forget(number)
            self.wire.send(frames.encode(END, number))

    def forget(self, number: int) -> None:
        """Close what a stream has, without a word."""
        source, sink = self._sources.pop(number, None), self._sinks.pop(number, None)
        if source is not None:
            source.detach()
        if sink is not None:
            sink.detach()
            self.written()

    def drain(self, numbers: set[int], callback: Callable[[], None]) -> None:
        """Call once, when what there is now to be read for these streams is sent."""
        left = {number for number in numbers if number in self._sources}

        def one(number: int) -> None:
            left.discard(number)
            if not left:
                callback()

        if not left:
            callback()
        for number in tuple(left):
            source = self._sources.get(number)
            if source is not None:
                source.drain(lambda number=number: one(number))  # type: ignore[misc]
            else:
                one(number)

    def make_room(self, numbers: set[int] | None = None) -> None:
        """Put what waits for these streams (None: all), and what is still to come, where their readers will find it
        when they take all there is."""
        for number, sink in tuple(self._sinks.items()):
            if numbers is None or number in numbers:
                sink.make_room()

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once, when nothing waits to be written that can be: perhaps at once."""
        self._written.append(callback)
        self.written()

    def written(self) -> None:
        if not any(sink.waiting and sink.fd >= 0 for sink in self._sinks.values()):
            self._written, calls = [], self._written
            for call in calls:
                call()

    def hung_up(self) -> None:
        """There is nobody any more to send to, and nothing more comes."""
        for number in tuple(self._sources):
            self._sources.pop(number).detach()
        self.make_room()
        for sink in tuple(self._sinks.values()):
            sink.finish()

    def close(self) -> None:
        for number in {*self._sources, *self._sinks}:
            self.forget(number)


def _enlarge(fd: int) -> None:
    socket = Socket(fileno=os.dup(fd))
    try:
        socket.setsockopt(SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, _ROOM)
    finally:
        socket.close()
