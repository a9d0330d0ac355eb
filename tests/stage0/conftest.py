"""A data directory's pods, and processes that have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stage0.pods import Pods
from tests.living import Living, die


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    return Pods(str(tmp_path / "data/pods"))


@pytest.fixture
def living() -> Iterator[Living]:
    alive: Living = []
    yield alive
    for process in alive:
        die(process)
