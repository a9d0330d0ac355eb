"""The pod manifest: what is read, what is refused and where the message points, and what is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci import image_manifest, pod_manifest
from aci.image_manifest import App, Isolator, Port
from aci.pod_manifest import ExposedPort, PodManifest, RuntimeApp, RuntimeImage, RuntimeMount, Volume
from common.errors import ManifestError
from tests.aci.manifests import APP, IMAGE_ID, POD, anything, changed, damaged, pods

MINIMAL: dict[str, Any] = {"acVersion": "0.8.11", "acKind": "PodManifest", "apps": []}


def test_every_field_is_read() -> None:
    assert pod_manifest.from_json(POD) == PodManifest(
        apps=(
            RuntimeApp(
                name="app",
                image=RuntimeImage(IMAGE_ID, "example.com/app", (("version", "1"),)),
                app=image_manifest.app_from_json(APP),
                read_only_rootfs=True,
                mounts=(
                    RuntimeMount("data", "/data"),
                    RuntimeMount("own", "/own", Volume("own", "host", source="/srv")),
                ),
                annotations=(("note", "x"),),
            ),
            RuntimeApp("bare", RuntimeImage("sha512-0f0f", "", ())),
        ),
        ac_version="1.30.0+git-dirty",
        volumes=(
            Volume("data", "empty", mode="0700", uid=1, gid=2, size=4096),
            Volume("host", "host", source="/srv", read_only=True, recursive=False, propagation="slave"),
        ),
        isolators=(Isolator("resource/cpu", {"limit": "500m"}),),
        annotations=(("authors", "someone"),),
        ports=(
            ExposedPort("http", 8080),
            ExposedPort("rtp", 5000, "127.0.0.1", Port("rtp", "udp", 5, 1, False)),
        ),
        user_annotations=(("k", "v"),),
        user_labels=(("k", "v"),),
    )


def test_what_was_read_is_written_again() -> None:
    assert json.loads(pod_manifest.dumps(pod_manifest.from_json(POD))) == POD


def test_a_pod_without_apps_is_a_pod() -> None:
    assert pod_manifest.from_json(MINIMAL) == PodManifest(apps=())
    assert pod_manifest.to_json(PodManifest(apps=())) == MINIMAL


def test_dumps_looks_as_rkt_prints_it() -> None:
    image = RuntimeImage(IMAGE_ID, "example.com/busybox", (("version", "1"),))
    manifest = PodManifest(
        apps=(RuntimeApp("busybox", image, App(exec=("/bin/sh", "-c", "echo out; echo err >&2; exit 7"))),),
        ac_version="1.30.0+git-dirty",
    )
    assert pod_manifest.dumps(manifest).startswith(
        f"""{{
\t"acVersion": "1.30.0+git-dirty",
\t"acKind": "PodManifest",
\t"apps": [
\t\t{{
\t\t\t"name": "busybox",
\t\t\t"image": {{
\t\t\t\t"name": "example.com/busybox",
\t\t\t\t"id": "{IMAGE_ID}",
\t\t\t\t"labels": [
\t\t\t\t\t{{
\t\t\t\t\t\t"name": "version",
\t\t\t\t\t\t"value": "1"
\t\t\t\t\t}}
\t\t\t\t]
\t\t\t}},
\t\t\t"app": {{
\t\t\t\t"exec": [
\t\t\t\t\t"/bin/sh",
\t\t\t\t\t"-c",
\t\t\t\t\t"echo out; echo err \\u003e\\u00262; exit 7"
\t\t\t\t],"""
    )
    assert "\n" not in pod_manifest.dumps(manifest, pretty=False)


def test_defaults_of_volumes() -> None:
    volumes = [{"name": "a", "kind": "empty"}, {"name": "b", "kind": "host", "source": "/"}]
    empty, host = pod_manifest.from_json({**MINIMAL, "volumes": volumes}).volumes
    assert (empty.mode, empty.uid, empty.gid) == ("0755", 0, 0)
    assert (host.read_only, host.recursive) == (False, None)


@given(pods)
def test_round_trip(manifest: PodManifest) -> None:
    for pretty in (True, False):
        assert pod_manifest.parse(pod_manifest.dumps(manifest, pretty=pretty).encode()) == manifest


@pytest.mark.parametrize(
    "key", ["apps", "volumes", "isolators", "annotations", "ports", "userAnnotations", "userLabels"]
)
def test_null_is_absent(key: str) -> None:
    """rkt writes `"volumes": null` and the like."""
    assert pod_manifest.from_json({**MINIMAL, key: None}) == PodManifest(apps=())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("acVersion", "0.8.11"),
        ("volumes.0", {"name": "data", "kind": "empty", "source": "", "mode": "1777"}),
        ("volumes.0", {"name": "data", "kind": "empty", "mode": "01777", "uid": 2**32 - 2}),
        ("ports.1.hostIP", "::1"),
        ("ports.1.hostIP", ""),
        ("ports.1.name", "http"),
        ("apps.0.name", "old--name"),
        ("apps.0.app", None),
    ],
)
def test_accepted(path: str, value: Any) -> None:
    pod_manifest.from_json(changed(POD, path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("acKind", "ImageManifest", 'acKind: must be "PodManifest", not "ImageManifest"'),
        ("acVersion", "2.0.0", "acVersion: version"),
        ("acVersion", None, "acVersion: is missing"),
        ("apps", {}, "apps: must be a list, not an object"),
        ("apps.1.name", "app", 'apps: the app "app" is given twice'),
        ("apps.0.name", "a/b", "apps[0].name: "),
        ("apps.0.name", "..", "apps[0].name: "),
        ("apps.0.image", None, "apps[0].image: is missing"),
        ("apps.0.image.id", None, "apps[0].image.id: is missing"),
        ("apps.1.image.id", "sha512-XY", "apps[1].image.id: "),
        ("apps.0.image.name", "A", "apps[0].image.name: "),
        ("apps.0.image.labels.0.name", "name", "apps[0].image.labels: "),
        ("apps.0.app.ports.1.port", 0, "apps[0].app.ports[1].port: must be 1 to 65535"),
        ("apps.0.readOnlyRootFS", "true", "apps[0].readOnlyRootFS: must be true or false, not a string"),
        ("apps.0.mounts.0.volume", "nowhere", 'apps[0].mounts[0].volume: there is no volume "nowhere"'),
        ("apps.0.mounts.0.path", "data", "apps[0].mounts[0].path: must be an absolute path"),
        ("apps.0.mounts.0.path", "/a\0", "apps[0].mounts[0].path: must not contain a NUL"),
        ("apps.0.mounts.1.appVolume.source", "srv", "apps[0].mounts[1].appVolume.source: must be an absolute"),
        ("apps.0.annotations.0.name", "created", "apps[0].annotations: "),
        ("volumes.1.name", "data", 'volumes: the volume "data" is given twice'),
        ("volumes.0.kind", "tmpfs", 'volumes[0].kind: "tmpfs" is not a kind of volume'),
        ("volumes.1.source", None, "volumes[1].source: is missing"),
        ("volumes.1.source", "", "volumes[1].source: must be an absolute path"),
        ("volumes.0", {"name": "v", "kind": "empty", "source": "/"}, "volumes[0].source: has no meaning"),
        ("volumes.1", {"name": "v", "kind": "host", "source": "/", "mode": "0700"}, "volumes[1].mode: has no meaning"),
        ("volumes.1", {"name": "v", "kind": "host", "source": "/", "uid": 0}, "volumes[1].uid: has no meaning"),
        ("volumes.1", {"name": "v", "kind": "host", "source": "/", "size": 1}, "volumes[1].size: has no meaning"),
        ("volumes.0.propagation", "slave", "volumes[0].propagation: has no meaning"),
        ("volumes.1.propagation", "rshared", 'volumes[1].propagation: "rshared" is no propagation'),
        ("volumes.0.size", -1, "volumes[0].size: "),
        ("volumes.0.size", "1M", "volumes[0].size: must be an integer"),
        ("volumes.0.mode", "0999", "volumes[0].mode: "),
        ("volumes.0.mode", "17777", "volumes[0].mode: "),
        ("volumes.0.mode", 493, "volumes[0].mode: must be a string"),
        ("volumes.0.uid", -1, "volumes[0].uid: "),
        ("volumes.0.gid", 2**32 - 1, "volumes[0].gid: "),
        ("volumes.0.gid", True, "volumes[0].gid: must be an integer, not a boolean"),
        ("volumes.1.recursive", "yes", "volumes[1].recursive: "),
        ("isolators.0.value.limit", "fast", 'isolators[0].value.limit: the isolator "resource/cpu"'),
        ("ports.0.hostPort", 0, "ports[0].hostPort: must be 1 to 65535"),
        ("ports.0.hostPort", None, "ports[0].hostPort: is missing"),
        ("ports.1.hostIP", "localhost", 'ports[1].hostIP: "localhost" is not an IP address'),
        ("ports.1.hostIP", "fe80::1%eth0", "ports[1].hostIP: "),
        ("ports.1.podPort.count", 65532, "ports[1].podPort.count: "),
        ("userLabels", {"a": None}, 'userLabels["a"]: must be a string, not null'),
    ],
)
def test_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        pod_manifest.from_json(changed(POD, path, value))
    assert caught.value.message.startswith("pod manifest: " + said)


@given(damaged(POD))
def test_a_damaged_manifest_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        manifest = pod_manifest.from_json(value)
    except ManifestError:
        return
    assert pod_manifest.parse(pod_manifest.dumps(manifest).encode()) == manifest


@given(anything)
def test_any_json_is_refused(value: Any) -> None:
    with pytest.raises(ManifestError):
        pod_manifest.from_json(value)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        pod_manifest.parse(data)
