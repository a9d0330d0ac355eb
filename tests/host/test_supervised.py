"""Pods that somebody watches: starting, restarting, stopping, several apps, output, entering, and what is recorded."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stage1 import poddir
from tests.host import flavours
from tests.host.flavours import (
    DEADLINE,
    EVERYBODY,
    FLY,
    NAMESPACES,
    QUICK,
    SEVERAL,
    SUPERVISED,
    TERMINAL,
    Ground,
    Running,
    Variant,
    every,
    shell_status,
    until,
)

everybody = partial(flavours.every, of=EVERYBODY)
"""Ordinary users too: where somebody has to have power over the pod, be it to start, stop, enter or remove it."""


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Callable[[str], Ground]]:
    with flavours.grounds(tmp_path_factory.mktemp("supervised"), inspector) as find:
        yield find


@pytest.fixture
def ground(grounds: Callable[[str], Ground], variant: Variant) -> Ground:
    return grounds(variant.user)


@pytest.fixture
def notes(ground: Ground) -> Path:
    """A directory for apps to write to; every user of a pod can."""
    place = ground.new("notes")
    place.chmod(0o1777)
    return place


def noting(place: Path) -> list[str]:
    return [f"--volume=notes,kind=host,source={place}", "--mount=volume=notes,target=/notes"]


def recorded(ground: Ground, uuid: str) -> dict[str, int]:
    """Exit statuses by app, as `rkpy status` tells them."""
    found = ground.status(uuid).items()
    statuses = {key.removeprefix("app-"): int(value) for key, value in found if key.startswith("app-")}
    return {name: status for name, status in statuses.items() if not name.endswith("-signal")}


def newest(ground: Ground) -> str:
    return max(ground.rkpy.pods(), key=lambda path: path.stat().st_ctime_ns).name


def is_over(ground: Ground, uuid: str) -> None:
    until(lambda: ground.state(uuid) != "running", lambda: ground.status(uuid))


# --- exit policies


@everybody(SEVERAL, QUICK)
def test_several_apps_share_what_a_pod_shares(ground: Ground, variant: Variant) -> None:
    """Network, hostname and processes are the pod's, the root is each app's own."""
    one = ground.app("listen 127.0.0.1:7000 + write /only-here x + accept", "--name=one")
    two = ground.app(
        "connect-when-there 127.0.0.1:7000 hello + try read /only-here + hostname", "--name=two", "--user=web"
    )
    result = ground.pod(variant, one, two, pod=("--hostname=both",))
    assert result.status == 0, result
    assert by_app(result.lines) == {
        "one": ["127.0.0.1:7000: ok 7000", "hello"],
        "two": ["127.0.0.1:7000: ok", "/only-here: No such file or directory", "both"],
    }


def by_app(lines: list[str]) -> dict[str, list[str]]:
    """Lines of a pod of several apps by the app that stands before them: `NAME[PID]: TEXT`."""
    found: dict[str, list[str]] = {}
    for line in lines:
        name, text = re.fullmatch(r"([a-z0-9-]+)\[\d+\]: (.*)", line).groups()  # type: ignore[union-attr]
        found.setdefault(name, []).append(text)
    return found


@every(SEVERAL, QUICK)
def test_one_app_that_fails_ends_the_pod(ground: Ground, variant: Variant) -> None:
    failing = ground.app("exit 3", "--name=failing")
    other = ground.app("sleep", "--name=other")
    assert ground.pod(variant, failing, other).status == 3
    assert recorded(ground, newest(ground)) == {"failing": 3, "other": 128 + signal.SIGTERM}


@every(SEVERAL, QUICK)
def test_the_pod_goes_on_when_an_app_ends_well(ground: Ground, variant: Variant, notes: Path) -> None:
    done = ground.app("say done", "--name=done")
    other = ground.app("wait-for /notes/go + append /notes/end x + exit 0", "--name=other")
    with ground.running(variant, done, other, pod=noting(notes)) as running:
        assert running.line().endswith("done")
        (notes / "go").touch()
        assert running.wait().status == 0
    assert (notes / "end").exists()


@every(SEVERAL, QUICK)
def test_policy_on_any(ground: Ground, variant: Variant) -> None:
    done = ground.app("exit 0", "--name=done")
    other = ground.app("sleep", "--name=other")
    assert ground.pod(variant, done, other, pod=("--exit-policy=on-any",)).status == 0


@every(SEVERAL, QUICK)
def test_policy_until_all(ground: Ground, variant: Variant, notes: Path) -> None:
    failing = ground.app("say gone + exit 5", "--name=failing")
    other = ground.app("wait-for /notes/go + append /notes/end x + exit 0", "--name=other")
    with ground.running(variant, failing, other, pod=["--exit-policy=until-all", *noting(notes)]) as running:
        assert running.line().endswith("gone")
        (notes / "go").touch()
        assert running.wait().status == 5
    assert (notes / "end").exists()
    assert recorded(ground, newest(ground)) == {"failing": 5, "other": 0}


@every(SEVERAL, QUICK)
def test_many_apps(ground: Ground, variant: Variant) -> None:
    apps = [ground.app(f"say {number}", f"--name=app{number}") for number in range(20)]
    result = ground.pod(variant, *apps)
    assert result.status == 0, result
    assert by_app(result.lines) == {f"app{number}": [str(number)] for number in range(20)}


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize("policy", ["sometimes", ""])
def test_unknown_policies(ground: Ground, variant: Variant, policy: str) -> None:
    assert ground.run(variant, "id", pod=(f"--exit-policy={policy}",)).status == 254
    assert ground.run(variant, "id", f"--restart={policy}").status == 254


# --- restart


@every(SUPERVISED, QUICK)
def test_restart_on_failure_to_a_limit(ground: Ground, variant: Variant, notes: Path) -> None:
    ask = "append /notes/starts x + exit 6"
    assert ground.run(variant, ask, "--restart=on-failure:2", pod=noting(notes)).status == 6
    assert (notes / "starts").read_text() == "xxx"
    assert recorded(ground, newest(ground)) == {"app": 6}


@every(SUPERVISED, QUICK)
def test_restart_until_it_succeeds(ground: Ground, variant: Variant, notes: Path) -> None:
    """`wait-for` would wait; an app that finds its mark succeeds."""
    ask = "append /notes/starts x + read /notes/go + exit 0"
    with ground.running(variant, ground.app(ask, "--restart=on-failure"), pod=noting(notes)) as running:
        until(lambda: (notes / "starts").exists() and len((notes / "starts").read_text()) > 1)
        (notes / "go").touch()
        assert running.wait().status == 0


@every(SUPERVISED, QUICK)
def test_no_restart_after_success_or_a_stop(ground: Ground, variant: Variant, notes: Path) -> None:
    ask = "append /notes/starts x + exit 0"
    assert ground.run(variant, ask, "--restart=on-failure", pod=noting(notes)).status == 0
    assert (notes / "starts").read_text() == "x"
    ask = "append /notes/always x + say up + sleep"
    with ground.running(variant, ground.app(ask, "--restart=always"), pod=noting(notes)) as running:
        assert running.line() == "up"
        ground.rkpy.ok("stop", running.uuid)
        running.wait()
    assert (notes / "always").read_text() == "x"


@everybody(SUPERVISED, QUICK)
def test_restart_always(ground: Ground, variant: Variant, notes: Path) -> None:
    ask = "append /notes/starts x + exit 0"
    with ground.running(variant, ground.app(ask, "--restart=always"), pod=noting(notes)) as running:
        until(lambda: (notes / "starts").exists() and len((notes / "starts").read_text()) > 2)
        ground.rkpy.ok("stop", running.uuid)
        running.wait()


# --- handlers


def handlers(**commands: str) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", "-"), "exec": ["/bin/inspect", *ask.split(" ")]} for name, ask in commands.items()
    ]


@everybody(SUPERVISED, QUICK)
def test_handlers_run_around_the_app(ground: Ground, variant: Variant, notes: Path) -> None:
    image = ground.image(
        user="web",
        group="web",
        eventHandlers=handlers(
            pre_start="append /notes/log pre + write /made-before x", post_stop="append /notes/log post"
        ),
    )
    (notes / "log").touch()
    (notes / "log").chmod(0o666)
    ask = "stat /made-before + append /notes/log app + exit 4"
    result = ground.run(variant, ask, image=image, pod=noting(notes))
    assert (result.status, result.lines) == (4, ["file 0644 0 0"]), result
    assert (notes / "log").read_text() == "preapppost"


@every(SUPERVISED, QUICK)
def test_what_a_handler_says_afterwards_is_kept(ground: Ground, variant: Variant) -> None:
    image = ground.image(eventHandlers=handlers(pre_start="say first", post_stop="say last"))
    assert ground.run(variant, "say app", image=image).lines == ["first", "app", "last"]


@every(SUPERVISED, QUICK)
def test_the_app_does_not_start_when_its_handler_fails(ground: Ground, variant: Variant, notes: Path) -> None:
    image = ground.image(
        eventHandlers=handlers(pre_start="say-error trouble + exit 9", post_stop="append /notes/log post")
    )
    result = ground.run(variant, "append /notes/log app", image=image, pod=noting(notes))
    assert result.status not in (0, 4), result
    assert "trouble" in result.err and "pre-start" in result.err, result
    assert not (notes / "log").exists() or "app" not in (notes / "log").read_text()


# --- stopping


@everybody(SUPERVISED, QUICK)
def test_stop_asks_by_signal(ground: Ground, variant: Variant) -> None:
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        ground.rkpy.ok("stop", running.uuid)
        running.wait()
        is_over(ground, running.uuid)
        assert recorded(ground, running.uuid) == {"app": 128 + signal.SIGTERM}


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize(("flag", "number"), [("SIGUSR1", 10), ("INT", 2), ("9", 9)])
def test_stop_asks_by_the_apps_own_signal(ground: Ground, variant: Variant, flag: str, number: int) -> None:
    with ground.running(variant, ground.app("say up + sleep", f"--stop-signal={flag}")) as running:
        assert running.line() == "up"
        ground.rkpy.ok("stop", running.uuid)
        running.wait()
        is_over(ground, running.uuid)
        assert recorded(ground, running.uuid) == {"app": 128 + number}


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize("deaf", ["ignore-term + say up + sleep", "say up + stop"])
def test_who_does_not_listen_is_killed(ground: Ground, variant: Variant, deaf: str) -> None:
    """One that ignores SIGTERM, and one that is stopped and cannot even look."""
    with ground.running(variant, ground.app(deaf), pod=("--stop-timeout=1s",)) as running:
        assert running.line() == "up"
        ground.rkpy.ok("stop", running.uuid)
        running.wait()
        is_over(ground, running.uuid)
        status = recorded(ground, running.uuid)["app"]
        assert status in (128 + signal.SIGKILL, 128 + signal.SIGTERM)
        assert "ignore" not in deaf or status == 128 + signal.SIGKILL


@everybody(SUPERVISED, QUICK)
def test_a_signal_to_the_command_stops_the_pod(ground: Ground, variant: Variant) -> None:
    """As a service manager does it, or ^C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with ground.running(variant, ground.app("say up + sleep")) as running:
            assert running.line() == "up"
            running.process.send_signal(number)
            running.wait()
            is_over(ground, running.uuid)


