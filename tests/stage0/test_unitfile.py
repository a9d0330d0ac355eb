"""Text of unit files."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from stage0 import unitfile


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("--net=host", "--net=host"),
        ("", '""'),
        (";", '";"'),
        ("two words", '"two words"'),
        ("100%", "100%%"),
        ("%h", "%%h"),
        ("$HOME", "$$HOME"),
        ("${HOME}", "$${HOME}"),
        ("it's", '"it\'s"'),
        ('"', '"\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a\nb\tc\rd", '"a\\nb\\tc\\rd"'),
        ("\x01\x7f", '"\\x01\\x7f"'),
        ("grün", '"grün"'),
        ("\u2028", '"\\xe2\\x80\\xa8"'),
        ("\udcff", '"\\xff"'),
    ],
)
def test_a_word_is_one_argument_and_nothing_in_it_is_expanded(word: str, quoted: str) -> None:
    assert unitfile.quote(word) == quoted


def test_the_program_knows_specifiers_and_no_variables() -> None:
    assert unitfile.command("/opt/100% $a/rkpy", "$a") == '"/opt/100%% $a/rkpy" $$a'


def test_sections_and_settings_come_in_their_order_and_again() -> None:
    text = unitfile.render([("Unit", [("After", "a"), ("After", "")]), ("Service", [("Type", "notify")]), ("X", [])])
    assert text == "[Unit]\nAfter=a\nAfter=\n\n[Service]\nType=notify\n\n[X]\n"


@pytest.mark.parametrize("value", ["a\nExecStart=/bin/sh", "a\0", "a\\"])
def test_a_value_of_several_lines_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="Description"):
        unitfile.render([("Unit", [("Description", value)])])
