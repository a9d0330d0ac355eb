"""Bringing an image into the store: verified, unpacked and flushed in a corner of its own, then named, record last.

The order is what makes it safe to be killed anywhere: nothing has its final name before it is whole and on the disk,
and no image exists before everything it needs has its final name.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from aci import archive, oci, oci_config, parallel
from aci.compression import Stream, open_stream
from aci.image_manifest import ImageManifest
from aci.oci import Layer
from aci.sources import Archive, Directory, Source, Span, members, opened
from aci.store import TMP, ImageRecord, Store, Verification
from aci.tar import Reader
from aci.unpack import clean_path, unpack_layer
from common import files, locks
from common.errors import ImageError, RkpyError, StoreError, reason
from common.records import NamedTuple
from common.syscalls import syncfs

ACI, OCI_ARCHIVE, OCI_LAYOUT, DOCKER_ARCHIVE = "aci", "oci-archive", "oci-layout", "docker-archive"
FORMATS = (ACI, OCI_ARCHIVE, OCI_LAYOUT, DOCKER_ARCHIVE)

Authorize = Callable[[str], Verification | None]
Warn = Callable[[str], None]

_SIGNS = {
    b"manifest": ACI, b"rootfs": ACI, b"oci-layout": OCI_ARCHIVE, b"index.json": OCI_ARCHIVE, b"blobs": OCI_ARCHIVE,
    b"manifest.json": DOCKER_ARCHIVE, b"repositories": DOCKER_ARCHIVE,
}  # fmt: skip
"""What lies at the root of an archive of each format. Recent versions of docker write blobs/ and an index.json beside
manifest.json: those are OCI archives."""
_SOURCE = "source"
_DECOMPRESSED = "archive.tar"


# Before the import


def sniff(path: str) -> str:
    """Which of FORMATS the file or directory at `path` is. ImageError when it is none."""
    if os.path.isdir(path):
        if os.path.lexists(f"{path}/index.json"):
            return OCI_LAYOUT
        raise ImageError(f"{path} is a directory, but not an OCI layout: there is no index.json in it")
    with opened(path) as fd:
        names = _plain_names(fd) if _is_plain_tar(fd) else _names_inside(fd, path)
        found = next((_SIGNS[name] for name in names if name in _SIGNS), None)
    if found is None:
        raise ImageError(f"{path} is neither an ACI nor an OCI or docker archive")
    return found


def _is_plain_tar(fd: int) -> bool:
    return os.pread(fd, 5, 257) == b"ustar"


def _plain_names(fd: int) -> Iterator[bytes]:
    for path, _, _ in members(fd):
        yield path.partition(b"/")[0]


def _names_inside(fd: int, path: str) -> Iterator[bytes]:
    with open_stream(fd, name=path) as stream:
        for member in Reader(stream):
            yield b"".join(clean_path(member.name, member.name)[:1])


def stage(path: str, staged: str, kind: str) -> str:
    """Take the image at `path` into the directory `staged` (of `Store.staging`), where nobody else can change it; the
    path there. Importing it uses it up. The blobs of a layout stay shared with the original, being verified later
    against the digests in its index. Raises ImageError and StoreError."""
    target = f"{staged}/{_SOURCE}/{os.path.basename(os.path.abspath(path))}"
    with _store_errors(f"copy {path}"):
        os.mkdir(f"{staged}/{_SOURCE}", 0o700)
        if kind == OCI_LAYOUT:
            _stage_layout(path, target)
        else:
            with opened(path) as fd:
                _copy_to(target, Span(fd, 0, os.fstat(fd).st_size), path)
    return target


def _stage_layout(path: str, target: str) -> None:
    os.makedirs(f"{target}/blobs")
    source = Directory(path)
    try:
        for name in ("index.json", "oci-layout"):
            if source.has(name):
                _copy_to(f"{target}/{name}", source.span(name), f"{path}/{name}")
        for algorithm in ("sha256", "sha512"):
            blobs = source.open_directory(f"blobs/{algorithm}")
            if blobs is None:
                continue
            try:
                os.mkdir(f"{target}/blobs/{algorithm}")
                for digits in os.listdir(blobs):
                    _share(blobs, digits, f"{target}/blobs/{algorithm}/{digits}")
            finally:
                os.close(blobs)
    finally:
        source.close()


def _share(directory: int, name: str, target: str) -> None:
    """Link the regular file `name` where that is possible, else copy it. What is none of these is left out."""
    if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        return
    try:
        os.link(name, target, src_dir_fd=directory, follow_symlinks=False)
    except OSError:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            _copy_to(target, Span(fd, 0, os.fstat(fd).st_size), f"blob {name[:12]}")
        finally:
            os.close(fd)


def _copy_to(target: str, span: Span, what: str) -> int:
    """A new file with the bytes of `span`; its descriptor is closed again."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        span.copy(fd, what)
    finally:
        os.close(fd)
    return span.size


