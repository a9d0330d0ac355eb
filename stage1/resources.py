"""The resource isolators of an app or a pod (appC spec 0.8.11, "ace.md") as the limits a cgroup takes.

Apart from `stage1.limits` because only the engine needs what it takes to read a manifest. See docs/limits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aci import isolators as names
from aci.types import quantity
from common.errors import UsageError
from stage1.limits import CONTROLLER_OF, FLAGS, Limits

if TYPE_CHECKING:
    from stage1.flavour import PreparedPod

PIDS = "resource/pids"
DEFAULT_PIDS = 2048
"""Per app when nothing says otherwise, as podman has it: far above what an app needs, far below what hurts the host."""

MAX_PIDS = 4194304
"""The kernel takes no more (PID_MAX_LIMIT), and has no more either."""
MAX_CPU = 10**9
"""A million cores; the kernel refuses quotas of more than 2^44 microseconds."""

_MOST = (1 << 63) - 1
"""What the sum of sizes is at most; no more fits where they are sent."""
BESIDE = Limits(memory=128 << 20, cpu=1000, pids=64)
"""For what is in a pod's unit besides its apps: the monitor and the supervisor, what attaches the pod to its networks
and detaches it, in a service also the engine that starts it and the command after its end. An app is to meet its own
limit, and be the one that is killed or waits, before all of them together meet the unit's. With a network they come to
some 40 MB when a service starts, and no more than one of them is at work for long. docs/limits.md says these numbers.
"""

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


SHM_SIZE = 64 << 20
"""Bytes that fit into an app's /dev/shm."""


def of_unit(pod: PreparedPod) -> Limits:
    """What the unit of a pod, whose apps have cgroups in it, is limited to: what the pod itself is, or what its apps
    come to, whichever is less. A pod that apps are added to later is bounded by its own limits only."""
    whole = of_pod(pod.isolators)
    if pod.mutable:
        return whole
    apps = _come_to(pod)
    return Limits(
        memory=_tighter(whole.memory, apps.memory),
        cpu=_tighter(whole.cpu, apps.cpu),
        cpu_weight=whole.cpu_weight or apps.cpu_weight,
        pids=min(_tighter(whole.pids, apps.pids), MAX_PIDS),
        # The monitor writes what the apps say to the same disk, and is not to wait for them.
        io_bandwidth=whole.io_bandwidth,
        io_operations=whole.io_operations,
    )


def _come_to(pod: PreparedPod) -> Limits:
    """What the apps of a pod may have together, and what there is BESIDE them."""
    apps = [of_pod(app.app.isolators) for app in pod.apps]
    if any(app.pids for app in apps):
        apps = [of_app(app.app.isolators) for app in pod.apps]  # Who says nothing is limited, too.
    found = together(apps)
    # What an app has left in memory is nobody's once the app is started again.
    more = BESIDE._replace(memory=BESIDE.memory + volumes(pod) + SHM_SIZE * len(pod.apps))
    return Limits(*(limit and min(limit + beside, _MOST) for limit, beside in zip(found, more, strict=True)))


def together(apps: Sequence[Limits]) -> Limits:
    """What apps with these limits may have in all, as far as every one of them is limited. Weights, which say how to
    divide what there is, do not add up: there is one for a single app."""
    columns = zip(*apps, strict=True) if apps else ()
    sums = Limits(*(min(sum(column), _MOST) if all(column) else 0 for column in columns))
    return sums if len(apps) == 1 else sums._replace(cpu_weight=0)


def volumes(pod: PreparedPod) -> int:
    """Bytes that the volumes of a pod may take which are in memory."""
    return sum({mount.volume: mount.size for app in pod.apps for mount in app.mounts}.values())


def _tighter(one: int, other: int) -> int:
    """Of two limits, 0 being none."""
    return min(filter(None, (one, other)), default=0)


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