@everybody(SUPERVISED, QUICK)
def test_stop_by_force(ground: Ground, variant: Variant) -> None:
    ask = "ignore-term + hold + daemon + say up + sleep"
    with ground.running(variant, ground.app(ask), pod=("--stop-timeout=1000s",)) as running:
        assert running.line() == "up"
        ground.rkpy.ok("stop", "--force", running.uuid)
        running.wait()
        is_over(ground, running.uuid)


@everybody(SUPERVISED, QUICK)
def test_nothing_outlives_the_monitor(ground: Ground, variant: Variant) -> None:
    """kill -9 of the command: the pod ends with it, and gc removes what is left."""
    with ground.running(variant, ground.app("ignore-term + daemon + hold + say up + sleep")) as running:
        assert running.line() == "up"
        uuid = running.uuid
        running.process.kill()
        # The write ends of its pipes are the processes' of the pod: end of file says that the last one is gone.
        running.process.communicate(timeout=DEADLINE)
        is_over(ground, uuid)
    until(lambda: not _processes_naming(uuid), lambda: _processes_naming(uuid))
    ground.rkpy.ok("gc", "--grace-period=0s")
    assert uuid not in [path.name for path in ground.rkpy.pods()]


def _processes_naming(uuid: str) -> list[str]:
    """PIDs of processes with a mount of this pod, in whatever namespace, or its name in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            texts = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "mountinfo")]
            if any(uuid.encode() in text for text in texts) and int(pid) != os.getpid():
                found.append(pid)
    return found


# --- processes


@every(SUPERVISED, QUICK)
def test_orphans_are_reaped(ground: Ground, variant: Variant) -> None:
    with ground.running(variant, ground.app("zombies 5 + say up + sleep")) as running:
        assert running.line() == "up"

        def states() -> list[str]:
            lines = ground.rkpy.ok("enter", running.uuid, "/bin/inspect", "ps").splitlines()
            return [line.split()[2] for line in lines]

        until(lambda: "Z" not in states(), states)


@every(SUPERVISED, QUICK)
def test_the_pod_ends_with_its_app_whoever_is_left(ground: Ground, variant: Variant) -> None:
    """A daemon, and a child that keeps the app's output open."""
    result = ground.run(variant, "daemon + hold + say done + exit 3")
    assert (result.status, result.lines) == (3, ["done"]), result


