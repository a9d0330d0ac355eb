"""Pods whose monitor was there no more to say how they ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stage0 import podinfo
from stage0.pods import State
from stage1 import cgroup, poddir
from stage1.poddir import Hardware


class Pod(NamedTuple):
    """As much of one as is looked at."""

    base: str
    starts: bool

    def records_starts(self) -> bool:
        return self.starts


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pod directory with the record of a cgroup in which one process was killed."""
    (tmp_path / cgroup.RECORD).write_text(f"{tmp_path}\n")
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 1\n")
    return tmp_path


def lacked_memory(base: Path, *, starts: bool = True, state: State = State.EXITED, unseen: bool = True) -> bool:
    pod: Any = Pod(str(base), starts)
    return podinfo._lacked_memory(pod, state, unseen=unseen)


def test_what_is_killed_in_the_cgroup_of_a_machine_is_the_machine(base: Path) -> None:
    assert not lacked_memory(base)  # It may have been an app, of which the monitor has told.
    poddir.write_hardware(str(base), Hardware("tcg", 1, 1 << 28, "6.1.0"))
    assert lacked_memory(base)
    assert not lacked_memory(base, unseen=False)
    assert not lacked_memory(base, state=State.RUNNING)
    (base / "memory.events").write_text("oom 0\noom_kill 0\n")
    assert not lacked_memory(base)


def test_where_nobody_stays_the_cgroup_of_the_app_tells(base: Path) -> None:
    assert lacked_memory(base, starts=False)
    assert not lacked_memory(base, starts=False, state=State.PREPARED)
