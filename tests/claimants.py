"""Pods as far as claims on the network go: a directory with a lock, held by the test as long as the pod is to live."""

from __future__ import annotations

import os
import pathlib
import uuid as uuids

import pytest

from common import locks
from stage1 import poddir
from stage1.network import firewall, owners, state


class Pods:
    """Below `root`: a data directory's pods, and the claims of them."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root / "data" / "pods"
        self._held: dict[str, locks.Lock] = {}

    def close(self) -> None:
        for lock in self._held.values():
            lock.close()
        self._held.clear()

    def start(self, name: str = "", *, uuid: str = "", register: bool = True) -> str:
        uuid = uuid or str(uuids.uuid4())
        directory = self.root / "run" / uuid
        directory.mkdir(parents=True)
        (directory / poddir.LOCK).touch()
        if name:
            (directory / poddir.NAME).write_text(f"{name}\n")
        self._held[uuid] = locks.acquire(str(directory / poddir.LOCK), exclusive=False)
        if register:
            owners.register(uuid, str(directory))
        return uuid

    def die(self, uuid: str) -> None:
        """Killed: nothing is taken back."""
        self._held.pop(uuid).close()

    def move(self, uuid: str, to: str) -> str:
        target = self.root / to / uuid
        target.parent.mkdir(exist_ok=True)
        os.rename(self.directory(uuid), target)
        return str(target)

    def directory(self, uuid: str) -> str:
        return str(next(self.root.glob(f"*/{uuid}")))


def claims() -> set[str]:
    """All there are, as paths below the root."""
    root = pathlib.Path(state.ROOT)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink()}


def stub_firewall(patch: pytest.MonkeyPatch) -> list[str]:
    """The UUIDs of pods whose elements are withdrawn; the firewall itself is for those who are root."""
    withdrawn: list[str] = []
    patch.setattr(firewall, "withdraw", withdrawn.append)
    return withdrawn
