"""The index of names with many processes at it, and where nothing may be written."""

from __future__ import annotations

import os
import pathlib
import sqlite3
import sys

import pytest

from aci.store import Store
from tests.aci.stores import put, record

WRITERS, ROUNDS = 6, 15


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "cas"))


def _in_step(store: Store) -> bool:
    return store.index.lookup("example.com/nothing") == []


def test_the_index_follows_what_is_added_and_removed(store: Store) -> None:
    put(store, first := record("a"), second := record("b", version="2"))
    assert {entry.id for entry in store.index.lookup("example.com/app") or []} == {first.id, second.id}
    store.remove(first.id)
    assert [entry.id for entry in store.index.lookup("example.com/app") or []] == [second.id]
    put(store, renamed := second._replace(manifest=second.manifest._replace(name="example.com/other")))
    assert store.index.lookup("example.com/app") == []
    assert [entry.id for entry in store.index.lookup("example.com/other") or []] == [renamed.id]


def test_it_is_written_ahead_so_that_readers_never_wait(store: Store) -> None:
    put(store, record())
    with sqlite3.connect(store.index.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("BEGIN IMMEDIATE")
        assert store.find("example.com/app", {}) is not None
        connection.rollback()
    connection.close()


def test_many_writers_and_readers(store: Store) -> None:
    store.make()
    children = []
    for writer in range(WRITERS):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _write(store, writer)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * WRITERS
    assert len(store.images()) == WRITERS * (ROUNDS - ROUNDS // 3)
    assert store.find("example.com/app0", {}) is not None
    assert _in_step(store)
    assert len(store.index.lookup("example.com/app1") or []) == ROUNDS - ROUNDS // 3


def _write(store: Store, writer: int) -> None:
    name = f"example.com/app{writer}"
    for turn in range(ROUNDS):
        item = record(f"{writer:x}{turn:x}", name=name, version=str(turn))
        put(store, item)
        found = store.find(name, {"version": str(turn)})
        assert found is not None
        assert found.id == item.id
        if turn % 3 == 2:
            store.remove(item.id)
            assert store.find(name, {"version": str(turn)}) is None
        if turn == ROUNDS // 2 and writer == 0:
            with open(store.index.path, "r+b") as file:
                file.write(b"damage")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_strangers_can_read_and_change_nothing(store: Store, tmp_path: pathlib.Path) -> None:
    put(store, item := record())
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o005)
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(store.root).rglob("*")}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            assert [found.id for found in store.images()] == [item.id]
            found = store.find("example.com/app", {})
            assert found is not None
            assert found.id == item.id
            assert store.find_by_id("sha512-aa").id == item.id
            assert not os.access(f"{store.root}/layer", os.X_OK)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(store.root).rglob("*")} == before
