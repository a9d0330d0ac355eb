"""Logs on a file system that is full. Needs root, for a small tmpfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import logreader
from stage1.logs import LogFile


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=16", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def _output(pod: Path, stream: str) -> bytes:
    return b"".join(entry.data for entry in logreader.read(str(pod), ("app",)) if entry.stream == stream)


def test_a_full_disk_loses_entries_and_says_how_many(small: Path) -> None:
    log = LogFile(str(small), "app")
    lines = [b"%06d" % number + b"." * 93 + b"\n" for number in range(10_000)]
    for at in range(0, len(lines), 100):
        log.write("stdout", b"".join(lines[at : at + 100]))
    kept = _output(small, "stdout").splitlines(keepends=True)
    assert 1000 < len(kept) < 2600
    assert kept == lines[: len(kept)]
    assert not _output(small, "stderr")
    subprocess.run(["mount", "-o", "remount,size=512k", small], check=True)
    log.write("stdout", b"there is room again\n")
    log.close()
    assert _output(small, "stdout").splitlines(keepends=True)[len(kept) :] == [b"there is room again\n"]
    lost = len(lines) - len(kept)
    assert _output(small, "stderr") == b"rkpy: %d entries of this log were lost: no space left on device\n" % lost


def test_rotation_without_an_inode_for_the_next_file(small: Path) -> None:
    log = LogFile(str(small), "app", segment=2000, segments=3)
    taken: list[int] = []
    while True:
        try:
            taken.append(os.open(small / f"taken{len(taken)}", os.O_CREAT | os.O_WRONLY))
        except OSError:
            break
    for number in range(100):
        log.write("stdout", b"%d\n" % number)
    assert os.listdir(small / "logs") == ["app"]
    os.unlink(small / "taken0")
    for fd in taken:
        os.close(fd)
    log.write("stdout", b"100\n")
    log.close()
    assert sorted(os.listdir(small / "logs")) == ["app", "app.1"]
    assert _output(small, "stdout") == b"".join(b"%d\n" % number for number in range(101))
