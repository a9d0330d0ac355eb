"""The content store: finding, marking, removing, and what it does when its files are not as it left them."""

from __future__ import annotations

import os
import pathlib
import sqlite3

import pytest

from aci.store import Store, Verification
from common.errors import ManifestError, StoreError
from tests.aci.stores import put, record

HOST = {"os": "linux", "arch": "amd64"}


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "cas"))


def test_a_store_that_is_not_there_is_empty(store: Store) -> None:
    assert store.images() == []
    assert store.find("example.com/app", {}) is None
    with pytest.raises(StoreError, match="no image with the ID"):
        store.find_by_id("sha512-ab")
    assert not os.path.exists(store.root)


def test_what_is_added_is_read_back(store: Store) -> None:
    signed = Verification("F" * 40, "A <a@example.com>", "example.com", 1_700_000_000)
    put(store, original := record(latest=True, verification=signed))
    assert store.images() == [original]
    assert store.get(original.id) == original


def test_ids_are_found_by_their_beginning(store: Store) -> None:
    put(store, first := record("ab"), record("ac"))
    assert store.find_by_id("sha512-ab") == first
    assert store.find_by_id(first.id) == first
    with pytest.raises(StoreError, match=r'"sha512-a.*" is ambiguous: 2 images'):
        put(store, record("aba"))
        store.find_by_id("sha512-ab")
    with pytest.raises(StoreError, match='no image with the ID "sha512-ff"'):
        store.find_by_id("sha512-ff")
    with pytest.raises(ManifestError):
        store.find_by_id("sha512-../../etc")


def test_a_name_finds_the_newest_import_or_the_latest(store: Store) -> None:
    old = record("a", version="2", import_time=1)
    new = record("b", version="1", import_time=2)
    put(store, old, new, record("c", name="example.com/app2", import_time=3))
    assert store.find("example.com/app", HOST) == new
    assert store.find("example.com/app", {**HOST, "version": "2"}) == old
    put(store, marked := old._replace(latest=True))
    assert store.find("example.com/app", HOST) == marked
    assert store.find("example.com/app", {**HOST, "version": "1"}) == new


def test_labels_must_all_match_but_a_platform_may_be_left_open(store: Store) -> None:
    anywhere = record("a")
    anywhere = anywhere._replace(manifest=anywhere.manifest._replace(labels=(("version", "1"),)))
    put(store, anywhere, foreign := record("b", name="example.com/arm"))
    put(store, foreign._replace(manifest=foreign.manifest._replace(labels=(("os", "linux"), ("arch", "aarch64")))))
    assert store.find("example.com/app", HOST) == anywhere
    assert store.find("example.com/app", {"channel": "beta"}) is None
    assert store.find("example.com/arm", HOST) is None
    assert store.find("example.com/arm", {"arch": "aarch64"}) is not None


def test_a_use_is_noted_without_touching_the_index(store: Store) -> None:
    put(store, item := record())
    before = os.stat(store.index.path).st_mtime_ns
    store.touch(item.id)
    assert store.last_used(item.id) > 0
    os.utime(f"{store.root}/used/{item.id}", ns=(5, 5))
    assert store.get(item.id).last_used == 5
    store.touch(item.id)
    assert store.last_used(item.id) > 5
    assert os.stat(store.index.path).st_mtime_ns == before


def _spoil_garbage(store: Store) -> None:
    with open(store.index.path, "r+b") as file:
        file.write(b"not a database" * 400)


def _spoil_missing(store: Store) -> None:
    os.unlink(store.index.path)


def _spoil_empty(store: Store) -> None:
    os.truncate(store.index.path, 0)


def _spoil_version(store: Store) -> None:
    with sqlite3.connect(store.index.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _spoil_schema(store: Store) -> None:
    with sqlite3.connect(store.index.path) as connection:
        connection.execute("DROP TABLE image")
    connection.close()


@pytest.mark.parametrize("spoil", [_spoil_garbage, _spoil_missing, _spoil_empty, _spoil_version, _spoil_schema])
def test_an_index_that_cannot_be_used_is_made_anew(store: Store, spoil: object) -> None:
    put(store, item := record("a"))
    assert callable(spoil)
    spoil(store)
    assert store.find("example.com/app", HOST) == item
    spoil(store)
    put(store, other := record("b", import_time=item.import_time + 1))
    assert store.find("example.com/app", HOST) == other
    assert {entry.id for entry in store.index.lookup("example.com/app") or []} == {item.id, other.id}


def test_an_index_behind_the_records_is_noticed(store: Store) -> None:
    """As after a kill between the rename of a record and the commit."""
    put(store, item := record("a"))
    other = record("b", import_time=item.import_time + 1)
    put(store, other)
    path = f"{store.root}/image/{other.id}.json"
    os.rename(path, f"{store.root}/aside")
    assert store.find("example.com/app", HOST) == item
    os.rename(f"{store.root}/aside", path)
    assert store.find("example.com/app", HOST) == other


def test_a_damaged_record_says_so(store: Store) -> None:
    put(store, item := record())
    with open(f"{store.root}/image/{item.id}.json", "w") as file:
        file.write("{}")
    with pytest.raises(StoreError, match="record of image sha512-aaaaaaaaaaaa is damaged"):
        store.images()


def test_removing_an_image_leaves_what_others_and_pods_need(store: Store) -> None:
    first = record("a", layers=("sha256-base", "sha256-one"), blobs=("sha256:base", "sha256:one"))
    second = record("b", layers=("sha256-base", "sha256-two"), blobs=("sha256:base", "sha256:two"))
    put(store, first, second)
    with store.lock(exclusive=True):
        store.remove(first.id)
        collected = store.collect(in_use={"sha256-one"})
    assert collected.removed == ("blob/sha256/one",)
    assert [(kept.name, kept.why) for kept in collected.kept] == [("layer/sha256-one", "a pod uses it")]
    assert store.images() == [second]
    assert store.find("example.com/app", HOST) == second
    with store.lock(exclusive=True):
        assert store.collect().removed == ("layer/sha256-one",)
        store.remove(second.id)
        store.collect()
    assert not any(os.listdir(f"{store.root}/{name}") for name in ("layer", "blob/sha256", "image", "used", "tmp"))


def test_collecting_removes_what_was_interrupted_and_nothing_that_lives(store: Store) -> None:
    store.make()
    os.makedirs(f"{store.root}/tmp/dead/half/layer")
    os.makedirs(f"{store.root}/tmp/locked-once")
    open(f"{store.root}/tmp/locked-once/lock", "w").close()
    with store.staging() as staged:
        # As gc would see it, were it not kept out by the store's lock.
        removed = store.collect().removed
        assert os.path.isdir(staged)
    assert removed == ("tmp/dead", "tmp/locked-once")
    assert os.listdir(f"{store.root}/tmp") == []


def test_strangers_may_look_but_not_walk_into_layers(store: Store) -> None:
    put(store, record())
    modes = {name: os.stat(f"{store.root}/{name}").st_mode & 0o777 for name in ("layer", "tree", "blob", "tmp")}
    assert set(modes.values()) == {0o700}
    assert os.stat(f"{store.root}/image").st_mode & 0o777 == 0o755


def test_the_index_is_not_needed(store: Store) -> None:
    """A directory in its place: neither readable, nor writable, nor removable by unlink."""
    put(store, item := record("a"))
    os.unlink(store.index.path)
    for suffix in ("-wal", "-shm"):
        pathlib.Path(store.index.path + suffix).unlink(missing_ok=True)
    os.mkdir(store.index.path)
    assert store.find("example.com/app", HOST) == item