# --- output


@every(SUPERVISED, QUICK)
def test_streams_go_where_they_belong(ground: Ground, variant: Variant) -> None:
    result = ground.run(variant, "say out + say-error err + bytes 5")
    assert (result.out, result.err) == ("out\nxxxxx", "err\n"), result


@every(SUPERVISED, QUICK)
def test_much_output_arrives_whole(ground: Ground, variant: Variant) -> None:
    result = ground.run(variant, "lines 50000 out + error-lines 50000 err")
    assert result.lines == [f"out {number}" for number in range(50000)]
    assert result.err.splitlines() == [f"err {number}" for number in range(50000)]


@every(SUPERVISED, QUICK)
def test_an_app_does_not_die_of_a_reader_that_left(ground: Ground, variant: Variant, notes: Path) -> None:
    ask = "say first + wait-for /notes/go + lines 20000 more + append /notes/end x + exit 7"
    with ground.running(variant, ground.app(ask), pod=noting(notes)) as running:
        assert running.line() == "first"
        for stream in (running.process.stdout, running.process.stderr):
            assert stream is not None
            stream.close()
        (notes / "go").touch()
        assert shell_status(running.process.wait(timeout=DEADLINE)) == 7
        assert (notes / "end").read_text() == "x"
        log = ground.rkpy.ok("logs", running.uuid)
        assert "more 19999" in log
        running.process.stdout = running.process.stderr = None


