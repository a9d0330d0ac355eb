"""What cgroups make of the kernel's texts; tests/host and tests/vm have the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import PodError
from stage1 import cgroup, cgroupfiles
from stage1.limits import CONTROLLER_OF, Limits
from tests.test_structure import HEAVY, ROOT

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
LEGACY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
BOUND = "99 23 0:26 /machine.slice/a /sys/fs/c\\040group rw - cgroup2 none rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "found"),
    [
        (UNIFIED, ("/", "/sys/fs/cgroup")),
        (HYBRID, ("/", "/sys/fs/cgroup/unified")),
        (LEGACY, None),
        ("", None),
        (BOUND, ("/machine.slice/a", "/sys/fs/c group")),
        # A root that has one, too, such as that of a pod that is about to be changed to.
        (UNIFIED + BOUND, ("/", "/sys/fs/cgroup")),
        (BOUND + UNIFIED, ("/", "/sys/fs/cgroup")),
    ],
)
def test_the_mount_is_found(mountinfo: str, found: tuple[str, str] | None) -> None:
    assert cgroup._mount(mountinfo) == found


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("0::/system.slice/a.service\n", "/system.slice/a.service"),
        ("5:memory:/x\n1:name=systemd:/y\n0::/\n", "/"),
        ("5:memory:/x\n", "/"),
        ("0::/odd:name\n", "/odd:name"),
    ],
)
def test_our_own_cgroup_is_read(text: str, own: str) -> None:
    assert cgroup._own(text) == own


@pytest.mark.parametrize(
    ("root", "own", "below"),
    [
        ("/", "/a/b", "/a/b"),
        ("/", "/", ""),
        ("/", "/../../a", ""),
        ("/a", "/a/b", "/b"),
        ("/a", "/ab/c", ""),
        ("/a", "/a", ""),
    ],
)
def test_our_own_cgroup_is_placed_in_the_mount(root: str, own: str, below: str) -> None:
    assert cgroup._below(root, own) == below


def test_limits_as_files_take_them() -> None:
    limits = Limits(1 << 20, 1500, 50, 64, 1000, 10)
    assert [(file, value) for _, file, value in cgroupfiles.settings(limits, "8:0")] == [
        ("memory.max", "1048576"),
        ("memory.swap.max", "1048576"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "50"),
        ("pids.max", "64"),
        ("io.max", "8:0 rbps=1000 wbps=1000"),
        ("io.max", "8:0 riops=10 wiops=10"),
    ]


@pytest.mark.parametrize(("cpu", "text"), [(1, "1000 1000000"), (9, "9000 1000000"), (10, "1000 100000")])
def test_a_quota_is_never_less_than_the_kernel_takes(cpu: int, text: str) -> None:
    assert [value for _, _, value in cgroupfiles.settings(Limits(cpu=cpu), "")] == [text]


def test_every_limit_has_a_controller() -> None:
    assert set(CONTROLLER_OF) == set(Limits._fields)
    assert set(CONTROLLER_OF.values()) == set(cgroup.CONTROLLERS)


def test_io_max_is_read_for_the_disk_in_question() -> None:
    setting = cgroupfiles.Setting("io_bandwidth", "io.max", "8:0 rbps=1 wbps=2")
    text = "8:01 rbps=9 wbps=9 riops=9 wiops=9\n8:0 rbps=1 wbps=max riops=5 wiops=max\n"
    assert cgroupfiles._effective(setting, text) == "8:0 rbps=1 wbps=max"
    assert cgroupfiles._effective(setting, "") == "8:0"


def test_a_counter_that_is_not_there_is_zero(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert cgroupfiles.counter(str(events), "oom_kill") == 0
    events.write_text("low 0\noom 7\noom_kill 3\noom_group_kill 0\n")
    assert cgroupfiles.counter(str(events), "oom_kill") == 3
    assert cgroupfiles.counter(str(events), "oom_killer") == 0


@pytest.mark.parametrize("record", ["/etc", "relative", "{mount}", "{mount}/../etc/{uuid}", "{pod}", "{mount}/other"])
def test_gc_touches_nothing_that_is_not_the_pods_cgroup(tmp_path: Path, record: str) -> None:
    mount = cgroup.find().mount or "/sys/fs/cgroup"
    pod = tmp_path / "uuid"
    pod.mkdir()
    (pod / "kept").touch()
    record = record.format(mount=mount, uuid=pod.name, pod=pod)
    (pod / cgroup.RECORD).write_text(f"{record}\n")
    if os.path.lexists(record):
        with pytest.raises(PodError, match="is not the cgroup of pod uuid"):
            cgroup.gc(str(pod))
    else:
        cgroup.gc(str(pod))
    assert (pod / "kept").exists()


def test_gc_of_a_pod_without_a_record_does_nothing(tmp_path: Path) -> None:
    cgroup.gc(str(tmp_path))


def test_the_monitor_loads_nothing_heavy_for_it() -> None:
    code = "import sys, json; import stage1.cgroup; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & (HEAVY | {"ctypes", "aci"})
