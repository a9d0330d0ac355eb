"""Finding one image in an OCI layout (image-spec 1.1) or in what `docker save` writes, and reading what describes it.

Everything small (indexes, manifests, configurations) is read whole, and believed only after its digest and size are
what they were announced to be. Layers are only located here; they are verified while they are copied.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from aci import document, types
from aci.oci_config import name_of
from aci.sources import Archive, Source, Span
from common.errors import ImageError, ManifestError
from common.records import NamedTuple

OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
INDEXES = (f"{OCI}index.v1+json", f"{DOCKER}distribution.manifest.list.v2+json")
MANIFESTS = (f"{OCI}manifest.v1+json", f"{DOCKER}distribution.manifest.v2+json")
CONFIGS = (f"{OCI}config.v1+json", f"{DOCKER}container.image.v1+json")
LAYERS = (
    f"{OCI}layer.v1.tar", f"{OCI}layer.v1.tar+gzip", f"{OCI}layer.v1.tar+zstd",
    f"{DOCKER}image.rootfs.diff.tar", f"{DOCKER}image.rootfs.diff.tar.gzip", f"{DOCKER}image.rootfs.diff.tar.zstd",
)  # fmt: skip
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
"""What containerd and docker write beside REF_NAME, which then holds only the tag."""

DOCUMENT_LIMIT = document.SIZE_LIMIT
MAX_LAYERS = 500
"""As many as overlayfs stacks (fs/overlayfs/ovl_entry.h, OVL_MAX_STACK)."""
_MAX_NESTING = 4
_MAX_CANDIDATES = 1000
_DIGITS = {"sha256": 64, "sha512": 128}


class Descriptor(NamedTuple):
    """A content descriptor (image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str]
    platform: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.annotations.get(FULL_NAME) or self.annotations.get(REF_NAME, "")


class Layer(NamedTuple):
    """One layer of an image, and where its blob lies."""

    digest: str
    diff_id: str
    """Digest of the uncompressed tar."""
    size: int
    """Of the blob, in bytes."""
    span: Span | None
    """None: the blob is not on this host yet."""

    @property
    def name(self) -> str:
        """What the store calls it once unpacked."""
        return self.diff_id.replace(":", "-")


class Image(NamedTuple):
    """One image of a source. `layers` are lowest first."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    config_digest: str
    layers: tuple[Layer, ...]
    reference: str
    """What the source calls it; may be empty."""
    annotations: dict[str, str]

    @property
    def id(self) -> str:
        return types.ID_PREFIX + hashlib.sha512(self.manifest).hexdigest()


Read = Callable[[Descriptor, str], bytes]
"""Gets a small blob, verified; the second argument is what it is to be called in messages."""


# OCI layouts


def find(source: Source, reference: str) -> Image:
    """The image called `reference` (or the only one) for this host's platform. Raises ImageError."""
    index = _read_document(source.span("index.json"), f"{source.name}: index.json")
    candidates = [entry for entry in _manifests(index, f"{source.name}: index.json") if not _is_attachment(entry)]
    named = _called(source, candidates, reference)
    read = partial(read_blob, source)
    chosen = choose(source.name, named, read)
    data = read(chosen, "manifest")
    # An index that was selected by name lends its name to what is in it.
    return image(source.name, data, chosen.digest, chosen.name or named[0].name, read, partial(locate, source))


def choose(name: str, entries: Sequence[Descriptor], read: Read) -> Descriptor:
    """The manifest among `entries`, or inside the indexes among them, that suits this host best. `name` is the
    source's, for messages. Raises ImageError."""
    return _for_host(name, list(_flattened(name, entries, read, 0, set())))


def index_entries(index: bytes, what: str) -> tuple[Descriptor, ...]:
    """What an OCI index or docker manifest list offers, without what build tools put beside images. ImageError."""
    return tuple(entry for entry in _manifests(_decoded(index, what), what) if not _is_attachment(entry))


