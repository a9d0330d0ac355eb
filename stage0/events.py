"""What the engine records in the journal of what it does, where there is one (`common.journal`)."""

from __future__ import annotations

from aci.store import ImageRecord
from common import journal
from common.errors import TrustError


def fetched(record: ImageRecord, source: str) -> None:
    """An image has come into the store from `source`: a file, an address or a name in a registry."""
    about = {"RKPY_IMAGE_ID": record.id, "RKPY_IMAGE_NAME": _name(record), "RKPY_SOURCE": source}
    verified = record.verification
    if verified is not None:
        signer = {"RKPY_SIGNER": verified.signer, "RKPY_FINGERPRINT": verified.fingerprint}
        message = f"Image {_name(record)} is signed by {verified.signer or verified.fingerprint}"
        journal.event(journal.VERIFIED, message, about | signer)
    how = "" if verified is not None else ", not verified"
    journal.event(journal.FETCHED, f"Image {_name(record)} fetched from {source}{how}", about)


def refused(source: str, error: TrustError) -> None:
    """Nobody who is trusted has signed what `source` is."""
    about = {"RKPY_SOURCE": source, "RKPY_REASON": error.message}
    message = f"Image {source} refused: {error.message}"
    journal.event(journal.REFUSED, message, about, priority=journal.WARNING)


def prepared(uuid: str, name: str, flavour: str) -> None:
    about = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name, "RKPY_FLAVOUR": flavour}
    journal.event(journal.PREPARED, f'Pod "{name or uuid}" prepared', about)


def collected(uuid: str, name: str) -> None:
    about = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name}
    journal.event(journal.COLLECTED, f'Pod "{name or uuid}" removed', about)


def _name(record: ImageRecord) -> str:
    version = dict(record.manifest.labels).get("version")
    return f"{record.manifest.name}:{version}" if version else record.manifest.name
