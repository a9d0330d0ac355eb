"""Ends that nobody saw: of which apps they are told of, and that no pod is kept by it. What is said, and what systemd
knows of them, is in tests/systemd/inside/journal.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aci import types
from common.errors import RkpyError
from stage0 import behaviour, endings, gc, podinfo
from stage0.pods import Pods
from stage1 import poddir
from stage1.poddir import Ending

IMAGE_ID = types.ID_PREFIX + "1" * types.ID_DIGITS


def marked(pods: Pods, prepare: Callable[[Path], object], *apps: str, annotations: tuple[str, ...] = ()) -> Path:
    """A pod with these apps that has ended, was made what `prepare` makes of it, and is then marked as garbage."""
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        manifest = {
            "acKind": "PodManifest", "acVersion": "0.8.11",
            "apps": [{"name": app, "image": {"id": IMAGE_ID, "name": "example.com/app"}} for app in apps],
            "annotations": [{"name": name, "value": "true"} for name in annotations],
        }  # fmt: skip
        Path(pod.path, poddir.MANIFEST).write_text(json.dumps(manifest))
        prepare(Path(pod.path))
        uuid = pod.uuid
    failures: list[RkpyError] = []
    assert list(gc.mark_exited(pods, failures.append)) == [uuid]
    assert failures == []
    return Path(pods.root, "exited-garbage", uuid)


def led(pod: Path) -> None:
    """It was started, by a process that is no more."""
    (pod / poddir.PID).write_text(f"{os.getpid()} 1 1 {poddir.boot_id()}\n")


def statuses(pod: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in pod.glob("status/*")}


def test_a_flavour_that_leaves_nobody_behind(pods: Pods) -> None:
    assert statuses(marked(pods, led, "app")) == {"app": "unknown\n"}
    (pod,) = pods.all()
    with pod:
        (app,) = podinfo.read(pod).apps
    assert (app.state, app.exit_code, app.finished_at) == ("exited", None, None)


def test_of_a_pod_that_was_never_started_nothing_is_told(pods: Pods) -> None:
    assert statuses(marked(pods, lambda pod: None, "app")) == {}


def test_of_one_that_could_not_be_started_its_monitor_has_told(pods: Pods) -> None:
    def failed(pod: Path) -> None:
        led(pod)
        (pod / poddir.STARTING).touch()

    assert statuses(marked(pods, failed, "app")) == {}


def test_of_a_sandbox_nothing_but_what_ran(pods: Pods) -> None:
    assert statuses(marked(pods, led, "app", annotations=(behaviour.MUTABLE,))) == {}


def test_what_the_monitor_has_recorded_stays(pods: Pods) -> None:
    def monitored(pod: Path) -> None:
        led(pod)
        for name in ("a", "b"):
            poddir.write_started(str(pod), name, 1)
        poddir.write_status(str(pod), "a", "3")

    assert statuses(marked(pods, monitored, "a", "b", "c")) == {"a": "3\n", "b": "unknown\n"}


def test_what_a_full_disk_left_of_a_start_is_no_app(pods: Pods) -> None:
    def interrupted(pod: Path) -> None:
        led(pod)
        poddir.write_started(str(pod), "a", 1)
        Path(poddir.started(str(pod), "b") + ".new").touch()

    assert statuses(marked(pods, interrupted, "a", "b")) == {"a": "unknown\n"}


@pytest.mark.parametrize("what", ["manifest", "status", "started", "unit"])
def test_a_damaged_pod_is_marked_all_the_same(pods: Pods, what: str) -> None:
    def damaged(pod: Path) -> None:
        led(pod)
        match what:
            case "manifest":
                (pod / poddir.MANIFEST).write_text("{")
            case "unit":
                (pod / poddir.UNIT).write_bytes(b"\xff.service\n")
            case _:
                (pod / what).write_text("")

    marked(pods, damaged, "app")


@pytest.mark.parametrize(
    ("code", "status", "result", "ending"),
    [
        (1, 0, "success", Ending(0)),
        (1, 143, "success", Ending(143)),
        (2, 15, "success", Ending(143, 15)),
        (2, 9, "oom-kill", Ending(137, 9, oom=True)),
        (3, 11, "core-dump", Ending(139, 11)),
    ],
)
def test_what_systemd_says_of_a_main_process(code: int, status: int, result: str, ending: Ending) -> None:
    assert endings._ending(code, status, result) == ending
