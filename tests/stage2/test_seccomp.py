"""What filters mean, run on a machine of our own, and the cache of programs."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import libseccomp
from common.errors import LaunchError, RkpyError, UsageError
from common.libseccomp import ALLOW, KILL, Library, fail_with
from stage2 import capabilities, seccomp, system_calls
from stage2.seccomp import Filter
from tests.stage2.machine import X86, X86_64, run

DEFAULT = capabilities.DEFAULT
EPERM, ENOSYS = fail_with(errno.EPERM), fail_with(errno.ENOSYS)
PODMAN = "/usr/share/containers/seccomp.json"
SYS_ADMIN, MKNOD, NET_RAW, AUDIT_WRITE = 21, 27, 13, 29
JUNK = 0xDEAD << 32

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of x86-64")


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library()
    except LaunchError:
        pytest.skip("needs libseccomp2")


def make(
    retain: list[str] | None = None, remove: list[str] | None = None, error: str = "", *added: int, asked: bool = False
) -> Filter:
    made = seccomp.filter_for(
        capabilities={*DEFAULT, *added}, capabilities_asked=asked, retain=retain, remove=remove, error=error
    )
    assert made is not None
    return made


class Machine:
    """Programs of filters, run."""

    def __init__(self, library: Library, wanted: Filter, cache: Path) -> None:
        self._library = library
        self._program = seccomp.compiled(wanted, str(cache))

    def does(self, call: str, *arguments: int, machine: int = X86_64) -> int:
        """The action for a call of 64-bit or, with `machine`, 32-bit programs; the same for x32."""
        numbers = [number for where, number in self._library.numbers(call) if where == machine]
        assert numbers, call
        actions = {run(self._program, machine, number, *arguments) for number in numbers}
        assert len(actions) == 1
        return actions.pop()

    def raw(self, machine: int, number: int) -> int:
        return run(self._program, machine, number)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def default(library: Library, cache: Path) -> Machine:
    return Machine(library, make(), cache)


@pytest.mark.parametrize("machine", [X86_64, X86])
def test_by_default(default: Machine, machine: int) -> None:
    for call in ("read", "execve", "futex", "openat", "clone", "ptrace", "bind", "mknod"):
        assert default.does(call, machine=machine) == ALLOW, call
    for call in (
        "keyctl",
        "add_key",
        "request_key",
        "unshare",
        "setns",
        "mount",
        "bpf",
        "reboot",
        "syslog",
        "open_tree",
    ):
        assert default.does(call, machine=machine) == EPERM, call
    for call in ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"):
        assert default.does(call, machine=machine) == ENOSYS, call


def test_what_nobody_knows_is_not_there(default: Machine) -> None:
    for number in (423, 999, 0x3FFFFFFF):
        assert default.raw(X86_64, number) == ENOSYS
    assert default.raw(0xC00000B7, 0) == KILL  # A program of an arm64.


@pytest.mark.parametrize("machine", [X86_64, X86])
@pytest.mark.parametrize("junk", [0, JUNK])
def test_arguments(default: Machine, machine: int, junk: int) -> None:
    assert default.does("ioctl", 0, junk | 0x5412, machine=machine) == EPERM
    assert default.does("ioctl", 0, junk | 0x541C, machine=machine) == EPERM
    assert default.does("ioctl", 0, junk | 0x5413, machine=machine) == ALLOW
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert default.does("clone", junk | flag | 17, machine=machine) == EPERM
    assert default.does("clone", junk | 0x003D0F00, machine=machine) == ALLOW  # As a C library makes threads.
    for kind in (0o060000, 0o020000):
        assert default.does("mknod", 0, junk | kind | 0o600, 0x801, machine=machine) == EPERM
        assert default.does("mknodat", 0, 0, junk | kind | 0o600, 0x801, machine=machine) == EPERM
    assert default.does("mknod", 0, 0o020000, junk, machine=machine) == ALLOW  # What marks a removed file.
    assert default.does("mknod", 0, 0o060000, junk, machine=machine) == EPERM
    assert default.does("mknod", 0, junk | 0o010600, 0, machine=machine) == ALLOW


@pytest.mark.parametrize("machine", [X86_64, X86])
@pytest.mark.parametrize("junk", [0, JUNK])
def test_sockets(default: Machine, machine: int, junk: int) -> None:
    def socket(family: int, kind: int, protocol: int = 0) -> int:
        return default.does("socket", junk | family, junk | kind, junk | protocol, machine=machine)

    for family in (1, 2, 10, 16):
        assert socket(family, 2 | 0o2000000) == ALLOW
    assert socket(16, 3 | 0o2000000) == ALLOW  # How getaddrinfo(3) asks for addresses.
    assert socket(16, 3, 9) == fail_with(errno.EINVAL)
    assert socket(40, 1) == fail_with(errno.EAFNOSUPPORT)
    for family in (0, 2, 3, 5, 10, 36, 39, 44):
        assert socket(family, 3 | 0o2004000) == EPERM
    for kind in (2, 3, 10):
        assert socket(17, kind) == EPERM
    assert socket(2, 10) == EPERM  # The kernel makes a packet socket of it.


def test_socketcall_hides_what_it_is_asked_for(default: Machine) -> None:
    assert default.does("socketcall", 1, machine=X86) == ENOSYS
    assert default.does("socketcall", 2, machine=X86) == ALLOW


def test_personality(default: Machine) -> None:
    for persona in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF, JUNK | 8):
        assert default.does("personality", persona) == ALLOW
    assert default.does("personality", 0x0040000) == ENOSYS


def test_capabilities_open_what_they_are_for(library: Library, cache: Path) -> None:
    machine = Machine(library, make(None, None, "", SYS_ADMIN), cache)
    for call in ("mount", "unshare", "setns", "clone3", "bpf", "fsopen"):
        assert machine.does(call) == ALLOW
    assert machine.does("clone", 0x10000000) == ALLOW
    assert machine.does("keyctl") == EPERM
    assert machine.does("mknod", 0, 0o060600, 1) == EPERM


def test_capabilities_that_were_asked_for_are_meant(library: Library, cache: Path) -> None:
    machine = Machine(library, make(asked=True), cache)
    assert machine.does("mknod", 0, 0o060600, 1) == ALLOW
    assert machine.does("socket", 2, 3) == ALLOW
    assert machine.does("socket", 17, 3) == ALLOW
    assert machine.does("socket", 16, 3, 9) == ALLOW
    assert machine.does("socket", 40, 1) == fail_with(errno.EAFNOSUPPORT)
    made = seccomp.filter_for(capabilities=(), capabilities_asked=True)
    assert made is not None
    assert Machine(library, made, cache).does("socket", 2, 3) == EPERM


def test_retain_allows_what_it_names_and_no_more(library: Library, cache: Path) -> None:
    for error, action in (("", KILL), ("EACCES", fail_with(errno.EACCES))):
        machine = Machine(library, make(["read", "socketcall", "ioctl"], error=error), cache)
        assert machine.does("read") == ALLOW
        assert machine.does("read", machine=X86) == ALLOW
        assert machine.does("write") == machine.raw(X86_64, 999) == action
        assert machine.does("ioctl", 0, 0x5412) == ALLOW


def test_what_a_group_brings_is_guarded(library: Library, cache: Path) -> None:
    machine = Machine(library, make(["@docker/default-whitelist"]), cache)
    assert machine.does("ioctl", 0, 0x5412) == EPERM
    assert machine.does("clone", 0x10000000) == EPERM
    assert machine.does("clone3") == ENOSYS
    assert machine.does("mount") == KILL
    named = Machine(library, make(["@docker/default-whitelist", "clone"]), cache)
    assert named.does("clone", 0x10000000) == ALLOW


def test_remove_takes_from_the_default(library: Library, cache: Path) -> None:
    machine = Machine(library, make(remove=["read", "@systemd/clock", "socket"], error="EACCES"), cache)
    denied = fail_with(errno.EACCES)
    for call in ("read", "socket", "adjtimex", "settimeofday"):
        assert machine.does(call) == machine.does(call, machine=X86) == denied
    assert machine.does("socketcall", 1, machine=X86) == ENOSYS
    assert machine.does("write") == ALLOW
    assert machine.does("mount") == EPERM
    assert machine.does("ioctl", 0, 0x5412) == EPERM


def test_nothing_empties_a_filter(library: Library, cache: Path) -> None:
    for nothing in (
        make([]),
        make(["@appc.io/empty"]),
        make(remove=["@appc.io/all"]),
        make(remove=["@appc.io/all", "read"]),
    ):
        machine = Machine(library, nothing, cache)
        assert machine.does("read") == machine.does("exit_group") == machine.does("execve", machine=X86) == KILL
        assert not seccomp.allows(nothing, "execve")
    assert make(remove=["@appc.io/empty"]).guards == make().guards
    assert make(remove=["@appc.io/empty"]).layers[-1] == make().layers[-1]
    assert seccomp.allows(make(remove=["@appc.io/empty"]), "execve")


def test_opting_out() -> None:
    assert seccomp.filter_for(capabilities=DEFAULT, capabilities_asked=False, retain=["read", "@appc.io/all"]) is None


def test_whether_a_call_is_allowed_at_all() -> None:
    assert seccomp.allows(make(), "execve")
    assert not seccomp.allows(make(), "ioctl")
    assert not seccomp.allows(make(remove=["execve"]), "execve")
    assert not seccomp.allows(make(["read"]), "execve")
    assert not seccomp.allows(make(), "never_heard_of")


@pytest.mark.parametrize("word", ["@docker/typo", "@all", "@appc.io/All", "@", "@/x"])
def test_unknown_groups_are_refused(word: str) -> None:
    for words in ({"retain": ["read", word]}, {"remove": [word]}):
        with pytest.raises(UsageError, match="no group of system calls"):
            seccomp.filter_for(capabilities=DEFAULT, capabilities_asked=False, **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", ["EFOO", "E", "__doc__", "errorcode", "EPERM "])
def test_unknown_errors_are_refused(error: str) -> None:
    with pytest.raises(UsageError, match="no error number"):
        make(["read"], error=error)


def test_unknown_calls_are_refused_and_those_of_other_machines_skipped(library: Library, tmp_path: Path) -> None:
    for wanted in (make(["read", "frobnicate"]), make(remove=["frobnicate"])):
        with pytest.raises(UsageError, match='no system call "frobnicate"'):
            seccomp.compiled(wanted, str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert Machine(library, make(["read", "riscv_flush_icache", "arm_fadvise64_64"]), tmp_path).does("read") == ALLOW


@given(st.lists(st.text(max_size=12)), st.text(max_size=8), st.booleans())
def test_any_words_end_in_a_filter_or_one_of_our_errors(words: list[str], error: str, keep: bool) -> None:
    try:
        made = make(words if keep else None, None if keep else words, error)
    except RkpyError:
        return
    assert made.layers


def test_groups_hold_calls_and_no_groups() -> None:
    for calls in (*system_calls.GROUPS.values(), system_calls.ALLOWED, system_calls.NOT_PERMITTED):
        assert len(set(calls)) == len(calls)
        assert all(call.replace("_", "a").isalnum() and call.islower() for call in calls)
    denied = {*system_calls.NOT_PERMITTED, *(call for some in system_calls.ALLOWED_WITH.values() for call in some)}
    assert not denied & set(system_calls.ALLOWED)


def test_names_in_tables_are_calls(library: Library) -> None:
    tables = (*system_calls.GROUPS.values(), system_calls.ALLOWED, system_calls.NOT_PERMITTED)
    newer = {"timerfd", "swapcontext"}
    assert not {call for calls in tables for call in calls if not library.knows(call)} - newer


# Against podman


def podman_allows(have: frozenset[int]) -> set[str]:
    """What podman's profile allows with these capabilities, whatever the arguments."""
    with open(PODMAN) as file:
        entries: list[dict[str, Any]] = json.load(file)["syscalls"]
    names = {capabilities.name(number) for number in have}
    allowed = [
        entry
        for entry in entries
        if entry["action"] == "SCMP_ACT_ALLOW"
        and set(entry["includes"].get("caps", ())) <= names
        and not set(entry["excludes"].get("caps", ())) & names
    ]
    return {name for entry in allowed for name in entry["names"]}


