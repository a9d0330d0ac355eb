"""From an image argument to an image in the store: look it up, or verify and import it.

The order is the point: the bytes are staged where nobody else can change them, their signature is checked, the signer
is checked against the name inside, and only then is anything unpacked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aci.store import ImageRecord, Store, Verification
from common.errors import ImageError, TrustError, UsageError
from stage0 import announce, reference
from stage0.config import Config
from stage0.grammar import ImageArguments
from stage0.notices import warn
from stage0.options import Values
from stage0.reference import Reference

if TYPE_CHECKING:
    from stage0.keystore import Keystore
    from stage0.progress import Progress

POLICIES = ("new", "never", "update")


def pull_policy(flags: Values, default: str) -> str:
    """The pull policy the flags come to: "new", "never" or "update". Raises UsageError."""
    store_only, no_store = flags.boolean("store-only"), flags.boolean("no-store")
    if store_only and no_store:
        raise UsageError("both --store-only and --no-store are given")
    policy = "never" if store_only else "update" if no_store else flags.get("pull-policy") or default
    if policy not in POLICIES:
        raise UsageError(f"--pull-policy={policy}: not one of {', '.join(POLICIES)}")
    return policy


def image(config: Config, store: Store, arguments: ImageArguments, policy: str, *, quiet: bool = False) -> ImageRecord:
    """The stored image that `arguments` names, fetched first when that is needed. Marks it as used now.

    Raises UsageError, ImageError, TrustError, StoreError or FetchError."""
    try:
        return _image(config, store, arguments, policy, quiet)
    except TrustError as error:
        from stage0 import events, http

        events.refused(http.shown(arguments.reference), error)  # it may be an address
        raise


def _image(config: Config, store: Store, arguments: ImageArguments, policy: str, quiet: bool) -> ImageRecord:
    wanted = reference.parse(arguments.reference)
    signature = arguments.flags.get("signature")
    if wanted.kind in reference.FILES:
        from stage0 import events

        announce.status(f"importing {arguments.reference}")
        imported = _import(config, store, wanted, signature)
        events.fetched(imported, wanted.value)
        if imported.manifest.dependencies:
            _fetch_dependencies(config, store, imported, policy, quiet)
        return imported
    record = _stored(store, wanted) if wanted.kind == "id" or policy != "update" else None
    if record is None:
        with _progress(quiet) as progress:
            return _fetch(config, store, wanted, arguments, policy, progress)
    if signature is not None:
        raise UsageError(f"--signature={signature}: {arguments.reference} is in the store already")
    store.touch(record.id)
    return record


def _stored(store: Store, wanted: Reference) -> ImageRecord | None:
    """What the store has for an ID or a name; None for a name it does not know."""
    if wanted.kind == "id":
        return store.find_by_id(wanted.value)
    if wanted.kind == "name":
        return store.find(wanted.value, reference.wanted_labels(wanted))
    if wanted.kind == "docker":
        from stage0 import docker_reference

        asked = docker_reference.parse(wanted.value)
        name = docker_reference.image_name(asked)
        record = store.find(name.name, reference.platform_labels() | {"version": name.version})
        return record if record is None or not asked.digest or _is(record, asked.digest) else None
    return None


def _is(record: ImageRecord, digest: str) -> bool:
    """Whether `digest` is that of the image, or of the index it was chosen from: a name with a tag and a digest is
    looked up by its tag, which may have meant something else when the image was stored."""
    from aci.oci_config import ANNOTATION  # not stage0.registry: that would bring the HTTP client into `run`

    return digest in (dict(record.manifest.annotations).get(f"{ANNOTATION}digest"), *record.blobs[:1])


def _progress(quiet: bool) -> Progress:
    from stage0.progress import Progress

    return Progress(quiet=quiet)


def _fetch(
    config: Config, store: Store, wanted: Reference, arguments: ImageArguments, policy: str, progress: Progress
) -> ImageRecord:
    """Get the image from where it is published."""
    import gc

    from stage0 import keystore as keystores
    from stage0 import remote

    if policy == "never":
        raise ImageError(f"{arguments.reference} is not in the store", hint="--pull-policy=never forbids fetching")
    if wanted.kind == "name" and looks_like_uuid(wanted.value):
        hint = "this looks like a pod's UUID; see `rkpy list` and `rkpy run-prepared`"
        raise ImageError(f'discovery failed: no image "{wanted.value}" in the store', hint=hint)
    gc.enable()  # `rkpy.main` switched it off, but a fetch may run for long.
    announce.status(f"fetching {arguments.reference}")
    keystore = keystores.of(config)
    signature = arguments.flags.get("signature") or ""
    if wanted.kind == "docker":
        return _pull(config, store, keystore, wanted.value, signature, progress)
    return remote.fetch_aci(
        config,
        store,
        keystore,
        wanted,
        policy=policy,
        signature=signature,
        say=progress.say,
        warn=warn,
        on_progress=progress.of(arguments.reference),
    )


def looks_like_uuid(text: str) -> bool:
    return len(text) >= 8 and set(text) <= set("0123456789abcdef-")


def _is_trusted(keystore: Keystore, record: ImageRecord) -> bool:
    """Whether a stored image was verified, by a key that is still trusted for its name."""
    if record.verification is None:
        return False
    name = record.manifest.name
    trusted = {key.fingerprint for _, key in keystore.trusted_for(name)}
    trusted |= {key.fingerprint for _, key in keystore.cosign_trusted_for(name)}
    return record.verification.fingerprint in trusted


def _pull(
    config: Config, store: Store, keystore: Keystore, text: str, signature: str, progress: Progress
) -> ImageRecord:
    """An image of a registry. The order is the point: what the name means, who signed that, and then its layers."""
    from stage0 import docker_reference, events, http, registry
    from stage0.image_signatures import authorize_registry_image

    if signature:
        raise UsageError(
            f"--signature={signature}: signatures of registry images are looked for beside the image",
            hint="see docs/trust.md: cosign, or simple signing by registries.d",
        )
    asked = docker_reference.parse(text)
    client = registry.Client(config)
    unverified = "image" in config.insecure
    record = registry.stored(client, store, asked)
    if record is None or not (unverified or _is_trusted(keystore, record)):
        resolved = client.resolve(asked)
        verification = None
        if not unverified:
            verification = authorize_registry_image(config, keystore, client, resolved, http.Client(config))
        progress.say(f"fetching {resolved.reference}")
        record = registry.pull(
            client, store, resolved, authorize=lambda name: verification, progress=progress.layer, warn=warn
        )
        events.fetched(record, str(resolved.reference))
    store.touch(record.id)
    return record


def _import(config: Config, store: Store, wanted: Reference, signature: str | None) -> ImageRecord:
    import gc

    from aci import importer

    gc.enable()  # `rkpy.main` switched it off, but an import may run for long.
    path = wanted.value
    if not os.path.exists(path):
        raise ImageError(f"open {path}: no such file or directory")
    kind = importer.sniff(path) if wanted.kind == "file" else wanted.kind
    if "image" in config.insecure:
        return importer.import_image(
            store, path, format=kind, reference=wanted.image, authorize=lambda name: None, warn=warn
        )
    return _verified(config, store, kind, wanted, signature or _signature_beside(path, kind))


def _fetch_dependencies(config: Config, store: Store, record: ImageRecord, policy: str, quiet: bool) -> None:
    """What the store has will do, even where `policy` would ask for something newer of the image itself: whoever hands
    out files may never have published what they build upon."""
    from stage0 import keystore as keystores
    from stage0 import remote

    keystore = keystores.of(config)
    with _progress(quiet) as progress:
        remote.fetch_dependencies(
            config,
            store,
            keystore,
            record.manifest,
            policy="never" if policy == "never" else "new",
            say=progress.say,
            warn=warn,
        )


def _signature_beside(path: str, kind: str) -> str:
    """Where the signature of `path` is expected: next to the file, or next to a layout's index.json, whose digests
    cover all the rest."""
    return f"{path}/index.json.asc" if kind == "oci-layout" else f"{path}.asc"


def _verified(config: Config, store: Store, kind: str, wanted: Reference, signature: str) -> ImageRecord:
    from aci import importer
    from stage0 import keystore as keystores
    from stage0 import verify

    keystore = keystores.of(config)
    verify.read_signatures(signature)  # a missing signature is no reason to copy the image first
    with store.staging() as staged:
        copy = importer.stage(wanted.value, staged, kind)
        signed = f"{copy}/index.json" if kind == "oci-layout" else copy
        signatures = verify.verify_detached(keystore, signed, signature, called=wanted.value)

        def authorize(name: str) -> Verification:
            return verify.require_trusted(keystore, signatures, name)

        return importer.import_image(store, copy, format=kind, reference=wanted.image, authorize=authorize, warn=warn)
