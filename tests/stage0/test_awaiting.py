"""Commands for running pods wait for those that are just being started, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import PodError
from stage0 import apps, awaiting, main
from stage0.pods import GARBAGE, PREPARE, PREPARED, RUN, NoSuchPodError, Pod, Pods, State
from stage1 import poddir
from tests.living import Living, die, start
from tests.stage0.test_pod_commands import manifest


class Clock:
    """Time that passes only when somebody waits; then the next thing happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[Callable[[], object]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.steps:
            self.steps.pop(0)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(awaiting, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep))
    return made


@pytest.fixture
def pod(pods: Pods) -> Iterator[Pod]:
    """As `rkpy run` has it when it saves the UUID."""
    with pods.create() as made:
        made.to_prepare()
        (Path(made.path) / "pod").write_bytes(manifest("busybox"))
        (Path(made.path) / "flavour").write_text("fly")
        yield made


def awaited(pods: Pods, pod: Pod) -> Pod:
    return awaiting.start(pods, pods.find(pod.uuid))


def test_a_pod_that_is_about_to_run_is_where_it_runs(pods: Pods, pod: Pod, clock: Clock, living: Living) -> None:
    clock.steps = [lambda: None, pod.to_run, lambda: None, lambda: living.append(start(pod))]
    with awaited(pods, pod) as found:
        assert (found.directory, found.state()) == (RUN, State.RUNNING)
        assert found.leader() is not None
    assert not clock.steps


def test_a_prepared_pod_that_somebody_has_taken_to_run_it(pods: Pods, pod: Pod, clock: Clock, living: Living) -> None:
    pod.to_prepared()
    clock.steps = [pod.to_run, lambda: living.append(start(pod))]
    with awaited(pods, pod) as found:
        assert (found.directory, found.state()) == (RUN, State.RUNNING)


def test_one_that_runs_and_ends_while_it_is_waited_for(pods: Pods, pod: Pod, clock: Clock, living: Living) -> None:
    def live_and_die() -> None:
        pod.to_run()
        living.append(start(pod))
        die(living[0])

    clock.steps = [live_and_die]
    with awaited(pods, pod) as found:
        assert (found.directory, found.state()) == (RUN, State.EXITED)


def test_one_whose_start_has_failed(pods: Pods, pod: Pod, clock: Clock) -> None:
    clock.steps = [pod.discard]
    with pytest.raises(NoSuchPodError):
        awaited(pods, pod)


def test_a_pod_that_is_only_being_prepared_keeps_nobody_waiting_long(pods: Pods, pod: Pod, clock: Clock) -> None:
    with awaited(pods, pod) as found:
        assert (found.directory, found.state()) == (PREPARE, State.PREPARING)
    assert 1 < clock.now < 10


def test_what_nobody_is_at_work_on_keeps_nobody_waiting(pods: Pods, pod: Pod, clock: Clock, living: Living) -> None:
    def look(directory: str) -> State:
        with awaited(pods, pod) as found:
            assert found.directory == directory
            return found.state()

    pod.close()
    assert look(PREPARE) is State.ABORTED_PREPARE
    pod.take()
    pod.to_prepared()
    pod.close()
    assert look(PREPARED) is State.PREPARED
    pod.take()
    pod.to_run()
    pod.close()
    assert look(RUN) is State.EXITED
    pod.take()
    living.append(start(pod))
    assert look(RUN) is State.RUNNING
    die(living[0])
    assert look(RUN) is State.EXITED
    pod.take()
    pod.to_exited_garbage()
    pod.to_garbage()
    assert look(GARBAGE) is State.DELETING
    assert clock.now == 0


def test_how_long_a_pod_may_take_to_have_a_leader(pods: Pods, pod: Pod, clock: Clock, living: Living) -> None:
    pod.to_run()
    living.append(start(pod))
    record = Path(pod.path, poddir.PID)
    record.rename(f"{record}.later")

    def late() -> None:
        if clock.now < 55:
            clock.steps.append(late)
        else:
            Path(f"{record}.later").rename(record)

    clock.steps = [late]
    awaited(pods, pod).close()
    assert clock.now >= 55
    record.rename(f"{record}.later")
    with pytest.raises(PodError, match="has not started its apps yet"):
        awaited(pods, pod)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stop UUID", '"UUID"\n'),
        ("kill --signal=TERM UUID", '"UUID"\n'),
        ("reload UUID", 'no app of pod "UUID" has a signal to reload by'),
        ("attach UUID", "cannot attach to an app"),
        ("enter UUID /bin/true", "it can be joined"),
        ("app exec UUID /bin/true", "it can be joined"),
        ("app start UUID", 'pod "UUID" is immutable'),
        ("app stop UUID", 'pod "UUID" is immutable'),
        ("app restart UUID", 'pod "UUID" is immutable'),
        ("app rm UUID", 'pod "UUID" is immutable'),
        ("app add UUID image", 'pod "UUID" is immutable'),
    ],
)
def test_who_waits(
    pods: Pods, pod: Pod, clock: Clock, living: Living, words: str, expected: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def join(_pod: Pod) -> None:
        raise PodError("it can be joined")

    monkeypatch.setattr(apps, "join", join)
    clock.steps = [pod.to_run, lambda: living.append(start(pod))]
    main.main([f"--dir={Path(pods.root).parent}", *words.replace("UUID", pod.uuid).split()])
    said = capsys.readouterr()
    assert expected.replace("UUID", pod.uuid) in said.out + said.err


def test_the_states_of_apps_are_told_before_there_is_anybody_to_ask(
    pods: Pods, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(pod.path) / "flavour").write_text("nspawn")
    pod.to_run()
    with pods.find(pod.uuid) as found:
        assert found.state() is State.RUNNING
        assert list(apps.states(found)) == ["busybox"]
