"""The pod directory: states, locks, races, and a model of all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import locks
from common.errors import PodError
from stage0.pods import DIRECTORIES, Pod, PodBusyError, PodMovedError, Pods, State, new_uuid, read_uuid_file
from stage1 import poddir
from stage1.poddir import Ending
from tests.living import Living, die, start


def _prepared(pods: Pods) -> str:
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_prepared()
        return pod.uuid


def _state(pods: Pods, uuid: str) -> State:
    with pods.find(uuid, DIRECTORIES) as pod:
        return pod.state()


def test_uuids_are_random_and_version_4() -> None:
    found = {new_uuid() for _ in range(100)}
    assert len(found) == 100
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", u) for u in found)


def test_the_data_directory_is_made_on_first_use(pods: Pods) -> None:
    assert list(pods.all()) == []
    assert not os.path.exists(pods.root)
    before = os.umask(0o077)
    try:
        pods.create().close()
    finally:
        os.umask(before)
    for path in (os.path.dirname(pods.root), pods.root, *(f"{pods.root}/{name}" for name in DIRECTORIES)):
        assert os.stat(path).st_mode & 0o7777 == 0o750


def test_a_pod_is_locked_before_anybody_may_judge_it(pods: Pods) -> None:
    with pods.create() as pod:
        assert pod.directory == "embryo"
        assert pod.is_locked()
        assert sorted(os.listdir(pod.path)) == ["lock", "pod-created"]
        with pytest.raises(PodBusyError):
            pods.find(pod.uuid, DIRECTORIES).take()


def test_the_way_of_a_pod(pods: Pods, living: Living) -> None:
    pod = pods.create()
    assert _state(pods, pod.uuid) is State.EMBRYO
    pod.to_prepare()
    assert _state(pods, pod.uuid) is State.PREPARING
    pod.to_prepared()
    assert _state(pods, pod.uuid) is State.PREPARED
    pod.to_run()
    assert _state(pods, pod.uuid) is State.RUNNING
    living.append(start(pod))
    pod.close()
    assert _state(pods, pod.uuid) is State.RUNNING
    die(living[0])
    assert _state(pods, pod.uuid) is State.EXITED
    with pods.find(pod.uuid) as observed:
        observed.to_exited_garbage()
        assert observed.state() is State.EXITED_GARBAGE
        observed.take()
        assert observed.state() is State.EXITED_DELETING
        observed.to_garbage()
        assert observed.state() is State.DELETING
    assert _state(pods, pod.uuid) is State.GARBAGE


def test_a_pod_whose_maker_died_is_aborted(pods: Pods) -> None:
    with pods.create() as pod:
        pod.to_prepare()
    assert _state(pods, pod.uuid) is State.ABORTED_PREPARE


def test_a_pod_that_became_prepared_under_our_eyes_was_not_aborted(pods: Pods) -> None:
    """The lock is free by the time we ask for it, but the pod is no longer where a free lock means that."""
    with pods.create() as pod:
        pod.to_prepare()
        observed = pods.find(pod.uuid)
        pod.to_prepared()
    with observed:
        assert (observed.directory, observed.state()) == ("prepare", State.PREPARED)


def test_nobody_is_born_while_embryos_are_judged(pods: Pods) -> None:
    pods.create().discard()
    script = "import sys; from stage0.pods import Pods; print(flush=True); Pods(sys.argv[1]).create(); print('born')"
    with pods.births(exclusive=True):
        maker = subprocess.Popen([sys.executable, "-c", script, pods.root], stdout=subprocess.PIPE, text=True)
        assert maker.stdout is not None and maker.stdout.readline() == "\n"
        with pytest.raises(subprocess.TimeoutExpired):
            maker.wait(timeout=0.5)
        assert os.listdir(f"{pods.root}/embryo") == []
    with maker:
        assert maker.communicate()[0] == "born\n"
    assert len(os.listdir(f"{pods.root}/embryo")) == 1


def test_steps_that_make_no_sense_are_refused(pods: Pods) -> None:
    with pods.create() as pod:
        with pytest.raises(PodError, match="cannot go from embryo to run"):
            pod.to_run()
        pod.to_prepare()
        with pytest.raises(PodError, match="cannot go from prepare to exited-garbage"):
            pod.to_exited_garbage()


def test_an_app_that_closes_its_descriptors_is_alive_by_its_leader(pods: Pods, living: Living) -> None:
    """sshd does it: the lock is gone although the pod lives."""
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        os.close(pod.hand_over_lock())
        living.append(subprocess.Popen(["sleep", "1000"]))
        poddir.write_leader(pod.path, living[0].pid)
    with pods.find(pod.uuid) as observed:
        assert not observed.is_locked()
        assert observed.state() is State.RUNNING
    die(living[0])
    assert _state(pods, pod.uuid) is State.EXITED


@pytest.mark.parametrize("wrong", ["start time", "boot"])
def test_another_process_with_the_leaders_pid_is_not_the_leader(pods: Pods, wrong: str) -> None:
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        poddir.write_leader(pod.path, os.getpid())
        leader = pod.leader()
        assert leader is not None and leader.is_alive()
        started, boot = leader.start_time - (wrong == "start time"), "x" * (wrong == "boot") + leader.boot_id
        with open(f"{pod.path}/pid", "w") as file:
            file.write(f"{leader.pid} {started} {leader.mount_namespace} {boot}\n")
    assert _state(pods, pod.uuid) is State.EXITED


def test_the_descriptor_of_the_app_can_neither_write_nor_walk(pods: Pods) -> None:
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        fd = pod.hand_over_lock()
        try:
            assert os.get_inheritable(fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
            with pytest.raises(NotADirectoryError):
                os.open("..", os.O_RDONLY, dir_fd=fd)
            with pytest.raises(BlockingIOError):
                locks.acquire(f"{pod.path}/lock", exclusive=True, blocking=False)
        finally:
            os.close(fd)


def test_there_is_no_unlocked_moment_while_the_lock_is_handed_over(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that could change anything the lock is held already, or still."""
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        path, acquire, close = f"{pod.path}/lock", locks.acquire, os.close
        seen: list[bool] = []

        def checked_acquire(path: str, *, exclusive: bool, blocking: bool) -> locks.Lock:
            seen.append(locks.is_locked(path))
            return acquire(path, exclusive=exclusive, blocking=blocking)

        monkeypatch.setattr(locks, "acquire", checked_acquire)
        fd = pod.hand_over_lock()
        assert seen == [True] and locks.is_locked(path)
        close(fd)
        assert not locks.is_locked(path)


