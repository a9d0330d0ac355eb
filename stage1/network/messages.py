"""The form of messages to and from the kernel, by hand, for what has to do without pyroute2 (netlink(7))."""

from __future__ import annotations

import os
import struct
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterator

REQUEST, ACK, DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_LARGEST = 1 << 18
_TYPE = 0x3FFF
"""Of an attribute, without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""


def send(link: Socket, kind: int, flags: int, body: bytes) -> None:
    link.send(_HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body)


def answers(link: Socket) -> Iterator[tuple[int, bytes]]:
    """The kind and the body of each message until the last. OSError when the kernel says so."""
    while True:
        data = link.recv(_LARGEST)
        while len(data) >= _HEADER.size:
            length, kind = struct.unpack_from("=IH", data)
            body = data[_HEADER.size : length]
            if kind in (_ERROR, _DONE):
                code = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            yield kind, body
            data = data[_aligned(max(length, _HEADER.size)) :]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & _TYPE] = data[4:length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
