"""Pods on disk: one directory each, whose parent directory and lock say what state the pod is in.

    embryo → prepare → prepared → run → exited-garbage → garbage

Every step is one rename(2) to the right, so a directory in a given place has finished everything before it; the one
exception is `rkpy start`, which takes a pod that is only marked as garbage back to `run`.
Nothing here is flushed to the disk: a power cut may lose a pod that was just made, or bring back one that was just
moved, and either is a state the engine knows. See docs/pod-lifecycle.md.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from common import files, locks, ownership, users
from common.errors import PodError, RkpyError, reason
from stage1 import poddir

if TYPE_CHECKING:
    from aci.pod_manifest import PodManifest

EMBRYO = "embryo"
PREPARE = "prepare"
PREPARED = "prepared"
RUN = "run"
EXITED_GARBAGE = "exited-garbage"
GARBAGE = "garbage"

DIRECTORIES = (EMBRYO, PREPARE, PREPARED, RUN, EXITED_GARBAGE, GARBAGE)
"""In the order a pod goes through them: looking in this order cannot miss one that is moved to the right meanwhile."""
_SEARCH = (*DIRECTORIES, RUN)
"""Where to look, in order: `run` twice, because `rkpy start` moves a pod that was marked as garbage back there."""
LISTED = (PREPARE, PREPARED, RUN, EXITED_GARBAGE)
"""What `list` shows."""
NAMED = DIRECTORIES[1:]
"""Where a UUID on the command line is looked up."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BIRTHS = "lock"
_CLAIMS = "claims"
_DIRECTORY_MODE = 0o750
_LOCK_MODE = 0o640
_OPEN_POD = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class State(StrEnum):
    """A pod's state as it is reported (rkt's words)."""

    EMBRYO = "embryo"
    PREPARING = "preparing"
    ABORTED_PREPARE = "aborted prepare"
    PREPARED = "prepared"
    RUNNING = "running"
    EXITED = "exited"
    EXITED_GARBAGE = "exited garbage"
    EXITED_DELETING = "exited deleting"
    GARBAGE = "garbage"
    DELETING = "deleting"

    @property
    def started(self) -> bool:
        """Whether the pod's apps have been started, be they dead or alive."""
        return self in (State.RUNNING, State.EXITED, State.EXITED_GARBAGE, State.EXITED_DELETING)


# What each directory means when the pod's lock is (held, free); alive counts as held in `run`.
_STATES = {
    EMBRYO: (State.EMBRYO, State.EMBRYO),
    PREPARE: (State.PREPARING, State.ABORTED_PREPARE),
    PREPARED: (State.PREPARED, State.PREPARED),
    RUN: (State.RUNNING, State.EXITED),
    EXITED_GARBAGE: (State.EXITED_DELETING, State.EXITED_GARBAGE),
    GARBAGE: (State.DELETING, State.GARBAGE),
}


class PodMovedError(PodError):
    """Somebody else moved the pod on first; losing that race is normal."""


class NoSuchPodError(PodError):
    """There is no pod of that UUID or name."""


class PodBusyError(PodError):
    """Somebody else owns the pod."""


