"""Garbage collection: what is taken, what is left, and that it may be killed anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from common import files
from common.errors import PodError, RkpyError
from stage0 import again, gc, main
from stage0.pods import DIRECTORIES, Pod, Pods, State
from stage1 import flavour
from tests.living import Living, die, start

HOUR = 3600 * 1_000_000_000


def _pod(pods: Pods, directory: str) -> str:
    """A dead pod with contents in `directory`."""
    steps = {"embryo": 0, "prepare": 1, "prepared": 2, "run": 3, "exited-garbage": 4, "garbage": 5}[directory]
    with pods.create() as pod:
        moves = (pod.to_prepare, pod.to_prepared, pod.to_run, pod.to_exited_garbage, pod.to_garbage)
        for move in moves[:steps]:
            move()
        for name in ("rootfs/app/etc", "overlay/app/upper", "volumes/v", "appsinfo/app", "status"):
            os.makedirs(f"{pod.path}/{name}")
        for name in ("rootfs/app/etc/passwd", "pod", "appsinfo/app/manifest", "status/app"):
            Path(pod.path, name).write_text("{}")
        return pod.uuid


def _where(pods: Pods) -> dict[str, str]:
    return {pod.uuid: pod.directory for pod in pods.all(DIRECTORIES)}


def _fail(error: RkpyError) -> None:
    raise error


def _collect(pods: Pods, grace: int = 0, expire: int = HOUR, *, mark_only: bool = False) -> list[RkpyError]:
    """What the command does, without its words."""
    failures: list[RkpyError] = []
    list(gc.mark_exited(pods, failures.append))
    list(gc.mark_aborted(pods, failures.append))
    if mark_only:
        return failures
    list(gc.expire_prepared(pods, expire, failures.append))
    mounts = gc.read_mounts(pods.root)
    for pod, due in gc.sweep(pods, grace, failures.append):
        if due:
            try:
                gc.remove(pod, mounts)
            except RkpyError as error:
                failures.append(error)
    return failures


def _left(pods: Pods) -> list[str]:
    return [f"{name}/{entry}" for name in DIRECTORIES for entry in os.listdir(f"{pods.root}/{name}")]


def _named(pods: Pods, directory: str, name: str, created: int) -> str:
    uuid = _pod(pods, directory)
    with pods.find(uuid) as pod:
        Path(pod.path, "name").write_text(f"{name}\n")
        path = Path(pod.path, "pod-created")
        path.touch()
        os.utime(path, ns=(created, created))
    return uuid


@pytest.mark.parametrize("text", ["web", "web:", ":3", "web:-1", "web:x"])
def test_what_is_to_stay_has_a_name_and_a_number(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main([f"--dir={tmp_path}", "gc", "--mark-only", f"--keep-last={text}"]) == 254
    assert capfd.readouterr().err == f"rkpy: gc: --keep-last={text}: it takes NAME:N\n"


def test_the_youngest_of_a_name_stay(pods: Pods) -> None:
    old, young, middle = (_named(pods, "exited-garbage", "web", created) for created in (1, 3, 2))
    _named(pods, "run", "web", 0)
    _named(pods, "garbage", "web", 0)
    other = _named(pods, "exited-garbage", "db", 0)
    assert gc.surplus(pods, "web", 2) == [old]
    assert gc.surplus(pods, "web", 0) == [old, middle, young]
    assert gc.surplus(pods, "db", 0) == [other]
    assert gc.surplus(pods, "web", 3) == gc.surplus(pods, "web", 9) == gc.surplus(pods, "x", 0) == []


def test_nothing_to_collect(pods: Pods) -> None:
    assert _collect(pods) == []
    assert not os.path.exists(pods.root)


@pytest.mark.parametrize(
    ("directory", "goes_to"),
    [
        ("embryo", "garbage"),
        ("prepare", "garbage"),
        ("prepared", "prepared"),
        ("run", "exited-garbage"),
        ("exited-garbage", "exited-garbage"),
        ("garbage", "garbage"),
    ],
)
def test_marking_moves_what_is_over_and_removes_nothing(pods: Pods, directory: str, goes_to: str) -> None:
    uuid = _pod(pods, directory)
    assert _collect(pods, expire=0, mark_only=True) == []
    assert _where(pods) == {uuid: goes_to}
    assert os.path.exists(f"{pods.root}/{goes_to}/{uuid}/rootfs/app/etc/passwd")


@pytest.mark.parametrize(
    ("directory", "goes"),
    [("embryo", True), ("prepare", True), ("prepared", False), ("run", False), ("exited-garbage", False),
     ("garbage", True)],
)  # fmt: skip
def test_grace_is_for_what_has_exited(pods: Pods, directory: str, goes: bool) -> None:
    uuid = _pod(pods, directory)
    assert _collect(pods, grace=HOUR) == []
    assert (uuid not in _where(pods)) is goes


@pytest.mark.parametrize("directory", ["embryo", "prepare", "run", "exited-garbage", "garbage"])
def test_without_grace_everything_dead_goes(pods: Pods, directory: str) -> None:
    _pod(pods, directory)
    assert _collect(pods) == []
    assert _left(pods) == []


def test_the_clock_of_the_grace_period_starts_when_the_pod_is_marked(pods: Pods) -> None:
    uuid = _pod(pods, "run")
    path = f"{pods.root}/run/{uuid}"
    os.utime(f"{path}/pod-created", (1, 1))
    os.utime(path, (1, 1))
    assert _collect(pods, grace=HOUR) == []
    assert _where(pods) == {uuid: "exited-garbage"}


def test_prepared_pods_expire(pods: Pods) -> None:
    uuid = _pod(pods, "prepared")
    _collect(pods, expire=HOUR)
    assert _where(pods) == {uuid: "prepared"}
    _collect(pods, expire=0)
    assert _left(pods) == []


def test_a_prepared_pod_that_is_just_being_run_does_not_expire(pods: Pods) -> None:
    uuid = _pod(pods, "prepared")
    with pods.find(uuid) as runner:
        runner.take()
        assert _collect(pods, expire=0) == []
        runner.to_run()
    assert _where(pods) == {uuid: "run"}


def test_what_lives_is_left_alone(pods: Pods, living: Living) -> None:
    embryo = pods.create()
    preparing = pods.create()
    preparing.to_prepare()
    with pods.create() as running:
        running.to_prepare()
        running.to_run()
        living.append(start(running))
    before = _where(pods)
    assert _collect(pods, expire=0) == []
    assert _where(pods) == before and len(before) == 3
    embryo.close()
    preparing.close()
    die(living[0])
    assert _collect(pods, expire=0) == []
    assert _left(pods) == []


def test_an_embryo_is_not_judged_while_one_is_being_born(pods: Pods) -> None:
    """Between mkdir and the lock an embryo looks like a crashed one."""
    pods.create().close()
    os.mkdir(f"{pods.root}/embryo/aaaaaaaa-0000-4000-8000-000000000000")
    with pods.births(exclusive=False):
        assert _collect(pods) == []
        assert len(_left(pods)) == 2
    assert _collect(pods) == []
    assert _left(pods) == []


def test_what_somebody_else_is_removing_is_left_to_him(pods: Pods) -> None:
    uuid = _pod(pods, "garbage")
    with pods.find(uuid) as other:
        other.take()
        assert _collect(pods) == []
        assert _where(pods) == {uuid: "garbage"}


def test_a_pod_without_its_lock_is_collected(pods: Pods) -> None:
    for directory in ("embryo", "prepare", "run", "exited-garbage", "garbage"):
        os.unlink(f"{pods.root}/{directory}/{_pod(pods, directory)}/lock")
    assert _collect(pods) == []
    assert _left(pods) == []


def test_a_second_collector_may_go_on_where_the_first_ends(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw the directory without its lock, in the moment before the directory itself went, and made a new one."""
    uuid = _pod(pods, "garbage")
    delete = gc._delete_contents

    def and_a_new_lock(top: int) -> None:
        delete(top)
        os.close(os.open("lock", os.O_CREAT, dir_fd=top))

    monkeypatch.setattr(gc, "_delete_contents", and_a_new_lock)
    assert _collect(pods) == []
    assert os.listdir(f"{pods.root}/garbage/{uuid}") == ["lock"]
    monkeypatch.undo()
    assert _collect(pods) == []
    assert _left(pods) == []


