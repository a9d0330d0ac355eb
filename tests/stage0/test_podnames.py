"""Names of pods: one living pod each, and good wherever a UUID is."""

from __future__ import annotations

import os
import signal

import pytest

from common.errors import PodError
from stage0 import podnames
from stage0.pods import EXITED_GARBAGE, Pod, Pods
from tests.living import Living, die, start


def preparing(pods: Pods, name: str) -> Pod:
    pod = pods.create()
    pod.to_prepare()
    podnames.claim(pods, pod, name)
    return pod


def test_a_name_is_good_wherever_a_uuid_is(pods: Pods) -> None:
    with preparing(pods, "web") as pod, pods.find(" web\n") as found:
        assert found.uuid == pod.uuid
        assert found.name() == "web"
        for text in ("we", "webs", "WEB"):
            with pytest.raises(PodError, match="no matches"):
                pods.find(text)


def test_a_name_beats_a_prefix(pods: Pods) -> None:
    with pods.create() as other, preparing(pods, other.uuid[:3]) as pod, pods.find(other.uuid[:3]) as found:
        assert found.uuid == pod.uuid


def test_a_living_pod_keeps_its_name(pods: Pods, living: Living) -> None:
    with preparing(pods, "web") as pod, pods.create() as other:
        with pytest.raises(PodError, match=f'"web" is taken by pod "{pod.uuid}", which is preparing'):
            podnames.claim(pods, other, "web")
        pod.to_prepared()
        with pytest.raises(PodError, match="prepared"):
            podnames.claim(pods, other, "web")
        pod.to_run()
        living.append(start(pod))
        with pytest.raises(PodError, match="running"):
            podnames.claim(pods, other, "web")
        assert other.name() == ""
        die(living[0])
        podnames.claim(pods, other, "web")


def test_the_living_pod_is_preferred_and_else_the_youngest(pods: Pods) -> None:
    with preparing(pods, "web") as old:
        old.to_run()
    with preparing(pods, "web") as young:
        young.to_run()
    for pod, at in ((old, 10), (young, 20)):
        os.utime(f"{pod.path}/pod-created", (at, at))
    with pods.find("web") as found:
        assert found.uuid == young.uuid
    with pods.find(old.uuid) as again:
        again.take()
        podnames.claim(pods, again, "web")
        with pods.find("web") as found:
            assert found.uuid == old.uuid
    with pods.find(young.uuid) as gone:
        gone.take()
        gone.to_exited_garbage()
        gone.to_garbage()
        gone.close()


def test_what_was_never_prepared_gives_its_name_back(pods: Pods) -> None:
    preparing(pods, "web").close()
    with preparing(pods, "web") as pod:
        assert pod.name() == "web"


def test_of_many_at_once_one_gets_the_name(pods: Pods) -> None:
    with pods.create():
        pass
    end, go = os.pipe()
    tried, try_ = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            os.close(go)
            status = 2
            try:
                pod = pods.create()
                pod.to_prepare()
                try:
                    podnames.claim(pods, pod, "web")
                    status = 0
                except PodError:
                    status = 1
                os.write(try_, b".")
                os.read(end, 1)  # The winner lives until all have tried.
            finally:
                os._exit(status)
        children.append(child)
    signal.alarm(60)
    for _ in children:
        os.read(tried, 1)
    os.close(go)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    signal.alarm(0)
    for fd in (end, tried, try_):
        os.close(fd)
    assert sorted(statuses) == [0, *[1] * 7]


def test_going_back_from_exited_garbage_is_seen(pods: Pods) -> None:
    with preparing(pods, "web") as pod:
        pod.to_run()
        pod.to_exited_garbage()
        assert pod.directory == EXITED_GARBAGE
        pod.to_run_again()
        pod.to_run_again()
        with pods.find("web") as found:
            assert found.directory == "run"
    with pods.find("web") as found, pytest.raises(PodError):
        found.to_prepared()