def test_an_exiting_pod_is_read_wherever_it_goes(pods: Pods) -> None:
    uuid = _prepared(pods)
    with pods.find(uuid) as observed, pods.find(uuid) as runner:
        (Path(runner.path) / "pod").write_text("{}")
        runner.take()
        runner.to_run()
        assert observed.manifest_text() == b"{}"
        assert observed.has_moved() and not runner.has_moved()


def test_losing_a_race_is_said(pods: Pods) -> None:
    uuid = _prepared(pods)
    with pods.find(uuid) as winner, pods.find(uuid) as loser, pods.find(uuid) as late:
        winner.take()
        with pytest.raises(PodBusyError, match="in use by another process"):
            loser.take()
        winner.to_run()
        winner.close()
        with pytest.raises(PodMovedError, match="moved by another process"):
            late.take()
        assert not late.is_locked()


def test_a_missing_state_directory_is_not_a_lost_race(pods: Pods) -> None:
    with pods.create() as pod:
        os.rmdir(f"{pods.root}/prepare")
        with pytest.raises(PodError, match="no such file or directory") as caught:
            pod.to_prepare()
        assert not isinstance(caught.value, PodMovedError)


def test_times(pods: Pods, living: Living) -> None:
    before = time.time_ns() - 1_000_000_000
    with pods.create() as pod:
        assert before < (pod.created_at or 0) < before + 60_000_000_000
        assert pod.started_at is None
        pod.to_prepare()
        pod.to_run()
        living.append(start(pod))
        assert (pod.created_at or 0) <= (pod.started_at or 0)
        assert pod.moved_at() >= before


