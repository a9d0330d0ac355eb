"""Limits on a machine with all of cgroup v2; run there by tests/vm/test_guest.py."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import syscalls
from stage1 import cgroup
from stage1.cgroup import PodCgroup
from stage1.cgroupfiles import ADJUSTED, ENFORCED, NOT_ENFORCEABLE, counter
from stage1.limits import Limits
from stage1.vm import oomkills
from tests.cgroups import born_asleep, born_in, end, of, opened, sleep, until

CLONE_NEWUSER = 0x10000000
UUID = "5d7a9b1e-0000-4000-8000-0000000c6001"
MIB = 1 << 20
NONE = Limits()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    place = tmp_path / UUID
    place.mkdir()
    yield str(place)
    cgroup.gc(str(place))


def pod(directory: str, limits: Limits = NONE, owner: tuple[int, int] | None = None) -> PodCgroup:
    return PodCgroup.create(directory, UUID, limits, owner)


def value(pod: PodCgroup, file: str) -> str:
    return Path(pod.path, file).read_text().strip()


def hog() -> None:
    """Use 128 MiB and stay."""
    kept = bytearray(128 * MIB)
    kept[:: os.sysconf("SC_PAGESIZE")] = b"x" * len(kept[:: os.sysconf("SC_PAGESIZE")])
    sleep()


# Limits


def test_everything_is_enforceable_here(directory: str) -> None:
    assert cgroup.find() == cgroup.Place("/sys/fs/cgroup", "/sys/fs/cgroup/rkpy", False, "")
    assert cgroup.enforceable(directory) == dict.fromkeys(cgroup.CONTROLLERS, "")


def test_limits_are_what_the_files_say(directory: str) -> None:
    limits = Limits(64 * MIB, 1500, 50, 64, 10**6, 100)
    made = pod(directory, limits._replace(pids=500))
    os.close(made.app("web", limits))
    assert {(report.app, report.verdict) for report in made.report()} == {("", ENFORCED), ("web", ENFORCED)}
    assert len(made.report()) == 14
    for place, pids in (("", "500"), ("web/", "64")):
        assert value(made, f"{place}memory.max") == value(made, f"{place}memory.swap.max") == str(64 * MIB)
        assert value(made, f"{place}cpu.max") == "150000 100000"
        assert value(made, f"{place}cpu.weight") == "50"
        assert value(made, f"{place}pids.max") == pids
        disk = Path("/sys/block/vda/dev").read_text().strip()
        assert value(made, f"{place}io.max") == f"{disk} rbps=1000000 wbps=1000000 riops=100 wiops=100"
    assert value(made, "web/memory.oom.group") == "1"
    assert value(made, "memory.oom.group") == "0"


def test_what_the_kernel_makes_of_a_value_is_told(directory: str) -> None:
    made = pod(directory, Limits(memory=32 * MIB + 1))
    os.close(made.app("web", Limits(memory=2**63 - 1)))
    assert {(report.app, report.verdict) for report in made.report()} == {("", ADJUSTED), ("web", ADJUSTED)}
    details = {(report.app, report.name): report.detail for report in made.report()}
    assert details["", "memory"] == f"memory.max = {32 * MIB}, not {32 * MIB + 1}"
    assert details["web", "memory"] == f"memory.max = max, not {2**63 - 1}"


def test_io_has_to_be_on_a_disk() -> None:
    assert cgroup.disk_or_why("/dev/shm") == ("", "the file system of /dev/shm is not on one block device")
    # The payload's file system is on a partition, which io.max does not take.
    assert os.stat("/payload").st_dev == os.stat("/dev/vdb1").st_rdev
    assert cgroup.disk_or_why("/payload") == (Path("/sys/block/vdb/dev").read_text().strip(), "")


def test_io_without_a_disk_is_not_enforceable() -> None:
    place = f"/dev/shm/{UUID}"
    os.mkdir(place)
    try:
        assert cgroup.enforceable(place)["io"]
        assert pod(place, Limits(io_bandwidth=1000)).report()[0].verdict == NOT_ENFORCEABLE
    finally:
        cgroup.gc(place)
        os.rmdir(place)


def test_a_machine_that_is_killed_for_want_of_memory_is_told_by_the_counters(directory: str) -> None:
    """Its programs are where the supervisor of other pods is."""
    made = pod(directory, Limits(memory=32 * MIB))
    with opened(made.init_fd()) as fd:
        bystander = born_asleep(fd)
        kills = oomkills.of(bystander)
        assert kills.why() == ""
        assert end(born_in(fd, hog)) == -signal.SIGKILL
    assert kills.why() == f"for want of memory: memory.max of {made.path} was reached"
    assert oomkills.of(bystander).why() == ""
    made.kill()
    end(bystander)


@pytest.mark.parametrize("whose", ["app", "pod"])
def test_an_app_over_its_memory_is_killed_as_a_whole(directory: str, whose: str) -> None:
    limits = {whose: Limits(memory=32 * MIB)}
    made = pod(directory, limits.get("pod", Limits()))
    with opened(made.app("web", limits.get("app", Limits()))) as web, opened(made.app("db", Limits())) as db:
        bystander, other = born_asleep(web), born_asleep(db)
        assert made.oom_kills("web") == 0
        assert end(born_in(web, hog)) == -signal.SIGKILL
    assert end(bystander) == -signal.SIGKILL
    assert made.oom_kills("web") >= 1
    assert made.oom_kills("db") == 0
    assert made.is_populated("db")
    made.kill()
    end(other)


def test_a_fork_bomb_stays_small(directory: str) -> None:
    def multiply() -> None:
        for _ in range(50):
            if os.fork() == 0:
                sleep()

    made = pod(directory)
    with opened(made.app("web", Limits(pids=10))) as fd:
        # It ends with 1: fork(2) refused.
        assert end(born_in(fd, multiply)) == 1
    assert len(value(made, "web/cgroup.procs").split()) == 9
    assert value(made, "web/pids.events") == "max 1"
    made.kill("web")
    until(lambda: not made.is_populated("web"))


def test_a_busy_app_is_throttled(directory: str) -> None:
    def spin() -> None:
        while True:
            pass

    made = pod(directory)
    with opened(made.app("web", Limits(cpu=50))) as fd:
        pid = born_in(fd, spin)
    until(lambda: counter(f"{made.path}/web/cpu.stat", "nr_throttled") > 2)
    made.kill("web")
    assert end(pid) == -signal.SIGKILL


def test_systemd_leaves_the_controllers_of_a_pod_alone(directory: str) -> None:
    made = pod(directory)
    os.close(made.app("web", Limits(cpu=500, io_operations=100)))
    for command in (["systemctl", "daemon-reload"], ["systemd-run", "--wait", "-p", "CPUWeight=7", "true"]):
        subprocess.run(command, check=True)
    assert value(made, "web/cpu.max") == "50000 100000"
    assert "riops=100" in value(made, "web/io.max")


# The end


def test_kill_ends_everything_at_once(directory: str) -> None:
    made = pod(directory)
    with opened(made.app("web", Limits())) as fd:
        pids = [born_asleep(fd) for _ in range(5)]
    assert made.kill("web")
    assert [end(pid) for pid in pids] == [-signal.SIGKILL] * 5
    made.remove()
    assert not os.path.exists("/sys/fs/cgroup/rkpy")


def test_a_fork_bomb_does_not_outlive_gc(directory: str) -> None:
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
    made = pod(directory)
    with opened(made.app("web", Limits(pids=64))) as fd:
        pid = born_in(fd, lambda: os.execv(sys.executable, [sys.executable, "-c", code]))
    until(lambda: len(value(made, "web/cgroup.procs").split()) > 50)
    cgroup.gc(directory)
    assert end(pid) == -signal.SIGKILL
    assert not os.path.exists(made.path)


def test_an_app_cannot_make_its_cgroups_too_deep_to_remove(directory: str) -> None:
    made = pod(directory)
    os.close(made.app("web", Limits()))
    place = f"{made.path}/web"
    with pytest.raises(OSError) as refused:
        for _ in range(100):
            place += "/" + "x" * 200
            os.mkdir(place)
    assert refused.value.errno == errno.EAGAIN
    made.remove()
    assert not os.path.exists(made.path)


# User namespaces


def in_user_namespace(fd: int, action: Any) -> int:
    """The status of a child born in cgroup `fd` that does `action` as root of a user namespace of 100000 and up."""
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        syscalls.unshare(CLONE_NEWUSER)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        action()

    pid = born_in(fd, child)
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text("0 100000 65536\n")
    os.write(go[1], b"x")
    return end(pid)


def test_the_root_of_a_user_namespace_starts_apps_and_cannot_lift_their_limits(directory: str) -> None:
    made = pod(directory, owner=(100000, 100000))

    def act() -> None:
        pid = born_asleep(app)
        assert of(pid) == f"/rkpy/{UUID}/web"
        os.kill(pid, signal.SIGKILL)
        end(pid)
        for file in ("web/pids.max", "web/cgroup.subtree_control", "pids.max", "_init/cgroup.procs"):
            with pytest.raises(PermissionError):
                os.open(f"{made.path}/{file}", os.O_WRONLY)
        with pytest.raises(PermissionError):
            os.mkdir(f"{made.path}/web/below")

    with opened(made.init_fd()) as init, opened(made.app("web", Limits(pids=64))) as app:
        assert in_user_namespace(init, act) == 0


def test_without_being_given_the_cgroup_it_cannot(directory: str) -> None:
    made = pod(directory)

    def act() -> None:
        with pytest.raises(OSError) as refused:
            born_asleep(app)
        assert refused.value.errno == errno.EACCES

    with opened(made.init_fd()) as init, opened(made.app("web", Limits())) as app:
        assert in_user_namespace(init, act) == 0


# Units


def in_unit(*options: str, directory: str = f"/tmp/in-unit/{UUID}", parent: bool = False) -> dict[str, Any]:
    """What delegated.py says when it is run as a unit."""
    environment = [f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}", "--working-directory=/payload/tree"]
    # Scopes run with the caller's environment and directory.
    environment = [] if "--scope" in options else ["--wait", "--pipe", *environment]
    script = [sys.executable, "-m", "tests.vm.inside.delegated", directory, UUID, *(["parent"] * parent)]
    done = subprocess.run(["systemd-run", "-q", *environment, *options, *script], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


ALL = {"/pids": ENFORCED} | {f"web/{name}": ENFORCED for name in ("memory", "swap", "cpu", "cpu_weight", "pids")}


def test_a_delegated_service_has_its_pod_inside() -> None:
    found = in_unit("--unit=inside", "-p", "Delegate=yes")
    unit = "/system.slice/inside.service"
    assert found["before"] == unit
    assert found["after"] == f"{unit}/supervisor"
    assert found["app"] == f"{unit}/{UUID}/web"
    assert found["path"] == f"/sys/fs/cgroup{unit}/{UUID}"
    assert found["answers"] == dict.fromkeys(cgroup.CONTROLLERS, "")
    assert found["verdicts"] == ALL
    assert found["removed"]


def test_a_service_that_is_not_delegated_has_its_pod_at_the_top() -> None:
    found = in_unit("--unit=outside")
    assert found["before"] == found["after"] == "/system.slice/outside.service"
    assert found["app"] == f"/rkpy/{UUID}/web"
    assert found["verdicts"] == ALL
    assert found["removed"]


def test_a_delegated_scope_has_its_pod_inside() -> None:
    found = in_unit("--scope", "--unit=inside-scope", "-p", "Delegate=yes")
    assert found["app"] == f"/system.slice/inside-scope.scope/{UUID}/web"
    assert found["verdicts"] == ALL


def test_a_delegated_cgroup_with_other_processes_cannot_be_divided() -> None:
    found = in_unit("--unit=crowded", "-p", "Delegate=yes", parent=True)
    place = "/sys/fs/cgroup/system.slice/crowded.service"
    assert found["answers"] == dict.fromkeys(cgroup.CONTROLLERS, f"processes run in {place} itself")
    assert set(found["verdicts"].values()) == {NOT_ENFORCEABLE}
    assert found["app"] == f"/system.slice/crowded.service/{UUID}/web"
    assert found["removed"]


def test_only_what_is_delegated_is_there() -> None:
    found = in_unit("--unit=partly", "-p", "Delegate=pids")
    place = "/sys/fs/cgroup/system.slice/partly.service"
    assert found["answers"]["cpu"] == f"the cpu controller is not available in {place}"
    assert found["answers"]["pids"] == ""
    assert found["verdicts"]["web/pids"] == ENFORCED
    assert found["verdicts"]["web/cpu"] == NOT_ENFORCEABLE


def test_a_user_who_is_given_a_cgroup_uses_it() -> None:
    place = Path("/tmp/nobody")
    place.mkdir()
    os.chown(place, 65534, 65534)
    found = in_unit("--unit=theirs", "-p", "User=nobody", "-p", "Delegate=yes", directory=f"{place}/{UUID}")
    assert found["app"] == f"/system.slice/theirs.service/{UUID}/web"
    assert found["verdicts"] == ALL
    assert found["removed"]


def test_what_was_delegated_to_somebody_else_is_left_to_them() -> None:
    place = "/sys/fs/cgroup/system.slice/not-ours.service"
    options = ("--unit=not-ours", "-p", "Delegate=yes", "-p", f"ExecStartPre=+/bin/chown nobody {place}")
    assert in_unit(*options)["app"] == f"/rkpy/{UUID}/web"


def test_a_user_without_one_has_none() -> None:
    code = "from stage1 import cgroup; print(cgroup.find().refusal)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, user=65534)
    assert done.stdout == "without root it takes a delegated cgroup (Delegate=yes)\n"


def test_a_read_only_hierarchy_is_left_alone(directory: str) -> None:
    code = f"from stage1 import cgroup; print(cgroup.enforceable({directory!r})['pids'])"
    script = "mount -o remount,ro,bind /sys/fs/cgroup && exec " + f'{sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, code], capture_output=True, text=True, check=True)
    assert done.stdout == "/sys/fs/cgroup is mounted read-only\n"
