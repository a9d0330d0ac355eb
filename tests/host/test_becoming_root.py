"""Becoming root of a user namespace, for one who is not root: whose IDs there are then, and what goes wrong on the
way. What follows from it is in test_rootless.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.users import Range
from stage0 import rootless
from tests.cgroups import until
from tests.host.commands import ROOT
from tests.ordinary import SIZE, User, user

_TELL = """
import os
from stage0 import rootless
from common import users
from common.errors import RkpyError
try:
    rootless.become_root(to_run=True)
    print("root", os.geteuid(), os.getegid(), *users.ranges("uid"), *users.ranges("gid"), users.confined(), sep="|")
except RkpyError as error:
    print(error)
"""


def become(user: User, path: str = "") -> tuple[str, str]:
    """What a process of `user` finds to be so afterwards, and what it says on standard error; `path` is its PATH."""
    environment = {**user.environment(), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = path or environment["PATH"]
    command = user.command([sys.executable, "-P", "-c", _TELL])
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    return done.stdout.strip(), done.stderr.strip()


@pytest.fixture(scope="module")
def users_of_two_kinds() -> Iterator[tuple[User, User]]:
    with user(10) as one, user(11, ranges=False) as other:
        yield one, other


def test_with_a_range(users_of_two_kinds: tuple[User, User]) -> None:
    one, _ = users_of_two_kinds
    own = (Range(0, one.uid, 1), Range(1, one.first, SIZE))
    assert become(one) == ("|".join(map(str, ("root", 0, 0, *own, *own, True))), "")


def test_without(users_of_two_kinds: tuple[User, User]) -> None:
    _, other = users_of_two_kinds
    out, err = become(other)
    assert out == "|".join(map(str, ("root", 0, 0, *[Range(0, other.uid, 1)] * 2, True)))
    assert err.endswith("apps can have no other user and group than root: /etc/subuid grants this user nothing")


def takes(mapping: list[Range]) -> bool:
    """Whether the kernel lets a user namespace have these IDs."""
    text = "".join(f"{one.inside} {one.outside} {one.size}\n" for one in mapping)
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as child:
        own = os.readlink("/proc/self/ns/user")
        until(lambda: os.readlink(f"/proc/{child.pid}/ns/user") != own)
        try:
            with open(f"/proc/{child.pid}/uid_map", "wb", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            assert error.errno == errno.EINVAL
            return False
        return True


@pytest.mark.parametrize(
    "lines", [[f"me:{at}:1" for at in range(2, 1000, 2)], [f"me:{4000000000 + 20 * at}:10" for at in range(300)]]
)
def test_of_many_ranges_as_many_as_the_kernel_takes(lines: list[str]) -> None:
    found = rootless.of_user(lines, {"me"}, 1000)
    assert takes([Range(0, 1000, 1), *found])
    _, first, size = map(int, lines[len(found)].replace("me", "0").split(":"))
    assert not takes([Range(0, 1000, 1), *found, Range(1 + len(found) * size, first, size)]), "one more"


def test_without_the_programs(users_of_two_kinds: tuple[User, User]) -> None:
    one, _ = users_of_two_kinds
    out, err = become(one, "/nowhere:relative")
    assert out.startswith("root|0|0|")
    assert "there is no newuidmap (Debian has it in uidmap)" in err


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("#!/bin/sh\necho not today >&2\necho more >&2\nexit 3\n", "not today"),
        ("#!/bin/sh\nexit 1\n", "newuidmap failed"),
        ("#!/bin/sh\nkill -9 $$\n", "newuidmap failed"),
        ("#!/nowhere\n", "no such file or directory"),
        ("", "exec format error"),
    ],
)
def test_programs_that_fail(users_of_two_kinds: tuple[User, User], program: str, said: str) -> None:
    """One line, from one process."""
    one, _ = users_of_two_kinds
    for name in ("newuidmap", "newgidmap"):
        path = one.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)
    out, err = become(one, str(one.directory / "bin"))
    assert err == ""
    assert out.startswith("cannot map the user's IDs: ") and out.count("\n") == 0, out
    assert said in out


def test_a_group_that_is_not_the_accounts(users_of_two_kinds: tuple[User, User]) -> None:
    """newgrp(1), or Group= of a service."""
    one, _ = users_of_two_kinds
    command = one.command([sys.executable, "-P", "-c", _TELL])
    command = [word.replace(f"--regid={one.uid}", "--regid=50000") for word in command]
    environment = {**one.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stdout.startswith("root|0|0|")
    assert "whose group is not that of his account" in done.stderr
