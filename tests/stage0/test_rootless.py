"""Which IDs the files of subuid(5) grant a user, and what the kernel may say to him. The rest is for real, in
tests/host/test_becoming_root.py."""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import syscalls
from common.errors import LaunchError
from common.users import EVERYTHING, Range
from stage0 import apps, rootless
from stage0.pods import RUN, Pod
from stage1 import poddir
from stage1.poddir import Leader

NAMES = frozenset({"me", "1000"})


def granted(*lines: str) -> list[Range]:
    return rootless.of_user(lines, NAMES, 1000)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        (["me:100000:65536"], [Range(1, 100000, 65536)]),
        (["1000:100000:10"], [Range(1, 100000, 10)]),
        (["you:1:1", "me:5:5", "1001:20:1"], [Range(1, 5, 5)]),
        (["me:100:10", "me:200:5"], [Range(1, 100, 10), Range(11, 200, 5)]),
        (["me:200:5", "1000:100:10"], [Range(1, 200, 5), Range(6, 100, 10)]),
        ([" me:100:10 "], [Range(1, 100, 10)]),
        (["", "#", "# me:1:2", "me", "me:", "me:1", "me:1:", "me::1", ":1:1", "me:1:2:3"], []),
        (["me:x:1", "me:1:x", "me:-1:5", "me:1:-5", "me:+1:5", "me:1.0:5", "me:0x10:5", "me:1_0:5", "me:\u0663:5"], []),
        (["me:100:0"], []),
        ([f"me:{'9' * 5000}:1", f"me:1:{'9' * 5000}"], []),
        (["me:4294967290:10", "me:100:4294967295", "me:99999999999:1"], []),
        (["me:4294967290:5"], [Range(1, 4294967290, 5)]),
        (["me:100:10", "me:100:10", "1000:109:1"], [Range(1, 100, 10)]),
        (["me:100:10", "me:105:10", "me:115:1"], [Range(1, 100, 10), Range(11, 115, 1)]),
        (["me:900:200", "me:1000:1", "me:1001:5"], [Range(1, 1001, 5)]),
    ],
)
def test_what_the_file_grants(lines: list[str], expected: list[Range]) -> None:
    assert granted(*lines) == expected


_numbers = st.one_of(st.integers(0, 5000), st.integers(0, 2**33)).map(str)
_line = st.tuples(st.sampled_from(["me", "1000", "you", ""]), _numbers, _numbers).map(":".join)


@given(st.lists(st.one_of(_line, st.text())))
def test_no_id_is_mapped_twice(lines: list[str]) -> None:
    """Whatever is in the file: the kernel refuses maps in which ranges overlap (user_namespaces(7))."""
    found = [Range(0, 1000, 1), *granted(*lines)]
    for one, next_one in pairwise(found):
        assert next_one.inside == one.inside + one.size
    assert found[-1].inside + found[-1].size <= EVERYTHING.size
    outside = sorted((one.outside, one.outside + one.size) for one in found)
    assert all(first[1] <= second[0] for first, second in pairwise(outside))
    assert all(0 <= first < last <= EVERYTHING.size for first, last in outside)


# --- what the kernel refuses


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EPERM, "operation not permitted"),
        (errno.ENOSPC, "there are as many as user.max_user_namespaces allows"),
        (errno.EUSERS, "too many users"),
        (errno.EAGAIN, "this user has as many processes as RLIMIT_NPROC "),
        (errno.EMFILE, "there are as many open files as RLIMIT_NOFILE "),
    ],
)
def test_user_namespaces_may_not_be_allowed(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    """What is a limit of something else is not blamed on them."""

    def unshare(_flags: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(rootless, "_missing", lambda _mappings: "nothing is granted")
    monkeypatch.setattr(syscalls, "unshare", unshare)
    with pytest.raises(LaunchError) as found:
        rootless.become_root()
    assert found.value.message.startswith(f"cannot become root of a user namespace: {said}")
    assert ("docs/rootless.md" in found.value.hint) == ("RLIMIT" not in said)


def leader(pid: int, *, start_time: int = 0, boot_id: str = "") -> Leader:
    started = poddir.start_time(pid)
    assert started is not None
    return Leader(pid, start_time or started, 0, boot_id or poddir.boot_id())


@pytest.mark.usefixtures("ordinary")
def test_a_pod_that_is_over_is_not_joined() -> None:
    """Whoever has its leader's number now."""
    for gone in (leader(os.getpid(), start_time=1), leader(os.getpid(), boot_id="another")):
        with pytest.raises(ProcessLookupError):
            rootless.join(gone, mounts=True)


@pytest.mark.usefixtures("ordinary")
def test_a_namespace_that_is_somebody_elses_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "prctl", lambda *_: 0)
    with pytest.raises(LaunchError, match="cannot enter the user namespace of process 1: "):
        rootless.join(leader(1), mounts=True)


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(("flavour", "made"), [("fly", []), ("nspawn", ["unshare"])])
def test_who_joins_shows_as_little_as_possible(monkeypatch: pytest.MonkeyPatch, flavour: str, made: list[str]) -> None:
    """An app of fly's that is root may trace what is dumpable in its user namespace, and enter every mount namespace
    that belongs to it: it would have the files and the environment of whoever enters the pod."""
    done: list[str] = []

    def prctl(option: int, value: int) -> int:
        assert (option, value) == (syscalls.PR_SET_DUMPABLE, 0)
        done.append("hide")
        return 0

    monkeypatch.setattr(syscalls, "prctl", prctl)
    monkeypatch.setattr(syscalls, "setns", lambda _fd, _flags: done.append("join"))
    monkeypatch.setattr(syscalls, "unshare", lambda _flags: done.append("unshare"))
    monkeypatch.setattr(rootless, "_settle", lambda: None)
    pod = Pod("/nowhere", RUN, "uuid")
    monkeypatch.setattr(Pod, "leader", lambda _pod: leader(os.getpid()))
    monkeypatch.setattr(Pod, "flavour", lambda _pod: flavour)
    apps.join(pod)
    assert done == ["hide", "join", "hide", *made]
