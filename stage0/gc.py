"""Garbage collection of pods: mark what has ended, then remove what has been marked long enough.

Every step leaves a state the next collection understands, so it may be killed anywhere. Marking is one rename per pod;
removing goes: rename to `garbage` (from here on the pod is nobody's), the flavour's own clean-up, unmounting, deleting
the contents with the manifest and the lock last, deleting the directory.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping

from common import files, ownership
from common.errors import PodError, RkpyError, reason
from common.syscalls import (
    MNT_DETACH,
    MS_PRIVATE,
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
    UMOUNT_NOFOLLOW,
    mount_setattr,
    openat2,
    umount2,
)
from stage0 import events
from stage0 import pods as podstore
from stage0.pods import Pod, PodBusyError, PodMovedError, Pods, State
from stage1 import flavour, poddir

Complain = Callable[[RkpyError], None]
"""Told of every pod that could not be dealt with; the others are dealt with nevertheless."""
Mounts = Mapping[str, list[str]]
"""By UUID: the mount points inside that pod's directory, relative to it, in an order in which they can be unmounted."""

_OCTAL = re.compile(r"\\([0-7]{3})")
# Roots first: they are big, hostile, and no use without the rest. What a resumed collection needs comes last, the lock
# at the very end because it is what keeps a second collector away.
_FIRST = ("rootfs", "overlay", "volumes")
_LAST = (poddir.FLAVOUR, poddir.MANIFEST, poddir.LOCK)


def mark_exited(pods: Pods, complain: Complain) -> Iterator[str]:
    """Move every pod that has ended from `run` to `exited-garbage`; the UUIDs of those moved."""
    return _move(pods, podstore.RUN, lambda pod: pod.state() is State.EXITED, _mark_exited, complain)


def _mark_exited(pod: Pod) -> None:
    """Under its lock, so that nobody starts it again while it is moved."""
    pod.take(quietly=True)
    if _leads(pod):
        raise PodBusyError(f'pod "{pod.uuid}" has been started again')
    from stage0 import endings

    endings.tell(pod)
    pod.to_exited_garbage()


def _leads(pod: Pod) -> bool:
    leader = pod.leader()
    return leader is not None and leader.is_alive()


def mark_aborted(pods: Pods, complain: Complain) -> Iterator[str]:
    """Move what was never finished (`prepare` and `embryo` whose maker is gone) to `garbage`; the UUIDs moved."""
    yield from _mark_stillborn(pods, complain)
    yield from _move(pods, podstore.PREPARE, lambda pod: pod.state() is State.ABORTED_PREPARE, Pod.to_garbage, complain)


def _mark_stillborn(pods: Pods, complain: Complain) -> Iterator[str]:
    try:
        with pods.births(exclusive=True):
            # Only renames happen in here: a pod being created waits for us.
            dead = list(_move(pods, podstore.EMBRYO, lambda pod: not pod.is_locked(), Pod.to_garbage, complain))
    except FileNotFoundError:
        return  # no pod has ever been created
    except BlockingIOError:
        return  # one is being created this very moment; the next collection will look
    except OSError as error:
        complain(PodError(f'cannot lock "{pods.root}": {reason(error)}'))
        return
    yield from dead


def expire_prepared(pods: Pods, older_than: int, complain: Complain) -> Iterator[str]:
    """Move pods that were prepared more than `older_than` nanoseconds ago, and are not just being run, to `garbage`."""
    return _move(
        pods,
        podstore.PREPARED,
        lambda pod: not pod.is_locked() and _age(pod) >= older_than,
        Pod.to_garbage,
        complain,
    )


def _move(
    pods: Pods, directory: str, condition: Callable[[Pod], bool], move: Callable[[Pod], None], complain: Complain
) -> Iterator[str]:
    for pod in pods.all((directory,)):
        try:
            if condition(pod):
                move(pod)
                yield pod.uuid
        except (PodBusyError, PodMovedError, FileNotFoundError):
            continue
        except RkpyError as error:
            complain(error)


