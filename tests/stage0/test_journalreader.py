"""Reading the journal, in what a real one seldom does (tests/systemd/inside/journal.py has the rest)."""

from __future__ import annotations

import errno
import os

import pytest

from stage0 import journalreader


class Reader:
    """Three entries, of which the second cannot be read."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._at = 0

    def _next(self) -> bool:
        self._at += 1
        return self._at <= 3

    def _get_realtime(self) -> int:
        return self._at

    def _get(self, name: str) -> bytes:
        if self._at == 2:
            raise OSError(self._number, os.strerror(self._number))
        return b"%d" % self._at if name == "MESSAGE" else b""


@pytest.mark.parametrize("number", [errno.EBADMSG, errno.EADDRNOTAVAIL])
def test_what_is_vacuumed_while_it_is_read_is_passed_over(number: int) -> None:
    assert [entry.text for entry in journalreader._take(Reader(number))] == [b"1", b"3"]


def test_other_failures_are_told() -> None:
    with pytest.raises(PermissionError):
        list(journalreader._take(Reader(errno.EACCES)))
