"""`rkpy start`: an exited pod runs again; under fly, as typed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage0.pods import Pods
from tests import images
from tests.host.commands import Rkpy

SCRIPT = "echo x >> /srv/log; cat /srv/log; echo y >> /data/log; cat /data/log"


@pytest.fixture
def rkpy(tmp_path: Path) -> Rkpy:
    return Rkpy(tmp_path)


@pytest.fixture
def aci(tmp_path: Path) -> str:
    return images.make_aci(str(tmp_path / "app.aci"), images.manifest(), {**images.busybox_files(), "srv/": b""})


@pytest.fixture
def sleeping(rkpy: Rkpy, aci: str) -> Iterator[subprocess.Popen[str]]:
    """A pod called "web" that runs until it is killed."""
    words = (
        "--insecure-options=image",
        "run",
        "--stage1=fly",
        "--pod-name=web",
        aci,
        "--",
        "-c",
        "echo up; exec sleep 1000",
    )
    process = rkpy.start(*words)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def exited(rkpy: Rkpy, aci: str, script: str = SCRIPT) -> Path:
    volume = ("--volume=data,kind=empty", "--mount=volume=data,target=/data", "--pod-name=web")
    assert rkpy.fly(*volume, aci, "--", "-c", script).out == "x\ny\n"
    return rkpy.pods()[0]


def test_the_same_pod_runs_again_with_what_it_wrote(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    uuid = exited(rkpy, aci).name
    assert rkpy.ok("start", uuid) == "x\nx\ny\ny\n"
    assert rkpy.ok("start", f"--uuid-file-save={tmp_path / 'uuid'}", "web") == "x\nx\nx\ny\ny\ny\n"
    assert (tmp_path / "uuid").read_text() == f"{uuid}\n"
    assert [path.name for path in rkpy.pods()] == [uuid]


def test_one_that_was_marked_runs_again(rkpy: Rkpy, aci: str) -> None:
    uuid = exited(rkpy, aci).name
    rkpy.ok("gc", "--mark-only")
    assert rkpy.pods()[0].parent.name == "exited-garbage"
    assert rkpy.ok("start", uuid) == "x\nx\ny\ny\n"
    assert rkpy.pods()[0].parent.name == "run"


def test_what_the_last_run_recorded_is_gone(rkpy: Rkpy, aci: str) -> None:
    pod = exited(rkpy, aci)
    for name in ("status", "started", "restarts"):
        (pod / name).mkdir()
        (pod / name / "app").write_text("7\n")
    before = (pod / "pid").stat().st_mtime_ns
    assert "app-app=7" in rkpy.ok("status", "web")
    rkpy.ok("start", "web")
    assert not [name for name in ("status", "started", "restarts") if (pod / name).exists()]
    assert (pod / "pid").stat().st_mtime_ns > before


def test_what_runs_cannot_be_started(rkpy: Rkpy, sleeping: subprocess.Popen[str]) -> None:
    assert "is running already" in rkpy.refused("start", "web")
    assert sleeping.poll() is None


def test_a_prepared_pod_has_its_first_run_and_more(rkpy: Rkpy, aci: str) -> None:
    words = ("--insecure-options=image", "prepare", "--stage1=fly", "--pod-name=web", aci, "--", "-c")
    uuid = rkpy.ok(*words, "echo x >> /srv/log; cat /srv/log").strip()
    assert rkpy.ok("start", "web") == "x\n"
    assert rkpy.ok("start", uuid) == "x\nx\n"
    assert "is not prepared: it is exited" in rkpy.refused("run-prepared", uuid)


def test_a_run_that_cannot_be_recorded_uses_up_no_pod(rkpy: Rkpy, aci: str) -> None:
    """As where the disk is full; before anything else has changed."""
    uuid = rkpy.ok("--insecure-options=image", "prepare", "--stage1=fly", aci, "--", "-c", "echo x").strip()
    (pod,) = rkpy.pods()
    (pod / "run-flags").mkdir()
    for command in ("run-prepared", "start"):
        assert "run-flags: is a directory" in rkpy.refused(command, "--net=host", uuid)
        assert "state=prepared" in rkpy.ok("status", uuid)
    (pod / "run-flags").rmdir()
    assert rkpy.ok("run-prepared", uuid) == "x\n"


def test_the_unit_of_a_pod_starts_it(rkpy: Rkpy, aci: str) -> None:
    words = ("--insecure-options=image", "prepare", "--stage1=fly", "--pod-name=web", "--stop-timeout=1m", aci)
    uuid = rkpy.ok(*words).strip()
    for name in ("web", uuid, uuid[:8]):
        unit = rkpy.ok("systemd", name)
        assert "Description=Pod web\n" in unit
        assert f" start {uuid}\n" in unit
        assert f" --dir={rkpy.data} " in unit
        assert "TimeoutStopSec=135\n" in unit
        assert "ExecStopPost" not in unit
    assert f" start --net=none {uuid}\n" in rkpy.ok("systemd", "--net=none", uuid)
    # That a word of four letters is the beginning of a UUID may be chance.
    assert "rkpy-run(1)" in rkpy.ok("systemd", uuid[:4])


def test_the_name_may_be_somebody_else_s_by_now(rkpy: Rkpy, aci: str) -> None:
    uuid = exited(rkpy, aci).name
    other = rkpy.ok("--insecure-options=image", "prepare", "--stage1=fly", "--pod-name=web", aci).strip()
    assert f'"web" is taken by pod "{other}", which is prepared' in rkpy.refused("start", uuid)
    rkpy.ok("gc", "--mark-only")
    assert "is taken by pod" in rkpy.refused("start", uuid)
    assert next(path for path in rkpy.pods() if path.name == uuid).parent.name == "exited-garbage"
    rkpy.ok("rm", other)
    rkpy.ok("start", uuid)


def test_a_name_works_wherever_a_uuid_does(rkpy: Rkpy, aci: str, sleeping: subprocess.Popen[str]) -> None:
    status = rkpy.ok("status", "web").splitlines()
    assert status[:2] == ["state=running", "name=web"]
    assert '"pod_name":"web"' in rkpy.ok("list", "--format=json")
    header, row = rkpy.ok("list", "--full").splitlines()
    assert header.endswith("\tPOD NAME") and row.endswith("\tweb")
    assert row.split("\t")[0] == rkpy.pods()[0].name
    line = rkpy.refused("--insecure-options=image", "run", "--stage1=fly", "--pod-name=web", aci)
    assert "is taken by pod" in line
    assert (
        rkpy.ok("enter", "--user=1000:2000", "--cwd=/srv", "web", "sh", "-c", "id -u; id -g; pwd")
        == "1000\n2000\n/srv\n"
    )
    assert rkpy.ok("enter", "--privileged", "web", "id", "-u") == "0\n"
    assert "exclude each other" in rkpy.refused("enter", "--privileged", "--user=1", "web", "id")
    assert "--cwd=srv" in rkpy.refused("enter", "--cwd=srv", "web", "id")
    rkpy.ok("stop", "web")
    sleeping.wait(60)
    assert rkpy.ok("rm", "web") == f'"{row.split(chr(9))[0]}"\n'


def test_running_a_pod_gives_a_hint(rkpy: Rkpy, aci: str) -> None:
    uuid = exited(rkpy, aci).name
    for word in (uuid, uuid[:8], "web"):
        assert f"rkpy start {word} runs it again" in rkpy.refused("run", "--stage1=fly", "--pull-policy=never", word)
    assert "rkpy start" not in rkpy.refused("run", "--stage1=fly", "--pull-policy=never", uuid[:3])


def test_gc_and_start_do_not_meet(rkpy: Rkpy, aci: str) -> None:
    """A pod that somebody holds is neither marked nor removed, and started when he lets go of it."""
    uuid = exited(rkpy, aci).name
    with Pods(f"{rkpy.data}/pods").find(uuid) as pod:
        pod.take()
        starting = rkpy.start("start", uuid)
        rkpy.ok("gc", "--grace-period=0s")
        assert os.path.isdir(pod.path)
        assert starting.poll() is None
    assert starting.communicate(timeout=60) == ("x\nx\ny\ny\n", "")
    rkpy.ok("gc", "--grace-period=0s")
    assert rkpy.pods() == []


def test_prepare_keeps_what_fly_only_warns_about(rkpy: Rkpy, aci: str) -> None:
    words = ("--restart=always", "--device=/dev/null", "--stop-signal=INT")
    done = rkpy("--insecure-options=image", "prepare", "--stage1=fly", "--exit-policy=until-all", aci, *words)
    assert done.status == 0, done
    for warning in ("--restart=always", "--device=/dev/null", "--exit-policy=until-all"):
        assert f"fly ignores {warning}" in done.err
    manifest = rkpy.ok("cat-manifest", done.out.strip())
    assert all(word in manifest for word in ("rkpy/restart", "rkpy/stop-signal", "rkpy/devices", "rkpy/exit-policy"))
    assert rkpy("run-prepared", done.out.strip()).status == 0
