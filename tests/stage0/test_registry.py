"""What the registry client makes of names and headers; the rest is in tests/host/test_registry.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from aci import oci
from common.errors import ImageError
from stage0 import docker_reference, registry
from stage0.blobs import _Hasher

A = "a" * 64


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("busybox", "registry-1.docker.io/library/busybox", "latest"),
        ("index.docker.io/a/b:1", "registry-1.docker.io/a/b", "1"),
        ("quay.io/a/b:V1.0", "quay.io/a/b", "V1.0"),
        ("localhost:5000/a", "localhost_5000/a", "latest"),
        ("HOST.example.com/a", "host.example.com/a", "latest"),
        (f"quay.io/a@sha256:{A}", "quay.io/a", f"sha256:{A}"),
        (f"quay.io/a:1@sha256:{A}", "quay.io/a", f"sha256:{A}"),
    ],
)
def test_what_the_store_calls_images(text: str, name: str, version: str) -> None:
    assert docker_reference.image_name(docker_reference.parse(text))[:2] == (name, version)


@pytest.mark.parametrize(
    ("header", "kinds"),
    [
        ('Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"', {"Bearer": ("https://a/t", "s")}),
        ('Basic realm="x"', {"Basic": ("x", None)}),
        (
            'Basic realm="x", Bearer realm="https://a/\\"t", service=s',
            {"Basic": ("x", None), "Bearer": ('https://a/"t', "s")},
        ),
        ("Negotiate", {}),
        ("", {}),
    ],
)
def test_challenges(header: str, kinds: dict[str, tuple[str, str | None]]) -> None:
    found = {kind: registry._parameters(text) for kind, text in registry._CHALLENGE.findall(header)}
    assert {kind: (values.get("realm"), values.get("service")) for kind, values in found.items()} == kinds


@pytest.mark.parametrize(
    ("announced", "document", "found"),
    [
        (oci.MANIFESTS[1], b'{"schemaVersion":2}', oci.MANIFESTS[1]),
        ("application/json", b'{"schemaVersion":2,"layers":[]}', oci.MANIFESTS[0]),
        ("", b'{"schemaVersion":2,"manifests":[]}', oci.INDEXES[0]),
        ("text/plain", f'{{"mediaType":"{oci.INDEXES[1]}"}}'.encode(), oci.INDEXES[1]),
    ],
)
def test_media_types(announced: str, document: bytes, found: str) -> None:
    assert registry._media_type(announced, document, "it") == found


@pytest.mark.parametrize(
    ("announced", "document"),
    [
        (oci.MANIFESTS[0], f'{{"mediaType":"{oci.INDEXES[0]}"}}'.encode()),
        (oci.INDEXES[0], f'{{"mediaType":"{oci.MANIFESTS[0]}"}}'.encode()),
        (oci.INDEXES[0], b'{"manifests":[],"config":{}}'),
        ("application/json", b"[]"),
        ("application/json", b"{"),
        ("text/html", b"{}"),
    ],
)
def test_documents_that_are_two_things_or_none(announced: str, document: bytes) -> None:
    with pytest.raises(ImageError):
        registry._media_type(announced, document, "it")


def test_a_digest_follows_a_file_that_begins_anew(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "blob"
    path.write_bytes(b"abcdef")
    digest = f"sha256:{hashlib.sha256(b'abcdef').hexdigest()}"
    untouched, resumed, anew = (_Hasher(str(path), digest) for _ in range(3))
    resumed.add(3, b"def")
    for offset, data in ((0, b"xxx"), (3, b"x"), (0, b"abc"), (3, b"def")):
        anew.add(offset, data)
    assert untouched.matches()
    assert resumed.matches()
    assert anew.matches()
    anew.add(6, b"g")
    assert not anew.matches()
