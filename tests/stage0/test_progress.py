"""What a person sees of a fetch."""

from __future__ import annotations

import os
import pty
import select
import sys
import termios

import pytest

from stage0.progress import Progress

DIGEST = "sha256:" + "ab" * 32


def fetch(progress: Progress) -> None:
    with progress:
        progress.say("fetching example.com/app:1")
        for done in (0, 1 << 20, 2 << 20):
            progress.layer(DIGEST, done, 2 << 20)
        progress.of("https://example.com/app.aci")(10, None)


def test_a_line_for_each_step_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    fetch(Progress())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "fetching example.com/app:1",
        "fetching sha256:abababababab (2.0MiB)",
        "fetching https://example.com/app.aci",
    ]


def test_nothing_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    fetch(Progress(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_a_bar_for_each_layer_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        fetch(Progress())
        terminal.flush()
        seen = b""
        while select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 65536)
    os.close(ours)
    assert b"sha256:abababababab:" in seen
    assert b"/2.00M" in seen
    assert b"fetching sha256:" not in seen