def _age(pod: Pod) -> int:
    return time.time_ns() - pod.moved_at()


def sweep(pods: Pods, grace_period: int, complain: Complain) -> Iterator[tuple[Pod, bool]]:
    """What lies in the garbage, each with whether it is due.

    A pod that is due has been moved to `garbage` and is ours to `remove`, until the next is asked for. Of
    `exited-garbage` what came there less than `grace_period` nanoseconds ago is not due; `garbage` has no grace. What
    somebody else is removing is left to him."""
    for pod in pods.all((podstore.EXITED_GARBAGE, podstore.GARBAGE)):
        try:
            due = pod.directory == podstore.GARBAGE or _age(pod) >= grace_period
            if due:
                _claim(pod)
        except (PodBusyError, PodMovedError, FileNotFoundError):
            continue
        except RkpyError as error:
            complain(error)
            continue
        yield pod, due


def _claim(pod: Pod) -> None:
    """Own a dead pod and move it to `garbage`. Raises PodBusyError when somebody else is removing it."""
    if not pod.is_owned:
        pod.take()
    if pod.directory == podstore.EXITED_GARBAGE:
        # Half a pod must not look like one that has exited, and an interrupted removal need not wait again.
        pod.to_garbage()


def surplus(pods: Pods, name: str, keep: int) -> list[str]:
    """The UUIDs of the dead pods called `name`, but for the `keep` youngest, the oldest first. A service whose pod does
    not live long makes one after the other, and no grace period is short enough for that."""
    dead = []
    for pod in pods.named(name, (podstore.EXITED_GARBAGE,)):
        with pod:
            dead.append((pod.created_at or 0, pod.uuid))
    return [uuid for _, uuid in sorted(dead)[: -keep or None]]


def discard(pods: Pods, uuid: str, notice: Callable[[str], None], *, force: bool = False) -> None:
    """Remove the pod with this full UUID now (`rkpy rm`). Its cost does not depend on the number of pods. With `force`
    what its flavour cannot clean up is only given notice of.

    Raises PodError when it is alive, being prepared, or being removed by somebody else, or cannot be removed."""
    while (pod := pods.get(uuid)) is not None:  # None: it was there a moment ago, and somebody else has removed it
        with pod:
            try:
                _claim_for_removal(pod, notice)
            except PodMovedError:
                continue  # always to the right, so this ends
            remove(pod, read_mounts(pods.root), notice if force else None)
            return


def _claim_for_removal(pod: Pod, notice: Callable[[str], None]) -> None:
    state = pod.state()
    quoted = f'pod "{pod.uuid}"'
    if state is State.RUNNING:
        raise PodError(f"{quoted} is currently running", hint="stop it first: rkpy stop")
    if state in (State.EMBRYO, State.PREPARING):
        raise PodError(f"{quoted} is currently being prepared")
    if state in (State.DELETING, State.EXITED_DELETING):
        raise PodError(f"{quoted} is currently being deleted")
    if state is State.EXITED:
        _mark_exited(pod)
    elif state is State.ABORTED_PREPARE:
        notice(f'moving failed prepare "{pod.uuid}" to garbage')
        pod.to_garbage()
    elif state is State.PREPARED:
        pod.take()  # or somebody is about to run it
        notice(f'moving expired prepared pod "{pod.uuid}" to garbage')
        pod.to_garbage()
        return
    _claim(pod)


