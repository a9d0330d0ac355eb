"""UDP flows that the kernel remembers from before a port was published (linux/netfilter/nfnetlink_conntrack.h).

Address translation is decided by a flow's first packet. Somebody who keeps sending to the port, as DNS forwarders and
log shippers do, would be sent on to where the port led before, or nowhere, for as long as he does not stop.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_RAW, inet_ntop
from _socket import socket as Socket  # noqa: N812
from collections.abc import Collection
from contextlib import closing

from stage1.network.messages import ACK, DUMP, answers, attribute, attributes, send

_AF_NETLINK, _NETLINK_NETFILTER = 16, 12
_GET, _DELETE = 0x101, 0x102
_TUPLE_ORIG, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_NESTED = 0x8000
_BY_PROTOCOL = 1 << 3
"""A bit of CTA_FILTER_ORIG_FLAGS (Linux 5.8)."""
_UDP = 17
_GENERIC = struct.Struct("=BBH")
"""nfgenmsg."""


def forget_udp(family: str, ports: Collection[int]) -> None:
    """Drop what is remembered of flows to these UDP ports of the host, family "4" or "6". Raises OSError, also where
    the kernel cannot be asked for UDP only."""
    kind = AF_INET6 if family == "6" else AF_INET
    local: dict[bytes, bool] = {}
    with closing(Socket(_AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_NETFILTER)) as link:
        protocol = attribute(_TUPLE_PROTO | _NESTED, attribute(_PROTO_NUM, bytes((_UDP,))))
        only = attribute(_FILTER | _NESTED, attribute(1, struct.pack("=I", _BY_PROTOCOL)))
        wanted = attribute(_TUPLE_ORIG | _NESTED, protocol) + only
        send(link, _GET, DUMP, _GENERIC.pack(kind, 0, 0) + wanted)
        flows = [attributes(body[_GENERIC.size :]) for _, body in answers(link)]
        for flow in [flow for flow in flows if _TUPLE_ORIG in flow]:
            address, port = _destination(flow[_TUPLE_ORIG], kind)
            if port in ports and address not in local:
                local[address] = _is_local(kind, address)
            if port in ports and local[address]:
                _forget(link, kind, flow)


def _forget(link: Socket, kind: int, flow: dict[int, bytes]) -> None:
    """The identity keeps one that came in its place meanwhile out of it."""
    parts = [attribute(number | (_NESTED if number == _TUPLE_ORIG else 0), flow[number])
             for number in (_TUPLE_ORIG, _ID, _ZONE) if number in flow]  # fmt: skip
    send(link, _DELETE, ACK, _GENERIC.pack(kind, 0, 0) + b"".join(parts))
    try:
        list(answers(link))
    except FileNotFoundError:
        pass


def _destination(original: bytes, kind: int) -> tuple[bytes, int]:
    parts = attributes(original)
    address = attributes(parts.get(_TUPLE_IP, b"")).get(4 if kind == AF_INET6 else 2, b"")
    port = attributes(parts.get(_TUPLE_PROTO, b"")).get(_PROTO_DST_PORT, b"")
    return address, int.from_bytes(port, "big")


def _is_local(kind: int, address: bytes) -> bool:
    """Whether it is the host's: a flow to the same port of somebody else is none of ours."""
    with closing(Socket(kind, SOCK_DGRAM | SOCK_CLOEXEC)) as probe:
        try:
            probe.bind((inet_ntop(kind, address), 0))
        except (OSError, ValueError):
            return False
    return True
