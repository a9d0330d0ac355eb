"""What an app may really do under its isolators: launched in a root of its own, asking the kernel itself."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aci.image_manifest import Isolator
from common import syscalls
from common.errors import LaunchError, RkpyError, UsageError
from common.libseccomp import ALLOW, KILL, Layer, Library
from stage1.restrictions import restrict
from stage2 import capabilities, seccomp
from stage2 import program as program_module
from stage2.launch import LaunchSpec, launch
from tests.host.conftest import PAYLOAD
from tests.host.flying import wait
from tests.stage2.machine import X86, X86_64

USER = "1234"
DEFAULT = "00000000a80425fb"
NOTHING = "0" * 16
CLONE_NEWUSER, CLONE_VM, SIGCHLD = 0x10000000, 0x100, 17
BLOCK, CHARACTER = 0o060600, 0o020600
DISK = 8 << 8
JUNK = 1 << 32
RETAIN_CAPS, REMOVE_CAPS = "os/linux/capabilities-retain-set", "os/linux/capabilities-remove-set"
RETAIN_CALLS, REMOVE_CALLS = "os/linux/seccomp-retain-set", "os/linux/seccomp-remove-set"

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="makes 32-bit calls of x86-64")


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def fields(self) -> dict[str, str]:
        """Of /proc/self/status."""
        return {name: value.strip() for name, _, value in (line.partition(":") for line in self.lines)}


class Room:
    """A root with the payload in it, and a cache of filters."""

    def __init__(self, path: Path, program: Path) -> None:
        self.root, self.cache = path / "root", str(path / "cache")
        for name in ("bin", "proc", "dev", "tmp"):
            (self.root / name).mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        self.copy = program
        self.install("restrict", 0o755)

    def install(self, name: str, mode: int) -> Path:
        place = self.root / "bin" / name
        place.write_bytes(self.copy.read_bytes())
        place.chmod(mode)
        return place

    def spec(self, *words: str, isolators: tuple[Isolator, ...] = (), insecure: tuple[str, ...] = (), user: str = "0",
             **fields: Any) -> LaunchSpec:  # fmt: skip
        spec = LaunchSpec("app", ("/bin/restrict", *words), (), user, user, (), "/", False, ())
        spec, warnings = restrict(spec, isolators, insecure=insecure, cache=self.cache)
        assert not warnings
        return spec._replace(**fields)

    def run(self, spec: LaunchSpec, before: Callable[[], object] = lambda: None) -> Result:
        """Launch in a child, its streams being pipes."""
        streams = [os.pipe() for _ in range(2)]
        child = os.fork()
        if child == 0:
            for fd, (_, inner) in enumerate(streams, 1):
                os.dup2(inner, fd)
            self._become(spec, before)
        for _, inner in streams:
            os.close(inner)
        out, err = (_drain(outer) for outer, _ in streams)
        return Result(wait(child), out, err)

    def ask(self, *words: str, **options: Any) -> Result:
        return self.run(self.spec(*words, **options))

    def _become(self, spec: LaunchSpec, before: Callable[[], object]) -> None:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount("proc", str(self.root / "proc"), "proc", 0)
            # Not chroot(2): the kernel allows no user namespaces below one, and the filter would get the credit.
            syscalls.mount(str(self.root), str(self.root), None, syscalls.MS_BIND | syscalls.MS_REC)
            os.chdir(self.root)
            syscalls.pivot_root(".", ".")
            syscalls.umount2(".", syscalls.MNT_DETACH)
            before()
            launch(spec)
        except RkpyError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(error.exit_status)
        except BaseException as error:
            os.write(2, f"bug: {error!r}\n".encode())
        finally:
            os._exit(98)


def _drain(fd: int) -> str:
    with open(fd, encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("payload") / "restrict"
    try:
        subprocess.run(["cc", "-static", "-O1", "-o", path, PAYLOAD / "restrict.c"], check=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    return path


@pytest.fixture
def room(tmp_path: Path, program: Path) -> Room:
    tmp_path.chmod(0o755)
    return Room(tmp_path, program)


def call(name: str, *arguments: object, machine: int = X86_64) -> tuple[str, ...]:
    """The words that make the payload call `name`."""
    number = next(number for where, number in Library().numbers(name) if where == machine)
    return ("call32" if machine == X86 else "call", str(number), *map(str, arguments))


def joined(*verbs: tuple[str, ...]) -> list[str]:
    return [word for verb in verbs for word in (*verb, "+")][:-1]


def caps(*names: str) -> dict[str, list[str]]:
    return {"set": [f"CAP_{name}" for name in names]}


# Capabilities


def test_root_has_the_default_ones(room: Room) -> None:
    found = room.ask("status").fields
    assert {name: found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": NOTHING, "CapPrm": DEFAULT, "CapEff": DEFAULT, "CapBnd": DEFAULT, "CapAmb": NOTHING,
    }  # fmt: skip
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("0", "2")


def test_anybody_else_has_none(room: Room) -> None:
    found = room.ask("status", user=USER).fields
    assert found["CapBnd"] == DEFAULT
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {NOTHING}


@pytest.mark.parametrize("user", ["0", USER])
@pytest.mark.parametrize("nnp", [True, False])
def test_retained_and_removed(room: Room, user: str, nnp: bool) -> None:
    options: dict[str, Any] = {"user": user, "no_new_privileges": nnp}
    retained = room.ask("status", isolators=(Isolator(RETAIN_CAPS, caps("KILL", "SYS_ADMIN")),), **options).fields
    removed = room.ask("status", isolators=(Isolator(REMOVE_CAPS, caps("NET_RAW", "MKNOD")),), **options).fields
    assert (retained["CapBnd"], removed["CapBnd"]) == ("0000000000200020", "00000000a00405fb")
    for found in (retained, removed):
        assert found["CapEff"] == found["CapPrm"] == (found["CapBnd"] if user == "0" else NOTHING)
        assert (found["CapInh"], found["NoNewPrivs"]) == (NOTHING, str(int(nnp)))


def test_sets_of_one_kind_add_up(room: Room) -> None:
    two = (Isolator(RETAIN_CAPS, caps("CHOWN")), Isolator(RETAIN_CAPS, caps("FOWNER")))
    assert room.ask("status", isolators=two).fields["CapBnd"] == "0000000000000009"


def test_all_of_them_when_that_is_asked_for(room: Room) -> None:
    have = f"{capabilities.mask(capabilities.available()):016x}"
    assert room.ask("status", insecure=("capabilities",)).fields["CapEff"] == have


@pytest.mark.parametrize("nnp", [True, False])
def test_ambient_ones_are_kept_by_anybody(room: Room, nnp: bool) -> None:
    ambient = (Isolator("os/linux/ambient-capabilities-set", caps("NET_BIND_SERVICE")),)
    found = room.ask("status", user=USER, isolators=ambient, no_new_privileges=nnp).fields
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0000000000000400"}
    assert found["CapBnd"] == DEFAULT


def test_what_the_launcher_held_as_inheritable_or_ambient_is_gone(room: Room) -> None:
    def hold() -> None:
        everything = capabilities.mask(capabilities.available())
        syscalls.capset(everything, everything, everything)
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, capabilities.SYS_ADMIN)

    for user in ("0", USER):
        found = room.run(room.spec("status", user=user), before=hold).fields
        assert (found["CapInh"], found["CapAmb"]) == (NOTHING, NOTHING)
        assert found["CapEff"] == (DEFAULT if user == "0" else NOTHING)


def test_file_capabilities_and_setuid_work_under_the_filter(room: Room) -> None:
    granted = room.install("granted", 0o755)
    # struct vfs_ns_cap_data, version 2: effective, CAP_NET_BIND_SERVICE permitted.
    os.setxattr(granted, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    room.install("setuid", 0o4755)
    found = room.ask("run", "/bin/granted", "status", user=USER).fields
    assert (found["CapEff"], found["Seccomp"]) == ("0000000000000400", "2")
    assert room.ask("run", "/bin/setuid", "status", user=USER).fields["CapEff"] == DEFAULT


def test_with_no_new_privileges_they_give_nothing(room: Room) -> None:
    room.install("setuid", 0o4755)
    isolator = (Isolator("os/linux/no-new-privileges", True),)
    found = room.ask("run", "/bin/setuid", "status", user=USER, isolators=isolator).fields
    assert (found["CapEff"], found["NoNewPrivs"], found["Seccomp"]) == (NOTHING, "1", "2")


def test_a_user_cannot_start_where_only_root_may_be(room: Room) -> None:
    (room.root / "closed").mkdir(mode=0o700)
    found = room.ask("status", user=USER, working_directory="/closed")
    assert (found.status, found.out) == (254, "")
    assert 'cannot enter working directory "/closed" as user 1234: permission denied' in found.err


def test_root_without_the_capability_is_kept_out_as_well(room: Room) -> None:
    (room.root / "closed").mkdir(mode=0o700)
    os.chown(room.root / "closed", 1234, 1234)
    isolator = (Isolator(REMOVE_CAPS, caps("DAC_OVERRIDE")),)
    assert "permission denied" in room.ask("status", isolators=isolator, working_directory="/closed").err
    assert room.ask("status", working_directory="/closed").status == 0


def test_capabilities_that_are_not_there_are_refused(room: Room) -> None:
    lacking = sorted(set(range(41)) - capabilities.available())
    if not lacking:
        pytest.skip("has every capability")
    with pytest.raises(LaunchError, match="rkpy itself has not got it"):
        room.spec("status", isolators=(Isolator(RETAIN_CAPS, {"set": [capabilities.name(lacking[0])]}),))


# System calls

HOSTILE = {
    "typing into the terminal": (("ioctl", 0, termios.TIOCSTI, 0), "EPERM"),
    "selecting and pasting on the console": (("ioctl", 0, 0x541C, 0), "EPERM"),
    "a user namespace": (("clone", CLONE_NEWUSER | SIGCHLD, 0), "EPERM"),
    "a user namespace by unshare": (("unshare", CLONE_NEWUSER), "EPERM"),
    "clone3": (("clone3", 0, 0), "ENOSYS"),
    "a disk": (("mknod", "@/tmp/disk", BLOCK, DISK), "EPERM"),
    "memory": (("mknod", "@/tmp/mem", CHARACTER, 0x101), "EPERM"),
    "a disk by mknodat": (("mknodat", -100 & 0xFFFFFFFF, "@/tmp/disk", BLOCK, DISK), "EPERM"),
    "raw packets": (("socket", 2, 3, 1), "EPERM"),
    "raw packets of IPv6": (("socket", 10, 3, 58), "EPERM"),
    "all packets": (("socket", 17, 3, 0), "EPERM"),
    "the host of a virtual machine": (("socket", 40, 1, 0), "EAFNOSUPPORT"),
    "the audit": (("socket", 16, 3, 9), "EINVAL"),
    "another personality": (("personality", 0x0040000), "ENOSYS"),
    "keys": (("keyctl", 0, 0), "EPERM"),
    "io_uring": (("io_uring_setup", 1, 0), "ENOSYS"),
}


@pytest.mark.parametrize("machine", [X86_64, X86], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_calls_fail(room: Room, what: str, machine: int) -> None:
    (name, *arguments), error = HOSTILE[what]
    found = room.ask(*call(str(name), *arguments, machine=machine))
    assert (found.status, found.lines) == (0, [error])


def test_without_a_filter_the_same_calls_get_through(room: Room) -> None:
    """So that it is the filter they fail by."""
    verbs = [
        call("mknod", "@/tmp/disk", BLOCK, DISK),
        call("mknod", "@/tmp/other", BLOCK, DISK, machine=X86),
        call("socket", 2, 3, 1),
        call("socket", 2, 3, 1, machine=X86),
        call("clone", CLONE_NEWUSER | SIGCHLD, 0),
        call("personality", 0x0040000),
    ]
    found = room.ask(*joined(*verbs), insecure=("seccomp",))
    assert found.lines == ["ok"] * len(verbs)
    assert room.ask(*call("ioctl", 0, termios.TIOCSTI, 0), insecure=("seccomp",)).lines == ["ENOTTY"]


def test_bits_the_kernel_ignores_are_no_way_around(room: Room) -> None:
    verbs = [
        call("ioctl", 0, JUNK | termios.TIOCSTI, 0),
        call("mknod", "@/tmp/disk", JUNK | BLOCK, DISK),
        call("mknod", "@/tmp/disk", 0xABC0000 | BLOCK, DISK),
        call("clone", JUNK | CLONE_NEWUSER | SIGCHLD, 0),
        call("socket", JUNK | 2, JUNK | 3, 1),
        call("socket", 2, 0o2000000 | 3, 1),
        call("socket", JUNK | 40, 1, 0),
    ]
    assert room.ask(*joined(*verbs)).lines == ["EPERM"] * 6 + ["EAFNOSUPPORT"]


def test_ordinary_calls_work(room: Room) -> None:
    verbs = [
        call("clone", SIGCHLD, 0),
        call("clone", SIGCHLD, 0, machine=X86),
        call("socket", 2, 1, 0),
        call("socket", 1, 3, 0),
        call("socket", 16, 0o2000003, 0),
        call("mknod", "@/tmp/fifo", 0o010600, 0),
        call("mknod", "@/tmp/gone", 0o020600, 0),
        call("personality", 0xFFFFFFFF),
        call("personality", 8),
        call("chroot", "@/"),
    ]
    assert room.ask(*joined(*verbs)).lines == ["ok"] * len(verbs)


def test_a_capability_that_was_asked_for_is_of_use(room: Room) -> None:
    isolator = (Isolator(RETAIN_CAPS, caps("MKNOD", "NET_RAW")),)
    verbs = joined(call("mknod", "@/tmp/disk", BLOCK, DISK), call("socket", 2, 3, 1), call("socket", 16, 3, 9))
    assert room.ask(*verbs, isolators=isolator).lines == ["ok", "ok", "EINVAL"]


@pytest.mark.parametrize("machine", [X86_64, X86], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("user", ["0", USER])
@pytest.mark.parametrize("nnp", [True, False])
def test_a_removed_call_kills_or_fails(room: Room, user: str, nnp: bool, machine: int) -> None:
    words = joined(call("getuid", machine=machine), call("getppid", machine=machine))
    for errno, expected in ({}, (-31, ["ok"])), ({"errno": "EACCES"}, (0, ["ok", "EACCES"])):
        isolator = (Isolator(REMOVE_CALLS, {"set": ["getppid"], **errno}),)
        found = room.ask(*words, isolators=isolator, user=user, no_new_privileges=nnp)
        assert (found.status, found.lines) == expected


NEEDED = (
    "execve", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlinkat", "readlink",
    "getrandom", "mprotect", "fstat", "newfstatat", "write", "getpid", "exit_group",
)  # fmt: skip
"""What a static program takes to start, to print and to end."""


@pytest.mark.parametrize("user", ["0", USER])
@pytest.mark.parametrize("nnp", [True, False])
def test_a_retain_set_need_not_serve_the_launcher(room: Room, user: str, nnp: bool) -> None:
    isolator = (Isolator(RETAIN_CALLS, {"set": list(NEEDED)}),)
    found = room.ask(*call("getppid"), isolators=isolator, user=user, no_new_privileges=nnp)
    assert (found.status, found.out) == (-31, "")
    found = room.ask(*call("getpid"), isolators=isolator, user=user, no_new_privileges=nnp)
    assert (found.status, found.lines, found.err) == (0, ["ok"], "")


def test_a_search_of_path_needs_no_call_either(room: Room) -> None:
    # Without a call that prints; newfstatat and fstat are what printing takes.
    calls = [name for name in NEEDED if name not in ("newfstatat", "fstat", "write")]
    spec = room.spec(isolators=(Isolator(RETAIN_CALLS, {"set": calls}),))
    found = room.run(spec._replace(argv=("restrict",), environment=(("PATH", "/nowhere:/tmp:/bin"),)))
    assert (found.status, found.err) == (0, "")


def test_opting_out_is_no_filter(room: Room) -> None:
    for options in (
        {"isolators": (Isolator(RETAIN_CALLS, {"set": ["@appc.io/all"]}),)},
        {"insecure": ("seccomp",)},
    ):
        assert room.ask("status", **options).fields["Seccomp"] == "0"
    found = room.ask("status", isolators=(Isolator(REMOVE_CALLS, {"set": ["@appc.io/empty"]}),))
    assert found.fields["Seccomp"] == "2"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (RETAIN_CALLS, "@appc.io/empty"),
        (RETAIN_CALLS, "read"),
        (REMOVE_CALLS, "@appc.io/all"),
        (REMOVE_CALLS, "execve"),
    ],
)
def test_a_filter_that_lets_nothing_start_is_said_at_once(room: Room, name: str, word: str) -> None:
    with pytest.raises(LaunchError, match="denies execve"):
        room.spec("status", isolators=(Isolator(name, {"set": [word]}),))


def test_an_empty_filter_denies_everything(room: Room) -> None:
    for layers in ((Layer(KILL, ()),), (Layer(ALLOW, ()), Layer(KILL, ()))):
        program = seccomp.compiled(seccomp.Filter((), layers), room.cache)
        found = room.run(room.spec("status")._replace(seccomp=program))
        assert (found.status, found.out) == (-31, "")


@pytest.mark.parametrize("words", [["@docker/typo"], ["@rkt/"], ["frobnicate"], ["read", "@appc.io/some"]])
@pytest.mark.parametrize("name", [RETAIN_CALLS, REMOVE_CALLS])
def test_words_that_mean_nothing_are_refused(room: Room, name: str, words: list[str]) -> None:
    with pytest.raises(UsageError, match="there is no"):
        room.spec("status", isolators=(Isolator(name, {"set": [*words, "execve"] if name == RETAIN_CALLS else words}),))


def test_bytes_that_are_no_filter_start_nothing(room: Room) -> None:
    found = room.run(room.spec("status")._replace(seccomp=b"\xff" * 8))
    assert (found.status, found.out) == (254, "")
    assert found.err == "cannot load the system call filter: invalid argument\n"


# Limits and streams


def test_limits(room: Room) -> None:
    limits = (
        Isolator("os/unix/rlimit", {"name": "NOFILE", "soft": 1, "hard": 1}),
        Isolator("os/unix/rlimit", {"name": "CORE", "soft": 0, "hard": 0}),
        Isolator("os/unix/rlimit", {"name": "NOFILE", "soft": 100, "hard": 200}),
        Isolator("os/linux/oom-score-adj", 500),
    )
    found = room.ask(*joined(("limits",), ("read", "/proc/self/oom_score_adj")), isolators=limits, user=USER)
    rows = [line.split() for line in found.lines]
    assert [row[3:5] for row in rows if row[:3] == ["Max", "open", "files"]] == [["100", "200"]]
    assert [row[4:6] for row in rows if row[:4] == ["Max", "core", "file", "size"]] == [["0", "0"]]
    assert found.lines[-1] == "500"


def test_a_limit_that_cannot_be_raised_is_named(room: Room) -> None:
    # More than fs.nr_open has nobody.
    limit = (Isolator("os/unix/rlimit", {"name": "NOFILE", "soft": 2**40, "hard": 2**40}),)
    found = room.ask("status", isolators=limit)
    assert (found.status, found.out) == (254, "")
    assert found.err.startswith("cannot set the limit nofile to 1099511627776:1099511627776: operation not permitted")


def test_a_score_that_cannot_be_lowered_is_named(room: Room) -> None:
    if capabilities.number("CAP_SYS_RESOURCE") in capabilities.available():
        pytest.skip("may lower it")
    found = room.ask("status", isolators=(Isolator("os/linux/oom-score-adj", -1000),))
    assert found.err.startswith("cannot set oom-score-adj to -1000: permission denied")
    assert (found.status, found.out) == (254, "")


def test_a_proc_of_the_images_own_is_not_believed(room: Room) -> None:
    fake = room.root / "proc" / "self"
    fake.mkdir()
    (fake / "oom_score_adj").write_text("")
    spec = room.spec("status", isolators=(Isolator("os/linux/oom-score-adj", 500),))
    found = room.run(spec, before=lambda: syscalls.umount2("/proc", syscalls.MNT_DETACH))
    assert "in the app's root is not the kernel's" in found.err
    assert (fake / "oom_score_adj").read_text() == ""


@pytest.mark.parametrize("owns", [True, False])
def test_streams_can_be_opened_again(room: Room, owns: bool) -> None:
    found = room.ask(*joined(("owner", "1"), ("reopen", "1"), ("reopen", "2")), user=USER, owns_streams=owns)
    assert found.lines == ([USER, "ok", "ok"] if owns else ["0", "EACCES", "EACCES"])


def test_terminals_are_given_and_nothing_of_the_hosts(room: Room, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    file = tmp_path / "log"
    file.touch()

    def redirect() -> None:
        os.dup2(theirs, 0)
        os.dup2(log, 2)

    log = os.open(file, os.O_WRONLY)
    spec = room.spec(*joined(("owner", "0"), ("owner", "1"), ("owner", "2")), user=USER, owns_streams=True)
    try:
        assert room.run(spec, before=redirect).lines == [USER, USER, "0"]
        # Standard input is /dev/null otherwise.
        assert room.run(spec).lines == ["0", USER, USER]
    finally:
        for fd in (ours, theirs, log):
            os.close(fd)
    assert os.stat("/dev/null").st_uid == 0


def test_nobody_looks_into_a_launcher_whatever_the_system_says(room: Room) -> None:
    """With fs.suid_dumpable (proc(5)) at 1 the kernel makes a process that changes its user dumpable: one of the same
    user could take it over before its filter is loaded. The setting is everybody's, so it is acted out here."""
    setresuid, get_dumpable = os.setresuid, 3

    def change(*users: int) -> None:
        setresuid(*users)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)

    def execute(*_: object, **__: object) -> None:
        os.write(1, b"%d" % syscalls.prctl(get_dumpable, 0))
        os._exit(0)

    def act_out() -> None:
        os.setresuid = change
        program_module.execute = execute  # type: ignore[assignment]

    found = room.run(room.spec(user=USER, no_new_privileges=True), before=act_out)
    assert (found.status, found.out) == (0, "0"), found
