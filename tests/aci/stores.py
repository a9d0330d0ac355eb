"""Stores and records for tests that need no real image."""

from __future__ import annotations

import os
import time
from typing import Any

from aci import image_manifest
from aci.store import ImageRecord, Store
from tests import images


def record(digit: str = "a", name: str = "example.com/app", version: str = "1", **fields: Any) -> ImageRecord:
    """A record of an image with the ID `digit` × 128; `fields` replace those of the record."""
    made = ImageRecord(
        id=f"sha512-{digit * 128}"[:135],
        format="aci",
        manifest=image_manifest.from_json(images.manifest(name, version)),
        layers=(f"sha512-{digit * 128}"[:135],),
        blobs=(f"sha256:{digit * 64}"[:71],),
        size=1000,
        import_time=time.time_ns(),
        last_used=0,
        latest=False,
        verification=None,
    )
    return made._replace(**fields)


def put(store: Store, *records: ImageRecord) -> None:
    """Store records with an empty directory for each layer and an empty file for each blob."""
    with store.staging() as staged:
        for item in records:
            for layer in item.layers:
                os.makedirs(store.layer_path(layer), exist_ok=True)
            for blob in item.blobs:
                os.makedirs(os.path.dirname(store.blob_path(blob)), exist_ok=True)
                open(store.blob_path(blob), "w").close()
            store.add(item, staged)
