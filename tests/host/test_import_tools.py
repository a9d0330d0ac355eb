"""Images as buildah, skopeo, umoci and podman make them, imported and compared with what umoci unpacks."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from aci import check, importer, tree
from aci.store import ImageRecord, Store
from tests.host.unpacking import tree as contents

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NAME = "example.com/bb:1"


class Tools:
    """buildah and its friends, with all their state in one directory."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        for tool in ("buildah", "skopeo", "umoci"):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}")

    def run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(self.top)})
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def buildah(self, *arguments: str) -> str:
        storage = ["--root", f"{self.top}/storage", "--runroot", f"{self.top}/run", "--storage-driver", "vfs"]
        return self.run("buildah", *storage, *arguments)

    def build(self) -> None:
        """A busybox image of two layers: a replaced file, a removed one, a capability, a hard link, another owner."""
        root = self.top / "root"
        (root / "bin").mkdir(parents=True)
        (root / "etc").mkdir()
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        os.link(root / "bin" / "busybox", root / "bin" / "sh")
        os.symlink("busybox", root / "bin" / "ls")
        (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:2000::/:/bin/sh\n")
        (root / "etc" / "group").write_text("root:x:0:\nuser:x:2000:\nextra:x:3000:user\n")
        (root / "etc" / "removed").write_text("x")
        (root / "etc" / "owned").write_text("x")
        os.chown(root / "etc" / "owned", 1000, 2000)
        container = self._layer("scratch", root)
        second = self.top / "second"
        (second / "etc").mkdir(parents=True)
        (second / "etc" / "passwd").write_text((root / "etc" / "passwd").read_text() + "# more\n")
        container = self._layer(self._commit(container), second)
        mounted = self.buildah("mount", container)
        os.unlink(f"{mounted}/etc/removed")
        self.buildah("umount", container)
        self.buildah("config", "--user", "user", "--entrypoint", '["/bin/busybox"]', "--cmd", "ls -l", container)
        self.buildah(
            "config", "--env", "A=b", "--port", "80/tcp", "--volume", "/var/lib/x", "--label", "k=v", container
        )
        self.buildah("config", "--workingdir", "/etc", "--stop-signal", "SIGINT", container)
        self.buildah("commit", "--rm", container, NAME)

    def _layer(self, below: str, directory: pathlib.Path) -> str:
        container = self.buildah("from", "--pull-never", below)
        self.buildah("copy", container, str(directory), "/")
        return container

    def _commit(self, container: str) -> str:
        return self.buildah("commit", "--rm", container).split()[-1]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    made = Tools(tmp_path_factory.mktemp("tools"))
    made.build()
    yield made
    made.buildah("rmi", "--all", "--force")


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "cas"))


def load(store: Store, path: str, reference: str = "") -> ImageRecord:
    warnings: list[str] = []
    record = importer.import_image(
        store,
        path,
        format=importer.sniff(path),
        reference=reference,
        authorize=lambda name: None,
        warn=warnings.append,
    )
    assert warnings == []
    assert check.verify(store, record) == []
    return record


def test_every_way_out_of_buildah(tools: Tools, store: Store, tmp_path: pathlib.Path) -> None:
    layout, archive = str(tmp_path / "layout"), str(tmp_path / "bb.tar")
    tools.buildah("push", NAME, f"oci:{layout}:1")
    tools.run("skopeo", "copy", "-q", f"oci:{layout}:1", f"oci-archive:{archive}:{NAME}")
    for compression in ("gzip", "zstd"):
        copy = f"{layout}-{compression}"
        tools.run("skopeo", "copy", "-q", "--dest-compress-format", compression, f"oci:{layout}:1", f"oci:{copy}:1")
        load(store, copy, "1")
    first, second = load(store, layout), load(store, archive)
    assert second.manifest.name == "example.com/bb"
    assert first.layers == second.layers
    assert len(set(os.listdir(f"{store.root}/layer"))) == len(first.layers) == 2
    app = second.manifest.app
    assert app is not None
    assert app.exec == ("/bin/busybox", "ls", "-l")
    assert (app.user, app.group, app.supplementary_gids) == ("user", "2000", (3000,))
    assert app.environment[-1] == ("A", "b")
    assert (app.working_directory, app.user_labels[-1]) == ("/etc", ("k", "v"))
    assert (app.ports[0].name, app.mount_points[0].name) == ("80-tcp", "volume-var-lib-x")
    assert dict(second.manifest.annotations)["appc.io/docker/stopsignal"] == "SIGINT"


def test_the_files_are_those_umoci_unpacks(tools: Tools, store: Store, tmp_path: pathlib.Path) -> None:
    layout = str(tmp_path / "layout")
    tools.buildah("push", NAME, f"oci:{layout}:1")
    tools.run("umoci", "unpack", "--image", f"{layout}:1", str(tmp_path / "bundle"))
    record = load(store, layout)
    merged = tmp_path / "merged"
    merged.mkdir()
    tree.merge_layers(store.root_layers(record), str(merged))
    # Times of directories no layer mentions are those of the unpacking.
    ours, theirs = contents(merged, times=False), contents(tmp_path / "bundle" / "rootfs", times=False)
    assert ours == theirs
    assert "etc/removed" not in ours


def test_docker_archives_of_skopeo_and_podman(tools: Tools, store: Store, tmp_path: pathlib.Path) -> None:
    by_skopeo, by_podman = str(tmp_path / "skopeo.tar"), str(tmp_path / "podman.tar")
    tools.buildah("push", NAME, f"docker-archive:{by_skopeo}:{NAME}")
    record = load(store, by_skopeo)
    assert (record.manifest.name, record.manifest.label("version")) == ("example.com/bb", "1")
    if shutil.which("podman") is None:
        pytest.skip("needs podman")
    podman = ["podman", "--root", f"{tools.top}/storage", "--runroot", f"{tools.top}/run", "--storage-driver", "vfs"]
    tools.run(*podman, "save", "-q", "--format", "docker-archive", "-o", by_podman, NAME)
    assert load(store, by_podman).layers == record.layers
    subprocess.run(["gzip", by_podman], check=True)
    assert load(store, f"{by_podman}.gz").layers == record.layers
    several = str(tmp_path / "several.tar")
    tools.run(*podman, "tag", NAME, "example.com/bb:2")
    tools.run(*podman, "save", "-q", "-m", "--format", "docker-archive", "-o", several, NAME, "example.com/bb:2")
    assert load(store, several, "example.com/bb:2").manifest.label("version") == "2"


def test_a_layout_umoci_keeps_several_tags_in(tools: Tools, store: Store, tmp_path: pathlib.Path) -> None:
    layout = str(tmp_path / "umoci")
    tools.run("umoci", "init", "--layout", layout)
    tools.run("umoci", "new", "--image", f"{layout}:base")
    tools.run("umoci", "unpack", "--image", f"{layout}:base", str(tmp_path / "bundle"))
    (tmp_path / "bundle" / "rootfs" / "file").write_text("x")
    tools.run("umoci", "repack", "--image", f"{layout}:full", str(tmp_path / "bundle"))
    tools.run("umoci", "gc", "--layout", layout)
    record = load(store, layout, "full")
    assert (record.manifest.name, record.manifest.label("version")) == ("umoci", "full")
    assert os.listdir(store.root_layers(record)[0]) == ["file"]
