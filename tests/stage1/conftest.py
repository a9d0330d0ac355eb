"""Claims on the network of a machine that is a temporary directory."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from stage1.network import state
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
