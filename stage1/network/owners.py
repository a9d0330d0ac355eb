"""Whose the claims are: pods, by the directory they live in, and whether a pod is still there to claim anything.

A pod is dead when nobody holds its lock and its leader does not live (docs/pod-lifecycle.md). Whoever takes a dead
pod's claims back holds its lock meanwhile, all but the byte that is asked about, as `rkpy gc` does: so nobody starts
the pod again before they are gone. Locks of pods come before that of the claims (`state.lock`), never after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from common import locks
from common.errors import NetworkError, RkpyError, reason
from stage1 import poddir
from stage1.network import state

_LIVELY = ("prepare", "prepared", "run")
"""Where a pod can be that claims something, or is about to."""
_SEARCH = ("embryo", *_LIVELY, "exited-garbage", "garbage", "run")
"""As pods go, so that one that is moved meanwhile is not missed; `rkpy start` moves it back."""
_PATIENCE = 5.0
"""Seconds that somebody else is given to take back a dead pod's claims."""
_LOCKS = "/proc/locks"
_POLL = 0.02


def register(uuid: str, directory: str) -> None:
    """Before its first claim. `directory` is the pod's, DATA/pods/STATE/UUID."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(directory)))
    try:
        lock = os.stat(f"{directory}/{poddir.LOCK}")
    except OSError as error:
        raise NetworkError(f"stat {directory}/{poddir.LOCK}: {reason(error)}") from error
    claim, text = state.path("pods", uuid), f"{_lock_name(lock)} {root}"
    if state.holder(claim) != text:
        state.drop(claim)
        state.take(claim, text)


def is_registered(uuid: str) -> bool:
    """Whether it may have claims, which it made since the machine was booted."""
    return os.path.lexists(state.path("pods", uuid))


def forget(uuid: str) -> None:
    """After its last claim."""
    state.drop(state.path("pods", uuid))


def is_alive(uuid: str) -> bool:
    """Whether the pod runs, or is just being started. Takes no lock."""
    for _ in _SEARCH:  # it cannot be moved from under us more often
        directory = find(uuid)
        if not directory:
            return _is_locked_out_of_sight(uuid)
        try:
            return _lives(directory)
        except FileNotFoundError:
            if os.path.isdir(directory):
                return _leads(directory)  # a removal that was interrupted took the lock
    return True


def find(uuid: str) -> str:
    """The directory of a registered pod; empty when there is none."""
    root = _registration(uuid)[0]
    for name in _SEARCH if _is_genuine(uuid, root) else ():
        if os.path.isdir(f"{root}/{name}/{uuid}"):
            return f"{root}/{name}/{uuid}"
    return ""


def describe(uuid: str) -> str:
    """The pod for people: `pod "web" (0123abcd)`."""
    directory = find(uuid)
    name = poddir.read_name(directory) if directory else ""
    return f'pod "{name}" ({uuid[:8]})' if name else f"pod {uuid[:8]}"


def reclaim(claims: Iterable[str]) -> bool:
    """Have of `claims`, paths, those dropped that dead pods have, with everything else that these have, and those that
    nobody can have made. Whether there was one, so that it is worth to look again. Not with `state.lock` held.
    NetworkError when there would have been one, but a dead pod's cannot be taken back."""
    holders = {claim: state.holder(claim) for claim in claims}
    failure = ""
    for uuid in sorted({holder.partition(" ")[0] for holder in holders.values()} - {""}):
        for problem in _sweep(uuid, _PATIENCE) or ():
            failure = failure or f"what {describe(uuid)} left behind cannot be taken back: {problem}"
    for claim, holder in holders.items():
        if not holder:
            state.drop_nonsense(claim)
    if any(state.holder(claim) != holder or not os.path.lexists(claim) for claim, holder in holders.items()):
        return True
    if failure:
        raise NetworkError(failure)
    return False


def sweep(complain: Callable[[RkpyError], None] | None = None) -> list[str]:
    """Take back what all dead pods claim; their UUIDs. What cannot be taken back is told to `complain` and stays."""
    from stage1.network import detach

    swept = []
    for uuid in sorted(detach.claimants()):
        try:
            problems = _sweep(uuid, 0)
        except RkpyError as error:
            problems = [str(error)]
        for problem in problems or ():
            if complain is not None:
                complain(NetworkError(f"{describe(uuid)}: {problem}"))
        if problems is not None and not problems:
            swept.append(uuid)
    try:
        detach.tidy()
    except RkpyError as error:
        if complain is not None:
            complain(error)
    return swept


def _sweep(uuid: str, patience: float) -> list[str] | None:
    """What could not be taken back; None when the pod lives, or somebody else is at it for too long."""
    from stage1.network import detach

    end = time.monotonic() + patience
    while not is_alive(uuid):
        directory = find(uuid)
        if not directory:
            return detach.abandon(uuid)
        try:
            with locks.acquire(f"{directory}/{poddir.LOCK}", exclusive=True, blocking=False, quietly=True):
                if os.path.isdir(directory) and not _leads(directory):
                    return detach.detach(directory)
        except FileNotFoundError:
            if os.path.isdir(directory):  # what a removal left that was interrupted: nobody can start it
                return detach.detach(directory)
        except BlockingIOError:
            if time.monotonic() >= end:
                return None
            time.sleep(_POLL)
        except OSError as error:
            return [f"lock {directory}: {reason(error)}"]
    return None


def _lives(directory: str) -> bool:
    state_of_it = os.path.basename(os.path.dirname(directory))
    return state_of_it in _LIVELY and (locks.is_locked(f"{directory}/{poddir.LOCK}") or _leads(directory))


def _leads(directory: str) -> bool:
    leader = poddir.read_leader(directory)
    return leader is not None and leader.is_alive()


def _registration(uuid: str) -> tuple[str, str]:
    """Where the pod's state directories are and what /proc/locks calls its lock; empty for what is not known."""
    lock, _, root = state.holder(state.path("pods", uuid)).partition(" ")
    return root, lock


def _is_genuine(uuid: str, root: str) -> bool:
    """Whether `root` is theirs who registered the pod. Who may change a directory above it can put another in its
    place at any time, in which a record names his programs as plugins, and processes of ours as the pod's."""
    try:
        return {os.lstat(root).st_uid, os.stat(root).st_uid} == {os.lstat(state.path("pods", uuid)).st_uid}
    except OSError:
        return False


def _lock_name(found: os.stat_result) -> str:
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _is_locked_out_of_sight(uuid: str) -> bool:
    """Whether the lock of a pod is held that is where we cannot look: in a service's private /tmp, say, or behind what
    somebody has put in its place. A lock is in /proc/locks whatever is mounted where (proc_locks(5))."""
    root, lock = _registration(uuid)
    if not lock or _is_genuine(uuid, root):
        return False
    try:
        with open(_LOCKS, encoding="ascii", errors="replace") as file:
            return any(lock in line.split() for line in file)
    except OSError:
        return False
