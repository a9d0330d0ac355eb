"""`rkpy image …` as users run it; the shapes are those recorded from rkt 1.30."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from aci import importer
from aci.store import ImageRecord, Store, Verification
from stage0.pods import Pods
from tests import images, layouts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = pathlib.Path(__file__).parent.parent.parent
DAY = 86400 * 1_000_000_000


class Done(NamedTuple):
    out: str
    err: str
    status: int


class Bench:
    """A data directory, images and pods in it, and rkpy run on it."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.data = str(top / "data")
        self.store = Store(f"{self.data}/cas")
        self.pods = Pods(f"{self.data}/pods")

    def rkpy(self, *words: str, **options: Any) -> Done:
        command = [sys.executable, "-m", "rkpy", f"--dir={self.data}", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TZ": "UTC"}, **options
        )
        return Done(done.stdout, done.stderr, done.returncode)

    def aci(self, name: str = "example.com/app", version: str = "1", **fields: Any) -> ImageRecord:
        path = str(self.top / f"{name.replace('/', '_')}-{version}.aci")
        images.make_aci(path, images.manifest(name, version, **fields), {"etc/": b"", "etc/version": version})
        return self.put(path, "aci")

    def oci(self, name: str, *layers: bytes) -> ImageRecord:
        layout = layouts.simple(str(self.top / name.replace("/", "_")), name, *layers)
        return self.put(layout.path, "oci-layout")

    def put(self, path: str, kind: str, verification: Verification | None = None) -> ImageRecord:
        return importer.import_image(self.store, path, format=kind, authorize=lambda name: verification)

    def pod(self, record: ImageRecord, *, exited: bool = False) -> str:
        """A prepared pod of the image; the UUID."""
        with self.pods.create() as pod:
            pod.to_prepare()
            info = pathlib.Path(pod.path) / "appsinfo" / "app"
            info.mkdir(parents=True)
            (info / "layers").write_text("".join(f"layer/{name}\n" for name in record.layers))
            apps = [{"name": "app", "image": {"id": record.id}}]
            manifest = {"acVersion": "0.8.11", "acKind": "PodManifest", "apps": apps}
            (pathlib.Path(pod.path) / "pod").write_text(json.dumps(manifest))
            pod.to_prepared()
            if exited:
                pod.to_run()
                pod.to_exited_garbage()
            return pod.uuid

    def age(self, record: ImageRecord, days: int) -> None:
        """Let the image have been imported and used so long ago."""
        then = record.import_time - days * DAY
        with self.store.staging() as staged:
            self.store.add(record._replace(import_time=then), staged)
        os.utime(f"{self.store.root}/used/{record.id}", ns=(then, then))


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    return Bench(tmp_path)


# list


def test_list_looks_as_rkt_printed_it(bench: Bench) -> None:
    first, second = bench.aci("coreos.com/rkt/stage1-fly", "1.30.0+git-dirty"), bench.aci("example.com/busybox")
    bench.age(first, 1)
    bench.age(second, 0)
    out = bench.rkpy("image", "list").out.splitlines()
    assert out[0] == "ID\t\t\tNAME\t\t\t\t\t\tSIZE\tIMPORT TIME\tLAST USED"
    assert re.fullmatch(
        rf"{first.id[:19]}\tcoreos\.com/rkt/stage1-fly:1\.30\.0\+git-dirty\t[0-9]+B\t1 day ago\t1 day ago", out[1]
    )
    ago = "(now|[0-9]+ seconds? ago)"
    assert re.fullmatch(rf"{second.id[:19]}\texample\.com/busybox:1\t\t\t\t[0-9]+B\t{ago}\t+{ago}", out[2])
    full = bench.rkpy("image", "list", "--full", "--no-legend").out.splitlines()
    when = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+ \+0000 UTC"
    assert re.fullmatch(rf"{second.id}\texample\.com/busybox:1\t+{second.size}\t+{when}\t+{when}", full[1])


def test_list_as_json_has_rkts_keys_first(bench: Bench) -> None:
    record = bench.aci()
    (listed,) = json.loads(bench.rkpy("image", "list", "--format=json").out)
    assert list(listed)[:5] == ["id", "name", "import_time", "last_used_time", "size"]
    assert listed == {
        "id": record.id,
        "name": "example.com/app:1",
        "import_time": record.import_time,
        "last_used_time": record.last_used,
        "size": record.size,
        "latest": False,
        "format": "aci",
    }
    assert "\n\t" in bench.rkpy("image", "list", "--format=json-pretty").out


def test_an_empty_store_is_a_header_and_nothing_is_made(bench: Bench) -> None:
    assert bench.rkpy("image", "list").out == "ID\tNAME\tSIZE\tIMPORT TIME\tLAST USED\n"
    assert bench.rkpy("image", "list", "--format=json").out == "[]\n"
    assert not os.path.exists(bench.data)


