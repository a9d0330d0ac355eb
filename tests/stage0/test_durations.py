from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0 import durations

S = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("0s", 0),
        ("-0", 0),
        ("+5s", 5 * S),
        ("30m", 1800 * S),
        ("24h", 86400 * S),
        ("1h30m", 5400 * S),
        ("500ms", S // 2),
        ("-1s", -S),
        ("-1.5h", -5400 * S),
        ("1.5s", 3 * S // 2),
        (".5s", S // 2),
        ("1.s", S),
        ("3us", 3000),
        ("3µs", 3000),
        ("3μs", 3000),
        ("7ns", 7),
        ("0.1ns", 0),
        ("1h1h", 7200 * S),
        ("0000000000000000000000000000001s", S),
        ("0.333333333333333333333333333333s", 333_333_333),
        ("9223372036854775807ns", (1 << 63) - 1),
    ],
)
def test_parse(text: str, expected: int) -> None:
    assert durations.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "-", "+", "5", "s", ".s", "1", "1d", "1 s", " 1s", "1s ", "1h30", "--1s", "1S", "٣s", "1e3s", "1s\n", "true",
     "9223372036854775808ns", "9" * 5000 + "h", "3000000h"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid duration"):
        durations.parse(text)


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, S - 1))
def test_whatever_go_prints_is_read_back(hours: int, minutes: int, seconds: int, nanoseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{nanoseconds:09d}s"
    assert durations.parse(text) == (hours * 3600 + minutes * 60 + seconds) * S + nanoseconds


@given(st.text(alphabet="0123456789.-+hmsnuµ ", max_size=20))
def test_nothing_but_a_usage_error(text: str) -> None:
    try:
        value = durations.parse(text)
    except UsageError:
        return
    assert -(1 << 63) < value < 1 << 63
