"""Less memory for a process that has finished starting and will mostly wait from now on."""

from __future__ import annotations

import time
from contextlib import suppress

from common import syscalls
from stage1.loop import Loop

DELAY = 1.0
"""Seconds from a start until the first time: a pod that ends at once has no use for it."""
INTERVAL = 30.0
"""Seconds until it is looked at again what has come back since."""
WORTHWHILE = 0.02
"""Seconds of processor time after which something will have."""
_RANGES = 1024
"""At most for process_madvise(2)."""


def keep_small(loop: Loop) -> None:
    """Shrink this process soon, and again whenever it has worked meanwhile."""
    worked = -WORTHWHILE

    def look() -> None:
        nonlocal worked
        if time.process_time() - worked >= WORTHWHILE:
            shrink()
            worked = time.process_time()
        loop.call_later(INTERVAL, look)

    loop.call_later(DELAY, look)


def shrink() -> None:
    """Let go of the pages of programs and libraries, most of which only the start has used: what is needed again comes
    back from the page cache. Where there is no /proc/self/smaps (proc(5)) everything stays as it is."""
    try:
        with open("/proc/self/smaps", "rb") as file:
            found = _unwritten(file.read())
    except OSError:
        return
    for start, end in found:
        syscalls.madvise(start, end - start, syscalls.MADV_DONTNEED)


def page_out(pid: int, pidfd: int) -> None:
    """Have another process let go of the pages of files that it has mapped, and the page cache of those that nobody
    else has mapped: what it needs again is read again. Where that is not possible everything stays as it is."""
    with suppress(OSError):
        with open(f"/proc/{pid}/maps", "rb") as file:
            mappings = [line.split(None, 5) for line in file]
        # Private ones: in a shared one are the guest's memory and what others see.
        wanted = [words[0].split(b"-") for words in mappings if words[1][3:4] == b"p" and words[4] != b"0"]
        for at in range(0, len(wanted), _RANGES):
            ranges = [(int(start, 16), int(end, 16)) for start, end in wanted[at : at + _RANGES]]
            syscalls.process_madvise(pidfd, ranges, syscalls.MADV_PAGEOUT)


def _unwritten(smaps: bytes) -> list[tuple[int, int]]:
    """The mappings of files that cannot be written to and never were: of one that was, such as what the dynamic linker
    has relocated, only the process has the content."""
    found = []
    mapping = (0, 0)
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(b":"):
            start, end = (int(address, 16) for address in words[0].split(b"-"))
            read_only = words[1][1:2] == b"-" and words[1][3:4] == b"p" and words[4] != b"0"
            mapping = (start, end) if read_only else (0, 0)
        elif words[0] == b"Anonymous:" and words[1] == b"0" and mapping[1]:
            found.append(mapping)
    return found
