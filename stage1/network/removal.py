"""Taking our table, or elements of it, away: straight to the kernel (linux/netfilter/nf_tables.h), not by nft(8).

nft does not end until the kernel has waited for all its processors to be done with what went, 15 ms and more; what was
asked is done long before. That wait comes with the closing of the socket, so who has nothing else to do than to end
can spare whoever waits for it (`unclosed`).
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, inet_pton
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterable, Iterator

from common.errors import NetworkError, reason
from stage1.network.messages import ACK, REQUEST, answers, attribute
from stage1.network.record import Element

unclosed: list[Socket] | None = None
"""Where sockets are kept instead of being closed, if anywhere."""

_AF_NETLINK, _NETLINK_NETFILTER, _SOL_NETLINK, _CAP_ACK, _SNDBUFFORCE = 16, 12, 270, 10, 32
_BEGIN, _END = 16, 17
_NFTABLES = 10
_DELETE_TABLE, _DELETE_ELEMENTS = _NFTABLES << 8 | 2, _NFTABLES << 8 | 14
_INET = 1
"""NFPROTO_INET, the family of the table."""
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM, _KEY, _KEY_END, _VALUE = 1, 1, 10, 1
_NESTED = 0x8000
_PROTOCOLS = {"tcp": 6, "udp": 17}
_AT_ONCE = 500
"""Elements in one message: an attribute has 64 KiB at most."""


def of_table(name: str) -> None:
    """All of it; NetworkError when that fails, as it does when there is none."""
    _transact([(_DELETE_TABLE, _text(_TABLE, name))])


def of_elements(table: str, elements: Iterable[Element]) -> None:
    """All of them or none; NetworkError when that fails, as it does when one is not there."""
    items: dict[str, list[bytes]] = {}
    for each in elements:
        items.setdefault(each.where, []).append(_item(each))
    _transact([
        (_DELETE_ELEMENTS, _text(_TABLE, table) + _text(_SET, where) + attribute(_ELEMENTS | _NESTED, b"".join(part)))
        for where, found in items.items()
        for part in _parts(found)
    ])  # fmt: skip


def _parts(items: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _item(element: Element) -> bytes:
    try:
        first, last = _keys(element)
    except (OSError, ValueError, KeyError) as error:
        raise NetworkError(f'"{element.where}" cannot have the element "{element.key}"') from error
    keys = attribute(_KEY | _NESTED, attribute(_VALUE, first))
    if last:
        keys += attribute(_KEY_END | _NESTED, attribute(_VALUE, last))
    return attribute(_ITEM | _NESTED, keys)


def _keys(element: Element) -> tuple[bytes, bytes]:
    """The key; where keys are ranges the first and the last. Every part takes up a multiple of 4 bytes."""
    if element.where == "restricted":
        return element.key.encode().ljust(16, b"\0"), b""
    first, last = b"", b""
    for word in element.key.split(" . "):
        if word in _PROTOCOLS:
            low = high = bytes((_PROTOCOLS[word], 0, 0, 0))
        elif word.isdigit():
            low = high = struct.pack(">HH", int(word), 0)
        else:
            low, high = _range(word)
        first, last = first + low, last + high
    return first, last if element.where.startswith(("snat", "inside")) else b""


def _range(text: str) -> tuple[bytes, bytes]:
    address, _, length = text.partition("/")
    packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    rest = len(packed) * 8 - int(length or len(packed) * 8)
    return packed, (int.from_bytes(packed, "big") | (1 << rest) - 1).to_bytes(len(packed), "big")


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + payload
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, sequence, 0) + body


def _transact(requests: list[tuple[int, bytes]]) -> None:
    messages = [_message(kind, ACK, number, _INET, 0, payload) for number, (kind, payload) in enumerate(requests, 1)]
    batch = b"".join((
        _message(_BEGIN, 0, 0, 0, _NFTABLES), *messages, _message(_END, 0, len(requests) + 1, 0, _NFTABLES),
    ))  # fmt: skip
    try:
        link = Socket(_AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            link.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            link.setsockopt(SOL_SOCKET, _SNDBUFFORCE, 2 * len(batch))
            link.send(batch)
            link.setblocking(False)  # All is done and answered by now.
            for _ in requests:  # The first answer that is no consent raises OSError: then nothing was done.
                list(answers(link))
        finally:
            if unclosed is None:
                link.close()
            else:
                unclosed.append(link)
    except OSError as error:
        raise NetworkError(f"change the firewall: {reason(error)}") from error
