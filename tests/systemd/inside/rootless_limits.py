"""Limits of ordinary users' pods, where there are controllers; tests/vm/test_guest.py runs these."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1.resources import BESIDE
from tests.systemd import people, units
from tests.systemd.people import RKPY, Person, busybox

MIB = 1 << 20
# It reads as much into memory as it says, in one go.
HOG = "busybox dd if=/dev/zero of=/dev/null bs=128M count=1"
LIMITED = ("--memory=64Mi", "--cpu=500m", "--pids-limit=20")
KEPT = {
    "limit-app-memory": f"enforced: memory.max = {64 * MIB}",
    "limit-app-cpu": "enforced: cpu.max = 50000 100000",
    "limit-app-pids": "enforced: pids.max = 20",
}


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with people.account(tmp_path_factory.mktemp("alice"), lingers=True) as person:
        yield person


def is_killed_for_memory(alice: Person, pod: str) -> None:
    status = alice.status(pod)
    assert {name: status[name] for name in KEPT} == KEPT
    assert (status["app-app"], status["app-app-oom"]) == ("137", "true")


def test_in_a_delegated_service(alice: Person) -> None:
    words = alice.in_service(*busybox("--pod-name=served", net="default", app=LIMITED, script=HOG))
    properties = {"User": alice.name, "Delegate": "yes", "KillMode": "mixed"}
    assert units.run(*units.in_service(*words, properties=properties), check=False).returncode == 137
    is_killed_for_memory(alice, "served")


def test_by_the_limits_of_the_service_itself(alice: Person) -> None:
    """Delegated or not: without, the pod is in the service's own cgroup."""
    properties = {"User": alice.name, "MemoryMax": "96M", "MemorySwapMax": "0"}
    words = units.in_service(*alice.in_service(*busybox(script=f"echo began; {HOG}")), properties=properties)
    done = units.run(*words, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "began\n"), done


def test_in_a_scope_of_the_users_manager(alice: Person) -> None:
    """Those of its only app are told by its properties, which the user may change."""
    script = f"trap '{HOG}' USR1; sleep 1000 & wait"
    with people.running(alice, "scoped", net="default", app=LIMITED, script=script) as process:
        assert alice.show("rkpy-scoped.scope", "TasksMax") == {"TasksMax": str(20 + BESIDE.pids)}
        alice.run("systemctl", "--user", "set-property", "--runtime", "rkpy-scoped.scope", "MemoryMax=96M")
        cgroup = f"user.slice/user-{alice.uid}.slice/user@{alice.uid}.service/machine.slice/rkpy-scoped.scope"
        place = Path("/sys/fs/cgroup", cgroup)
        assert (place / "memory.max").read_text().strip() == str(96 * MIB)
        # What connects it is in there, and not in whatever unit it was started from.
        beside = [
            Path(f"/proc/{pid}/comm").read_text() for pid in (place / "supervisor/cgroup.procs").read_text().split()
        ]
        assert any(name.startswith("pas") for name in beside), beside  # passt.avx2, where there is that
        alice.rkpy("kill", "--signal=USR1", "scoped")
        _, errors = process.communicate(timeout=units.TIMEOUT)
        assert (process.returncode, "warning" in errors) == (137, False)
    is_killed_for_memory(alice, "scoped")


def test_in_a_service_of_the_users_manager(alice: Person) -> None:
    """Which cannot mark what it delegates, but can be asked."""
    run = ["systemd-run", "--user", "--quiet", "--pipe", "--wait", "--collect", "--property=Delegate=yes"]
    environment = [f"--setenv={name}={value}" for name, value in alice.environment.items()]
    words = busybox("--pod-name=own", app=LIMITED, script=HOG)
    assert alice.run(*run, *environment, "--", *RKPY, *words, check=False).returncode == 137
    is_killed_for_memory(alice, "own")


def test_of_a_detached_pod(alice: Person) -> None:
    """It is prepared in the cgroup of a shell, where none could be kept, and runs where they can be."""
    alice.rkpy(*busybox("--detach", "--pod-name=loose", app=LIMITED))
    try:
        status = alice.status("loose")
        assert {name: status[name] for name in (*KEPT, "unit")} == {**KEPT, "unit": "rkpy-loose.service"}
    finally:
        alice.rkpy("stop", "loose")


def test_under_fly_they_are_those_of_the_scope(alice: Person) -> None:
    words = busybox("--stage1=fly", "--pod-name=flown", app=LIMITED, script=f"cat /proc/self/cgroup; {HOG}; exit 7")
    words.remove("--net=none")
    done = alice.rkpy(*words, check=False)
    assert done.returncode == -signal.SIGKILL, done
    place = f"user.slice/user-{alice.uid}.slice/user@{alice.uid}.service/machine.slice/rkpy-flown.scope"
    assert (done.stdout, "warning" in done.stderr) == (f"0::/{place}\n", False)
    status = alice.status("flown")
    assert {name: status[name] for name in KEPT} == KEPT
