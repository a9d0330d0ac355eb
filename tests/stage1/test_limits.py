"""Isolators as limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1 import plan, resources
from stage1.limits import Limits


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