# The import


def import_image(
    store: Store,
    path: str,
    *,
    format: str,  # noqa: A002 - the word of the command line
    reference: str = "",
    authorize: Authorize,
    latest: bool = False,
    warn: Warn = lambda text: None,
) -> ImageRecord:
    """Import the image at `path`, of one of FORMATS; the record it has now. What is stored already is used as it is.

    `reference` picks one of several images in an archive. `authorize` is called with the image's name before anything
    is unpacked, and raises TrustError to refuse it. `latest` marks the image as what the name without a version means.
    `warn` takes sentences about what of the image could not be kept.

    An image has one name: importing it under another one renames it. Raises ImageError for what is wrong with the
    image, StoreError for what is wrong with the store; then nothing has been stored."""
    with store.staging() as staged, _store_errors("import the image"):
        found = _import_aci if format == ACI else _import_oci
        return found(_Import(store, staged, path, format, reference, authorize, latest, warn))


class Missing(NamedTuple):
    """A blob that has to be fetched."""

    digest: str
    size: int
    target: str
    """Where to put it once it is whole and verified."""


Fetch = Callable[[Sequence[Missing]], AbstractContextManager[parallel.Feed]]
"""Begins to fetch blobs; each one's position is reported by the feed once it is there."""


def import_fetched(
    store: Store,
    image: oci.Image,
    name: oci_config.Name,
    *,
    fetch: Fetch,
    authorize: Authorize,
    latest: bool = False,
    annotations: Sequence[tuple[str, str]] = (),
    warn: Warn = lambda text: None,
) -> ImageRecord:
    """As `import_image`, for an image called `name` whose layers are elsewhere: those the store lacks are unpacked as
    `fetch` brings them. `annotations` are added to the manifest's."""
    with store.staging() as staged, _store_errors("import the image"):
        job = _Import(store, staged, name.original, OCI_LAYOUT, name.original, authorize, latest, warn)
        return _take_oci(job, image, name, fetch, annotations)


class _Import(NamedTuple):
    """One import, for the functions below."""

    store: Store
    staged: str
    path: str
    format: str
    reference: str
    authorize: Authorize
    latest: bool
    warn: Warn


class _Piece(NamedTuple):
    """Something finished in the staging directory, and its final path."""

    staged: str
    path: str


@contextmanager
def _store_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, `rkpy image gc` may help" if full else ""
        raise StoreError(f"cannot {doing}: {reason(error)}", hint=hint) from error


def _import_aci(job: _Import) -> ImageRecord:
    name = job.path
    blob, target = f"{job.staged}/blob", f"{job.staged}/layer"
    _take_file(job, blob)
    files.make_directory(target, 0o755)
    with opened(blob) as fd:
        size = os.fstat(fd).st_size
        manifest = archive.read_manifest(fd, name)
        verification = job.authorize(manifest.name)
        contents = archive.unpack(fd, target, manifest, name)
    for text in contents.warnings:
        job.warn(text)
    record = ImageRecord(
        id=contents.id,
        format="aci",
        manifest=manifest,
        layers=(contents.id,),
        blobs=(contents.blob,),
        size=size + contents.size,
        import_time=time.time_ns(),
        last_used=0,
        latest=job.latest,
        verification=verification,
    )
    pieces = [
        _Piece(blob, job.store.blob_path(contents.blob)),
        _Piece(target, job.store.layer_path(contents.id)),
    ]
    with _alone(job.store, contents.id):
        existing = _existing(job.store, contents.id)
        if existing is not None:
            return _renewed(job, existing, manifest, verification)
        return _publish(job, record, pieces)