def media_type(document: bytes, what: str) -> str:
    """What a manifest or an index says it is; OCI lets both leave it out. Raises ImageError."""
    value = _decoded(document, what)
    if value.get("schemaVersion") == 1:
        raise ImageError(
            f"{what}: this is a manifest of docker's old schema 1", hint="push the image again with a newer tool"
        )
    if "manifests" in value and ("layers" in value or "config" in value):
        raise ImageError(f"{what}: this is an index and a manifest at once, and two readers could disagree about it")
    return str(value.get("mediaType") or (INDEXES[0] if "manifests" in value else MANIFESTS[0]))


def parse(manifest: bytes, what: str) -> tuple[Descriptor, tuple[Descriptor, ...], dict[str, str]]:
    """Configuration, layers and annotations of an image manifest; ImageError for anything that is no image."""
    value = _decoded(manifest, what)
    if value.get("schemaVersion") != 2:
        raise ImageError(
            f"{what}: this is not an OCI or docker v2.2 manifest", hint="docker's old schema 1 is not read"
        )
    if value.get("mediaType", MANIFESTS[0]) not in MANIFESTS:
        raise ImageError(f"{what}: media type {_quoted(value['mediaType'])} is not that of an image manifest")
    try:
        config = document.required(value, "config", _descriptor)
        layers: tuple[Descriptor, ...] = document.field(value, "layers", _descriptors, ())
        annotations: dict[str, str] = document.field(value, "annotations", _annotations, {})
    except ManifestError as error:
        raise ImageError(f"{what}: {error.message}") from error
    if config.media_type not in CONFIGS:
        raise ImageError(f"{what}: this is an artifact of type {_quoted(config.media_type)}, not an image to run")
    if not layers:
        raise ImageError(f"{what}: the image has no layers")
    if len(layers) > MAX_LAYERS:
        raise ImageError(f"{what}: the image has more than {MAX_LAYERS} layers")
    for layer in layers:
        _check_layer_type(layer, what)
    return config, layers, annotations


