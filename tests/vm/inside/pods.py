"""`rkpy run --stage1=nspawn` with limits, on a machine that can keep them; run there by tests/vm/test_pods.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.cgroups import until
from tests.host.commands import Done, Rkpy

NAME = "example.com/busy"
APP = "busy"
SHELL = ("--exec", "/bin/sh", "--", "-c")

# Each reads as much into memory as it says, in one go.
HOG = "/bin/busybox dd if=/dev/zero of=/dev/null bs=128M count=1"
BOMB = "n=0; while [ $n -lt 100 ]; do sleep 1000 & n=$((n+1)); done"


@pytest.fixture(scope="module")
def rkpy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rkpy]:
    rkpy = Rkpy(tmp_path_factory.mktemp("pods"))
    image = str(rkpy.directory / "image.aci")
    images.make_aci(image, images.manifest(NAME), images.busybox_files())
    rkpy.ok("--insecure-options=image", "fetch", image)
    yield rkpy
    rkpy.ok("gc", "--grace-period=0s")
    assert not os.path.exists("/sys/fs/cgroup/rkpy")


@pytest.fixture(autouse=True)
def no_pod_is_left(rkpy: Rkpy) -> Iterator[None]:
    yield
    rkpy.ok("gc", "--grace-period=0s")
    rkpy.ok("gc", "--grace-period=0s")


def run(rkpy: Rkpy, script: str, *flags: str, options: tuple[str, ...] = ()) -> Done:
    return rkpy("--insecure-options=image", "run", "--stage1=nspawn", *options, NAME, *flags, *SHELL, script)


def says(rkpy: Rkpy, file: str, *flags: str, options: tuple[str, ...] = ()) -> str:
    """What the app finds in a file of its own cgroup, by way of a volume."""
    place = rkpy.directory / "said"
    place.mkdir(exist_ok=True)
    options = (*options, f"--volume=said,kind=host,source={place}", "--mount=volume=said,target=/said")
    done = run(rkpy, f"cat /sys/fs/cgroup/{file} >/said/text", *flags, options=options)
    assert done.status == 0, done
    return (place / "text").read_text().strip()


def only_pod(rkpy: Rkpy) -> str:
    (pod,) = rkpy.pods()
    return pod.name


def test_an_app_over_its_memory_ends_with_137_and_the_reason_is_kept(rkpy: Rkpy) -> None:
    done = run(rkpy, HOG, "--memory=32M")
    assert done.status == 137, done
    status = rkpy.ok("status", only_pod(rkpy)).splitlines()
    assert f"app-{APP}=137" in status
    assert f"app-{APP}-oom=true" in status


def test_an_app_within_its_memory_ends_as_it_likes(rkpy: Rkpy) -> None:
    done = run(rkpy, f"{HOG.replace('128M', '1M')} && exit 7", "--memory=32M")
    assert done.status == 7, done
    assert "oom" not in rkpy.ok("status", only_pod(rkpy))


def test_a_program_that_kills_itself_is_not_taken_for_one_that_lacked_memory(rkpy: Rkpy) -> None:
    assert run(rkpy, "kill -9 $$", "--memory=32M").status == 137
    assert "oom" not in rkpy.ok("status", only_pod(rkpy))


@pytest.mark.parametrize(
    ("flag", "file", "content"),
    [
        ("--memory=32M", "memory.max", str(32 * 10**6 // 4096 * 4096)),
        ("--memory=32Mi", "memory.max", str(32 << 20)),
        ("--memory=32Mi", "memory.swap.max", str(32 << 20)),
        ("--cpu=500m", "cpu.max", "50000 100000"),
        ("--cpu=2", "cpu.max", "200000 100000"),
        ("--cpu-shares=512", "cpu.weight", "50"),
        ("--pids-limit=64", "pids.max", "64"),
        ("--user=0", "pids.max", "2048"),
        ("--user=0", "memory.max", "max"),
    ],
)
def test_an_app_sees_its_limits(rkpy: Rkpy, flag: str, file: str, content: str) -> None:
    assert says(rkpy, file, flag) == content


def test_limits_hold_in_a_user_namespace_too(rkpy: Rkpy) -> None:
    assert says(rkpy, "pids.max", "--pids-limit=64", options=("--private-users",)) == "64"
    assert run(rkpy, HOG, "--memory=32M", options=("--private-users",)).status == 137


def test_an_app_cannot_lift_its_limits(rkpy: Rkpy) -> None:
    assert run(rkpy, "echo max >/sys/fs/cgroup/pids.max", "--pids-limit=64").status != 0


def test_a_fork_bomb_stays_small_and_ends_with_its_pod(rkpy: Rkpy) -> None:
    words = ("--insecure-options=image", "run", "--stage1=nspawn", NAME, "--pids-limit=16", *SHELL, f"{BOMB}; wait")
    with rkpy.start(*words) as process:
        until(rkpy.pods)
        place = Path("/sys/fs/cgroup/rkpy", only_pod(rkpy), APP)

        def refused() -> bool:
            return (place / "pids.events").exists() and (place / "pids.events").read_text().strip() != "max 0"

        until(refused)
        assert int((place / "pids.current").read_text()) <= 16
        rkpy.ok("stop", "--force", only_pod(rkpy))
        process.wait()
    until(lambda: not place.parent.exists())


def test_a_pod_in_a_delegated_service_is_bounded_by_the_service_and_ends_with_it(rkpy: Rkpy) -> None:
    words = rkpy.command(
        "--insecure-options=image", "run", "--stage1=nspawn", NAME, "--exec", "/bin/sleep", "--", "1000"
    )
    options = ("-q", "--unit=pod", "-p", "Delegate=yes", "-p", "MemoryMax=200M", "-p", "KillMode=mixed")
    subprocess.run(["systemd-run", *options, f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}", *words], check=True)
    try:
        until(rkpy.pods)
        place = Path("/sys/fs/cgroup/system.slice/pod.service", only_pod(rkpy), APP)
        until(lambda: place.exists() and (place / "cgroup.procs").read_text())
    finally:
        subprocess.run(["systemctl", "stop", "pod"], check=True)
    assert not place.exists()


def test_gc_ends_what_a_killed_monitor_left(rkpy: Rkpy) -> None:
    words = ("--insecure-options=image", "run", "--stage1=nspawn", NAME, "--exec", "/bin/sleep", "--", "1000")
    with rkpy.start(*words) as process:
        until(rkpy.pods)
        place = Path("/sys/fs/cgroup/rkpy", only_pod(rkpy))
        until(lambda: (place / APP).exists() and (place / APP / "cgroup.procs").read_text())
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: "state=running" not in rkpy.ok("status", place.name))
    rkpy.ok("gc", "--grace-period=0s")
    rkpy.ok("gc", "--grace-period=0s")
    assert not place.exists()


def test_the_limits_of_an_image_are_kept(rkpy: Rkpy) -> None:
    isolators = [{"name": "resource/memory", "value": {"limit": "32Mi"}}]
    app = {"exec": ["/bin/sh", "-c", HOG], "user": "0", "group": "0", "isolators": isolators}
    image = str(rkpy.directory / "limited.aci")
    images.make_aci(image, images.manifest("example.com/limited", app=app), images.busybox_files())
    done = rkpy("--insecure-options=image", "run", "--stage1=nspawn", image)
    assert done.status == 137, done
    assert json.loads(rkpy.ok("status", "--format=json", only_pod(rkpy)))["apps"][0]["oom_killed"] is True
