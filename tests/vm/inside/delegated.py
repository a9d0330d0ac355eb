"""Run as a unit of systemd: makes a pod in whatever cgroup that is and prints what came of it as JSON.

With "parent" the process first becomes a child of another that stays in the same cgroup.
"""

from __future__ import annotations

import json
import os
import sys

from stage1 import cgroup
from stage1.cgroup import PodCgroup
from stage1.limits import Limits
from tests.cgroups import born_asleep, of

LIMITS = Limits(memory=64 << 20, cpu=500, cpu_weight=50, pids=64)


def main(directory: str, uuid: str) -> None:
    os.makedirs(directory, exist_ok=True)
    before = of(os.getpid())
    answers = cgroup.enforceable(directory)
    pod = PodCgroup.create(directory, uuid, Limits(pids=100))
    pid = born_asleep(pod.app("web", LIMITS))
    found = {
        "before": before,
        "after": of(os.getpid()),
        "path": pod.path,
        "app": of(pid),
        "answers": answers,
        "verdicts": {f"{report.app}/{report.name}": report.verdict for report in pod.report()},
    }
    pod.kill()
    os.waitpid(pid, 0)
    pod.remove()
    print(json.dumps({**found, "removed": not os.path.exists(pod.path)}))


if __name__ == "__main__":
    if sys.argv[3:] == ["parent"] and (child := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    main(*sys.argv[1:3])
