"""Waiting for pods that are just being started: who has a pod's UUID, from `--uuid-file-save` for one, may name it to a
command when there is nothing yet that could be stopped, entered or asked."""

from __future__ import annotations

import time

from common.errors import PodError
from stage0.pods import PREPARE, PREPARED, RUN, Pod, Pods, State

_PATIENCE = 60.0
"""Seconds to wait for a pod to get its leader: systemd may take 25 for each answer before there is a scope."""
_MOMENT = 5.0
"""Seconds to wait for a pod that somebody is at work on to be run. `rkpy run` saves the UUID right before it runs the
pod; that of one which takes longer was learnt otherwise, and maybe the pod is only being prepared."""
_POLL = 0.02


def start(pods: Pods, pod: Pod) -> Pod:
    """`pod`, which is observed, where it is once nobody is about to start it: one that is running then has a leader.
    Raises PodError when it does not get one, or is gone."""
    begun = time.monotonic()
    while _is_about_to_start(pod):
        waited = time.monotonic() - begun
        if pod.directory != RUN and waited >= _MOMENT:
            break
        if waited >= _PATIENCE:
            raise PodError(f'pod "{pod.uuid}" has not started its apps yet', hint="try again, or see rkpy status")
        pod.close()
        time.sleep(_POLL)
        pod = pods.find(pod.uuid)
    return pod


def _is_about_to_start(pod: Pod) -> bool:
    if pod.directory in (PREPARE, PREPARED):
        # In this order: the lock of one that has moved may be free because the pod is over.
        return pod.is_locked() or pod.has_moved()
    return pod.leader() is None and pod.state() is State.RUNNING