def _take_file(job: _Import, target: str) -> None:
    """The image's file as `target`: what was staged for us is ours already."""
    if _is_staged(job):
        os.link(job.path, target)
        return
    with opened(job.path) as fd:
        _copy_to(target, Span(fd, 0, os.fstat(fd).st_size), job.path)


def _is_staged(job: _Import) -> bool:
    return job.path.startswith(f"{job.store.root}/{TMP}/")


def _import_oci(job: _Import) -> ImageRecord:
    source = _open_source(job)
    try:
        docker = job.format == DOCKER_ARCHIVE
        if isinstance(source, Archive) and docker:
            image = oci.find_saved(source, job.reference)
        else:
            image = oci.find(source, job.reference)
        name = oci_config.name_of(image.reference, job.path, docker=docker)
        return _take_oci(job._replace(latest=job.latest or name.version == "latest"), image, name)
    finally:
        source.close()


def _take_oci(
    job: _Import,
    image: oci.Image,
    name: oci_config.Name,
    fetch: Fetch | None = None,
    annotations: Sequence[tuple[str, str]] = (),
) -> ImageRecord:
    config, _ = oci.parse_config(image.config, f"{job.path}: image configuration")
    try:
        manifest = oci_config.describe(config, name, image.config_digest, image.annotations, job.warn)
    except RkpyError as error:
        raise ImageError(f"{job.path}: image configuration: {error.message}", hint=error.hint) from error
    manifest = manifest._replace(annotations=(*manifest.annotations, *annotations))
    verification = job.authorize(manifest.name)
    with _alone(job.store, image.id):
        existing = _existing(job.store, image.id)
        if existing is not None:
            return _renewed(job, existing, manifest, verification)
        return _store_oci(job, image, config, manifest, verification, fetch)


@contextmanager
def _alone(store: Store, image_id: str) -> Iterator[None]:
    """Be the only process that imports the image. Whoever comes second finds it stored; all would do the work
    otherwise, and all but one in vain."""
    path = f"{store.root}/{TMP}/{image_id}"
    while True:
        with locks.acquire(path, exclusive=True, create=0o600) as held:
            if os.fstat(held.fd).st_nlink == 0:
                continue  # The one before us has just removed it.
            try:
                yield
            finally:
                os.unlink(path)
            return


def _open_source(job: _Import) -> Source:
    if job.format == OCI_LAYOUT:
        return Directory(job.path)
    with opened(job.path) as fd:
        plain = _is_plain_tar(fd)
    if plain:
        return Archive(job.path)
    source = Archive(_decompressed(job))
    source.name = job.path
    return source


def _decompressed(job: _Import) -> str:
    """`docker save | gzip` is common; blobs inside of it can only be reached once it is a plain tar."""
    target = f"{job.staged}/{_DECOMPRESSED}"
    with opened(job.path) as fd, open(target, "xb") as file, open_stream(fd, name=job.path) as stream:
        while chunk := stream.read1(1 << 20):
            file.write(chunk)
    return target


