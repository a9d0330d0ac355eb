"""OCI layouts and docker archives put together by hand, so that anything in them can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from tests import tars

OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG, TAR = (
    f"{OCI}manifest.v1+json",
    f"{OCI}index.v1+json",
    f"{OCI}config.v1+json",
    f"{OCI}layer.v1.tar",
)
GZIP = f"{TAR}+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

Descriptor = dict[str, Any]


def layer(*names: str) -> bytes:
    """A layer with a small file at each of `names`."""
    return tars.pack(*(tars.file(name, name.encode()) for name in names))


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An OCI layout directory in the making."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(f"{path}/blobs/sha256")
        self.entries: list[Descriptor] = []
        with open(f"{path}/oci-layout", "w") as file:
            json.dump({"imageLayoutVersion": "1.0.0"}, file)

    def blob(self, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """Write a blob; its descriptor."""
        digest = sha256(data)
        with open(self.blob_path(digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def blob_path(self, digest: str) -> str:
        return f"{self.path}/blobs/sha256/{digest.removeprefix('sha256:')}"

    def image(
        self,
        *layers: bytes,
        config: Mapping[str, Any] | None = None,
        process: Mapping[str, Any] | None = None,
        media_type: str = GZIP,
        diff_ids: Sequence[str] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> Descriptor:
        """An image of tars, compressed unless `media_type` says otherwise; the descriptor of its manifest."""
        blobs = [gzip.compress(data, 1, mtime=0) if media_type.endswith("gzip") else data for data in layers]
        described = {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": ["/bin/sh"], **(process or {})},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(data) for data in layers]},
            **(config or {}),
        }
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(json.dumps(described).encode(), CONFIG),
            "layers": [self.blob(data, media_type) for data in blobs],
            **(manifest or {}),
        }
        return self.blob(json.dumps(value).encode(), MANIFEST)

    def index(self, *entries: Descriptor) -> Descriptor:
        """A nested index; its descriptor."""
        return self.blob(json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode(), INDEX)

    def add(self, entry: Descriptor, name: str = "", **fields: Any) -> Descriptor:
        """Put `entry` into index.json, called `name`."""
        annotations = {"annotations": {REF_NAME: name}} if name else {}
        self.entries.append({**entry, **annotations, **fields})
        with open(f"{self.path}/index.json", "w") as file:
            json.dump({"schemaVersion": 2, "manifests": self.entries}, file)
        return entry

    def archive(self, path: str) -> str:
        """The same as a tar archive."""
        with tarfile.open(path, "w") as archive:
            for name in ("oci-layout", "index.json", "blobs"):
                archive.add(f"{self.path}/{name}", name)
        return path


def simple(path: str, name: str = "example.com/app:1", *layers: bytes, **fields: Any) -> Layout:
    """A layout with one image."""
    layout = Layout(path)
    layout.add(layout.image(*(layers or (layer("etc/base", "bin/sh"), layer("etc/upper"))), **fields), name)
    return layout


def docker_archive(
    path: str, layers: Sequence[bytes], *, tags: Sequence[str] = ("example.com/app:1",), **fields: Any
) -> str:
    """What `docker save` wrote before version 25: layers in directories, one that occurs twice as a symlink."""
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(_plain(data)) for data in layers]},
        **fields,
    }
    data = json.dumps(config).encode()
    name = f"{hashlib.sha256(data).hexdigest()}.json"
    seen: dict[bytes, str] = {}
    paths = []
    with tarfile.open(path, "w") as archive:
        for number, content in enumerate(layers):
            place = f"{number:064x}/layer.tar"
            info = tarfile.TarInfo(place)
            if content in seen:
                info.type, info.linkname = tarfile.SYMTYPE, f"../{seen[content]}"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            seen.setdefault(content, place)
            paths.append(place)
        for item, text in (
            (name, data),
            ("manifest.json", json.dumps([{"Config": name, "RepoTags": list(tags), "Layers": paths}]).encode()),
        ):
            info = tarfile.TarInfo(item)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return path


def _plain(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
