"""Messages with descriptors, and plans as text."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1 import channel
from stage1.limits import Limits
from stage1.mounts import Bind, ReadOnlyRoot
from stage1.plan import AppPlan, HandedSocket, Health, PodPlan, Restart, dumps, loads
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage1.streams import Streams
from stage1.systemd.given import Given
from stage2.launch import LaunchSpec

TEXT = st.text(max_size=40)
TIMES = st.floats(0, 1e6)
LAUNCHES = st.builds(
    LaunchSpec, TEXT, st.tuples(TEXT, TEXT), st.tuples(st.tuples(TEXT, TEXT)), TEXT, TEXT, st.tuples(st.integers()),
    TEXT, st.booleans(), st.tuples(), st.none() | st.tuples(st.integers(0, 40)), st.tuples(), st.binary(max_size=64),
)  # fmt: skip
ROOTS = st.builds(OverlayRoot, st.tuples(TEXT, TEXT), TEXT, TEXT, TEXT) | st.builds(CopiedRoot, TEXT)
STEPS = st.tuples(st.builds(Bind, TEXT, TEXT, st.booleans(), st.booleans(), TEXT), st.just(ReadOnlyRoot()))
APPS = st.builds(
    AppPlan, TEXT, ROOTS, STEPS, LAUNCHES, st.tuples(LAUNCHES), st.tuples(), st.just(Streams("tty", "tty", "tty")),
    st.builds(Restart, TEXT, st.integers(0)), st.integers(1, 64), st.builds(Limits, st.integers(0), st.integers(0)),
    health=st.none() | st.builds(Health, st.tuples(TEXT), TIMES, TIMES, st.integers(0), TIMES, TEXT),
    listening=st.tuples() | st.tuples(st.builds(HandedSocket, st.integers(0), TEXT, st.booleans())),
)  # fmt: skip
PODS = st.builds(
    PodPlan,
    TEXT,
    TEXT,
    st.integers(3, 9),
    st.tuples(APPS),
    TEXT,
    limits=st.builds(Limits, st.integers(0), st.integers(0)),
    given=st.builds(Given, TEXT, st.integers(0), st.tuples(TEXT), TEXT, st.tuples(st.integers(1, 2))),
)


@given(PODS)
def test_plans_survive_the_way(plan: PodPlan) -> None:
    again = loads(dumps(plan))
    assert again == plan
    assert type(again.apps[0].steps[0]) is type(plan.apps[0].steps[0])


@pytest.mark.parametrize("data", [b'["os.system","x"]', b"[", b'["Bind"', b'{"bytes":"!"}'])
def test_what_is_no_plan(data: bytes) -> None:
    with pytest.raises(ValueError):
        loads(data)


def test_messages_keep_their_borders_and_descriptors() -> None:
    ours, theirs = channel.pair()
    held = [channel.memory_file(f"file {number}".encode()) for number in range(channel.MAX_FDS)]
    ours.send("first", held)
    ours.send("second \udcff line\n")
    ours.close()
    text, fds = theirs.receive()
    assert text == "first"
    assert [channel.read_memory_file(fd) for fd in fds[:2]] == [b"file 0", b"file 1"]
    assert len(fds) == channel.MAX_FDS
    assert not any(os.get_inheritable(fd) for fd in fds[2:])
    assert theirs.receive() == ("second \udcff line\n", [])
    assert theirs.receive() == ("", [])
    for fd in (*held, *fds[2:]):
        os.close(fd)
    theirs.close()


def test_nobody_listens() -> None:
    ours, theirs = channel.pair()
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        ours.send("hello")
    ours.close()


def test_last_words_of_one_who_did_not_listen() -> None:
    ours, theirs = channel.pair()
    ours.send("start")
    theirs.send("over 0")
    theirs.close()
    assert ours.receive() == ("over 0", [])
    assert ours.receive() == ("", [])
    ours.close()
