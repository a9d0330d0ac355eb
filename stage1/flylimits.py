"""Limits of a pod under fly, which is one app and one process: those of the pod and those of the app bound the same.

There is one cgroup, and nobody who stays beside the app. In a scope of the pod's own it is the scope's, with the limits
as its properties; elsewhere the engine makes one (`stage1.cgroup`), moves into it, and becomes the app. That one is
recorded in the pod directory and removed by `rkpy gc` or `rm`. See docs/limits.md.

Loaded for pods with limits only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from common.records import NamedTuple
from stage1 import boot, cgroup, poddir, resources
from stage1.cgroupfiles import NOT_ENFORCEABLE, Report, end_as_a_whole, keep
from stage1.flavour import PreparedPod
from stage1.limits import CONTROLLER_OF, Limits


class Bounds(NamedTuple):
    """What bounds a pod. No field is set in both."""

    pod: Limits
    app: Limits
    why: Mapping[str, str]
    """For each controller why it cannot be used, or nothing: what was said before the pod is started."""

    def together(self) -> Limits:
        return Limits(*(one or other for one, other in zip(self.pod, self.app, strict=True)))


def check(pod: PreparedPod) -> list[str]:
    """A warning for each limit that cannot be kept here; UsageError for one that was typed."""
    bounds = of(pod)
    wanted = [("the pod", bounds.pod), (f'app "{pod.apps[0].name}"', bounds.app)]
    return resources.unenforceable(wanted, bounds.why, pod.asked)


def of(pod: PreparedPod) -> Bounds:
    """What is to bound `pod`, asked before this process is in a scope of the pod's."""
    whole, app = stricter(resources.of_pod(pod.isolators), resources.of_pod(pod.apps[0].app.isolators))
    return Bounds(whole, app, _why_not(pod))


def stricter(pod: Limits, app: Limits) -> tuple[Limits, Limits]:
    """Both without what makes no difference: of two limits the lower counts. How much the pod weighs is for the pod to
    say, since in there the app has nobody to share with."""
    for field, whole, own in zip(Limits._fields, pod, app, strict=True):
        if whole and own:
            if own <= whole and field != "cpu_weight":
                pod = pod._replace(**{field: 0})
            else:
                app = app._replace(**{field: 0})
    return pod, app


def _why_not(pod: PreparedPod) -> dict[str, str]:
    """As `cgroup.enforceable`. What systemd has put into a unit is to stay there: it stops, counts and bounds what it
    finds in the unit's cgroup, and of an app that is somewhere else it knows one process."""
    # One that is prepared to be a service of its own is not of this unit, whatever that is.
    if pod.starts and (pod.manager or pod.unit):
        from stage1.systemd import units

        if units.stays(pod.keep_unit) and not cgroup.find(delegated=pod.delegated).delegated:
            problem = f"{units.own() or 'this unit'} has not delegated its cgroup (Delegate=yes)"
            return dict.fromkeys(cgroup.CONTROLLERS, problem)
    below = pod.manager.cgroup if pod.manager else ""
    return cgroup.enforceable(pod.directory, boot.ours(), below=below, delegated=pod.delegated)


def bound(pod: PreparedPod, bounds: Bounds, *, scope: bool) -> None:
    """Keep this process, and whatever it becomes, within `bounds`; `scope`: it is in a scope of the pod's own. What
    became of each limit is recorded. LaunchError for one that is not kept though nobody was told."""
    wanted = (("", bounds.pod), (pod.apps[0].name, bounds.app))
    if any(value and not bounds.why[CONTROLLER_OF[field]] for field, value in bounds.together()._asdict().items()):
        path = cgroup.of_process("self") if scope else cgroup.enter(pod.directory, pod.uuid, delegated=pod.delegated)
        disk = cgroup.disk_or_why(pod.directory)
        found = [
            report
            for owner, limits in wanted
            for report in keep(path, owner, limits, disk, unit=scope, why=lambda: bounds.why, asked=pod.asked)
        ]
        if bounds.together().memory:
            # An app that lost some of its processes is of no use.
            end_as_a_whole(path)
    else:
        found = [
            Report(owner, field, NOT_ENFORCEABLE, bounds.why[CONTROLLER_OF[field]])
            for owner, limits in wanted
            for field, value in limits._asdict().items()
            if value
        ]
    poddir.write_limits(pod.directory, found)


def open_procs(directory: str, leader: int) -> int:
    """A descriptor by which a process gets into the cgroup of the pod's leader, so that the same limits bound it; -1
    where none is kept. OSError when the leader has gone."""
    if all(report.verdict.startswith(NOT_ENFORCEABLE) for report in poddir.read_limits(directory)):
        return -1
    return os.open(f"{cgroup.of_process(leader)}/cgroup.procs", os.O_WRONLY)
