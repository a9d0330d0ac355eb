"""Which pages can be let go of, and that a process goes on without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stage1 import footprint

SMAPS = b"""\
00400000-00420000 r-xp 00001000 08:01 77                                 /usr/bin/python3
Rss:                 128 kB
Anonymous:             0 kB
00420000-00421000 r--p 00021000 08:01 77                                 /usr/bin/python3
Anonymous:             4 kB
00421000-00430000 rw-p 00022000 08:01 77                                 /usr/bin/python3
Anonymous:             0 kB
00500000-00600000 r--s 00000000 08:01 78                                 /dev/shm/a b
Anonymous:             0 kB
00600000-00700000 r--p 00000000 00:00 0
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
"""


def test_only_what_the_file_still_has() -> None:
    assert footprint._unwritten(SMAPS) == [(0x400000, 0x420000)]


def test_a_process_goes_on_with_less() -> None:
    code = """
import ctypes, json
from stage1 import footprint
def rss():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
before = rss()
footprint.shrink()
after = rss()
import decimal
print(json.dumps([before, after, str(decimal.Decimal(1) / 3)]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after, third = eval(said)
    assert after < before - 1000
    assert third.startswith("0.3333")


def test_another_process_lets_go_of_a_file_it_has_read(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root: another process's memory")
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    os.sync()  # Only clean pages can be had again.
    code = """
import mmap, sys
opened = open(sys.argv[1], "rb")
file = mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
read = sum(file[::4096])
print("read", flush=True)
sys.stdin.read(1)
print(sum(file[::4096]))
"""
    words = [sys.executable, "-c", code, f"{tmp_path}/file"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "read\n"
        before = resident(child.pid, f"{tmp_path}/file")
        pidfd = os.pidfd_open(child.pid)
        footprint.page_out(child.pid, pidfd)
        os.close(pidfd)
        assert resident(child.pid, f"{tmp_path}/file") < before
        assert child.communicate("x")[0] == "0\n"


def resident(pid: int, path: str) -> int:
    """KiB of the file at `path` that the process has in memory."""
    mapping, total = "", 0
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            words = line.split()
            mapping = mapping if words[0].endswith(":") else words[-1]
            total += int(words[1]) if words[0] == "Rss:" and mapping == path else 0
    return total
