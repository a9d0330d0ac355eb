"""The little of rtnetlink(7) that is left when pyroute2 is not there: find an interface, take one away."""

from __future__ import annotations

import _socket
import errno
import struct
from contextlib import closing

from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1.network.messages import ACK, DUMP, answers, attribute, attributes, send

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_IFALIAS = 1, 3, 10, 20
_MESSAGE = struct.Struct("=BxHiII")
"""ifinfomsg."""


class Link(NamedTuple):
    number: int
    """The kernel's: its index."""
    mac: str
    alias: str
    master: int


def find(name: str) -> Link | None:
    """None when there is none."""
    try:
        return next(iter(_ask(_GETLINK, ACK, attribute(_IFLA_IFNAME, name.encode() + b"\0"))), None)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise NetworkError(f"look at {name}: {reason(error)}") from error


def remove(name: str) -> None:
    """It is no failure when there is none."""
    try:
        _ask(_DELLINK, ACK, attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise NetworkError(f"remove {name}: {reason(error)}") from error


def ports(bridge: Link) -> int:
    """How many a bridge has."""
    try:
        found = _ask(_GETLINK, DUMP, attribute(_IFLA_MASTER, struct.pack("=I", bridge.number)))
    except OSError as error:
        raise NetworkError(f"list the ports of a bridge: {reason(error)}") from error
    return sum(link.master == bridge.number for link in found)


def _ask(kind: int, flags: int, wanted: bytes) -> list[Link]:
    """Raises OSError when the kernel refuses."""
    with closing(_socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)) as sock:
        send(sock, kind, flags, bytes(_MESSAGE.size) + wanted)
        return [_link(body) for answer, body in answers(sock) if answer == _NEWLINK]


def _link(body: bytes) -> Link:
    index = int(_MESSAGE.unpack_from(body)[2])
    values = attributes(body[_MESSAGE.size :])
    mac = ":".join(f"{byte:02x}" for byte in values.get(_IFLA_ADDRESS, b""))
    alias = values.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, mac, alias, *struct.unpack("=I", values.get(_IFLA_MASTER, bytes(4))))
