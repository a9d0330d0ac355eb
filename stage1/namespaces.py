"""The pod's namespaces: which there are, and what has to be done in them once."""

from __future__ import annotations

import fcntl
import os
import struct
from _socket import AF_INET, SOCK_DGRAM, sethostname
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterator
from contextlib import contextmanager

from common import syscalls
from common.errors import LaunchError, reason
from stage1.plan import PodPlan

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_MAX_NAME = 64
"""Bytes of a host name (uname(2), __NEW_UTS_LEN)."""


def flags(plan: PodPlan) -> int:
    """What clone3(2) is to make new. Not the cgroup namespace: its root would be the cgroup of the caller."""
    wanted = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS
    if plan.private_ipc:
        wanted |= syscalls.CLONE_NEWIPC
    if not plan.host_network and not plan.join:
        wanted |= syscalls.CLONE_NEWNET
    if plan.private_range[1]:
        wanted |= syscalls.CLONE_NEWUSER
    return wanted


def owner(plan: PodPlan) -> tuple[int, int] | None:
    """User and group of the host that are the pod's root; None where they are the host's."""
    first, count = plan.private_range
    return (first, first) if count else None


@contextmanager
def joined(path: str) -> Iterator[None]:
    """While in the block, be in the network namespace at `path`, if any: what is cloned there is born into it.
    LaunchError when that cannot be."""
    if not path:
        yield
        return
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter_network(path)
        yield
        syscalls.setns(before, syscalls.CLONE_NEWNET)
    finally:
        os.close(before)


def _enter_network(path: str) -> None:
    try:
        # What is there may be something else by now than when it was looked at: nobody waits for a pipe's other end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        finally:
            os.close(fd)
    except OSError as error:
        raise LaunchError(f'cannot join the network namespace "{path}": {reason(error)}') from error


def map_ids(pid: int, private_range: tuple[int, int]) -> None:
    """Write the ID maps of the user namespace of `pid` (user_namespaces(7)): 0 and up in it are the range outside."""
    first, count = private_range
    for kind in ("gid_map", "uid_map"):
        path = f"/proc/{pid}/{kind}"
        try:
            fd = os.open(path, os.O_WRONLY)
            try:
                os.write(fd, f"0 {first} {count}\n".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise LaunchError(f"cannot write {path}: {reason(error)}") from error


def name_host(name: str) -> None:
    """sethostname(2) in the pod's UTS namespace."""
    try:
        sethostname(name[:_MAX_NAME])
    except OSError as error:
        raise LaunchError(f'cannot set the host name "{name}": {reason(error)}') from error


def bring_up_loopback() -> None:
    """Set the interface `lo` up (netdevice(7)); it has its addresses by itself."""
    socket = Socket(AF_INET, SOCK_DGRAM, 0)
    try:
        fcntl.ioctl(socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
    except OSError as error:
        raise LaunchError(f"cannot bring up the loopback interface: {reason(error)}") from error
    finally:
        socket.close()
