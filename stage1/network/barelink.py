"""The little of rtnetlink(7) that is left when pyroute2 is not there: find an interface, take one away."""

from __future__ import annotations

import _socket
import errno
import os
import struct

from common.errors import NetworkError, reason
from common.records import NamedTuple

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_IFALIAS = 1, 3, 10, 20
_MESSAGE = struct.Struct("=IHHII BxHiII")
"""nlmsghdr and ifinfomsg."""


class Link(NamedTuple):
    number: int
    """The kernel's: its index."""
    mac: str
    alias: str
    master: int


def find(name: str) -> Link | None:
    """None when there is none."""
    try:
        return next(iter(_ask(_GETLINK, _ACK, _attribute(_IFLA_IFNAME, name.encode() + b"\0"))), None)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise NetworkError(f"look at {name}: {reason(error)}") from error


def remove(name: str) -> None:
    """It is no failure when there is none."""
    try:
        _ask(_DELLINK, _ACK, _attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise NetworkError(f"remove {name}: {reason(error)}") from error


def ports(bridge: Link) -> int:
    """How many a bridge has."""
    try:
        found = _ask(_GETLINK, _DUMP, _attribute(_IFLA_MASTER, struct.pack("=I", bridge.number)))
    except OSError as error:
        raise NetworkError(f"list the ports of a bridge: {reason(error)}") from error
    return sum(link.master == bridge.number for link in found)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(kind: int, flags: int, attributes: bytes) -> list[Link]:
    """Raises OSError when the kernel refuses."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        length = _MESSAGE.size + len(attributes)
        sock.send(_MESSAGE.pack(length, kind, _REQUEST | flags, 1, 0, 0, 0, 0, 0, 0) + attributes)
        return _answer(sock)
    finally:
        sock.close()


def _answer(sock: _socket.socket) -> list[Link]:
    found: list[Link] = []
    while True:
        data = sock.recv(1 << 18)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind in (_ERROR, _DONE):
                number = -int(struct.unpack_from("=i", data, 16)[0]) if length >= 20 else 0
                if number > 0:
                    raise OSError(number, os.strerror(number))
                return found
            if kind == _NEWLINK:
                found.append(_link(data[:length]))
            data = data[max(16, length + 3 & ~3) :]


def _link(message: bytes) -> Link:
    index = int(_MESSAGE.unpack_from(message)[7])
    values: dict[int, bytes] = {}
    rest = message[_MESSAGE.size :]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        values[kind & 0x3FFF] = rest[4:length]
        rest = rest[max(4, length + 3 & ~3) :]
    mac = ":".join(f"{byte:02x}" for byte in values.get(_IFLA_ADDRESS, b""))
    alias = values.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, mac, alias, *struct.unpack("=I", values.get(_IFLA_MASTER, bytes(4))))
