"""Pods whose apps change while they run, as far as stage0 goes: a flavour that writes down what it is told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stage1.flavour import PreparedApp, PreparedPod
from tests import images
from tests.host.commands import Rkpy

PLUGIN = Path(__file__).parent / "plugin"


class Recorded(Rkpy):
    """The command where the flavour `recorder` is installed."""

    def environment(self) -> dict[str, str]:
        base = super().environment()
        return {**base, "PYTHONPATH": f"{base['PYTHONPATH']}:{PLUGIN}"}

    def calls(self, name: str) -> list[list[Any]]:
        """What the flavour was told by calls of that name, of the only pod."""
        text = (self.pods()[0] / "calls").read_text() if (self.pods()[0] / "calls").exists() else ""
        return [call[1:] for call in map(json.loads, text.splitlines()) if call[0] == name]


Starter = Callable[..., Path]


@pytest.fixture
def rkpy(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


@pytest.fixture
def image(rkpy: Recorded, tmp_path: Path) -> str:
    app = {"exec": ["/bin/sh", "-c"], "user": "0", "group": "0"}
    path = images.make_aci(str(tmp_path / "app.aci"), images.manifest(app=app), images.busybox_files())
    return rkpy.ok("--insecure-options=image", "fetch", path).strip()


@pytest.fixture
def started(rkpy: Recorded) -> Iterator[Starter]:
    """Runs a pod in the background; its directory."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: object) -> Path:
        process = rkpy.start(*words)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "up\n", process.communicate()
        return next(path for path in rkpy.pods() if path.parent.name == "run")

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def sandbox(started: Starter, *words: object) -> Path:
    return started("app", "sandbox", "--stage1=recorder", *words)


def manifest(pod: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pod / "pod").read_text())
    return found


def names(pod: Path) -> list[str]:
    return [app["name"] for app in manifest(pod)["apps"]]


def test_a_sandbox_begins_without_apps(rkpy: Recorded, started: Starter, tmp_path: Path) -> None:
    pod = sandbox(
        started, f"--uuid-file-save={tmp_path / 'uuid'}", "--annotation=a=b", "--user-label=c=d", "--pod-name=box",
        "--port=http:tcp:80:[::1]:8080",
    )  # fmt: skip
    found = manifest(pod)
    assert found["apps"] == []
    assert {"name": "a", "value": "b"} in found["annotations"]
    assert {"name": "coreos.com/rkt/stage1/mutable", "value": "true"} in found["annotations"]
    assert found["userLabels"] == {"c": "d"}
    port = found["ports"][0]
    assert (port["hostPort"], port["hostIP"], port["podPort"]["port"]) == (8080, "::1", 80)
    assert (tmp_path / "uuid").read_text() == f"{pod.name}\n"
    assert rkpy.ok("app", "list", "box") == "NAME\tSTATE\n"
    assert rkpy.ok("list", "--no-legend").split("\t")[1] == "-"


def test_apps_come_and_go(rkpy: Recorded, started: Starter, image: str, tmp_path: Path) -> None:
    pod = sandbox(started)
    (tmp_path / "shared").mkdir()
    volume = f"name=data,kind=host,source={tmp_path / 'shared'},target=/data,readOnly=true"
    words = ("--name=one", f"--mnt-volume={volume}", "--mnt-volume=name=own,kind=empty,target=/own", "--restart=always")
    assert rkpy.ok("app", "add", pod.name, image, *words, "--", "echo one") == ""
    rkpy.ok("app", "add", pod.name[:8], image, "--name=two")
    (told, one), (told_then, _) = rkpy.calls("app_add")
    assert (told, told_then) == (["one"], ["one", "two"])
    assert one[0] == "one" and one[2][0] == ["/bin/sh", "-c", "echo one"]
    assert [mount[:3] for mount in one[5]] == [[str(tmp_path / "shared"), "/data", True], ["", "/own", False]]
    assert names(pod) == ["one", "two"]
    assert (pod / "volumes/own").is_dir() and (pod / "appsinfo/one/layers").is_file()
    assert rkpy.ok("app", "list", "--no-legend", pod.name) == "one\tcreated\ntwo\tcreated\n"
    (pod / "states").write_text('{"one": "running", "other": "running"}')
    assert rkpy.ok("app", "list", pod.name).splitlines()[1:] == ["one\trunning", "two\tcreated"]
    for name in ("overlay/one", "overlay/two", "status/one", "status/two", "volumes/one.db", "volumes/two.db"):
        (pod / name).mkdir(parents=True)
    rkpy.ok("app", "rm", "--app=one", pod.name)
    assert rkpy.calls("app_rm") == [["one"]]
    assert names(pod) == ["two"]
    left = {str(path.relative_to(pod)) for path in pod.rglob("*") if path.name in ("one", "own", "one.db")}
    assert left == set()
    assert (
        (pod / "overlay/two").is_dir()
        and (pod / "volumes/two.db").is_dir()
        and (pod / "appsinfo/two/layers").is_file()
        and (pod / "rootfs/two").is_dir()
    )
    assert (tmp_path / "shared").is_dir()


