"""Ranges of user IDs: no two pods share one, whoever asks at the same time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PodError
from stage0 import idranges, pods
from stage0.idranges import FIRST, LAST, WIDTH
from stage0.pods import Pods
from stage1 import poddir

COUNT = (LAST - FIRST) // WIDTH + 1


@pytest.fixture(autouse=True)
def nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The host's own files, moved to where a test may write them."""
    monkeypatch.setattr(idranges, "_DELEGATED", (str(tmp_path / "subuid"), str(tmp_path / "subgid")))
    monkeypatch.setattr(idranges, "_ACCOUNTS", ((str(tmp_path / "passwd"), (2, 3)), (str(tmp_path / "group"), (2,))))
    yield tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Pods:
    return Pods(f"{tmp_path}/data/pods")


@given(st.uuids(), st.sets(st.integers(0, COUNT - 1), max_size=50))
def test_a_choice_is_free_aligned_and_in_bounds(uuid: object, taken: set[int]) -> None:
    first = idranges.choose(str(uuid), taken)
    assert FIRST <= first <= LAST
    assert first % WIDTH == 0
    assert (first - FIRST) // WIDTH not in taken
    assert idranges.choose(str(uuid), taken) == first


def test_the_last_free_one_is_found_and_none_is_an_error() -> None:
    everything = set(range(COUNT))
    assert idranges.choose("x", everything - {17}) == FIRST + 17 * WIDTH
    with pytest.raises(PodError, match="every range of user IDs is in use"):
        idranges.choose("x", everything)


@given(st.integers(0, 2**32), st.integers(0, 2**20))
def test_the_ranges_touched_by_any_ids(start: int, count: int) -> None:
    touched = idranges._slots(start, count)
    for number in (start, start + max(count, 1) - 1):
        inside = FIRST <= number < LAST + WIDTH
        assert not inside or (number - FIRST) // WIDTH in touched
    assert all(0 <= number < COUNT for number in touched)
    assert len(touched) <= count // WIDTH + 2


def test_the_host_s_delegations_and_accounts_are_passed_over(store: Pods, nobody_else: Path) -> None:
    with store.create() as pod:
        wanted = idranges.choose(pod.uuid, ())
        (nobody_else / "subuid").write_text(f"# odd\nuser:{wanted + 5}:65536\nbad:x:y\n\n")
        (nobody_else / "subgid").write_text(f"user:{wanted + 3 * WIDTH}:1\n")
        (nobody_else / "passwd").write_text(
            f"root:x:0:0:root:/:/bin/sh\nodd:x:{wanted + 2 * WIDTH}:0::/:/bin/sh\nshort\n"
        )
        chosen, count = idranges.claim(store, pod)
        assert (chosen, count) == (FIRST + (wanted - FIRST + 4 * WIDTH) % (COUNT * WIDTH), WIDTH)
        assert poddir.read_private_range(pod.path) == (chosen, WIDTH)


def test_pods_in_every_state_keep_theirs(store: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idranges, "crc32", lambda _: 7)
    found = []
    for directory in pods.DIRECTORIES:
        with store.create() as pod:
            found.append(idranges.claim(store, pod)[0])
            os.rename(pod.path, f"{store.root}/{directory}/{pod.uuid}")
    assert found == [FIRST + (7 + step) * WIDTH for step in range(len(pods.DIRECTORIES))]


def test_no_two_of_many_at_once_get_one(store: Pods, tmp_path: Path) -> None:
    with store.create():
        pass
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                setattr(idranges, "crc32", len)  # noqa: B010
                for _ in range(10):
                    with store.create() as pod:
                        idranges.claim(store, pod)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    signal.alarm(60)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    signal.alarm(0)
    ranges = [poddir.read_private_range(f"{store.root}/embryo/{uuid}") for uuid in store.uuids("embryo")]
    assert sorted(ranges, key=str) == sorted(
        [*[(FIRST + number * WIDTH, WIDTH) for number in range(36, 116)], None], key=str
    )


@pytest.mark.parametrize("text", ["", "x", "524288", "524288:", ":65536", "-1:2", "1:2:3"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "private-users").write_text(text)
    assert poddir.read_private_range(str(tmp_path)) is None
