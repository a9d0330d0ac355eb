"""Limits of pods as properties of their units, where there are controllers; tests/vm/test_guest.py runs these."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common import journal
from stage1 import resources
from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units

MIB = 1 << 20
STAY = "trap 'exit 0' TERM; sleep 1000 & wait"
# It waits for a file, and then reads as much into memory as it says, in one go.
HOG = "until [ -e /srv/go ]; do sleep 0.1; done; busybox dd if=/dev/zero of=/dev/null bs=128M count=1; sleep 1000"
RUN = ("--insecure-options=image", "run", "--net=none")
BESIDE = resources.BESIDE


class Pod(NamedTuple):
    """A pod that runs in a scope of its own."""

    process: subprocess.Popen[bytes]
    uuid: str
    scope: str

    def file(self, name: str) -> str:
        """A file of the scope's cgroup."""
        return Path(f"/sys/fs/cgroup/machine.slice/{self.scope}/{name}").read_text().strip()


def isolator(name: str, limit: object, **more: object) -> dict[str, Any]:
    return {"name": name, "value": {"limit": limit, **more}}


@contextmanager
def pod(rkpy: Rkpy, *isolators: dict[str, Any], script: str = STAY, apps: tuple[str, ...] = ("app",)) -> Iterator[Pod]:
    """One whose manifest has these limits for the pod as a whole."""
    (image,) = rkpy.images()
    manifest = {
        "acVersion": "0.8.11",
        "acKind": "PodManifest",
        "apps": [
            {
                "name": app,
                "image": {"id": image.stem},
                "app": {"exec": ["/bin/sh", "-c", script], "user": "0", "group": "0"},
                "mounts": [{"volume": "srv", "path": "/srv"}],
            }
            for app in apps
        ],
        "volumes": [{"name": "srv", "kind": "host", "source": str(rkpy.directory / "srv")}],
        "isolators": list(isolators),
        "annotations": [{"name": "rkpy/exit-policy", "value": "until-all"}],
    }
    (rkpy.directory / "pod.json").write_text(json.dumps(manifest))
    with running(rkpy, f"--pod-manifest={rkpy.directory / 'pod.json'}") as made:
        yield made


def withhold(rkpy: Rkpy) -> None:
    """The directory that pods have as /srv, without what HOG waits for."""
    (rkpy.directory / "srv").mkdir(exist_ok=True)
    (rkpy.directory / "srv/go").unlink(missing_ok=True)


@contextmanager
def running(rkpy: Rkpy, *words: str) -> Iterator[Pod]:
    """What `rkpy run` starts with these words as from somebody's shell."""
    withhold(rkpy)
    saved = rkpy.directory / "uuid"
    saved.unlink(missing_ok=True)
    command = units.in_scope(*rkpy.command(*RUN, f"--uuid-file-save={saved}", *words))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=rkpy.environment())
    try:
        until(lambda: process.poll() is not None or (saved.exists() and saved.read_text().strip()))
        assert process.poll() is None
        uuid = saved.read_text().strip()
        rkpy.ok("status", "--wait-ready=300s", uuid)
        yield Pod(process, uuid, f"rkpy-{uuid}.scope")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=units.TIMEOUT)


def verdicts(rkpy: Rkpy, pod: Pod) -> dict[str, str]:
    """What `rkpy status` says of the pod's own limits."""
    lines = rkpy.ok("status", pod.uuid).splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    return {name.removeprefix("limit---"): value for name, value in found.items() if name.startswith("limit---")}


def test_limits_are_properties_and_files(rkpy: Rkpy) -> None:
    limits = (
        isolator("resource/memory", limit="64Mi"), isolator("resource/cpu", limit="1500m"),
        isolator("resource/pids", limit=100), {"name": "os/linux/cpu-shares", "value": 512},
        isolator("resource/block-bandwidth", limit="1M", default=True),
            isolator("resource/block-iops", limit="100", default=True),
    )  # fmt: skip
    names = (
        "MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "CPUWeight", "TasksMax", "IOReadBandwidthMax",
        "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
    )  # fmt: skip
    with pod(rkpy, *limits) as made:
        found = units.show(made.scope, *names)
        assert found["MemoryMax"] == found["MemorySwapMax"] == str(64 * MIB)
        assert (found["CPUQuotaPerSecUSec"], found["CPUWeight"], found["TasksMax"]) == ("1.500000s", "50", "100")
        assert [found[name].split()[1] for name in names[5:]] == ["1000000", "1000000", "100", "100"]
        assert made.file("memory.max") == made.file("memory.swap.max") == str(64 * MIB)
        assert (made.file("cpu.max"), made.file("cpu.weight"), made.file("pids.max")) == ("150000 100000", "50", "100")
        disk = Path("/sys/block/vda/dev").read_text().strip()
        assert made.file("io.max") == f"{disk} rbps=1000000 wbps=1000000 riops=100 wiops=100"
        said = verdicts(rkpy, made)
        assert said
        assert {value.partition(":")[0] for value in said.values()} == {"enforced"}