def _store_oci(
    job: _Import,
    image: oci.Image,
    config: dict[str, object],
    manifest: ImageManifest,
    verification: Verification | None,
    fetch: Fetch | None,
) -> ImageRecord:
    store = job.store
    unique = {layer.name: layer for layer in image.layers}
    # A layer that occurs twice covers its lower self entirely, and overlayfs refuses to stack a directory twice.
    names = tuple(
        layer.name for at, layer in enumerate(image.layers) if layer.name not in _names(image.layers[at + 1 :])
    )
    work = sorted(unique.values(), key=lambda layer: -layer.size)
    done = _process_all(job, work, fetch)
    pieces, size = [], len(image.manifest) + len(image.config)
    where = {layer.name: store.layer_path(layer.name) for layer in work}
    for layer, outcome in zip(work, done, strict=True):
        size += layer.size + outcome["size"]
        for text in outcome["warnings"]:
            job.warn(f"layer {layer.digest[:19]}: {text}")
        if outcome["blob"]:
            pieces.append(_Piece(outcome["blob"], store.blob_path(layer.digest)))
        if outcome["layer"]:
            pieces.append(_Piece(outcome["layer"], store.layer_path(layer.name)))
            where[layer.name] = outcome["layer"]
    pieces += _documents(job, image)
    record = ImageRecord(
        id=image.id,
        format="oci",
        manifest=oci_config.with_accounts(manifest, config, [where[name] for name in names]),
        layers=names,
        blobs=(image.manifest_digest, image.config_digest, *(layer.digest for layer in image.layers)),
        size=size,
        import_time=time.time_ns(),
        last_used=0,
        latest=job.latest,
        verification=verification,
    )
    return _publish(job, record, pieces)


def _process_all(job: _Import, work: Sequence[Layer], fetch: Fetch | None) -> list[dict[str, Any]]:
    """The outcome of `_process` for each layer; what is not here is fetched meanwhile."""
    jobs = [partial(_process, job.store, layer, job.staged) for layer in work]
    absent = [
        (at, Missing(layer.digest, layer.size, _staged_blob(job.staged, layer)))
        for at, layer in enumerate(work)
        if layer.span is None and not os.path.exists(job.store.blob_path(layer.digest))
    ]
    if fetch is None or not absent:
        return parallel.run(jobs)
    with fetch([missing for _, missing in absent]) as feed:
        return parallel.run(jobs, feed, [at for at, _ in absent])


def _staged_blob(staged: str, layer: Layer) -> str:
    return f"{staged}/blob-{layer.name}"


def _names(layers: Sequence[Layer]) -> set[str]:
    return {layer.name for layer in layers}


def _documents(job: _Import, image: oci.Image) -> Iterator[_Piece]:
    for name, digest, data in (
        ("manifest", image.manifest_digest, image.manifest),
        ("config", image.config_digest, image.config),
    ):
        with open(f"{job.staged}/{name}", "xb") as file:
            file.write(data)
        yield _Piece(f"{job.staged}/{name}", job.store.blob_path(digest))


# One layer, in a process of its own


def _process(store: Store, layer: Layer, staged: str) -> dict[str, object]:
    """Copy, verify and unpack what the store lacks of `layer`; the paths of what is new, and the size unpacked."""
    what = f"layer {layer.digest[:19]}"
    blob, target = _staged_blob(staged, layer), f"{staged}/{layer.name}"
    has_blob = os.path.exists(store.blob_path(layer.digest))
    new = "" if has_blob else blob
    present = store.layer_path(layer.name)
    if os.path.isdir(present):
        if not has_blob and layer.span is not None:
            with _store_errors(f"copy {what}"):
                _copy_to(blob, layer.span, what)
            verify_blob(blob, layer.digest, what)
        if new:
            with opened(new) as fd, open_stream(fd, content_digest="sha256", name=what) as stream:
                stream.drain()
                _check_diff_id(stream, layer.diff_id, what)
        return {"blob": new, "layer": "", "size": tree_size(present), "warnings": ()}
    with _store_errors(f"unpack {what}"):
        files.make_directory(target, 0o755)
        if not has_blob and layer.span is not None:
            _copy_to(blob, layer.span, what)
        verified = not has_blob and layer.span is None
        size, warnings = unpack_blob(
            new or store.blob_path(layer.digest), target, layer.digest, layer.diff_id, what, verified=verified
        )
    return {"blob": new, "layer": target, "size": size, "warnings": warnings}


