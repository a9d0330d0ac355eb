"""What is more than a system call."""

from __future__ import annotations

import fcntl
import os

import pytest

from common import syscalls


@pytest.mark.parametrize("first", [0, 500])
def test_all_descriptors_but_some_are_closed(first: int) -> None:
    """In a child, which says by its status whether exactly those are left that should be."""
    numbers = (500, 501, 503, 504, 510)
    kept = (503, 510, 501, -1, 501)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in numbers:
                fcntl.fcntl(0, fcntl.F_DUPFD, number)
            below = {number for number in range(first) if _is_open(number)}
            syscalls.close_all_but(kept, first=first)
            left = {number for number in range(1000) if _is_open(number)}
            status = int(left != {501, 503, 510} | below)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
