"""list, status, cat-manifest and stop: the shapes recorded from rkt 1.30. Commands run as users run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stage0.commands import enter
from stage0.pods import Pod, Pods
from stage1 import poddir
from tests.living import Living, die, start

ROOT = Path(__file__).parent.parent.parent
IMAGE_ID = "sha512-" + "523eb3e20347d785" * 8
CREATED = 1795458550_933_213_210
STARTED = 1795458551_004_101_016


def manifest(*names: str, **fields: Any) -> bytes:
    """A pod manifest of apps that are all made of one image."""
    labels = [{"name": "version", "value": "1"}, {"name": "os", "value": "linux"}, {"name": "arch", "value": "amd64"}]
    image = {"name": "example.com/busybox", "id": IMAGE_ID, "labels": labels}
    section = {"exec": ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], "user": "0", "group": "0"}
    apps = [{"name": name, "image": image, "app": section} for name in names]
    return json.dumps({"acVersion": "0.8.11", "acKind": "PodManifest", "apps": apps, **fields}).encode()


class Lab:
    """A data directory, pods in it, and rkpy run on it."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.pods = Pods(f"{data_dir}/pods")
        self.living: Living = []

    def pod(self, *apps: str, run: bool = False, alive: bool = False, **fields: Any) -> Pod:
        """A pod of these apps: prepared, or with `run` exited, or with `alive` running."""
        with self.pods.create() as pod:
            pod.to_prepare()
            (Path(pod.path) / "pod").write_bytes(manifest(*apps, **fields))
            (Path(pod.path) / "flavour").write_text("fly")
            os.utime(f"{pod.path}/pod-created", ns=(CREATED, CREATED))
            pod.to_prepared()
            if alive:
                pod.to_run()
                self.living.append(start(pod))
            elif run:
                pod.to_run()
                (Path(pod.path) / "pid").write_text("96157 1 1 boot\n")
            if alive or run:
                os.utime(f"{pod.path}/pid", ns=(STARTED, STARTED))
            return pod

    def rkpy(self, *words: str, status: int = 0) -> str:
        """What `rkpy` prints on standard output."""
        done = self.try_rkpy(*words)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def error(self, *words: str) -> str:
        """What `rkpy` prints on standard error when it fails."""
        done = self.try_rkpy(*words)
        assert done.returncode == 254, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    def try_rkpy(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rkpy", f"--dir={self.data_dir}", *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "TZ": "UTC"}
        )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(str(tmp_path / "data"))
    yield made
    for process in made.living:
        die(process)


def test_list_of_nothing(lab: Lab) -> None:
    assert lab.rkpy("list") == "UUID\tAPP\tIMAGE NAME\tSTATE\tCREATED\tSTARTED\tNETWORKS\n"
    assert lab.rkpy("list", "--no-legend") == ""
    assert lab.rkpy("list", "--format=json") == "[]\n"
    assert not os.path.exists(lab.data_dir)


def test_list(lab: Lab) -> None:
    pod = lab.pod("busybox", run=True)
    header, row = lab.rkpy("list").splitlines()
    assert header.split("\t")[:6] == ["UUID", "", "APP", "IMAGE NAME", "", "STATE"]
    cells = row.split("\t")
    assert cells[:4] == [pod.uuid[:8], "busybox", "example.com/busybox:1", "exited"]
    assert re.search(r"(ago|from now)\t+.*(ago|from now)\t$", row)
    assert lab.rkpy("list", "--no-legend=true").count("\n") == 1


def test_list_full(lab: Lab) -> None:
    pod = lab.pod("busybox", run=True)
    assert lab.rkpy("list", "--full") == (
        "UUID\t\t\t\t\tAPP\tIMAGE NAME\t\tIMAGE ID\t\tSTATE\tCREATED\t\t\t\t\tSTARTED\t\t\t\t\tNETWORKS\n"
        f"{pod.uuid}\tbusybox\texample.com/busybox:1\tsha512-523eb3e20347\texited\t"
        "2026-11-23 18:29:10.933 +0000 UTC\t2026-11-23 18:29:11.004 +0000 UTC\t\n"
    )


def test_a_pod_of_several_apps_takes_a_row_for_each(lab: Lab) -> None:
    pod = lab.pod("one", "two")
    first, second = lab.rkpy("list", "--no-legend").splitlines()
    assert first.startswith(f"{pod.uuid[:8]}\tone\texample.com/busybox:1\tprepared\t")
    assert second.startswith("\t") and second.strip("\t").split("\t") == ["two", "example.com/busybox:1"]


