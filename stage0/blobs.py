"""Downloading the layers of an image, several at a time, in a process of its own.

The threads that download live in a child process because the importer forks: a process with threads must not, their
locks would stay taken in the child. It also makes an end at any moment simple.

A blob grows in `tmp/partial-ALGO-HEX/` of the store, under a lock. What an interrupted download leaves there is gone on
with by the next one that wants the blob, once all of it has been read again for its digest; `image gc` removes it. Who
finds the lock taken downloads for himself.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from aci import parallel
from aci.importer import Missing
from aci.store import TMP, Store
from common import locks
from common.errors import ImageError, StoreError, reason

if TYPE_CHECKING:
    from stage0.registries_conf import Endpoint
    from stage0.registry import Client

THREADS = 3
_READ = 1 << 20
_TELL_EVERY = 0.1
"""Seconds between reports of progress."""

Progress = Callable[[str, int, int], None]
"""Called with a blob's digest, the bytes of it that are here, and how many there will be."""


class Downloads:
    """The downloads of `missing`, and the feed that says which are done. Leaving the context ends them."""

    def __init__(
        self, client: Client, place: Endpoint, store: Store, progress: Progress | None, missing: Sequence[Missing]
    ) -> None:
        self._client, self._place, self._store = client, place, store
        self._progress, self._missing = progress, missing
        self._process = parallel.Process(self._work)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for missing in self._missing:
            _tidy(_partial(self._store, missing.digest))

    def fileno(self) -> int:
        return self._process.fileno()

    def ready(self) -> list[int]:
        """The positions of what has arrived since. Raises what went wrong."""
        arrived: list[int] = []
        for told in self._process.receive():
            for position, done in told.items():
                missing = self._missing[int(position)]
                if done < 0:
                    arrived.append(int(position))
                if self._progress is not None:
                    self._progress(missing.digest, missing.size if done < 0 else done, missing.size)
        if self._process.ended and not arrived:
            self._process.result()
            raise StoreError("the process that downloads ended too early")
        return arrived

    # In the child

    def _work(self, tell: parallel.Tell) -> None:
        client = self._client.forked()
        events: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        counts = [0] * len(self._missing)
        left = iter(range(len(self._missing)))
        lock = threading.Lock()

        def download() -> None:
            while True:
                with lock:
                    position = next(left, None)
                if position is None:
                    return
                try:
                    self._fetch(client, self._missing[position], counts, position)
                    events.put((position, None))
                except BaseException as error:
                    events.put((position, error))

        for _ in range(min(THREADS, len(self._missing))):
            threading.Thread(target=download, daemon=True).start()
        self._report(tell, events, counts)

    def _report(
        self, tell: parallel.Tell, events: queue.SimpleQueue[tuple[int, BaseException | None]], counts: list[int]
    ) -> None:
        """Pass on what the threads do, until all are done or one has failed."""
        told = list(counts)
        absent = set(range(len(counts)))
        while absent:
            try:
                position, error = events.get(timeout=_TELL_EVERY if self._progress else None)
            except queue.Empty:
                news = {at: counts[at] for at in absent if counts[at] != told[at]}
                told = list(counts)
                if news:
                    tell(news)
                continue
            if error is not None:
                raise error
            absent.discard(position)
            tell({position: -1})

    def _fetch(self, client: Client, missing: Missing, counts: list[int], position: int) -> None:
        try:
            with _place_for(self._store, missing) as path:
                self._complete(client, missing, path, counts, position)
                os.rename(path, missing.target)
        except OSError as error:
            raise StoreError(f"store blob {missing.digest[:19]}: {reason(error)}") from error

    def _complete(self, client: Client, missing: Missing, path: str, counts: list[int], position: int) -> None:
        """Bring the file at `path` to its full size and check it. What an earlier download left may be wrong: then
        everything is downloaded once more, and only after that it is the registry that is wrong."""
        resumed = os.path.exists(path)
        for attempt in range(2):
            hasher = _Hasher(path, missing.digest)

            def on_data(offset: int, data: bytes, hasher: _Hasher = hasher) -> None:
                hasher.add(offset, data)
                counts[position] = offset + len(data)

            if not resumed or os.path.getsize(path) != missing.size:
                client.download(self._place, missing.digest, missing.size, path, on_data)
            if hasher.matches():
                return
            os.unlink(path)
            if attempt or not resumed:
                break
            resumed = False
        raise ImageError(
            f"{self._place}: layer {missing.digest[:19]} is damaged: its content does not have that digest",
            hint="the registry or something on the way to it is broken, or lies",
        )


class _Hasher:
    """The digest of a file that grows, or begins anew."""

    def __init__(self, path: str, digest: str) -> None:
        self._path = path
        self._algorithm, _, self._digits = digest.partition(":")
        self._hash = hashlib.new(self._algorithm)
        self._size = 0

    def add(self, offset: int, data: bytes) -> None:
        if offset == 0:
            self._hash, self._size = hashlib.new(self._algorithm), 0
        elif offset != self._size:
            self._read(offset)
        self._hash.update(data)
        self._size += len(data)

    def matches(self) -> bool:
        """Whether the file, as far as it was written or else as it is, has the digest."""
        if self._size == 0:
            self._read(os.path.getsize(self._path))
        return self._hash.hexdigest() == self._digits

    def _read(self, size: int) -> None:
        self._hash, self._size = hashlib.new(self._algorithm), 0
        with open(self._path, "rb") as file:
            while self._size < size and (data := file.read(min(_READ, size - self._size))):
                self._hash.update(data)
                self._size += len(data)


# Where a blob grows


def _partial(store: Store, digest: str) -> str:
    return f"{store.root}/{TMP}/partial-{digest.replace(':', '-')}"


@contextmanager
def _place_for(store: Store, missing: Missing) -> Iterator[str]:
    """A file for the blob to grow in that nobody else touches: the shared one, if it is free."""
    directory = _partial(store, missing.digest)
    lock = _locked(directory)
    if lock is None:
        yield f"{missing.target}.partial"
        return
    with lock:
        yield f"{directory}/blob"
        _remove(directory)


def _locked(directory: str) -> locks.Lock | None:
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        lock = locks.acquire(f"{directory}/lock", exclusive=True, blocking=False, create=0o600)
    except (BlockingIOError, FileNotFoundError):
        return None
    if os.fstat(lock.fd).st_nlink:
        return lock
    lock.close()  # Whoever had it was just done.
    return None


def _tidy(directory: str) -> None:
    """Remove the directory of a download that has not got anything."""
    if not os.path.isdir(directory) or os.path.exists(f"{directory}/blob"):
        return
    lock = _locked(directory)
    if lock is not None:
        with lock:
            if not os.path.exists(f"{directory}/blob"):
                _remove(directory)


def _remove(directory: str) -> None:
    try:
        os.unlink(f"{directory}/lock")
        os.rmdir(directory)
    except OSError:
        pass
