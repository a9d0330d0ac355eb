"""Images of a real Debian root: an ACI by tar, an OCI archive by buildah, a layout and a docker archive by skopeo."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.host.commands import Rkpy
from tests.host.oci import build_oci

APP = {"exec": ["/bin/cat", "/etc/debian_version"], "user": "0", "group": "0"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("debian")


@pytest.fixture(scope="module")
def root(directory: Path) -> str:
    """What mmdebstrap makes of Debian's smallest set of packages."""
    path = directory / "root"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(path)], check=True)
    return str(path)


@pytest.fixture(scope="module")
def references(directory: Path, root: str) -> dict[str, str]:
    """One image argument for each format, all of the same root."""
    image = directory / "image"
    image.mkdir()
    (image / "manifest").write_text(json.dumps(images.manifest("example.com/aci", app=APP)))
    aci = directory / "debian.aci"
    rootfs = ["--transform", f"s,^{root.lstrip('/')},rootfs,S", "--xattrs"]
    subprocess.run(
        ["tar", "-caf", f"{aci}.tar.gz", *rootfs, "-C", str(image), "manifest", "-C", "/", root.lstrip("/")],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    os.rename(f"{aci}.tar.gz", aci)
    archive = build_oci(directory, root, ["--cmd", " ".join(APP["exec"])])
    layout, docker = directory / "layout", directory / "docker.tar"
    for target in (f"oci:{layout}:example.com/layout:1", f"docker-archive:{docker}:example.com/docker:1"):
        subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{archive}", target], check=True)
    return {
        "aci": str(aci),
        "oci-archive": f"oci-archive:{archive}",
        "layout": f"oci:{layout}",
        "docker-archive": f"docker-archive:{docker}",
    }


@pytest.fixture(scope="module")
def rkpy(directory: Path) -> Iterator[Rkpy]:
    command = Rkpy(directory)
    yield command
    command.ok("gc", "--grace-period=0s")


@pytest.mark.parametrize("kind", ["aci", "oci-archive", "layout", "docker-archive"])
def test_a_real_root_runs(rkpy: Rkpy, references: dict[str, str], root: str, kind: str) -> None:
    expected = (Path(root) / "etc" / "debian_version").read_text()
    assert rkpy.fly(references[kind]).out == expected


def test_one_layer_is_stored_once_whatever_it_came_in(rkpy: Rkpy, references: dict[str, str]) -> None:
    for kind in ("oci-archive", "layout", "docker-archive"):
        rkpy.ok("--insecure-options=image", "fetch", references[kind])
    layers = [set(json.loads(path.read_text())["layers"]) for path in rkpy.images()]
    oci = [names for names in layers if any(name.startswith("sha256-") for name in names)]
    assert len(set.union(*oci)) == 1


def test_the_root_is_what_mmdebstrap_made(rkpy: Rkpy, references: dict[str, str], root: str) -> None:
    """dpkg's own check of every file against its package, and every mode and owner against the original."""
    done = rkpy.fly(references["oci-archive"], "--exec=/usr/bin/dpkg", "--", "--verify")
    assert done.status == 0, done
    assert done.out == ""
    mounted = "-path /proc -o -path /sys -o -path /dev -o -path /tmp"
    script = f"find / -xdev \\( {mounted} \\) -prune -o -printf '%P %y %m %U %G %l\\n'"
    inside = rkpy.fly(references["oci-archive"], "--exec=/bin/sh", "--", "-c", script).out
    outside = subprocess.run(["chroot", root, "sh", "-c", script], check=True, capture_output=True, text=True).stdout

    def without_places_of_mounts(text: str) -> set[str]:
        names = ("etc/hosts", "etc/resolv.conf")
        return {line for line in text.splitlines() if not line.startswith(names) and line.split(" ")[0]}

    assert without_places_of_mounts(inside) == without_places_of_mounts(outside)


def test_verify_finds_damage_and_repairs_it(rkpy: Rkpy, references: dict[str, str]) -> None:
    image_id = rkpy.ok("--insecure-options=image", "fetch", "--full", references["aci"]).strip()
    damaged = rkpy.data / "cas" / "layer" / image_id / "etc" / "debian_version"
    good = damaged.read_text()
    damaged.write_text("damaged\n")
    assert "debian_version" in rkpy("image", "verify", image_id).err
    assert damaged.read_text() == good
    assert rkpy("image", "verify", image_id).status == 0