def test_the_root_goes_first_and_the_lock_last(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = _pod(pods, "garbage")
    Path(pods.root, "garbage", uuid, "flavour").write_text("fake")
    monkeypatch.setattr(flavour, "load", lambda name: SimpleNamespace(gc=lambda directory: None))
    order: list[str] = []
    remove_tree = files.remove_tree

    def record(name: str, *, dir_fd: int) -> None:
        order.append(name)
        remove_tree(name, dir_fd=dir_fd)

    monkeypatch.setattr(files, "remove_tree", record)
    assert _collect(pods) == []
    assert order[:3] == ["rootfs", "overlay", "volumes"]
    assert order[-3:] == ["flavour", "pod", "lock"]


def test_the_flavour_cleans_up_while_all_is_still_there(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = _pod(pods, "exited-garbage")
    Path(pods.root, "exited-garbage", uuid, "flavour").write_text("fake")
    seen: list[tuple[str, str, list[str]]] = []

    def load(name: str) -> SimpleNamespace:
        return SimpleNamespace(gc=lambda directory: seen.append((name, directory, sorted(os.listdir(directory)))))

    monkeypatch.setattr(flavour, "load", load)
    assert _collect(pods) == []
    assert [(name, directory) for name, directory, _ in seen] == [("fake", f"{pods.root}/garbage/{uuid}")]
    assert {"pod", "rootfs", "appsinfo", "lock"} <= set(seen[0][2])


def test_a_pod_whose_flavour_is_gone_is_reported_and_kept_and_the_others_go(pods: Pods) -> None:
    uuids = sorted(_pod(pods, "garbage") for _ in range(3))
    Path(pods.root, "garbage", uuids[1], "flavour").write_text("no-such-flavour")
    failures = _collect(pods)
    assert [failure.message for failure in failures] == ['no stage1 flavour called "no-such-flavour"']
    assert list(_where(pods)) == [uuids[1]]
    assert os.path.exists(f"{pods.root}/garbage/{uuids[1]}/rootfs/app/etc/passwd")


@pytest.mark.parametrize("directory", ["prepare", "prepared", "run", "exited-garbage", "garbage"])
def test_discard(pods: Pods, directory: str) -> None:
    other, uuid = _pod(pods, directory), _pod(pods, directory)
    gc.discard(pods, uuid, lambda _: None)
    assert list(_where(pods)) == [other]


def test_discard_says_what_it_does_with_the_unfinished(pods: Pods) -> None:
    said: list[str] = []
    prepared, aborted = _pod(pods, "prepared"), _pod(pods, "prepare")
    gc.discard(pods, prepared, said.append)
    gc.discard(pods, aborted, said.append)
    assert said == [
        f'moving expired prepared pod "{prepared}" to garbage',
        f'moving failed prepare "{aborted}" to garbage',
    ]


def test_discard_refuses_the_living(pods: Pods, living: Living) -> None:
    with pods.create() as pod:
        pod.to_prepare()
        with pytest.raises(PodError, match=f'pod "{pod.uuid}" is currently being prepared'):
            gc.discard(pods, pod.uuid, _fail_if_called)
        pod.to_run()
        living.append(start(pod))
        with pytest.raises(PodError, match=f'pod "{pod.uuid}" is currently running'):
            gc.discard(pods, pod.uuid, _fail_if_called)
    uuid = _pod(pods, "garbage")
    with pods.find(uuid) as other:
        other.take()
        with pytest.raises(PodError, match="is currently being deleted"):
            gc.discard(pods, uuid, _fail_if_called)
    uuid = _pod(pods, "prepared")
    with pods.find(uuid) as other:
        other.take()
        with pytest.raises(PodError, match="in use by another process"):
            gc.discard(pods, uuid, _fail_if_called)


def _fail_if_called(text: str) -> None:
    pytest.fail(text)


def test_discarding_one_of_many_reads_no_directory(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = _pod(pods, "run")
    listed: list[object] = []
    listdir = os.listdir

    def record(path: str | int) -> list[str]:
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", record)
    with pods.find(uuid) as pod:
        assert pod.uuid == uuid
    gc.discard(pods, uuid, _fail_if_called)
    assert all(isinstance(path, int) for path in listed)  # the pod itself, by descriptor


def test_mount_points_are_found_whatever_their_names() -> None:
    assert gc.unescape(r"/a\040b\011\134\012\043") == "/a b\t\\\n#"
    assert gc.unescape("/ä") == "/ä"


# --- crashes

_CRASHER = """
import os, sys
from common.errors import RkpyError
from stage0 import gc
from stage0.pods import Pods

left = int(sys.argv[2])

def fatal(call):
    def step(*args, **keywords):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return call(*args, **keywords)
    return step

for name in ("rename", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, fatal(getattr(os, name)))

pods = Pods(sys.argv[1])
"""
_GC = """
from stage0.commands.gc import command
from stage0.config import Config
command.main(["--grace-period=0s", "--expire-prepared=0s"], obj=Config(data_dir=os.path.dirname(sys.argv[1])),
             standalone_mode=False)
"""
_PREPARE = "with pods.create() as pod: pod.to_prepare(); pod.to_prepared()"
_RUN = "with pods.create() as pod: pod.to_prepare(); pod.to_run(); pod.hand_over_lock()"


def _crash(pods: Pods, code: str, step: int) -> bool:
    """Run `code` in a process that is killed before its `step`th change of the file system; False if it got through."""
    done = subprocess.run(
        [sys.executable, "-c", _CRASHER + code, pods.root, str(step)], capture_output=True, check=False
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


@pytest.mark.parametrize("code", [_PREPARE, _RUN])
def test_a_maker_killed_at_any_step_leaves_nothing_that_gc_does_not_take(tmp_path: Path, code: str) -> None:
    step = 0
    while True:
        pods = Pods(str(tmp_path / str(step) / "pods"))
        crashed = _crash(pods, code, step)
        assert len([pod.state() for pod in pods.all(DIRECTORIES)]) <= 1
        assert _collect(pods, expire=0) == []
        assert all(
            os.listdir(f"{pods.root}/{name}") == [] for name in DIRECTORIES if os.path.exists(f"{pods.root}/{name}")
        )
        if not crashed:
            break
        step += 1
    assert step > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="gc is for root")
def test_gc_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    """Small pods, so that the number of steps stays small: one that exited, one that was prepared, one aborted."""
    step = 0
    pods = Pods(str(tmp_path / "pods"))
    while True:
        for last in (3, 2, 1):
            with pods.create() as pod:
                for move in (pod.to_prepare, pod.to_prepared, pod.to_run)[:last]:
                    move()
                os.makedirs(f"{pod.path}/rootfs/app")
        crashed = _crash(pods, _GC, step)
        [pod.state() for pod in pods.all(DIRECTORIES)]
        assert _collect(pods, expire=0) == []
        assert _left(pods) == []
        if not crashed:
            break
        step += 1
    assert step > 30


# --- several at once


@pytest.mark.skipif(os.geteuid() != 0, reason="gc is for root")
def test_collectors_removers_and_readers_at_once(pods: Pods) -> None:
    """Everybody works on the same pods; nobody fails for the others, and nothing is left."""
    uuids = [_pod(pods, "run") for _ in range(20)]
    prelude = (
        "import os, sys\nfrom stage0.config import Config\nconfig = Config(data_dir=os.path.dirname(sys.argv[1]))\n"
    )
    collector = prelude + _GC
    reader = (
        "import sys; from stage0.pods import Pods, DIRECTORIES\n"
        "for _ in range(30):\n"
        "    for pod in Pods(sys.argv[1]).all(DIRECTORIES):\n"
        "        print(pod.state()); pod.leader(); pod.created_at\n"
    )
    remover = (
        "import sys; from stage0 import gc; from stage0.pods import Pods; from common.errors import PodError\n"
        "for uuid in sys.argv[2:]:\n"
        "    try: gc.discard(Pods(sys.argv[1]), uuid, print)\n"
        "    except PodError as error:\n"
        "        assert 'currently being deleted' in str(error) or 'in use' in str(error), error\n"
    )
    commands = [
        [sys.executable, "-c", code, pods.root, *uuids] for code in (collector, reader, remover, collector, reader)
    ]
    crowd = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for member in crowd:
        out, err = member.communicate()
        assert member.returncode == 0, err
        assert not {"preparing", "prepared", "running", "embryo"} & set(out.split("\n"))
    assert _collect(pods) == []
    assert _left(pods) == []


# --- the model


class PodModel(RuleBasedStateMachine):
    """Random lives of pods against what they ought to be. A model pod is its uuid; `expected` its directory, `held`
    says who keeps it alive."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.scratch = tempfile.TemporaryDirectory()
        self.pods = Pods(f"{self.scratch.name}/pods")
        self.expected: dict[str, str] = {}
        self.owners: dict[str, Pod] = {}
        self.alive: dict[str, int] = {}

    def teardown(self) -> None:
        for fd in self.alive.values():
            os.close(fd)
        for owner in self.owners.values():
            owner.close()
        self.scratch.cleanup()

    @rule(target=known)
    def create(self) -> str:
        return self._create()

    def _create(self) -> str:
        pod = self.pods.create()
        open(f"{pod.path}/pod", "x").close()
        self.owners[pod.uuid] = pod
        self.expected[pod.uuid] = "embryo"
        return pod.uuid

    @rule(target=known)
    def create_exited(self) -> str:
        """A short cut to where most can happen."""
        uuid = self._create()
        with self.owners.pop(uuid) as pod:
            pod.to_prepare()
            pod.to_run()
        self.expected[uuid] = "run"
        return uuid

    @rule(uuid=known, step=st.sampled_from(["to_prepare", "to_prepared", "to_run", "to_exited_garbage", "to_garbage"]))
    def step(self, uuid: str, step: str) -> None:
        owner = self.owners.get(uuid)
        if owner is None:
            return
        before = self.expected[uuid]
        target = {"to_prepare": "prepare", "to_prepared": "prepared", "to_run": "run"}.get(step)
        legal = (before, target) in (
            ("embryo", "prepare"), ("prepare", "prepared"), ("prepare", "run"), ("prepared", "run"),
        )  # fmt: skip
        if target is None:
            return
        if legal:
            getattr(owner, step)()
            self.expected[uuid] = target
        else:
            with pytest.raises(PodError, match="cannot go"):
                getattr(owner, step)()

    @rule(uuid=known)
    def hand_over(self, uuid: str) -> None:
        """The app inherits the lock and the engine is gone."""
        if self.expected.get(uuid) == "run" and uuid in self.owners:
            owner = self.owners.pop(uuid)
            self.alive[uuid] = owner.hand_over_lock()
            os.set_inheritable(self.alive[uuid], False)

    @rule(uuid=known)
    def die_or_crash(self, uuid: str) -> None:
        """The app ends, or the engine is killed; a prepared pod is merely let go."""
        if uuid in self.alive:
            os.close(self.alive.pop(uuid))
        if uuid in self.owners:
            self.owners.pop(uuid).close()

    @rule(uuid=known)
    def run_prepared(self, uuid: str) -> None:
        if uuid in self.owners:
            return
        try:
            pod = self.pods.find(uuid, ("prepared",))
        except PodError:
            assert self.expected.get(uuid) != "prepared"
            return
        pod.take()
        pod.to_run()
        self.owners[uuid] = pod
        self.expected[uuid] = "run"

    @rule(uuid=known)
    def start_again(self, uuid: str) -> None:
        over = self.expected.get(uuid) in ("run", "exited-garbage") and not self._held(uuid)
        if not over:
            with pytest.raises(PodError):
                again.take(self.pods, uuid)
            return
        pod = again.take(self.pods, uuid)
        pod.to_run_again()
        self.owners[uuid] = pod
        self.expected[uuid] = "run"

    def _held(self, uuid: str) -> bool:
        return uuid in self.owners or uuid in self.alive

    @rule(expire=st.booleans(), grace=st.booleans(), mark_only=st.booleans())
    def collect(self, expire: bool, grace: bool, mark_only: bool) -> None:
        failures = _collect(self.pods, HOUR if grace else 0, 0 if expire else HOUR, mark_only=mark_only)
        assert failures == []
        for uuid, directory in list(self.expected.items()):
            if self._held(uuid):
                continue
            if directory in ("embryo", "prepare") or (directory == "prepared" and expire and not mark_only):
                directory = "garbage"
            elif directory == "run":
                directory = "exited-garbage"
            if not mark_only and (directory == "garbage" or (directory == "exited-garbage" and not grace)):
                del self.expected[uuid]
            else:
                self.expected[uuid] = directory

    @rule(uuid=known)
    def remove(self, uuid: str) -> None:
        removable = uuid in self.expected and not self._held(uuid) and self.expected[uuid] != "embryo"
        if removable or self.expected.get(uuid) in (None, "embryo"):
            gc.discard(self.pods, uuid, lambda _: None)  # an embryo is not found by name: as if it were not there
        else:
            with pytest.raises(PodError):
                gc.discard(self.pods, uuid, lambda _: None)
        if removable:
            del self.expected[uuid]

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        states = {pod.uuid: (pod.directory, pod.state()) for pod in self.pods.all(DIRECTORIES)}
        assert {uuid: directory for uuid, (directory, _) in states.items()} == self.expected
        for uuid, (directory, state) in states.items():
            held = self._held(uuid)
            assert (
                state
                == {
                    "embryo": State.EMBRYO,
                    "prepare": State.PREPARING if held else State.ABORTED_PREPARE,
                    "prepared": State.PREPARED,
                    "run": State.RUNNING if held else State.EXITED,
                    "exited-garbage": State.EXITED_GARBAGE,
                    "garbage": State.GARBAGE,
                }[directory]
            )


TestPodModel = PodModel.TestCase
TestPodModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_pod_that_moves_on_while_it_is_discarded(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc marks it between our looking and our moving; discarding goes on from there."""
    uuid = _pod(pods, "run")
    real_state = Pod.state
    marked: list[str] = []

    def state(pod: Pod) -> State:
        found = real_state(pod)
        monkeypatch.setattr(Pod, "state", real_state)
        marked.extend(gc.mark_exited(pods, _fail))
        return found

    monkeypatch.setattr(Pod, "state", state)
    gc.discard(pods, uuid, _fail_if_called)
    assert marked == [uuid]
    assert _left(pods) == []
