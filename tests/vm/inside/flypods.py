"""Limits of pods under fly, on a machine that can keep them; run there by tests/vm/test_guest.py."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import images
from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units
from tests.vm.inside.pods import APP, HOG, NAME, SHELL, uuid
from tests.vm.inside.pods import rkpy as rkpy

MEMORY = str(32 * 10**6 // 4096 * 4096)
"""--memory=32M: bytes are rounded down to pages."""
TOLD = ("MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "CPUWeight", "TasksMax")
# What is left of the app when a part of it was killed would end with 7.
OVER = f"cat /proc/self/cgroup; {HOG}; exit 7"


def words(rkpy: Rkpy, *rest: str) -> list[str]:
    saved = rkpy.directory / "uuid"
    saved.unlink(missing_ok=True)
    return rkpy.command("--insecure-options=image", "run", "--stage1=fly", f"--uuid-file-save={saved}", *rest)


@contextlib.contextmanager
def in_scope(rkpy: Rkpy, *flags: str) -> Iterator[str]:
    """A pod that runs in a scope of its own, started as from somebody's shell: the scope."""
    command = units.in_scope(*words(rkpy, NAME, *flags, "--exec=/bin/sleep", "--", "1000"))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=rkpy.environment())
    try:
        until(lambda: process.poll() is not None or ((rkpy.directory / "uuid").exists() and uuid(rkpy)))
        assert process.poll() is None
        rkpy.ok("status", "--wait-ready=300s", uuid(rkpy))
        yield f"rkpy-{uuid(rkpy)}.scope"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=units.TIMEOUT)


def verdicts(rkpy: Rkpy) -> dict[str, str]:
    lines = rkpy.ok("status", uuid(rkpy)).splitlines()
    return dict(line.partition("=")[::2] for line in lines if line.startswith("limit-"))


def test_limits_are_properties_of_the_scope(rkpy: Rkpy) -> None:
    with in_scope(rkpy, "--memory=32M", "--cpu=500m", "--cpu-shares=512", "--pids-limit=64") as scope:
        assert units.show(scope, *TOLD) == dict(zip(TOLD, ("32000000", "32000000", "500ms", "50", "64"), strict=True))
        place = Path("/sys/fs/cgroup/machine.slice", scope)
        assert (place / "memory.max").read_text() == f"{MEMORY}\n"
        assert (place / "memory.oom.group").read_text() == "1\n"
        assert verdicts(rkpy) == {
            f"limit-{APP}-memory": f"adjusted: memory.max = {MEMORY}, not 32000000",
            f"limit-{APP}-swap": f"adjusted: memory.swap.max = {MEMORY}, not 32000000",
            f"limit-{APP}-cpu": "enforced: cpu.max = 50000 100000",
            f"limit-{APP}-cpu_weight": "enforced: cpu.weight = 50",
            f"limit-{APP}-pids": "enforced: pids.max = 64",
        }
        # A command beside the app is bounded as the app is.
        inside = rkpy.ok("enter", uuid(rkpy), "/bin/busybox", "cat", "/proc/self/cgroup")
        assert inside == f"0::/machine.slice/{scope}\n"
    units.becomes(scope, LoadState="not-found")


def test_an_app_over_its_memory_is_killed_in_its_scope(rkpy: Rkpy) -> None:
    command = units.in_scope(*words(rkpy, NAME, "--memory=32M", *SHELL, OVER))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=rkpy.environment())
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, f"0::/machine.slice/rkpy-{uuid(rkpy)}.scope\n"), done


def test_a_limit_that_systemd_does_not_set_is_no_pod_without_it(rkpy: Rkpy) -> None:
    units.run("systemctl", "set-property", "--runtime", "machine.slice", "DisableControllers=memory")
    try:
        command = units.in_scope(*words(rkpy, NAME, "--memory=32M", *SHELL, "echo started"))
        done = units.run(*command, check=False, **rkpy.environment())
    finally:
        units.run("systemctl", "set-property", "--runtime", "machine.slice", "DisableControllers=")
    assert (done.returncode, done.stdout) == (254, ""), done
    assert f"cannot set a limit of {APP}: memory.max is not set" in done.stderr


def service(rkpy: Rkpy, image: str, *flags: str, properties: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = words(rkpy, image, *flags)
    return units.run(*units.in_service(*command, unit="flypod.service", properties=properties), check=False)


def test_an_app_over_its_memory_is_killed_below_a_delegated_unit(rkpy: Rkpy) -> None:
    done = service(rkpy, NAME, "--memory=32M", *SHELL, OVER, properties={"Delegate": "yes"})
    assert done.stdout == f"0::/system.slice/flypod.service/{uuid(rkpy)}\n"
    assert done.returncode not in (0, 7), done
    assert verdicts(rkpy)[f"limit-{APP}-memory"].startswith("adjusted: memory.max = ")


def test_a_unit_that_keeps_its_cgroup_to_itself_keeps_the_app(rkpy: Rkpy) -> None:
    """And no limits that are not its own."""
    problem = "flypod.service has not delegated its cgroup (Delegate=yes)"
    done = service(rkpy, NAME, "--memory=32M", *SHELL, "echo started", properties={})
    assert (done.returncode, done.stdout) == (254, ""), done
    assert f"--memory cannot be enforced here: {problem}" in done.stderr
    isolators = [{"name": "resource/memory", "value": {"limit": "32M"}}]
    app = {"exec": ["/bin/cat", "/proc/self/cgroup"], "user": "0", "group": "0", "isolators": isolators}
    image = str(rkpy.directory / "limited.aci")
    images.make_aci(image, images.manifest("example.com/limited", app=app), images.busybox_files())
    done = service(rkpy, image, properties={})
    assert (done.returncode, done.stdout) == (0, "0::/system.slice/flypod.service\n"), done
    assert f"is not enforceable here: {problem}" in done.stderr
    assert [*verdicts(rkpy).values()] == [f"not enforceable: {problem}"]


@pytest.fixture
def without_systemd() -> list[str]:
    """The words that run a command as on a machine that something else has booted."""
    script = 'mount -t tmpfs none /run/systemd && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh"]


def test_without_systemd_the_cgroup_goes_with_the_pod(rkpy: Rkpy, without_systemd: list[str]) -> None:
    command = [*without_systemd, *words(rkpy, NAME, "--memory=32M", *SHELL, OVER)]
    done = units.run(*command, check=False, **rkpy.environment())
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, f"0::/rkpy/{uuid(rkpy)}\n"), done
    # Nobody was there when it was killed; the cgroup still tells.
    assert f"app-{APP}-oom=true" in rkpy.ok("status", uuid(rkpy)).splitlines()
    assert verdicts(rkpy)[f"limit-{APP}-memory"] == f"adjusted: memory.max = {MEMORY}, not 32000000"
    place = Path("/sys/fs/cgroup/rkpy", uuid(rkpy))
    assert place.is_dir()
    rkpy.ok("rm", uuid(rkpy))
    assert not place.exists()
