"""`rkpy run --stage1=nspawn` with limits, on a machine that can keep them; run there by tests/vm/test_guest.py."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests import images
from tests.cgroups import until
from tests.host.commands import Done, Rkpy

NAME = "example.com/busy"
APP = "busy"
FILES = ("memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max")
SHELL = ("--exec", "/bin/sh", "--", "-c")

# It reads as much into memory as it says, in one go.
HOG = "/bin/busybox dd if=/dev/zero of=/dev/null bs=128M count=1"
BOMB = "n=0; while [ $n -lt 100 ]; do sleep 1000 & n=$((n+1)); done"


@pytest.fixture(scope="module")
def rkpy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rkpy]:
    rkpy = Rkpy(tmp_path_factory.mktemp("pods"))
    image = str(rkpy.directory / "image.aci")
    images.make_aci(image, images.manifest(NAME), images.busybox_files())
    rkpy.ok("--insecure-options=image", "fetch", image)
    yield rkpy
    gc(rkpy)
    assert not rkpy.pods()
    assert not os.path.exists("/sys/fs/cgroup/rkpy")


def gc(rkpy: Rkpy) -> None:
    """Dead pods become garbage at the first run, and are removed at the second."""
    for _ in range(2):
        rkpy.ok("gc", "--grace-period=0s")


def words(rkpy: Rkpy, *options: str) -> tuple[str, ...]:
    uuid = f"--uuid-file-save={rkpy.directory / 'uuid'}"
    return ("--insecure-options=image", "run", "--stage1=nspawn", "--net=none", uuid, *options)


def run(rkpy: Rkpy, script: str, *flags: str, options: tuple[str, ...] = ()) -> Done:
    return rkpy(*words(rkpy, *options), NAME, *flags, *SHELL, script)


def uuid(rkpy: Rkpy) -> str:
    """The pod that was started last."""
    return (rkpy.directory / "uuid").read_text().strip()


def said(rkpy: Rkpy, *flags: str, options: tuple[str, ...] = ()) -> dict[str, str]:
    """What the app finds in the files of its own cgroup, by way of a volume."""
    place = rkpy.directory / "said"
    place.mkdir(exist_ok=True)
    options = (*options, f"--volume=said,kind=host,source={place}", "--mount=volume=said,target=/said")
    script = f"cd /sys/fs/cgroup; for file in {' '.join(FILES)}; do cat $file >/said/$file || exit 9; done"
    done = run(rkpy, script, *flags, options=options)
    assert done.status == 0, done
    return {file: (place / file).read_text().strip() for file in FILES}


@contextmanager
def running(rkpy: Rkpy, *flags: str) -> Iterator[tuple[Popen[str], Path]]:
    """A pod that was started, and its cgroup."""
    (rkpy.directory / "uuid").unlink(missing_ok=True)
    with rkpy.start(*words(rkpy), NAME, *flags) as process:
        until(lambda: (rkpy.directory / "uuid").exists() and uuid(rkpy))
        try:
            yield process, Path("/sys/fs/cgroup/rkpy", uuid(rkpy))
        finally:
            process.kill()


def lives(place: Path) -> bool:
    return (place / "cgroup.procs").exists() and bool((place / "cgroup.procs").read_text())


def test_an_app_over_its_memory_ends_with_137_and_the_reason_is_kept(rkpy: Rkpy) -> None:
    done = run(rkpy, HOG, "--memory=32M")
    assert done.status == 137, done
    status = rkpy.ok("status", uuid(rkpy)).splitlines()
    assert f"app-{APP}=137" in status
    assert f"app-{APP}-oom=true" in status


def test_an_app_within_its_memory_ends_as_it_likes(rkpy: Rkpy) -> None:
    done = run(rkpy, f"{HOG.replace('128M', '1M')} && exit 7", "--memory=32M")
    assert done.status == 7, done
    assert "oom" not in rkpy.ok("status", uuid(rkpy))


def test_a_program_that_kills_itself_is_not_taken_for_one_that_lacked_memory(rkpy: Rkpy) -> None:
    done = run(rkpy, "kill -9 $$; exit 3", "--memory=32M")
    # The first process of an app is no PID 1, which the kernel would protect from itself.
    assert done.status == 137, done
    assert "oom" not in rkpy.ok("status", uuid(rkpy))


def test_an_app_that_says_nothing_has_a_limit_on_processes_only(rkpy: Rkpy) -> None:
    assert said(rkpy) == {
        "memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000", "cpu.weight": "100", "pids.max": "2048",
    }  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--private-users",)], ids=["host-users", "private-users"])
def test_an_app_sees_its_limits(rkpy: Rkpy, options: tuple[str, ...]) -> None:
    flags = ("--memory=32M", "--cpu=500m", "--cpu-shares=512", "--pids-limit=64")
    # Bytes are rounded down to pages.
    memory = str(32 * 10**6 // 4096 * 4096)
    assert said(rkpy, *flags, options=options) == {
        "memory.max": memory, "memory.swap.max": memory, "cpu.max": "50000 100000", "cpu.weight": "50",
        "pids.max": "64",
    }  # fmt: skip


def test_limits_hold_in_a_user_namespace_too(rkpy: Rkpy) -> None:
    assert run(rkpy, HOG, "--memory=32M", options=("--private-users",)).status == 137


def test_an_app_cannot_lift_its_limits(rkpy: Rkpy) -> None:
    script = "cd /sys/fs/cgroup && cat pids.max && if echo max >pids.max; then exit 3; else exit 4; fi"
    assert run(rkpy, script, "--pids-limit=64").status == 4


def test_a_fork_bomb_stays_small_and_ends_with_its_pod(rkpy: Rkpy) -> None:
    with running(rkpy, "--pids-limit=16", *SHELL, f"{BOMB}; wait; sleep 1000") as (process, pod):
        events = pod / APP / "pids.events"
        until(lambda: events.exists() and events.read_text() != "max 0\n")
        assert int((pod / APP / "pids.current").read_text()) <= 16
        rkpy.ok("stop", "--force", uuid(rkpy))
        process.wait()
        gc(rkpy)
        assert not pod.exists()


def test_gc_ends_what_a_killed_monitor_left(rkpy: Rkpy) -> None:
    with running(rkpy, "--exec", "/bin/sleep", "--", "1000") as (process, pod):
        until(lambda: lives(pod / APP))
        process.kill()
        process.wait()
        until(lambda: "state=running" not in rkpy.ok("status", uuid(rkpy)))
        gc(rkpy)
        assert not pod.exists()


def test_a_pod_in_a_delegated_service_is_inside_and_ends_with_it(rkpy: Rkpy) -> None:
    options = ("-q", "--unit=pod", "-p", "Delegate=yes", "-p", "MemoryMax=200M", "-p", "KillMode=mixed")
    environment = f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}"
    (rkpy.directory / "uuid").unlink(missing_ok=True)
    command = rkpy.command(*words(rkpy), NAME, "--memory=32M", "--exec", "/bin/sleep", "--", "1000")
    subprocess.run(["systemd-run", *options, environment, *command], check=True)
    try:
        until(lambda: (rkpy.directory / "uuid").exists() and uuid(rkpy))
        place = Path("/sys/fs/cgroup/system.slice/pod.service", uuid(rkpy), APP)
        until(lambda: lives(place))
        assert (place / "memory.max").read_text() == f"{32 * 10**6 // 4096 * 4096}\n"
    finally:
        subprocess.run(["systemctl", "stop", "pod"], check=True)
    assert not place.exists()


def test_the_limits_of_an_image_are_kept(rkpy: Rkpy) -> None:
    isolators = [{"name": "resource/memory", "value": {"limit": "32Mi"}}]
    app = {"exec": ["/bin/sh", "-c", HOG], "user": "0", "group": "0", "isolators": isolators}
    image = str(rkpy.directory / "limited.aci")
    images.make_aci(image, images.manifest("example.com/limited", app=app), images.busybox_files())
    done = rkpy(*words(rkpy), image)
    assert done.status == 137, done
    assert json.loads(rkpy.ok("status", "--format=json", uuid(rkpy)))["apps"][0]["oom_killed"] is True
