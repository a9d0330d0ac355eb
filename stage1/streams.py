"""Where an app's standard streams lead."""

from __future__ import annotations

from typing import NamedTuple


class Streams(NamedTuple):
    """Each one of the words rkt's annotations have."""

    stdin: str = "null"
    """"null", "stream" (an attached client, or the caller when interactive) or "tty"."""
    stdout: str = "log"
    """"log", "null", "stream" (attached clients only) or "tty"."""
    stderr: str = "log"
