"""A download that can be interrupted: `http.Client.download`, step by step."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping

from common import files
from common.records import NamedTuple
from stage0.http import Client, Downloaded, FetchError, OnData, OnProgress, Response, shown, too_large

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Job(NamedTuple):
    """The arguments of `Client.download`."""

    client: Client
    url: str
    path: str
    what: str
    headers: Mapping[str, str]
    ok: Collection[int]
    limit: int
    expect_size: int | None
    immutable: bool
    credentials: bool
    check: Callable[[Response], None]
    on_progress: OnProgress
    on_data: OnData


def run(job: Job) -> Downloaded:
    """Try until it is whole, or until several tries in a row brought nothing. Raises FetchError and OSError."""
    fruitless = 0
    while True:
        before = _present(job)
        try:
            return _try(job, before)
        except FetchError as error:
            # What an answer says is final, and `open` has tried that again already; a body that broke off is not.
            if not error.transient or error.status:
                raise
            progress = _present(job) > before and _validator(job)
            fruitless = 0 if progress else fruitless + 1
            if fruitless >= job.client.attempts - 1:
                raise
            job.client.pause(max(fruitless, 1))


def forget(job: Job) -> None:
    """Begin from nothing."""
    for path in (job.path, f"{job.path}.state"):
        if os.path.lexists(path):
            os.unlink(path)


def _try(job: Job, offset: int) -> Downloaded:
    validator = _validator(job)
    if offset and not validator:
        forget(job)
        offset = 0
    headers, ok = dict(job.headers), set(job.ok)
    if offset:
        headers |= {"Range": f"bytes={offset}-", **({} if job.immutable else {"If-Range": validator})}
        ok |= {206, 416}
    with job.client.open(
        job.url, what=job.what, headers=headers, ok=ok, limit=job.limit, credentials=job.credentials
    ) as response:
        if response.status == 416 and response.headers.get("Content-Range") == f"bytes */{offset}":
            return Downloaded(response.url, 200, response.headers, offset)  # all of it was there
        if response.status == 416 or (response.status == 206 and not _continues(job, response, offset, validator)):
            forget(job)
            text = f"get {job.what} {shown(job.url)}: the server does not go on where it stopped"
            raise FetchError(text, hint="try again", url=job.url, transient=True)
        job.check(response)
        if response.status not in (200, 206):
            return Downloaded(response.url, response.status, response.headers, 0)
        return _receive(job, response, offset if response.status == 206 else 0)


def _continues(job: Job, response: Response, offset: int, validator: str) -> bool:
    """Whether a 206 is what was asked for, of the thing the beginning is of."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    same = job.immutable or response.headers.get("ETag", "") == validator
    return found is not None and int(found[1]) == offset and same


def _receive(job: Job, response: Response, start: int) -> Downloaded:
    total = None if response.length is None else start + response.length
    """Write the body. An answer to a request without Range begins at 0, whatever is there."""
    if job.expect_size is not None and total not in (None, job.expect_size):
        raise _wrong_size(job, total)
    if not start:
        forget(job)
        _remember(job, response)
    done = start
    with open(job.path, "ab") as file:
        while data := response.read():
            if done + len(data) > job.limit:
                raise too_large(response.url, job.what, job.limit)
            file.write(data)
            job.on_data(done, data)
            done += len(data)
            job.on_progress(done, total)
    if job.expect_size is not None and done != job.expect_size:
        raise _wrong_size(job, done)
    return Downloaded(response.url, response.status, response.headers, done)


def _wrong_size(job: Job, size: int | None) -> FetchError:
    return FetchError(
        f"get {job.what} {shown(job.url)}: it has {size} octets, and should have {job.expect_size}",
        hint="the server has something else than what was announced",
        url=job.url,
    )


def _remember(job: Job, response: Response) -> None:
    """Keep what tells later whether the server still has the same thing. A weak ETag does not, nor does a date."""
    tag = response.headers.get("ETag", "")
    if tag.startswith('"') and not job.immutable:
        files.replace(f"{job.path}.state", json.dumps({"url": job.url, "etag": tag}).encode(), mode=0o600)


def _validator(job: Job) -> str:
    """The strong ETag of what is in the file; empty when going on is not safe."""
    if job.immutable:
        return "immutable"
    try:
        with open(f"{job.path}.state", encoding="utf-8") as file:
            state = json.load(file)
        return str(state["etag"]) if state["url"] == job.url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _present(job: Job) -> int:
    try:
        return os.stat(job.path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