def remove(pod: Pod, mounts: Mounts, put_up: Callable[[str], None] | None = None, *, quietly: bool = False) -> None:
    """Remove a pod that is in `garbage` and ours. Raises RkpyError; what is left then can be removed later. `put_up`:
    told of what the flavour cannot undo, which then is no reason to keep the pod. `quietly`: no event tells of it,
    because none told that there was such a pod."""
    name = pod.name()
    try:
        _clean_up_outside(pod)
    except RkpyError as error:
        if put_up is None:
            raise
        put_up(error.message)
    try:
        top = os.open(pod.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _unmount(top, mounts.get(pod.uuid, []))
            _delete_contents(top)
        finally:
            os.close(top)
    except OSError as error:
        raise _failure(pod, error) from error
    _remove_directory(pod)
    if not quietly:
        events.collected(pod.uuid, name)


def _clean_up_outside(pod: Pod) -> None:
    """Let the flavour undo what it did outside the pod directory, while everything it needs is still there."""
    name = pod.flavour()
    if not name:
        return
    try:
        flavour.load(name).gc(pod.path)
    except (OSError, ImportError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise PodError(f'stage1 "{name}" cannot clean up after pod "{pod.uuid}": {why}') from error


def _unmount(top: int, targets: list[str]) -> None:
    """Unmount `targets`, paths below the directory `top`, in the order given."""
    # Unmounting propagates to the peers of the *parent* mount (mount_namespaces(7)): of a recursive bind of /dev, the
    # copy of /dev is a peer of the real one, and unmounting its pts would unmount /dev/pts. So first cut all ties.
    for target in targets:
        _with_parent(top, target, _make_private)
    for target in targets:
        _with_parent(top, target, _unmount_one)


def _with_parent(top: int, target: str, action: Callable[[str], None]) -> None:
    """Call `action` with a path for `target` that no symlink in the pod can lead astray: by way of a descriptor of
    the directory it is in. A mount that is gone already is fine."""
    parent, _, name = target.rpartition("/")
    try:
        fd = openat2(top, parent or ".", os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return
    try:
        action(f"/proc/self/fd/{fd}/{name}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: not a mount point
            raise OSError(error.errno, os.strerror(error.errno or 0), target) from error
    finally:
        os.close(fd)


def _make_private(path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mount_setattr(fd, path, set_attributes=0, recursive=False, propagation=MS_PRIVATE)
    finally:
        os.close(fd)


def _unmount_one(path: str) -> None:
    try:
        umount2(path, UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        umount2(path, UMOUNT_NOFOLLOW | MNT_DETACH)


def _delete_contents(top: int) -> None:
    names = set(os.listdir(top))
    others = sorted(names.difference(_FIRST, _LAST))
    for name in (*_FIRST, *others, *_LAST):
        if name in names:
            files.remove_tree(name, dir_fd=top)


def _remove_directory(pod: Pod) -> None:
    try:
        os.rmdir(pod.path)
    except OSError as error:
        # Not empty: another collector saw the directory without its lock, made a new one, and is removing the rest.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise _failure(pod, error) from error


def _failure(pod: Pod, error: OSError) -> PodError:
    about = f"{os.fsdecode(error.filename)!r}: " if error.filename and error.filename != pod.path else ""
    hint = ownership.foreign_files(error) or "gc will try again"
    if error.errno in (errno.EBUSY, errno.EXDEV):
        hint = "something is mounted there; unmount it, and gc will try again"
    return PodError(f'unable to remove pod "{pod.uuid}": {about}{reason(error)}', hint=hint)


def read_mounts(root: str) -> Mounts:
    """The mount points below the pods directory `root`, from /proc/self/mountinfo (proc_pid_mountinfo(5)), read once.

    Keyed by UUID rather than by path because the directories of pods move, and their mounts with them."""
    prefix = os.path.realpath(root) + "/"
    found: dict[str, list[str]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            target = unescape(line.split(" ", 5)[4])
            if target.startswith(prefix):
                _, *below = target[len(prefix) :].split("/", 2)
                if len(below) == 2:
                    found.setdefault(below[0], []).append(below[1])
    for targets in found.values():
        # Children before parents. Mounts on the same point need no order: unmounting takes the topmost each time.
        targets.sort(key=lambda target: target.count("/"), reverse=True)
    return found


def unescape(text: str) -> str:
    """Undo the octal escapes (blank, tab, newline, backslash, and `#`) of a mountinfo field."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
