"""The modules of the guest's kernel, from the initramfs, in the order in which they need each other."""

from __future__ import annotations

import os

from common import syscalls
from common.errors import LaunchError, reason

ORDER, NETWORK, LATER = "/modules/order", "/modules/network", "/modules/later"
"""Lists of them, one path a line: those the machine does not work without, those of its network, and those that have
time: a pod that ends at once does without."""


def load(wanted: str) -> None:
    """Those of one list, which is loaded once: in the guest files are memory, and the kernel has made a copy of what it
    needs of these. Raises LaunchError."""
    with open(wanted, encoding="utf-8") as file:
        paths = file.read().splitlines()
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                syscalls.finit_module(fd, path)
            finally:
                os.close(fd)
                os.unlink(path)
        except FileExistsError:
            pass  # It is there already.
        except OSError as error:
            raise LaunchError(f"cannot load the kernel module {path}: {reason(error)}") from error