def test_scripts_find_running_pods(lab: Lab) -> None:
    lab.pod("a")
    lab.pod("a", run=True)
    running = {lab.pod("a", alive=True).uuid for _ in range(2)}
    listing = lab.rkpy("list", "--full")
    script = subprocess.run(
        ["sh", "-c", "grep running | awk '{print $1}'"], input=listing, capture_output=True, text=True, check=True
    )
    assert set(script.stdout.split()) == running


def test_json_is_rkts(lab: Lab) -> None:
    pod = lab.pod("busybox", run=True)
    expected = (
        f'{{"name":"{pod.uuid}","state":"exited","app_names":["busybox"],"apps":[{{"name":"busybox","state":"exited",'
        f'"created_at":{CREATED},"started_at":{STARTED},"image_id":"{IMAGE_ID}"}}],'
        f'"created_at":{CREATED // 10**9},"started_at":{STARTED // 10**9}}}'
    )
    assert lab.rkpy("list", "--format=json") == f"[{expected}]\n"
    assert lab.rkpy("status", "--format=json", pod.uuid) == f"{expected}\n"
    pretty = lab.rkpy("status", "--format=json-pretty", pod.uuid)
    assert pretty.startswith('{\n\t"name": "') and json.loads(pretty) == json.loads(expected)


def test_json_with_everything(lab: Lab) -> None:
    volumes = [{"name": "data", "kind": "host", "source": "/srv", "readOnly": True}]
    pod = lab.pod("app", run=True, volumes=volumes, userLabels={"tier": "web"}, userAnnotations={"a": "b"})
    place = f"{lab.pods.root}/run/{pod.uuid}"
    document = json.loads(Path(place, "pod").read_text())
    document["apps"][0]["mounts"] = [{"volume": "data", "path": "/data"}]
    Path(place, "pod").write_text(json.dumps(document))
    os.mkdir(f"{place}/status")
    Path(place, "status/app").write_text("7\n")
    os.utime(f"{place}/status/app", ns=(STARTED + 5, STARTED + 5))
    told = json.loads(lab.rkpy("status", "--format=json", pod.uuid))
    assert told["user_labels"] == {"tier": "web"} and told["user_annotations"] == {"a": "b"}
    app = told["apps"][0]
    assert (app["exit_code"], app["finished_at"]) == (7, STARTED + 5)
    assert app["mounts"] == [{"name": "data", "container_path": "/data", "host_path": "/srv", "read_only": True}]


def test_names_are_the_last_column_if_there_are_any(lab: Lab) -> None:
    named, other = lab.pod("one", "two", run=True), lab.pod("app", run=True)
    Path(lab.pods.root, "run", named.uuid, "name").write_text("web\n")
    header, *rows = lab.rkpy("list").splitlines()
    assert header.split("\t")[0] == "UUID" and header.endswith("\tNETWORKS\tPOD NAME")
    ends = {row.split("\t")[0]: row.rsplit("\t", 1)[1] for row in rows}
    assert ends == {named.uuid[:8]: "web", "": "", other.uuid[:8]: ""}
    assert lab.rkpy("status", "web").splitlines()[:2] == ["state=exited", "name=web"]
    assert json.loads(lab.rkpy("status", "--format=json", "web"))["pod_name"] == "web"
    assert "name=" not in lab.rkpy("status", other.uuid)


def test_how_apps_ended(lab: Lab) -> None:
    pod = lab.pod("one", "two", "three", run=True)
    place = Path(lab.pods.root, "run", pod.uuid)
    for directory, name, text in (
        ("status", "one", "137 signal 9 oom\n"), ("status", "two", "0 stopped\n"), ("started", "one", "7 8\n"),
        ("restarts", "one", "2\n"),
    ):  # fmt: skip
        (place / directory).mkdir(exist_ok=True)
        (place / directory / name).write_text(text)
    os.utime(place / "started/one", ns=(STARTED + 9, STARTED + 9))
    lines = lab.rkpy("status", pod.uuid).splitlines()
    assert lines[-4:] == ["app-one=137", "app-one-signal=9", "app-one-oom=true", "app-two=0"]
    one, two, three = json.loads(lab.rkpy("status", "--format=json", pod.uuid))["apps"]
    assert (one["exit_code"], one["signal"], one["oom_killed"], one["restarts"]) == (137, 9, True, 2)
    assert (one["started_at"], two["started_at"]) == (STARTED + 9, STARTED)
    assert "signal" not in two and "exit_code" not in three


