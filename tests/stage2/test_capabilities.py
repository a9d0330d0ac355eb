"""Names, numbers and sets of capabilities."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import LaunchError, RkpyError, UsageError
from stage2 import capabilities
from stage2.capabilities import Choice

ALL = frozenset(range(41))
HEADER = "/usr/include/linux/capability.h"


def test_numbers_are_those_of_the_kernels_header() -> None:
    try:
        with open(HEADER) as file:
            found = re.findall(r"^#define (CAP_[A-Z_]+)\s+(\d+)$", file.read(), re.MULTILINE)
    except FileNotFoundError:
        pytest.skip("needs the kernel's headers (linux-libc-dev)")
    assert {name: int(number) for name, number in found} == {
        f"CAP_{name}": number for number, name in enumerate(capabilities.NAMES)
    }


def test_the_default_is_rkts() -> None:
    assert capabilities.mask(capabilities.DEFAULT) == 0xA80425FB
    assert capabilities.choose(None, (), ALL) == Choice(tuple(sorted(capabilities.DEFAULT)), ())


def test_retain_replaces_the_default() -> None:
    assert capabilities.choose(["CAP_SYS_ADMIN", "CAP_KILL", "CAP_KILL"], (), ALL) == Choice((5, 21), ())


def test_remove_takes_from_the_default() -> None:
    removed = capabilities.choose(None, ["CAP_NET_RAW", "CAP_SYS_ADMIN"], ALL).bounding
    assert set(removed) == capabilities.DEFAULT - {13}


def test_all_of_the_default_can_be_removed() -> None:
    names = [capabilities.name(number) for number in capabilities.DEFAULT]
    assert capabilities.choose(None, names, ALL) == Choice((), ())


def test_what_cannot_be_given_is_refused_by_name_and_told_of_by_default() -> None:
    with pytest.raises(LaunchError, match="cannot give CAP_SYS_ADMIN, CAP_SYS_RESOURCE"):
        capabilities.choose(["CAP_SYS_RESOURCE", "CAP_SYS_ADMIN", "CAP_KILL"], (), ALL - {21, 24})
    assert capabilities.choose(None, (), ALL - {27}).missing == (27,)


@pytest.mark.parametrize("name", ["KILL", "cap_kill", "CAP_", "CAP_ALL", "", "CAP_KILL ", "CAP_5"])
def test_unknown_names_are_refused(name: str) -> None:
    for retain, remove in (([name], ()), (None, [name])):
        with pytest.raises(UsageError, match="there is no capability"):
            capabilities.choose(retain, remove, ALL)


def test_ambient_capabilities_have_to_be_allowed() -> None:
    assert capabilities.choose_ambient(["CAP_NET_RAW", "CAP_KILL"], (5, 13)) == (5, 13)
    with pytest.raises(LaunchError, match="CAP_NET_RAW cannot be ambient"):
        capabilities.choose_ambient(["CAP_NET_RAW"], (5,))


def test_available_is_the_bounding_set() -> None:
    with open("/proc/self/status") as file:
        shown = next(line.split()[1] for line in file if line.startswith("CapBnd"))
    assert capabilities.mask(capabilities.available()) == int(shown, 16)


@given(st.lists(st.text(max_size=20)), st.lists(st.sampled_from(capabilities.NAMES).map("CAP_{}".format)))
def test_any_text_ends_in_a_choice_or_one_of_our_errors(texts: list[str], names: list[str]) -> None:
    for retain in (None, texts, names):
        try:
            choice = capabilities.choose(retain, names, ALL)
        except RkpyError:
            continue
        assert set(choice.bounding) <= ALL
