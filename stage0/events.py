"""What the engine records in the journal of what it does, where there is one (`common.journal`)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from aci.store import ImageRecord
from common import journal
from common.errors import TrustError
from stage1.poddir import Ending

_UNSEEN = "has ended, and nobody saw how"


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


def removed(image_id: str, name: str, why: str) -> None:
    """An image is no longer in the store; `name` is empty where its record could not be read."""
    about = {"RKPY_IMAGE_ID": image_id, "RKPY_IMAGE_NAME": name, "RKPY_REASON": why}
    journal.event(journal.REMOVED, f"Image {name or image_id} removed: {why}", about)


def prepared(uuid: str, name: str, flavour: str) -> None:
    about = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name, "RKPY_FLAVOUR": flavour}
    journal.event(journal.PREPARED, f'Pod "{name or uuid}" prepared', about)


def noticed(started: int | None, unit: str) -> dict[str, str]:
    """Fields of an end that is noticed later: when what ended was started (nanoseconds since the epoch), and the unit
    it was in, which journalctl(1) shows it for, whoever has noticed it."""
    at = "" if started is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started // 10**9))
    return {"RKPY_STARTED_AT": at, "OBJECT_SYSTEMD_UNIT": unit}


def app_ended(uuid: str, name: str, about: Mapping[str, str], ending: Ending | None, *, oom: bool, clean: bool) -> None:
    """As the monitor of a pod says it (`stage1.journallog`); `ending`: None when nobody knows."""
    text = f'App "{about["RKPY_APP"]}" of pod "{name or uuid}"'
    fields = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name, **about}
    if ending is not None:
        fields["RKPY_EXIT_STATUS"] = str(ending.status)
        fields["RKPY_EXIT_SIGNAL"] = str(ending.signal or "")
    if oom:
        journal.event(journal.OOM, f"{text} ran out of the memory it may have", fields, priority=journal.WARNING)
        fields["RKPY_OOM"] = "1"
    how = _UNSEEN if ending is None else journal.how_ended(ending.status, ending.signal)
    journal.event(journal.EXITED, f"{text} {how}", fields, priority=journal.INFO if clean else journal.NOTICE)


def pod_ended(uuid: str, name: str, about: Mapping[str, str]) -> None:
    """A pod whose monitor did not say so."""
    fields = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name, **about}
    journal.event(journal.EXITED, f'Pod "{name or uuid}" {_UNSEEN}', fields)


def collected(uuid: str, name: str) -> None:
    about = {"RKPY_POD_UUID": uuid, "RKPY_POD_NAME": name}
    journal.event(journal.COLLECTED, f'Pod "{name or uuid}" removed', about)


def _name(record: ImageRecord) -> str:
    version = dict(record.manifest.labels).get("version")
    return f"{record.manifest.name}:{version}" if version else record.manifest.name
