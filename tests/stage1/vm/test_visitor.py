"""The client of a command beside an app."""

from __future__ import annotations

import os
import select
import signal
import threading

from stage1 import channel
from stage1.attach import pairs
from stage1.vm.visitor import _Visitor


def test_who_insists_gets_away_from_a_machine_that_hangs() -> None:
    """What is handed on arrives, but nobody acts on it."""
    link, theirs = channel.pair()
    near, far = pairs(3)
    heard: list[str] = []

    def insist() -> None:
        while len(heard) < 3:
            os.kill(os.getpid(), signal.SIGTERM)  # to nobody yet, perhaps
            if select.select([theirs], [], [], 0.2)[0]:
                heard.append(theirs.receive()[0])

    old = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=insist)
    thread.start()
    try:
        status = _Visitor(link, ("stdin", "stdout", "stderr"), near).status
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, old)
        for end in (link, theirs):
            end.close()
        for fd in far:
            os.close(fd)
    assert status == 128 + signal.SIGTERM
    assert heard == [f"signal {signal.SIGTERM:d}"] * 3
