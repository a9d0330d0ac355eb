"""Who the app is: its user, group and supplementary groups as numbers, from the account files of its own root.

Names come first: an image may have a user called `1000` (spec 0.8.11, "Image Manifest Schema", `user`). The files
belong to the image and are read as hostile input: lines that make no sense are skipped, as getpwnam(3) does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from common.errors import LaunchError, reason
from common.records import NamedTuple

PASSWD = "/etc/passwd"  # noqa: S105
GROUP = "/etc/group"
MAX_SIZE = 4 << 20
"""Bytes of an account file: some 50,000 accounts."""
MAX_ID = 2**32 - 2
"""(uid_t) -1 means "leave it as it is" to setresuid(2)."""


class Account(NamedTuple):
    """One line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


class Identity(NamedTuple):
    """What setgroups, setresgid and setresuid are given, and the account the user has, if it has one."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    account: Account | None


def resolve(user: str, group: str, supplementary_gids: tuple[int, ...]) -> Identity:
    """The identity named by `user` and `group`, each a name, a number or an absolute path whose owner is meant. An
    empty user is root; an empty group is the user's own, or 0 for a user without an account. Runs inside the app's
    root. LaunchError when a name is unknown, a path missing, or a number out of range."""
    accounts = list(parse_passwd(read_account_file(PASSWD)))
    uid, account = _user(user or "0", accounts)
    own_gid = account.gid if account else 0
    gid = _group(group, dict(parse_group(read_account_file(GROUP)))) if group else own_gid
    for extra in supplementary_gids:
        if not 0 <= extra <= MAX_ID:
            raise LaunchError(f"supplementary group {extra} is not a group number")
    return Identity(uid, gid, supplementary_gids, account)


def parse_id(text: str) -> int | None:
    """`text` as a user or group number; None unless it is ASCII digits in range."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def parse_passwd(data: bytes) -> Iterator[Account]:
    """The usable lines of a passwd(5) file."""
    for fields in _lines(data, 7):
        uid, gid = parse_id(fields[2]), parse_id(fields[3])
        if fields[0] and uid is not None and gid is not None:
            yield Account(fields[0], uid, gid, fields[5], fields[6])


def parse_group(data: bytes) -> Iterator[tuple[str, int]]:
    """Names and numbers of the usable lines of a group(5) file, last one first, so that a dict keeps the first."""
    for fields in reversed(list(_lines(data, 3))):
        gid = parse_id(fields[2])
        if fields[0] and gid is not None:
            yield fields[0], gid


def _lines(data: bytes, at_least: int) -> Iterator[list[str]]:
    for line in data.split(b"\n"):
        fields = line.decode("utf-8", "surrogateescape").split(":")
        if len(fields) >= at_least and "\0" not in line.decode("latin-1"):
            yield fields


def read_account_file(path: str) -> bytes:
    """The content of `path`, empty when it is missing. Only a regular file is opened: opening a device acts on it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise LaunchError(f'"{path}" in the image is not a regular file')
        with open(path, "rb", buffering=0, opener=_open_quietly) as file:
            data = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LaunchError(f'cannot read "{path}" in the image: {reason(error)}') from error
    if len(data) > MAX_SIZE:
        raise LaunchError(f'"{path}" in the image is larger than {MAX_SIZE >> 20} MiB')
    return data


def _open_quietly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _user(user: str, accounts: list[Account]) -> tuple[int, Account | None]:
    for account in accounts:
        if account.name == user:
            return account.uid, account
    uid = _owner(user).st_uid if user.startswith("/") else parse_id(user)
    if uid is None:
        raise LaunchError(f'no user "{user}" in the image', hint="it is neither in its /etc/passwd nor a number")
    return uid, next((account for account in accounts if account.uid == uid), None)


def _group(group: str, groups: dict[str, int]) -> int:
    gid = groups.get(group)
    if gid is None:
        gid = _owner(group).st_gid if group.startswith("/") else parse_id(group)
    if gid is None:
        raise LaunchError(f'no group "{group}" in the image', hint="it is neither in its /etc/group nor a number")
    return gid


def _owner(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise LaunchError(f'cannot take the owner of "{path}" in the image: {reason(error)}') from error