@pytest.mark.skipif(not os.path.exists(PODMAN), reason="needs podman's profile (golang-github-containers-common)")
@pytest.mark.parametrize("extra", [frozenset(), *(frozenset({number}) for number in range(41)), frozenset(range(41))])
def test_nothing_is_allowed_that_podman_denies(extra: frozenset[int]) -> None:
    have = DEFAULT | extra
    layer = make(None, None, "", *extra).layers[-1]
    ours = {call for call, action in layer.rules if action == ALLOW}
    assert not ours - podman_allows(have)


# The cache


def test_a_program_is_made_once(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "made" / "when needed"
    program = seccomp.compiled(make(), str(directory))
    (entry,) = directory.iterdir()
    assert entry.stat().st_mode & 0o7777 == 0o600
    assert len(entry.read_bytes()) % 8 == 0

    def fail(*_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(libseccomp.Library, "compile", fail)
    assert seccomp.compiled(make(), str(directory)) == program
    with pytest.raises(AssertionError, match="again"):
        seccomp.compiled(make(remove=["read"]), str(directory))


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "bytes", "flipped", "longer", "link", "writable", "fifo", "directory"]
)
def test_what_is_not_ours_is_made_again(library: Library, tmp_path: Path, damage: str) -> None:
    program = seccomp.compiled(make(), str(tmp_path))
    (entry,) = tmp_path.iterdir()
    data = entry.read_bytes()
    broken = {
        "empty": b"", "cut": data[:-16], "bytes": data[:-3], "flipped": bytes([data[0] ^ 1]) + data[1:],
        "longer": data + bytes(8),
    }  # fmt: skip
    if damage in broken:
        entry.write_bytes(broken[damage])
    elif damage == "writable":
        entry.chmod(0o666)
    else:
        entry.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            entry.symlink_to("elsewhere")
        elif damage == "fifo":
            os.mkfifo(entry)
        else:
            entry.mkdir()
    assert seccomp.compiled(make(), str(tmp_path)) == program
    if damage != "directory":
        assert entry.read_bytes() == data
        assert not entry.is_symlink()


def test_a_cache_that_cannot_be_written_is_done_without(library: Library) -> None:
    assert seccomp.compiled(make(), "/proc/nowhere")


def test_no_library_no_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(LaunchError, match="no usable libseccomp"):
        seccomp.compiled(make(), str(tmp_path))
