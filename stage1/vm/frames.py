"""The stream between the monitor and the agent in the guest: frames, each a header of 12 bytes and its payload.

    u32 length of the payload, u32 kind, u32 stream; little endian

    MESSAGE  stream 0: a line of text, and after the first newline, if there is one, bytes that go with it (a "blob")
    DATA     what was written to a stream
    CREDIT   u32: so many bytes more may be sent on the stream. Nothing is sent without: WINDOW is there at first
    END      no more data comes on the stream: its writer has closed it, or its reader wants no more

A stream is opened by a message that names it. Each direction has a window of its own; an END is the last that its
sender has to do with the stream, in both directions where it has two (a terminal). What was sent before still arrives.
Numbers are chosen by the host, from 1, and never used again. Both sides drop what concerns streams they do not know
(any more).

The host says (what is in [] is the blob; NAME of an app):
    pod [PodPlan]                      first of all
    network [netlink messages]         before the first start, when the pod has networks; `stage1.vm.guestnet`
    start NAME IN OUT ERR [AppPlan]    stream numbers, 0 for /dev/null; a terminal has one number wherever it is, and
                                       keeps it when the app is started again with a new one
    sealed, stop NAME, kill NAME, restart NAME, remove NAME, signal NUMBER [NAME], terminate, ping, cleared NAME
                                       as the supervisor has it
    resize STREAM ROWS COLUMNS         of a terminal
    enter ID NAME IN OUT ERR [LaunchSpec]    a command beside the app NAME; ID is a number chosen by the host
    signal-entered ID NUMBER
    heard NAME SOCKET COUNT            so much of this socket's datagrams has been dealt with (`appsockets.weight`);
                                       when more than UNHEARD has not, nothing more is taken from it
The agent says:
    up KERNEL                          the kernel's release: it is there, and waits for the pod
    started NAME PID, failed …, ended NAME STATUS SIGNAL STOPPED AGAIN OOM, again NAME, idle NAME, ready, health …,
    stopping, over STATUS, pong, broken TEXT    as the supervisor has it; OOM is 1 when memory had run out. By then
                                       everything the app wrote was sent
    ending STREAM…                     whoever wrote to these has ended, and what is left of it comes now: make room
    limits [Report, …]                 what became of the limits (`stage1.cgroupfiles.Report`), after every start: a
                                       JSON list of lists
    datagram NAME SOCKET [bytes]       written to one of the app's sockets (`stage1.appsockets`)
    entered ID STATUS                  the command has ended
    refused ID STATUS TEXT             it could not be run

The guest is hostile: the host's side bounds everything it keeps and ends the pod over a frame that cannot be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MESSAGE, DATA, CREDIT, END = range(4)
WINDOW = 1 << 18
LARGEST = 1 << 24
"""Bytes of a payload."""
FROM_GUEST = 1 << 21
"""Bytes of a message that the host takes: a datagram of an app's is the largest."""
LONGEST = 1 << 18
"""Bytes of its text: the supervisor's `channel.MAX_TEXT`, were each of them no text."""
UNHEARD = 1 << 19
"""What the agent sends of the datagrams of a socket beyond what it has heard of (`appsockets.weight`), at most; and the
last of them."""
PORT = "rkpy"
"""The name of the port in /sys/class/virtio-ports/*/name."""
TAG = "rkpy"
"""The name of the file system that the host shares (`stage1.vm.share`), for mounting it."""
SHARE = "/share"
"""Where the guest mounts it."""
SOCKETS = "/run/rkpy/sockets"
"""Where the agent listens for the apps: SOCKETS/APP is the app's /run/systemd."""

_HEADER = struct.Struct("<III")
_CREDIT = struct.Struct("<I")

Frame = tuple[int, int, bytes]
"""Kind, stream and payload."""


class FrameError(Exception):
    """The other side has sent what cannot be. One sentence that says what, without a subject."""


def encode(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame as it is sent."""
    return _HEADER.pack(len(payload), kind, stream) + payload


def encode_credit(stream: int, count: int) -> bytes:
    return encode(CREDIT, stream, _CREDIT.pack(count))


def decode_credit(payload: bytes) -> int:
    """Bytes; `Decoder` has seen to the length."""
    return int(_CREDIT.unpack(payload)[0])


def encode_message(text: str, blob: bytes = b"") -> bytes:
    """`text` is one line: what is not, and what is not Unicode, is shown as something else."""
    raw = text.replace("\n", " ").encode("utf-8", "backslashreplace")
    return encode(MESSAGE, 0, raw + b"\n" + blob if blob else raw)


def decode_message(payload: bytes, longest: int = LARGEST) -> tuple[str, bytes]:
    """Text, of so many bytes at most, and blob. Raises FrameError."""
    raw, _, blob = payload.partition(b"\n")
    if len(raw) > longest:
        raise FrameError(f"sent a message of {len(raw)} bytes")
    try:
        return raw.decode("utf-8"), blob
    except UnicodeDecodeError:
        raise FrameError("sent a message that is no text") from None


class Decoder:
    """Frames out of a byte stream, however it is cut. Keeps one unfinished frame at most."""

    def __init__(self, largest: int = LARGEST) -> None:
        """`largest`: bytes of a message."""
        self._largest = largest
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises FrameError, as soon as a header is there that cannot be."""
        self._rest += data
        while len(self._rest) >= _HEADER.size:
            length, kind, stream = _HEADER.unpack_from(self._rest)
            self._check(length, kind, stream)
            end = _HEADER.size + length
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_HEADER.size : end])
            del self._rest[:end]
            yield kind, stream, payload

    def _check(self, length: int, kind: int, stream: int) -> None:
        if kind > END:
            raise FrameError(f"sent a frame of an unknown kind ({kind})")
        if (kind == MESSAGE) != (stream == 0):
            raise FrameError(f"sent a frame of kind {kind} on stream {stream}")
        least, most = ((0, self._largest), (1, WINDOW), (_CREDIT.size, _CREDIT.size), (0, 0))[kind]
        if not least <= length <= most:
            raise FrameError(f"sent a frame of kind {kind} with {length} bytes")
