"""Names of pods (`--pod-name`): one living pod each.

A name is taken while its pod is being prepared, is prepared or runs; once the pod has exited it is free again, and
belongs to whoever takes it next. Looking up a name prefers the pod that lives, and else the youngest.
"""

from __future__ import annotations

import os

from common.errors import PodError, reason
from stage0.pods import Pod, Pods, State
from stage1 import poddir

_ALIVE = (State.EMBRYO, State.PREPARING, State.PREPARED, State.RUNNING)


def claim(pods: Pods, pod: Pod, name: str) -> None:
    """Give `pod`, which is ours, its name. Raises PodError when a living pod has it."""
    try:
        with pods.claims():
            for other in pods.named(name):
                with other:
                    if other.uuid != pod.uuid and other.state() in _ALIVE:
                        raise PodError(
                            f'the name "{name}" is taken by pod "{other.uuid}", which is {other.state()}',
                            hint="stop and remove it, or choose another --pod-name",
                        )
            # Before the claims lock is let go; nobody reads the name of a pod without it and finds a part of it.
            _write(f"{pod.path}/{poddir.NAME}", name)
    except OSError as error:
        raise PodError(f'cannot name the pod "{name}": {error.filename or pods.root}: {reason(error)}') from error


def prefer(found: list[Pod]) -> Pod | None:
    """Of several observed pods of one name the one that is meant; the others are closed."""
    best: Pod | None = None
    for pod in found:
        if best is None or _rank(pod) > _rank(best):
            best, pod = pod, best
        if pod is not None:
            pod.close()
    return best


def _rank(pod: Pod) -> tuple[bool, int]:
    return pod.state() in _ALIVE, pod.created_at or 0


def _write(path: str, text: str) -> None:
    partial = f"{path}.new"
    with open(partial, "w", encoding="ascii") as file:
        file.write(f"{text}\n")
    os.rename(partial, path)