def test_list_sorts_and_picks_columns(bench: Bench) -> None:
    bench.aci("example.com/b")
    path = images.make_aci(str(bench.top / "a.aci"), images.manifest("example.com/a"), {"etc/": b"", "x": b"x" * 5000})
    bench.put(path, "aci", Verification("F" * 40, "A. Signer <a@example.com>", "example.com", 1))
    names = ["image", "list", "--no-legend", "--fields=name"]
    assert bench.rkpy(*names).out == "example.com/b:1\nexample.com/a:1\n"
    assert bench.rkpy(*names, "--order=desc").out == "example.com/a:1\nexample.com/b:1\n"
    assert bench.rkpy(*names, "--sort=name").out == "example.com/a:1\nexample.com/b:1\n"
    assert bench.rkpy(*names, "--sort=size,name").out == "example.com/b:1\nexample.com/a:1\n"
    signed = bench.rkpy("image", "list", "--sort=name", "--fields=name,format,signed").out.splitlines()
    assert [line.split("\t") for line in signed] == [
        ["NAME", "", "FORMAT", "SIGNED"],
        ["example.com/a:1", "aci", "A. Signer <a@example.com>"],
        ["example.com/b:1", "aci", "no"],
    ]
    wrong = bench.rkpy("image", "list", "--fields=id,colour")
    assert (wrong.status, 'unknown field "colour"' in wrong.err) == (254, True)
    assert bench.rkpy("image", "list", "--sort=colour").status == 254


# cat-manifest


def test_cat_manifest(bench: Bench) -> None:
    record = bench.aci()
    pretty = bench.rkpy("image", "cat-manifest", "example.com/app:1")
    assert pretty.out.startswith(
        '{\n\t"acKind": "ImageManifest",\n\t"acVersion": "0.8.11",\n\t"name": "example.com/app",'
    )
    assert json.loads(pretty.out) == images.manifest()
    plain = bench.rkpy("image", "cat-manifest", "--pretty-print=false", record.id[:15])
    assert plain.out.count("\n") == 1
    missing = bench.rkpy("image", "cat-manifest", "example.com/nothing")
    assert missing.status == 254
    assert missing.err.startswith('rkpy: image cat-manifest: no image "example.com/nothing" in the store')


# rm


def test_rm_by_id_and_name(bench: Bench) -> None:
    first, second = bench.aci(), bench.aci("example.com/other")
    done = bench.rkpy("image", "rm", first.id[:20], "example.com/other")
    assert done.out == "".join(f'successfully removed aci for image: "{one.id}"\n' for one in (first, second))
    assert "rm: 2 image(s) successfully removed\n" in done.err
    assert done.status == 0
    assert not any(os.listdir(f"{bench.store.root}/{kind}") for kind in ("image", "layer", "blob/sha256", "tmp"))


def test_rm_of_nothing_is_fine_and_of_anything_ambiguous_is_not(bench: Bench) -> None:
    done = bench.rkpy("image", "rm", "sha512-ffff")
    assert (done.status, done.out) == (0, "")
    assert "rm: no image IDs found" in done.err
    # Of 257 IDs two begin with the same two digits; far fewer do as a rule.
    prefixes: dict[str, str] = {}
    for number in range(257):
        record = bench.aci(version=str(number))
        if prefixes.setdefault(record.id[:9], record.id) != record.id:
            break
    done = bench.rkpy("image", "rm", record.id[:9])
    assert (done.status, "is ambiguous: 2 images begin so" in done.err) == (254, True)
    assert record.id in {one.id for one in bench.store.images()}
    assert bench.rkpy("image", "rm").status == 254


def test_rm_takes_the_best_match_of_a_name(bench: Bench) -> None:
    old, new = bench.aci(version="2"), bench.aci(version="1")
    bench.rkpy("image", "rm", "example.com/app")
    assert [record.id for record in bench.store.images()] == [old.id]
    assert new.id != old.id
    bench.rkpy("image", "rm", "example.com/app:2")
    assert bench.store.images() == []


def test_rm_leaves_the_layers_of_pods_until_they_are_gone(bench: Bench) -> None:
    record = bench.aci()
    uuid = bench.pod(record, exited=True)
    done = bench.rkpy("image", "rm", record.id)
    assert f"kept layer/{record.id}: pod {uuid[:8]} uses it" in done.err
    assert os.path.isdir(bench.store.layer_path(record.id))
    assert bench.rkpy("gc", "--grace-period=0s").status == 0
    collected = bench.rkpy("image", "gc")
    assert f"removed layer/{record.id}\n" in collected.out
    assert not os.path.exists(bench.store.layer_path(record.id))


def test_rm_of_a_damaged_record(bench: Bench) -> None:
    record = bench.aci()
    pathlib.Path(f"{bench.store.root}/image/{record.id}.json").write_text("damage")
    listed = bench.rkpy("image", "list")
    assert (listed.status, "is damaged" in listed.err) == (254, True)
    assert bench.rkpy("image", "rm", record.id[:19]).status == 0
    assert bench.rkpy("image", "list").status == 0


# gc


