"""An index of the images by name, in SQLite. It knows nothing the image records do not say, so it is never trusted:
whenever it is missing, damaged or behind the records, it is made anew from them.

How it is known to be behind: it holds the modification time of the directory of records and their number, as of its
last transaction. A record appears or goes inside a transaction, so whoever is killed in between leaves a directory
that differs. See docs/store.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common import locks
from common.records import NamedTuple

if TYPE_CHECKING:
    import sqlite3

VERSION = 1
BUSY_TIMEOUT = 30.0
"""Seconds to wait for another writer; a transaction takes milliseconds, on a slow disk a little longer."""
_SCHEMA = """
    CREATE TABLE image (id TEXT PRIMARY KEY, name TEXT NOT NULL, labels TEXT NOT NULL, latest INTEGER NOT NULL,
                        import_time INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX image_name ON image (name);
    CREATE TABLE step (mtime INTEGER NOT NULL, records INTEGER NOT NULL);
    INSERT INTO step VALUES (0, -1);
"""


class Entry(NamedTuple):
    """What the index holds of one image; `labels` is a JSON object, `import_time` in nanoseconds."""

    id: str
    name: str
    labels: str
    latest: bool
    import_time: int


class Index:
    """The index at `path` of the records in `directory`. Opens the database at each use."""

    def __init__(self, path: str, directory: str) -> None:
        self.path = path
        self.directory = directory

    def lookup(self, name: str) -> list[Entry] | None:
        """The images called `name`; None when the index cannot be used as it is."""
        import sqlite3

        if not os.access(self.path, os.W_OK):
            return None  # Reading a WAL database needs to write beside it (sqlite.org/wal.html, "Read-Only Databases").
        try:
            with self._connected() as connection:
                if not self._is_in_step(connection):
                    return None
                rows = connection.execute(
                    "SELECT id, name, labels, latest, import_time FROM image WHERE name = ?", (name,)
                )
                return [Entry(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows]
        except sqlite3.DatabaseError:
            return None

    @contextmanager
    def change(self, *, add: Entry | None = None, remove: str = "") -> Iterator[None]:
        """Around the appearance or removal of one record: the index changes with it, or is seen to be behind.

        Never fails on its own account. An index that was behind before is left so."""
        connection = self._begin()
        if connection is None:
            yield
            return
        try:
            current = self._is_in_step(connection)
            yield
            if current:
                self._finish(connection, add, remove)
        finally:
            connection.close()

    def _begin(self) -> sqlite3.Connection | None:
        """A connection in a write transaction, None if that cannot be had."""
        import sqlite3

        connection = None
        try:
            connection = self._open()
            if connection is not None:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError:
            if connection is not None:
                connection.close()
            return None
        return connection

    def _finish(self, connection: sqlite3.Connection, add: Entry | None, remove: str) -> None:
        """The record is where it should be already: whatever goes wrong now only leaves the index behind."""
        import sqlite3

        try:
            if add is not None:
                connection.execute("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?, ?)", add)
            if remove:
                connection.execute("DELETE FROM image WHERE id = ?", (remove,))
            connection.execute("UPDATE step SET mtime = ?, records = ?", self._step())
            connection.execute("COMMIT")
        except sqlite3.DatabaseError:
            pass

    def rebuild(self, entries: Callable[[], Iterable[Entry]]) -> None:
        """Make the index anew. `entries` is called inside the transaction, so that no change falls in between. Does
        nothing where nothing can be written: without an index the records are read instead."""
        import sqlite3

        if not os.access(os.path.dirname(self.path), os.W_OK):
            return
        try:
            # One at a time, or one process would delete the file another has just made.
            with locks.acquire(f"{self.path}.lock", exclusive=True, create=0o600):
                try:
                    self._fill(entries)
                except sqlite3.DatabaseError as error:
                    if _is_damage(error):
                        self._delete()
                        self._fill(entries)
        except (OSError, sqlite3.DatabaseError):
            pass

    def _fill(self, entries: Callable[[], Iterable[Entry]]) -> None:
        with self._connected(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                connection.execute("ROLLBACK")
                self._create(connection)
                connection.execute("BEGIN IMMEDIATE")
            step = self._step()
            connection.execute("DELETE FROM image")
            connection.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?)", entries())
            connection.execute("UPDATE step SET mtime = ?, records = ?", step)
            connection.execute("COMMIT")

    def _create(self, connection: sqlite3.Connection) -> None:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            quoted = name.replace('"', '""')
            connection.execute(f'DROP TABLE "{quoted}"')
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"{_SCHEMA} PRAGMA user_version = {VERSION};")

    def _delete(self) -> None:
        # The log first: one that outlives its database would be replayed into the next.
        for suffix in ("-wal", "-shm", ""):
            try:
                os.unlink(self.path + suffix)
            except FileNotFoundError:
                pass

    def _open(self, *, create: bool = False) -> sqlite3.Connection | None:
        """A connection, or None when there is no database."""
        import sqlite3

        if not create and not os.path.exists(self.path):
            return None
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def _connected(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        connection = self._open(create=create)
        if connection is None:
            import sqlite3

            raise sqlite3.DatabaseError("there is no index")
        try:
            yield connection
        finally:
            connection.close()

    def _is_in_step(self, connection: sqlite3.Connection) -> bool:
        import sqlite3

        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                return False
            row = connection.execute("SELECT mtime, records FROM step").fetchone()
        except sqlite3.DatabaseError:
            return False
        return row is not None and tuple(row) == self._step()

    def _step(self) -> tuple[int, int]:
        try:
            return os.stat(self.directory).st_mtime_ns, len(os.listdir(self.directory))
        except FileNotFoundError:
            return 0, 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether making the file anew would help: not when it is busy or the disk is full or failing."""
    busy, locked, io_error, full = 5, 6, 10, 13  # sqlite.org/rescode.html
    return getattr(error, "sqlite_errorcode", 0) & 0xFF not in (busy, locked, io_error, full)
