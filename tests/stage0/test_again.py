"""An exited pod that somebody else has for a moment can be started all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from common import locks
from common.errors import PodError
from stage0 import again, gc
from stage0.pods import EXITED_GARBAGE, NAMED, Pod, PodBusyError, Pods, State
from tests.cgroups import until
from tests.living import Living, die, start

DEADLINE = 60


def exited(pods: Pods) -> str:
    with pods.create() as pod:
        pod.to_prepare()
        Path(pod.path, "pod").write_text("{}")
        pod.to_run()
        return pod.uuid


class Taking(threading.Thread):
    """`rkpy start`, which takes the pod."""

    def __init__(self, pods: Pods, uuid: str) -> None:
        super().__init__()
        self.pods, self.uuid = pods, uuid
        self.taken: Pod | None = None
        self.error = ""

    def run(self) -> None:
        try:
            self.taken = again.take(self.pods, self.uuid, DEADLINE)
        except PodError as error:
            self.error = error.message

    def begin(self) -> None:
        """Until it waits."""
        self.start()
        until(lambda: locks.waiting or not self.is_alive())
        assert self.is_alive(), self.error

    def end(self) -> Pod:
        self.join(DEADLINE)
        assert self.taken is not None, self.error
        return self.taken


def test_one_whose_claims_are_being_taken_back_is_waited_for(pods: Pods) -> None:
    uuid = exited(pods)
    taking = Taking(pods, uuid)
    with pods.find(uuid) as other:
        other.take(quietly=True)
        taking.begin()
    with taking.end() as pod:
        assert (pod.directory, pod.is_owned, pod.state()) == ("run", True, State.RUNNING)


def test_one_that_is_marked_meanwhile_is_taken_where_it_has_gone(pods: Pods) -> None:
    uuid = exited(pods)
    taking = Taking(pods, uuid)
    with pods.find(uuid) as other:
        other.take(quietly=True)
        taking.begin()
        other.to_exited_garbage()
    with taking.end() as pod:
        assert (pod.directory, pod.is_owned) == (EXITED_GARBAGE, True)


class Racing(Pods):
    """Where `rkpy gc` is quicker, once, than who has just found a pod."""

    raced = False

    def find(self, prefix: str, directories: Iterable[str] = NAMED) -> Pod:
        pod = super().find(prefix, directories)
        if not self.raced:
            self.raced = True
            assert list(gc.mark_exited(Pods(self.root), lambda error: pytest.fail(str(error)))) == [pod.uuid]
        return pod


def test_one_that_was_moved_on_is_looked_up_anew(pods: Pods) -> None:
    with again.take(Racing(pods.root), exited(pods)) as pod:
        assert (pod.directory, pod.is_owned) == (EXITED_GARBAGE, True)


def test_one_that_somebody_else_starts_is_not_waited_for_once_it_runs(pods: Pods, living: Living) -> None:
    uuid = exited(pods)
    with again.take(pods, uuid) as pod:
        living.append(start(pod))
    die(living[0])
    taking = Taking(pods, uuid)
    with again.take(pods, uuid) as pod:
        taking.begin()
        living.append(start(pod))
    taking.join(DEADLINE)
    assert taking.error == f'pod "{uuid}" is running already'


def test_nobody_waits_for_ever(pods: Pods) -> None:
    uuid = exited(pods)
    with pods.find(uuid) as other:
        other.take(quietly=True)
        with pytest.raises(PodBusyError, match="in use by another process"):
            again.take(pods, uuid, 0.1)
    assert not locks.waiting
