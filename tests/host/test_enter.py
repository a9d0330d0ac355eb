"""`rkpy enter` as typed, beside pods started by `rkpy run-prepared`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage0.pods import Pods
from stage1 import poddir
from tests.host.flying import read, until

IMAGE = "sha512-" + "0" * 128
ROOT = Path(__file__).parents[2]


class Engine:
    """A data directory with one layer, and pods written by hand into it."""

    def __init__(self, root: Path, inspector: str) -> None:
        self.data = root / "data"
        layer = self.data / "cas/layer/sha512-test"
        for name in ("bin", "etc", "srv"):
            (layer / name).mkdir(parents=True)
        (layer / "etc/passwd").write_text("web:x:33:34::/srv:/bin/sh\n")
        shutil.copy(inspector, layer / "bin/inspect")
        self._started: list[subprocess.Popen[bytes]] = []

    def prepare(self, *names: str) -> str:
        """The UUID of a prepared pod with apps of these names."""
        with Pods(f"{self.data}/pods").create() as pod:
            pod.to_prepare()
            Path(pod.path, poddir.FLAVOUR).write_text("fly")
            section = {
                "exec": ["inspect", "args", "ready", "+", "sleep"],
                "user": "web",
                "group": "34",
                "workingDirectory": "/srv",
                "environment": [{"name": "X", "value": "y"}],
            }
            apps = [{"name": name, "image": {"id": IMAGE}, "app": section} for name in names]
            for name in names:
                os.makedirs(poddir.app_info(pod.path, name, ""))
                Path(poddir.app_info(pod.path, name, "layers")).write_text("layer/sha512-test\n")
            manifest = {"acVersion": "0.8.11", "acKind": "PodManifest", "apps": apps}
            Path(pod.path, poddir.MANIFEST).write_text(json.dumps(manifest))
            pod.to_prepared()
            return pod.uuid

    def start(self, uuid: str) -> None:
        """Run a prepared pod in the background, until its app has said so."""
        out = self.data / f"{uuid}.out"
        with out.open("wb") as file:
            self._started.append(subprocess.Popen(self._words("run-prepared", uuid), stdout=file, stderr=file))
        until(lambda: "ready" in read(str(out)))

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._words(*words), capture_output=True, text=True, check=False, cwd=ROOT)

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "rkpy.py"), f"--dir={self.data}", *words]

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def rkpy(tmp_path: Path, inspector: str) -> Iterator[Engine]:
    engine = Engine(tmp_path, inspector)
    yield engine
    engine.stop()


def test_the_command_runs_as_the_app_would(rkpy: Engine) -> None:
    uuid = rkpy.prepare("web")
    rkpy.start(uuid)
    done = rkpy("enter", uuid, "inspect", "id", "+", "cwd", "+", "env")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["uid 33 33 33", "gid 34 34 34", "groups", "/srv"], done.stderr
    assert {"X=y", "USER=web", "AC_APP_NAME=web", "container=rkpy"} <= set(lines[4:])
    for words in (("--app=web", uuid[:8]), ("--app", "web", uuid), (uuid, "--")):
        assert rkpy("enter", *words, "inspect", "args", "--app=x", "-l", "--", "--help").stdout.splitlines() == [
            "--app=x", "-l", "--", "--help",
        ]  # fmt: skip
    assert rkpy("enter", uuid, "inspect", "exit", "9").returncode == 9
    missing = rkpy("enter", uuid, "nowhere")
    assert (missing.returncode, missing.stderr) == (
        127,
        'rkpy: enter: program "nowhere" not found in the app\'s PATH\n',
    )


def test_pods_that_cannot_be_entered(rkpy: Engine) -> None:
    uuid = rkpy.prepare("web")
    prepared = rkpy("enter", uuid, "inspect")
    assert (prepared.returncode, prepared.stderr) == (254, f'rkpy: enter: pod "{uuid}" isn\'t currently running\n')
    unknown = rkpy("enter", "00000000", "inspect")
    assert unknown.returncode == 254
    assert 'problem retrieving pod: no matches found for "00000000"' in unknown.stderr
    rkpy.start(uuid)
    wrong = rkpy("enter", "--app=db", uuid, "inspect")
    assert wrong.returncode == 254
    assert 'no app "db" in the pod (there is: web)' in wrong.stderr
    flag = rkpy("enter", "--bogus", uuid)
    assert (flag.returncode, "unknown flag: --bogus" in flag.stderr) == (254, True)
    assert rkpy("stop", uuid).returncode == 0
    until(lambda: "isn't currently running" in rkpy("enter", uuid, "inspect").stderr)


def test_an_app_must_be_chosen_among_several(rkpy: Engine) -> None:
    """fly runs one app a pod; the choice is stage0's, so the pod is one app's in truth and two in its manifest."""
    one, two = rkpy.prepare("web"), rkpy.prepare("web", "db")
    rkpy.start(one)
    shutil.copy(f"{rkpy.data}/pods/prepared/{two}/pod", f"{rkpy.data}/pods/run/{one}/pod")
    shutil.copytree(f"{rkpy.data}/pods/prepared/{two}/appsinfo/db", f"{rkpy.data}/pods/run/{one}/appsinfo/db")
    done = rkpy("enter", one, "inspect", "args")
    assert done.returncode == 254
    assert 'pod contains multiple apps: web, db (specify one with "--app=NAME")' in done.stderr
    assert rkpy("enter", "--app=db", one, "inspect", "args", "in").stdout == "in\n"