@every(SUPERVISED, QUICK)
def test_logs_stay_after_the_end(ground: Ground, variant: Variant) -> None:
    assert ground.run(variant, "say remember + say-error me").status == 0
    log = ground.rkpy.ok("logs", newest(ground))
    assert "remember" in log and "me" in log


@every(SUPERVISED, QUICK)
def test_streams_that_lead_nowhere(ground: Ground, variant: Variant) -> None:
    result = ground.run(variant, "say lost + say-error seen", "--stdout=null")
    assert (result.out, result.err) == ("", "seen\n"), result
    assert "lost" not in ground.rkpy.ok("logs", newest(ground))


@every(SUPERVISED, QUICK)
def test_input_is_nobodys(ground: Ground, variant: Variant) -> None:
    command = ground.rkpy.command(*ground.words(variant), *ground.app("device /dev/stdin + echo + say end"))
    done = subprocess.run(
        command, input="the caller's\n", capture_output=True, text=True, check=True, env=ground.rkpy.environment()
    )
    assert done.stdout.splitlines() == ["character 1:3", "end"], done


# --- terminals


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, ground: Ground, words: list[object], size: tuple[int, int] = (33, 77)) -> None:
        # Not the first one, so that it has another name than the first of a pod.
        spare = pty.openpty()
        self.master, self.slave = pty.openpty()
        for fd in spare:
            os.close(fd)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self._text = b""
        self.process = subprocess.Popen(
            ground.rkpy.command(*words), stdin=self.slave, stdout=self.slave, stderr=self.slave,
            env={**ground.rkpy.environment(), "TERM": "dumb"}, start_new_session=True,
        )  # fmt: skip
        os.set_blocking(self.master, False)

    def read_until(self, text: str) -> str:
        until(lambda: text.encode() in self._read(), lambda: self._text)
        return self._text.decode()

    def _read(self) -> bytes:
        with contextlib.suppress(BlockingIOError, OSError):
            self._text += os.read(self.master, 65536)
        return self._text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        def ended() -> bool:
            self._read()
            return self.process.poll() is not None

        until(ended, lambda: self._text)
        return shell_status(self.process.returncode)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@everybody(TERMINAL, QUICK)
def test_interactive_gives_a_terminal_of_its_own(ground: Ground, variant: Variant, terminals: list[Terminal]) -> None:
    app = ground.app("tty + fdlinks + echo + say end + exit 6")
    terminals.append(terminal := Terminal(ground, [*ground.words(variant, "--interactive"), *app]))
    text = terminal.read_until("/dev/tty: ok")
    assert all(f"{number} tty 33x77" in text for number in range(3)), text
    terminal.type("typed\n\x04")
    assert terminal.end() == 6
    text = terminal.read_until("end")
    assert text.count("typed") == 2, text  # once by the terminal's echo, once by the app
    assert termios.tcgetattr(terminal.slave) == terminal.before


