"""Entries for the journal, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): what the apps write, and what
rkpy does. Without a journal nothing happens here."""

from __future__ import annotations

from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"

FETCHED = "e2a8d1fedb81f50236a95c48863fdd98"
VERIFIED = "2958799a452a2d7a383eed94e378387e"
PREPARED = "f2edfb2bd7d78c15d0d6fcbc16bf8ffa"
STARTED = "30038c9677816aaea91a75170ece8dfc"
EXITED = "8f29c52d0f2cc869dcdef970550ee039"
OOM = "64194bfb7538baca63d2cc2b1bf49410"
COLLECTED = "0c591247bd671e1137c9087ab4f02468"
"""MESSAGE_ID of each kind of event."""


def event(message_id: str, message: str, fields: Mapping[str, str]) -> None:
    """Record something rkpy did. Never fails and never waits."""
