"""The environment of an app, by its parts."""

from __future__ import annotations

import pytest

from stage2.environment import DEFAULT_PATH, build
from stage2.identity import Account, Identity


def _identity(uid: int, account: Account | None = None) -> Identity:
    return Identity(uid, 0, (), account)


def test_an_account_without_a_passwd_entry() -> None:
    root = build("app", (), _identity(0), "")
    assert (root["HOME"], root["USER"], root["LOGNAME"], root["SHELL"]) == ("/root", "root", "root", "/bin/sh")
    other = build("app", (), _identity(77), "")
    assert (other["HOME"], other["USER"], other["LOGNAME"], other["SHELL"]) == ("/", "77", "77", "/bin/sh")


@pytest.mark.parametrize(("home", "shown"), [("/srv", "/srv"), ("", "/"), ("srv", "/")])
def test_home_is_absolute(home: str, shown: str) -> None:
    assert build("app", (), _identity(5, Account("web", 5, 5, home, "")), "")["HOME"] == shown


def test_the_app_overrides_everything_but_the_two_promised_names() -> None:
    own = tuple((name, "mine") for name in ("PATH", "HOME", "USER", "TERM", "X", "AC_APP_NAME", "container"))
    variables = build("app", own, _identity(0), "xterm")
    assert {name for name, value in variables.items() if value == "mine"} == {"PATH", "HOME", "USER", "TERM", "X"}
    assert (variables["AC_APP_NAME"], variables["container"]) == ("app", "rkpy")


def test_term_only_with_a_terminal() -> None:
    assert build("app", (), _identity(0), "vt220")["TERM"] == "vt220"
    assert "TERM" not in build("app", (), _identity(0), "")
    assert build("app", (), _identity(0), "")["PATH"] == DEFAULT_PATH
