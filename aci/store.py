"""The content store: what has been imported, where it lies, who vouched for it and when it was last used.

    blob/ALGO/HEX              blobs as they were fetched
    layer/NAME                 an unpacked layer each: sha256-HEX (OCI, by diff ID), sha512-HEX (ACI, by image ID)
    tree/NAME                  roots rendered from several images, or by a whitelist
    image/sha512-HEX.json      the image records: an image exists exactly while its record does
    used/sha512-HEX            empty; its mtime is the last use
    index.db                   image names for quick lookup, see aci.index
    tmp/                       what is being made; garbage as soon as nobody holds its lock
    lock                       shared by whoever uses images, exclusive for whoever removes them

Everything gets its final name whole and flushed, by rename(2), the record last; and loses it by rename(2) or unlink(2),
the record first. This module reads, marks and removes; importing is aci.importer's. See docs/store.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aci import image_manifest, types
from aci.image_manifest import ImageManifest
from aci.index import Entry, Index
from common import files, locks, ownership, users
from common.errors import ManifestError, StoreError, reason
from common.records import NamedTuple

RECORD_VERSION = 1
LAYER, TREE, BLOB, IMAGE, USED, TMP = "layer", "tree", "blob", "image", "used", "tmp"
# Layers hold set-user-ID programs of strangers, blobs perhaps secrets: nobody but root walks in there. The rest may be
# read by all, so that everybody can see what is stored.
_PRIVATE = (LAYER, TREE, BLOB, TMP)
_PUBLIC = (IMAGE, USED)
_STAGING_LOCK = "lock"
_DAMAGED = ".damaged-"
_PLATFORM_LABELS = ("os", "arch")


class Verification(NamedTuple):
    """Who vouched for an image when it was imported."""

    fingerprint: str
    signer: str
    trusted_for: str
    """The name prefix the key is trusted for; empty for a root key."""
    signed_at: int
    """Seconds since the epoch."""


class ImageRecord(NamedTuple):
    """One stored image. Times are in nanoseconds since the epoch."""

    id: str
    format: str
    """"aci" or "oci"."""
    manifest: ImageManifest
    layers: tuple[str, ...]
    """Names below layer/, lowest first."""
    blobs: tuple[str, ...]
    """Digests, `sha256:HEX`. Of an OCI image: manifest, configuration, layers, lowest first."""
    size: int
    """Bytes of its blobs and of the files in its layers, be they shared with other images or not."""
    import_time: int
    last_used: int
    latest: bool
    """Whether it was asked for without a version, or as `latest`."""
    verification: Verification | None


class Kept(NamedTuple):
    """Something a collection left, and why."""

    name: str
    why: str


class Collected(NamedTuple):
    """What a collection did; names are `layer/NAME` and so on."""

    removed: tuple[str, ...]
    kept: tuple[Kept, ...]


class Store:
    """The store in the directory `root`, which need not exist to be read from."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.index = Index(f"{root}/index.db", f"{root}/{IMAGE}")

    # Where things are

    def layer_path(self, name: str) -> str:
        """The unpacked layer called `name`."""
        return f"{self.root}/{LAYER}/{name}"

    def tree_path(self, name: str) -> str:
        """The rendered tree called `name`."""
        return f"{self.root}/{TREE}/{name}"

    def blob_path(self, digest: str) -> str:
        """The blob with the digest `ALGO:HEX`."""
        algorithm, _, digits = digest.partition(":")
        return f"{self.root}/{BLOB}/{algorithm}/{digits}"

    def root_layers(self, record: ImageRecord) -> tuple[str, ...]:
        """Absolute paths of the directories the image's root is made of, lowest first. An image with dependencies or a
        whitelist is rendered first, unless it has been. Raises ImageError for a dependency that is missing."""
        if record.manifest.dependencies or record.manifest.path_whitelist:
            from aci import tree

            return (tree.rendered(self, record),)
        return tuple(self.layer_path(name) for name in record.layers)

    # Reading

    def images(self) -> list[ImageRecord]:
        """Every image, in no order. Raises StoreError for a record that cannot be read."""
        # One that is removed meanwhile is not there.
        found = (self._read(image_id, missing_ok=True) for image_id in self._ids())
        return [record for record in found if record is not None]

    def resolve(self, prefix: str) -> str:
        """The ID that begins with `prefix`. StoreError when there is none or several, ManifestError when no ID could
        begin so."""
        types.image_id(prefix)
        if len(prefix) == len(types.ID_PREFIX) + types.ID_DIGITS:
            found = [prefix] if os.path.exists(self._record_path(prefix)) else []
        else:
            found = [image_id for image_id in self._ids() if image_id.startswith(prefix)]
        if not found:
            raise StoreError(f'no image with the ID "{prefix}" in the store', hint="see `rkpy image list`")
        if len(found) > 1:
            raise StoreError(f'image ID "{prefix}" is ambiguous: {len(found)} images begin so', hint="give more digits")
        return found[0]

    def find_by_id(self, prefix: str) -> ImageRecord:
        """The image whose ID begins with `prefix`. Raises as `resolve` does, and StoreError for a damaged record."""
        return self.get(self.resolve(prefix))

    def get(self, image_id: str) -> ImageRecord:
        """The image with the full ID `image_id`; StoreError when it is not stored."""
        record = self._read(image_id, missing_ok=False)
        assert record is not None
        return record

    def is_whole(self, record: ImageRecord) -> bool:
        """Whether all layers and blobs of the image are there."""
        layers = all(os.path.isdir(self.layer_path(name)) for name in record.layers)
        return layers and all(os.path.exists(self.blob_path(digest)) for digest in record.blobs)

    def find(self, name: str, labels: dict[str, str]) -> ImageRecord | None:
        """The best image called `name` that has all of `labels`; one that names no os or arch is for any. Among several
        the one marked `latest` wins unless a version is asked for, then the newest import."""
        fitting = [entry for entry in self._called(name) if _fits(json.loads(entry.labels), labels)]
        if not fitting:
            return None
        wants_latest = "version" not in labels
        best = max(fitting, key=lambda entry: (wants_latest and entry.latest, entry.import_time, entry.id))
        return self._read(best.id, missing_ok=True)

    def _called(self, name: str) -> list[Entry]:
        entries = None
        # To open the database is to write it, and what somebody else has there may be a way to another file.
        if not ownership.objection(self.root):
            entries = self.index.lookup(name)
            if entries is None:
                self.index.rebuild(self._entries)
                entries = self.index.lookup(name)
        return [entry for entry in self._entries() if entry.name == name] if entries is None else entries

    def _ids(self) -> list[str]:
        try:
            names = os.listdir(f"{self.root}/{IMAGE}")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read the store {self.root}: {reason(error)}") from error
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def _record_path(self, image_id: str) -> str:
        return f"{self.root}/{IMAGE}/{image_id}.json"

    def _read(self, image_id: str, *, missing_ok: bool) -> ImageRecord | None:
        path = self._record_path(image_id)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            if missing_ok:
                return None
            raise StoreError(f'no image with the ID "{image_id}" in the store', hint="see `rkpy image list`") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {reason(error)}") from error
        try:
            return _from_json(image_id, json.loads(data), self.last_used(image_id))
        except (ManifestError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"the record of image {image_id[:19]} is damaged: {error}",
                hint=f"remove it with `rkpy image rm {image_id[:19]}` and fetch the image again",
            ) from error

    def _entries(self) -> Iterator[Entry]:
        for record in self.images():
            yield _entry(record)

    # Marking

    def last_used(self, image_id: str) -> int:
        """When the image was last used, in nanoseconds since the epoch; 0 if never."""
        try:
            return os.stat(f"{self.root}/{USED}/{image_id}").st_mtime_ns
        except OSError:
            return 0

    def touch(self, image_id: str) -> None:
        """Note that the image is used now."""
        path = f"{self.root}/{USED}/{image_id}"
        try:
            try:
                os.utime(path)
            except FileNotFoundError:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise StoreError(f"cannot mark image {image_id[:19]} as used: {reason(error)}") from error

    def make(self) -> None:
        """Create what is missing of the store's directories. Raises StoreError."""
        try:
            if users.confined():
                ownership.make_data_directory(os.path.dirname(self.root))
            os.makedirs(self.root, 0o755, exist_ok=True)
            if not os.path.lexists(f"{self.root}/{_PRIVATE[0]}"):
                ownership.claim(self.root)
            for name in _PRIVATE:
                files.make_directory(f"{self.root}/{name}", 0o700)
            for name in _PUBLIC:
                files.make_directory(f"{self.root}/{name}", 0o755)
        except OSError as error:
            raise StoreError(f"cannot create the store {self.root}: {reason(error)}") from error

    @contextmanager
    def lock(self, exclusive: bool = False) -> Iterator[None]:
        """Hold the store: shared, so that nothing is removed, or exclusive, to remove. Waits for others.

        Raises StoreError for a store that is somebody else's."""
        if why := ownership.objection(self.root):
            raise StoreError(f"cannot use the store {self.root}: {why}", hint="use one of your own, see --dir")
        path = f"{self.root}/lock"
        try:
            try:
                held = locks.acquire(path, exclusive=exclusive, create=0o644)
            except FileNotFoundError:
                self.make()
                held = locks.acquire(path, exclusive=exclusive, create=0o644)
        except OSError as error:
            raise StoreError(f"cannot lock {path}: {reason(error)}") from error
        with held:
            yield

    @contextmanager
    def staging(self) -> Iterator[str]:
        """A new directory below tmp/, removed at the end with all that is still in it. After a kill it is garbage that
        anybody can tell by its free lock."""
        self.make()
        with self.lock():
            path = f"{self.root}/{TMP}/{os.urandom(8).hex()}"
            try:
                os.mkdir(path, 0o700)
                held = locks.acquire(f"{path}/{_STAGING_LOCK}", exclusive=True, create=0o600)
            except OSError as error:
                raise StoreError(f"cannot create {path}: {reason(error)}") from error
            with held:
                try:
                    yield path
                finally:
                    self._remove_tree(TMP, os.path.basename(path))

    # Records

    def add(self, record: ImageRecord, staged: str) -> None:
        """Make the image exist, or replace its record, after everything it needs is in place and flushed. `staged` is a
        directory of `staging`. Raises StoreError."""
        data = json.dumps(_to_json(record), ensure_ascii=False, separators=(",", ":")).encode()
        partial, path = f"{staged}/record", self._record_path(record.id)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.utime(file.fileno(), ns=(record.import_time, record.import_time))
                os.fsync(file.fileno())
            with self.index.change(add=_entry(record)):
                os.rename(partial, path)
            files.flush_directory(os.path.dirname(path))
        except OSError as error:
            raise StoreError(f"cannot write the record of image {record.id[:19]}: {reason(error)}") from error
        if self.index.lookup(record.manifest.name) is None:
            self.index.rebuild(self._entries)

    def remove(self, image_id: str) -> None:
        """Make the image cease to exist; what it alone needed is garbage for `collect`. Needs the exclusive lock."""
        path = self._record_path(image_id)
        try:
            with self.index.change(remove=image_id):
                os.unlink(path)
            files.flush_directory(os.path.dirname(path))
            if os.path.exists(used := f"{self.root}/{USED}/{image_id}"):
                os.unlink(used)
        except OSError as error:
            raise StoreError(f"cannot remove image {image_id[:19]}: {reason(error)}") from error

    # Removing

    def collect(self, in_use: Collection[str] = ()) -> Collected:
        """Remove what no image needs: layers, blobs, trees, and what interrupted imports left. Layers and trees named
        in `in_use` (by pods) stay. Needs the exclusive lock."""
        records = self.images()
        layers = {name for record in records for name in record.layers}
        trees = set(self._current_trees(records))
        removed: list[str] = []
        kept: list[Kept] = []
        for kind, needed in ((LAYER, layers), (TREE, trees)):
            for name in self._names(kind):
                base = name.partition(_DAMAGED)[0]
                if name in needed:
                    continue
                if base in in_use:
                    kept.append(Kept(f"{kind}/{name}", "a pod uses it"))
                else:
                    self._discard(kind, name)
                    removed.append(f"{kind}/{name}")
        removed.extend(self._collect_blobs({digest for record in records for digest in record.blobs}))
        removed.extend(self._collect_staging())
        self._collect_marks({record.id for record in records})
        return Collected(tuple(removed), tuple(kept))

    def _current_trees(self, records: Iterable[ImageRecord]) -> Iterator[str]:
        """The tree of each image that needs one. Of an image whose dependencies are gone every tree is current."""
        for record in records:
            if record.manifest.dependencies or record.manifest.path_whitelist:
                from aci import tree

                yield from tree.current(self, record, self._names(TREE))

    def _collect_blobs(self, needed: set[str]) -> Iterator[str]:
        for algorithm in self._names(BLOB):
            for digits in self._names(f"{BLOB}/{algorithm}"):
                if f"{algorithm}:{digits}" not in needed:
                    self._remove_tree(f"{BLOB}/{algorithm}", digits)
                    yield f"{BLOB}/{algorithm}/{digits}"

    def _collect_staging(self) -> Iterator[str]:
        for name in self._names(TMP):
            try:
                if locks.is_locked(f"{self.root}/{TMP}/{name}/{_STAGING_LOCK}"):
                    continue
            except OSError:
                pass  # Killed before it had a lock; under the exclusive lock nobody is about to make one.
            self._remove_tree(TMP, name)
            yield f"{TMP}/{name}"

    def _collect_marks(self, existing: set[str]) -> None:
        for name in self._names(USED):
            if name not in existing:
                self._remove_tree(USED, name)

    def _names(self, kind: str) -> list[str]:
        try:
            return sorted(os.listdir(f"{self.root}/{kind}"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {self.root}/{kind}: {reason(error)}") from error

    def _discard(self, kind: str, name: str) -> None:
        """Take the name away first: a directory that is half removed must not be found under it."""
        doomed = f"{name[:32]}-{os.urandom(4).hex()}"
        try:
            os.rename(f"{self.root}/{kind}/{name}", f"{self.root}/{TMP}/{doomed}")
        except OSError as error:
            raise StoreError(f"cannot remove {kind} {name}: {reason(error)}") from error
        self._remove_tree(TMP, doomed)

    def _remove_tree(self, kind: str, name: str) -> None:
        try:
            fd = os.open(f"{self.root}/{kind}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                files.remove_tree(name, dir_fd=fd)
            finally:
                os.close(fd)
        except OSError as error:
            hint = ownership.foreign_files(error)
            raise StoreError(f"cannot remove {self.root}/{kind}/{name}: {reason(error)}", hint=hint) from error


def damaged_name(layer: str) -> str:
    """What a layer found damaged is called once another took its place, for the pods that still have it mounted."""
    return f"{layer}{_DAMAGED}{os.urandom(4).hex()}"


def _fits(has: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(has.get(name, value if name in _PLATFORM_LABELS else None) == value for name, value in wanted.items())


def _entry(record: ImageRecord) -> Entry:
    labels = json.dumps(dict(record.manifest.labels))
    return Entry(record.id, record.manifest.name, labels, record.latest, record.import_time)


def _to_json(record: ImageRecord) -> dict[str, Any]:
    verification = record.verification
    return {
        "version": RECORD_VERSION,
        "id": record.id,
        "format": record.format,
        "layers": record.layers,
        "blobs": record.blobs,
        "size": record.size,
        "importTime": record.import_time,
        "latest": record.latest,
        "verification": None if verification is None else verification._asdict(),
        "manifest": image_manifest.to_json(record.manifest),
    }


def _from_json(image_id: str, value: dict[str, Any], last_used: int) -> ImageRecord:
    if value["version"] != RECORD_VERSION or value["id"] != image_id:
        raise ValueError("it is of another image, or of another version of rkpy")
    verification = value["verification"]
    return ImageRecord(
        id=image_id,
        format=value["format"],
        manifest=image_manifest.from_json(value["manifest"]),
        layers=tuple(value["layers"]),
        blobs=tuple(value["blobs"]),
        size=value["size"],
        import_time=value["importTime"],
        last_used=last_used,
        latest=value["latest"],
        verification=None if verification is None else Verification(**verification),
    )
