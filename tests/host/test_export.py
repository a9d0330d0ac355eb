"""`rkpy export`: what an app left behind, as an image that imports and runs again."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from stage0.pods import Pods
from tests import images
from tests.host.commands import Rkpy

SHIFT = 0x80000 + 3 * 65536
SCRIPT = """
set -e
cd /srv
echo changed > old
busybox rm gone
busybox rm -r dir; busybox mkdir dir; echo new > dir/new
echo data > one; busybox ln one two; busybox ln -s one link
busybox mkfifo pipe; busybox mknod null c 1 3
echo mine > mine; busybox chown 1000:2000 mine; busybox chmod 4751 mine
busybox mkdir -p %s; echo deep > %s/file
"""
LONG = "/".join(["x" * 60] * 4)


@pytest.fixture
def rkpy(tmp_path: Path) -> Rkpy:
    return Rkpy(tmp_path)


@pytest.fixture
def aci(tmp_path: Path) -> str:
    files = {
        **images.busybox_files(),
        "srv/": b"",
        "srv/old": b"old",
        "srv/gone": b"x",
        "srv/dir/": b"",
        "srv/dir/hidden": b"x",
    }
    manifest = images.manifest(annotations=[{"name": "authors", "value": "us"}])
    return images.make_aci(str(tmp_path / "app.aci"), manifest, files)


def exited(rkpy: Rkpy, aci: str, *words: str) -> Path:
    """The directory of a pod that has run SCRIPT."""
    before = {path.name for path in rkpy.pods()}
    done = rkpy.fly(*words, aci, "--", "-c", SCRIPT % (LONG, LONG))
    assert done.status == 0, done
    return next(path for path in rkpy.pods() if path.name not in before)


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {info.name: info for info in archive}


@pytest.mark.parametrize("words", [(), ("--no-overlay",)])
def test_the_export_imports_and_runs_again(rkpy: Rkpy, aci: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    pod, out = exited(rkpy, aci, *words), tmp_path / "out.aci"
    rkpy.ok("export", pod.name, out)
    found = members(out)
    assert list(found)[:2] == ["manifest", "rootfs"]
    assert "rootfs/srv/gone" not in found
    assert "rootfs/srv/dir/hidden" not in found
    assert (found["rootfs/srv/two"].type, found["rootfs/srv/two"].linkname) == (tarfile.LNKTYPE, "rootfs/srv/one")
    assert found["rootfs/srv/pipe"].isfifo()
    assert (found["rootfs/srv/null"].devmajor, found["rootfs/srv/null"].devminor) == (1, 3)
    mine = found["rootfs/srv/mine"]
    assert (mine.uid, mine.gid, mine.mode) == (1000, 2000, 0o4751)
    assert not [info for info in found.values() if info.ischr() and info.devmajor == 0]
    show = f"cat /srv/old /srv/two /srv/link /srv/dir/new /srv/{LONG}/file; ls /srv/dir"
    again = rkpy.fly(out, "--", "-c", f"{show}; stat -c '%u %g %a %h' /srv/mine /srv/one")
    assert again.out == "changed\ndata\ndata\nnew\ndeep\nnew\n1000 2000 4751 1\n0 0 644 2\n", again
    manifest = rkpy.ok("image", "cat-manifest", rkpy.ok("--insecure-options=image", "fetch", out).strip())
    assert '"authors"' in manifest
    with Pods(f"{rkpy.data}/pods").find(pod.name) as observed:
        assert observed.state() == "exited"


def test_ids_are_shifted_back(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    pod, out = exited(rkpy, aci), tmp_path / "out.aci"
    (pod / "private-users").write_text(f"{SHIFT}:65536\n")
    srv = pod / "overlay/app/upper/srv"
    os.chown(srv / "mine", SHIFT + 1000, SHIFT + 2000)
    os.chown(srv / "old", SHIFT, SHIFT + 65535)
    os.chown(srv / "link", SHIFT + 65536, SHIFT - 1, follow_symlinks=False)
    entries = (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 5, SHIFT + 33),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(srv / "old", "system.posix_acl_access", acl)
    os.setxattr(srv / "old", "security.capability", struct.pack("<6I", 0x03000001, 1 << 10, 0, 0, 0, SHIFT))
    os.setxattr(srv / "one", "user.a=b", b"\xff\x00\n")
    os.setxattr(srv / "one", "user.plain", b"\x00binary=\n\xfe")
    rkpy.ok("export", "--app=app", pod.name, out)
    found = members(out)
    owners = {
        name: (found[f"rootfs/srv/{name}"].uid, found[f"rootfs/srv/{name}"].gid) for name in ("mine", "old", "link")
    }
    assert owners == {"mine": (1000, 2000), "old": (0, 65535), "link": (SHIFT + 65536, SHIFT - 1)}
    rkpy.ok("--insecure-options=image", "fetch", out)
    layer = max((rkpy.data / "cas/layer").iterdir(), key=lambda path: path.stat().st_ctime_ns) / "srv"
    assert os.getxattr(layer / "one", "user.a=b") == b"\xff\x00\n"
    assert os.getxattr(layer / "one", "user.plain") == b"\x00binary=\n\xfe"
    assert struct.unpack("<5I", os.getxattr(layer / "old", "security.capability")) == (0x02000001, 1 << 10, 0, 0, 0)
    assert struct.unpack_from("<HHI", os.getxattr(layer / "old", "system.posix_acl_access"), 12) == (0x02, 5, 33)
    assert (layer / "old").stat().st_mtime_ns == (srv / "old").stat().st_mtime_ns


def test_a_damaged_range_is_not_taken_for_none(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    pod, out = exited(rkpy, aci), tmp_path / "out.aci"
    (pod / "private-users").write_text("x")
    assert "private-users is damaged" in rkpy.refused("export", pod.name, out)
    assert "private-users is damaged" in rkpy.refused("start", pod.name)


def test_what_cannot_be_exported(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    prepared = rkpy.ok("--insecure-options=image", "prepare", "--stage1=fly", aci).strip()
    assert "has not exited: it is prepared" in rkpy.refused("export", prepared, tmp_path / "x.aci")
    pod, out = exited(rkpy, aci), tmp_path / "out.aci"
    assert "ends in .aci" in rkpy.refused("export", pod.name, tmp_path / "x.tar")
    assert 'no app "db" in the pod (there is: app)' in rkpy.refused("export", "--app=db", pod.name, out)
    out.write_text("precious")
    assert "exists already" in rkpy.refused("export", pod.name, out)
    assert out.read_text() == "precious"
    rkpy.ok("export", "--overwrite", pod.name, out)
    with gzip.open(out) as stream:
        assert tarfile.open(fileobj=io.BytesIO(stream.read())).getnames()[0] == "manifest"
    rkpy.ok("gc", "--mark-only")
    rkpy.ok("export", "--overwrite", pod.name, out)
    assert [path.name for path in tmp_path.glob("out.aci*")] == ["out.aci"]


def test_a_failure_leaves_no_file(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    pod = exited(rkpy, aci)
    assert "no such file or directory" in rkpy.refused("export", pod.name, tmp_path / "nowhere/out.aci")
    (rkpy.data / "full").mkdir()
    names = {path.name for path in tmp_path.iterdir()}
    (pod / "appsinfo/app/manifest").unlink()
    assert "appsinfo/app/manifest" in rkpy.refused("export", pod.name, tmp_path / "out.aci")
    assert {path.name for path in tmp_path.iterdir()} == names


def test_sockets_are_left_out_with_a_word(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    pod, out = exited(rkpy, aci), tmp_path / "out.aci"
    os.mknod(pod / "overlay/app/upper/srv/socket", 0o140600)
    done = rkpy("export", pod.name, out)
    assert (done.status, done.out) == (0, "")
    assert 'the socket "srv/socket" is left out' in done.err
    assert "rootfs/srv/socket" not in members(out)
