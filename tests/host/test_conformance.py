"""What every flavour promises, asked from inside a pod that the real command has run (tests.host.flavours)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from stage1 import cgroup, kernelfs
from stage2 import capabilities as names_of_capabilities
from stage2.environment import DEFAULT_PATH
from tests.host import flavours
from tests.host.flavours import (
    ALL_IDS,
    CAPABILITIES,
    EVERYBODY,
    FLY,
    HERE,
    IMPLICIT,
    LIMITS,
    MACHINE,
    NAMESPACES,
    QUICK,
    ROOT,
    SECCOMP,
    SEVERAL,
    Case,
    Ground,
    Variant,
)

# What is wrong on the command line, and what becomes of an app once it is one, is the same whoever runs rkpy: those
# tests leave ordinary users out (`by_root`, `table_by_root`).
every, by_root = partial(flavours.every, of=EVERYBODY), flavours.every
table, table_by_root = partial(flavours.table, of=EVERYBODY), flavours.table


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Callable[[str], Ground]]:
    with flavours.grounds(tmp_path_factory.mktemp("conformance"), inspector) as find:
        yield find


@pytest.fixture(scope="module")
def mounted(grounds: Callable[[str], Ground]) -> Iterator[Path]:
    """A directory below which something is mounted."""
    place = grounds("").directory / "mounted"
    # Before any pod is there: where the host's mounts are private, one that runs does not hear of it.
    (place / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", place / "below"], check=True)
    try:
        yield place
    finally:
        grounds("").stop_all()
        subprocess.run(["umount", place / "below"], check=True)


@pytest.fixture
def ground(grounds: Callable[[str], Ground], mounted: Path, variant: Variant) -> Ground:
    return grounds(variant.user)


# --- who it is


def identity(name: str, user: str, group: str, uid: int, gid: int, *needs: str) -> Case:
    lines = (f"uid {uid} {uid} {uid}", f"gid {gid} {gid} {gid}", "groups")
    return Case(name, "id", lines, image={"user": user, "group": group}, needs=needs)


def nobody(name: str, flag: str, error: str) -> Case:
    return Case(name, "id", app=(flag,), status=254, error=error, needs=(ROOT,))


@table(
    identity("root", "0", "0", 0, 0),
    identity("name", "web", "web", 33, 34),
    identity("name-and-group", "web", "staff", 33, 50),
    identity("number-with-account", "33", "34", 33, 34),
    identity("number-without", "77", "88", 77, 88),
    identity("a-name-that-is-a-number", "1000", "1000", 4321, 777),
    identity("owner-of-a-path", "/owned", "/owned", 123, 456),
    identity("large", "4000000000", "4294967294", 4000000000, 4294967294, ALL_IDS),
    Case(
        "flags-win",
        "id",
        ("uid 33 33 33", "gid 50 50 50", "groups 5 2000"),
        app=("--user=web", "--group=staff", "--supplementary-gids=2000,5"),
        image={"user": "77", "supplementaryGIDs": [9]},
    ),
    Case(
        "groups-of-the-image", "id", ("uid 33 33 33", "gid 34 34 34", "groups 9 50"),
        image={"user": "web", "group": "web", "supplementaryGIDs": [50, 9]},
    ),
    nobody("unknown-user", "--user=nobody-here", 'no user "nobody-here" in the image'),
    nobody("unknown-group", "--group=nobody", 'no group "nobody" in the image'),
    nobody("negative", "--user=-1", 'no user "-1"'),
    nobody("missing-path", "--user=/none", 'cannot take the owner of "/none"'),
)  # fmt: skip
def test_identity(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@every(NAMESPACES)
def test_a_user_beyond_the_pods_range_is_refused_or_real(ground: Ground, variant: Variant) -> None:
    result = ground.run(variant, "id", "--user=4000000000", "--group=4000000000")
    if ALL_IDS in variant.claims:
        assert result.lines[0] == "uid 4000000000 4000000000 4000000000", result
    else:
        assert (result.status, result.out) == (254, ""), result
        assert "4000000000" in result.err, result


# --- what it finds


@every()
def test_the_environment_is_exact(ground: Ground, variant: Variant) -> None:
    variables = [{"name": name, "value": value} for name, value in (("A", "1"), ("EMPTY", ""), ("U", "\u00fc"))]
    image = ground.image(user="web", group="web", environment=variables)
    words = [*ground.words(variant, "--set-env=B=2"), *ground.app("env", "--environment=C=3", image=image)]
    done = ground.rkpy(*words, SECRET="host", LISTEN_FDS="1", NOTIFY_SOCKET="@nobody")
    assert sorted(done.out.splitlines()) == sorted(
        [
            f"PATH={DEFAULT_PATH}", "HOME=/srv/www", "USER=web", "LOGNAME=web", "SHELL=/bin/ash", "AC_APP_NAME=app",
            "container=rkpy", "A=1", "EMPTY=", "U=\u00fc", "B=2", "C=3",
        ]
    ), done  # fmt: skip


@table_by_root(
    Case("default", "cwd", ("/",)),
    Case("of-the-image", "cwd", ("/srv/www",), image={"workingDirectory": "/srv/www"}),
    Case("flag", "cwd", ("/etc",), app=("--working-dir=/etc",), image={"workingDirectory": "/srv/www"}),
    Case(
        "missing", "cwd", app=("--working-dir=/none",), status=254,
        error='cannot enter working directory "/none" as user 0: no such file or directory',
    ),
    Case(
        "a-file", "cwd", app=("--working-dir=/etc/passwd",), status=254,
        error='cannot enter working directory "/etc/passwd" as user 0: not a directory',
    ),
)  # fmt: skip
def test_working_directory(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@every()
def test_nothing_of_the_callers_process_comes_along(ground: Ground, variant: Variant) -> None:
    """Ignored and blocked signals, umask, and what the caller left open. There are standard streams; fly adds the
    pod's lock, which nobody can write to."""
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    command = ground.rkpy.command(*ground.words(variant), *ground.app("signals + umask + fds + fdlinks"))
    block = "import os,signal,sys; signal.pthread_sigmask(signal.SIG_BLOCK, {10, 17, 64}); os.umask(0o077)"
    ignore = "[signal.signal(number, signal.SIG_IGN) for number in (1, 12, 17)]; os.execvp(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; {ignore}", *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=flavours.DEADLINE, env=ground.rkpy.environment(), pass_fds=[leak],
    )  # fmt: skip
    os.close(leak)
    attributes, lines = done.stdout.splitlines()[:3], done.stdout.splitlines()[3:]
    assert attributes == ["SigBlk:\t" + "0" * 16, "SigIgn:\t" + "0" * 16, "0022"], done
    found, links = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert [line.split()[0] for line in found[:3]] == ["0", "1", "2"], done
    assert found[0].startswith("0 character "), done
    extra = [line.partition(" ")[2] for line in found[3:]]
    assert extra == (["file read"] if FLY in variant.claims else []), done
    assert not [line for line in links[:3] if str(ground.directory) in line], done