def test_gc_says_why_it_keeps_what_it_keeps(bench: Bench) -> None:
    base, unused = bench.aci("example.com/base"), bench.aci("example.com/unused")
    app = bench.aci("example.com/dependent", dependencies=[{"imageName": "example.com/base"}])
    recent, prepared = bench.aci("example.com/recent"), bench.oci("example.com/prepared:1")
    uuid = bench.pod(prepared)
    for record in (base, unused, app, prepared):
        bench.age(record, 2)
    os.utime(f"{bench.store.root}/used/{app.id}")
    done = bench.rkpy("image", "gc")
    assert done.out.splitlines()[0] == f'successfully removed aci for image: "{unused.id}"'
    assert f"removed layer/{unused.id}" in done.out
    kept = {line.split()[5]: line.partition("): ")[2] for line in done.err.splitlines() if "kept image" in line}
    assert kept.pop(prepared.id[:19]) == f"pod {uuid[:8]} needs it"
    assert kept.pop(base.id[:19]) == f"image {app.id[:19]} (example.com/dependent:1) depends on it"
    assert set(kept) == {app.id[:19], recent.id[:19]}
    assert all(re.fullmatch(r"used (now|.* ago), within the grace period", why) for why in kept.values())
    assert "1 image(s) removed, 4 kept" in done.err


def test_gc_with_no_grace_removes_all_that_is_not_needed(bench: Bench) -> None:
    shared = layouts.layer("etc/shared")
    needed = bench.oci("example.com/needed:1", shared, layouts.layer("a"))
    bench.oci("example.com/gone:1", shared, layouts.layer("b"))
    bench.pod(needed)
    os.makedirs(f"{bench.store.root}/tmp/killed/half")
    done = bench.rkpy("image", "gc", "--grace-period=0s")
    assert "removed tmp/killed\n" in done.out
    assert [record.id for record in bench.store.images()] == [needed.id]
    assert set(os.listdir(f"{bench.store.root}/layer")) == set(needed.layers)
    assert bench.rkpy("image", "gc", "--grace-period=soon").status == 254


def test_gc_of_a_store_that_is_not_there(bench: Bench) -> None:
    assert bench.rkpy("image", "gc").status == 0


# verify


def test_verify_mends_layers_and_refuses_damaged_blobs(bench: Bench) -> None:
    record = bench.aci()
    good = bench.rkpy("image", "verify", "example.com/app")
    assert (good.out, good.status) == (f'successfully verified checksum for image: "{record.id}"\n', 0)
    (pathlib.Path(bench.store.layer_path(record.id)) / "etc/version").write_text("9")
    mended = bench.rkpy("image", "verify", record.id)
    assert mended.status == 0
    assert f"layer {record.id[:19]} was damaged and has been unpacked again" in mended.err
    assert "etc/version" in mended.err
    pathlib.Path(bench.store.blob_path(record.blobs[0])).write_bytes(b"x")
    broken = bench.rkpy("image", "verify", record.id)
    assert (broken.status, broken.out) == (254, "")
    assert "is damaged" in broken.err
    assert bench.rkpy("image", "verify", "example.com/nothing").status == 254


# export, extract, render


def test_an_exported_image_is_the_same_image(bench: Bench) -> None:
    record = bench.aci()
    path = str(bench.top / "out.aci")
    assert bench.rkpy("image", "export", "example.com/app", path) == Done("", "", 0)
    assert subprocess.check_output(["sha512sum", path], text=True).split()[0] == record.id.removeprefix("sha512-")
    again = bench.rkpy("image", "export", "example.com/app", path)
    assert (again.status, "exists already" in again.err) == (254, True)
    assert bench.rkpy("image", "export", "--overwrite", "example.com/app", path).status == 0
    bench.oci("example.com/oci:1", layouts.layer("a"))
    refused = bench.rkpy("image", "export", "example.com/oci", str(bench.top / "other.aci"))
    assert (refused.status, "OCI image" in refused.err) == (254, True)
    assert bench.rkpy("image", "export", "example.com/app", str(bench.top / "no" / "dir.aci")).status == 254


def test_extract_leaves_dependencies_out_and_render_does_not(bench: Bench) -> None:
    bench.oci("example.com/base:1", layouts.layer("etc/base"))
    record = bench.aci(dependencies=[{"imageName": "example.com/base"}])
    extracted, rendered, root = (bench.top / name for name in ("extracted", "rendered", "root"))
    assert bench.rkpy("image", "extract", record.id, str(extracted)) == Done("", "", 0)
    assert bench.rkpy("image", "render", record.id, str(rendered)) == Done("", "", 0)
    assert bench.rkpy("image", "render", "--rootfs-only", record.id, str(root)) == Done("", "", 0)
    assert json.loads((extracted / "manifest").read_text())["name"] == "example.com/app"
    assert sorted(os.listdir(extracted / "rootfs" / "etc")) == ["version"]
    assert sorted(os.listdir(rendered / "rootfs" / "etc")) == ["base", "version"]
    assert os.listdir(root) == ["etc"]
    assert bench.rkpy("image", "render", record.id, str(root)).status == 254
    assert bench.rkpy("image", "render", "--overwrite", record.id, str(root)).status == 0
    assert sorted(os.listdir(root)) == ["manifest", "rootfs"]
    assert bench.rkpy("image", "extract", "--overwrite", record.id, "/").status == 254