def test_apps_of_a_running_pod_have_states_of_their_own(lab: Lab) -> None:
    pod = lab.pod("one", "two", "three", alive=True)
    place = Path(lab.pods.root, "run", pod.uuid)
    for name in ("started/one", "started/two", "status/two"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("0\n")
    told = json.loads(lab.rkpy("status", "--format=json", pod.uuid))["apps"]
    assert [app["state"] for app in told] == ["running", "exited", "created"]
    assert "started_at" not in told[2]
    assert lab.rkpy("app", "list", pod.uuid) == "NAME\tSTATE\none\trunning\ntwo\texited\nthree\tcreated\n"


def test_a_pod_that_cannot_be_read_does_not_hide_the_others(lab: Lab) -> None:
    good, bad = lab.pod("good", run=True), lab.pod("bad", run=True)
    Path(lab.pods.root, "run", bad.uuid, "pod").write_text("{")
    done = lab.try_rkpy("list", "--no-legend")
    assert done.returncode == 0
    assert done.stdout.startswith(good.uuid[:8]) and done.stdout.count("\n") == 1
    assert "1 error(s) encountered when listing pods" in done.stderr
    assert f"rkpy: list: pod {bad.uuid}: pod manifest is not JSON" in done.stderr
    Path(lab.pods.root, "run", bad.uuid, "pod").unlink()
    assert f'cannot read the manifest of pod "{bad.uuid}"' in lab.try_rkpy("list").stderr


def test_status_of_an_exited_pod(lab: Lab) -> None:
    pod = lab.pod("busybox", run=True)
    text = (
        "state=exited\ncreated=2026-11-23 18:29:10.933 +0000 UTC\nstarted=2026-11-23 18:29:11.004 +0000 UTC\n"
        "networks=\npid=96157\nexited=true\n"
    )
    assert lab.rkpy("status", pod.uuid) == text
    os.mkdir(f"{lab.pods.root}/run/{pod.uuid}/status")
    Path(lab.pods.root, "run", pod.uuid, "status/busybox").write_text("3\n")
    assert lab.rkpy("status", pod.uuid[:9]) == text + "app-busybox=3\n"


def test_status_of_a_prepared_pod(lab: Lab) -> None:
    pod = lab.pod("busybox")
    assert lab.rkpy("status", pod.uuid) == "state=prepared\ncreated=2026-11-23 18:29:10.933 +0000 UTC\n"


def test_status_tolerates_every_missing_file(lab: Lab) -> None:
    """rkt/rkt#3800"""
    pod = lab.pod("busybox", run=True)
    for name in ("pid", "pod-created", "flavour", "lock"):
        os.unlink(f"{lab.pods.root}/run/{pod.uuid}/{name}")
    assert lab.rkpy("status", pod.uuid) == "state=exited\nnetworks=\nexited=true\n"
    assert lab.rkpy("list", "--no-legend").split("\t")[:2] == [pod.uuid[:8], "busybox"]


def test_status_of_what_was_never_finished(lab: Lab) -> None:
    with lab.pods.create() as pod:
        pod.to_prepare()
    assert lab.rkpy("status", pod.uuid).startswith("state=aborted prepare\ncreated=")
    assert "aborted prepare" in lab.rkpy("list")


def test_status_waits_for_the_end(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod("busybox", alive=True)
    (tmp_path / "uuid").write_text(f"{pod.uuid}\n")
    assert "is not over after 0.2 s" in lab.error("status", "--wait=200ms", pod.uuid)
    assert "state=running" in lab.rkpy("status", "--wait=false", pod.uuid)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "status", "--wait", f"--uuid-file={tmp_path}/uuid"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=0.5)
        die(lab.living[0])
        assert "state=exited\n" in waiting.communicate()[0]
        assert waiting.returncode == 0


def test_wait_does_not_swallow_the_uuid(lab: Lab) -> None:
    pod = lab.pod("busybox", run=True)
    for flag in ("--wait", "--wait-ready", "--wait=1h", "--wait=-1s"):
        assert lab.rkpy("status", flag, pod.uuid).startswith("state=exited\n")


def test_status_waits_until_ready(lab: Lab) -> None:
    pod = lab.pod("busybox", alive=True)
    starting = Path(lab.pods.root, "run", pod.uuid, "starting")
    starting.touch()
    assert "is not ready after 0.2 s" in lab.error("status", "--wait-ready=200ms", pod.uuid)
    starting.unlink()
    assert "state=running" in lab.rkpy("status", "--wait-ready=1h", pod.uuid)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status"], "must provide a pod UUID"),
        (["status", "a", "b"], "must provide exactly one pod UUID"),
        (["status", "1234"], 'no matches found for "1234"'),
        (["status", "--wait=soon", "a"], 'invalid duration "soon"'),
        (["status", "--format=yaml", "a"], "'yaml' is not one of"),
        (["status", "--uuid-file=/nonexistent"], "unable to resolve UUID from file: open /nonexistent: no such file"),
        (["status", "--uuid-file=/nonexistent", "a"], "cannot be combined"),
        (["cat-manifest", "1234"], 'no matches found for "1234"'),
        (["stop", "1234"], 'cannot get pod: no matches found for "1234"'),
        (["stop"], "must provide a pod UUID"),
        (["list", "--full=maybe"], '"maybe" is neither true nor false'),
    ],
)
def test_mistakes_take_one_line_and_254(lab: Lab, words: list[str], message: str) -> None:
    assert message in lab.error(*words)


