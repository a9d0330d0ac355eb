"""What the worker found out about a pod's networks (`stage1.network.taps`), and doing the same in its virtual machine.

A list of steps, as JSON, each one of
    [ABOUT, TYPE, BODY, [[OFFSET, NAME], …]]   a message of rtnetlink(7): its type and, in hexadecimal, its body, where
                                               the index (u32) of the interface NAME has to be put in at each OFFSET
    [PATH, VALUE, NEEDED]                      a sysctl below /proc/sys/net. That there is none of this name fails only
                                               when it is needed
"""

from __future__ import annotations

import _socket
import errno
import json
import os
import struct
from contextlib import closing
from typing import Any

from common.errors import LaunchError, reason
from stage1.network.messages import ACK, answers, send

_NEWLINK = 16
_UP = 1
_CREATE, _APPEND = 0x400, 0x800
_SYSCTLS = "/proc/sys/net/"

Step = tuple[Any, ...]


def pack(steps: list[Step]) -> bytes:
    return json.dumps(steps, separators=(",", ":")).encode("ascii")


def message(about: str, kind: int, body: bytes, places: list[tuple[int, str]]) -> Step:
    return about, kind, body.hex(), places


def link(name: str, flags: int, change: int, attributes: bytes = b"") -> Step:
    """`change` says which of an interface's `flags` count (netdevice(7))."""
    body = struct.pack("=BxHiII", 0, 0, 0, flags, change) + attributes
    return message(f"set up {name}", _NEWLINK, body, [(4, name)])


def apply(messages: bytes) -> None:
    """Carry out the steps, none when `messages` is empty; first of all the loopback interface is up. What is there
    already is as good. Raises LaunchError."""
    steps = [link("lo", _UP, _UP), *(json.loads(messages) if messages else ())]
    with closing(_opened()) as sock:
        for step in steps:
            if len(step) == 3:
                set_sysctl(*step)
            else:
                _do(sock, *step)


def _opened() -> _socket.socket:
    try:
        return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise LaunchError(f"open a netlink socket: {reason(error)}") from error


def _do(sock: _socket.socket, about: str, kind: int, body: str, places: list[tuple[int, str]]) -> None:
    data = bytearray.fromhex(body)
    # An interface is there already, or else there is something wrong.
    flags = ACK if kind == _NEWLINK else ACK | _CREATE | _APPEND
    try:
        for offset, name in places:
            struct.pack_into("=I", data, offset, _socket.if_nametoindex(name))
        send(sock, kind, flags, bytes(data))
        for _ in answers(sock):
            pass
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise LaunchError(f"{about}: {reason(error)}") from error


def set_sysctl(path: str, value: str, needed: bool) -> None:
    """The step of that form. Raises LaunchError."""
    try:
        fd = os.open(_SYSCTLS + path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        if needed:
            raise LaunchError(f"write {value} to {_SYSCTLS}{path}: the machine's kernel has none") from error
    except OSError as error:
        raise LaunchError(f"write {value} to {_SYSCTLS}{path}: {reason(error)}") from error
