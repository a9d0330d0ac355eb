"""From an image argument to an image in the store: look it up, or verify and import it.

The order is the point: the bytes are staged where nobody else can change them, their signature is checked, the signer
is checked against the name inside, and only then is anything unpacked.
"""

from __future__ import annotations

import os

from aci.store import ImageRecord, Store, Verification
from common.errors import ImageError, TrustError, UsageError
from stage0 import reference
from stage0.config import Config
from stage0.grammar import ImageArguments
from stage0.notices import warn
from stage0.options import Values
from stage0.reference import Reference

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


def image(config: Config, store: Store, arguments: ImageArguments, policy: str) -> ImageRecord:
    """The stored image that `arguments` names, imported first when it is a file. Marks it as used now.

    Raises UsageError, ImageError, TrustError or StoreError."""
    wanted = reference.parse(arguments.reference)
    signature = arguments.flags.get("signature")
    if wanted.kind == "id":
        record = store.find_by_id(wanted.value)
    elif wanted.kind == "name":
        record = _by_name(store, wanted, arguments.reference)
    elif wanted.kind == "remote" and wanted.value.startswith("docker:"):
        return _from_registry(config, store, wanted.value, policy)
    elif wanted.kind == "remote":
        raise UsageError(
            f"{arguments.reference}: this version fetches from files only",
            hint="save the image with `skopeo copy … oci-archive:FILE` and give oci-archive:FILE",
        )
    else:
        return _import(config, store, wanted, signature)
    if signature is not None:
        raise UsageError(f"--signature={signature}: {arguments.reference} is in the store already")
    store.touch(record.id)
    return record


def _from_registry(config: Config, store: Store, text: str, policy: str) -> ImageRecord:
    """The image `docker://…`, from the store as far as `policy` and the registry allow that."""
    import gc

    from stage0 import docker_reference, registry

    gc.enable()  # `rkpy.main` switched it off, but a download may run for long.
    wanted = docker_reference.parse(text)
    if "image" not in config.insecure:
        raise TrustError(
            f"{wanted}: this version cannot verify images of registries", hint="--insecure-options=image does without"
        )
    name = registry.image_name(wanted)
    labels = reference.wanted_labels(Reference("name", name.name, labels=(("version", name.version),)))
    record = None if policy == "update" else store.find(name.name, labels)
    if record is None and policy == "never":
        raise ImageError(f"{wanted} is not in the store", hint="fetch it first, or leave out the pull policy never")
    if record is None:
        client = registry.Client(config)
        record = registry.stored(client, store, wanted) if policy == "update" else None
        record = record or registry.pull(client, store, client.resolve(wanted), authorize=lambda name: None, warn=warn)
    store.touch(record.id)
    return record


def _by_name(store: Store, wanted: Reference, text: str) -> ImageRecord:
    record = store.find(wanted.value, reference.wanted_labels(wanted))
    if record is None:
        hint = "fetch it from a file first: `rkpy fetch FILE`"
        if len(wanted.value) >= 8 and set(wanted.value) <= set("0123456789abcdef-"):
            hint = "this looks like a pod's UUID; see `rkpy list` and `rkpy run-prepared`"
        raise ImageError(f'discovery failed: no image "{text}" in the store', hint=hint)
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


def _signature_beside(path: str, kind: str) -> str:
    """Where the signature of `path` is expected: next to the file, or next to a layout's index.json, whose digests
    cover all the rest."""
    return f"{path}/index.json.asc" if kind == "oci-layout" else f"{path}.asc"


def _verified(config: Config, store: Store, kind: str, wanted: Reference, signature: str) -> ImageRecord:
    from aci import importer
    from stage0 import verify
    from stage0.keystore import Keystore

    keystore = Keystore(config.local_config, config.system_config)
    verify.read_signatures(signature)  # a missing signature is no reason to copy the image first
    with store.staging() as staged:
        copy = importer.stage(wanted.value, staged, kind)
        signed = f"{copy}/index.json" if kind == "oci-layout" else copy
        signatures = verify.verify_detached(keystore, signed, signature, called=wanted.value)

        def authorize(name: str) -> Verification:
            return verify.require_trusted(keystore, signatures, name)

        return importer.import_image(store, copy, format=kind, reference=wanted.image, authorize=authorize, warn=warn)
