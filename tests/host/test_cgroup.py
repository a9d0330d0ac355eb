"""Cgroups of pods on this machine's own hierarchy, with whatever controllers it has."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import LaunchError, PodError
from stage1 import cgroup, cgroupfiles
from stage1.cgroup import PodCgroup
from stage1.cgroupfiles import ENFORCED, NOT_ENFORCEABLE
from stage1.limits import CONTROLLER_OF, Limits
from stage1.loop import Loop
from tests.cgroups import born_asleep, born_in, end, of, opened, sleep, until
from tests.test_structure import ROOT

UUID = f"5d7a9b1e-0000-4000-8000-{os.getpid():012x}"
"""Nobody else's: the tests of another checkout may run in the same cgroup."""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    if refusal := cgroup.find().refusal:
        pytest.skip(refusal)
    place = tmp_path / UUID
    place.mkdir()
    yield str(place)
    cgroup.gc(str(place))


@pytest.fixture
def pod(directory: str) -> PodCgroup:
    return PodCgroup.create(directory, UUID, Limits())


def app(pod: PodCgroup, name: str = "web") -> int:
    """The PID of a process in the app's cgroup."""
    with opened(pod.app(name, Limits())) as fd:
        return born_asleep(fd)


def test_the_supervisor_and_the_apps_are_born_apart(pod: PodCgroup) -> None:
    with opened(pod.init_fd()) as fd:
        init = born_asleep(fd)
    web, db = app(pod), app(pod, "db")
    assert [os.path.relpath(of(pid), "/") for pid in (init, web, db)] == [
        os.path.relpath(f"{pod.path}/{name}", cgroup.find().mount) for name in ("_init", "web", "db")
    ]
    pod.remove()
    assert [end(pid) for pid in (init, web, db)] == [-signal.SIGKILL] * 3
    assert not os.path.exists(pod.path)


def test_killing_an_app_leaves_the_others(pod: PodCgroup) -> None:
    web, db = app(pod), app(pod, "db")
    assert pod.is_populated("web")
    assert pod.kill("web")
    assert end(web) == -signal.SIGKILL
    until(lambda: not pod.is_populated("web"))  # From Linux 6.19 on it may leave its cgroup after it was waited for.
    assert pod.is_populated("db")
    assert pod.kill()
    assert end(db) == -signal.SIGKILL


def test_an_app_is_started_again_in_its_cgroup_and_removed(pod: PodCgroup) -> None:
    first = app(pod)
    pod.kill("web")
    end(first)
    second = app(pod)
    pod.remove_app("web")
    assert end(second) == -signal.SIGKILL
    assert not pod.is_populated("web")
    assert not pod.kill("web")
    assert pod.oom_kills("web") == 0
    pod.remove_app("web")