def typed(rkpy: Rkpy, *limits: str) -> tuple[str, ...]:
    """Words for a pod of one app with limits of its own, that is over its memory when it is told to."""
    app = ("example.com/busybox", "--name=app", *limits, "--mount=volume=srv,target=/srv", "--exec=/bin/sh")
    return (f"--volume=srv,kind=host,source={rkpy.directory / 'srv'}", *app, "--", "-c", HOG)


def is_killed_for_memory(rkpy: Rkpy, uuid: str, unit: str) -> None:
    """And that is told by the monitor, which therefore is not what was killed."""
    found = dict(line.partition("=")[::2] for line in rkpy.ok("status", uuid).splitlines())
    assert (found["app-app"], found["app-app-oom"]) == ("137", "true")
    (told,) = units.logged(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={journal.OOM}")
    assert (told["RKPY_APP"], told["_SYSTEMD_UNIT"]) == ("app", unit)


def test_limits_that_are_typed_for_the_only_app_are_told_by_the_scope(rkpy: Rkpy) -> None:
    limits = ("--memory=64Mi", "--cpu=500m", "--cpu-shares=512", "--pids-limit=100")
    with running(rkpy, *typed(rkpy, *limits)) as made:
        memory = str(64 * MIB + BESIDE.memory + resources.SHM_SIZE)
        told = {
            "MemoryMax": memory, "MemorySwapMax": memory, "CPUQuotaPerSecUSec": "1.500000s", "CPUWeight": "50",
            "TasksMax": str(100 + BESIDE.pids),
        }  # fmt: skip
        assert units.show(made.scope, *told) == told
        assert made.file("memory.max") == memory
        assert made.file(f"{made.uuid}/app/memory.max") == str(64 * MIB)
        (rkpy.directory / "srv/go").touch()
        assert made.process.wait(timeout=units.TIMEOUT) == 137
    is_killed_for_memory(rkpy, made.uuid, made.scope)


def test_limits_of_a_small_app_are_told_by_its_service_and_leave_it_room_to_start(rkpy: Rkpy) -> None:
    withhold(rkpy)
    uuid = rkpy.ok(*RUN, "--detach", "--pod-name=small", *typed(rkpy, "--memory=8Mi", "--cpu=100m")).strip()
    told = {
        "MemoryMax": str(8 * MIB + BESIDE.memory + resources.SHM_SIZE),
        "CPUQuotaPerSecUSec": "1.100000s",
        "TasksMax": "16384",
    }
    assert units.show("rkpy-small.service", *told) == told
    (rkpy.directory / "srv/go").touch()
    units.becomes("rkpy-small.service", LoadState="not-found")
    is_killed_for_memory(rkpy, uuid, "rkpy-small.service")


def test_a_limit_that_a_scope_cannot_have_is_no_pod_without_it(rkpy: Rkpy) -> None:
    run = (*RUN, "example.com/busybox", "--memory=64M", "--exec=/bin/true")
    units.run("systemctl", "set-property", "--runtime", "machine.slice", "DisableControllers=memory")
    try:
        done = units.run(*units.in_scope(*rkpy.command(*run)), check=False)
    finally:
        units.run("systemctl", "set-property", "--runtime", "machine.slice", "DisableControllers=")
    assert done.returncode == 254, done
    assert "cannot set a limit of busybox: there is no memory.max" in done.stderr


def test_apps_together_get_no_more_memory_than_the_pod(rkpy: Rkpy) -> None:
    with pod(rkpy, isolator("resource/memory", limit="64Mi"), script=HOG) as made:
        (rkpy.directory / "srv/go").touch()
        until(lambda: "app-app-oom=true" in rkpy.ok("status", made.uuid).splitlines())
        told = units.logged(f"RKPY_POD_UUID={made.uuid}", f"MESSAGE_ID={journal.OOM}")
        assert {(entry["RKPY_APP"], entry["PRIORITY"], entry["_SYSTEMD_UNIT"]) for entry in told} == {
            ("app", "4", made.scope)
        }
        made.process.wait(timeout=units.TIMEOUT)


def test_limits_of_a_running_pod_are_changed_by_systemctl(rkpy: Rkpy) -> None:
    with pod(rkpy, isolator("resource/memory", limit="256Mi")) as made:
        units.run("systemctl", "set-property", "--runtime", made.scope, "MemoryMax=64M", "CPUWeight=20")
        assert (made.file("memory.max"), made.file("cpu.weight")) == (str(64 * MIB), "20")
        units.run("systemctl", "daemon-reload")
        assert made.file("memory.max") == str(64 * MIB)


def test_tasks_of_all_apps_count(rkpy: Rkpy) -> None:
    # A shell that cannot fork ends; the one that stays only has builtins.
    bomb = "(n=0; while [ $n -lt 100 ]; do sleep 1000 & n=$((n+1)); done); while :; do :; done"
    with pod(rkpy, isolator("resource/pids", limit=40), script=bomb, apps=("one", "two")) as made:
        until(lambda: rkpy("logs", made.uuid).err.count("can't fork") == 2)
        # Both shells that forked are gone.
        assert 38 <= int(made.file("pids.current")) <= 39


def test_what_an_app_uses_is_accounted_to_the_scope(rkpy: Rkpy) -> None:
    with pod(rkpy) as made:
        shown = units.show(made.scope, "MemoryCurrent", "TasksCurrent", "CPUUsageNSec")
        assert int(shown["TasksCurrent"]) >= 3
        assert int(shown["MemoryCurrent"]) > 0
        assert int(shown["CPUUsageNSec"]) > 0
        assert made.uuid in units.run("systemd-cgls", "--no-pager", "-u", made.scope).stdout
        # Without memory for the supervisor its apps have none either.
        Path(f"/sys/fs/cgroup/machine.slice/{made.scope}/{made.uuid}/_init/memory.max").write_text("65536")
        assert made.process.wait(timeout=units.TIMEOUT) == 137
    is_killed_for_memory(rkpy, made.uuid, made.scope)


@pytest.mark.parametrize("delegate", ["yes", "no"])
def test_limits_of_a_service_bound_a_delegated_pod(rkpy: Rkpy, delegate: str) -> None:
    script = "busybox dd if=/dev/zero of=/dev/null bs=128M count=1"
    run = (*RUN, "example.com/busybox", "--exec=/bin/sh", "--", "-c", script)
    words = units.in_service(*rkpy.command(*run), properties={"Delegate": delegate, "MemoryMax": "96M"})
    done = units.run(*words, check=False)
    if delegate == "yes":
        assert done.returncode != 0
    else:
        assert done.returncode == 0, done
        assert "Delegate=yes" in done.stderr


def test_an_app_under_fly_that_lacked_memory(rkpy: Rkpy) -> None:
    """Nobody is beside it; that it was so systemd knows, in whose service it was."""
    saved = rkpy.directory / "uuid"
    saved.unlink(missing_ok=True)
    run = ("--insecure-options=image", "run", "--stage1=fly", f"--uuid-file-save={saved}", "example.com/busybox")
    hog = ("--name=app", "--exec=/bin/busybox", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1")
    after = " ".join(rkpy.command("gc", "--quiet", "--mark-only"))
    properties = {"MemoryMax": "64M", "MemorySwapMax": "0", "ExecStopPost": after}
    with units.service(*rkpy.command(*run, *hog), properties=properties) as name:
        units.becomes(name, ActiveState="failed", Result="oom-kill")
        uuid = saved.read_text().strip()
        (oom,) = units.journal(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={journal.OOM}")
        (end,) = units.journal(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={journal.EXITED}")
    assert (oom["RKPY_APP"], end["RKPY_OOM"], end["RKPY_EXIT_STATUS"], end["RKPY_EXIT_SIGNAL"]) == (
        "app", "1", "137", "9"
    )  # fmt: skip
    assert {"app-app=137", "app-app-signal=9", "app-app-oom=true"} <= set(rkpy.ok("status", uuid).splitlines())