@pytest.mark.parametrize(("text", "expected"), [("0\n", 0), ("143", 143), ("", None), ("x", None), ("9" * 99, None)])
def test_exit_status(pods: Pods, text: str, expected: int | None) -> None:
    with pods.create() as pod:
        assert pod.exit_status("app") is None
        os.mkdir(f"{pod.path}/status")
        with open(f"{pod.path}/status/app", "w") as file:
            file.write(text)
        assert pod.exit_status("app") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0\n", Ending(0)),
        ("137 signal 9\n", Ending(137, 9)),
        ("137 signal 9 oom", Ending(137, 9, oom=True)),
        ("143 signal 15 stopped\n", Ending(143, 15, stopped=True)),
        ("0 stopped", Ending(0, stopped=True)),
        ("1 later words signal", Ending(1)),
        ("1 signal x oom", Ending(1, 0, oom=True)),
        ("-1 signal 9", None),
        ("oom", None),
        ("\udcff", None),
    ],
)
def test_ending(pods: Pods, text: str, expected: Ending | None) -> None:
    with pods.create() as pod:
        assert pod.ending("app") is None
        os.mkdir(f"{pod.path}/status")
        with open(f"{pod.path}/status/app", "wb") as file:
            file.write(os.fsencode(text))
        assert pod.ending("app") == expected


@given(st.binary(max_size=300))
def test_any_bytes_are_an_ending_or_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("pod")
    (directory / "status").mkdir()
    (directory / "status/app").write_bytes(data)
    found = poddir.read_ending(str(directory), "app")
    assert found is None or (found.status >= 0 and found.signal >= 0)


def test_ready_is_a_leader_that_is_done_starting(pods: Pods) -> None:
    with pods.create() as pod:
        assert not pod.is_ready()
        (Path(pod.path) / "starting").touch()
        poddir.write_leader(pod.path, os.getpid())
        assert not pod.is_ready()
        os.unlink(f"{pod.path}/starting")
        assert pod.is_ready()


def test_find_by_prefix(pods: Pods) -> None:
    uuid = _prepared(pods)
    for prefix in (uuid, uuid[:8], uuid[:1], uuid.upper(), f" {uuid}\n"):
        with pods.find(prefix) as pod:
            assert pod.uuid == uuid


def _fake(pods: Pods, directory: str, name: str) -> None:
    os.makedirs(f"{pods.root}/{directory}/{name}", exist_ok=True)


def test_an_ambiguous_prefix_names_the_number_of_matches(pods: Pods) -> None:
    for last in "123":
        _fake(pods, "prepared" if last == "1" else "run", f"abcd0000-0000-4000-8000-00000000000{last}")
    with pytest.raises(PodError, match='ambiguous UUID "ABCD": 3 matches'):
        pods.find("ABCD")
    with pods.find("abcd", ("prepared",)) as pod:
        assert pod.uuid.endswith("1")


@pytest.mark.parametrize("prefix", ["1234", "cf5d5f1d-1260-41df-bed4-030bd29e32a5", "../run", "*", "\0", "."])
def test_no_match(pods: Pods, prefix: str) -> None:
    with pytest.raises(PodError, match=re.escape(f'no matches found for "{prefix}"')):
        pods.find(prefix)
    _prepared(pods)
    with pytest.raises(PodError, match=re.escape(f'no matches found for "{prefix}"')):
        pods.find(prefix, ("run",))


def test_the_empty_prefix_is_no_wildcard(pods: Pods) -> None:
    _prepared(pods)
    with pytest.raises(PodError, match="UUID cannot be empty"):
        pods.find(" ")


def test_foreign_names_are_passed_over(pods: Pods, tmp_path: Path) -> None:
    uuid = _prepared(pods)
    for name in ("..x", "lost+found", uuid.upper(), uuid + "x", "a\nb", "\udcff"):
        _fake(pods, "run", name)
    link, plain = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", f"{pods.root}/run/{link}")
    open(f"{pods.root}/run/{plain}", "x").close()
    assert [pod.uuid for pod in pods.all(DIRECTORIES)] == [uuid]
    for name in (link, plain):
        with pytest.raises(PodError, match="no matches"):
            pods.find(name)


def test_all_sorts_by_uuid_and_closes(pods: Pods) -> None:
    uuids = sorted(_prepared(pods) for _ in range(5))
    before = os.listdir("/proc/self/fd")
    assert [pod.uuid for pod in pods.all()] == uuids
    assert os.listdir("/proc/self/fd") == before