@every(TERMINAL, QUICK)
def test_keys_become_signals_in_the_pod(ground: Ground, variant: Variant, terminals: list[Terminal]) -> None:
    app = ground.app("say up + sleep")
    terminals.append(terminal := Terminal(ground, [*ground.words(variant, "--interactive"), *app]))
    terminal.read_until("up")
    terminal.type("\x03")
    assert terminal.end() == 128 + signal.SIGINT
    assert termios.tcgetattr(terminal.slave) == terminal.before


@every(TERMINAL, QUICK)
def test_the_terminals_size_follows(ground: Ground, variant: Variant, terminals: list[Terminal], notes: Path) -> None:
    app = ground.app("say up + wait-for /notes/go + tty")
    words = [*ground.words(variant, "--interactive", *noting(notes)), *app]
    terminals.append(terminal := Terminal(ground, words))
    terminal.read_until("up")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
    os.kill(terminal.process.pid, signal.SIGWINCH)
    # What it prints when it may go on is to be told to it first.
    place = ground.place(newest(ground))
    until(lambda: poddir.read_started(place, "app"))
    pid, _ = poddir.read_started(place, "app") or (0, 0)
    stdin = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    until(lambda: os.get_terminal_size(stdin) == (22, 11))
    os.close(stdin)
    (notes / "go").touch()
    terminal.read_until("11x22")
    assert terminal.end() == 0


@every(TERMINAL, QUICK)
def test_interactive_without_a_terminal(ground: Ground, variant: Variant) -> None:
    """The caller's streams are the app's, so that it can stand in a pipeline."""
    command = ground.rkpy.command(*ground.words(variant, "--interactive"), *ground.app("echo + exit 3"))
    done = subprocess.run(
        command, input="x" * 200_000, capture_output=True, text=True, check=False, timeout=60,
        env=ground.rkpy.environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "x" * 200_000), done.stderr


# --- enter


