"""`rkpy start`: an exited pod runs again, with the apps, roots, volumes, name and user IDs it had."""

from __future__ import annotations

import os
import time

from common import files, locks
from common.errors import PodError, reason
from stage0 import podnames
from stage0.pods import EXITED_GARBAGE, RUN, Pod, PodBusyError, PodMovedError, Pods, State
from stage1 import poddir
from stage1.flavour import PreparedPod

_RECORDS = (
    "status", "started", "restarts", "credentials", "health", "sockets", poddir.LIMITS, poddir.UNIT, poddir.MACHINE,
    poddir.HARDWARE, poddir.STARTING, poddir.PID,
)  # fmt: skip
"""What a run leaves behind, the leader last: until it is gone the pod is one that has exited."""


_PATIENCE = 60.0
"""Seconds that somebody else may have a pod that has exited: `rkpy gc` to mark it, or another pod to take back what it
claims of networks, for which each plugin has its time."""
_POLL = 0.02


def take(pods: Pods, name: str, patience: float = _PATIENCE) -> Pod:
    """The exited pod called `name`, ours from now on, where it lies. Raises PodError; PodBusyError or PodMovedError
    only when somebody else was still at it after `patience`, in seconds."""
    end = time.monotonic() + patience
    while True:
        pod = pods.find(name)
        try:
            _take(pod)
            return pod
        except (PodBusyError, PodMovedError):
            pod.close()
            if time.monotonic() >= end:
                raise
        except BaseException:
            pod.close()
            raise
        _pause()


def _pause() -> None:
    locks.waiting += 1  # It is told to who waits for the start.
    try:
        time.sleep(_POLL)
    finally:
        locks.waiting -= 1


def _take(pod: Pod) -> None:
    state = pod.state()
    if state is State.PREPARED:
        raise PodError(f'pod "{pod.uuid}" has not run yet', hint="use rkpy run-prepared")
    if state is State.RUNNING:
        raise PodError(f'pod "{pod.uuid}" is running already')
    if pod.directory not in (RUN, EXITED_GARBAGE):
        raise PodError(f'pod "{pod.uuid}" cannot be started: it is {state}')
    if not pod.has_manifest():
        raise PodError(f'pod "{pod.uuid}" has no manifest')
    pod.take()
    leader = pod.leader()
    if leader is not None and leader.is_alive():
        raise PodBusyError(f'pod "{pod.uuid}" is running already')


def _claim_place(pods: Pods, pod: Pod, name: str) -> None:
    """Move to `run` and only then claim the name: there everybody sees that the pod lives."""
    before = pod.directory
    pod.to_run_again()
    try:
        if name:
            podnames.claim(pods, pod, name)
    except PodError:
        if before == EXITED_GARBAGE:
            pod.to_exited_garbage()
        raise


def rewind(pods: Pods, pod: Pod, prepared: PreparedPod) -> None:
    """Make `pod`, which is ours, one that is about to start: in `run`, without what its last run recorded. Killed half
    way, it is one that has exited. Raises PodError."""
    _claim_place(pods, pod, prepared.name)
    try:
        top = os.open(pod.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in _RECORDS:
                files.remove_tree(name, dir_fd=top)
        finally:
            os.close(top)
    except OSError as error:
        raise PodError(f'cannot start pod "{pod.uuid}" again: {error.filename}: {reason(error)}') from error