def unpack_blob(
    blob: str, target: str, digest: str, diff_id: str, what: str, *, verified: bool = False
) -> tuple[int, tuple[str, ...]]:
    """Unpack the OCI layer in the file `blob` into the empty directory `target`, and hold both its digests against the
    content, the blob's own only if it has not been `verified` before; size of all files in bytes, and warnings. Raises
    ImageError and StoreError."""
    algorithm, _, digits = digest.partition(":")
    raw = "" if verified else algorithm
    with opened(blob) as fd, open_stream(fd, raw_digest=raw, content_digest="sha256", name=what) as stream:
        try:
            unpacked = unpack_layer(stream, target, whiteouts=True)
        except ImageError:
            # Damaged bytes make for all kinds of errors; the digest says what is behind them.
            verify_blob(blob, digest, what)
            raise
        if not verified and stream.raw_hexdigest != digits:
            raise ImageError(f"{what} is damaged: its content does not have that digest")
        _check_diff_id(stream, diff_id, what)
    return unpacked.size, unpacked.warnings


def _check_diff_id(stream: Stream, diff_id: str, what: str) -> None:
    if f"sha256:{stream.content_hexdigest}" != diff_id:
        raise ImageError(f"{what}: unpacked it is not what the configuration says ({diff_id[:19]})")


def verify_blob(blob: str, digest: str, what: str) -> None:
    """Raises ImageError unless the file `blob` has `digest`."""
    import hashlib

    algorithm, _, digits = digest.partition(":")
    with open(blob, "rb") as file:
        if hashlib.file_digest(file, algorithm).hexdigest() != digits:
            raise ImageError(f"{what} is damaged: its content does not have that digest")


def tree_size(path: str) -> int:
    """The sum of the sizes of all regular files below `path`, each name counted once."""
    total = 0
    seen: set[int] = set()
    for directory, _, names, fd in os.fwalk(path):
        del directory
        for name in names:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_ino not in seen:
                total += found.st_size
                if found.st_nlink > 1:
                    seen.add(found.st_ino)
    return total


# The end of an import


def _existing(store: Store, image_id: str) -> ImageRecord | None:
    """The image, if it is stored and all there."""
    try:
        record = store.get(image_id)
    except StoreError:
        return None  # Not stored, or its record is damaged: it is written anew.
    return record if store.is_whole(record) else None


def _renewed(
    job: _Import, existing: ImageRecord, manifest: ImageManifest, verification: Verification | None
) -> ImageRecord:
    """The image again: it takes the name it was imported under now, with the verification for that name."""
    known = existing.manifest
    same_name = (known.name, known.labels) == (manifest.name, manifest.labels)
    renamed = known._replace(name=manifest.name, labels=manifest.labels, annotations=manifest.annotations)
    record = existing._replace(
        manifest=renamed,
        latest=job.latest or (same_name and existing.latest),
        verification=verification or (existing.verification if same_name else None),
    )
    if record != existing:
        job.store.add(record, job.staged)
    job.store.touch(record.id)
    return job.store.get(record.id)


def _publish(job: _Import, record: ImageRecord, pieces: Sequence[_Piece]) -> ImageRecord:
    """Flush everything, give it its final name, then let the image exist."""
    store = job.store
    _drop_archives(job)
    _flush(store, job.staged)
    directories = set()
    for piece in pieces:
        directory = os.path.dirname(piece.path)
        files.make_directory(directory, 0o700)
        directories.add(directory)
        _name(piece)
    for directory in directories:
        files.flush_directory(directory)
    store.add(record, job.staged)
    store.touch(record.id)
    return store.get(record.id)


def _drop_archives(job: _Import) -> None:
    """What was staged and has been copied from: gone, it need not be flushed."""
    if _is_staged(job) and job.format in (OCI_ARCHIVE, DOCKER_ARCHIVE):
        os.unlink(job.path)
    if os.path.exists(decompressed := f"{job.staged}/{_DECOMPRESSED}"):
        os.unlink(decompressed)


def _flush(store: Store, staged: str) -> None:
    fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd, store.root)
    finally:
        os.close(fd)


def _name(piece: _Piece) -> None:
    """rename(2), unless another import was quicker: what is there has the same content, or it had another name."""
    try:
        os.rename(piece.staged, piece.path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
