"""How large machines are."""

from __future__ import annotations

import pytest

from stage1.limits import Limits
from stage1.vm import size
from stage1.vm.machine import MEBIBYTE, TRANSLATED
from stage1.vm.size import Size

HOST = 64 << 30


def of(
    *apps: Limits,
    pod: Limits = Limits(),  # noqa: B008
    acceleration: str = "kvm",
    cpus: int = 8,
    memory: int = 0,
    volumes: int = 0,
) -> Size:
    return size.of(
        pod, apps, acceleration=acceleration, host_memory=HOST, host_cpus=cpus, memory=memory, volumes=volumes
    )


def mebibytes(value: int) -> int:
    assert value % MEBIBYTE == 0
    return value // MEBIBYTE


def limited(memory: int) -> Limits:
    return Limits(memory=memory * MEBIBYTE)


@pytest.mark.parametrize(
    ("apps", "pod", "expected"),
    [
        ([], Limits(), 384 + 6 + 128),
        ([Limits()], Limits(), 384 + 6 + 128),
        ([Limits(), Limits()], Limits(), 384 + 6 + 128),
        ([limited(512)], Limits(), 512 + 8 + 128),
        ([limited(512), limited(128)], Limits(), 640 + 10 + 128),
        ([limited(640), Limits()], Limits(), 640 + 384 + 16 + 128),
        ([limited(8)], Limits(), 256),
        ([limited(8192)], limited(1024), 1024 + 16 + 128),
        ([limited(1 << 30)], Limits(), HOST // MEBIBYTE),
    ],
)
def test_memory(apps: list[Limits], pod: Limits, expected: int) -> None:
    assert mebibytes(of(*apps, pod=pod).memory) == expected


def test_the_configured_memory_is_the_machines() -> None:
    assert of(limited(4096), memory=(300 << 20) + 1).memory == 301 * MEBIBYTE
    assert of(memory=1).memory == 256 * MEBIBYTE


@pytest.mark.parametrize(
    ("apps", "pod", "expected"),
    [
        ([], 0, 1), ([0], 0, 1), ([0, 0], 0, 1), ([100], 0, 1), ([1001], 0, 2), ([1500, 1500], 0, 3),
        ([1500, 0], 0, 3), ([1500, 1500], 2000, 2), ([64000], 0, 8), ([], 1, 1),
    ],
)  # fmt: skip
def test_processors(apps: list[int], pod: int, expected: int) -> None:
    assert of(*(Limits(cpu=cpu) for cpu in apps), pod=Limits(cpu=pod)).cpus == expected


def test_outside_there_is_room_for_qemu() -> None:
    inside, emulated = of(limited(512)), of(limited(512), acceleration="tcg")
    assert inside.outside.memory == inside.memory + size.OUTSIDE
    assert emulated.outside.memory == inside.outside.memory + TRANSLATED * MEBIBYTE


def test_outside_there_is_room_for_volumes_in_memory() -> None:
    plain, with_volumes = of(limited(1)), of(limited(1), volumes=7 * MEBIBYTE)
    assert with_volumes.outside.memory == plain.outside.memory + 7 * MEBIBYTE
    assert with_volumes.memory == plain.memory


def test_outside_the_pods_own_limits_are_kept_but_that_of_its_processes() -> None:
    pod = Limits(memory=1 << 30, cpu=1500, cpu_weight=50, pids=7, io_bandwidth=5, io_operations=6)
    assert of(limited(1), pod=pod).outside._replace(memory=0) == pod._replace(memory=0, pids=size.PROCESSES)


def test_what_apps_may_read_and_write_is_kept_outside_too() -> None:
    both = [Limits(io_bandwidth=1, io_operations=10), Limits(io_bandwidth=2)]
    assert (of(*both).outside.io_bandwidth, of(*both).outside.io_operations) == (3, 0)
    assert of().outside.io_bandwidth == 0


def test_how_much_one_app_weighs_is_for_the_machine_and_several_share_it() -> None:
    apps = [Limits(cpu_weight=50), Limits(cpu_weight=50)]
    assert (of(*apps[:1]).outside.cpu_weight, of(*apps).outside.cpu_weight) == (50, 0)
    assert of(*apps[:1], pod=Limits(cpu_weight=70)).outside.cpu_weight == 70
