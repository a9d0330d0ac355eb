"""Claims on the network of a machine that is a temporary directory, and a message bus."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from stage1.network import state
from tests import buses
from tests.claimants import Pods, stub_firewall


@pytest.fixture
def pods(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, firewall: list[str]) -> Iterator[Pods]:
    monkeypatch.setattr(state, "ROOT", str(tmp_path / "net"))
    found = Pods(tmp_path)
    yield found
    found.close()


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stub_firewall(monkeypatch)


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[buses.Daemon]:
    """A message bus of our own."""
    with buses.running(tmp_path) as running:
        yield running
