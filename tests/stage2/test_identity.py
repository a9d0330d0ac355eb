"""Account files as the image has them, hostile ones too."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stage2.identity import MAX_ID, Account, parse_group, parse_id, parse_passwd


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("007", 7), ("4294967294", MAX_ID), ("4294967295", None), ("99999999999", None), ("", None),
        ("-1", None), ("+1", None), (" 1", None), ("1 ", None), ("1_0", None), ("0x1", None), ("\u0661", None),
        ("\u00b2", None), ("1\0", None), ("00000000001", None),
    ],
)  # fmt: skip
def test_numbers(text: str, number: int | None) -> None:
    assert parse_id(text) == number


@pytest.mark.parametrize(
    ("line", "account"),
    [
        (b"web:x:33:34:Web:/srv:/bin/ash", Account("web", 33, 34, "/srv", "/bin/ash")),
        (b"web:x:33:34:Web:/srv:/bin/ash:more", Account("web", 33, 34, "/srv", "/bin/ash")),
        (b"w\xff:x:1:1:::", Account("w\udcff", 1, 1, "", "")),
        (b"", None), (b"# comment", None), (b"web:x:33:34:Web:/srv", None), (b":x:0:0::/:/bin/sh", None),
        (b"web:x::34::/:", None), (b"web:x:-1:34::/:", None), (b"web:x:33:34::/\0:", None), (b"+::::::", None),
    ],
)  # fmt: skip
def test_passwd_lines(line: bytes, account: Account | None) -> None:
    assert list(parse_passwd(b"\n" + line + b"\n")) == ([account] if account else [])


def test_the_first_line_of_a_name_counts() -> None:
    assert dict(parse_group(b"a:x:1:\na:x:2:\nb:x:3\nc:x\n:x:4:\nd:x:nine:\n")) == {"a": 1, "b": 3}
    assert [account.uid for account in parse_passwd(b"a:x:1:1:::\na:x:2:2:::\n")] == [1, 2]


@given(st.binary())
@example(b"a:b:1:2:c:/d:/e\r\n" * 3)
def test_any_bytes_are_read(data: bytes) -> None:
    for account in parse_passwd(data):
        assert account.name and 0 <= account.uid <= MAX_ID and 0 <= account.gid <= MAX_ID
        assert "\0" not in account.home + account.shell + account.name
    for name, gid in parse_group(data):
        assert name and 0 <= gid <= MAX_ID