def parse_config(config: bytes, what: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """An image configuration and the diff IDs in it. Raises ImageError."""
    value = _decoded(config, what)
    rootfs = value.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise ImageError(f"{what}: its rootfs is not made of layers")
    try:
        diff_ids = document.required(rootfs, "diff_ids", document.each(_digest))
    except ManifestError as error:
        raise ImageError(f"{what}: rootfs.{error.message}") from error
    if any(not diff_id.startswith("sha256:") for diff_id in diff_ids):
        # The store names layers by them, and sha512 is what it names those of ACIs by.
        raise ImageError(f"{what}: a diff ID is not a sha256 digest, which is all that is understood")
    return value, diff_ids


def read_blob(source: Source, wanted: Descriptor, what: str) -> bytes:
    """A small blob, verified. Raises ImageError."""
    what = f"{source.name}: {what} {wanted.digest[:19]}"
    data = locate(source, wanted).read(DOCUMENT_LIMIT, what)
    check_digest(data, wanted.digest, what)
    return data


def locate(source: Source, wanted: Descriptor) -> Span:
    """Where a blob lies; its size is right, its content is not verified yet."""
    algorithm, _, digits = wanted.digest.partition(":")
    span = source.span(f"blobs/{algorithm}/{digits}")
    if span.size != wanted.size:
        raise ImageError(
            f"{source.name}: blob {wanted.digest[:19]} has {span.size} bytes, the manifest announces {wanted.size}"
        )
    return span


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Raises ImageError unless `digest` is that of `data`."""
    algorithm, _, digits = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != digits:
        raise ImageError(f"{what} is damaged: its content does not have that digest")


def image(
    name: str,
    manifest: bytes,
    digest: str,
    reference: str,
    read: Read,
    find_layer: Callable[[Descriptor], Span | None],
) -> Image:
    """The image with that manifest, whose digest has been checked. `name` is the source's, for messages; `find_layer`
    says where a layer lies, if it is here. Raises ImageError."""
    what = f"{name}: manifest {digest[:19]}"
    wanted, layers, annotations = parse(manifest, what)
    config = read(wanted, "image configuration")
    _, diff_ids = parse_config(config, f"{name}: image configuration {wanted.digest[:19]}")
    if len(diff_ids) != len(layers):
        raise ImageError(f"{what} has {len(layers)} layers, but its configuration has {len(diff_ids)}")
    found = tuple(
        Layer(layer.digest, diff_id, layer.size, find_layer(layer))
        for layer, diff_id in zip(layers, diff_ids, strict=True)
    )
    return Image(manifest, digest, config, wanted.digest, found, reference, annotations)


def _called(source: Source, candidates: list[Descriptor], reference: str) -> list[Descriptor]:
    """The entries that `reference` means: several are one image for several platforms."""
    if not candidates:
        raise ImageError(f"{source.name}: there is no image in it")
    names = sorted({entry.name for entry in candidates if entry.name})
    hint = f"there is: {', '.join(names)}" if names else "none has a name"
    if reference:
        found = [entry for entry in candidates if _matches(entry, reference, source.name)]
        if not found:
            raise ImageError(f"{source.name}: there is no image {_quoted(reference)} in it", hint=hint)
        return found
    if len({entry.name for entry in candidates}) > 1 and len({entry.digest for entry in candidates}) > 1:
        raise ImageError(
            f"{source.name}: there are {len(candidates)} images in it, and none is named", hint=f"name one; {hint}"
        )
    return candidates


def _matches(entry: Descriptor, reference: str, path: str) -> bool:
    if reference in (entry.name, entry.annotations.get(REF_NAME), entry.digest):
        return True
    return bool(entry.name) and name_of(entry.name, path)[:2] == name_of(reference, path)[:2]


def _flattened(
    name: str, entries: Sequence[Descriptor], read: Read, depth: int, seen: set[str]
) -> Iterator[Descriptor]:
    """The manifests among `entries` and in the indexes among them. Each index is read once, and its digest goes into
    `seen`: a few that name each other a thousand times over come to billions of entries."""
    if depth > _MAX_NESTING or len(entries) > _MAX_CANDIDATES:
        raise ImageError(f"{name}: its indexes are nested too deeply or too large")
    for entry in entries:
        if entry.digest in seen:
            continue
        if entry.media_type in INDEXES:
            seen.add(entry.digest)
            inner = index_entries(read(entry, "index"), f"{name}: index {entry.digest[:19]}")
            yield from _flattened(name, inner, read, depth + 1, seen)
        elif entry.media_type in MANIFESTS:
            yield entry
        else:
            raise ImageError(
                f"{name}: media type {_quoted(entry.media_type)} is not that of an image",
                hint="docker's old schema 1, artifacts and signatures are not read",
            )


def _for_host(name: str, entries: list[Descriptor]) -> Descriptor:
    ranked = [(rank, entry) for entry in entries if (rank := _rank(entry.platform)) is not None]
    if not ranked:
        system, arch = types.host_platform()
        there = ", ".join(sorted({_platform_text(entry.platform) for entry in entries})) or "nothing"
        raise ImageError(f"{name}: no image for {system}/{arch} in it", hint=f"there is: {there}")
    best = max(rank for rank, _ in ranked)
    chosen = {entry.digest: entry for rank, entry in ranked if rank == best}
    if len(chosen) > 1:
        raise ImageError(
            f"{name}: there are {len(chosen)} images for this host in it, and nothing tells them apart",
            hint=f"give the digest of one: {', '.join(sorted(chosen))}",
        )
    return next(iter(chosen.values()))


def _rank(platform: dict[str, Any] | None) -> int | None:
    """How well an image for `platform` suits this host; None when it cannot run. One that does not say is a guess."""
    if not platform or not platform.get("architecture"):
        return 0
    variant = str(platform.get("variant") or "")
    arch = str(platform["architecture"])
    try:
        found = types.platform_from_go(str(platform.get("os") or "linux"), arch, "" if arch != "arm" else variant)
    except ManifestError:
        return None
    host = types.host_platform()
    if arch == "amd64" and found == host:
        level = int(variant[1:]) if variant in ("v2", "v3", "v4") else 1
        return level if level <= _amd64_level() else None
    if found == host:
        return 2
    arm = {"armv6l": ("armv6l",), "armv7l": ("armv7l", "armv6l")}
    return 1 if host[0] == found[0] and found[1] in arm.get(host[1], ()) else None


_AMD64_LEVELS = (
    {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
)
"""What v2, v3 and v4 of the x86-64 psABI add, as /proc/cpuinfo calls it."""


def _amd64_level() -> int:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return 1
    level = 1
    for needed in _AMD64_LEVELS:
        if not needed <= flags:
            break
        level += 1
    return level


def _platform_text(platform: dict[str, Any] | None) -> str:
    fields = [str((platform or {}).get(key) or "") for key in ("os", "architecture", "variant")]
    return "/".join(field for field in fields if field.isprintable() and field) or "an unknown platform"


def _is_attachment(entry: Descriptor) -> bool:
    """What build tools put beside images: attestations (platform unknown/unknown) and signatures."""
    unknown = bool(entry.platform) and (entry.platform or {}).get("architecture") == "unknown"
    return unknown or "vnd.docker.reference.type" in entry.annotations


def _check_layer_type(layer: Descriptor, what: str) -> None:
    kind = layer.media_type
    if kind in LAYERS:
        return
    if "encrypted" in kind:
        raise ImageError(f"{what}: a layer is encrypted ({_quoted(kind)}), and there is no key to it here")
    if "foreign" in kind or "nondistributable" in kind:
        raise ImageError(f"{what}: a layer is not in the image but must be fetched elsewhere ({_quoted(kind)})")
    raise ImageError(f"{what}: a layer has the unknown media type {_quoted(kind)}")


def _manifests(index: dict[str, Any], what: str) -> tuple[Descriptor, ...]:
    if index.get("schemaVersion") != 2:
        raise ImageError(f"{what}: this is not an OCI image index")
    try:
        return document.required(index, "manifests", _descriptors)
    except ManifestError as error:
        raise ImageError(f"{what}: {error.message}") from error


def _annotations(value: Any) -> dict[str, str]:
    return dict(document.texts(value))


def _descriptors(value: Any) -> tuple[Descriptor, ...]:
    return document.each(_descriptor)(value)


def _descriptor(value: Any) -> Descriptor:
    if not isinstance(value, dict):
        raise document.expected("an object", value)
    platform = value.get("platform")
    return Descriptor(
        media_type=document.required(value, "mediaType", document.word),
        digest=document.required(value, "digest", _digest),
        size=document.required(value, "size", document.integer(0, 1 << 50)),
        annotations=document.field(value, "annotations", _annotations, {}),
        platform=platform if isinstance(platform, dict) else None,
    )


def _digest(value: Any) -> str:
    text = document.text(value)
    algorithm, _, digits = text.partition(":")
    if len(digits) != _DIGITS.get(algorithm) or digits.strip("0123456789abcdef"):
        raise ManifestError(f"{_quoted(text)} is not a sha256 or sha512 digest")
    return text


def _read_document(span: Span, what: str) -> dict[str, Any]:
    return _decoded(span.read(DOCUMENT_LIMIT, what), what)


def _decoded(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = document.decode(data)
    except ManifestError as error:
        raise ImageError(f"{what} {error.message}") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return value


def _quoted(text: Any) -> str:
    return types.quote(str(text))


# What `docker save` and `podman save` write


def find_saved(archive: Archive, reference: str) -> Image:
    """As `find`, in an archive with docker's manifest.json. There is no OCI manifest in it, so one is made: always the
    same for the same configuration and layers."""
    what = f"{archive.name}: manifest.json"
    entry = _saved_entry(archive, reference, what)
    config_path, config = _saved_config(archive, entry, what)
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    _check_config_name(config_path, digest, archive.name)
    _, diff_ids = parse_config(config, f"{archive.name}: {config_path}")
    try:
        paths = document.required(entry, "Layers", document.each(document.word))
    except ManifestError as error:
        raise ImageError(f"{what}: {error.message}") from error
    if len(paths) != len(diff_ids) or not 0 < len(paths) <= MAX_LAYERS:
        raise ImageError(f"{what}: {len(paths)} layers are listed, but the configuration has {len(diff_ids)}")
    layers, types_ = [], []
    for path, diff_id in zip(paths, diff_ids, strict=True):
        span = archive.span(archive.follow(path))
        compression, blob = _saved_layer(span, diff_id)
        layers.append(Layer(blob, diff_id, span.size, span))
        types_.append(LAYERS[0] + compression)
    manifest = _made_manifest(digest, len(config), layers, types_)
    made = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return Image(manifest, made, config, digest, tuple(layers), _saved_name(entry, reference), {})


def _saved_entry(archive: Archive, reference: str, what: str) -> dict[str, Any]:
    data = archive.span("manifest.json").read(DOCUMENT_LIMIT, what)
    try:
        entries = document.decode(data)
    except ManifestError as error:
        raise ImageError(f"{what} {error.message}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ImageError(f"{what} is not a list of images")
    names = ", ".join(sorted(tag for entry in entries for tag in _tags(entry))) or "none has a name"
    if reference:
        wanted = name_of(reference, archive.name, docker=True)[:2]
        found = [
            entry
            for entry in entries
            if any(name_of(tag, archive.name, docker=True)[:2] == wanted for tag in _tags(entry))
        ]
        if not found:
            raise ImageError(f"{archive.name}: there is no image {_quoted(reference)} in it", hint=f"there is: {names}")
        entries = found
    if len(entries) > 1:
        raise ImageError(
            f"{archive.name}: there are {len(entries)} images in it, and none is named", hint=f"name one: {names}"
        )
    entry: dict[str, Any] = entries[0]
    return entry


def _tags(entry: dict[str, Any]) -> list[str]:
    tags = entry.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str) and tag] if isinstance(tags, list) else []


def _saved_name(entry: dict[str, Any], reference: str) -> str:
    tags = _tags(entry)
    return reference or (tags[0] if tags else "")


def _saved_config(archive: Archive, entry: dict[str, Any], what: str) -> tuple[str, bytes]:
    try:
        path = document.required(entry, "Config", document.word)
    except ManifestError as error:
        raise ImageError(f"{what}: {error.message}") from error
    path = archive.follow(path)
    return path, archive.span(path).read(DOCUMENT_LIMIT, f"{archive.name}: image configuration")


def _check_config_name(path: str, digest: str, archive: str) -> None:
    """All tools name the configuration by its digest; where they do, it has to be right."""
    digits = posixpath.basename(path).removesuffix(".json")
    if len(digits) == 64 and not digits.strip("0123456789abcdef") and f"sha256:{digits}" != digest:
        raise ImageError(f"{archive}: image configuration {digits[:12]} is damaged: its content has another digest")


def _saved_layer(span: Span, diff_id: str) -> tuple[str, str]:
    """Suffix of the media type, and digest of the blob. An uncompressed layer's digest is its diff ID, which is held
    against the content when that is copied."""
    head = span.head(4)
    suffix = "+gzip" if head[:2] == b"\x1f\x8b" else "+zstd" if head == b"\x28\xb5\x2f\xfd" else ""
    if not suffix:
        return suffix, diff_id
    digest = hashlib.sha256()
    for start in range(0, span.size, 1 << 20):
        piece = Span(span.fd, span.offset + start, min(1 << 20, span.size - start))
        digest.update(piece.read(1 << 20, "a layer"))
    return suffix, f"sha256:{digest.hexdigest()}"


def _made_manifest(config: str, config_size: int, layers: Sequence[Layer], media_types: Sequence[str]) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": {"mediaType": CONFIGS[0], "digest": config, "size": config_size},
        "layers": [
            {"mediaType": kind, "digest": layer.digest, "size": layer.size}
            for layer, kind in zip(layers, media_types, strict=True)
        ],
    }
    return json.dumps(value, separators=(",", ":")).encode()
