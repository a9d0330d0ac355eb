"""`rkpy image export|extract|render`: images out of the store again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click

from aci import image_manifest
from aci.store import ImageRecord, Store
from common import files
from common.errors import StoreError, UsageError, reason
from stage0 import flags, rootless
from stage0.commands.image import find
from stage0.config import Config

_COPY = 1 << 20

_overwrite = flags.switch("--overwrite", "replace what is there")
_rootfs_only = flags.switch("--rootfs-only", "write the root alone, without the manifest")


@click.command("export")
@_overwrite
@click.argument("image")
@click.argument("file")
@click.pass_obj
def export(config: Config, image: str, file: str, overwrite: bool) -> None:
    """Export a stored image to an ACI file.

    The file is the image's uncompressed tar, whose digest is the image ID.
    """
    rootless.become_root()
    store = Store(config.store)
    with store.lock():
        record = find(store, image)
        if record.format != "aci":
            raise UsageError(
                f'image "{image}" is an OCI image, which cannot be written as an ACI',
                hint="`rkpy image render` writes its files",
            )
        target = os.path.abspath(file)
        if os.path.lexists(target) and not overwrite:
            raise UsageError(f"{file} exists already", hint="--overwrite replaces it")
        _write_aci(store.blob_path(record.blobs[0]), target)


def _write_aci(blob: str, target: str) -> None:
    from aci.compression import open_stream

    try:
        with (
            open(blob, "rb") as source,
            files.replacing(target) as out,
            open_stream(source, name=blob) as stream,
        ):
            while chunk := stream.read1(_COPY):
                out.write(chunk)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {reason(error)}") from error


@click.command("extract")
@_rootfs_only
@_overwrite
@click.argument("image")
@click.argument("directory")
@click.pass_obj
def extract(config: Config, image: str, directory: str, rootfs_only: bool, overwrite: bool) -> None:
    """Extract a stored image to a directory, without its dependencies."""

    def own_layers(store: Store, record: ImageRecord) -> Sequence[str]:
        return [store.layer_path(name) for name in record.layers]

    _write(config, image, directory, own_layers, rootfs_only=rootfs_only, overwrite=overwrite)


@click.command("render")
@_rootfs_only
@_overwrite
@click.argument("image")
@click.argument("directory")
@click.pass_obj
def render(config: Config, image: str, directory: str, rootfs_only: bool, overwrite: bool) -> None:
    """Render a stored image to a directory with all its dependencies."""
    _write(config, image, directory, Store.root_layers, rootfs_only=rootfs_only, overwrite=overwrite)


def _write(
    config: Config,
    image: str,
    directory: str,
    layers: Callable[[Store, ImageRecord], Sequence[str]],
    *,
    rootfs_only: bool,
    overwrite: bool,
) -> None:
    rootless.become_root()
    target = os.path.abspath(directory)
    if os.path.realpath(target) == "/":
        raise UsageError("/ is this system's own root, no image is written over it")
    store = Store(config.store)
    with store.lock():
        record = find(store, image)
        stack = layers(store, record)
        try:
            _make_room(target, overwrite=overwrite)
            _fill(record, stack, target, rootfs_only=rootfs_only)
        except OSError as error:
            raise StoreError(f"cannot write {error.filename or target}: {reason(error)}") from error


def _make_room(target: str, *, overwrite: bool) -> None:
    """An empty directory at `target`. Mount points below what is replaced are not entered."""
    if os.path.lexists(target):
        if not overwrite:
            raise UsageError(f"{target} exists already", hint="--overwrite replaces it")
        above = os.open(os.path.dirname(target), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.remove_tree(os.path.basename(target), dir_fd=above)
        finally:
            os.close(above)
    os.mkdir(target, 0o755)


def _fill(record: ImageRecord, stack: Sequence[str], target: str, *, rootfs_only: bool) -> None:
    from aci.tree import merge_layers

    if rootfs_only:
        merge_layers(stack, target)
        return
    files.replace(f"{target}/manifest", image_manifest.dumps(record.manifest, pretty=False).encode())
    os.mkdir(f"{target}/rootfs", 0o755)
    merge_layers(stack, f"{target}/rootfs")
