"""Reading what describes an OCI image, honest and otherwise; no layer is unpacked here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aci import oci, oci_config, types
from aci.image_manifest import ImageManifest
from aci.oci_config import Name, name_of
from aci.sources import Archive, Directory
from common.errors import ImageError, ManifestError, RkpyError
from tests import layouts
from tests.layouts import Layout, layer

ZEROS = "sha256:" + "0" * 64
FOREIGN = f"{layouts.OCI}layer.nondistributable.v1.tar"
pytestmark = pytest.mark.skipif(types.host_platform() != ("linux", "amd64"), reason="the images here are for amd64")


def find(layout: Layout, reference: str = "") -> oci.Image:
    source = Directory(layout.path)
    try:
        return oci.find(source, reference)
    finally:
        source.close()


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(ImageError, match=match):
        yield


@pytest.fixture
def layout(tmp_path: pathlib.Path) -> Layout:
    return Layout(str(tmp_path / "layout"))


# Names


@pytest.mark.parametrize(
    ("reference", "name", "version"),
    [
        ("docker.io/library/busybox:1.36", "registry-1.docker.io/library/busybox", "1.36"),
        ("docker.io/busybox", "registry-1.docker.io/library/busybox", "latest"),
        ("index.docker.io/me/app:2", "registry-1.docker.io/me/app", "2"),
        ("quay.io/coreos/etcd:v3.5", "quay.io/coreos/etcd", "v3.5"),
        ("localhost:5000/App_One:x", "localhost_5000/app_one", "x"),
        ("example.com/app@sha256:abcd", "example.com/app", "latest"),
        ("1.36", "demo", "1.36"),
        ("", "demo", "latest"),
        ("busybox:1.36", "busybox", "1.36"),
    ],
)
def test_names_of_oci_images(reference: str, name: str, version: str) -> None:
    assert name_of(reference, "/srv/demo.tar") == Name(name, version, reference)


def test_docker_fills_in_what_a_short_name_leaves_out() -> None:
    assert name_of("busybox:1.36", "x.tar", docker=True)[:2] == ("registry-1.docker.io/library/busybox", "1.36")
    assert name_of("me/app", "x.tar", docker=True)[:2] == ("registry-1.docker.io/me/app", "latest")
    assert name_of("localhost/app:1", "x.tar", docker=True)[:2] == ("localhost/app", "1")


def test_a_name_that_cannot_be_one_is_refused() -> None:
    with refused("longer than 1024"):
        name_of("a/" * 600, "/srv/a.tar")
    with refused("no image name can be made"):
        name_of("", "/srv/---.tar")


# Which image


def test_the_only_image_needs_no_name(layout: Layout) -> None:
    entry = layout.add(layout.image(layer("a")), "example.com/app:1")
    image = find(layout)
    assert image.manifest_digest == entry["digest"]
    assert image.id == "sha512-" + hashlib.sha512(image.manifest).hexdigest()
    assert image.reference == "example.com/app:1"


def test_several_images_have_to_be_told_apart(layout: Layout) -> None:
    layout.add(layout.image(layer("a")), "one")
    second = layout.add(layout.image(layer("b")), "example.com/two:2")
    with pytest.raises(ImageError, match="there are 2 images in it, and none is named") as caught:
        find(layout)
    assert "example.com/two:2, one" in str(caught.value)
    assert find(layout, "example.com/two:2").manifest_digest == second["digest"]
    assert find(layout, second["digest"]).manifest_digest == second["digest"]
    with pytest.raises(ImageError, match='no image "three" in it') as caught:
        find(layout, "three")
    assert "example.com/two:2, one" in caught.value.hint


def test_images_that_nothing_tells_apart(layout: Layout) -> None:
    layout.add(layout.image(layer("a")))
    wanted = layout.add(layout.image(layer("b")))
    with refused("there are 2 images for this host in it, and nothing tells them apart"):
        find(layout)
    assert find(layout, wanted["digest"]).manifest_digest == wanted["digest"]


def test_two_names_of_one_image_are_no_choice(layout: Layout) -> None:
    entry = layout.image(layer("a"))
    layout.add(entry, "one")
    layout.add(entry, "two")
    assert find(layout).manifest_digest == entry["digest"]


def _platform(system: str, arch: str, variant: str = "") -> dict[str, Any]:
    return {"platform": {"os": system, "architecture": arch, **({"variant": variant} if variant else {})}}


def test_the_image_for_this_host_is_taken_from_nested_indexes(layout: Layout) -> None:
    wanted = layout.image(layer("amd64"))
    others = [
        {**layout.image(layer("arm")), **_platform("linux", "arm", "v7")},
        {**wanted, **_platform("linux", "amd64")},
        {**layout.image(layer("attested")), **_platform("unknown", "unknown")},
    ]
    layout.add(layout.index(layout.index(*others)), "example.com/app:1")
    image = find(layout)
    assert image.manifest_digest == wanted["digest"]
    assert image.reference == "example.com/app:1"


def test_the_best_variant_wins_and_too_new_ones_do_not_count(layout: Layout) -> None:
    baseline = layout.image(layer("v1"))
    entries = [
        {**baseline, **_platform("linux", "amd64")},
        {**layout.image(layer("v9")), **_platform("linux", "amd64", "v4")},
    ]
    layout.add(layout.index(*entries), "app")
    expected = entries[1 if oci._amd64_level() >= 4 else 0]["digest"]
    assert find(layout).manifest_digest == expected


def test_no_image_for_this_host_lists_what_there_is(layout: Layout) -> None:
    layout.add({**layout.image(layer("a")), **_platform("linux", "arm64", "v8")}, "a")
    with pytest.raises(ImageError, match="no image for linux/amd64") as caught:
        find(layout)
    assert caught.value.hint == "there is: linux/arm64/v8"


def test_indexes_in_indexes_end_somewhere(layout: Layout) -> None:
    entry = layout.image(layer("a"))
    for _ in range(6):
        entry = layout.index(entry)
    layout.add(entry)
    with refused("nested too deeply"):
        find(layout)


# What is wrong


def test_every_document_is_held_against_digest_and_size(layout: Layout) -> None:
    entry = layout.add(layout.image(layer("a")))
    path = pathlib.Path(layout.blob_path(entry["digest"]))
    good = path.read_bytes()
    path.write_bytes(good.replace(b"sha256", b"sha255", 1))
    with refused("manifest sha256:.* is damaged"):
        find(layout)
    path.write_bytes(good + b" ")
    with refused("the manifest announces"):
        find(layout)
    path.unlink()
    with refused("no such file or directory"):
        find(layout)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"schemaVersion": 1}, "not an OCI or docker v2.2 manifest"),
        ({"layers": []}, "the image has no layers"),
        ({"layers": None}, "the image has no layers"),
        ({"layers": [{"mediaType": "x", "digest": "md5:00", "size": 1}]}, "not a sha256 or sha512 digest"),
        ({"layers": [{"mediaType": "x", "digest": "sha256:../../../etc/shadow", "size": 1}]}, "not a sha256"),
        ({"layers": [{"mediaType": layouts.TAR, "digest": ZEROS, "size": -1}]}, "size: must be 0"),
        ({"layers": [{"mediaType": f"{layouts.GZIP}+encrypted", "digest": ZEROS, "size": 1}]}, "encrypted"),
        ({"layers": [{"mediaType": FOREIGN, "digest": ZEROS, "size": 1}]}, "must be fetched elsewhere"),
        ({"layers": [{"mediaType": "text/html", "digest": ZEROS, "size": 1}]}, "unknown media type"),
        ({"mediaType": "text/html"}, "not that of an image manifest"),
        ({"config": {"mediaType": "application/vnd.cncf.helm", "digest": ZEROS, "size": 1}}, "artifact"),
        ({"config": None}, "config: is missing"),
        ({"annotations": []}, "annotations: must be an object"),
    ],
)  # fmt: skip
def test_manifests_that_are_none(layout: Layout, manifest: dict[str, Any], message: str) -> None:
    layout.add(layout.image(layer("a"), manifest=manifest))
    with refused(message):
        find(layout)


@pytest.mark.parametrize(
    ("rootfs", "message"),
    [
        ({"type": "layers", "diff_ids": []}, "has 1 layers, but its configuration has 0"),
        ({"type": "layers", "diff_ids": ["sha512:" + "0" * 128]}, "diff ID is not a sha256"),
        ({"type": "layers", "diff_ids": ["nonsense"]}, "not a sha256 or sha512 digest"),
        ({"type": "something"}, "not made of layers"),
        ([], "not made of layers"),
    ],
)
def test_configurations_that_do_not_fit(layout: Layout, rootfs: Any, message: str) -> None:
    layout.add(layout.image(layer("a"), config={"rootfs": rootfs}))
    with refused(message):
        find(layout)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schemaVersion": 2}', '{"schemaVersion":2,"manifests":[1]}', "\xff"])
def test_an_index_that_is_none(layout: Layout, text: str) -> None:
    pathlib.Path(f"{layout.path}/index.json").write_bytes(text.encode("latin-1"))
    with refused("index.json"):
        find(layout)


def test_links_in_a_layout_are_not_followed(layout: Layout, tmp_path: pathlib.Path) -> None:
    entry = layout.add(layout.image(layer("a")))
    blob = layout.blob_path(entry["digest"])
    os.rename(blob, tmp_path / "outside")
    os.symlink(tmp_path / "outside", blob)
    with refused("too many levels of symbolic links"):
        find(layout)
    os.unlink(blob)
    os.mkfifo(blob)
    with refused("is not a regular file"):
        find(layout)


def _tar(path: pathlib.Path, *entries: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def test_an_archive_with_a_name_twice_or_a_way_out_is_refused(tmp_path: pathlib.Path) -> None:
    twice = [(tarfile.TarInfo("index.json"), b"{}"), (tarfile.TarInfo("./index.json"), b"{}")]
    with refused("'index.json' is in the archive twice"):
        Archive(_tar(tmp_path / "twice.tar", *twice))
    with refused("'..' is not allowed"):
        Archive(_tar(tmp_path / "out.tar", (tarfile.TarInfo("blobs/../../x"), b"")))
    path = _tar(tmp_path / "short.tar", (tarfile.TarInfo("index.json"), bytes(100_000)))
    os.truncate(path, 50_000)
    with refused("truncated"):
        Archive(path)


def test_an_archive_says_where_a_file_is(tmp_path: pathlib.Path) -> None:
    path = _tar(tmp_path / "a.tar", (tarfile.TarInfo("x" * 150), b"first" * 5000), (tarfile.TarInfo("b"), b"second"))
    archive = Archive(path)
    assert archive.span("b").read(100, "b") == b"second"
    assert archive.span("x" * 150).read(1 << 20, "x") == b"first" * 5000
    with refused("larger than 10 bytes"):
        archive.span("x" * 150).read(10, "it")
    with refused("there is no 'c'"):
        archive.span("c")
    archive.close()


# docker archives


def test_a_docker_archive_gets_the_same_manifest_each_time(tmp_path: pathlib.Path) -> None:
    same = layer("same")
    path = layouts.docker_archive(str(tmp_path / "a.tar"), [same, layer("other"), same], tags=["busybox:1"])
    archive = Archive(path)
    image = oci.find_saved(archive, "")
    assert image == oci.find_saved(archive, "docker.io/library/busybox:1")._replace(reference="busybox:1")
    assert [found.diff_id for found in image.layers] == [layouts.sha256(data) for data in (same, layer("other"), same)]
    assert image.layers[0].span == image.layers[2].span
    config, layers, _ = oci.parse(image.manifest, "made")
    assert config.digest == image.config_digest
    assert [found.digest for found in layers] == [found.digest for found in image.layers]
    with refused('no image "other" in it'):
        oci.find_saved(archive, "other")
    archive.close()


def test_links_of_a_docker_archive_stay_inside(tmp_path: pathlib.Path) -> None:
    entries = []
    for name, target in (("out", "../../etc/passwd"), ("root", "/etc/passwd"), ("a", "b"), ("b", "a")):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        entries.append((info, b""))
    archive = Archive(_tar(tmp_path / "a.tar", *entries))
    for name in ("out", "root"):
        with refused("link out of the archive"):
            archive.follow(name)
    with refused("without end"):
        archive.follow("a")
    archive.close()


def test_a_configuration_must_have_the_digest_it_is_named_by(tmp_path: pathlib.Path) -> None:
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": []}}).encode()
    manifest = json.dumps([{"Config": "0" * 64 + ".json", "RepoTags": None, "Layers": []}]).encode()
    path = _tar(
        tmp_path / "a.tar", (tarfile.TarInfo("0" * 64 + ".json"), config), (tarfile.TarInfo("manifest.json"), manifest)
    )
    archive = Archive(path)
    with refused("image configuration 000000000000 is damaged"):
        oci.find_saved(archive, "")
    archive.close()


# The configuration as a manifest


def describe(config: dict[str, Any], **fields: Any) -> tuple[ImageManifest, list[str]]:
    warnings: list[str] = []
    whole = {"os": "linux", "architecture": "amd64", **fields, "config": config}
    name = Name("example.com/app", "1", "example.com/app:1")
    return oci_config.describe(whole, name, "sha256:00", {"org.x": "y"}, warnings.append), warnings


def test_everything_a_configuration_says_is_kept() -> None:
    manifest, warnings = describe(
        {
            "User": "www:data",
            "Entrypoint": ["/entry"],
            "Cmd": ["serve", "--all"],
            "Env": ["PATH=/bin", "EMPTY=", "A=b=c", "A=again"],
            "WorkingDir": "srv/app",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8080": {}},
            "Volumes": {"/var/lib/x": {}, "/var/lib-x": {}, "/": {}},
            "Labels": {"Some Label": "value"},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD", "true"]},
            "Shell": ["/bin/bash", "-c"],
            "OnBuild": ["RUN true"],
        },
        created="2024-01-02T03:04:05.678Z",
        author="A. Author",
    )
    assert not warnings
    assert manifest.labels == (("version", "1"), ("os", "linux"), ("arch", "amd64"))
    app = manifest.app
    assert app is not None
    assert app.exec == ("/entry", "serve", "--all")
    assert (app.user, app.group, app.working_directory) == ("www", "data", "/srv/app")
    assert app.environment == (("PATH", "/bin"), ("EMPTY", ""), ("A", "again"))
    assert [(port.name, port.protocol, port.port) for port in app.ports] == [
        ("80-tcp", "tcp", 80), ("53-udp", "udp", 53), ("8080-tcp", "tcp", 8080),
    ]  # fmt: skip
    assert [(point.name, point.path) for point in app.mount_points] == [
        ("volume-var-lib-x", "/var/lib/x"), ("volume-var-lib-x-2", "/var/lib-x"), ("volume", "/"),
    ]  # fmt: skip
    assert app.user_labels == (("Some Label", "value"),)
    assert app.user_annotations == (("org.x", "y"),)
    annotations = dict(manifest.annotations)
    assert json.loads(annotations["appc.io/docker/entrypoint"]) == ["/entry"]
    assert json.loads(annotations["appc.io/docker/cmd"]) == ["serve", "--all"]
    assert annotations["appc.io/docker/stopsignal"] == "SIGINT"
    assert json.loads(annotations["appc.io/docker/healthcheck"]) == {"Test": ["CMD", "true"]}
    assert json.loads(annotations["appc.io/docker/shell"]) == ["/bin/bash", "-c"]
    assert json.loads(annotations["appc.io/docker/onbuild"]) == ["RUN true"]
    assert (annotations["created"], annotations["authors"]) == ("2024-01-02T03:04:05.678Z", "A. Author")


def test_an_empty_configuration_is_an_image_all_the_same() -> None:
    manifest, _ = describe({"Entrypoint": None, "Cmd": None, "Env": None, "User": ""})
    assert manifest.app is not None
    assert (manifest.app.exec, manifest.app.user, manifest.app.group) == ((), "0", "0")


def test_what_appc_has_no_place_for_is_said() -> None:
    manifest, warnings = describe({"Env": ["9=x", "OK=1"], "ExposedPorts": {"80-90/tcp": {}}}, created="yesterday")
    assert manifest.app is not None
    assert manifest.app.environment == (("OK", "1"),)
    assert manifest.app.ports == ()
    assert len(warnings) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"Env": "PATH=/"}}, "Env: must be a list"),
        ({"config": {"Cmd": ["a\0b"]}}, "NUL"),
        ({"config": {"Volumes": []}}, "Volumes: must be an object"),
        ({"config": []}, "config: must be an object"),
        ({"architecture": "vax"}, "no os and arch for the platform"),
        ({"os": None}, "os: is missing"),
        ({"config": {"Entrypoint": [""]}}, "must not be empty"),
    ],
)
def test_configurations_that_make_no_manifest(fields: dict[str, Any], message: str) -> None:
    config = {"os": "linux", "architecture": "amd64", "config": {}, **fields}
    with pytest.raises(ManifestError, match=message):
        oci_config.describe(config, Name("a", "1", ""), "sha256:00", {}, print)


# Users and groups


def _accounts(tmp_path: pathlib.Path, *layers: dict[str, str]) -> list[str]:
    paths = []
    for number, files in enumerate(layers):
        top = tmp_path / str(number)
        top.mkdir()
        for name, text in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)
        paths.append(str(top))
    return paths


@pytest.mark.parametrize(
    ("user", "group", "others"),
    [
        ("www", "33", (7, 50)),
        ("1000", "33", (7, 50)),
        ("0", "0", ()),
        ("", "0", ()),
        ("4711", "0", ()),
        ("nobody-knows", "0", ()),
        ("www:7", "7", ()),
    ],
)
def test_a_user_alone_brings_the_groups_the_image_gives_it(
    tmp_path: pathlib.Path, user: str, group: str, others: tuple[int, ...]
) -> None:
    layers = _accounts(
        tmp_path,
        {
            "etc/passwd": "www:x:1:1::/:/bin/sh\n",
            "etc/group": "root:x:0:\nlp:x:7:daemon,www\nmore:x:50:www\nown:x:33:www\n",
        },
        {"etc/passwd": "root:x:0:0::/:/bin/sh\nbroken\nwww:x:1000:33::/:/bin/sh\n"},
    )
    manifest, _ = describe({"User": user})
    found = oci_config.with_accounts(manifest, {"config": {"User": user}}, layers)
    assert found.app is not None
    assert (found.app.group, found.app.supplementary_gids) == (group, others)


def test_accounts_are_not_looked_up_through_links(tmp_path: pathlib.Path) -> None:
    layers = _accounts(tmp_path, {"etc/passwd": "root:x:0:5::/:/bin/sh\n"}, {})
    os.symlink(layers[0] + "/etc", layers[1] + "/etc")
    manifest, _ = describe({})
    found = oci_config.with_accounts(manifest, {}, layers)
    assert found.app is not None
    assert found.app.group == "0"


# Anything at all

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.floats() | st.text(max_size=8) | st.just(ZEROS)
    | st.sampled_from(["layers", "linux", "amd64", layouts.GZIP, layouts.MANIFEST, "/var", "80/tcp", "A=b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
MANIFEST_KEYS = ["schemaVersion", "mediaType", "config", "layers", "annotations"]
CONFIG_KEYS = ["os", "architecture", "variant", "config", "rootfs", "created", "author"]
PROCESS_KEYS = [
    "User", "Env", "Cmd", "Entrypoint", "Volumes", "WorkingDir", "Labels", "StopSignal", "ExposedPorts", "Healthcheck",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(MANIFEST_KEYS), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(CONFIG_KEYS), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(PROCESS_KEYS), VALUES, max_size=3),
    st.text(max_size=20),
)
def test_whatever_is_in_the_documents_is_an_image_or_an_error(
    manifest: dict[str, Any], config: dict[str, Any], process: dict[str, Any], reference: str
) -> None:
    whole = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [ZEROS]},
        "config": process,
        **config,
    }
    warnings: list[str] = []
    good = {
        "schemaVersion": 2,
        "config": {"mediaType": layouts.CONFIG, "digest": ZEROS, "size": 1},
        "layers": [{"mediaType": layouts.GZIP, "digest": ZEROS, "size": 1}],
    }
    try:
        oci.parse(json.dumps({**good, **manifest}).encode("utf-8", "surrogatepass"), "it")
        value, _ = oci.parse_config(json.dumps(whole).encode("utf-8", "surrogatepass"), "it")
        made = oci_config.describe(
            value, name_of(reference, "/a.tar", docker=len(reference) % 2 > 0), ZEROS, {}, warnings.append
        )
        types.ac_identifier(made.name)
    except RkpyError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["mediaType", "digest", "size", "annotations", "platform"]), VALUES, max_size=2))
def test_whatever_is_in_an_index_is_an_image_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    layout = Layout(str(tmp_path_factory.mktemp("fuzz") / "layout"))
    layout.add(layout.image(layer("a")), **fields)
    try:
        find(layout)
    except RkpyError:
        pass
