"""Which unit we are in, and what a pod's own is made with."""

from __future__ import annotations

import pytest

from stage1.limits import Limits
from stage1.systemd import units


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/web.service\n", "web.service"),
        ("0::/system.slice/web.service/supervisor\n", "web.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/term.scope\n", "term.scope"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/mine.service\n", "mine.service"),
        ("0::/\n", ""),
        ("0::/..\n", ""),
        ("", ""),
        ("3:cpu,cpuacct:/a.service\n0::/system.slice/web.service\n", "web.service"),
        ("9:name=systemd:/system.slice/web.service\n0::/\n", "web.service"),
        ("9:name=systemd:/system.slice/web.service\n", "web.service"),
        ("9:name=systemd:/a.service\n0::/system.slice/b.service\n", "b.service"),
        ("0::/machine.slice\n", ""),
    ],
)
def test_the_innermost_unit(text: str, unit: str) -> None:
    assert units.innermost(text) == unit


def test_a_pod_is_called_by_its_name_first() -> None:
    uuid = "7eb60bb3-5204-4b11-a6cf-fc39763acd71"
    assert units.names(uuid, "web", "scope") == ["rkpy-web.scope", f"rkpy-{uuid}.scope"]
    assert units.names(uuid, "", "service") == [f"rkpy-{uuid}.service"]


def resources(limits: Limits, disk: str = "/dev/block/8:0") -> dict[str, object]:
    return {name: value for name, _, value in units.resources(limits, disk)}


def test_limits_of_a_pod_are_properties() -> None:
    limits = Limits(memory=1 << 26, cpu=500, cpu_weight=50, pids=64, io_bandwidth=1000, io_operations=10)
    assert resources(limits) == {
        "MemoryMax": 1 << 26,
        "MemorySwapMax": 1 << 26,
        "CPUQuotaPerSecUSec": 500_000,
        "CPUWeight": 50,
        "TasksMax": 64,
        "IOReadBandwidthMax": [["/dev/block/8:0", 1000]],
        "IOWriteBandwidthMax": [["/dev/block/8:0", 1000]],
        "IOReadIOPSMax": [["/dev/block/8:0", 10]],
        "IOWriteIOPSMax": [["/dev/block/8:0", 10]],
    }


def test_a_pod_without_limits_may_have_as_many_tasks_as_a_machine() -> None:
    assert resources(Limits()) == {"TasksMax": 16384}


def test_a_share_too_small_for_the_usual_period_gets_a_longer_one() -> None:
    assert resources(Limits(cpu=2))["CPUQuotaPeriodUSec"] == 1_000_000


def test_without_a_disk_there_are_no_limits_of_io() -> None:
    assert "IOReadIOPSMax" not in resources(Limits(io_operations=10), disk="")


@pytest.mark.parametrize(("directory", "told"), [("/var/lib/a b", 2), ("/tmp/ü", 1), ("/tmp/\udcff", 1)])
def test_a_directory_of_any_name_is_no_reason_to_fail(directory: str, told: int) -> None:
    found = {name: value for name, _, value in units.about("7eb60bb3", "", directory)}
    assert len(str(found["Documentation"]).split(",")) == told
    assert ("RequiresMountsFor" in found) == ("\udcff" not in directory)
