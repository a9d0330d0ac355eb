"""The resource isolators of an app or a pod (appC spec 0.8.11, "ace.md") as the limits a cgroup takes.

Apart from `stage1.limits` because only the engine needs what it takes to read a manifest. See docs/limits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aci import isolators as names
from aci.types import quantity
from common.errors import UsageError
from stage1.limits import CONTROLLER_OF, FLAGS, Limits

PIDS = "resource/pids"
DEFAULT_PIDS = 2048
"""Per app when nothing says otherwise, as podman has it: far above what an app needs, far below what hurts the host."""

MAX_PIDS = 4194304
"""The kernel takes no more (PID_MAX_LIMIT), and has no more either."""
MAX_CPU = 10**9
"""A million cores; the kernel refuses quotas of more than 2^44 microseconds."""

_DEFAULT_SHARES = 1024
_DEFAULT_WEIGHT = 100


def of_app(isolators: Iterable[tuple[str, Any]]) -> Limits:
    """What the isolators of an app allow it. They have passed `aci.isolators.check`."""
    limits = of_pod(isolators := tuple(isolators))
    said = any(name == PIDS for name, _ in isolators)
    return limits if said else limits._replace(pids=DEFAULT_PIDS)


def of_pod(isolators: Iterable[tuple[str, Any]]) -> Limits:
    """What the isolators of a pod allow all its apps together."""
    last = {name: value for name, value in isolators if name == names.CPU_SHARES or _has_limit(value)}
    return Limits(
        memory=_limit(last, names.MEMORY),
        cpu=min(_limit(last, names.CPU, parts=1000), MAX_CPU),
        cpu_weight=weight(last[names.CPU_SHARES]) if names.CPU_SHARES in last else 0,
        pids=min(_limit(last, PIDS), MAX_PIDS),
        io_bandwidth=_limit(last, names.BLOCK_BANDWIDTH),
        io_operations=_limit(last, names.BLOCK_IOPS),
    )


def weight(shares: int) -> int:
    """cpu.weight for cpu-shares, in proportion, as systemd does it: 1024 shares are the default weight of 100, so twice
    the shares remain twice the time; what falls outside 1 to 10000 becomes the nearest of these."""
    return max(1, min(shares * _DEFAULT_WEIGHT // _DEFAULT_SHARES, 10000))


def unenforceable(wanted: Iterable[tuple[str, Limits]], why: Mapping[str, str], asked: Sequence[str]) -> list[str]:
    """A warning for each limit that cannot be kept, of those `wanted` by the pod or an app, in words. `why` has a
    reason for each controller, or nothing (`cgroup.enforceable`). UsageError for one that was `asked` for, by its flag.
    """
    found = []
    for owner, limits in wanted:
        for field, value in limits._asdict().items():
            problem = why[CONTROLLER_OF[field]]
            if not value or not problem:
                continue
            if FLAGS.get(field, "") in asked:
                raise UsageError(f"{FLAGS[field]} cannot be enforced here: {problem}")
            found.append(f"{field.replace('_', ' ')} limit of {owner} is not enforceable here: {problem}")
    return found


def _has_limit(value: Any) -> bool:
    """One without a limit has nothing but a request, and does not lift the limit of an earlier one."""
    return isinstance(value, dict) and value.get("limit") is not None


def _limit(last: dict[str, Any], name: str, *, parts: int = 1) -> int:
    return quantity(str(last[name]["limit"]), parts=parts) if name in last else 0
