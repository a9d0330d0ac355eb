"""Programs put together by hand do what their rules say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.libseccomp import ALLOW, KILL, fail_with
from stage2 import bpf
from stage2.bpf import Condition, Rule
from tests.stage2.machine import X86, X86_64, run

CALLS = {"one": ((X86_64, 1), (X86, 10)), "two": ((X86_64, 2), (X86_64, 1002)), "three": ((X86, 3),), "none": ()}
ACTIONS = st.sampled_from([ALLOW, KILL, fail_with(1), fail_with(38)])
VALUES = st.sampled_from([0, 1, 2, 3, 0x5412, 0xFFFFFFFF])
WIDE = st.builds(lambda low, high: low | high << 32, VALUES, VALUES)
TESTS = st.builds(Condition, st.integers(0, 5), VALUES, st.sampled_from([0xFFFFFFFF, 0xF, 1]), st.booleans())
RULES = st.lists(st.builds(Rule, st.sampled_from(sorted(CALLS)), ACTIONS, st.lists(TESTS, max_size=3).map(tuple)))


def meant(rules: list[Rule], call: str, arguments: list[int]) -> int:
    """What the rules say in words: the first of the call whose tests all hold."""
    for rule in rules:
        tests = [(arguments[test.argument] & test.mask == test.value) != test.unless for test in rule.conditions]
        if rule.call == call and all(tests):
            return rule.action
    return ALLOW


@given(RULES, st.sampled_from(sorted(CALLS)), st.lists(WIDE, min_size=6, max_size=6))
def test_the_first_rule_that_fits_decides(rules: list[Rule], call: str, arguments: list[int]) -> None:
    program = bpf.assemble(rules, CALLS.__getitem__)
    for machine, number in CALLS[call]:
        assert run(program, machine, number, *arguments) == meant(rules, call, [low & 2**32 - 1 for low in arguments])
    assert run(program, X86_64, 777, *arguments) == ALLOW
    assert run(program, 0x1234, 1, *arguments) == ALLOW


@given(st.lists(RULES, min_size=1, max_size=4), st.sampled_from(["one", "two"]), st.lists(WIDE, min_size=6, max_size=6))
def test_the_first_program_that_does_not_allow_decides(several: list[list[Rule]], call: str, args: list[int]) -> None:
    programs = [bpf.assemble(rules, CALLS.__getitem__) for rules in several]
    for machine, number in CALLS[call]:
        actions = [run(program, machine, number, *args) for program in programs]
        expected = next((action for action in actions if action != ALLOW), ALLOW)
        assert run(bpf.stack(programs), machine, number, *args) == expected


def test_a_long_body_is_jumped_over() -> None:
    many = [Rule("one", KILL, (Condition(0, value),)) for value in range(900)]
    program = bpf.assemble([*many, Rule("two", KILL)], CALLS.__getitem__)
    assert run(program, X86_64, 2) == KILL
    assert run(program, X86_64, 1, 899) == KILL
    assert run(program, X86_64, 1, 900) == ALLOW


def test_a_program_longer_than_linux_takes_is_refused() -> None:
    program = bpf.assemble([Rule("one", KILL, (Condition(0, value),)) for value in range(1000)], CALLS.__getitem__)
    with pytest.raises(ValueError, match="more than Linux takes"):
        bpf.stack([program, program])
