"""App Container Images (spec 0.8.11, "App Container Image"): a tar, compressed or not, of `manifest` and `rootfs/`."""

from __future__ import annotations

import os

from aci import image_manifest, types
from aci.compare import compare_layer
from aci.compression import open_stream
from aci.document import SIZE_LIMIT
from aci.image_manifest import ImageManifest
from aci.tar import DIRECTORY, FILE, Member, Reader, show
from aci.unpack import clean_path, unpack_layer
from common.errors import ImageError
from common.records import NamedTuple

ROOTFS = "rootfs"
MANIFEST = b"manifest"


class Contents(NamedTuple):
    """What unpacking found. `size` is the sum of all files in bytes."""

    id: str
    blob: str
    """Digest of the file as shipped, `sha256:HEX`."""
    size: int
    warnings: tuple[str, ...]


def read_manifest(fd: int, name: str) -> ImageManifest:
    """The manifest of the ACI open as `fd`, wherever in the archive it is; `name` names the file in errors. Leaves the
    descriptor anywhere. Raises ImageError and ManifestError."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open_stream(fd, name=name) as stream:
        reader = Reader(stream)
        for member in reader:
            if clean_path(member.name, member.name) == [MANIFEST]:
                return image_manifest.parse(_manifest_bytes(member, reader, name))
    raise ImageError(f"{name}: there is no manifest in it, so it is not an ACI")


def unpack(fd: int, target: str, manifest: ImageManifest, name: str) -> Contents:
    """Unpack the root of the ACI open as `fd` into the empty directory `target`, and hold the archive to the rules:
    nothing but one `manifest`, which says `manifest`, and one `rootfs/`. Raises ImageError and StoreError."""
    os.lseek(fd, 0, os.SEEK_SET)
    root = _Root(manifest, name)
    with open_stream(fd, raw_digest="sha256", content_digest="sha512", name=name) as stream:
        unpacked = unpack_layer(stream, target, whiteouts=False, strip=ROOTFS, on_other=root.take, unique=True)
        contents = Contents(
            id=types.ID_PREFIX + stream.content_hexdigest,
            blob=f"sha256:{stream.raw_hexdigest}",
            size=unpacked.size,
            warnings=unpacked.warnings,
        )
    if not root.seen:
        raise ImageError(f"{name}: there is no manifest in it, so it is not an ACI")
    if not unpacked.entries:
        raise ImageError(f"{name}: there is no rootfs in it, so it is not an ACI")
    return contents


def compare(fd: int, target: str, image_id: str, name: str) -> list[str]:
    """How `target` differs from the root of the ACI open as `fd`, a sentence each. ImageError when the ACI is not the
    image `image_id`."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open_stream(fd, content_digest="sha512", name=name) as stream:
        differences = compare_layer(stream, target, whiteouts=False, strip=ROOTFS)
        if types.ID_PREFIX + stream.content_hexdigest != image_id:
            raise ImageError(f"{name} is not the image {image_id[:19]}")
    return differences


class _Root:
    """Takes what is beside `rootfs`."""

    def __init__(self, manifest: ImageManifest, name: str) -> None:
        self._manifest = manifest
        self._name = name
        self.seen = False

    def take(self, member: Member, reader: Reader) -> None:
        if member.name != MANIFEST:
            what = "directory" if member.kind == DIRECTORY else "entry"
            raise ImageError(
                f"{self._name}: {what} {show(member.name)} is beside manifest and rootfs, where an ACI has nothing else"
            )
        if self.seen:
            raise ImageError(f"{self._name}: there are two manifests in it")
        self.seen = True
        if image_manifest.parse(_manifest_bytes(member, reader, self._name)) != self._manifest:
            raise ImageError(f"{self._name}: the image was changed while it was read")


def _manifest_bytes(member: Member, reader: Reader, name: str) -> bytes:
    if member.kind != FILE or member.segments is not None:
        raise ImageError(f"{name}: its manifest is not a regular file")
    if member.size > SIZE_LIMIT:
        raise ImageError(f"{name}: its manifest is larger than {SIZE_LIMIT >> 20} MiB")
    return reader.read(member.size)
