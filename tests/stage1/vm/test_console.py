"""The guest's console, kept."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from common.errors import LaunchError
from stage1.vm.console import LIMIT, NAME, Console


@pytest.fixture
def console(tmp_path: pathlib.Path) -> Iterator[Console]:
    made = Console(str(tmp_path))
    yield made
    made.close()


def _take(console: Console, data: bytes, *, complaints: bool = False) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    assert console.take(reading)
    os.write(writing, data)
    assert console.take(reading, complaints=complaints)
    os.close(writing)
    assert not console.take(reading)
    os.close(reading)


def test_what_is_kept_is_the_end(console: Console, tmp_path: pathlib.Path) -> None:
    log = tmp_path / NAME
    for number in range(12000):
        console.write(b"line %d\r\n" % number)
        if number % 1000 == 0:
            assert log.stat().st_size <= LIMIT
    lines = log.read_bytes().split(b"\r\n")
    assert lines[-2] == b"line 11999"
    assert LIMIT // 2 - 100 < log.stat().st_size <= LIMIT
    # And nothing in the middle is missing, nor is the first line half of one.
    assert [int(line[5:]) for line in lines[:-1]] == list(range(12001 - len(lines), 12000))


def test_a_line_that_does_not_end(console: Console, tmp_path: pathlib.Path) -> None:
    for _ in range(100):
        console.write(b"x" * 4096)
    console.write(b"y" * 10 * LIMIT)
    assert 0 < (tmp_path / NAME).stat().st_size <= LIMIT


def test_lines_for_people(console: Console) -> None:
    _take(console, b"first\r\n\r\n\x1b[31mred\x07\tx\xff\nl\xc3\xa4st")
    assert console.last_lines(2) == ["\\x1b[31mred\\x07 x\N{REPLACEMENT CHARACTER}", "läst"]
    assert console.last_lines(9)[0] == "first"


def test_the_first_complaint_is_the_cause(console: Console) -> None:
    assert console.complaint() == ""
    _take(console, b"virtio_session_mount: Waiting\nstop_all_queues: Stopping\nqemu: warning: old\n", complaints=True)
    assert console.complaint() == ""
    _take(console, b"qemu: no memory\nqemu: giving up\n", complaints=True)
    _take(console, b"guest: all is well\n")
    assert console.complaint() == "qemu: no memory"
    assert console.last_lines(1) == ["guest: all is well"]


def test_a_link_in_its_place_is_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaunchError, match=r"console\.log"):
        Console(str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()
