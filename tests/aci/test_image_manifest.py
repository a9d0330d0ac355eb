"""The image manifest: what is read, what is refused and where the message points, and what is written."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci import image_manifest, isolators, pod_manifest
from aci.image_manifest import App, Dependency, EventHandler, ImageManifest, Isolator, MountPoint, Port
from common.errors import ManifestError
from tests.aci.manifests import APP, IMAGE, IMAGE_ID, anything, changed, damaged, images

CORPUS = os.path.join(os.path.dirname(__file__), "corpus", "manifests")
MINIMAL = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/base"}
HOSTILE = "\x1b]0;pwned\x07\x9b" + "x" * 100_000


def test_every_field_is_read() -> None:
    assert image_manifest.from_json(IMAGE) == ImageManifest(
        name="example.com/app",
        ac_version="0.8.11",
        labels=(("version", "1"), ("os", "linux"), ("arch", "amd64")),
        app=App(
            exec=("/bin/sh", "-c", "echo <&>"),
            user="100",
            group="/etc/group",
            supplementary_gids=(1, 2),
            event_handlers=(EventHandler("pre-start", ("/bin/setup",)), EventHandler("post-stop", ("/bin/clean", "x"))),
            working_directory="/srv",
            environment=(("A", "1"), ("B", "é\u2028")),
            isolators=(
                Isolator("resource/memory", {"request": "16Mi", "limit": "1G"}),
                Isolator("os/linux/capabilities-retain-set", {"set": ["CAP_KILL"]}),
                Isolator("example.com/unknown", [{"a": 1.5}, None, "x"]),
            ),
            mount_points=(MountPoint("data", "/data", False), MountPoint("conf", "/etc/x", True)),
            ports=(Port("http", "tcp", 80, 1, False), Port("rtp", "udp", 65000, 536, True)),
            user_annotations=(("any key", "v"),),
            user_labels=(("tier", "web"),),
        ),
        dependencies=(
            Dependency("example.com/base", IMAGE_ID, (("os", "linux"),), 7),
            Dependency("example.com/other", "", (), 0),
        ),
        path_whitelist=("/bin", "/etc/passwd"),
        annotations=(("created", "2015-01-01T00:00:00Z"), ("homepage", "https://a.b")),
    )


def test_what_was_read_is_written_again() -> None:
    written = image_manifest.to_json(image_manifest.from_json(IMAGE))
    assert json.loads(json.dumps(written)) == IMAGE


def test_only_what_is_set_is_written() -> None:
    assert image_manifest.to_json(ImageManifest("example.com/base")) == MINIMAL
    assert image_manifest.app_to_json(App()) == {"exec": [], "user": "0", "group": "0"}


def test_dumps_looks_as_go_prints_it() -> None:
    manifest = ImageManifest("a", labels=(("version", "<\u2028>"),), app=App(exec=("a&b",), working_directory="/"))
    assert image_manifest.dumps(manifest).splitlines() == [
        "{",
        '\t"acKind": "ImageManifest",',
        '\t"acVersion": "0.8.11",',
        '\t"name": "a",',
        '\t"labels": [',
        "\t\t{",
        '\t\t\t"name": "version",',
        '\t\t\t"value": "\\u003c\\u2028\\u003e"',
        "\t\t}",
        "\t],",
        '\t"app": {',
        '\t\t"exec": [',
        '\t\t\t"a\\u0026b"',
        "\t\t],",
        '\t\t"user": "0",',
        '\t\t"group": "0",',
        '\t\t"workingDirectory": "/"',
        "\t}",
        "}",
    ]
    assert image_manifest.dumps(ImageManifest("a"), pretty=False) == (
        '{"acKind":"ImageManifest","acVersion":"0.8.11","name":"a"}'
    )


@pytest.mark.parametrize("text", ["\udcff", "a\ud800"])
def test_text_that_has_no_utf8_is_not_written(text: str) -> None:
    with pytest.raises(ManifestError, match="not UTF-8"):
        image_manifest.dumps(ImageManifest("a", app=App(exec=("/bin/echo", text))))


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_value_that_is_no_json_is_not_written(value: object) -> None:
    with pytest.raises(ManifestError, match="cannot hold this value"):
        image_manifest.dumps(ImageManifest("a", app=App(isolators=(Isolator("x", value),))))


@given(images)
def test_round_trip(manifest: ImageManifest) -> None:
    for pretty in (True, False):
        assert image_manifest.parse(image_manifest.dumps(manifest, pretty=pretty).encode()) == manifest


@pytest.mark.parametrize("key", ["labels", "app", "annotations", "dependencies", "pathWhitelist"])
def test_null_is_absent(key: str) -> None:
    assert image_manifest.from_json({**MINIMAL, key: None}) == ImageManifest("example.com/base")


def test_fields_of_later_versions_are_ignored() -> None:
    assert image_manifest.from_json({**MINIMAL, "later": 1}) == ImageManifest("example.com/base")


def test_unknown_isolators_survive() -> None:
    manifest = image_manifest.parse(json.dumps(IMAGE).encode())
    again = image_manifest.parse(image_manifest.dumps(manifest).encode())
    assert again.app is not None
    assert isolators.unknown(again.app.isolators) == ("example.com/unknown",)
    assert again.app.isolators[-1].value == [{"a": 1.5}, None, "x"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "old//image..name"),
        ("app.exec", []),
        ("app.workingDirectory", ""),
        ("app.ports.0.count", 0),
        ("app.ports.0", {"name": "p", "protocol": "tcp", "port": 65535}),
        ("app.environment.0.value", ""),
        ("app.environment.0", {"name": "ONLY_NAME"}),
        ("app.supplementaryGIDs", [0, 2**32 - 2]),
        ("labels", [{"name": "os", "value": "linux"}]),
        ("dependencies.0.imageID", "sha512-0f0f"),
        ("acVersion", "0.9.0-dev+git"),
    ],
)
def test_accepted(path: str, value: Any) -> None:
    image_manifest.from_json(changed(IMAGE, path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("acKind", "PodManifest", 'acKind: must be "ImageManifest", not "PodManifest"'),
        ("acKind", None, "acKind: is missing"),
        ("acVersion", None, "acVersion: is missing"),
        ("acVersion", "0.0.0", "acVersion: a version must not be all zero"),
        ("acVersion", "1.0.0", 'acVersion: version "1.0.0" of the specification is newer'),
        ("acVersion", 1, "acVersion: must be a string, not a number"),
        ("name", "Example.com/App", 'name: "Example.com/App" is not an AC identifier'),
        ("name", "a/../b", "name: "),
        ("labels", {"os": "linux"}, "labels: must be a list, not an object"),
        ("labels.0", "version=1", "labels[0]: must be an object, not a string"),
        ("labels.0.name", "Version", "labels[0].name: "),
        ("labels.0.name", "os", 'labels: the label "os" is given twice'),
        ("labels.0.name", "name", "labels: a label must not be called"),
        ("labels.1.value", "plan9", 'labels: "plan9" is not an os'),
        ("labels.2.value", 1, "labels[2].value: must be a string, not a number"),
        ("labels", [{"name": "arch", "value": "amd64"}], 'labels: the label "arch"'),
        ("annotations.0.value", "today", 'annotations: "today" is not a date'),
        ("annotations.1.value", "javascript:x", "annotations: the annotation"),
        ("app", [], "app: must be an object, not a list"),
        ("app", {"exec": ["/a"], "group": "0"}, "app.user: is missing"),
        ("app", {"exec": ["/a"], "user": "0"}, "app.group: is missing"),
        ("app", {**APP, "Isolators": []}, 'app: has a field "Isolators"'),
        ("app.user", "", "app.user: must not be empty"),
        ("app.user", 0, "app.user: must be a string, not a number"),
        ("app.exec", "/bin/sh", "app.exec: must be a list, not a string"),
        ("app.exec.1", 1, "app.exec[1]: must be a string"),
        ("app.exec.0", "", "app.exec[0]: must not be empty"),
        ("app.exec.2", "a\0b", "app.exec[2]: must not contain a NUL"),
        ("app.exec.2", "\ud800", "app.exec[2]: must not contain half of a surrogate pair"),
        ("app.supplementaryGIDs.1", -1, "app.supplementaryGIDs[1]: must be 0 to 4294967294"),
        ("app.supplementaryGIDs.0", True, "app.supplementaryGIDs[0]: must be an integer, not a boolean"),
        ("app.supplementaryGIDs.0", 1.0, "app.supplementaryGIDs[0]: must be an integer"),
        ("app.supplementaryGIDs.0", 2**32 - 1, "app.supplementaryGIDs[0]: "),
        ("app.eventHandlers.0.name", "on-fire", 'app.eventHandlers[0].name: "on-fire" is not an event'),
        ("app.eventHandlers.0.name", "post-stop", 'app.eventHandlers: the event handler "post-stop" is given twice'),
        ("app.eventHandlers.1.exec", [], "app.eventHandlers[1].exec: must not be empty"),
        ("app.workingDirectory", "srv", 'app.workingDirectory: must be an absolute path, not "srv"'),
        ("app.workingDirectory", "/a\0", "app.workingDirectory: must not contain a NUL"),
        ("app.environment.1.name", "A", 'app.environment: the variable "A" is given twice'),
        ("app.environment.1.name", "1", "app.environment: "),
        ("app.environment.1.value", "a\0b", "app.environment[1].value: must not contain a NUL"),
        ("app.mountPoints.0.name", "a.b", "app.mountPoints[0].name: "),
        ("app.mountPoints.0.name", "conf", 'app.mountPoints: the mount point "conf" is given twice'),
        ("app.mountPoints.1.path", "etc", "app.mountPoints[1].path: must be an absolute path"),
        ("app.mountPoints.1.readOnly", 1, "app.mountPoints[1].readOnly: must be true or false, not a number"),
        ("app.ports.0.port", 0, "app.ports[0].port: must be 1 to 65535"),
        ("app.ports.1.port", 70000, "app.ports[1].port: must be 1 to 65535"),
        ("app.ports.1.port", True, "app.ports[1].port: must be an integer, not a boolean"),
        ("app.ports.1.count", 537, "app.ports[1].count: the last port, 65536, is above 65535"),
        ("app.ports.1.count", -1, "app.ports[1].count: "),
        ("app.ports.1.name", "http", 'app.ports: the port "http" is given twice'),
        ("app.ports.0.protocol", "t c p", "app.ports[0].protocol: "),
        ("app.ports.0.socketActivated", "no", "app.ports[0].socketActivated: "),
        ("app.isolators.0.name", "Resource/Memory", "app.isolators[0].name: "),
        ("app.isolators.0.value.limit", "much", 'app.isolators[0].value.limit: the isolator "resource/memory": "much"'),
        ("app.isolators.2.value", float("inf"), "app.isolators[2].value: is a number too large"),
        ("app.isolators.2.value", 2**63, "app.isolators[2].value: is a number too large"),
        ("app.isolators.2.value", {"a": ["\0"]}, "app.isolators[2].value: must not contain a NUL"),
        ("app.userLabels", [], "app.userLabels: must be an object, not a list"),
        ("app.userLabels", {"k": 1}, 'app.userLabels["k"]: must be a string'),
        ("dependencies.0.imageName", None, "dependencies[0].imageName: is missing"),
        ("dependencies.0.imageID", "sha256-0f0f", "dependencies[0].imageID: "),
        ("dependencies.0.labels.0.value", "beos", "dependencies[0].labels: "),
        ("dependencies.0.size", -1, "dependencies[0].size: "),
        ("pathWhitelist.1", "etc", "pathWhitelist[1]: must be an absolute path"),
    ],
)
def test_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        image_manifest.from_json(changed(IMAGE, path, value))
    assert caught.value.message.startswith("image manifest: " + said)


@pytest.mark.parametrize("value", [None, [], "manifest", 1, True])
def test_a_document_is_an_object(value: Any) -> None:
    with pytest.raises(ManifestError, match=r"^image manifest must be an object, not"):
        image_manifest.from_json(value)


def test_an_app_section_alone() -> None:
    assert image_manifest.app_from_json({"user": "0", "group": "0"}) == App()
    with pytest.raises(ManifestError, match=r"^ports\[0\]\.name: is missing"):
        image_manifest.app_from_json({"user": "0", "group": "0", "ports": [{"port": 1, "protocol": "tcp"}]})


def test_size_is_limited() -> None:
    data = json.dumps(MINIMAL).encode()
    image_manifest.parse(data + b" " * ((4 << 20) - len(data)))
    with pytest.raises(ManifestError, match="larger than 4 MiB"):
        image_manifest.parse(data + b" " * ((4 << 20) - len(data) + 1))


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [900, 2000, 100_000])
def test_depth_is_limited(opening: bytes, depth: int) -> None:
    for data in (opening * depth, b'{"acKind":' + opening * depth):
        with pytest.raises(ManifestError):
            image_manifest.parse(data)


def test_depth_of_an_isolator_is_limited() -> None:
    def nested(depth: int) -> Any:
        value: Any = []
        for _ in range(depth):
            value = [value]
        return value

    kept = image_manifest.from_json(changed(IMAGE, "app.isolators.2.value", nested(32)))
    assert image_manifest.parse(image_manifest.dumps(kept).encode()) == kept
    with pytest.raises(ManifestError, match=r"app\.isolators\[2\]\.value: is nested too deeply"):
        image_manifest.from_json(changed(IMAGE, "app.isolators.2.value", nested(33)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", HOSTILE),
        (HOSTILE, "\0"),
        ("app", {"user": "0", "group": "0", "userLabels": {HOSTILE: 1}}),
        ("app", {"user": "0", "group": "0", "isolators": [{"name": HOSTILE}]}),
        ("acKind", HOSTILE),
        ("labels", [{"name": "os", "value": HOSTILE}]),
    ],
)
def test_hostile_text_does_not_reach_the_terminal(key: str, value: Any) -> None:
    with pytest.raises(ManifestError) as caught:
        image_manifest.from_json({**MINIMAL, key: value})
    assert caught.value.message.isprintable()
    assert len(str(caught.value)) < 400


def _corpus() -> list[tuple[str, str]]:
    with open(os.path.join(CORPUS, "expected.txt"), encoding="utf-8") as file:
        cases = [line.rstrip("\n").split(": ", 1) for line in file if not line.startswith("#")]
    return [(name, words) for name, words in cases]


@pytest.mark.parametrize(("name", "words"), _corpus())
def test_corpus(name: str, words: str) -> None:
    with open(os.path.join(CORPUS, name), "rb") as file:
        data = file.read()
    parse = image_manifest.parse if name.startswith("image-") else pod_manifest.parse
    with pytest.raises(ManifestError) as caught:
        parse(data)
    assert words in str(caught.value)


def test_the_corpus_is_complete() -> None:
    assert sorted(name for name, _ in _corpus()) == sorted(set(os.listdir(CORPUS)) - {"expected.txt"})


@given(damaged(IMAGE))
def test_a_damaged_manifest_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        manifest = image_manifest.from_json(value)
    except ManifestError:
        return
    assert image_manifest.parse(image_manifest.dumps(manifest).encode()) == manifest


@given(anything)
def test_any_json_is_refused(value: Any) -> None:
    with pytest.raises(ManifestError):
        image_manifest.from_json(value)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        image_manifest.parse(data)


@given(st.data())
def test_a_manifest_with_damaged_bytes_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(IMAGE).encode())
    start = data.draw(st.integers(0, len(raw)))
    raw[start : start + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        image_manifest.parse(bytes(raw))
    except ManifestError:
        pass