@every(MACHINE)
def test_the_pod_has_a_kernel_of_its_own(ground: Ground, variant: Variant) -> None:
    """What namespaces cannot have two of."""
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/cmdline"):
        assert ground.ask(variant, f"read {path}") != Path(path).read_text().splitlines()
    host = {os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "uts")}
    assert not host & {*ground.ask(variant, "ns")}


@every(MACHINE)
def test_what_only_this_kernel_has_is_refused(ground: Ground, variant: Variant, host: Path) -> None:
    """In one line, before anything starts."""
    os.mkfifo(host / "other")
    before = ground.rkpy.pods()
    for flags, text in (
        (["--ipc=parent"], "--ipc=parent: a virtual machine shares no memory with the host"),
        (["--net=host"], "--net=host: a virtual machine has a kernel and a network of its own"),
        (volume(host / "pipe"), "pipe is neither a directory nor a file"),
        (volume(Path("/dev/zero")), "/dev/zero is neither a directory nor a file"),
    ):
        words = [word for word in variant.words if not word.startswith("--net")]
        net = [] if flags[0].startswith("--net") else ["--net=none"]
        line = ground.rkpy.refused("--insecure-options=image", "run", *words, *net, *flags, *ground.app("id"))
        assert text in line
    assert ground.rkpy.pods() == before


