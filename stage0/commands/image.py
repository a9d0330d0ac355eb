"""`rkpy image …`: what is in the store, and taking it out again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from aci import image_manifest, types
from aci.store import ImageRecord, Store
from common.errors import EXIT_FAILURE, ImageError, ManifestError, RkpyError, StoreError, UsageError
from stage0 import events, flags, podneeds, reference, render, rootless
from stage0.config import Config
from stage0.podneeds import Needs
from stage0.pods import Pods

SHORT_ID = len(types.ID_PREFIX) + 12

_COLUMNS: dict[str, tuple[str, Callable[[ImageRecord, bool], str]]] = {
    "id": ("ID", lambda record, full: record.id if full else record.id[:SHORT_ID]),
    "name": ("NAME", lambda record, full: _name(record)),
    "size": ("SIZE", lambda record, full: str(record.size) if full else render.human_size(record.size)),
    "importtime": ("IMPORT TIME", lambda record, full: _time(record.import_time, full)),
    "lastused": ("LAST USED", lambda record, full: _time(_last_used(record), full)),
    "latest": ("LATEST", lambda record, full: "true" if record.latest else "false"),
    "format": ("FORMAT", lambda record, full: record.format),
    "signed": ("SIGNED", lambda record, full: _signer(record)),
}
_DEFAULT_FIELDS = "id,name,size,importtime,lastused"
_KEYS: dict[str, Callable[[ImageRecord], Any]] = {
    "name": lambda record: _name(record),
    "importtime": lambda record: record.import_time,
    "lastused": lambda record: _last_used(record),
    "size": lambda record: record.size,
}


def find(store: Store, argument: str) -> ImageRecord:
    """The image an argument of these commands means: an ID or its beginning, or a name with labels."""
    if argument.startswith(types.ID_PREFIX):
        return store.find_by_id(argument)
    name, labels = reference.app_name(argument)
    record = store.find(name, labels)
    if record is None:
        raise StoreError(f'no image "{argument}" in the store', hint="see `rkpy image list`")
    return record


# image list


@click.command("list")
@click.option("--fields", default=_DEFAULT_FIELDS, show_default=True, help=f"columns, of: {', '.join(_COLUMNS)}")
@click.option("--sort", default="importtime", show_default=True, help=f"fields to sort by, of: {', '.join(_KEYS)}")
@click.option("--order", type=click.Choice(["asc", "desc"]), default="asc", show_default=True, help="order of the sort")
@flags.switch("--no-legend", "leave out the header")
@flags.switch("--full", "whole IDs, bytes and times")
@click.option("--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead")
@click.pass_obj
def list_images(config: Config, fields: str, sort: str, order: str, no_legend: bool, full: bool, form: str) -> None:
    """List images in the local store."""
    columns = _chosen(fields, _COLUMNS, "--fields")
    keys = _chosen(sort, _KEYS, "--sort")
    records = Store(config.store).images()
    records.sort(key=lambda record: (*(_KEYS[key](record) for key in keys), record.id), reverse=order == "desc")
    if form:
        render.write_json([_to_json(record) for record in records], pretty=form == "json-pretty")
        return
    rows = [] if no_legend else [[_COLUMNS[column][0] for column in columns]]
    rows.extend([_COLUMNS[column][1](record, full) for column in columns] for record in records)
    click.echo(render.table(rows), nl=False)


def _chosen(text: str, known: dict[str, Any], flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f'{flag}: unknown field "{name}"', hint=f"there is: {', '.join(known)}")
    if not names:
        raise UsageError(f"{flag}: no field is named", hint=f"there is: {', '.join(known)}")
    return names


def _name(record: ImageRecord) -> str:
    version = record.manifest.label("version")
    return record.manifest.name if version is None else f"{record.manifest.name}:{version}"


def _last_used(record: ImageRecord) -> int:
    return record.last_used or record.import_time


def _time(ns: int, full: bool) -> str:
    return render.timestamp(ns) if full else render.ago(ns)


def _signer(record: ImageRecord) -> str:
    return "no" if record.verification is None else record.verification.signer


def _to_json(record: ImageRecord) -> dict[str, Any]:
    """rkt's keys in rkt's order, then our own."""
    value: dict[str, Any] = {
        "id": record.id,
        "name": _name(record),
        "import_time": record.import_time,
        "last_used_time": _last_used(record),
        "size": record.size,
        "latest": record.latest,
        "format": record.format,
    }
    if record.verification is not None:
        value["verification"] = record.verification._asdict()
    return value


# image cat-manifest


@click.command("cat-manifest")
@flags.switch("--pretty-print", "indent the manifest", default="true")
@click.argument("image")
@click.pass_obj
def cat_manifest(config: Config, image: str, pretty_print: bool) -> None:
    """Inspect and print the image manifest."""
    record = find(Store(config.store), image)
    click.echo(image_manifest.dumps(record.manifest, pretty=pretty_print))


# image rm


@click.command("rm")
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.pass_obj
def rm(config: Config, images: tuple[str, ...]) -> int:
    """Remove one or more images with the given IDs or image names from the local store.

    What other images or pods still need of an image stays in the store; `image gc` removes it when they are gone.
    """
    rootless.become_root()
    if not images:
        raise UsageError("must provide at least one image ID or name")
    store = Store(config.store)
    with store.lock(exclusive=True):
        found, failed = _to_remove(store, images)
        for image_id in found:
            _remove(store, image_id, _name_of(store, image_id), "somebody asked for it")
        if found:
            needs = podneeds.read(Pods(config.pods))
            for kept in store.collect(needs.layers).kept:
                _notice("rm", _kept_line(kept.name, kept.why, needs))
            _notice("rm", f"{len(found)} image(s) successfully removed")
        elif not failed:
            _notice("rm", "no image IDs found")
    return EXIT_FAILURE if failed else 0


def _to_remove(store: Store, images: tuple[str, ...]) -> tuple[list[str], bool]:
    """Full IDs, each once. An image that is not there has as good as been removed; rkt thought so as well."""
    found: list[str] = []
    failed = False
    for image in images:
        try:
            # Without reading the record: one that is damaged can be removed all the same.
            image_id = store.resolve(image) if image.startswith(types.ID_PREFIX) else find(store, image).id
            if image_id not in found:
                found.append(image_id)
        except StoreError as error:
            failed = failed or "ambiguous" in error.message
            _notice("rm", str(error))
        except RkpyError as error:
            failed = True
            _notice("rm", str(error))
    return found, failed


def _name_of(store: Store, image_id: str) -> str:
    """Empty for an image whose record is damaged."""
    try:
        return _name(store.get(image_id))
    except RkpyError:
        return ""


def _remove(store: Store, image_id: str, name: str, why: str) -> None:
    store.remove(image_id)
    events.removed(image_id, name, why)
    click.echo(f'successfully removed aci for image: "{image_id}"')


# image gc


@click.command("gc")
@click.option(
    "--grace-period",
    type=flags.duration,
    default="24h",
    show_default=True,
    help="how long an image may go unused before it is removed",
)
@click.pass_obj
def gc(config: Config, grace_period: int) -> None:
    """Garbage collect local store.

    Removes images that have not been used for longer than the grace period, and files no image or pod needs. Says of
    everything else why it stays.
    """
    rootless.become_root()
    store = Store(config.store)
    with store.lock(exclusive=True):
        needs = podneeds.read(Pods(config.pods))
        records = store.images()
        kept = _reasons(store, records, needs, grace_period)
        removed = [record for record in records if record.id not in kept]
        for record in removed:
            _remove(store, record.id, _name(record), f"not used since {render.timestamp(_last_used(record))}")
        collected = store.collect(needs.layers)
    for name in collected.removed:
        click.echo(f"removed {name}")
    for record in records:
        if record.id in kept:
            _notice("gc", f"kept image {record.id[:SHORT_ID]} ({_name(record)}): {kept[record.id]}")
    for one in collected.kept:
        _notice("gc", _kept_line(one.name, one.why, needs))
    files = len(collected.removed)
    _notice(
        "gc", f"{len(removed)} image(s) removed, {len(kept)} kept; {files} unneeded file(s) and directories removed"
    )


def _reasons(store: Store, records: list[ImageRecord], needs: Needs, grace: int) -> dict[str, str]:
    """Why each image that stays does, by ID."""
    now = time.time_ns()
    kept: dict[str, str] = {}
    for record in records:
        if (uuid := needs.images.get(record.id)) is not None:
            kept[record.id] = f"pod {uuid[:8]} needs it"
        elif now - _last_used(record) < grace:
            kept[record.id] = f"used {render.ago(_last_used(record), now)}, within the grace period"
    waiting = [record for record in records if record.id in kept]
    while waiting:
        record = waiting.pop()
        for needed in _dependencies(store, record):
            if needed.id not in kept:
                kept[needed.id] = f"image {record.id[:SHORT_ID]} ({_name(record)}) depends on it"
                waiting.append(needed)
    return kept


def _dependencies(store: Store, record: ImageRecord) -> list[ImageRecord]:
    if not record.manifest.dependencies:
        return []
    from aci.tree import dependency_of

    found = []
    for dependency in record.manifest.dependencies:
        try:
            found.append(dependency_of(store, record, dependency))
        except ImageError:
            continue  # What is not there need not be kept.
    return found


def _kept_line(name: str, why: str, needs: Needs) -> str:
    base = name.partition("/")[2].partition(".")[0]
    uuid = needs.layers.get(base)
    return f"kept {name}: " + (f"pod {uuid[:8]} uses it" if uuid else why)


# image verify


@click.command("verify")
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.pass_obj
def verify(config: Config, images: tuple[str, ...]) -> int:
    """Verify one or more rendered images in the local store.

    Compares every stored file of the images with their digests. Files that differ are made anew from the image's blobs;
    when a blob itself is damaged the image has to be fetched again.
    """
    rootless.become_root()
    if not images:
        raise UsageError("must provide at least one image ID or name")
    from aci import check

    store = Store(config.store)
    failed = False
    with store.lock():
        for image in images:
            try:
                record = find(store, image)
                for repair in check.verify(store, record):
                    _notice("verify", f"layer {repair.layer[:SHORT_ID]} was damaged and has been unpacked again:")
                    for difference in repair.differences:
                        _notice("verify", f"  {difference}")
                click.echo(f'successfully verified checksum for image: "{record.id}"')
            except (StoreError, ImageError, ManifestError) as error:
                failed = True
                _notice("verify", str(error))
    return EXIT_FAILURE if failed else 0


def _notice(verb: str, text: str) -> None:
    click.echo(f"rkpy: image {verb}: {text}", err=True)
