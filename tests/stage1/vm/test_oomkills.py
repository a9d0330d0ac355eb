"""What is said of a machine that the host had no memory for, by counters as the kernel writes them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stage1 import monitor, poddir
from stage1.plan import AppPlan, PodPlan
from stage1.poddir import Ending
from stage1.rootfs import CopiedRoot
from stage1.vm import oomkills, qemu
from stage1.vm.oomkills import OomKills
from stage1.vm.virtualmachine import VirtualMachine
from stage2.launch import LaunchSpec

EVENTS = "low 0\nhigh 0\nmax {oom}\noom {oom}\noom_kill {kills}\noom_group_kill 0\n"
VERSION_1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"


class Cgroups:
    """A pod's scope, its cgroup and that of its machine."""

    def __init__(self, directory: Path) -> None:
        self.scope = directory / "rkpy-web.scope"
        self.pod = self.scope / "uuid"
        self.machine = self.pod / "_init"
        self.machine.mkdir(parents=True)
        self.levels = [str(place) for place in (self.machine, self.pod, self.scope)]
        for place in self.levels:
            # There was something of that kind before.
            self.count(place, 1, 1)

    def count(self, place: Path | str, oom: int, kills: int) -> None:
        text = EVENTS.format(oom=oom, kills=kills)
        for name in ("memory.events", "memory.events.local"):
            Path(place, name).write_text(text)

    def kills(self) -> OomKills:
        return OomKills(self.levels[:1], self.levels)


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


def test_what_was_counted_before_is_somebody_elses(cgroups: Cgroups) -> None:
    kills = cgroups.kills()
    assert kills.why() == ""
    cgroups.count(cgroups.scope, 2, 2)  # of another process in there
    assert kills.why() == ""


@pytest.mark.parametrize("level", ["machine", "pod", "scope"])
def test_the_limit_that_was_reached_is_named(level: str, cgroups: Cgroups) -> None:
    kills = cgroups.kills()
    place = getattr(cgroups, level)
    cgroups.count(place, 2, 1)
    cgroups.count(cgroups.machine, 2 if level == "machine" else 1, 2)
    assert kills.why() == f"for want of memory: memory.max of {place} was reached"


def test_when_the_host_has_no_memory_no_limit_is_to_blame(cgroups: Cgroups) -> None:
    kills = cgroups.kills()
    cgroups.count(cgroups.machine, 1, 2)
    assert kills.why() == "for want of memory"


def test_version_1_counts_too(tmp_path: Path) -> None:
    counter = tmp_path / "memory.oom_control"
    counter.write_text(VERSION_1.format(kills=3))
    kills = OomKills([str(tmp_path)])
    assert kills.why() == ""
    counter.write_text(VERSION_1.format(kills=4))
    assert kills.why() == "for want of memory"


@pytest.mark.parametrize(
    ("root", "own", "expected"),
    [
        ("/", "/a/b", "/place/a/b"), ("/a", "/a/b", "/place/b"), ("/a", "/ab", ""), ("/a", "/a", ""), ("/", "/", ""),
    ],
)  # fmt: skip
def test_the_cgroup_of_version_1(root: str, own: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/7/cgroup": f"2:cpu:/c\n4:memory:{own}\n0::/d\n",
        "/proc/self/mountinfo": "31 30 0:1 / /cpu rw - cgroup cgroup rw,cpu\n"
        f"32 31 0:32 {root} /place rw,relatime shared:1 - cgroup cgroup rw,memory\n",
    }
    monkeypatch.setattr(oomkills, "read", files.__getitem__)
    assert oomkills._of_version_1(7) == expected


def test_where_nothing_is_counted_nothing_is_claimed(tmp_path: Path) -> None:
    assert OomKills([str(tmp_path / "nowhere")], [str(tmp_path / "nowhere")]).why() == ""
    assert oomkills.of(os.getpid()).why() == ""


class Killed:
    """A pod whose QEMU is killed, with `cgroups` to say why."""

    def __init__(self, directory: Path, kills: OomKills) -> None:
        launch = LaunchSpec("web", ("/bin/web",), (), "0", "0", (), "/", False, ())
        app = AppPlan("web", CopiedRoot("/"), (), launch)
        plan = PodPlan("uuid", str(directory), -1, (app,), "host")
        machine: Any = None
        cgroup: Any = None
        self.machine = VirtualMachine(plan, machine, cgroup)
        self.machine._oom_kills = kills
        self.machine._last = lambda **_: ""  # type: ignore[method-assign]
        self.machine.pid = os.fork()
        if not self.machine.pid:
            signal.pause()
        self._pidfd = os.pidfd_open(self.machine.pid)
        self.machine._qemu = qemu.Started(self.machine.pid, self._pidfd, -1, -1, -1, -1, -1)
        self.monitor = monitor.Monitor("run", plan)
        self.monitor._enclosure = self.machine
        self.monitor._journal = self  # type: ignore[assignment]
        self.told: list[bool] = []

    def app_ended(self, _app: AppPlan, _status: int, _number: int, *, oom: bool, asked: bool) -> None:
        """As the journal is told."""
        assert not asked
        self.told.append(oom)

    def end(self) -> str:
        """What is said of it; the app is written down as the monitor does when the machine is gone."""
        os.kill(self.machine.pid, signal.SIGKILL)
        said = self.machine._end_of_qemu()
        os.close(self._pidfd)
        app = self.monitor._apps["web"]
        app.executed = True
        self.monitor._write_killed(app, asked=False)
        return said


def test_qemu_killed_for_want_of_memory_is_the_end_of_its_apps_for_the_same(cgroups: Cgroups, tmp_path: Path) -> None:
    pod = Killed(tmp_path, cgroups.kills())
    cgroups.count(cgroups.scope, 2, 1)
    cgroups.count(cgroups.machine, 1, 2)
    assert pod.end() == f"QEMU was killed for want of memory: memory.max of {cgroups.scope} was reached"
    assert poddir.read_ending(str(tmp_path), "web") == Ending(137, signal=9, oom=True)
    assert pod.told == [True]


def test_qemu_killed_by_somebody_is_not(cgroups: Cgroups, tmp_path: Path) -> None:
    pod = Killed(tmp_path, cgroups.kills())
    assert pod.end() == "QEMU was killed by signal 9"
    assert poddir.read_ending(str(tmp_path), "web") == Ending(137, signal=9)
    assert pod.told == [False]
