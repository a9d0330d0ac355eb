"""Stacking layers: what a copy shows is what the kernel's overlay shows; dependencies and whitelists."""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aci import importer, tree
from aci.store import ImageRecord, Store
from aci.unpack import unpack_layer
from common import overlay
from common.errors import ImageError, StoreError
from tests import images, layouts, tars
from tests.host.unpacking import tree as contents
from tests.tars import device, directory, file, hardlink, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CAPABILITY = {"SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"}


def _unpacked(tmp_path: pathlib.Path, *layers: tuple[tars.Entry, ...]) -> list[str]:
    paths = []
    for number, entries in enumerate(layers):
        target = tmp_path / f"layer{number}"
        target.mkdir()
        unpack_layer(io.BytesIO(tars.pack(*entries)), str(target), whiteouts=True)
        paths.append(str(target))
    return paths


@contextmanager
def _overlay(layers: list[str], target: pathlib.Path) -> Iterator[str]:
    target.mkdir()
    empty = target.parent / "empty"
    empty.mkdir()
    lower = ":".join([*reversed(layers), str(empty)])  # An overlay is of two directories at least.
    options = ",".join(["ro", f"lowerdir={lower}", *(name for name, _ in overlay.options())])
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    try:
        yield str(target)
    finally:
        subprocess.run(["umount", target], check=True)


