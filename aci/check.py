"""Whether what is stored still is what was imported, and mending what can be mended (`rkpy image verify`)."""

from __future__ import annotations

import errno
import os

from aci import archive, oci
from aci.compare import compare_layer
from aci.compression import open_stream
from aci.importer import unpack_blob, verify_blob
from aci.sources import opened
from aci.store import ImageRecord, Store, damaged_name
from common import files
from common.errors import ImageError, StoreError, reason
from common.records import NamedTuple
from common.syscalls import RENAME_EXCHANGE, renameat2

MAX_DIFFERENCES = 5
"""Named for each layer; the rest is counted."""


class Repair(NamedTuple):
    """A layer that was not what its blob says, and has been unpacked again."""

    layer: str
    differences: tuple[str, ...]


class _Stored(NamedTuple):
    """A layer of an image and the blob it was unpacked from."""

    name: str
    blob: str
    """Digest."""


def verify(store: Store, record: ImageRecord) -> list[Repair]:
    """Hold every blob of the image against its digest and every layer against its blob; a layer that differs is made
    anew and takes the place of the old one, which stays for the pods that have it mounted until a collection.

    Raises ImageError for a blob that is missing or damaged: only fetching the image again helps then."""
    for digest in record.blobs:
        path = store.blob_path(digest)
        if not os.path.exists(path):
            raise ImageError(f"blob {digest[:19]} of image {record.id[:19]} is gone", hint=_HINT)
        try:
            verify_blob(path, digest, f"blob {digest[:19]} of image {record.id[:19]}")
        except ImageError as error:
            raise ImageError(error.message, hint=_HINT) from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {reason(error)}") from error
    repairs = []
    for layer in _layers(store, record):
        differences = _compare(store, record, layer)
        if differences:
            _replace(store, record, layer)
            repairs.append(Repair(layer.name, _shortened(differences)))
    return repairs


_HINT = "remove it with `rkpy image rm` and fetch it again"


def _layers(store: Store, record: ImageRecord) -> list[_Stored]:
    """The layers of the record, each once."""
    if record.format == "aci":
        return [_Stored(record.id, record.blobs[0])]
    what = f"image {record.id[:19]}"
    manifest, config = (_read(store, digest) for digest in record.blobs[:2])
    _, layers, _ = oci.parse(manifest, what)
    _, diff_ids = oci.parse_config(config, what)
    pairs = zip(diff_ids, layers, strict=True)
    blobs = {diff_id.replace(":", "-"): layer.digest for diff_id, layer in pairs}
    return [_Stored(name, blobs[name]) for name in record.layers]


def _read(store: Store, digest: str) -> bytes:
    with open(store.blob_path(digest), "rb") as file:
        return file.read()


def _compare(store: Store, record: ImageRecord, layer: _Stored) -> list[str]:
    target = store.layer_path(layer.name)
    if not os.path.isdir(target):
        return ["it is gone"]
    what = f"blob {layer.blob[:19]}"
    with opened(store.blob_path(layer.blob)) as fd:
        if record.format == "aci":
            return archive.compare(fd, target, record.id, what)
        with open_stream(fd, name=what) as stream:
            return compare_layer(stream, target, whiteouts=True)


def _shortened(differences: list[str]) -> tuple[str, ...]:
    shown = differences[:MAX_DIFFERENCES]
    if len(differences) > len(shown):
        shown.append(f"and {len(differences) - len(shown)} more")
    return tuple(shown)


def _replace(store: Store, record: ImageRecord, layer: _Stored) -> None:
    """Unpack the layer again and swap the two directories: at no time is there none, or half of one."""
    path, blob = store.layer_path(layer.name), store.blob_path(layer.blob)
    with store.staging() as staged:
        target = f"{staged}/layer"
        files.make_directory(target, 0o755)
        if record.format == "aci":
            with opened(blob) as fd:
                archive.unpack(fd, target, archive.read_manifest(fd, layer.blob), layer.blob)
        else:
            unpack_blob(blob, target, layer.blob, layer.name.replace("-", ":"), f"layer {layer.blob[:19]}")
        try:
            files.flush_filesystem(target)
            _swap(target, path, store.layer_path(damaged_name(layer.name)))
        except OSError as error:
            raise StoreError(f"cannot replace layer {layer.name[:19]}: {reason(error)}") from error


def _swap(new: str, path: str, aside: str) -> None:
    try:
        renameat2(new, path, RENAME_EXCHANGE)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        os.rename(new, path)
        return
    os.rename(new, aside)
    files.flush_directory(os.path.dirname(path))
