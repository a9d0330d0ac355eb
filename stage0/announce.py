"""What the service manager of a pod hears until the pod can speak for itself: what is being done, and, as long as it
gets on, that it takes longer than a unit's TimeoutStartSec= may allow (EXTEND_TIMEOUT_USEC= in sd_notify(3)).

Whether it gets on is seen from what has been read and written, of every process that takes part, and from what those
who download say. A server that keeps silent is no progress; that somebody else has the store locked is no fault.
"""

from __future__ import annotations

import signal
import time

from common import locks
from stage1 import boot
from stage1.systemd.given import Given

_EVERY = 1.0
"""Seconds between looks at whether there was progress. A start that takes no longer is none of its business."""
_STEP = 20.0
"""Seconds that one sign of progress is good for."""
_NOISE = 4096
"""Bytes that looking takes, and more."""
_address = ""
_begun = 0.0
_extended = False
_reports = _seen = _transferred = 0


def begin(given: Given) -> None:
    """From now on, if there is somebody to hear it. Until `end` the process has a timer's signals."""
    global _address, _begun, _transferred
    if not given.notify:
        return
    _address, _begun, _transferred = given.notify, time.monotonic(), _bytes()
    signal.signal(signal.SIGALRM, lambda _number, _frame: _look())
    signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)


def status(text: str) -> None:
    """What is being done."""
    if _address:
        _say(f"STATUS={''.join(char if char.isprintable() else ' ' for char in text)}")


def progressed() -> None:
    """Something has arrived."""
    global _reports
    _reports += 1


def end() -> None:
    """The pod goes on by itself. What its start took so far is added to what it may still take."""
    global _address
    if not _address:
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if _extended:
        _extend(max(_STEP, time.monotonic() - _begun))
        boot.insist()
    _address = ""


def _look() -> None:
    global _seen, _transferred, _extended
    if locks.waiting:
        status("waiting for another rkpy")
    if locks.waiting or _reports != _seen or _bytes() - _transferred > _NOISE:
        _extended = True
        _extend(_STEP)
    _seen, _transferred = _reports, _bytes()


def _extend(seconds: float) -> None:
    _say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def _say(text: str) -> None:
    boot.tell_manager(_address, text)


def _bytes() -> int:
    """What this process and those it has started have read and written, sockets only where they are read like files;
    of processes that have ended, too (/proc/PID/io in proc(5))."""
    return sum(_io(process) for process in ("self", *_children()))


def _children() -> list[str]:
    try:
        with open("/proc/thread-self/children", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _io(process: str) -> int:
    try:
        with open(f"/proc/{process}/io", encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(("rchar", "wchar")))
    except OSError:
        return 0
