"""The programs a machine is made of, and whom QEMU is."""

from __future__ import annotations

import io
import os
import pwd
from types import SimpleNamespace

import pytest

from common.errors import LaunchError
from stage1.vm import programs

UUID = "6733c088-a507-4694-aabf-beefbaadf00d"
OTHER = "6733c088-a507-4694-aabf-beefbaadf00e"


def nobody_of_ours(name: str) -> pwd.struct_passwd:
    raise KeyError(name)


def maps(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(pwd, "getpwnam", nobody_of_ours)
    monkeypatch.setattr(programs, "open", lambda *_args, **_named: io.StringIO(text), raising=False)


def test_a_user_that_was_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", 7, 8, "", "/", "/")))
    assert programs.user(UUID) == (7, 8)


def test_numbers_of_their_own_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the user nobody could look into each other's machines."""
    maps(monkeypatch, "         0          0 4294967295\n")
    found = [programs.user(uuid) for uuid in (UUID, OTHER)]
    assert found == [(0x7AADF00D, 0x7AADF00D), (0x7AADF00E, 0x7AADF00E)]


def test_where_there_are_no_such_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    maps(monkeypatch, "0 100000 65536\n")
    assert programs.user(UUID) == (65534, 65534)


def test_on_another_processor_nothing_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    with pytest.raises(LaunchError, match="kvm needs a processor of type x86_64, and this is aarch64"):
        programs.qemu()
