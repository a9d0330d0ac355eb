"""Ways out of a pod, tried. Every attempt has a control: somewhere it is meant to succeed, and does, so that a failure
inside the pod says something about the pod and not about the attempt."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import sysconfig
import termios
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import syscalls
from tests.host import flavours
from tests.host.commands import ROOT
from tests.host.flavours import DEADLINE, HERE, NAMESPACES, VARIANTS, Ground, Variant, every, until
from tests.host.test_supervised import Terminal

FLY = VARIANTS[0]
"""Not a boundary, and so the control of much that follows."""
DENIALS = frozenset({"EPERM", "EACCES", "ENOSYS", "SIGSYS"})


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("escape"), inspector) as made:
        yield made


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that nothing may reach."""
    place = tmp_path / "victim"
    place.mkdir()
    (place / "secret").write_text("the host's\n")
    yield place
    assert [path.name for path in place.iterdir()] == ["secret"]
    assert (place / "secret").read_text() == "the host's\n"


def answers(lines: list[str]) -> dict[str, str]:
    """What the inspector reports as `WHAT: ANSWER`."""
    return dict(line.rsplit(": ", 1) for line in lines)


def on_host(inspector: str, ask: str) -> dict[str, str]:
    """The same questions to a process of the host's root, in namespaces of its own to keep the host as it is."""
    command = ["unshare", "--mount", "--uts", "--ipc", "--net", inspector, *ask.split(" ")]
    return answers(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


# --- system calls

CALLS = (
    "mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr", "fsopen", "fspick", "setns",
    "unshare_user", "unshare_mount", "unshare_uts", "unshare_net", "clone_user", "keyctl", "add_key", "request_key",
    "bpf", "perf_event_open", "userfaultfd", "reboot", "swapon", "swapoff", "acct", "quotactl", "adjtimex",
    "sethostname", "setdomainname", "syslog", "open_by_handle_at", "fanotify_init", "setpriority", "sched_setscheduler",
)  # fmt: skip
"""None of these is for a pod that was given nothing."""
OPTIONAL_CALLS = (
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "iopl", "ioperm",
)  # fmt: skip
"""Neither are these, which not every kernel has: where it has not, there is nothing to show."""


def all_calls(names: tuple[str, ...]) -> str:
    return " + ".join(f"call {name}" for name in names)


def test_control_the_calls_reach_the_kernel_from_the_host(inspector: str) -> None:
    seen = on_host(inspector, all_calls(CALLS))
    assert not {name for name, answer in seen.items() if answer in DENIALS}, seen
    optional = on_host(inspector, all_calls(OPTIONAL_CALLS))
    assert {answer for answer in optional.values() if answer in DENIALS} <= {"ENOSYS"}, optional


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("user", ["root", "web"])
def test_calls_are_denied(ground: Ground, variant: Variant, user: str) -> None:
    seen = answers(ground.ask(variant, all_calls(CALLS + OPTIONAL_CALLS), f"--user={user}"))
    assert seen.keys() == {*CALLS, *OPTIONAL_CALLS}
    assert not {name: answer for name, answer in seen.items() if answer not in DENIALS}


@every(NAMESPACES, HERE)
def test_control_the_calls_are_there_for_a_pod_that_is_trusted(ground: Ground, variant: Variant) -> None:
    """With everything switched off the filter is gone, and what the pod owns is its own: mounts, names."""
    names = ("mount", "fsopen", "keyctl", "sethostname", "unshare_mount", "setns")
    words = ["--insecure-options=image,all-run", "run", *variant.words, *ground.app(all_calls(names))]
    seen = answers(ground.rkpy.ok(*words).splitlines())
    assert not {name: answer for name, answer in seen.items() if answer in DENIALS}, seen


@every(NAMESPACES, HERE)
def test_private_users_have_no_power_over_the_host(ground: Ground, variant: Variant) -> None:
    """With every capability and no filter: in a user namespace it still means nothing outside; without one it does."""
    names = ("swapon", "acct", "adjtimex", "syslog", "userfaultfd")
    words = ["--insecure-options=image,all-run", "run", *variant.words, *ground.app(all_calls(names))]
    seen = answers(ground.rkpy.ok(*words).splitlines())
    denied = {name for name, answer in seen.items() if answer in DENIALS}
    assert denied == (set(names) if "users" in variant.name else set()), seen


# --- keys


def with_key(ground: Ground, *words: object) -> list[str]:
    """What a command of rkpy prints when its caller has the key "callers" in the session keyring."""
    command = [ground.inspector, "give-key", "callers", "+", "exec", *ground.rkpy.command(*words)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=DEADLINE,
        env=ground.rkpy.environment(),
    )  # fmt: skip
    assert done.stdout.startswith("callers: ok\n"), done
    return done.stdout.splitlines()[1:]


@every(NAMESPACES, HERE)
def test_keys_of_the_caller_are_not_inherited(ground: Ground, variant: Variant, tmp_path: Path) -> None:
    """Where no filter keeps an app from its session keyring, which fork(2) and execve(2) hand on."""
    find = "find-key callers"
    unfiltered = ("--insecure-options=image,seccomp", "run")
    assert with_key(ground, *unfiltered, *FLY.words, *ground.app(find)) == ["callers: ok"], "the control"
    words = [*unfiltered, *variant.words]
    afterwards = {"name": "post-stop", "exec": ["/bin/inspect", "print-to", "/notes/key", "+", *find.split(" ")]}
    notes = [f"--volume=notes,kind=host,source={tmp_path}", "--mount=volume=notes,target=/notes"]
    app = ground.app(find, image=ground.image(eventHandlers=[afterwards]))
    assert with_key(ground, *words, *notes, *app) == ["callers: ENOKEY"]
    assert (tmp_path / "key").read_text() == "callers: ENOKEY\n"
    with ground.running_command(words, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        assert with_key(ground, "enter", running.uuid, "/bin/inspect", "find-key", "callers") == ["callers: ENOKEY"]


# --- files of the kernel

WRITABLE = (
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register", "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
)  # fmt: skip


@every(NAMESPACES, HERE)
def test_switches_of_the_kernel_cannot_be_opened_for_writing(ground: Ground, variant: Variant) -> None:
    there = [path for path in WRITABLE if os.path.exists(path)]
    assert len(there) > 2
    ask = " + ".join(f"open {path} w" for path in there)
    assert set(answers(ground.ask(FLY, ask)).values()) == {"ok"}, "the control"
    seen = answers(ground.ask(variant, ask))
    assert not {path: answer for path, answer in seen.items() if answer not in {"EROFS", "EACCES", "EPERM", "ENOENT"}}


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process of the host's, started by nobody in particular."""
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


@every(NAMESPACES, HERE)
def test_the_supervisor_shows_nothing(ground: Ground, variant: Variant, sleeper: int) -> None:
    """PID 1 is Python code of ours: its memory, descriptors and root are not the app's to look at."""
    names = ("root", "cwd", "exe", "fd/0", "fd/1", "mem", "environ", "maps")
    control = answers(ground.ask(FLY, " + ".join(f"open /proc/{sleeper}/{name}" for name in names)))
    assert set(control.values()) == {"ok"}, control
    seen = answers(ground.ask(variant, " + ".join(f"open /proc/1/{name}" for name in names)))
    assert not {name: answer for name, answer in seen.items() if answer not in DENIALS}, seen


PTRACE = ("--caps-retain=CAP_SYS_PTRACE,CAP_DAC_OVERRIDE,CAP_DAC_READ_SEARCH", "--seccomp=mode=retain,@appc.io/all")


@every(NAMESPACES, HERE)
def test_the_supervisor_has_nothing_of_the_hosts_to_show(
    ground: Ground, variant: Variant, victim: Path, sleeper: int
) -> None:
    """To one who may trace it, its root is not the host's root."""
    secret = f"{victim}/secret"
    assert ground.ask(FLY, f"read /proc/{sleeper}/root{secret}") == ["the host's"], "the control"
    seen = ground.ask(variant, f"open /proc/1/root + open /proc/1/root{secret} + open /proc/1/cwd{secret}", *PTRACE)
    allowed = {"ENOENT", "EACCES"} if "users" in variant.name else {"ENOENT"}
    assert set(answers(seen[1:]).values()) <= allowed, seen


@every(NAMESPACES, HERE)
def test_the_supervisor_has_nothing_of_the_callers_to_show(
    ground: Ground, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are given passwords in variables, and an app that may trace PID 1 could read them there."""
    monkeypatch.setenv("PASSWORD", "of-the-caller")
    monkeypatch.setenv("TERM", "vt100")
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        variables = Path(f"/proc/{ground.status(running.uuid)['pid']}/environ").read_bytes().split(b"\0")
    assert b"TERM=vt100" in variables
    assert b"PASSWORD=of-the-caller" not in variables


@every(NAMESPACES, HERE)
def test_descriptors_of_the_caller_do_not_stay_with_the_pod(ground: Ground, variant: Variant, tmp_path: Path) -> None:
    stray = os.open(tmp_path, os.O_RDONLY)
    command = ground.rkpy.command(*ground.words(variant), *ground.app("say up + sleep"))
    with subprocess.Popen(
        command, pass_fds=(stray,), stdout=subprocess.PIPE, text=True, env=ground.rkpy.environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        held = set()
        for fd in os.listdir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # It may close others meanwhile.
                held.add(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        process.terminate()
    os.close(stray)
    assert str(tmp_path) not in held


@every(NAMESPACES, HERE)
def test_namespaces_of_others_cannot_be_entered(ground: Ground, variant: Variant, sleeper: int) -> None:
    control = answers(ground.ask(FLY, f"setns /proc/{sleeper}/ns/uts + setns /proc/{sleeper}/ns/net"))
    assert set(control.values()) == {"ok"}, control
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    seen = answers(ground.ask(variant, " + ".join(f"setns /proc/1/ns/{name}" for name in names)))
    assert not {name: answer for name, answer in seen.items() if answer not in DENIALS}, seen


@every(NAMESPACES, HERE)
def test_there_is_no_way_back_to_the_hosts_mounts(ground: Ground, variant: Variant, victim: Path, sleeper: int) -> None:
    """Not even for one who may enter namespaces: none that can be seen has the host's files."""
    control = ["unshare", "--mount", ground.inspector, "setns", f"/proc/{sleeper}/ns/mnt"]
    done = subprocess.run([*control, "+", "open", f"{victim}/secret"], capture_output=True, text=True, check=True)
    assert [line.rsplit(" ", 1)[1] for line in done.stdout.splitlines()] == ["ok", "ok"], done
    words = ["--insecure-options=image,all-run", "run", *variant.words]
    seen = ground.rkpy.ok(*words, *ground.app(f"setns /proc/1/ns/mnt + open {victim}/secret")).splitlines()
    assert seen[-1] == f"{victim}/secret: ENOENT", seen


# --- other processes


@every(NAMESPACES, HERE)
def test_processes_of_the_host_cannot_be_reached(ground: Ground, variant: Variant, sleeper: int) -> None:
    ask = f"kill {sleeper} 0 + kill {sleeper} 18 + ptrace {sleeper} + open /proc/{sleeper}/mem rw"
    assert ground.ask(FLY, ask) == [f"{sleeper}: ok"] * 3 + [f"/proc/{sleeper}/mem: ok"], "the control"
    seen = ground.ask(variant, ask)
    assert seen[:2] == [f"{sleeper}: ESRCH"] * 2
    assert seen[2] in (f"{sleeper}: ESRCH", f"{sleeper}: EPERM")
    assert seen[3] == f"/proc/{sleeper}/mem: ENOENT"


@every(NAMESPACES, HERE)
def test_the_supervisor_does_not_die_of_its_pod(ground: Ground, variant: Variant) -> None:
    """SIGTERM and SIGINT are not among these: to PID 1 they are requests to stop the pod, as to systemd, and whoever
    may kill its apps may ask."""
    ask = "kill 1 9 + kill 1 11 + kill 1 19 + kill 1 3 + kill 1 1 + ptrace 1 + sleep 1 + say alive + exit 5"
    result = ground.run(variant, ask)
    assert (result.status, result.lines[-1]) == (5, "alive"), result
    assert result.lines[-2] in ("1: EPERM", "1: ENOSYS"), result


# --- sockets


@every(NAMESPACES, HERE)
def test_sockets_of_the_host_cannot_be_reached(ground: Ground, variant: Variant) -> None:
    name = f"rkpy-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as internet:
        abstract.bind(f"\0{name}")
        abstract.listen()
        internet.bind(("127.0.0.1", 0))
        internet.listen()
        address = f"127.0.0.1:{internet.getsockname()[1]}"
        ask = f"connect @{name} x + connect {address} x"
        assert ground.ask(FLY, ask) == [f"@{name}: ok", f"{address}: ok"], "the control"
        assert ground.ask(variant, ask) == [f"@{name}: ECONNREFUSED", f"{address}: ECONNREFUSED"]


# --- terminals


@pytest.fixture
def terminal_of() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def left_to_read(terminal: Terminal) -> bytes:
    """What somebody put into the input of the caller's terminal, as a shell would find it afterwards."""
    mode = termios.tcgetattr(terminal.slave)
    mode[3] &= ~termios.ICANON
    termios.tcsetattr(terminal.slave, termios.TCSANOW, mode)
    os.set_blocking(terminal.slave, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(terminal.slave, 100)
    return b""


@pytest.mark.parametrize("flags", [[], ["--interactive"]], ids=["plain", "interactive"])
@every(NAMESPACES, HERE)
def test_nothing_is_typed_into_the_callers_terminal(
    ground: Ground, variant: Variant, flags: list[str], terminal_of: list[Terminal]
) -> None:
    """TIOCSTI (CVE-2017-5226): fly, where the terminal is the caller's, is the control."""
    app = ground.app("tiocsti x + say end")
    terminal_of.append(control := Terminal(ground, [*ground.words(FLY), *app]))
    assert control.end() == 0
    assert "tiocsti: ok" in control.read_until("end")
    assert left_to_read(control) == b"x"
    terminal_of.append(attacked := Terminal(ground, [*ground.words(variant, *flags), *app]))
    assert attacked.end() == 0
    attacked.read_until("end")
    assert left_to_read(attacked) == b""


@pytest.fixture
def callers(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Runs a command of rkpy whose input is a file it is to read and whose standard error is a terminal; gives what
    it prints."""
    (tmp_path / "file").write_text("the caller's\n")
    master, slave = os.openpty()

    def run(ground: Ground, *words: object) -> list[str]:
        with (tmp_path / "file").open() as file:
            done = subprocess.run(
                ground.rkpy.command(*words), stdin=file, stdout=subprocess.PIPE, stderr=slave, text=True, check=True,
                timeout=DEADLINE, env=ground.rkpy.environment(),
            )  # fmt: skip
        return done.stdout.splitlines()

    yield run
    os.close(master)
    os.close(slave)


@every(NAMESPACES, HERE)
def test_files_and_terminals_of_the_caller_stay_the_callers(
    ground: Ground, variant: Variant, callers: Callable[..., list[str]]
) -> None:
    """Who has a file to read could open it to write, and who has a terminal to write to could read what is typed there,
    long after the command has ended."""
    assert callers(ground, *ground.words(FLY), *ground.app("open /proc/self/fd/0 w"))[0] == "/proc/self/fd/0: ok", (
        "the control"
    )
    expected = ["0 none", "1 none", "2 none"]
    seen = callers(ground, *ground.words(variant, "--interactive"), *ground.app("tty + echo + fdlinks"))
    assert seen[:3] == expected and "the caller's" in seen, seen
    assert all("pipe:" in line for line in seen[-3:]), seen
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        words = ["enter", running.uuid, "/bin/inspect", "tty", "+", "echo", "+", "fdlinks"]
        seen = callers(ground, *words)
    assert seen[:3] == expected and "the caller's" in seen, seen
    assert all("pipe:" in line for line in seen[-3:]), seen


# --- devices


def disk() -> tuple[int, int]:
    """A block device of this machine that can be opened."""
    for name in sorted(os.listdir("/sys/class/block")):
        with contextlib.suppress(OSError):
            os.close(os.open(f"/dev/{name}", os.O_RDONLY))
            major, minor = Path(f"/sys/class/block/{name}/dev").read_text().split(":")
            return int(major), int(minor)
    raise AssertionError("no block device")


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("place", ["/disk", "/dev/disk", "/dev/shm/disk", "/tmp/disk"])
def test_a_device_made_by_the_app_cannot_be_opened(ground: Ground, variant: Variant, place: str) -> None:
    major, minor = disk()
    assert ground.ask(FLY, f"mknod /disk b {major} {minor} + open /disk") == ["/disk: ok", "/disk: ok"], "the control"
    for kind, ours in (("b", (major, minor)), ("c", (1, 1))):
        opened = ground.ask(variant, f"mknod {place} {kind} {ours[0]} {ours[1]} + open {place}")[1]
        assert opened in (f"{place}: EACCES", f"{place}: EPERM", f"{place}: ENOENT")


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("copied", [False, True])
def test_a_device_in_an_image_cannot_be_opened(ground: Ground, variant: Variant, copied: bool) -> None:
    major, minor = disk()

    def arrange(root: Path) -> None:
        os.mknod(root / "disk", 0o60666, os.makedev(major, minor))
        os.mknod(root / "memory", 0o20666, os.makedev(1, 1))
        (root / "dev").mkdir()
        os.mknod(root / "dev/disk", 0o60666, os.makedev(major, minor))

    image = ground.image(arrange=arrange)
    pod = ("--no-overlay",) if copied else ()
    assert ground.ask(FLY, "open /disk", image=image, pod=pod) == ["/disk: ok"], "the control"
    seen = answers(ground.ask(variant, "open /disk + open /memory + open /dev/disk", image=image, pod=pod))
    assert set(seen.values()) <= {"EACCES", "EPERM", "ENOENT"}, seen


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Path]]:
    """The host's nodes of the devices every app has, and of one it can be given. What a test does to them is undone."""
    given = tmp_path / "given"
    os.mknod(given, 0o20666, os.makedev(1, 7))
    given.chmod(0o666)
    paths = [given, *(Path("/dev", name) for name in ("full", "null", "random", "urandom", "zero"))]
    before = {path: owner_and_mode(path) for path in paths}
    yield paths
    after = {path: owner_and_mode(path) for path in paths}
    for path, (uid, gid, mode) in before.items():
        os.chown(path, uid, gid)
        path.chmod(mode & 0o7777)
    assert after == before


@every(NAMESPACES, HERE)
def test_devices_keep_owner_and_mode(ground: Ground, variant: Variant, nodes: list[Path]) -> None:
    """Those of an app are mounts of the host's, and so is its standard input: closed by one, it is closed for all."""
    ask = " + ".join(f"chmod {path} 640 + chown {path} 33 33 + open {path} rw" for path in nodes)
    lines = ground.ask(variant, f"{ask} + fchmod 0 640", f"--device={nodes[0]}")
    assert lines == [*(f"{path}: {answer}" for path in nodes for answer in ("EROFS", "EROFS", "ok")), "0: EROFS"]


def test_control_devices_of_a_pod_that_has_the_hosts(ground: Ground, nodes: list[Path]) -> None:
    mode = nodes[-1].stat().st_mode & 0o777
    assert ground.ask(FLY, f"chmod {nodes[-1]} {mode:o} + fchmod 0 {mode:o}") == [f"{nodes[-1]}: ok", "0: ok"]


# --- what an image can have in the place of directories


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc", "tmp", "run", "dev/shm", "etc/resolv.conf", "etc/hosts"])
@pytest.mark.parametrize("up", ["", "../../../../../../../../../../.."], ids=["absolute", "relative"])
def test_links_in_the_place_of_directories(ground: Ground, variant: Variant, victim: Path, name: str, up: str) -> None:
    """Whether the pod runs or is refused, nothing appears where the link leads on the host, and /proc is our /proc."""

    def arrange(root: Path) -> None:
        if name == "etc":
            for path in (root / "etc").iterdir():
                path.unlink()
        if (root / name).is_dir():
            (root / name).rmdir()
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(f"{up}{victim}")
        assert (root / name / "secret").exists(), "the control: the link leads out"

    image = ground.image(arrange=arrange)
    ask = "open /proc/sys/kernel/core_pattern w + open /proc/self/status + open /dev/null rw + mounts"
    result = ground.run(variant, ask, "--user=0", "--group=0", image=image, pod=("--dns=127.0.0.1",))
    assert result.status in (0, 254), result
    if result.status == 0:
        assert result.lines[1:3] == ["/proc/self/status: ok", "/dev/null: ok"], result
        assert result.lines[0].rsplit(" ", 1)[1] in DENIALS | {"EROFS"}, result
        proc = [line.split(" - ")[1].split()[0] for line in result.lines[3:] if line.split()[4] == "/proc"]
        assert proc == ["proc"], result
    else:
        assert result.err.count("\n") == 1, result


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("up", ["", "../../../../../../../../../../.."], ids=["absolute", "relative"])
def test_volume_targets_stay_in_the_root(
    ground: Ground, variant: Variant, victim: Path, tmp_path: Path, up: str
) -> None:
    def arrange(root: Path) -> None:
        (root / "out").symlink_to(f"{up}{victim}")
        (root / "control").symlink_to(f"{up}{tmp_path}")
        (root / "control/reached").touch()

    (tmp_path / "source").write_text("volume\n")
    image = ground.image(arrange=arrange)
    assert (tmp_path / "reached").exists(), "the control: the links lead out"
    pod = [f"--volume=v,kind=host,source={tmp_path}/source", "--mount=volume=v,target=/out/new/file"]
    seen = ground.run(variant, f"read /out/new/file + read {victim}/new/file", image=image, pod=pod)
    assert (seen.status, seen.lines) in [(0, ["volume", "volume"]), (254, [])], seen


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("target", ["/proc", "/proc/self/attr", "/proc/sys/kernel", "/sys/kernel", "/dev/fd/3"])
def test_volumes_over_files_of_the_kernel(ground: Ground, variant: Variant, tmp_path: Path, target: str) -> None:
    """CVE-2019-16884: a fake /proc would swallow what the engine writes there; and what is masked stays masked."""
    (tmp_path / "fake/sys").mkdir(parents=True)
    pod = [f"--volume=v,kind=host,source={tmp_path}/fake", f"--mount=volume=v,target={target}"]
    ask = "open /proc/sysrq-trigger w + try read /proc/kcore + caps + nnp + seccomp"
    result = ground.run(variant, ask, pod=pod)
    if result.status == 0:
        assert "/proc/sysrq-trigger: ok" not in result.lines, result
        assert "Seccomp:\t2" in result.lines, result
    else:
        assert result.status in (99, 254), result
    assert [path.name for path in (tmp_path / "fake").iterdir()] == ["sys"]


@every(NAMESPACES, HERE)
def test_volumes_whose_links_are_swapped_meanwhile(
    ground: Ground, variant: Variant, victim: Path, tmp_path: Path
) -> None:
    """A second volume goes to a place in the first, where somebody exchanges a directory and a link all the time."""
    shared = tmp_path / "shared"
    (shared / "a/inner").mkdir(parents=True)
    (shared / "b").symlink_to(victim)
    (tmp_path / "second").mkdir()
    (tmp_path / "second/mark").write_text("second\n")
    pod = [
        f"--volume=first,kind=host,source={shared}", "--mount=volume=first,target=/shared",
        f"--volume=second,kind=host,source={tmp_path}/second", "--mount=volume=second,target=/shared/a/inner",
    ]  # fmt: skip
    swapper = subprocess.Popen([ground.inspector, "swap", shared / "a", shared / "b"])
    try:
        results = [ground.run(variant, "say ran", pod=pod) for _ in range(12)]
    finally:
        swapper.kill()
        swapper.wait()
    assert swapper.returncode == -9
    assert {result.status for result in results} <= {0, 254}, results
    assert not [result for result in results if result.status == 254 and result.err.count("\n") != 1]
    still = [path for path in (shared / "a", shared / "b") if not path.is_symlink()]
    assert list((still[0] / "inner").iterdir()) == []


HOSTILE_PASSWD = [
    b"web:x:-0:0::/:/\nweb:x:00000000000:0::/:/\n",
    b"\xff\xfe\0:x:0:0::/:/\n:x:0:0::/:/\n",
    b"web\0:x:0:0::/:/\n",
    b":" * 100_000 + b"\n",
]


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("head", HOSTILE_PASSWD, ids=range(4))
def test_hostile_account_files(ground: Ground, variant: Variant, head: bytes) -> None:
    image = ground.image(files={"etc/passwd": head + flavours.PASSWD.encode()})
    assert ground.ask(variant, "id", "--user=web", "--group=web", image=image)[0] == "uid 33 33 33"


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("what", ["fifo", "large", "device"])
def test_account_files_that_are_none(ground: Ground, variant: Variant, what: str) -> None:
    def arrange(root: Path) -> None:
        (root / "etc/passwd").unlink()
        if what == "fifo":
            os.mkfifo(root / "etc/passwd")
        elif what == "device":
            os.mknod(root / "etc/passwd", 0o20666, os.makedev(1, 5))
        else:
            (root / "etc/passwd").write_bytes(b"#" * (5 << 20))

    result = ground.run(variant, "id", "--user=web", "--group=web", image=ground.image(arrange=arrange))
    assert (result.status, result.out) == (254, ""), result
    assert "/etc/passwd" in result.err and result.err.count("\n") == 1, result


# --- shocker: files by handle


@every(NAMESPACES, HERE)
def test_files_by_handle(ground: Ground, variant: Variant, tmp_path: Path) -> None:
    """From any file of the host that a pod can see, the whole file system can be had by one who may."""
    (tmp_path / "file").write_text("")
    pod = [f"--volume=v,kind=host,source={tmp_path}/file", "--mount=volume=v,target=/v"]
    assert ground.ask(FLY, "shocker /v", pod=pod) == ["/v: ok"], "the control: the file system has to be ext4"
    assert ground.ask(variant, "shocker /v", pod=pod) == ["/v: EPERM"]
    allowed = ("--caps-retain=CAP_DAC_READ_SEARCH", "--seccomp=mode=retain,@appc.io/all")
    with_it = ground.ask(variant, "shocker /v", *allowed, pod=pod)
    assert with_it == ["/v: EPERM" if "users" in variant.name else "/v: ok"]


# --- descriptors: CVE-2024-21626

NUMBERS = range(3, 13)


def test_control_a_descriptor_of_the_hosts_root_is_a_way_out(ground: Ground, victim: Path) -> None:
    root = ground.root()
    (root / "proc").mkdir()
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)

    def enter() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("proc", str(root / "proc"), "proc", 0)
        os.chroot(root)

    ask = ["chdir", f"/proc/self/fd/{leaked}", "+", "read", f".{victim}/secret"]
    done = subprocess.run(
        ["/bin/inspect", *ask], capture_output=True, text=True, check=True, pass_fds=[leaked], preexec_fn=enter
    )
    os.close(leaked)
    assert done.stdout.splitlines() == [f"/proc/self/fd/{leaked}: ok", "the host's"]


@every(NAMESPACES, HERE)
def test_no_working_directory_is_a_way_out(ground: Ground, variant: Variant, victim: Path) -> None:
    def arrange(root: Path) -> None:
        for number in NUMBERS:
            (root / f"fd{number}").symlink_to(f"/proc/self/fd/{number}")

    image = ground.image(arrange=arrange)
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    for number in NUMBERS:
        for path in (f"/proc/self/fd/{number}", f"/fd{number}", f"/proc/1/fd/{number}"):
            app = ground.app(f"cwd + open .{victim}/secret", f"--working-dir={path}", image=image)
            done = subprocess.run(
                ground.rkpy.command(*ground.words(variant), *app), stdin=subprocess.DEVNULL, capture_output=True,
                text=True, check=False, timeout=DEADLINE, pass_fds=[leaked], env=ground.rkpy.environment(),
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (254, ""), (path, done)
    os.close(leaked)


@every(NAMESPACES, HERE)
def test_no_working_directory_of_enter_is_a_way_out(ground: Ground, variant: Variant, victim: Path) -> None:
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        for number in NUMBERS:
            for flags in ([], ["--privileged"]):
                words = ["enter", f"--cwd=/proc/self/fd/{number}", *flags, running.uuid, "/bin/inspect"]
                done = subprocess.run(
                    ground.rkpy.command(*words, "cwd", "+", "open", f".{victim}/secret"), stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, check=False, timeout=DEADLINE, pass_fds=[leaked],
                    env=ground.rkpy.environment(),
                )  # fmt: skip
                assert (done.returncode, done.stdout) == (254, ""), (words, done)
    os.close(leaked)


@every(NAMESPACES, HERE)
def test_a_handler_afterwards_has_nothing_of_the_hosts(
    ground: Ground, variant: Variant, tmp_path: Path, terminal_of: list[Terminal]
) -> None:
    """Neither the plan of the app, which stood in for the terminal, nor a cgroup namespace."""
    ask = ["print-to", "/notes/seen", "+", "fdlinks", "+", "cgroup"]
    image = ground.image(eventHandlers=[{"name": "post-stop", "exec": ["/bin/inspect", *ask]}])
    notes = [f"--volume=notes,kind=host,source={tmp_path}", "--mount=volume=notes,target=/notes"]
    words = ground.words(variant, "--interactive", *notes)
    terminal_of.append(terminal := Terminal(ground, [*words, *ground.app("say end", image=image)]))
    assert terminal.end() == 0
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[:3] == ["0 /dev/null", "1 /notes/seen", "2 /dev/null"]
    assert {line.rsplit(":", 1)[1] for line in seen[3:]} == {"/"}, seen


# --- the engine's own program: CVE-2019-5736


class Interpreter:
    """A copy of the interpreter, so that an attempt that succeeds damages nothing else."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory, symlinks=False, with_pip=False)
        self.path = directory / "bin" / Path(sys.executable).name
        self.before = self.state()

    def state(self) -> tuple[str, int]:
        return hashlib.sha256(self.path.read_bytes()).hexdigest(), self.path.stat().st_mtime_ns


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    return Interpreter(tmp_path_factory.mktemp("interpreter") / "venv")


@pytest.fixture
def copied(ground: Ground, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Interpreter]:
    """The engine runs by the copy."""
    monkeypatch.setattr(ground.rkpy, "interpreter", str(interpreter.path))
    packages = os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])
    monkeypatch.setattr(ground.rkpy, "environment", lambda: {**os.environ, "PYTHONPATH": packages})
    yield interpreter
    assert interpreter.state() == interpreter.before


def test_control_a_program_that_ran_can_be_opened_for_writing(inspector: str, interpreter: Interpreter) -> None:
    """Once nobody runs it any more, through the descriptor that was taken while it ran."""
    program = subprocess.Popen([interpreter.path, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    command = [inspector, "exe-writer", f"{DEADLINE:.0f}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        seen = f"seen {os.path.realpath(interpreter.path)}\n"
        assert any(line == seen for line in writer.stdout)
        program.communicate(b"")
        opened = f"opened {os.path.realpath(interpreter.path)}\n"
        assert any(line == opened for line in writer.stdout)
        writer.kill()
    assert interpreter.state() == interpreter.before


SCRIPT = "#!/proc/self/exe\n"


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("flags", [(), PTRACE], ids=["plain", "may-trace"])
def test_the_engines_program_cannot_be_written(
    ground: Ground, variant: Variant, copied: Interpreter, flags: tuple[str, ...]
) -> None:
    """While one process of the pod looks for programs to write to, others make the engine execute itself inside."""
    image = ground.image(files={"bin/script": SCRIPT, "bin/link": "->/proc/self/exe"})
    with ground.running(variant, ground.app("exe-writer 6", *flags, image=image)) as running:
        assert running.line() == "looking"
        # Some seconds of launches, each of them a moment in which the engine's program runs in the pod.
        while running.process.poll() is None:
            for words in (["/bin/script"], ["/bin/link"], ["/proc/self/exe"], ["/bin/inspect", "say", "x"]):
                ground.rkpy("enter", running.uuid, *words)
                ground.rkpy("enter", "--privileged", running.uuid, *words)
        result = running.wait()
    assert result.status == 0, result
    assert not [line for line in result.lines if line.startswith("opened")], result


@every(NAMESPACES, HERE)
@pytest.mark.parametrize("program", ["/proc/self/exe", "/bin/script", "/bin/link", "/proc/1/exe"])
def test_the_engine_as_the_app(ground: Ground, variant: Variant, copied: Interpreter, program: str) -> None:
    """It may run, as any program; beside it somebody tries to write to it, and PID 1 goes on after it has ended."""
    image = ground.image(files={"bin/script": SCRIPT, "bin/link": "->/proc/self/exe"})
    attacker = ground.app("exe-writer 3", "--name=attacker", image=image)
    itself = ground.app("x", f"--exec={program}", "--name=itself", "--restart=on-failure:5", image=image)
    result = ground.pod(variant, attacker, itself, pod=("--exit-policy=until-all",))
    assert any("looking" in line for line in result.lines), result
    assert not [line for line in result.lines if "opened" in line], result


# --- the engine's modules: CVE-2019-14271

TAKEN_OVER = b"import posix\nposix.write(2, b'taken over as %d\\n' % posix.getuid())\n"
STRANGE = "#!/nowhere\x01\u200b\n"
"""A program whose interpreter is missing; the message about it takes a codec that nothing else takes."""


def put_modules(root: Path) -> None:
    """The image's own in the place of everything Python or the engine could import."""
    library = Path(sysconfig.get_paths()["stdlib"])
    names = [f"{library}/{path.relative_to(library)}" for path in (*library.glob("*.py"), *library.glob("encodings/*"))]
    names += [str(path) for room in ("common", "stage0", "stage1", "stage2") for path in (ROOT / room).glob("*.py")]
    for name in names:
        if name.endswith(".py") and not name.endswith("__init__.py"):
            place = root / name.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(TAKEN_OVER)
    (root / "bin/strange").write_text(STRANGE)
    (root / "bin/strange").chmod(0o755)


def test_control_python_imports_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    put_modules(tmp_path)
    code = f"import os; os.chroot({str(tmp_path)!r}); '\\x01'.encode('unicode_escape')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("taken over as 0\n"), done


@every(HERE)
def test_no_module_of_the_image_is_imported(ground: Ground, variant: Variant) -> None:
    image = ground.image(arrange=put_modules)
    message = '"/bin/strange": its interpreter "/nowhere\\x01\\u200b" is not in the image\n'
    started = ground.run(variant, "x", "--exec=/bin/strange", image=image)
    assert (started.status, started.err) == (126, f"rkpy: run: cannot execute {message}"), started
    nobody = ground.run(variant, "x", "--user=strange\x01", image=image)
    assert nobody.status == 254 and nobody.err.count("\n") == 1 and "strange\\x01" in nobody.err, nobody
    with ground.running(variant, ground.app("say up + sleep", image=image)) as running:
        assert running.line() == "up"
        entered = ground.rkpy("enter", running.uuid, "/bin/strange")
        assert (entered.status, entered.err) == (126, f"rkpy: enter: cannot execute {message}"), entered
        missing = ground.rkpy("enter", "--cwd=/strange\x01", running.uuid, "/bin/inspect")
        assert missing.status == 254 and missing.err.count("\n") == 1 and "strange\\x01" in missing.err, missing


# --- after all that


@every(NAMESPACES, HERE)
def test_a_pod_leaves_no_trace_in_the_hosts_tables(ground: Ground, variant: Variant) -> None:
    """Mounts made in a pod, by one who may, stay there; and those that were made for it go."""
    place = f"/{ground.new('mounted').name}-of-{os.getpid()}"
    ask = f"mkdir {place} + mount tmpfs {place} + try read /proc/self/mountinfo"
    words = ["--insecure-options=image,all-run", "run", *variant.words, *ground.app(ask)]
    seen = ground.rkpy.ok(*words).splitlines()
    assert seen[1] == f"{place}: ok" and any(f" {place} " in line for line in seen), seen

    def traces() -> list[str]:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in table if place in line or str(ground.directory) in line]

    until(lambda: not traces(), traces)
