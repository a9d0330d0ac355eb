"""What an image argument means."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import RkpyError
from stage0 import reference


@pytest.mark.parametrize(
    ("text", "kind", "value", "image"),
    [
        ("sha512-abc", "id", "sha512-abc", ""),
        ("/srv/a.aci", "file", "/srv/a.aci", ""),
        ("file:///srv/a.aci", "file", "/srv/a.aci", ""),
        ("oci:/srv/layout:v1", "oci-layout", "/srv/layout", "v1"),
        ("oci-archive:/srv/a.tar", "oci-archive", "/srv/a.tar", ""),
        ("oci-archive:/srv/a.tar:example.com/a:1", "oci-archive", "/srv/a.tar", "example.com/a:1"),
        ("docker-archive:/srv/a.tar", "docker-archive", "/srv/a.tar", ""),
        ("docker://busybox", "docker", "docker://busybox", ""),
        ("https://example.com/a.aci", "remote", "https://example.com/a.aci", ""),
        ("example.com/app", "name", "example.com/app", ""),
    ],
)
def test_kinds(text: str, kind: str, value: str, image: str) -> None:
    found = reference.parse(text)
    assert (found.kind, found.value, found.image) == (kind, value, image)


def test_relative_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(b"")
    (tmp_path / "a:b.tar").write_bytes(b"")
    assert reference.parse("image") == reference.Reference("file", str(tmp_path / "image"))
    assert reference.parse("missing.aci").kind == "file"
    assert reference.parse("./missing").kind == "file"
    assert reference.parse("oci-archive:a:b.tar").value == str(tmp_path / "a:b.tar")


def test_names_with_versions_and_labels() -> None:
    assert dict(reference.parse("a:1:2//").labels) == {"version": "1:2//"}
    found = reference.parse("example.com/app:1.2,os=linux,channel=beta")
    assert found.value == "example.com/app"
    assert dict(found.labels) == {"version": "1.2", "os": "linux", "channel": "beta"}


@pytest.mark.parametrize("text", ["", "Example.com", "a b", "a,b", "a,=1", "a:1,version=2", "oci:", "-a"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(RkpyError):
        reference.parse(text)