def test_a_pod_moved_while_listing_is_seen_once_and_a_removed_one_not(pods: Pods) -> None:
    first, second, third = sorted(_prepared(pods) for _ in range(3))
    seen = []
    for pod in pods.all():
        seen.append((pod.uuid, pod.directory))
        if pod.uuid == first:
            os.rename(f"{pods.root}/prepared/{second}", f"{pods.root}/run/{second}")
            os.rename(f"{pods.root}/prepared/{third}", f"{pods.root}/garbage/{third}")
    assert seen == [(first, "prepared"), (second, "run")]


def test_reading_writes_nothing_and_takes_no_lock(pods: Pods) -> None:
    uuid = _prepared(pods)
    path = f"{pods.root}/prepared/{uuid}"
    before = os.stat(path)
    with pods.find(uuid) as pod:
        pod.state()
        with locks.acquire(f"{path}/lock", exclusive=True, blocking=False):
            pass
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_a_pod_without_a_lock_file_can_be_owned(pods: Pods) -> None:
    """A removal by hand that was interrupted."""
    uuid = _prepared(pods)
    os.unlink(f"{pods.root}/prepared/{uuid}/lock")
    assert _state(pods, uuid) is State.PREPARED
    with pods.find(uuid) as pod:
        pod.take()
        assert pod.is_locked()


def test_discard_removes_a_pod_that_will_not_start(pods: Pods) -> None:
    for steps in ((), ("to_prepare",), ("to_prepare", "to_run")):
        pod = pods.create()
        for step in steps:
            getattr(pod, step)()
        pod.discard()
        assert list(pods.all(DIRECTORIES)) == []


def test_the_uuid_file(tmp_path: Path) -> None:
    (tmp_path / "uuid").write_text(" cf5d5f1d\n")
    assert read_uuid_file(str(tmp_path / "uuid")) == "cf5d5f1d"
    with pytest.raises(PodError, match=r"unable to resolve UUID from file: .*no such file or directory"):
        read_uuid_file(str(tmp_path / "missing"))
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(PodError, match="holds no UUID"):
        read_uuid_file(str(tmp_path / "bytes"))


def test_two_processes_that_run_one_prepared_pod(pods: Pods) -> None:
    """Ten times: of four, exactly one gets it, and each of the others says that somebody was quicker."""
    script = (
        "import sys; from stage0.pods import Pods; from common.errors import PodError\n"
        "pods = Pods(sys.argv[1])\n"
        "for uuid in sys.stdin:\n"
        "    try:\n"
        "        with pods.find(uuid) as pod:\n"
        "            pod.take(); pod.to_run(); print('ran', flush=True)\n"
        "    except PodError as error: print(error.message, flush=True)\n"
    )
    command = [sys.executable, "-c", script, pods.root]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    uuids = [_prepared(pods) for _ in range(10)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("".join(f"{uuid}\n" for uuid in uuids))
        racer.stdin.close()
    outputs = []
    for racer in racers:
        assert racer.stdout is not None
        outputs.append(racer.stdout.read().splitlines())
        racer.stdout.close()
        assert racer.wait() == 0
    for answers in zip(*outputs, strict=True):
        assert answers.count("ran") == 1
        assert all("process" in answer or "cannot go from run" in answer for answer in answers if answer != "ran")
    assert {_state(pods, uuid) for uuid in uuids} == {State.EXITED}


def _unprivileged(root: str, code: str) -> subprocess.CompletedProcess[str]:
    prelude = (
        "import os, sys; from stage0.pods import Pods, Pod; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", f"{prelude}pods = Pods(sys.argv[1])\n{code}", root],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("code", ["list(pods.all())", "pods.find('a')", f"pods.find('{'a' * 8}')", "pods.create()"])
def test_the_unprivileged_are_told_in_one_line(pods: Pods, code: str) -> None:
    pods.create().close()
    done = _unprivileged(pods.root, code)
    assert re.fullmatch(r"common\.errors\.PodError|stage0\.pods\.\w+", done.stderr.splitlines()[-1].partition(":")[0])
    assert "permission denied (run it as root" in done.stderr.splitlines()[-1]


def test_repr_names_the_place() -> None:
    assert repr(Pod("/x", "run", "u")) == "<Pod run/u>"
