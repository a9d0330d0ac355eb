"""What is remembered of images that came from a URL, so that an unchanged one is not fetched again.

One small file per URL below the store, `remote/SHA256-OF-URL.json`. It is a note and no more: when it is missing,
damaged or wrong, the image is fetched as if for the first time (RFC 9111).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping

from common import files
from common.errors import StoreError, reason
from common.records import NamedTuple

DIRECTORY = "remote"
MAX_AGE = 10 * 365 * 86400
"""Seconds. Nothing is fresh for longer, whatever a server says."""


class Entry(NamedTuple):
    """The image that a URL led to when it was last asked."""

    url: str
    id: str
    etag: str
    max_age: int
    """Seconds for which the answer may be used without asking."""
    checked: int
    """When the server confirmed it, seconds since the epoch."""
    checked_ns: int = 0
    """The same in nanoseconds, to tell two processes' work apart."""

    def fresh(self) -> bool:
        """Whether the server need not be asked. A clock that was set back makes nothing fresh."""
        age = time.time() - self.checked
        return 0 <= age < self.max_age


def key(url: str) -> str:
    """The name for files that belong to `url`."""
    return hashlib.sha256(url.encode()).hexdigest()


def load(root: str, url: str) -> Entry | None:
    """What is remembered of `url` in the store at `root`."""
    try:
        with open(_path(root, url), encoding="utf-8") as file:
            entry = Entry(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    texts = (entry.url, entry.id, entry.etag)
    numbers = (entry.max_age, entry.checked, entry.checked_ns)
    right = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    return entry if right and entry.url == url else None


def remember(root: str, url: str, image_id: str, headers: Mapping[str, str], before: Entry | None = None) -> None:
    """Note what an answer with `headers` says about `url`, or forget it when it says not to keep anything. `before` is
    what a 304 confirms: it keeps what the new answer does not mention. Raises StoreError."""
    directives = _directives(headers.get("Cache-Control", ""))
    path = _path(root, url)
    if "no-store" in directives:
        forget(root, url)
        return
    max_age = _max_age(directives, headers)
    if before is not None and "Cache-Control" not in headers:
        max_age = before.max_age
    etag = headers.get("ETag", before.etag if before else "")
    now = time.time_ns()
    entry = Entry(url, image_id, etag if etag.isprintable() else "", max_age, now // 10**9, now)
    try:
        files.make_directory(os.path.dirname(path), 0o700)
        files.replace(path, json.dumps(entry._asdict()).encode(), mode=0o600)
    except OSError as error:
        raise StoreError(f"write {path}: {reason(error)}") from error


def forget(root: str, url: str) -> None:
    """Remember nothing of `url`. Raises StoreError."""
    try:
        os.unlink(_path(root, url))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"remove {_path(root, url)}: {reason(error)}") from error


def _path(root: str, url: str) -> str:
    return f"{root}/{DIRECTORY}/{key(url)}.json"


def _directives(text: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in text.lower().split(","))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs if name}


def _max_age(directives: Mapping[str, str], headers: Mapping[str, str]) -> int:
    if "no-cache" in directives:
        return 0
    return max(0, min(_number(directives.get("max-age", "")), MAX_AGE) - _number(headers.get("Age", "").strip()))


def _number(text: str) -> int:
    return int(text[:12]) if text.isascii() and text.isdigit() else 0