@every(NAMESPACES, HERE)
def test_the_pod_has_namespaces_of_its_own(ground: Ground, variant: Variant) -> None:
    def numbers(lines: list[str]) -> dict[str, str]:
        return {line.partition(":")[0]: line for line in lines}

    host = numbers([os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns") if "for" not in name])
    pod = numbers(ground.ask(variant, "ns"))
    same = {name for name in pod if pod[name] == host[name]}
    own_users = "users" in variant.name or ROOT not in variant.claims
    assert same == ({"time"} if own_users else {"time", "user"}), pod
    with_ipc = numbers(ground.ask(variant, "ns", pod=("--ipc=parent",))) if "users" not in variant.name else host
    assert with_ipc["ipc"] == host["ipc"]


@every(NAMESPACES)
def test_processes_of_the_host_are_invisible(ground: Ground, variant: Variant) -> None:
    """The supervisor is PID 1, the app is not, and nobody else is there."""
    lines = ground.ask(variant, "pid + ps")
    own = {key: int(value) for key, value in (line.split() for line in lines[:4])}
    assert own["pid"] != 1 and own["parent"] == 1, lines
    assert own["session"] == own["pid"] == own["group"], lines
    assert [line.split()[:2] for line in lines[4:]] == [["1", "0"], [str(own["pid"]), "1"]], lines


@by_root(NAMESPACES)
def test_hostname(ground: Ground, variant: Variant) -> None:
    host = os.uname().nodename
    assert ground.ask(variant, "hostname")[0] not in ("", host)
    assert ground.ask(variant, "hostname", pod=("--hostname=box",)) == ["box"]
    assert os.uname().nodename == host


@by_root(NAMESPACES, QUICK)
def test_the_pods_name_is_one_for_the_host(ground: Ground, variant: Variant) -> None:
    assert ground.ask(variant, "hostname", pod=("--pod-name=first",)) == ["first"]


@every(NAMESPACES)
def test_loopback_is_up_and_nothing_else_is_there(ground: Ground, variant: Variant) -> None:
    lines = ground.ask(variant, "listen 127.0.0.1:8080 + connect 127.0.0.1:8080 hello + accept + list /sys/class/net")
    assert lines == ["127.0.0.1:8080: ok 8080", "127.0.0.1:8080: ok", "hello", "lo"]


# --- limits


@table_by_root(
    Case("soft-and-hard", "limits nofile", ("nofile 100 200",), app=("--ulimit=nofile=100:200",), needs=(LIMITS,)),
    Case("one-for-both", "limits nofile", ("nofile 300 300",), app=("--ulimit=nofile=300",), needs=(LIMITS,)),
    Case(
        "several", "limits core + limits nproc", ("core 0 0", "nproc 50 60"), needs=(LIMITS,),
        app=("--ulimit=core=0", "--ulimit=nproc=50:60"),
    ),
    Case("not-raised-by-the-app", "raise-limit", ("raise-limit: EPERM",), app=("--ulimit=nofile=9",), needs=(LIMITS,)),
    Case("soft-over-hard", "id", app=("--ulimit=nofile=200:100",), status=254, error="more than hard", needs=(LIMITS,)),
    Case("no-such-limit", "id", app=("--ulimit=files=1",), status=254, error="files", needs=(LIMITS,)),
    Case("no-number", "id", app=("--ulimit=nofile=many",), status=254, error="nofile=many", needs=(LIMITS,)),
    Case("out-of-memory-score", "oom", ("500",), app=("--oom-score-adj=500",), needs=(LIMITS,)),
    Case(
        "out-of-memory-score-of-the-image", "oom", ("321",), needs=(LIMITS,),
        image={"isolators": [{"name": "os/linux/oom-score-adj", "value": 321}]},
    ),
)  # fmt: skip
def test_limits(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@by_root(HERE)
def test_a_limit_is_kept_or_refused_when_it_was_typed_and_else_told_of(
    ground: Ground, variant: Variant, tmp_path: Path
) -> None:
    file = tmp_path / "uuid"
    isolator = {"name": "resource/memory", "value": {"limit": "64M"}}
    of_image = ground.run(
        variant, "id", image=ground.image(isolators=[isolator]), pod=(f"--uuid-file-save={file}",)
    )  # fmt: skip
    assert of_image.status == 0, of_image
    verdict = ground.status(file.read_text().strip())["limit-app-memory"]
    typed = ground.run(variant, "id", "--memory=64M")
    if why := cgroup.enforceable(str(ground.directory))["memory"]:
        assert (typed.status, typed.out) == (254, ""), typed
        assert f"--memory cannot be enforced here: {why}" in typed.err
        assert f'memory limit of app "app" is not enforceable here: {why}' in of_image.err
        assert verdict == f"not enforceable: {why}"
    else:
        assert (typed.status, "enforceable" in typed.err + of_image.err) == (0, False), (typed, of_image)
        assert verdict.startswith(("enforced: memory.max = ", "adjusted: memory.max = "))


# --- capabilities and filters

DEFAULT = 0xA80425FB
"""CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE
SETFCAP: rkt's set, and that of Docker."""
BIND = 1 << 10
NET_ADMIN = 1 << 12
ALL_FOURTEEN = (
    "CAP_AUDIT_WRITE,CAP_CHOWN,CAP_DAC_OVERRIDE,CAP_FSETID,CAP_FOWNER,CAP_KILL,CAP_MKNOD,CAP_NET_RAW,"
    "CAP_NET_BIND_SERVICE,CAP_SETUID,CAP_SETGID,CAP_SETPCAP,CAP_SETFCAP,CAP_SYS_CHROOT"
)


def sets(inheritable: int, permitted: int, effective: int, bounding: int, ambient: int) -> tuple[str, ...]:
    values = {"Inh": inheritable, "Prm": permitted, "Eff": effective, "Bnd": bounding, "Amb": ambient}
    return tuple(f"Cap{name}:\t{value:016x}" for name, value in values.items())


def root_with(mask: int) -> tuple[str, ...]:
    return sets(0, mask, mask, mask, 0)


def user_with(bounding: int, ambient: int = 0) -> tuple[str, ...]:
    return sets(ambient, ambient, ambient, bounding, ambient)


def capabilities(name: str, lines: tuple[str, ...], *flags: str, isolator: object = None) -> Case:
    image = {} if isolator is None else {"isolators": [isolator]}
    return Case(name, "caps", lines, app=flags, image=image, needs=(CAPABILITIES,))


def no_capability(name: str, flag: str) -> Case:
    return Case(name, "caps", app=(flag,), needs=(CAPABILITIES, ROOT), status=254, error="CAP_FLY")


RETAIN = {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_KILL", "CAP_NET_ADMIN"]}}


@table(
    capabilities("default", root_with(DEFAULT)),
    capabilities("default-of-a-user", user_with(DEFAULT), "--user=web"),
    capabilities("retain", root_with(NET_ADMIN), "--caps-retain=CAP_NET_ADMIN"),
    capabilities("retain-and-a-user", user_with(NET_ADMIN), "--caps-retain=CAP_NET_ADMIN", "--user=web"),
    capabilities("remove", root_with(DEFAULT & ~BIND), "--caps-remove=CAP_NET_BIND_SERVICE"),
    capabilities("remove-all", root_with(0), f"--caps-remove={ALL_FOURTEEN}"),
    capabilities("isolator", root_with(NET_ADMIN | 1 << 5), isolator=RETAIN),
    capabilities("a-flag-replaces-it", root_with(DEFAULT & ~1), "--caps-remove=CAP_CHOWN", isolator=RETAIN),
    capabilities("ambient", user_with(DEFAULT, BIND), "--user=web", "--caps-ambient=CAP_NET_BIND_SERVICE"),
    capabilities("ambient-only", user_with(BIND, BIND), "--user=web", "--caps-ambient=CAP_NET_BIND_SERVICE",
                 "--caps-retain=CAP_NET_BIND_SERVICE"),
    no_capability("unknown", "--caps-retain=CAP_FLY"),
    no_capability("unknown-ambient", "--caps-ambient=CAP_FLY"),
)  # fmt: skip
def test_capabilities(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@every(MACHINE)
def test_capabilities_that_rkpy_itself_may_lack(ground: Ground, variant: Variant) -> None:
    """The pod's kernel has them all."""
    names = ",".join(f"CAP_{name}" for name in names_of_capabilities.NAMES)
    assert ground.ask(variant, "caps", f"--caps-retain={names}") == [*root_with((1 << 41) - 1)]


@by_root(CAPABILITIES)
def test_what_is_bounded_cannot_be_had_back(ground: Ground, variant: Variant) -> None:
    ask = "try raise-caps + try setpriv-ambient 21 + become 0 0 + exec /bin/inspect caps"
    assert ground.ask(variant, ask) == [
        "raise-caps: EPERM", "setpriv-ambient: EPERM", "become: ok", *root_with(DEFAULT),
    ]  # fmt: skip


def filtered(name: str, ask: str, *lines: str, rule: str = "", status: int = 0, error: str = "") -> Case:
    app = (f"--seccomp={rule}",) if rule else ()
    return Case(name, ask, lines, app=app, needs=(SECCOMP,), status=status, error=error)


@table_by_root(
    filtered("default", "seccomp", "Seccomp:\t2"),
    filtered("all", "seccomp", "Seccomp:\t0", rule="mode=retain,@appc.io/all"),
    filtered("remove-with-errno", "call mkdir + call chmod", "mkdir: EACCES", "chmod: ok",
             rule="mode=remove,errno=EACCES,mkdir"),
    filtered("remove-kills", "call mkdir + call chmod", "mkdir: SIGSYS", "chmod: ok", rule="mode=remove,mkdir"),
    filtered("remove-keeps-the-defaults", "call keyctl", "keyctl: EXDEV", rule="mode=remove,errno=EXDEV,mkdir,keyctl"),
    filtered("retain-with-errno", "call chmod + call keyctl", "chmod: ok", "keyctl: EXDEV",
             rule="mode=retain,errno=EXDEV,@docker/default-whitelist"),
    filtered("retain-kills", "call chmod + call keyctl", "chmod: ok", "keyctl: SIGSYS",
             rule="mode=retain,@rkt/default-whitelist"),
    filtered("unknown-group", "id", rule="mode=retain,@docker/typo", status=254, error="@docker/typo"),
    filtered("unknown-group-to-remove", "id", rule="mode=remove,@nobody/knows", status=254, error="@nobody/knows"),
    filtered("unknown-errno", "id", rule="mode=remove,errno=ENOTHING,mkdir", status=254, error="ENOTHING"),
)  # fmt: skip
def test_seccomp(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@by_root(SECCOMP)
@pytest.mark.parametrize(
    "rule", ["retain,@appc.io/empty", "retain,errno=EPERM,@appc.io/empty", "remove,errno=EPERM,@appc.io/all"]
)
def test_a_filter_that_allows_nothing_lets_nothing_run(ground: Ground, variant: Variant, rule: str) -> None:
    """rkt took an empty set for no filter at all."""
    result = ground.run(variant, "say running", f"--seccomp=mode={rule}")
    assert result.status != 0 and result.out == "", result


@every(SECCOMP)
@pytest.mark.parametrize("user", ["0", "web"])
def test_a_filter_does_not_take_programs_their_privileges(ground: Ground, variant: Variant, user: str) -> None:
    """no_new_privs comes with a filter only where it is asked for: rkt broke every set-user-ID program."""
    image = _with_set_id_program(ground)
    number = {"0": 0, "web": 33}[user]
    seen = ground.ask(variant, "nnp + exec /bin/set-id id", f"--user={user}", image=image)
    assert seen[:2] == ["NoNewPrivs:\t0", f"uid {number} 77 77"]


@by_root(SECCOMP)
def test_no_new_privileges(ground: Ground, variant: Variant) -> None:
    image = _with_set_id_program(ground)
    seen = ground.ask(variant, "nnp + seccomp + exec /bin/set-id id", "--no-new-privileges", "--user=web", image=image)
    assert seen[:3] == ["NoNewPrivs:\t1", "Seccomp:\t2", "uid 33 33 33"]


@by_root()
def test_no_new_privileges_of_the_image(ground: Ground, variant: Variant) -> None:
    isolator = {"name": "os/linux/no-new-privileges", "value": True}
    assert ground.ask(variant, "nnp", image=ground.image(isolators=[isolator])) == ["NoNewPrivs:\t1"]


def _with_set_id_program(ground: Ground) -> str:
    def arrange(root: Path) -> None:
        program = root / "bin/set-id"
        program.write_bytes((root / "bin/inspect").read_bytes())
        os.chown(program, 77, 77)
        program.chmod(0o4755)

    return ground.image(arrange=arrange)


# --- devices, /proc and /sys

DEVICES = {
    "full": "1:7", "null": "1:3", "random": "1:8", "tty": "5:0", "urandom": "1:9", "zero": "1:5",
}  # fmt: skip
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


@every(NAMESPACES)
def test_devices(ground: Ground, variant: Variant) -> None:
    """Those that appC demands, and no other."""
    names = ground.ask(variant, "list /dev")
    assert {*DEVICES, *LINKS, "ptmx", "pts", "shm"} <= set(names)
    kinds = ground.ask(variant, " + ".join(f"try device /dev/{name}" for name in names))
    nodes = {name: kind for name, kind in zip(names, kinds, strict=True) if kind.startswith(("character", "block"))}
    terminals = {"ptmx": "character 5:2", "console": nodes.get("console", "")}
    expected = {name: f"character {number}" for name, number in DEVICES.items()} | terminals
    streams = {name: nodes.get(name) for name in LINKS}
    assert {name: kind for name, kind in nodes.items() if kind != streams.get(name)} == {
        name: kind for name, kind in expected.items() if kind
    }
    opened = ground.ask(variant, " + ".join(f"open /dev/{name} rw" for name in DEVICES if name != "tty"))
    assert opened == [f"/dev/{name}: ok" for name in DEVICES if name != "tty"]
    links = ground.ask(variant, " + ".join(f"readlink /dev/{name}" for name in LINKS))
    assert links == list(LINKS.values())


@every(NAMESPACES)
def test_devices_work_for_a_user(ground: Ground, variant: Variant) -> None:
    lines = ground.ask(
        variant, "open /dev/null w + open /dev/zero r + write /dev/shm/x 1 + stat /dev/shm", "--user=web"
    )
    assert lines == ["/dev/null: ok", "/dev/zero: ok", "directory 1777 0 0"]


@every(NAMESPACES)
def test_a_device_that_is_asked_for(ground: Ground, variant: Variant) -> None:
    """Given by name with its own name in the app; not there otherwise."""
    given = ground.run(variant, "device /dev/hw + open /dev/hw rw", "--device=/dev/zero:/dev/hw:rw")
    if HERE in variant.claims:
        assert given.lines == ["character 1:5", "/dev/hw: ok"], given
    else:
        assert (given.status, given.out) == (254, ""), given
        assert "a virtual machine has no device /dev/zero of the host" in given.err, given
    assert ground.run(variant, "open /dev/hw").lines == ["/dev/hw: ENOENT"]


MASKED_FILES = ("/proc/kcore", "/proc/config.gz", "/proc/kallsyms", "/proc/sched_debug", "/proc/timer_list")
MASKED_DIRECTORIES = ("/sys/firmware", "/sys/fs", "/sys/hypervisor", "/sys/module", "/sys/power")
READ_ONLY = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/domainname",
)


@every(NAMESPACES)
def test_masked_paths(ground: Ground, variant: Variant) -> None:
    # Nothing in it, as in /dev/null.
    seen = ground.run(variant, " + ".join(f"try read {path}" for path in MASKED_FILES)).lines
    seen += ground.run(variant, " + ".join(f"try list {path}" for path in MASKED_DIRECTORIES)).lines
    paths = (*MASKED_FILES, *MASKED_DIRECTORIES)
    missing = [path for path in paths if f"{path}: No such file or directory" in seen]
    if HERE in variant.claims:
        assert missing == [path for path in paths if not os.path.exists(path)]
    else:
        assert not {"/proc/kallsyms", "/proc/kcore", "/sys/fs", "/sys/module"} & {*missing}
    # There it is the app's own, and nothing else (test_cgroups).
    own = ["cgroup"] if MACHINE in variant.claims or kernelfs.has_only_cgroup2() else []
    assert [line for line in seen if not line.endswith(": No such file or directory")] == own


@every(NAMESPACES)
def test_read_only_paths(ground: Ground, variant: Variant) -> None:
    paths = [path for path in READ_ONLY if os.path.exists(path)]
    seen = ground.ask(variant, " + ".join(f"open {path} w" for path in paths))
    assert set(seen) <= {f"{path}: {error}" for path in paths for error in ("EROFS", "EACCES")}, seen
    changed = ground.ask(variant, "mkdir /sys/x + chmod /sys/kernel 700 + chmod /proc/sys/kernel 700")
    assert changed == ["/sys/x: EROFS", "/sys/kernel: EROFS", "/proc/sys/kernel: EROFS"]


@by_root(NAMESPACES)
def test_the_paths_are_what_the_option_uncovers(ground: Ground, variant: Variant) -> None:
    """The control: without it the tests above would pass on a kernel that has none of these."""
    assert "cgroup" in ground.ask(variant, "list /sys/fs + list /sys/module", insecure="image,paths")


# --- the root


@table(
    Case("written", "write /x 1 + read /x", ("1",)),
    Case(
        "read-only", "try write /x 1 + mkdir /y + chmod /etc 700",
        ("/x: Read-only file system", "/y: EROFS", "/etc: EROFS"), app=("--readonly-rootfs",),
    ),
    Case("nothing-set", "statvfs /proc", ("size=0 nosuid nodev noexec",), needs=(NAMESPACES,)),
)  # fmt: skip
def test_root(ground: Ground, variant: Variant, case: Case) -> None:
    answer = ground.run(variant, case.ask, *case.app)
    assert (answer.status, [line.replace(" noatime", "") for line in answer.lines]) == (0, list(case.lines)), answer


@every()
@pytest.mark.parametrize("copied", [False, True])
def test_owners_modes_and_attributes_of_the_image(ground: Ground, variant: Variant, copied: bool) -> None:
    def arrange(root: Path) -> None:
        (root / "mode").write_text("")
        os.chown(root / "mode", 1, 2)
        (root / "mode").chmod(0o2755)
        os.link(root / "mode", root / "other")
        (root / "link").symlink_to("../../etc/passwd")

    image = ground.image(arrange=arrange)
    pod = ("--no-overlay",) if copied else ()
    ask = "stat /mode + stat /other + readlink /link + stat /tmp + stat /owned + chown /owned 9 9 + stat /owned"
    assert ground.ask(variant, ask, image=image, pod=pod) == [
        "file 2755 1 2", "file 2755 1 2", "../../etc/passwd", "directory 1777 0 0", "file 0644 123 456", "/owned: ok",
        "file 0644 9 9",
    ]  # fmt: skip


@every()
def test_pods_share_nothing(ground: Ground, variant: Variant) -> None:
    assert ground.ask(variant, "write /x 1 + unlink /owned") == ["/owned: ok"]
    assert ground.run(variant, "try read /x + stat /owned").lines == [
        "/x: No such file or directory",
        "file 0644 123 456",
    ]


# --- volumes


@pytest.fixture
def host(ground: Ground) -> Path:
    """A directory to be a volume: `file` of user 5, a directory, a link that leads out, a socket and a pipe."""
    place = ground.new("host")
    (place / "below").mkdir(parents=True)
    (place / "file").write_text("from the host\n")
    os.chown(place / "file", ground.outside(5), ground.outside(6))
    (place / "out").symlink_to("../../../etc/hostname")
    os.mkfifo(place / "pipe")
    os.chown(place / "pipe", ground.outside(0), ground.outside(0))
    return place


def volume(source: Path, target: str = "/data", **options: str) -> list[str]:
    more = "".join(f",{name}={value}" for name, value in options.items())
    name = target.strip("/").replace("/", "-")
    return [f"--volume={name},kind=host,source={source}{more}", f"--mount=volume={name},target={target}"]


@every()
def test_a_volume_of_the_host(ground: Ground, variant: Variant, host: Path) -> None:
    """Owners are the same on both sides, whatever users the pod has; for an ordinary user as his IDs are mapped."""
    ask = "stat /data/file + read /data/file + write /data/new mine + chown /data/new 7 8 + stat /data/new"
    lines = ground.ask(variant, ask, pod=volume(host))
    assert lines == ["file 0644 5 6", "from the host", "/data/new: ok", "file 0644 7 8"]
    assert (host / "new").read_text() == "mine"
    new = (host / "new").stat()
    assert (new.st_uid, new.st_gid) == (ground.outside(7), ground.outside(8))


@every()
def test_a_read_only_volume(ground: Ground, variant: Variant, host: Path) -> None:
    ask = "try write /data/x 1 + chmod /data/file 777 + unlink /data/file + open /data/file rw + read /data/file"
    lines = ground.ask(variant, ask, pod=volume(host, readOnly="true"))
    assert lines == ["/data/x: Read-only file system", *["/data/file: EROFS"] * 3, "from the host"]
    if NAMESPACES in variant.claims:
        assert " ro" in ground.ask(variant, "statvfs /data", pod=volume(host, readOnly="true"))[0]


@every()
def test_volumes_that_are_files_and_nested(ground: Ground, variant: Variant, host: Path) -> None:
    inner = ground.new("inner")
    (inner / "deep").write_text("inner\n")
    pod = [*volume(inner, "/data/below"), *volume(host), *volume(host / "file", "/etc/one")]
    lines = ground.ask(variant, "read /data/below/deep + read /etc/one + read /data/file", pod=pod)
    assert lines == ["inner", "from the host", "from the host"]
    assert not list((host / "below").iterdir())


@every(HERE)
def test_volumes_that_are_pipes(ground: Ground, variant: Variant, host: Path) -> None:
    assert ground.ask(variant, "stat /run/pipe", pod=volume(host / "pipe", "/run/pipe")) == ["fifo 0644 0 0"]


@every(ROOT)
def test_mounts_below_a_volume(ground: Ground, variant: Variant, mounted: Path) -> None:
    """They come along with recursive=true, read-only when the volume is."""
    (mounted / "below/inside").write_text("mounted\n")
    with_it = ground.ask(variant, "read /data/below/inside", pod=volume(mounted, recursive="true"))
    without = ground.ask(variant, "list /data/below", pod=volume(mounted, recursive="false"))
    ask = "try write /data/below/x 1 + read /data/below/inside"
    read_only = ground.ask(variant, ask, pod=volume(mounted, recursive="true", readOnly="true"))
    assert (with_it, without) == (["mounted"], [])
    assert read_only == ["/data/below/x: Read-only file system", "mounted"]


@every(NAMESPACES)
def test_a_volume_brings_no_devices_and_no_set_id_programs(ground: Ground, variant: Variant, host: Path) -> None:
    os.mknod(host / "zero", 0o20666, os.makedev(1, 5))
    os.chmod(host / "zero", 0o666)
    (host / "set-id").write_bytes(Path(ground.root(), "bin/inspect").read_bytes())
    os.chown(host / "set-id", ground.outside(77), ground.outside(77))
    (host / "set-id").chmod(0o4755)
    lines = ground.ask(variant, "open /data/zero + exec /data/set-id id", "--user=web", pod=volume(host))
    assert lines[:2] == ["/data/zero: EACCES", "uid 33 33 33"]


@every()
def test_empty_volumes(ground: Ground, variant: Variant) -> None:
    pod = ["--volume=data,kind=empty,mode=0750,uid=33,gid=34", "--mount=volume=data,target=/data"]
    assert ground.ask(variant, "stat /data + list /data + write /data/x 1", "--user=web", pod=pod) == [
        "directory 0750 33 34"
    ]


@every(HERE)
def test_a_named_volume_outlives_its_pods(ground: Ground, variant: Variant) -> None:
    """Made for the first, found by the second whatever that would have made, and removed when both are collected."""
    name = f"{variant.name}_1"
    mount = "--mount=volume=data,target=/data"
    first = [f"--volume=data,kind=named,source={name},mode=0770,uid=33,gid=34", mount]
    ask = "stat /data + write /data/new mine + stat /data/new"
    lines = ground.ask(variant, ask, "--user=web", "--group=web", pod=first)
    assert lines == ["directory 0770 33 34", "file 0644 33 34"]
    second = [f"--volume=data,kind=named,source={name},readOnly=true,mode=0700", mount]
    ask = "stat /data + try write /data/x 1 + read /data/new"
    assert ground.ask(variant, ask, pod=second) == ["directory 0770 33 34", "/data/x: Read-only file system", "mine"]
    (listed,) = json.loads(ground.rkpy.ok("volume", "list", "--format=json"))
    assert (listed["name"], len(listed["pods"])) == (name, 2)
    refused = ground.rkpy("volume", "rm", name)
    assert (refused.status, f'volume "{name}" is used by pod "' in refused.err) == (254, True), refused
    _collect(ground)
    assert ground.rkpy.ok("volume", "list", "--no-legend").split()[:2] == [name, "0"]
    assert ground.rkpy.ok("volume", "rm", name) == f'"{name}"\n'
    assert ground.rkpy.ok("volume", "list", "--no-legend") == ""


def _collect(ground: Ground) -> None:
    for _ in range(2):  # Dead pods become garbage at the first run, and are removed at the second.
        ground.rkpy.ok("gc", "--grace-period=0s")


@every(HERE)
def test_a_named_volume_begins_with_what_the_image_has(ground: Ground, variant: Variant) -> None:
    """Where it is mounted, by a symlink even, which leads nowhere but below the image's root."""
    image = ground.image(files={"srv/www/seed": "sown", "var/www": "->/../srv/www"})
    absent = "/srv/www/seed: No such file or directory"
    cases = {
        "filled": ("", "directory 0755 33 34", "sown"),
        "typed": (",uid=5,mode=0700", "directory 0700 5 34", "sown"),
        "empty": (",copy=false", "directory 0755 33 34", absent),
    }
    for name, (options, *lines) in cases.items():
        pod = [f"--volume=data,kind=named,source={name}{options}", "--mount=volume=data,target=/var/www"]
        assert ground.ask(variant, "stat /srv/www + try read /srv/www/seed", image=image, pod=pod) == lines, name
        # What the image has is not asked for again.
        other = ground.ask(variant, "stat /tmp + try read /tmp/seed", pod=[pod[0], "--mount=volume=data,target=/tmp"])
        assert other == [line.replace("/srv/www", "/tmp") for line in lines], name
    _collect(ground)
    ground.rkpy.ok("volume", "rm", *cases)


@every(SEVERAL, HERE)
def test_a_named_volume_that_is_called_by_several_names_is_that_of_the_first_app(
    ground: Ground, variant: Variant
) -> None:
    """Whichever of the pod's names comes first, and be one of them mounted by nobody."""
    images = [ground.image(files={"srv/www/seed": word}) for word in ("one", "two")]
    pod = [f"--volume={name},kind=named,source=shared" for name in ("none", "b", "a")]
    apps = [
        ground.app("read /srv/www/seed", f"--name={name}", f"--mount=volume={name},target=/srv/www", image=image)
        for name, image in zip(("a", "b"), images, strict=True)
    ]
    result = ground.pod(variant, *apps, pod=pod)
    assert (result.status, sorted(line.split()[-1] for line in result.lines)) == (0, ["one", "one"]), result
    _collect(ground)
    ground.rkpy.ok("volume", "rm", "shared")


@by_root(QUICK)
def test_a_named_volume_of_a_pod_that_is_refused_is_not_there(ground: Ground, variant: Variant) -> None:
    """Its content would be that of a place which was not meant."""
    for target in ("/", "/../", "/bin/inspect", "/bin/inspect/x"):
        pod = ["--volume=data,kind=named,source=refused", f"--mount=volume=data,target={target}"]
        done = ground.run(variant, "id", pod=pod)
        assert done.status == 254, (target, done)
        assert ground.rkpy.ok("volume", "list", "--no-legend") == "", target


@by_root(QUICK)
def test_a_named_volume_that_cannot_be_filled_is_not_there(ground: Ground, variant: Variant) -> None:
    """Half of it would be taken for the whole by the next pod."""
    image = ground.image(files={"srv/www/big": "x" * 3_000_000})
    volumes = Path(ground.rkpy.data, "volumes")
    volumes.mkdir(mode=0o700, exist_ok=True)
    pod = ["--volume=data,kind=named,source=full", "--mount=volume=data,target=/srv/www"]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "small", volumes], check=True)
    try:
        refused = ground.run(variant, "id", image=image, pod=pod)
        assert sorted(path.name for path in volumes.iterdir()) == [".lock", ".making"]
    finally:
        subprocess.run(["umount", volumes], check=True)
    assert refused.status == 254
    assert 'fill volume "full" with what the image has at /srv/www: ' in refused.err
    assert "no space left on device" in refused.err
    assert ground.ask(variant, "stat /srv/www", image=image, pod=pod) == ["directory 0755 33 34"]
    _collect(ground)
    ground.rkpy.ok("volume", "rm", "full")


@every(NAMESPACES)
def test_an_empty_volume_of_limited_size(ground: Ground, variant: Variant) -> None:
    pod = ["--volume=data,kind=empty,size=1Mi,mode=0700,uid=33,gid=34", "--mount=volume=data,target=/data"]
    assert ground.ask(variant, "stat /data + statvfs /data", "--user=web", pod=pod) == [
        "directory 0700 33 34", "size=1048576 nosuid nodev",
    ]  # fmt: skip


@table_by_root(
    Case("missing", "id", pod=("--volume=v,kind=host,source=/none/such", "--mount=volume=v,target=/v"), status=254,
         error='"/none/such" does not exist'),
    Case("at-the-root", "id", pod=("--volume=v,kind=empty", "--mount=volume=v,target=/"), status=254,
         error="mounted over the app's root"),
)  # fmt: skip
def test_impossible_volumes(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


@every(IMPLICIT)
def test_a_mount_point_without_a_volume(ground: Ground, variant: Variant) -> None:
    """It has what the image has there, of both kinds of images, for this pod alone; and everybody is told."""
    image = ground.image(files={"data/seed": "s"}, mountPoints=[{"name": "data", "path": "/data"}])
    for _ in range(2):
        result = ground.run(variant, "list /data + write /data/x 1", image=image)
        assert (result.status, result.lines) == (0, ["seed"]), result
        assert 'no volume for "/data"' in result.err, result

    def arrange(root: Path) -> None:
        (root / "data").mkdir()
        (root / "data/seed").write_text("seed\n")
        os.chown(root / "data", 33, 34)
        os.chown(root / "data/seed", 5, 6)
        (root / "data").chmod(0o750)

    oci = ground.oci("--volume", "/data", "--entrypoint", '["/bin/inspect"]', arrange=arrange)
    lines = ground.ask(variant, "stat /data + stat /data/seed + read /data/seed + write /data/x 1", image=oci)
    assert lines == ["directory 0750 33 34", "file 0644 5 6", "seed"]
    assert "x" not in ground.ask(variant, "list /data", image=oci)


# --- how it ends


@by_root()
@pytest.mark.parametrize("status", [0, 1, 7, 125, 126, 127, 254, 255])
def test_exit_status(ground: Ground, variant: Variant, status: int) -> None:
    assert ground.run(variant, f"exit {status}").status == status


@by_root()
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL, signal.SIGPIPE, signal.SIGTERM, signal.SIGXFSZ])
def test_death_by_signal(ground: Ground, variant: Variant, number: int) -> None:
    assert ground.run(variant, f"signal {int(number)}").status == 128 + number


@table_by_root(
    Case("missing", "id", app=("--exec=/bin/nothing",), status=127, error='program "/bin/nothing" not found'),
    Case(
        "not-in-path", "id", app=("--exec=nothing",), status=127, error='program "nothing" not found in the app\'s PATH'
    ),
    Case("no-program", "id", app=("--exec=/etc/passwd",), status=126, error='cannot execute "/etc/passwd"'),
    Case("a-directory", "id", app=("--exec=/etc",), status=126, error='cannot execute "/etc": it is a directory'),
)
def test_programs_that_cannot_be_executed(ground: Ground, variant: Variant, case: Case) -> None:
    ground.check(variant, case)


# --- images of the other format


@every()
def test_an_oci_image(ground: Ground, variant: Variant) -> None:
    config = ("--cmd", "id", "--user", "web:staff", "--env", "A=1", "--workingdir", "/srv")
    image = ground.oci("--entrypoint", '["/bin/inspect"]', *config)
    plain = ground.run(variant, (), image=image)
    assert plain.lines == ["uid 33 33 33", "gid 50 50 50", "groups"], plain
    lines = ground.ask(variant, "cwd + env + stat /owned + stat /srv/www", image=image)
    assert lines[0] == "/srv"
    assert {"A=1", "HOME=/srv/www", "USER=web", "container=rkpy"} <= set(lines)
    assert lines[-2:] == ["file 0644 123 456", "directory 0755 33 34"]


@every()
def test_nobody_but_root_reaches_what_apps_write(ground: Ground, variant: Variant) -> None:
    """Though a group may look at the pod's directory: a setuid program of an app's would make its members root."""
    _only_root_reaches(ground, variant, ())


@every(QUICK)
def test_nobody_but_root_reaches_what_is_written_to_copies(ground: Ground, variant: Variant) -> None:
    _only_root_reaches(ground, variant, ("--no-overlay",))


def _only_root_reaches(ground: Ground, variant: Variant, how: tuple[str, ...]) -> None:
    flags = ("--volume=kept,kind=empty", "--mount=volume=kept,target=/kept", *how)
    app = ground.app("write /program x + write /kept/program x + say up + sleep")
    with ground.running(variant, app, pod=flags) as pod:
        assert pod.line() == "up"
        directory = ground.rkpy.data / "pods/run" / pod.uuid
        found = {path.relative_to(directory).parts[0] for path in directory.rglob("program")}
        assert found >= {"rootfs" if how else "overlay", "volumes"}
        for name in ("rootfs", "overlay", "volumes"):
            assert not (directory / name).exists() or (directory / name).stat().st_mode & 0o777 == 0o700