class Pod:
    """One pod directory, either *observed* or *owned*; a context manager that closes what it holds.

    An observed pod is read through a descriptor of its directory, so that a rename in between cannot mix two pods or
    lose one. An owned pod is one whose lock we hold; it is addressed by path, because nobody else may move it."""

    __slots__ = ("_fd", "_lock", "directory", "root", "uuid")

    def __init__(self, root: str, directory: str, uuid: str, *, fd: int = -1, lock: locks.Lock | None = None) -> None:
        self.root = root
        self.directory = directory
        """Where it was when last looked at: one of DIRECTORIES."""
        self.uuid = uuid
        self._fd = fd
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pod {self.directory}/{self.uuid}>"

    def close(self) -> None:
        """Give up the lock (unless it was handed over) and the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- where it is

    @property
    def path(self) -> str:
        return f"{self.root}/{self.directory}/{self.uuid}"

    @property
    def base(self) -> str:
        """A path that reaches this very directory, wherever it has been renamed to, as long as the pod is open."""
        return self.path if self._fd < 0 else f"/proc/self/fd/{self._fd}"

    # --- what it says

    def state(self) -> State:
        """The state now. Takes no lock and writes nothing. Raises PodError when it may not be read."""
        held = self._is_alive() if self.directory == RUN else self.is_locked()
        state = _STATES[self.directory][0 if held else 1]
        if state is State.ABORTED_PREPARE and self.has_moved():
            # The lock is let go *after* the rename to `prepared`, so a free lock proves nothing once it has moved.
            return State.PREPARED
        return state

    @property
    def is_owned(self) -> bool:
        """Whether we hold its lock."""
        return self._lock is not None

    def _is_alive(self) -> bool:
        """Of a pod in `run`. The pod itself holds the lock shared. Exclusively it is held by whoever is just starting
        the pod, before there is a leader, or removes it, and has moved it first."""
        lock = self._lock_held()
        if lock == locks.SHARED:
            return True
        leader = self.leader()
        if leader is None:
            return lock == locks.EXCLUSIVE and not self.has_moved()
        return leader.is_alive()

    def is_locked(self) -> bool:
        """Whether anybody (we ourselves too) holds the pod's lock; a pod without a lock file is not locked."""
        return self._lock_held() != locks.FREE

    def _lock_held(self) -> int:
        try:
            return locks.held(f"{self.base}/{poddir.LOCK}")
        except FileNotFoundError:
            return locks.FREE
        except OSError as error:
            raise _failure(f'cannot read pod "{self.uuid}"', error) from error

    def has_moved(self) -> bool:
        """Whether an observed pod is no longer where it was found: moved on, or removed."""
        if self._fd < 0:
            return False
        try:
            return not os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    @property
    def created_at(self) -> int | None:
        """Nanoseconds since the epoch; None when unknown."""
        return _mtime(f"{self.base}/{poddir.CREATED}")

    @property
    def started_at(self) -> int | None:
        """When the leader was recorded, in nanoseconds since the epoch; None when there never was one."""
        return _mtime(f"{self.base}/{poddir.PID}")

    def finished_at(self, app: str) -> int | None:
        """When the app's exit status was recorded, in nanoseconds since the epoch."""
        return _mtime(poddir.status(self.base, app))

    def moved_at(self) -> int:
        """When the directory came to where it is, in nanoseconds since the epoch: its ctime, which a rename sets (and
        any other change to the directory itself renews)."""
        return os.stat(self.base).st_ctime_ns

    def leader(self) -> poddir.Leader | None:
        return poddir.read_leader(self.base)

    def is_ready(self) -> bool:
        """Whether the flavour has finished starting the pod."""
        return self.leader() is not None and not os.path.lexists(f"{self.base}/{poddir.STARTING}")

    def name(self) -> str:
        """The name given with --pod-name; empty when there is none."""
        return poddir.read_name(self.base)

    def exit_status(self, app: str) -> int | None:
        """The app's exit status; None while it runs, or when its flavour could not learn it."""
        return poddir.read_status(self.base, app)

    def ending(self, app: str) -> poddir.Ending | None:
        """How the app ended; None while it runs, or when its flavour could not learn it."""
        return poddir.read_ending(self.base, app)

    def app_started_at(self, app: str) -> int | None:
        """When the app was started last, in nanoseconds since the epoch; None when its flavour does not say."""
        return _mtime(poddir.started(self.base, app))

    def records_starts(self) -> bool:
        """Whether its flavour records when each app is started."""
        return os.path.isdir(f"{self.base}/started")

    def restarts(self, app: str) -> int:
        return poddir.read_restarts(self.base, app)

    def flavour(self) -> str:
        """The name of the stage1 flavour; empty when the pod never got that far."""
        try:
            with open(f"{self.base}/{poddir.FLAVOUR}", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise _failure(f'cannot read pod "{self.uuid}"', error) from error

    def has_manifest(self) -> bool:
        return os.path.lexists(f"{self.base}/{poddir.MANIFEST}")

    def manifest_text(self) -> bytes:
        """The pod manifest as stored. Raises PodError when there is none."""
        try:
            with open(f"{self.base}/{poddir.MANIFEST}", "rb") as file:
                return file.read()
        except OSError as error:
            raise _failure(f'cannot read the manifest of pod "{self.uuid}"', error) from error

    def manifest(self) -> PodManifest:
        """The pod manifest. Raises PodError or ManifestError."""
        from aci import pod_manifest

        return pod_manifest.parse(self.manifest_text())

    # --- what its owner does with it

    def take(self, *, quietly: bool = False) -> None:
        """Become the owner. A pod that lost its lock file (a removal that was interrupted) gets a new one. `quietly`:
        without a change of the state that others see.

        Raises PodBusyError when somebody else is the owner, PodMovedError when it has moved, PodError otherwise."""
        try:
            path = f"{self.base}/{poddir.LOCK}"
            self._lock = locks.acquire(path, exclusive=True, blocking=False, create=_LOCK_MODE, quietly=quietly)
        except BlockingIOError:
            raise PodBusyError(f'pod "{self.uuid}" is in use by another process') from None
        except FileNotFoundError:
            raise _moved(self.uuid) from None
        except OSError as error:
            raise _failure(f'cannot lock pod "{self.uuid}"', error) from error
        if self.has_moved():
            self.close()
            raise _moved(self.uuid)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def hand_over_lock(self) -> int:
        """Exchange the owner's lock for the one the pod lives by: a shared lock on a read-only descriptor that child
        processes inherit. Returns the descriptor, which is the caller's now. There is no unlocked moment."""
        if self._lock is None:
            raise PodError(f'pod "{self.uuid}" is not ours to start')
        try:
            self._lock.convert(exclusive=False)
            # A second open file, so that the app gets no writable descriptor and so that closing ours releases nothing.
            fd = locks.acquire(f"{self.base}/{poddir.LOCK}", exclusive=False, blocking=False).detach()
        except OSError as error:
            raise _failure(f'cannot lock pod "{self.uuid}"', error) from error
        os.set_inheritable(fd, True)
        self._lock.close()
        self._lock = None
        return fd

    def to_prepare(self) -> None:
        self._move(PREPARE, allowed=(EMBRYO,))

    def to_prepared(self) -> None:
        self._move(PREPARED, allowed=(PREPARE,))

    def to_run(self) -> None:
        self._move(RUN, allowed=(PREPARE, PREPARED))

    def to_run_again(self) -> None:
        """Back from `exited-garbage`, where nobody removes it while we hold the lock; in `run` it stays where it is."""
        if self.directory != RUN:
            self._move(RUN, allowed=(EXITED_GARBAGE,))

    def to_exited_garbage(self) -> None:
        self._move(EXITED_GARBAGE, allowed=(RUN,))

    def to_garbage(self) -> None:
        self._move(GARBAGE, allowed=(EMBRYO, PREPARE, PREPARED, EXITED_GARBAGE))

    def discard(self) -> None:
        """Take back a pod of ours that will not start after all, with the named volumes that this process has made for
        it: remove it, or leave it to gc if that fails.

        Never raises RkpyError: it is called because of an error, which is the one to report."""
        from stage0 import gc, namedvolumes

        unheard_of = self.directory in (EMBRYO, PREPARE)
        try:
            if self.directory == RUN:
                self.to_exited_garbage()
            self.to_garbage()
            gc.remove(self, gc.read_mounts(self.root), quietly=unheard_of)
            namedvolumes.take_back(Pods(self.root))
        except RkpyError:
            pass
        finally:
            self.close()

    def _move(self, directory: str, *, allowed: tuple[str, ...]) -> None:
        """Raises PodMovedError when somebody was quicker, PodError when it cannot be done."""
        if self.directory not in allowed:
            raise PodError(f'pod "{self.uuid}" cannot go from {self.directory} to {directory}')
        target = f"{self.root}/{directory}/{self.uuid}"
        try:
            os.rename(self.path, target)
        except FileNotFoundError as error:
            if os.path.lexists(self.path):  # then it is the directory to move to that is missing
                raise _failure(f'cannot move pod "{self.uuid}" to {directory}', error) from error
            raise _moved(self.uuid) from None
        except OSError as error:
            raise _failure(f'cannot move pod "{self.uuid}" to {directory}', error) from error
        self.directory = directory


class Pods:
    """The pods below `root` (Config.pods)."""

    def __init__(self, root: str) -> None:
        self.root = root

    def require_own(self) -> Self:
        """For those who do more than read. Raises PodError when the pods are somebody else's."""
        if why := ownership.objection(self.root):
            raise PodError(f"cannot use the pods in {self.root}: {why}", hint="use a directory of your own, see --dir")
        return self

    def create(self) -> Pod:
        """A new pod in `embryo`, owned by the caller. Creates the directories when they are missing.

        Raises PodError."""
        self.require_own()
        uuid = new_uuid()
        try:
            return self._create(uuid)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._cannot_create(error) from error
        try:
            self._make_directories()
            return self._create(uuid)
        except OSError as error:
            raise self._cannot_create(error) from error

    def _create(self, uuid: str) -> Pod:
        pod = Pod(self.root, EMBRYO, uuid)
        with self.births(exclusive=False):
            os.mkdir(pod.path, _DIRECTORY_MODE)
            pod._lock = locks.acquire(f"{pod.path}/{poddir.LOCK}", exclusive=True, blocking=False, create=_LOCK_MODE)
        os.close(os.open(f"{pod.path}/{poddir.CREATED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
        return pod

    def _cannot_create(self, error: OSError) -> PodError:
        return _failure(f'cannot create a pod in "{self.root}"', error)

    def _make_directories(self) -> None:
        ownership.make_data_directory(os.path.dirname(self.root))
        # Copied roots have set-user-ID programs, of the user where they are root's.
        files.make_directory(self.root, 0o700 if users.confined() else _DIRECTORY_MODE)
        if not os.path.lexists(f"{self.root}/{DIRECTORIES[0]}"):
            ownership.claim(self.root)
        for name in DIRECTORIES:
            files.make_directory(f"{self.root}/{name}", _DIRECTORY_MODE)
        os.close(os.open(f"{self.root}/{_BIRTHS}", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _LOCK_MODE))

    @contextmanager
    def births(self, *, exclusive: bool) -> Iterator[None]:
        """Held shared while a directory exists in `embryo` without its lock; whoever holds it exclusively knows that
        every embryo without a held lock is a dead one. Exclusive does not wait: BlockingIOError."""
        path = f"{self.root}/{_BIRTHS}"
        with locks.acquire(path, exclusive=exclusive, blocking=not exclusive):
            yield

    @contextmanager
    def claims(self) -> Iterator[None]:
        """Held while something is chosen that no two pods may have: a name, a range of user IDs."""
        with locks.acquire(f"{self.root}/{_CLAIMS}", exclusive=True, create=_LOCK_MODE):
            yield

    def uuids(self, directory: str) -> list[str]:
        """Names of the pods in `directory`, in no order."""
        return self._names(directory)

    def named(self, name: str, directories: Iterable[str] = NAMED) -> Iterator[Pod]:
        """The pods with this name, observed; the caller closes each. Opens a file of every pod."""
        wanted, seen = set(directories), set()
        for directory in _SEARCH:
            for uuid in self._names(directory) if directory in wanted else ():
                if uuid not in seen and poddir.read_name(f"{self.root}/{directory}/{uuid}") == name:
                    pod = self._open(directory, uuid)
                    if pod is not None:
                        seen.add(uuid)
                        yield pod

    def all(self, directories: Iterable[str] = LISTED) -> Iterator[Pod]:
        """The pods in `directories`, observed, in the order of their UUIDs; each is closed when the next is asked for.

        A pod that is moved meanwhile is given once, where it has gone to, if that is among `directories`. Names that
        are not UUIDs and things that are not directories are passed over. Raises PodError if they may not be read."""
        wanted = tuple(name for name in DIRECTORIES if name in set(directories))
        where: dict[str, str] = {}
        for directory in _SEARCH:
            if directory in wanted:
                where.update(dict.fromkeys(self._names(directory), directory))
        for uuid in sorted(where):
            pod = self._open(where[uuid], uuid) or self.get(uuid, wanted)
            if pod is not None:
                with pod:
                    yield pod

    def get(self, uuid: str, directories: Iterable[str] = NAMED) -> Pod | None:
        """The pod with this full UUID, observed; None when it is in none of `directories`. Lists no directory, so it
        costs the same however many pods there are."""
        wanted = set(directories)
        for directory in _SEARCH:
            if directory in wanted:
                pod = self._open(directory, uuid)
                if pod is not None:
                    return pod
        return None

    def find(self, prefix: str, directories: Iterable[str] = NAMED) -> Pod:
        """The one pod in `directories` that is called `prefix`, or whose UUID begins with it, observed; the caller
        closes it. Raises PodError when there is none or more than one."""
        wanted = prefix.strip().lower()
        if not wanted:
            raise PodError("UUID cannot be empty")
        whole = _UUID.fullmatch(wanted) is not None
        if not whole and (pod := self._by_name(prefix.strip(), directories)) is not None:
            return pod
        # A pod that moves on between the listing and the opening is looked up again; each time it has moved to the
        # right, so this ends.
        for _ in DIRECTORIES:
            uuid = wanted if whole else self._complete(wanted, prefix, directories)
            pod = self.get(uuid, directories)
            if pod is not None:
                return pod
        raise _no_match(prefix)

    def _by_name(self, name: str, directories: Iterable[str]) -> Pod | None:
        from stage0 import podnames

        return podnames.prefer(list(self.named(name, directories)))

    def _complete(self, wanted: str, prefix: str, directories: Iterable[str]) -> str:
        names = {name for directory in directories for name in self._names(directory) if name.startswith(wanted)}
        if not names:
            raise _no_match(prefix)
        if len(names) > 1:
            raise PodError(f'ambiguous UUID "{prefix}": {len(names)} matches', hint="give more of it")
        return names.pop()

    def _names(self, directory: str) -> list[str]:
        try:
            return [name for name in os.listdir(f"{self.root}/{directory}") if _UUID.fullmatch(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure(f'cannot list the pods in "{self.root}/{directory}"', error) from error

    def _open(self, directory: str, uuid: str) -> Pod | None:
        pod = Pod(self.root, directory, uuid)
        try:
            pod._fd = os.open(pod.path, _OPEN_POD)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise _failure(f'cannot open pod "{uuid}"', error) from error
        return pod


def new_uuid() -> str:
    """A random UUID (RFC 9562, version 4)."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def read_uuid_file(path: str) -> str:
    """The UUID (or prefix) in a file as `--uuid-file-save` writes it. Raises PodError."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(256).strip()
    except OSError as error:
        raise PodError(f"unable to resolve UUID from file: open {path}: {reason(error)}") from error
    except UnicodeDecodeError:
        raise PodError(f"unable to resolve UUID from file: {path} holds no UUID") from None


def _mtime(path: str) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None


def _no_match(prefix: str) -> NoSuchPodError:
    return NoSuchPodError(f'no matches found for "{prefix.strip()}"')


def _moved(uuid: str) -> PodMovedError:
    return PodMovedError(
        f'pod "{uuid}" was moved by another process', hint="it was run or removed meanwhile; see rkpy list"
    )


def _failure(what: str, error: OSError) -> PodError:
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run it as root, or use a data directory of your own with --dir"
    return PodError(f"{what}: {reason(error)}", hint=hint)
