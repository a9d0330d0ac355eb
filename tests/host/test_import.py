"""Importing images made by hand: every format, everything that can be wrong, and every way to be interrupted."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aci import check, importer
from aci.store import ImageRecord, Store, Verification
from common import overlay
from common.errors import ImageError, ManifestError, RkpyError, StoreError, TrustError
from tests import images, layouts, tars
from tests.host.unpacking import tree
from tests.layouts import Layout, layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FILES: dict[str, bytes | str] = {"etc/": b"", "etc/motd": b"hello", "bin/": b"", "bin/sh": b"#!", "bin/ash": "->sh"}


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "data" / "cas"))


def load(store: Store, path: str, **options: Any) -> ImageRecord:
    """Import without asking anybody."""
    options = {"format": importer.sniff(path), "authorize": lambda name: None, **options}
    return importer.import_image(store, path, **options)


def nothing_stored(store: Store) -> bool:
    kinds = ("image", "layer", "blob/sha256", "tmp", "used")
    return not any(os.listdir(path) for kind in kinds if os.path.isdir(path := f"{store.root}/{kind}"))


def is_sound(store: Store) -> None:
    """Every image there is can be run and found, and what is not part of one is garbage that can be collected."""
    for record in store.images():
        assert check.verify(store, record) == []
        assert store.find(record.manifest.name, {}) is not None
    with store.lock(exclusive=True):
        store.collect()
        assert store.collect().removed == ()
    needed = {name for record in store.images() for name in record.layers}
    assert set(os.listdir(f"{store.root}/layer")) == needed
    assert os.listdir(f"{store.root}/tmp") == []


# ACIs


@pytest.mark.parametrize("compression", ["", "gzip", "bzip2", "xz"])
def test_an_aci_is_the_same_image_however_it_is_compressed(
    store: Store, tmp_path: pathlib.Path, compression: str
) -> None:
    plain = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES, compression="")
    path = images.make_aci(str(tmp_path / "b.aci"), images.manifest(), FILES, compression=compression)
    seen: list[str] = []
    record = importer.import_image(store, path, format="aci", authorize=lambda name: seen.append(name))
    assert seen == ["example.com/app"]
    assert record.id == "sha512-" + subprocess.check_output(["sha512sum", plain], text=True).split()[0]
    assert record.layers == (record.id,)
    (root,) = store.root_layers(record)
    assert {str(found.relative_to(root)) for found in pathlib.Path(root).rglob("*")} == {
        "etc", "etc/motd", "bin", "bin/sh", "bin/ash",
    }  # fmt: skip
    with open(store.blob_path(record.blobs[0]), "rb") as blob, open(path, "rb") as file:
        assert blob.read() == file.read()
    assert record.size == os.path.getsize(path) + len(b"hello" + b"#!")
    assert store.images() == [record]
    assert load(store, plain) == record._replace(last_used=store.last_used(record.id))
    is_sound(store)


def test_an_aci_compressed_by_zstd(store: Store, tmp_path: pathlib.Path) -> None:
    plain = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES, compression="")
    subprocess.run(["zstd", "-q", plain, "-o", f"{plain}.zst"], check=True)
    assert load(store, f"{plain}.zst").id == load(store, plain).id


def _aci(tmp_path: pathlib.Path, *entries: tars.Entry) -> str:
    path = tmp_path / "made.aci"
    path.write_bytes(gzip.compress(tars.pack(*entries)))
    return str(path)


MANIFEST = tars.file("manifest", json.dumps(images.manifest()).encode())
ROOT = tars.directory("rootfs")


def test_the_manifest_may_come_last(store: Store, tmp_path: pathlib.Path) -> None:
    record = load(store, _aci(tmp_path, tars.directory("./rootfs"), tars.file("./rootfs/a", b"a"), MANIFEST))
    assert record.manifest.name == "example.com/app"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((ROOT, tars.file("rootfs/a")), "no manifest"),
        ((MANIFEST,), "no rootfs"),
        ((MANIFEST, ROOT, tars.file("extra")), "'extra' is beside manifest and rootfs"),
        ((MANIFEST, ROOT, tars.directory("rootfsX")), "'rootfsX' is beside manifest and rootfs"),
        ((MANIFEST, MANIFEST, ROOT), "in the archive twice"),
        ((MANIFEST, ROOT, tars.file("rootfs/a"), tars.file("rootfs/./a")), "in the archive twice"),
        ((MANIFEST, tars.symlink("rootfs", "/etc")), "the root can only be a directory"),
        ((tars.symlink("manifest", "/etc/passwd"), ROOT), "manifest is not a regular file"),
        ((MANIFEST, ROOT, tars.file("rootfs/../../x")), r"'\.\.' is not allowed"),
        ((tars.file("manifest", b"{}"), ROOT), "acKind"),
        ((tars.file("manifest", b" " * (5 << 20)), ROOT), "manifest is larger than"),
    ],
)
def test_an_aci_that_breaks_the_rules(
    store: Store, tmp_path: pathlib.Path, entries: tuple[tars.Entry, ...], message: str
) -> None:
    with pytest.raises((ImageError, ManifestError), match=message):
        load(store, _aci(tmp_path, *entries), format="aci")
    assert nothing_stored(store)


# OCI images


def test_a_layout_an_archive_and_a_compressed_archive_are_one_image(store: Store, tmp_path: pathlib.Path) -> None:
    layout = layouts.simple(str(tmp_path / "layout"))
    archive = layout.archive(str(tmp_path / "app.tar"))
    subprocess.run(["gzip", "-k", archive], check=True)
    records = [load(store, path) for path in (layout.path, archive, f"{archive}.gz")]
    assert {record.id for record in records} == {records[0].id}
    assert [record.manifest.name for record in records] == ["example.com/app"] * 3
    assert len(store.images()) == 1
    assert records[0].format == "oci"
    lower, upper = store.root_layers(records[0])
    assert sorted(os.listdir(f"{lower}/etc")) == ["base"]
    assert sorted(os.listdir(f"{upper}/etc")) == ["upper"]
    is_sound(store)


@pytest.mark.parametrize("media_type", [layouts.TAR, layouts.GZIP, f"{layouts.TAR}+zstd"])
def test_layers_of_each_compression(store: Store, tmp_path: pathlib.Path, media_type: str) -> None:
    data = layer("etc/a")
    diff_id = layouts.sha256(data)
    if media_type.endswith("zstd"):
        data = subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    layout = Layout(str(tmp_path / "layout"))
    layout.add(layout.image(data, media_type=media_type, diff_ids=[diff_id]), "a")
    record = load(store, layout.path)
    assert record.layers == (diff_id.replace(":", "-"),)
    is_sound(store)


def test_layers_are_shared_and_one_that_occurs_twice_is_stacked_once(store: Store, tmp_path: pathlib.Path) -> None:
    base, other = layer("etc/base"), layer("etc/other")
    first = load(store, layouts.simple(str(tmp_path / "a"), "a:1", base).path)
    inode = os.stat(store.root_layers(first)[0]).st_ino
    second = load(store, layouts.simple(str(tmp_path / "b"), "b:1", base, other, base).path)
    assert second.layers == tuple(layouts.sha256(data).replace(":", "-") for data in (other, base))
    assert os.stat(store.layer_path(second.layers[1])).st_ino == inode
    with store.lock(exclusive=True):
        store.remove(first.id)
        store.collect()
    assert check.verify(store, second) == []
    is_sound(store)


def test_whiteouts_become_overlays(store: Store, tmp_path: pathlib.Path) -> None:
    upper = tars.pack(tars.file("etc/.wh.base"), tars.file("opt/.wh..wh..opq"))
    record = load(store, layouts.simple(str(tmp_path / "a"), "a:1", layer("etc/base", "opt/x"), upper).path)
    top = store.root_layers(record)[1]
    assert os.stat(f"{top}/etc/base").st_rdev == 0
    assert os.getxattr(f"{top}/opt", overlay.opaque()) == b"y"


def test_a_restrictive_umask_does_not_show_in_layers(store: Store, tmp_path: pathlib.Path) -> None:
    old = os.umask(0o077)
    try:
        record = load(store, layouts.simple(str(tmp_path / "a")).path)
    finally:
        os.umask(old)
    assert {os.stat(path).st_mode & 0o777 for path in store.root_layers(record)} == {0o755}
    assert os.stat(f"{store.root}/image").st_mode & 0o777 == 0o755


def test_a_docker_archive(store: Store, tmp_path: pathlib.Path) -> None:
    same = layer("etc/same")
    path = layouts.docker_archive(str(tmp_path / "saved.tar"), [same, gzip.compress(layer("b")), same], tags=["bb:1"])
    assert importer.sniff(path) == "docker-archive"
    record = load(store, path)
    assert record.manifest.name == "registry-1.docker.io/library/bb"
    assert load(store, path).id == record.id
    is_sound(store)


def _spoil_blob(layout: Layout, record: dict[str, Any], change: Callable[[bytes], bytes]) -> None:
    manifest = json.loads(pathlib.Path(layout.blob_path(record["digest"])).read_bytes())
    path = pathlib.Path(layout.blob_path(manifest["layers"][-1]["digest"]))
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("at", [0, 1, -1, -9])
def test_a_changed_byte_in_a_layer_is_found(store: Store, tmp_path: pathlib.Path, at: int) -> None:
    layout = layouts.simple(str(tmp_path / "a"))

    def flip(data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[at] ^= 1
        return bytes(spoilt)

    _spoil_blob(layout, layout.entries[0], flip)
    with pytest.raises(ImageError, match=r"layer sha256:.* is damaged: its content does not have that digest"):
        load(store, layout.path)
    assert nothing_stored(store)


def test_a_layer_must_be_what_the_configuration_says(store: Store, tmp_path: pathlib.Path) -> None:
    layout = Layout(str(tmp_path / "a"))
    layout.add(layout.image(layer("a"), layer("b"), diff_ids=[layouts.sha256(layer("a")), "sha256:" + "0" * 64]))
    with pytest.raises(ImageError, match="unpacked it is not what the configuration says"):
        load(store, layout.path)
    assert nothing_stored(store)


def test_a_layer_that_is_stored_already_must_be_the_blobs_as_well(store: Store, tmp_path: pathlib.Path) -> None:
    """Else it could never be verified, nor unpacked where the other image is not."""
    load(store, layouts.simple(str(tmp_path / "a"), "example.com/a:1", layer("a")).path)
    layout = Layout(str(tmp_path / "b"))
    layout.add(layout.image(layer("b"), diff_ids=[layouts.sha256(layer("a"))]))
    with pytest.raises(ImageError, match="unpacked it is not what the configuration says"):
        load(store, layout.path)
    assert len(store.images()) == 1


def test_a_hostile_layer_takes_the_others_down_with_it(store: Store, tmp_path: pathlib.Path) -> None:
    layers = [layer("a"), tars.pack(tars.file("../../escape", b"x")), layer("c"), layer("d")]
    with pytest.raises(ImageError, match=r"'\.\.' is not allowed"):
        load(store, layouts.simple(str(tmp_path / "a"), "a:1", *layers).path)
    assert nothing_stored(store)


@pytest.mark.parametrize("name", ["app", "app.tar.gz", "dir/"])
def test_what_is_no_image_says_so(store: Store, tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.write_bytes(tars.pack(tars.file("etc/passwd")))
    with pytest.raises(ImageError, match=r"neither an ACI nor an OCI|not an OCI layout"):
        load(store, str(path))
    with pytest.raises(ImageError, match="no such file"):
        importer.sniff(str(tmp_path / "missing"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        importer.sniff(str(tmp_path / "fifo"))


# Who may be imported, and under which name


def test_an_image_that_is_refused_is_not_stored(store: Store, tmp_path: pathlib.Path) -> None:
    def refuse(name: str) -> Verification:
        assert nothing_stored(store) or os.listdir(f"{store.root}/layer") == []
        raise TrustError(f"{name} is not trusted")

    aci = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES)
    for path in (aci, layouts.simple(str(tmp_path / "layout")).path):
        with pytest.raises(TrustError, match=r"example\.com/app is not trusted"):
            load(store, path, authorize=refuse)
        assert nothing_stored(store)


def test_the_verification_is_recorded_and_stays_while_the_name_does(store: Store, tmp_path: pathlib.Path) -> None:
    layout = layouts.simple(str(tmp_path / "layout"), "example.com/app:1")
    proof = Verification("F" * 40, "Somebody", "example.com/app", 1)
    first = load(store, layout.path, authorize=lambda name: proof)
    assert load(store, layout.path).verification == proof
    layout.entries.clear()
    layout.add(layout.image(layer("etc/base", "bin/sh"), layer("etc/upper")), "example.com/other:2")
    renamed = load(store, layout.path)
    assert renamed.id == first.id
    assert (renamed.manifest.name, renamed.manifest.label("version")) == ("example.com/other", "2")
    assert renamed.verification is None
    assert store.find("example.com/app", {}) is None
    assert store.find("example.com/other", {}) == store.images()[0]


def test_what_is_staged_cannot_change_and_is_used_up(store: Store, tmp_path: pathlib.Path) -> None:
    layout = layouts.simple(str(tmp_path / "layout"), "")
    aci = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES)
    saved = layouts.docker_archive(str(tmp_path / "saved.tar"), [layer("a")], tags=[])
    for path, kind in (
        (layout.archive(str(tmp_path / "app.tar")), "oci-archive"),
        (layout.path, "oci-layout"),
        (aci, "aci"),
        (saved, "docker-archive"),
    ):
        with store.staging() as staged:
            copy = importer.stage(path, staged, kind)
            assert os.path.basename(copy) == os.path.basename(path)
            record = load(store, copy, format=kind)
        assert load(store, path, format=kind).id == record.id
    assert len(store.images()) == 3
    is_sound(store)


def test_a_staged_layout_is_not_filled_through_links(store: Store, tmp_path: pathlib.Path) -> None:
    layout = layouts.simple(str(tmp_path / "layout"))
    os.symlink("/etc/shadow", f"{layout.path}/blobs/sha256/{'0' * 64}")
    with store.staging() as staged:
        copy = importer.stage(layout.path, staged, "oci-layout")
        assert not os.path.lexists(f"{copy}/blobs/sha256/{'0' * 64}")


@pytest.mark.parametrize("linked", ["blobs", "blobs/sha512"])
def test_a_staged_layout_does_not_reach_through_a_linked_directory(
    store: Store, tmp_path: pathlib.Path, linked: str
) -> None:
    """A hard link would change the file it is made of, if only its link count, and keep it after its removal."""
    layout = layouts.simple(str(tmp_path / "layout"))
    outside = tmp_path / "outside" / "sha512"
    outside.mkdir(parents=True)
    (outside / ("0" * 128)).write_text("not of the layout")
    before = os.stat(outside / ("0" * 128))
    if linked == "blobs":
        os.rename(f"{layout.path}/blobs", tmp_path / "aside")
    os.symlink(outside if linked.endswith("sha512") else outside.parent, f"{layout.path}/{linked}")
    with store.staging() as staged, pytest.raises(ImageError, match="too many levels of symbolic links"):
        importer.stage(layout.path, staged, "oci-layout")
    assert os.stat(outside / ("0" * 128)) == before


def test_a_layout_of_many_blobs_is_copied_from_another_file_system(store: Store, tmp_path: pathlib.Path) -> None:
    """One after the other: they need not all be open at once."""
    layout = layouts.simple(str(tmp_path / "mount" / "layout"))
    names = [f"{number:064x}" for number in range(40)]
    for name in names:
        pathlib.Path(f"{layout.path}/blobs/sha256/{name}").write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with store.staging() as staged, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", _no_link)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
        try:
            copy = importer.stage(layout.path, staged, "oci-layout")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert set(names) <= set(os.listdir(f"{copy}/blobs/sha256"))


def _no_link(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_latest_is_what_a_name_without_version_means(store: Store, tmp_path: pathlib.Path) -> None:
    latest = load(store, layouts.simple(str(tmp_path / "a"), "example.com/app:latest", layer("a")).path)
    load(store, layouts.simple(str(tmp_path / "b"), "example.com/app:2", layer("b")).path)
    assert latest.latest
    found = store.find("example.com/app", {})
    assert found is not None
    assert found.id == latest.id


# Interruptions


def _child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its wait status."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            work()
            status = 0
        except RkpyError:
            status = 71
        finally:
            os._exit(status)
    return pid


def _die_at(point: int) -> None:
    """Kill this process and its children-to-be at the `point`th thing they ask of the kernel that Python can see."""
    left = [point]
    events = {
        "open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.utime", "os.chmod", "os.chown",
        "os.setxattr", "os.truncate", "os.symlink", "fcntl.fcntl", "sqlite3.connect", "os.listdir", "os.scandir",
        "os.fork",
    }  # fmt: skip

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in events:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize("kind", ["aci", "oci"])
def test_killed_anywhere_the_store_stays_sound(tmp_path: pathlib.Path, kind: str) -> None:
    aci = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES)
    layers = [layer("etc/base", "bin/sh"), tars.pack(tars.file("etc/.wh.base")), layer("x")]
    path = aci if kind == "aci" else layouts.simple(str(tmp_path / "layout"), "example.com/app:1", *layers).path
    outcomes: list[tuple[bool, bool]] = []
    point = 0
    while True:
        point += 1
        store = Store(str(tmp_path / f"cas{point}"))

        def work(point: int = point, store: Store = store) -> None:
            _die_at(point)
            load(store, path)

        code = os.waitstatus_to_exitcode(os.waitpid(_child(work), 0)[1])
        assert code in (0, 71, -signal.SIGKILL)
        stored = bool(store.images())
        outcomes.append((code == 0, stored))
        if point % 2:
            store.make()
            is_sound(store)
        assert load(store, path).manifest.name == "example.com/app"
        is_sound(store)
        subprocess.run(["rm", "-rf", store.root], check=True)
        if code == 0:
            break
    assert len(outcomes) > 40
    assert outcomes[0] == (False, False)
    assert (False, True) in outcomes, "no kill hit after the record was in place"
    assert outcomes[-1] == (True, True)


def test_a_dead_worker_is_an_error_and_leaves_nothing(store: Store, tmp_path: pathlib.Path) -> None:
    path = layouts.simple(str(tmp_path / "layout")).path
    parent = os.getpid()

    def work() -> None:
        def hook(event: str, _: tuple[Any, ...]) -> None:
            if event == "os.mkdir" and os.getpid() != child[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        child = [os.getpid()]
        assert child[0] != parent
        sys.addaudithook(hook)
        load(store, path)

    assert os.waitstatus_to_exitcode(os.waitpid(_child(work), 0)[1]) == 71
    assert nothing_stored(store)


def test_many_imports_at_once_end_the_same(store: Store, tmp_path: pathlib.Path) -> None:
    content = os.urandom(1 << 20)
    layers = [tars.pack(tars.file(f"f{number}", content + bytes([number]))) for number in range(3)]
    layout = layouts.simple(str(tmp_path / "layout"), "example.com/app:1", *layers).path
    aci = images.make_aci(str(tmp_path / "a.aci"), images.manifest(version="2"), {"blob": content})

    def work() -> None:
        load(store, layout)
        load(store, aci)

    children = [_child(work) for _ in range(8)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 8
    assert len(store.images()) == 2
    assert len(os.listdir(f"{store.root}/layer")) == 4
    assert os.listdir(f"{store.root}/tmp") == []
    is_sound(store)


def test_only_one_of_many_does_the_work(store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layouts.simple(str(tmp_path / "layout")).path
    work_of = importer._process

    def noted(store: Store, layer: Any, staged: str) -> dict[str, object]:
        with open(tmp_path / "notes", "a") as notes:
            notes.write(f"{layer.name}\n")
        return work_of(store, layer, staged)

    monkeypatch.setattr(importer, "_process", noted)
    children = [_child(lambda: load(store, path) and None) for _ in range(6)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(store.images()[0].layers)


def test_a_collection_removes_what_may_not_be_removed(store: Store) -> None:
    """chattr +i on the very directory that is garbage: what an archive can hold further down is seen to elsewhere."""
    store.make()
    garbage = f"{store.root}/tmp/garbage"
    os.mkdir(garbage)
    if subprocess.run(["chattr", "+i", garbage], check=False, capture_output=True).returncode:
        pytest.skip("the file system has no attributes")
    try:
        with store.lock(exclusive=True):
            assert store.collect().removed == ("tmp/garbage",)
        assert not os.path.lexists(garbage)
    finally:
        subprocess.run(["chattr", "-i", garbage], check=False, capture_output=True)


def test_a_collection_waits_for_imports(store: Store, tmp_path: pathlib.Path) -> None:
    path = layouts.simple(str(tmp_path / "layout")).path
    store.make()

    def collect() -> None:
        for _ in range(20):
            with store.lock(exclusive=True):
                for record in store.images():
                    store.remove(record.id)
                store.collect()

    collector = _child(collect)
    for _ in range(10):
        with store.lock():
            record = load(store, path)
            assert check.verify(store, record) == []
    assert os.waitpid(collector, 0)[1] == 0
    is_sound(store)


# A disk that is full


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[str]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted], check=True)
    try:
        yield str(mounted)
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


@pytest.mark.parametrize("kind", ["aci", "oci", "compressed archive", "staged"])
def test_a_full_disk_is_said_and_leaves_nothing(small_disk: str, tmp_path: pathlib.Path, kind: str) -> None:
    store = Store(f"{small_disk}/cas")
    small = load(store, images.make_aci(str(tmp_path / "s.aci"), images.manifest(), FILES))
    used = _used(small_disk)
    big = os.urandom(3 << 20)
    if kind == "aci":
        path = images.make_aci(str(tmp_path / "a.aci"), images.manifest(version="2"), {"big": big})
    else:
        layout = layouts.simple(str(tmp_path / "layout"), "a:1", tars.pack(tars.file("big", big)))
        path = layout.path if kind == "oci" else layout.archive(str(tmp_path / "a.tar"))
        if kind == "compressed archive":
            subprocess.run(["gzip", path], check=True)
            path += ".gz"
    with pytest.raises(StoreError, match="no space left on device") as caught, store.staging() as staged:
        load(store, importer.stage(path, staged, importer.sniff(path)) if kind == "staged" else path)
    assert "free some space" in caught.value.hint
    assert store.images() == [small]
    assert os.listdir(f"{store.root}/tmp") == []
    assert abs(_used(small_disk) - used) <= 64 << 10
    is_sound(store)


def _used(path: str) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_bsize


# Verifying what is stored


def test_a_damaged_layer_is_made_anew(store: Store, tmp_path: pathlib.Path) -> None:
    aci = load(store, images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES))
    oci = load(store, layouts.simple(str(tmp_path / "layout"), "b:1").path)
    for record, name in ((aci, "etc/motd"), (oci, "etc/base")):
        path = pathlib.Path(store.root_layers(record)[0]) / name
        before = tree(store.root_layers(record)[0], times=False)
        path.write_bytes(b"tampered")
        held = os.open(path.parent, os.O_PATH)
        (repair,) = check.verify(store, record)
        assert repair.layer == record.layers[0]
        assert any(os.path.basename(name) in line for line in repair.differences)
        assert tree(store.root_layers(record)[0], times=False) == before
        assert check.verify(store, record) == []
        # A pod that has the old one mounted goes on with it until the collection that nothing holds back.
        assert os.stat(os.path.basename(name), dir_fd=held).st_size == len(b"tampered")
        os.close(held)
        with store.lock(exclusive=True):
            assert [kept.why for kept in store.collect(in_use=record.layers).kept] == ["a pod uses it"]
            assert len(store.collect().removed) == 1
    subprocess.run(["rm", "-rf", store.layer_path(oci.layers[1])], check=True)
    assert [repair.differences for repair in check.verify(store, oci)] == [("it is gone",)]
    is_sound(store)


def test_a_damaged_blob_has_to_be_fetched_again(store: Store, tmp_path: pathlib.Path) -> None:
    layout = layouts.simple(str(tmp_path / "layout"))
    record = load(store, layout.path)
    path = store.blob_path(record.blobs[-1])
    pathlib.Path(path).write_bytes(b"tampered")
    with pytest.raises(ImageError, match=r"blob sha256:.* is damaged") as caught:
        check.verify(store, record)
    assert "fetch it again" in caught.value.hint
    os.unlink(path)
    with pytest.raises(ImageError, match="is gone"):
        check.verify(store, record)
    # What is not all there is imported as if it were not there at all.
    assert load(store, layout.path).id == record.id
    assert check.verify(store, record) == []


def test_a_layer_that_is_missing_is_imported_again(store: Store, tmp_path: pathlib.Path) -> None:
    path = images.make_aci(str(tmp_path / "a.aci"), images.manifest(), FILES)
    record = load(store, path)
    subprocess.run(["rm", "-rf", store.layer_path(record.layers[0])], check=True)
    load(store, path)
    is_sound(store)
