"""What isolators become, ignore and refuse; what the kernel makes of it is asked in tests/host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci import isolators
from aci.image_manifest import Isolator
from common.errors import LaunchError, RkpyError, UsageError
from stage1 import restrictions
from stage1.restrictions import restrict
from stage2 import capabilities
from stage2.launch import LaunchSpec

SPEC = LaunchSpec("web", ("/bin/web",), (), "0", "0", (), "/", False, ())
BOTH = ("capabilities", "seccomp")


def restricted(*found: Isolator, insecure: tuple[str, ...] = ("seccomp",)) -> tuple[LaunchSpec, list[str]]:
    return restrict(SPEC, found, insecure=insecure, cache="/proc/nowhere")


def rlimit(name: str, soft: int | str, hard: int | str) -> Isolator:
    return Isolator(isolators.RLIMIT, {"name": name, "soft": soft, "hard": hard})


@pytest.mark.parametrize("insecure", [(), ("capabilities",)])
def test_what_there_is_to_give_can_be_somebody_elses(insecure: tuple[str, ...]) -> None:
    """Of a machine of its own, whatever this process has."""
    have = frozenset({capabilities.SYS_ADMIN})
    retain = Isolator(isolators.CAPABILITIES_RETAIN, {"set": ["CAP_SYS_ADMIN"]})
    spec, warnings = restrict(SPEC, (retain,), insecure=("seccomp", *insecure), cache="/proc/nowhere", have=have)
    assert (spec.capabilities, warnings) == ((capabilities.SYS_ADMIN,), [])
    with pytest.raises(LaunchError, match="rkpy itself has not got it"):
        restrict(SPEC, (retain,), insecure=("seccomp",), cache="/proc/nowhere", have=frozenset())


def test_limits_are_set_once_each_by_their_numbers() -> None:
    spec, warnings = restricted(
        rlimit("NOFILE", 1, 2),
        rlimit("CORE", 0, "unlimited"),
        rlimit("NOFILE", 3, 4),
        Isolator("os/linux/oom-score-adj", 7),
    )
    assert (sorted(spec.rlimits), spec.oom_score_adj, warnings) == ([(4, 0, -1), (7, 3, 4)], 7, [])


def test_nothing_else_is_touched() -> None:
    spec, warnings = restricted()
    assert spec._replace(capabilities=None) == SPEC
    assert warnings == []


def test_no_new_privileges_is_not_taken_back() -> None:
    name = isolators.NO_NEW_PRIVILEGES
    assert restricted(Isolator(name, True), Isolator(name, False))[0].no_new_privileges
    assert not restricted(Isolator(name, False))[0].no_new_privileges


def test_what_cgroups_deal_with_is_left_to_them() -> None:
    found = [Isolator(name, {}) for name in sorted(isolators.RESOURCES)]
    assert restrictions.ignored(found) == []


def test_what_is_ignored_is_said_once() -> None:
    names = [isolators.SELINUX_CONTEXT, isolators.SYSCTL, isolators.NETWORK_BANDWIDTH, "example.com/own"]
    assert restrictions.ignored(Isolator(name, {}) for name in (*names, "example.com/own")) == names


def test_every_known_isolator_is_enforced_left_to_cgroups_ignored_or_refused() -> None:
    rest = isolators.KNOWN.keys() - restrictions.ENFORCED - isolators.RESOURCES
    assert rest == {
        isolators.SELINUX_CONTEXT, isolators.SYSCTL, isolators.NETWORK_BANDWIDTH, isolators.APPARMOR_PROFILE,
    }  # fmt: skip


def test_an_apparmor_profile_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(LaunchError, match='AppArmor profile "strict" to app "web"'):
        restricted(Isolator(isolators.APPARMOR_PROFILE, {"profile": "strict"}))


@pytest.mark.parametrize("family", ["capabilities", "seccomp"])
def test_opposites_are_refused(family: str) -> None:
    word = "CAP_KILL" if family == "capabilities" else "execve"
    sets = (Isolator(f"os/linux/{family}-{mode}-set", {"set": [word]}) for mode in ("retain", "remove"))
    with pytest.raises(UsageError, match="either"):
        restricted(*sets, insecure=())


def test_ambient_capabilities_are_of_those_it_has() -> None:
    ambient = Isolator(isolators.AMBIENT_CAPABILITIES, {"set": ["CAP_SYS_TIME"]})
    with pytest.raises(LaunchError, match="CAP_SYS_TIME cannot be ambient"):
        restricted(ambient)
    assert restricted(ambient, insecure=BOTH)[0].ambient == (25,)


def test_switched_off() -> None:
    spec, _ = restricted(Isolator(isolators.CAPABILITIES_REMOVE, {"set": ["CAP_KILL"]}), insecure=BOTH)
    assert (spec.capabilities, spec.seccomp) == (tuple(sorted(capabilities.available())), b"")


WORDS = st.sampled_from(["CAP_KILL", "CAP_X", "read", "execve", "@appc.io/all", "@x/y"])
VALUES = st.lists(WORDS, min_size=1).map(lambda words: {"set": words})
SETS = st.sampled_from([name for name in sorted(restrictions.ENFORCED) if name.endswith("-set")])


@given(st.lists(st.tuples(SETS, VALUES), max_size=4))
def test_any_sets_end_in_a_spec_or_one_of_our_errors(sets: list[tuple[str, Any]]) -> None:
    try:
        spec, _ = restricted(*(Isolator(name, value) for name, value in sets), insecure=())
    except RkpyError:
        return
    words = [word for name, value in sets if name == isolators.SECCOMP_RETAIN for word in value["set"]]
    assert spec.seccomp or "@appc.io/all" in words


def test_the_cache_is_used(tmp_path: Path) -> None:
    first, _ = restrict(SPEC, (), insecure=(), cache=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert restrict(SPEC, (), insecure=(), cache=str(tmp_path))[0] == first
