"""What a command says beside its result."""

from __future__ import annotations

import sys


def warn(text: str) -> None:
    """One line on standard error about something that was left out or will be ignored."""
    sys.stderr.write(f"rkpy: warning: {text}\n")
