"""The host's ends of a virtual machine's network cards: taps (Linux: Documentation/networking/tuntap.rst, tun(4)).

tapN belongs to the card that is ethN in the machine. It lies in the pod's network namespace, where the worker ties it
to the ethN that the pod's networks know (`stage1.network.taps`), and lasts as long as somebody has its descriptor.
"""

from __future__ import annotations

import fcntl
import os
import struct

from common.errors import LaunchError, reason

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000


def name(index: int) -> str:
    """Of the tap that goes with eth`index`."""
    return f"tap{index}"


def open_tap(index: int) -> int:
    """Make tap`index` in this process's network namespace. The descriptor, close-on-exec, carries whole frames of
    Ethernet, each behind a struct virtio_net_hdr of 10 bytes. LaunchError when there can be none."""
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LaunchError(
            f"open {_TUN}: {reason(error)}", hint="a virtual machine's networks need the kernel's module tun"
        ) from error
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name(index).encode(), flags))
    except OSError as error:
        os.close(fd)
        raise LaunchError(f"make {name(index)}: TUNSETIFF: {reason(error)}") from error
    return fd