def test_cat_manifest(lab: Lab) -> None:
    pod = lab.pod("busybox")
    text = lab.rkpy("cat-manifest", pod.uuid)
    assert text.startswith('{\n\t"acVersion": "0.8.11",\n\t"acKind": "PodManifest",\n\t"apps": [\n\t\t{\n')
    assert '"echo out; echo err \\u003e\\u00262; exit 7"' in text
    short = lab.rkpy("cat-manifest", "--pretty-print=false", pod.uuid)
    assert short.count("\n") == 1 and json.loads(short) == json.loads(text)
    Path(lab.pods.root, "prepared", pod.uuid, "pod").unlink()
    assert "cannot read the manifest" in lab.error("cat-manifest", pod.uuid)


def test_stop(lab: Lab) -> None:
    pods = [lab.pod("busybox", alive=True) for _ in range(2)]
    assert lab.rkpy("stop", *(pod.uuid for pod in pods)) == "".join(f'"{pod.uuid}"\n' for pod in pods)
    assert [process.wait() for process in lab.living] == [-15, -15]
    assert "already stopped" in lab.rkpy("stop", pods[0].uuid)


def test_stopping_a_pod_that_is_just_starting(lab: Lab) -> None:
    """It runs, by its lock, before there is a leader to be stopped."""
    pod = lab.pod("busybox", alive=True)
    record = Path(lab.pods.root, "run", pod.uuid, "pid")
    record.rename(f"{record}.later")
    stopping = subprocess.Popen(
        [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "stop", pod.uuid], stdout=subprocess.PIPE, cwd=ROOT
    )
    with stopping:
        with pytest.raises(subprocess.TimeoutExpired):
            stopping.wait(timeout=0.5)
        Path(f"{record}.later").rename(record)
        assert stopping.communicate()[0] == f'"{pod.uuid}"\n'.encode()
    assert lab.living[0].wait() == -15


def test_an_app_that_runs_can_be_entered_long_before_its_pod_is_ready(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = lab.pod("busybox", alive=True).uuid
    place = Path(lab.pods.root, "run", uuid)
    (place / "starting").touch()
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 100 * seconds
        if now > 300:
            poddir.write_started(str(place), "busybox", lab.living[0].pid)

    monkeypatch.setattr(enter, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with lab.pods.find(uuid) as pod:
        enter._wait_until_started(pod, "")
        assert now > 300


def test_stop_by_force(lab: Lab) -> None:
    pod = lab.pod("busybox", alive=True)
    lab.rkpy("stop", "--force=false", pod.uuid)
    assert lab.living[0].wait() == -15


def test_stopping_what_does_not_run(lab: Lab) -> None:
    prepared, alive = lab.pod("busybox"), lab.pod("busybox", alive=True)
    done = lab.try_rkpy("stop", prepared.uuid, alive.uuid)
    assert done.returncode == 254
    assert done.stdout == f'"{alive.uuid}"\n'
    assert f'pod "{prepared.uuid}" is not running\n' in done.stderr
    assert done.stderr.endswith("stop: failed to stop 1 pod(s)\n")
