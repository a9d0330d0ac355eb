"""Which IDs a process knows, asked in user namespaces that are made for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import users
from common.users import Range

ROOT = Path(__file__).parents[2]
_TELL = (
    "from common import users;"
    "print(users.confined(), users.knows('uid', 0), users.knows('uid', 5), users.knows('gid', 2**32 - 2),"
    " users.can_drop_groups(), *users.ranges('uid'), sep='|')"
)


def told(*prefix: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*prefix, sys.executable, "-c", _TELL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip().split("|")


@pytest.fixture(scope="module")
def unshare() -> tuple[str, ...]:
    """A command that makes a user namespace of one ID."""
    command = ("unshare", "--user", "--map-root-user")
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    return command


def test_in_a_namespace_of_one_id(unshare: tuple[str, ...]) -> None:
    assert told(*unshare) == ["True", "True", "False", "False", "False", str(Range(0, os.geteuid(), 1))]


def test_a_range_is_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "ranges", lambda _kind: (Range(0, 1000, 1), Range(1, 100000, 10), Range(20, 7, 1)))
    assert [number for number in range(-1, 30) if users.knows("uid", number)] == [*range(11), 20]


def test_confined_is_asked_again_when_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    users.confined.cache_clear()
    monkeypatch.setattr(users, "ranges", lambda _kind: (users.EVERYTHING,))
    assert not users.confined()
    monkeypatch.setattr(users, "ranges", lambda _kind: (Range(0, 1000, 1),))
    assert not users.confined()
    users.confined.cache_clear()
    assert users.confined()
    monkeypatch.undo()
    users.confined.cache_clear()