def test_what_does_not_die_keeps_nobody_waiting(pod: PodCgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the kernel, which a signal does not interrupt everywhere: here, because nobody sends it."""
    process = app(pod)
    monkeypatch.setattr(cgroup, "_kill", lambda _path, _seconds: True)
    monkeypatch.setattr(cgroup, "DEATH", 0.1)
    monkeypatch.setattr(cgroup, "_MOMENT", 0.0)
    loop = Loop()
    said: list[str] = []

    def late() -> None:
        said.append("late")
        os.kill(process, signal.SIGKILL)
        assert end(process) == -signal.SIGKILL

    pod.when_gone(loop, "web", loop.stop, late)
    loop.call_later(0, lambda: said.append("others"))
    loop.run()
    assert sorted(said) == ["late", "others"]
    assert not os.path.exists(f"{pod.path}/web")
    pod.when_gone(loop, "web", lambda: said.append("at once"), late)
    assert said[2:] == ["at once"]
    loop.close()


def test_a_limit_is_reported_once_however_often_the_app_starts(pod: PodCgroup) -> None:
    for make in (pod.app, pod.app, pod.renew):
        os.close(make("web", Limits(pids=64)))
    assert [(report.app, report.name) for report in pod.report()] == [("web", "pids")]
    pod.remove_app("web")
    assert pod.report() == []


def test_a_limit_that_was_promised_and_cannot_be_set_is_no_pod_without_it(
    pod: PodCgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "enforceable", lambda _directory, **_: dict.fromkeys(cgroup.CONTROLLERS, ""))
    monkeypatch.setattr(cgroupfiles, "put", lambda _path, _setting: (NOT_ENFORCEABLE, "pids.max = 64: out of luck"))
    with pytest.raises(LaunchError, match="cannot set a limit of web"):
        pod.app("web", Limits(pids=64))


def test_a_limit_that_was_asked_for_is_kept_or_there_is_no_app(directory: str, pod: PodCgroup) -> None:
    """Also where it was not known before that it cannot be, as in a scope that is given fewer controllers."""
    lacking = [name for name, why in cgroup.enforceable(directory).items() if why]
    asked, limits = ("--memory", "--pids-limit"), Limits(memory=64 << 20, pids=64)
    for name in ("memory", "pids"):
        one = Limits(**{name: getattr(limits, name)})
        if name in lacking:
            with pytest.raises(LaunchError, match="cannot set a limit of web"):
                pod.app("web", one, asked)
        else:
            os.close(pod.app("web", one, asked))
    with pytest.raises(LaunchError, match="cannot set a limit of web: nowhere"):
        PodCgroup(directory, "", None, "nowhere").app("web", limits, asked)


def test_what_is_said_to_be_enforceable_is_enforced_and_nothing_else(directory: str) -> None:
    answers = cgroup.enforceable(directory)
    assert set(answers) == set(cgroup.CONTROLLERS)
    asked = Limits(memory=64 << 20, cpu=500, cpu_weight=50, pids=64)
    pod = PodCgroup.create(directory, UUID, asked)
    verdicts = {report.name: report.verdict for report in pod.report() if report.name != "swap"}
    assert verdicts == {
        name: NOT_ENFORCEABLE if answers[CONTROLLER_OF[name]] else ENFORCED
        for name in ("memory", "cpu", "cpu_weight", "pids")
    }


def test_asking_changes_nothing(directory: str) -> None:
    """Of what is done by this process, since others make and remove cgroups meanwhile."""
    code = (
        "import os, sys; from stage1 import cgroup; from stage1.limits import Limits\n"
        "mount, done = cgroup.find().mount, []\n"
        "def hear(event, args):\n"
        "    if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(args[0]).startswith(mount)"
        " or event in ('os.mkdir', 'os.rmdir', 'os.rename', 'os.remove', 'os.chmod', 'os.chown'):\n"
        "        done.append(event)\n"
        "sys.addaudithook(hear)\n"
        f"cgroup.enforceable({directory!r}); print(done); done.clear()\n"
        f"cgroup.PodCgroup.create({directory!r}, {UUID!r}, Limits(pids=64)).remove(); print(sorted(set(done)))\n"
    )
    said = subprocess.run(
        [sys.executable, "-B", "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    asked, control = said.splitlines()
    assert asked == "[]"
    assert {"open", "os.mkdir", "os.rmdir"} <= {*ast.literal_eval(control)}


def test_the_record_is_there_before_the_cgroup(directory: str) -> None:
    base = cgroup.find().base
    os.makedirs(f"{base}/{UUID}")
    # In the way, as if somebody else had made it: nothing of ours is made, and yet the record names it.
    with pytest.raises(LaunchError, match="cannot make the pod's cgroup"):
        PodCgroup.create(directory, UUID, Limits())
    assert (Path(directory) / cgroup.RECORD).read_text() == f"{base}/{UUID}\n"


def test_gc_ends_what_a_killed_creator_left(directory: str) -> None:
    code = (
        "import os, sys; from stage1.cgroup import PodCgroup; from stage1.limits import Limits\n"
        "from tests.cgroups import born_asleep\n"
        f"pod = PodCgroup.create({directory!r}, {UUID!r}, Limits())\n"
        "born_asleep(pod.app('web', Limits())); os.mkdir(pod.path + '/web/below')\n"
        "print(pod.path, flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as creator:
        assert creator.stdout
        path = creator.stdout.readline().strip()
        creator.kill()
        creator.wait()
    assert cgroup._is_populated(path)
    cgroup.gc(directory)
    assert not os.path.exists(path)
    assert not os.path.exists(f"{directory}/{cgroup.RECORD}")
    cgroup.gc(directory)


def test_gc_refuses_the_cgroup_of_another_pod(pod: PodCgroup, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / cgroup.RECORD).write_text(f"{pod.path}\n")
    with pytest.raises(PodError, match="is not the cgroup of pod other"):
        cgroup.gc(str(other))
    assert os.path.isdir(pod.path)


def test_without_cgroup_kill_every_process_is_found(pod: PodCgroup) -> None:
    def multiply() -> None:
        for _ in range(3):
            os.fork()
        sleep()

    with opened(pod.app("web", Limits())) as fd:
        first = born_in(fd, multiply)
    until(lambda: len(cgroup._processes(pod.path)) == 8)
    cgroup._kill_one_by_one(pod.path)
    assert end(first) == -signal.SIGKILL
    until(lambda: not pod.is_populated("web"))


def test_a_process_joins_an_app_by_the_record(directory: str, pod: PodCgroup) -> None:
    os.close(pod.app("web", Limits()))
    with opened(cgroup.open_procs(directory, "web")) as fd, subprocess.Popen(["sleep", "1000"]) as process:
        os.write(fd, str(process.pid).encode())
        assert of(process.pid).endswith(f"/{UUID}/web")
        pod.kill("web")
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        cgroup.open_procs(directory, "db")


def test_there_is_nothing_to_join_in_a_pod_without_cgroups(tmp_path: Path) -> None:
    assert cgroup.open_procs(str(tmp_path), "web") == -1


def test_the_pods_root_gets_what_starting_apps_takes_and_no_more(directory: str) -> None:
    pod = PodCgroup.create(directory, UUID, Limits(), owner=(70000, 70001))
    os.close(pod.app("web", Limits()))
    for place in (pod.path, f"{pod.path}/web"):
        owned = {name for name in os.listdir(place) if os.stat(f"{place}/{name}").st_uid == 70000}
        assert owned == {"cgroup.procs"}
        assert os.stat(f"{place}/cgroup.procs").st_gid == 70001


def test_pods_that_come_and_go_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import os, sys; from stage1.cgroup import PodCgroup, gc; from stage1.limits import Limits\n"
        "for number in range(50):\n"
        "    place = f'{sys.argv[1]}/{number}'; os.makedirs(place)\n"
        "    pod = PodCgroup.create(place, f'test-{os.getpid()}-{number}', Limits()); pod.remove()\n"
        "    assert not os.path.exists(pod.path)\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", code, tmp_path / name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in several] == [0, 0]


def test_without_cgroups_everything_answers(directory: str) -> None:
    pod = PodCgroup(directory, "", None, "no cgroup2 file system is mounted")
    assert pod.init_fd() == pod.app("web", Limits(memory=1 << 20, pids=7)) == -1
    assert [(report.name, report.verdict, report.detail) for report in pod.report()] == [
        ("memory", NOT_ENFORCEABLE, "no cgroup2 file system is mounted"),
        ("pids", NOT_ENFORCEABLE, "no cgroup2 file system is mounted"),
    ]
    assert not pod.kill()
    assert not pod.is_populated("web")
    assert pod.oom_kills("web") == 0
    pod.remove_app("web")
    pod.remove()
