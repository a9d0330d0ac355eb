"""Isolators as limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.image_manifest import Isolator
from stage1 import plan, resources
from stage1.flavour import Mount, PreparedApp, PreparedPod
from stage1.limits import Limits
from tests.stage1.test_nspawn import app as make_app
from tests.stage1.test_nspawn import pod


def app(*isolators: tuple[str, Any]) -> Limits:
    return resources.of_app(isolators)


def test_an_app_that_says_nothing_gets_the_default_number_of_processes_and_no_other_limit() -> None:
    assert app() == Limits(pids=2048)
    assert resources.of_pod(()) == Limits()


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("resource/memory", {"limit": "32Mi"}, Limits(memory=32 << 20)),
        ("resource/memory", {"request": "8Mi", "limit": "1G"}, Limits(memory=10**9)),
        ("resource/memory", {"limit": 4096}, Limits(memory=4096)),
        ("resource/memory", {"request": "8Mi"}, Limits()),
        ("resource/cpu", {"limit": "1.5"}, Limits(cpu=1500)),
        ("resource/cpu", {"limit": "5m"}, Limits(cpu=5)),
        ("resource/cpu", {"limit": 2}, Limits(cpu=2000)),
        ("resource/cpu", {"limit": "1000000000000"}, Limits(cpu=10**9)),
        ("os/linux/cpu-shares", 1024, Limits(cpu_weight=100)),
        ("resource/block-bandwidth", {"default": True, "limit": "1M"}, Limits(io_bandwidth=10**6)),
        ("resource/block-iops", {"default": True, "limit": "100"}, Limits(io_operations=100)),
        ("resource/pids", {"limit": 64}, Limits(pids=64)),
        ("resource/pids", {"limit": 10**12}, Limits(pids=4194304)),
        ("resource/network-bandwidth", {"default": True, "limit": "1M"}, Limits()),
        ("example.com/unknown", ["anything"], Limits()),
    ],
)
def test_isolators(name: str, value: Any, limits: Limits) -> None:
    assert resources.of_pod([(name, value)]) == limits


def test_the_last_one_wins_and_a_mere_request_does_not_count_as_one() -> None:
    several = [("resource/memory", {"limit": limit}) for limit in ("1Gi", "2Gi", "64Mi")]
    assert app(*several, ("resource/memory", {"request": "1Mi"})).memory == 64 << 20


def test_a_limit_on_processes_replaces_the_default() -> None:
    assert app(("resource/pids", {"limit": "5000"})).pids == 5000


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (11, 1), (512, 50), (1024, 100), (2048, 200), (262144, 10000)])
def test_shares_become_weights_in_proportion(shares: int, weight: int) -> None:
    assert resources.weight(shares) == weight


@given(st.integers(2, 262144), st.integers(2, 262144))
def test_weights_are_in_range_and_keep_the_order_of_shares(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert 1 <= resources.weight(low) <= resources.weight(high) <= 10000


@given(st.builds(Limits, *[st.integers(0, 2**63 - 1)] * len(Limits._fields)))
def test_limits_survive_the_way_to_the_monitor(limits: Limits) -> None:
    assert plan.loads(plan.dumps(limits)) == limits
    assert len(json.loads(plan.dumps(limits))) == 1 + len(Limits._fields)


def prepared(*apps: PreparedApp, **fields: Any) -> PreparedPod:
    return pod(Path("/nonexistent"), apps=apps, **fields)


def limited(name: str = "web", **limits: str) -> PreparedApp:
    """An app with `memory`, `cpu` and `pids` as isolators say them, and CPU `shares`."""
    names = {"memory": "resource/memory", "cpu": "resource/cpu", "pids": "resource/pids"}
    found = [Isolator(names[key], {"limit": value}) for key, value in limits.items() if key in names]
    shares = [Isolator("os/linux/cpu-shares", int(limits["shares"]))] if "shares" in limits else []
    bandwidth = (
        [Isolator("resource/block-bandwidth", {"default": True, "limit": limits["io"]})] if "io" in limits else []
    )
    return make_app(name, isolators=(*found, *shares, *bandwidth))


BESIDE = resources.BESIDE


@pytest.mark.parametrize(
    ("apps", "limits"),
    [
        ([], Limits()),
        ([limited()], Limits()),
        ([limited(memory="64Mi")], Limits(memory=(128 << 20) + BESIDE.memory)),
        ([limited(cpu="500m")], Limits(cpu=500 + BESIDE.cpu)),
        ([limited(pids="100")], Limits(pids=100 + BESIDE.pids)),
        ([limited(shares="512")], Limits(cpu_weight=50)),
        # Several: what one of them may have without a limit, all of them may.
        ([limited(memory="64Mi"), limited(memory="1Gi")], Limits(memory=(1216 << 20) + BESIDE.memory)),
        ([limited(memory="64Mi", cpu="1"), limited(cpu="1500m")], Limits(cpu=2500 + BESIDE.cpu)),
        ([limited(shares="512"), limited(shares="512")], Limits()),
        # Who says nothing may have so many processes all the same.
        ([limited(pids="100"), limited()], Limits(pids=100 + 2048 + BESIDE.pids)),
        ([limited(io="1M")], Limits()),
        ([limited(pids="4194304"), limited()], Limits(pids=4194304)),
        ([limited(memory="8E"), limited(memory="8E")], Limits(memory=(1 << 63) - 1)),
    ],
)  # fmt: skip
def test_a_unit_has_what_all_apps_come_to_and_room_for_what_is_beside_them(
    apps: list[PreparedApp], limits: Limits
) -> None:
    assert resources.of_unit(prepared(*apps)) == limits


def test_of_what_the_pod_and_its_apps_say_the_tighter_counts_for_the_unit() -> None:
    app = limited(memory="64Mi", cpu="1", pids="5000", shares="512", io="5")
    own = limited(memory="32Mi", cpu="4", pids="100", shares="2048", io="1M").app.isolators
    assert resources.of_unit(prepared(app, isolators=own)) == Limits(
        memory=32 << 20, cpu=1000 + BESIDE.cpu, cpu_weight=200, pids=100, io_bandwidth=10**6
    )


def test_apps_that_are_added_later_are_not_bounded_by_those_that_are_there() -> None:
    own = limited(memory="1Gi").app.isolators
    assert resources.of_unit(prepared(limited(memory="64Mi", cpu="1"), mutable=True)) == Limits()
    assert resources.of_unit(prepared(limited(memory="64Mi"), mutable=True, isolators=own)) == Limits(memory=1 << 30)


def test_what_is_in_volumes_in_memory_counts_once_for_the_unit() -> None:
    mount = Mount("", "/data", False, None, "v", size=1 << 20)
    apps = [limited(memory="64Mi")._replace(mounts=(mount,)) for _ in range(2)]
    assert resources.of_unit(prepared(*apps)).memory == (129 << 20) + len(apps) * resources.SHM_SIZE + BESIDE.memory


def test_a_unit_without_limits_is_not_bounded_by_its_volumes() -> None:
    mount = Mount("", "/data", False, None, "v", size=1 << 20)
    assert resources.of_unit(prepared(limited()._replace(mounts=(mount,)))).memory == 0