LOWER = (
    directory("etc", mode=0o750, uid=5, gid=6, mtime=1000),
    file("etc/kept", b"kept", uid=1, mode=0o4755, mtime=2000),
    file("etc/replaced", b"old"),
    file("etc/removed", b"x"),
    directory("opaque"),
    file("opaque/hidden", b"x"),
    directory("opaque/deep"),
    file("opaque/deep/hidden", b"x"),
    directory("becomes-file"),
    file("becomes-file/inside", b"x"),
    file("becomes-directory", b"x"),
    symlink("becomes-real", "etc"),
    directory("gone"),
    file("gone/a", b"x"),
    directory("gone-and-back"),
    file("gone-and-back/old", b"x"),
    file("one", b"linked", pax={"SCHILY.xattr.user.note": "text"}),
    hardlink("two", "one"),
    hardlink("etc/three", "one"),
    symlink("link", "/etc/kept", uid=7),
    device("null", major=1, minor=3, mode=0o666),
    tars.entry("pipe", b"6", mode=0o600),
    file("cap", b"program", mode=0o755, pax=CAPABILITY),
    file("empty"),
)
UPPER = (
    file("etc/replaced", b"new, and longer"),
    file("etc/.wh.removed"),
    file("opaque/.wh..wh..opq"),
    file("opaque/shown", b"y"),
    file("becomes-file", b"y"),
    directory("becomes-directory", mode=0o700),
    file("becomes-directory/inside", b"y"),
    directory("becomes-real"),
    file("becomes-real/inside", b"y"),
    file(".wh.gone"),
    file(".wh.gone-and-back"),
    file("two", b"no longer linked"),
)
TOP = (directory("gone-and-back", mode=0o711), file("gone-and-back/new", b"z"), file("opaque/top", b"z"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_copy_is_what_the_overlay_shows(tmp_path: pathlib.Path, count: int) -> None:
    layers = _unpacked(tmp_path, *(LOWER, UPPER, TOP)[:count])
    target = tmp_path / "copy"
    target.mkdir()
    tree.merge_layers(layers, str(target))
    with _overlay(layers, tmp_path / "merged") as merged:
        assert contents(target) == contents(merged)
    assert (target / "etc/kept").stat().st_mode & 0o7777 == 0o4755
    assert os.getxattr(target / "cap", "security.capability")


def test_holes_stay_holes(tmp_path: pathlib.Path) -> None:
    layer, target = tmp_path / "layer", tmp_path / "copy"
    layer.mkdir()
    target.mkdir()
    with open(layer / "sparse", "wb") as sparse:
        sparse.seek(50 << 20)
        sparse.write(b"data")
        sparse.truncate(100 << 20)
    tree.merge_layers([str(layer)], str(target))
    assert (target / "sparse").stat().st_size == 100 << 20
    assert (target / "sparse").stat().st_blocks < 1000
    assert (target / "sparse").read_bytes() == (layer / "sparse").read_bytes()


def test_nothing_is_copied_from_outside_a_layer(tmp_path: pathlib.Path) -> None:
    """A symlink where the layer above has a directory does not lead the walk anywhere."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    layers = _unpacked(tmp_path, (symlink("dir", str(secret)),), (directory("dir"), file("dir/own", b"x")))
    target = tmp_path / "copy"
    target.mkdir()
    tree.merge_layers(layers, str(target))
    assert os.listdir(target / "dir") == ["own"]


def test_a_full_disk_is_a_store_error(tmp_path: pathlib.Path) -> None:
    layers = _unpacked(tmp_path, (file("big", os.urandom(2 << 20)),))
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", target], check=True)
    try:
        with pytest.raises(StoreError, match="no space left on device") as caught:
            tree.merge_layers(layers, str(target))
        assert "free some space" in caught.value.hint
    finally:
        subprocess.run(["umount", target], check=True)


# Dependencies


class Shelf:
    """A store, and a quick way to put images into it."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.store = Store(str(top / "cas"))

    def aci(
        self,
        name: str,
        files: dict[str, bytes | str],
        *needs: str | dict[str, Any],
        whitelist: tuple[str, ...] = (),
        version: str = "1",
    ) -> ImageRecord:
        dependencies = [{"imageName": need} if isinstance(need, str) else need for need in needs]
        manifest = images.manifest(
            f"example.com/{name}", version, dependencies=dependencies, pathWhitelist=list(whitelist)
        )
        path = images.make_aci(str(self.top / f"{name}-{version}.aci"), manifest, files)
        return importer.import_image(self.store, path, format="aci", authorize=lambda name: None)

    def root(self, record: ImageRecord) -> dict[str, bytes]:
        (root,) = self.store.root_layers(record)
        found = pathlib.Path(root).rglob("*")
        return {str(path.relative_to(root)): path.read_bytes() for path in found if path.is_file()}


@pytest.fixture
def shelf(tmp_path: pathlib.Path) -> Shelf:
    return Shelf(tmp_path)


def test_dependencies_lie_below_in_their_order(shelf: Shelf) -> None:
    shelf.aci("base", {"a": b"base", "b": b"base", "c": b"base", "d": b"base"})
    shelf.aci("second", {"b": b"second", "c": b"second"})
    record = shelf.aci("app", {"c": b"app"}, "example.com/base", "example.com/second")
    assert shelf.root(record) == {"a": b"base", "b": b"second", "c": b"app", "d": b"base"}


def test_a_root_is_rendered_once_and_again_when_a_dependency_changes(shelf: Shelf) -> None:
    shelf.aci("base", {"a": b"1"})
    record = shelf.aci("app", {"c": b"app"}, "example.com/base")
    (first,) = shelf.store.root_layers(record)
    inode = os.stat(first).st_ino
    assert os.stat(shelf.store.root_layers(record)[0]).st_ino == inode
    shelf.aci("base", {"a": b"2"}, version="2")
    assert shelf.root(record)["a"] == b"2"
    with shelf.store.lock(exclusive=True):
        collected = shelf.store.collect(in_use=[os.path.basename(first)])
    assert [kept.name for kept in collected.kept] == [f"tree/{os.path.basename(first)}"]
    with shelf.store.lock(exclusive=True):
        assert shelf.store.collect().removed == (f"tree/{os.path.basename(first)}",)
    assert os.path.isdir(shelf.store.root_layers(record)[0])


def test_a_diamond_is_no_circle(shelf: Shelf) -> None:
    shelf.aci("base", {"a": b"base", "b": b"base"})
    shelf.aci("left", {"b": b"left"}, "example.com/base")
    shelf.aci("right", {"c": b"right"}, "example.com/base")
    record = shelf.aci("app", {}, "example.com/left", "example.com/right")
    # Depth first and in order: base comes once more with right, over what left had made of it.
    assert shelf.root(record) == {"a": b"base", "b": b"base", "c": b"right"}
    assert len(tree.parts(shelf.store, record)) == 4


def test_a_chain_of_diamonds_is_cut_off(shelf: Shelf) -> None:
    shelf.aci("n0", {"a": b""})
    record = None
    for step in range(1, 12):
        below = f"example.com/n{step - 1}"
        record = shelf.aci(f"n{step}", {}, below, {"imageName": below, "labels": [{"name": "version", "value": "1"}]})
    assert record is not None
    with pytest.raises(ImageError, match="more than 1000 images"):
        shelf.store.root_layers(record)


def test_a_circle_is_an_error(shelf: Shelf) -> None:
    shelf.aci("a", {}, "example.com/b")
    record = shelf.aci("b", {}, "example.com/a")
    with pytest.raises(ImageError, match=r"in a circle: example\.com/b → example\.com/a → example\.com/b"):
        shelf.store.root_layers(record)


def test_a_dependency_must_be_there_and_be_the_one(shelf: Shelf) -> None:
    base = shelf.aci("base", {"a": b"base"})
    missing = shelf.aci("a", {}, "example.com/nowhere")
    with pytest.raises(ImageError, match=r'dependency "example\.com/nowhere" is not in the store') as caught:
        shelf.store.root_layers(missing)
    assert caught.value.hint == "fetch it first"
    by_label = {"imageName": "example.com/base", "labels": [{"name": "version", "value": "7"}]}
    with pytest.raises(ImageError, match="is not in the store"):
        shelf.store.root_layers(shelf.aci("b", {}, by_label))
    by_id = {"imageName": "example.com/base", "imageID": base.id}
    assert shelf.root(shelf.aci("c", {}, by_id)) == {"a": b"base"}
    other = {"imageName": "example.com/other", "imageID": base.id}
    with pytest.raises(ImageError, match=r'is "example\.com/base", not the "example\.com/other"'):
        shelf.store.root_layers(shelf.aci("d", {}, other))


def test_an_oci_image_can_be_built_upon(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    layers = [layouts.layer("etc/a", "etc/b"), tars.pack(file("etc/.wh.b"))]
    layout = layouts.simple(str(tmp_path / "layout"), "example.com/base:1", *layers)
    importer.import_image(shelf.store, layout.path, format="oci-layout", authorize=lambda name: None)
    record = shelf.aci("app", {"own": b"own"}, "example.com/base")
    assert shelf.root(record) == {"etc/a": b"etc/a", "own": b"own"}


def test_a_whitelist_leaves_what_it_lists_and_the_way_there(shelf: Shelf) -> None:
    files: dict[str, bytes | str] = {
        "etc/": b"", "etc/yes": b"1", "etc/no": b"1", "usr/": b"", "usr/lib/": b"", "usr/lib/x": b"1", "opt/": b"",
        "opt/x": b"1",
    }  # fmt: skip
    record = shelf.aci("app", files, whitelist=("/etc/yes", "/usr/lib"))
    (root,) = shelf.store.root_layers(record)
    assert {str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*")} == {
        "etc", "etc/yes", "usr", "usr/lib",
    }  # fmt: skip


def test_a_whitelist_holds_for_dependencies_and_not_for_what_builds_upon_it(shelf: Shelf) -> None:
    shelf.aci("base", {"a": b"base", "b": b"base", "c": b"base"}, whitelist=("/a", "/b"))
    shelf.aci("middle", {"m": b"middle", "n": b"middle"}, "example.com/base", whitelist=("/a", "/c", "/m"))
    record = shelf.aci("app", {"own": b"own"}, "example.com/middle")
    assert shelf.root(record) == {"a": b"base", "m": b"middle", "own": b"own"}