def test_an_app_has_a_named_volume(rkpy: Recorded, started: Starter, image: str) -> None:
    """Filled for the app that makes it, and kept when that is gone."""
    pod = sandbox(started)
    rkpy.ok("app", "add", pod.name, image, "--name=one", "--mnt-volume=name=own,kind=named,source=data,target=/bin")
    kept = rkpy.data / "volumes/data"
    assert (kept / "sh").exists()
    ((_, app),) = rkpy.calls("app_add")
    assert [mount[:3] for mount in app[5]] == [[str(kept), "/bin", False]]
    assert rkpy.ok("volume", "list", "--no-legend").split()[:2] == ["data", "1"]
    taken = ("--name=one", "--mnt-volume=name=more,kind=named,source=other,target=/bin")
    assert 'the pod has an app "one" already' in rkpy.refused("app", "add", pod.name, image, *taken)
    assert not (rkpy.data / "volumes/other").exists(), "it was made for nothing"
    rkpy.ok("app", "rm", "--app=one", pod.name)
    assert rkpy.ok("volume", "list", "--no-legend").split()[:2] == ["data", "0"]
    assert (kept / "sh").exists()


def test_what_the_flavour_is_told(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    rkpy.ok("app", "add", pod.name, image)
    rkpy.ok("app", "start", pod.name)
    rkpy.ok("app", "stop", "--app=app", pod.name)
    rkpy.ok("app", "stop", "--force", pod.name)
    rkpy.ok("app", "restart", pod.name)
    assert rkpy.calls("app_start") == rkpy.calls("app_restart") == [["app"]]
    assert rkpy.calls("app_stop") == [["app", False], ["app", True]]
    assert rkpy("attach", "--mode=stdin,stdout", pod.name).status == 7
    assert rkpy("attach", pod.name).status == 7
    assert rkpy.calls("attach") == [["app", "stdin,stdout"], ["app", "auto"]]
    rkpy.ok("app", "exec", pod.name, "ls", "--all")
    rkpy.ok("enter", "--user=web", "--cwd=/srv", pod.name)
    assert rkpy.calls("enter") == [["app", ["ls", "--all"], "", "", False], ["app", [], "web", "/srv", False]]
    assert 'no app "x" in the pod (there is: app)' in rkpy.refused("app", "start", "--app=x", pod.name)
    assert "must provide a command" in rkpy.refused("app", "exec", pod.name)
    assert "exclude each other" in rkpy.refused("attach", "--mode=tty,stdin", pod.name)
    assert "--mode=all" in rkpy.refused("attach", "--mode=all", pod.name)


def test_status_of_an_app(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    rkpy.ok("app", "add", pod.name, image, "--user-annotation=a=b", "--mnt-volume=name=v,kind=empty,target=/v")
    lines = rkpy.ok("app", "status", pod.name).splitlines()
    assert lines[:3] == ["name=app", "state=created", f"image_id={manifest(pod)['apps'][0]['image']['id']}"]
    assert lines[3].startswith("created_at=")
    assert lines[4:] == ["mounts=:/v:(read_only:false)", "user_annotations=a:b"]
    (pod / "started/app").write_text("5 7\n")
    assert json.loads(rkpy.ok("app", "status", "--format=json", pod.name))["state"] == "running"
    (pod / "status").mkdir()
    (pod / "status/app").write_text("137 signal 9 oom\n")
    (pod / "restarts").mkdir()
    (pod / "restarts/app").write_text("3\n")
    found = json.loads(rkpy.ok("app", "status", "--format=json", pod.name))
    told = {key: found.get(key) for key in ("state", "exit_code", "signal", "oom_killed", "restarts")}
    assert told == {"state": "exited", "exit_code": 137, "signal": 9, "oom_killed": True, "restarts": 3}
    assert rkpy.ok("app", "status", pod.name).splitlines()[6:10] == [
        "exit_code=137",
        "signal=9",
        "oom_killed=true",
        "restarts=3",
    ]
    rkpy.ok("stop", pod.name)
    rkpy.ok("status", "--wait=60s", pod.name)
    assert "app-app=137\napp-app-signal=9\napp-app-oom=true\n" in rkpy.ok("status", pod.name)


def test_a_refused_app_leaves_nothing(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    (pod / "refuse").touch()
    before = sorted(path for path in pod.rglob("*") if path.name != "apps-lock")
    line = rkpy.refused("app", "add", pod.name, image, "--mnt-volume=name=v,kind=empty,target=/v")
    assert "recorder refuses" in line
    found = {path for path in pod.rglob("*") if path.name != "apps-lock"} - set(before)
    assert {path.name for path in found} <= {"appsinfo", "rootfs", "volumes"}
    assert names(pod) == []
    (pod / "refuse").unlink()
    rkpy.ok("app", "add", pod.name, image, "--mnt-volume=name=v,kind=empty,target=/v")


def test_what_an_interrupted_add_left_is_cleared(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    for name in ("appsinfo/app/old", "overlay/app/upper", "rootfs/app/bin", "volumes/v/old"):
        (pod / name).mkdir(parents=True)
    rkpy.ok("app", "add", pod.name, image, "--mnt-volume=name=v,kind=empty,target=/v")
    assert not [path for path in pod.rglob("*") if path.name in ("old", "upper", "bin")]


def test_two_adds_do_not_lose_one_another(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    adding = [rkpy.start("app", "add", pod.name, image, f"--name=n{number}") for number in range(6)]
    results = [(process.communicate()[1], process.returncode) for process in adding]
    assert [status for _, status in results] == [0] * 6, results
    assert sorted(names(pod)) == [f"n{number}" for number in range(6)]
    assert len(rkpy.calls("app_add")[-1][0]) == 6


def test_a_copying_pod_copies_what_is_added(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started, "--no-overlay", "--private-users")
    rkpy.ok("app", "add", pod.name, image)
    assert (pod / "rootfs/app/bin/busybox").is_file()
    ((_, app),) = rkpy.calls("app_add")
    assert app[3] == []
    first, count = (pod / "private-users").read_text().strip().split(":")
    assert (int(first) % 65536, count) == (0, "65536")


def test_what_cannot_be_added(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    rkpy.ok("app", "add", pod.name, image, "--mnt-volume=name=v,kind=empty,target=/v")
    again = ("--name=b", "--mnt-volume=name=v,kind=empty,target=/v")
    for words, message in (
        ((image,), 'has an app "app" already'),
        ((image, *again), 'has a volume "v" already'),
        ((image, "--name=b", "--mount=volume=no,target=/x"), 'there is no volume "no"'),
        ((image, "--name=b", "--mnt-volume=name=w,kind=empty"), "target has to be an absolute path"),
        ((image, "--name=b", "--mnt-volume=name=w,target=/w"), "kind has to be"),
        ((image, "--name=b", "--stdin=log"), "--stdin=log"),
        (("example.com/none",), "example.com/none"),
        ((), "must provide a pod UUID and an image"),
    ):
        assert message in rkpy.refused("app", "add", pod.name, *words)
    assert names(pod) == ["app"]
    assert "app sandbox takes no images" in rkpy.refused("app", "sandbox", "--stage1=recorder", image)
    assert "fly cannot change a running pod" in rkpy.refused("app", "sandbox", "--stage1=fly")


def test_a_dead_pod_gives_up_its_apps(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = sandbox(started)
    rkpy.ok("app", "add", pod.name, image, "--name=one")
    rkpy.ok("app", "add", pod.name, image, "--name=two")
    rkpy.ok("stop", "--force", pod.name)
    rkpy.ok("status", "--wait=60s", pod.name)
    assert "isn't currently running" in rkpy.refused("app", "start", "--app=one", pod.name)
    rkpy.ok("app", "rm", "--app=one", pod.name)
    assert rkpy.calls("app_rm") == []
    assert names(pod) == ["two"]
    assert rkpy.ok("app", "list", "--no-legend", pod.name) == "two\texited\n"


def test_other_pods_are_immutable(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = started("run", "--stage1=recorder", image)
    for words in (("add", pod.name, image), ("start", pod.name), ("rm", pod.name), ("restart", pod.name)):
        assert "is immutable" in rkpy.refused("app", *words)
    assert rkpy.ok("app", "list", "--no-legend", pod.name) == "app\tcreated\n"


def test_a_flavour_may_lack_all_this(rkpy: Recorded, image: str) -> None:
    process = rkpy.start("run", "--stage1=fly", image, "--", "echo up; exec sleep 1000")
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    try:
        assert 'flavour "fly" cannot attach to an app' in rkpy.refused("attach", rkpy.pods()[0].name)
        assert rkpy.ok("app", "list", "--no-legend", rkpy.pods()[0].name) == "app\trunning\n"
        assert rkpy.ok("app", "exec", rkpy.pods()[0].name, "echo", "in") == "in\n"
    finally:
        process.kill()
        process.communicate()


def test_everything_typed_reaches_the_flavour(rkpy: Recorded, started: Starter, image: str) -> None:
    words = (
        "--insecure-options=seccomp,paths", "run", "--stage1=recorder", "--private-users", "--pod-name=web",
        "--interactive", "--exit-policy=until-all", "--stop-timeout=3m", image, "--restart=on-failure:2",
        "--stop-signal=USR1",
        "--device=/dev/fuse:rw", "--stderr=stream",
    )  # fmt: skip
    pod = started(*words)
    found = told(rkpy)
    app = dict(zip(PreparedApp._fields, found["apps"][0], strict=True))
    assert [found[key] for key in ("name", "hostname", "interactive", "mutable")] == ["web", "web", True, False]
    assert [found[key] for key in ("exit_policy", "stop_timeout", "insecure")] == [
        "until-all",
        180,
        ["paths", "seccomp"],
    ]
    assert found["private_users"]
    assert found["private_range"] == list(map(int, (pod / "private-users").read_text().split(":")))
    assert found["data_directory"] == str(rkpy.data)
    assert [app[key] for key in ("streams", "restart", "stop_signal")] == [
        ["null", "log", "stream"], ["on-failure", 2], 10
    ]  # fmt: skip
    assert app["devices"] == [["/dev/fuse", "/dev/fuse"]]
    assert found["asked"] == ["--stderr"]


def told(rkpy: Recorded, which: int = 0) -> dict[str, Any]:
    """The pod as the flavour got it."""
    return dict(zip(PreparedPod._fields, rkpy.calls("run")[which][0], strict=True))


def test_start_undoes_and_repeats(rkpy: Recorded, started: Starter, image: str) -> None:
    pod = started("run", "--stage1=recorder", "--private-users", "--net=none", image)
    before = (pod / "private-users").read_text()
    rkpy.ok("stop", pod.name)
    rkpy.ok("status", "--wait=60s", pod.name)
    rkpy.ok("gc", "--mark-only")
    assert started("start", "--hostname=other", pod.name) == pod
    assert len(rkpy.calls("gc")) == 1
    assert [told(rkpy, which)["hostname"] for which in (0, 1)] == [f"rkpy-{pod.name}", "other"]
    assert [told(rkpy, which)["net"] for which in (0, 1)] == [["none"], ["none"]], "as it was typed the first time"
    assert (pod / "private-users").read_text() == before


def test_interactive_is_for_one_app(rkpy: Recorded, image: str) -> None:
    line = rkpy.refused("run", "--stage1=recorder", "--interactive", image, "--name=a", image, "--name=b")
    assert "--interactive needs exactly one app" in line
    assert rkpy.pods() == []
