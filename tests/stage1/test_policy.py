"""What follows from an app's end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1 import policy
from stage1.plan import ON_ANY, ON_ANY_FAILURE, UNTIL_ALL, Restart

STATUSES = st.integers(0, 255)


@pytest.mark.parametrize(
    ("restart", "times", "status", "expected"),
    [
        (Restart(), 0, 1, False),
        (Restart("on-failure"), 0, 0, False),
        (Restart("on-failure"), 1000, 1, True),
        (Restart("on-failure", 2), 1, 137, True),
        (Restart("on-failure", 2), 2, 137, False),
        (Restart("always"), 7, 0, True),
        (Restart("always", 7), 7, 0, False),
    ],
)
def test_restarts(restart: Restart, times: int, status: int, expected: bool) -> None:
    assert policy.restarts(restart, times, status) is expected


@given(st.integers(0, 10_000))
def test_delays_grow_up_to_a_bound(times: int) -> None:
    assert policy.FIRST_DELAY <= policy.delay(times) <= policy.delay(times + 1) <= policy.LONGEST_DELAY


@given(st.sampled_from((ON_ANY_FAILURE, UNTIL_ALL)), st.lists(STATUSES))
def test_the_status_is_that_of_the_first_failure(exit_policy: str, statuses: list[int]) -> None:
    outcome = policy.Outcome(exit_policy)
    for status in statuses:
        outcome.ended(status)
    assert outcome.status == next((status for status in statuses if status), 0)


@given(STATUSES, st.lists(STATUSES))
def test_the_status_is_that_of_the_app_that_ends_the_pod(first: int, others: list[int]) -> None:
    outcome = policy.Outcome(ON_ANY)
    for status in (first, *others):
        outcome.ended(status)
    assert outcome.status == first


@given(st.lists(STATUSES, min_size=1))
def test_when_a_pod_is_over(statuses: list[int]) -> None:
    expected = {ON_ANY_FAILURE: any(statuses), ON_ANY: True, UNTIL_ALL: False}
    for exit_policy, over in expected.items():
        outcome = policy.Outcome(exit_policy)
        for status in statuses:
            outcome.ended(status)
        assert outcome.over is over
