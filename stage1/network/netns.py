"""The pod's network namespace under a name, for plugins that are programs: a mount of it, as ip-netns(8) makes them.

Nothing else needs one, so most pods' namespaces are mounted nowhere and go with the pod's last process.
"""

from __future__ import annotations

import os

from common import syscalls
from common.errors import NetworkError, located, reason
from stage1.network import state

_NSFS_MAGIC = 0x6E736673
"""linux/magic.h: the file system namespaces are files of."""


def place(uuid: str) -> str:
    """Where `pin` will mount it."""
    return state.path("netns", uuid)


def pin(netns: str | int, uuid: str) -> str:
    """Mount the namespace (a path or a descriptor) and return where; what was there for this pod is replaced."""
    path = place(uuid)
    source = netns if isinstance(netns, str) else f"/proc/self/fd/{netns}"
    if not is_alive(source):
        raise NetworkError(f"{source} is no namespace")
    try:
        unpin(uuid)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        syscalls.mount(source, path, None, syscalls.MS_BIND)
    except OSError as error:
        raise NetworkError(f"mount the network namespace: {located(error)}") from error
    return path


def unpin(uuid: str) -> None:
    """Undo `pin`, wherever it got to; nothing happens where nothing is."""
    path = place(uuid)
    try:
        while is_alive(path):
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NetworkError(f"unmount {path}: {reason(error)}") from error


def is_alive(path: str) -> bool:
    """Whether a namespace can be entered by this path."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return syscalls.filesystem_type(fd) == _NSFS_MAGIC
    finally:
        os.close(fd)