@pytest.fixture
def entered(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A running pod of one app with an identity, a directory and a variable."""
    image = ground.image(
        user="web", group="web", workingDirectory="/srv/www", environment=[{"name": "X", "value": "y"}]
    )
    app = ground.app("say up + sleep", "--caps-remove=CAP_NET_RAW", image=image)
    with ground.running(request.getfixturevalue("variant"), app) as running:
        assert running.line() == "up"
        yield running


@everybody(QUICK)
def test_a_running_pod_can_be_entered(ground: Ground, variant: Variant) -> None:
    image = ground.image(user="web", group="web", workingDirectory="/srv/www")
    with ground.running(variant, ground.app("say up + sleep", image=image)) as running:
        assert running.line() == "up"
        lines = ground.rkpy.ok("enter", running.uuid, "inspect", "id", "+", "cwd").splitlines()
        assert lines == ["uid 33 33 33", "gid 34 34 34", "groups", "/srv/www"]
        done = ground.rkpy("enter", running.uuid, "inspect", "exit", "9")
        assert done.status == 9
        assert ground.rkpy("enter", running.uuid, "nowhere").status == 127


@everybody(NAMESPACES, QUICK)
def test_enter_is_as_restricted_as_the_app(ground: Ground, variant: Variant, entered: Running) -> None:
    ask = "caps + nnp + seccomp + ns + signals + umask + hostname + limits nofile"
    app = Path(f"/proc/{_app_pid(ground, entered)}")
    lines = ground.rkpy.ok("enter", entered.uuid, "/bin/inspect", *ask.split(" ")).splitlines()
    status = [
        line for line in (app / "status").read_text().splitlines() if line.startswith(("Cap", "NoNew", "Seccomp:"))
    ]
    assert sorted(lines[:7]) == sorted(status)
    assert lines[7:15] == [os.readlink(app / "ns" / line.partition(":")[0]) for line in lines[7:15]]
    assert lines[15:18] == ["SigBlk:\t" + "0" * 16, "SigIgn:\t" + "0" * 16, "0022"]
    own = ground.rkpy.ok("enter", entered.uuid, "/bin/inspect", "fds").splitlines()
    assert [line.split()[0] for line in own] == ["0", "1", "2"]


def _app_pid(ground: Ground, running: Running) -> int:
    """The inspector of this pod: the process below its leader that runs it."""
    leader = int(ground.status(running.uuid)["pid"])
    pending, found = [leader], []
    while pending:
        pid = pending.pop()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pending += map(int, children)
        if b"/bin/inspect\0say" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    assert len(found) == 1, found
    return found[0]


@everybody(NAMESPACES, QUICK)
def test_enter_as_somebody_else(ground: Ground, variant: Variant, entered: Running) -> None:
    def enter(*words: str) -> list[str]:
        return ground.rkpy.ok("enter", *words).splitlines()

    assert enter("--user=root", entered.uuid, "/bin/inspect", "id")[:1] == ["uid 0 0 0"]
    assert enter("--user=77:staff", entered.uuid, "/bin/inspect", "id")[:2] == ["uid 77 77 77", "gid 50 50 50"]
    assert enter("--cwd=/etc", entered.uuid, "/bin/inspect", "cwd") == ["/etc"]
    done = ground.rkpy("enter", "--user=nobody-here", entered.uuid, "/bin/inspect", "id")
    assert (done.status, done.out) == (254, "")
    done = ground.rkpy("enter", "--cwd=/none", entered.uuid, "/bin/inspect", "id")
    assert (done.status, done.out) == (254, "")


@everybody(NAMESPACES, QUICK)
def test_privileged_enter(ground: Ground, variant: Variant, entered: Running) -> None:
    """As root with every capability, but still inside."""
    lines = ground.rkpy.ok(
        "enter", "--privileged", entered.uuid, "/bin/inspect", "id", "+", "seccomp", "+", "ns", "+", "caps"
    )
    found = lines.splitlines()
    assert found[0] == "uid 0 0 0" and "Seccomp:\t0" in found
    app = Path(f"/proc/{_app_pid(ground, entered)}/ns")
    assert {os.readlink(app / name) for name in ("mnt", "pid", "net", "uts")} <= set(found)
    bounding = next(line for line in found if line.startswith("CapBnd"))
    assert int(bounding.split()[1], 16) & 1 << 21, "no CAP_SYS_ADMIN"


@everybody(NAMESPACES, QUICK)
def test_enter_streams_and_signals(ground: Ground, variant: Variant, entered: Running) -> None:
    command = ground.rkpy.command("enter", entered.uuid, "/bin/inspect", "echo", "+", "say-error", "err")
    done = subprocess.run(
        command, input="through\n", capture_output=True, text=True, check=True, env=ground.rkpy.environment()
    )
    assert (done.stdout, done.stderr) == ("through\n", "err\n")
    assert shell_status(ground.rkpy("enter", entered.uuid, "/bin/inspect", "signal", "9").status) == 128 + 9


# --- prepared pods and many of them


@everybody(QUICK)
def test_prepare_and_run(ground: Ground, variant: Variant) -> None:
    stage1 = [word for word in variant.words if not word.startswith("--net")]
    net = [word for word in variant.words if word.startswith("--net")]
    app = ground.app("say prepared + exit 5")
    uuid = ground.rkpy.ok("--insecure-options=image", "prepare", *stage1, *app).strip()
    done = ground.rkpy("run-prepared", *net, uuid)
    assert (shell_status(done.status), done.out) == (5, "prepared\n"), done
    assert ground.rkpy("run-prepared", *net, uuid).status == 254


@every(QUICK)
def test_many_pods_at_once(ground: Ground, variant: Variant) -> None:
    app = ground.app("say up + sleep 1 + exit 2")
    started = [ground.rkpy.start(*ground.words(variant), *app) for _ in range(20)]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [2] * 20, results
    assert {out for out, _ in results} == {"up\n"}


@everybody(SUPERVISED, QUICK)
def test_what_is_recorded(ground: Ground, variant: Variant) -> None:
    with ground.running(variant, ground.app("say up + sleep"), pod=("--pod-name=known",)) as running:
        assert running.line() == "up"
        uuid = running.uuid
        status = ground.status(uuid)
        assert status["state"] == "running" and int(status["pid"]) > 1
        assert ground.rkpy.ok("status", "known").splitlines()[0] == "state=running"
        ground.rkpy.ok("stop", "known")
        running.wait()
    until(lambda: ground.state(uuid) == "exited")
    found = json.loads(ground.rkpy.ok("status", "--format=json", uuid))
    assert found["apps"][0]["exit_code"] == 128 + signal.SIGTERM
    assert FLY not in variant.claims
