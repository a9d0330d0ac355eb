"""Virtual machines that fail, and what is said of it: one line, a status, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from stage1 import control, poddir
from stage1.poddir import Ending
from stage1.vm import console, programs
from tests import images
from tests.host import flavours
from tests.host.commands import ROOT
from tests.host.flavours import KVM, Ground, Result, Running, Variant, shell_status, until

HUNG = "--kvm-params=mem=16M panic=0"
"""A guest that never gets anywhere: it has not enough memory, not even to say so."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("kvm"), inspector) as made:
        yield made


def children(pid: int) -> dict[str, int]:
    """Of a monitor: its machine's processes by name."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # It may have ended meanwhile.
            found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
    return found


def are_gone(pids: Iterable[int]) -> bool:
    """The session adopts what loses its parent, and has to collect it: QEMU, as PID 1 of a namespace, is not gone
    before all others in there are."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def in_machine(running: Running) -> list[int]:
    """Every process that is the pod's machine, once QEMU and virtiofsd are there."""
    monitor = running.process.pid
    until(lambda: {"qemu-system-x86", "virtiofsd"} <= {*children(monitor)})
    return list(children(monitor).values())


def one_line(result: Result, *parts: str, status: int = 254) -> None:
    """What a failure looks like to whoever runs the command."""
    assert result.status == status, result
    assert result.err.startswith("rkpy: run: ") and result.err.count("\n") == 1, result
    assert all(part in result.err for part in parts), result


def elsewhere(ground: Ground, prepare: str, *words: object) -> Result:
    """`rkpy run` in a mount namespace in which the shell commands `prepare` were run."""
    command = ground.rkpy.command(*ground.words(KVM), *words)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{prepare}; exec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment(), check=False,
    )  # fmt: skip
    return Result(shell_status(done.returncode), done.stdout, done.stderr)


# --- what is missing


WITHOUT_KVM = """
place=$(mktemp -d); mount -t tmpfs none $place
for name in null zero urandom; do touch $place/$name; mount --bind /dev/$name $place/$name; done
mount --move $place /dev; rmdir $place"""


def test_nobody_gets_emulation_without_asking(ground: Ground) -> None:
    before = ground.rkpy.pods()
    result = elsewhere(ground, WITHOUT_KVM, "--kvm-accel=auto", ground.image())
    one_line(result, "KVM does not work here: open /dev/kvm: no such file or directory", "--kvm-accel=tcg")
    assert ground.rkpy.pods() == before


@pytest.mark.parametrize(
    ("find", "hint"),
    [(programs.qemu, "install qemu-system-x86"), (programs.virtiofsd, "install virtiofsd")],
    ids=["qemu", "virtiofsd"],
)
def test_what_is_not_installed(ground: Ground, find: Callable[[], str], hint: str) -> None:
    empty = ground.new("empty") / "empty"
    empty.touch(0o644)
    result = elsewhere(ground, f"mount --bind {empty} {find()}", ground.image())
    one_line(result, "which is not installed", hint)


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        ("/etc/passwd", "it is no bzImage"),
        ("/nope", "no such file or directory"),
        ("9.9", 'no kernel of version "9.9"'),
    ],
)
def test_what_is_no_kernel(ground: Ground, kernel: str, line: str) -> None:
    result = ground.run(KVM, "say up", pod=[f"--kvm-kernel={kernel}"])
    one_line(result, line, "--kvm-kernel")


def test_no_room_for_what_it_boots_from(tmp_path: Path, inspector: str) -> None:
    with flavours.small_disk(tmp_path / "disk", 6) as disk, flavours.ground(disk / "ground", inspector) as ground:
        result = ground.pod(KVM, ground.app("say up"))
        one_line(result, "cannot keep what virtual machines boot from", "no space left on device")


def test_no_memory_for_the_guest(ground: Ground) -> None:
    limit = 400 << 20
    command = ground.rkpy.command(*ground.words(KVM), *ground.app("say up"))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment(), check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    one_line(Result(done.returncode, done.stdout, done.stderr), "QEMU has ended with status 1: ", "allocate memory")


# --- guests that do not come up


def test_a_kernel_without_a_first_process(ground: Ground) -> None:
    file = ground.new("uuid") / "uuid"
    result = ground.run(KVM, "say up", pod=["--kvm-params=rdinit=/nope", f"--uuid-file-save={file}"])
    one_line(result, "the virtual machine has switched itself off", "Kernel panic")
    uuid = file.read_text().strip()
    assert poddir.read_ending(ground.place(uuid), "app") == Ending(254)
    assert "Kernel panic" in ground.rkpy.ok("logs", "--console", uuid)
    assert ground.rkpy.ok("logs", "--console", "--tail=1", uuid).count("\n") == 1
    assert not os.path.exists(f"{ground.place(uuid)}/{poddir.CONTROL}")


IN_A_SECOND = (
    "import sys; sys.argv[0] = 'rkpy'; import stage1.kvm as kvm, rkpy;"
    "kvm._BOOT_TIMEOUT = dict.fromkeys(kvm._BOOT_TIMEOUT, 1); rkpy.main()"
)


def test_a_guest_that_does_not_come_up(ground: Ground) -> None:
    words = ground.rkpy.command(*ground.words(KVM, HUNG), *ground.app("say up"))[3:]
    done = subprocess.run(
        [sys.executable, "-P", "-c", IN_A_SECOND, *words],
        capture_output=True, text=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment(), cwd=ROOT, check=False,
    )  # fmt: skip
    one_line(Result(done.returncode, done.stdout, done.stderr), "the virtual machine was not up after 1 s")


def test_asked_to_end_while_it_boots(ground: Ground) -> None:
    def stop(number: int) -> Callable[[Running], object]:
        return lambda running: running.process.send_signal(number)

    ways: Sequence[tuple[Callable[[Running], object], int]] = (
        (stop(signal.SIGTERM), 143),
        (stop(signal.SIGINT), 130),
        (lambda running: ground.rkpy.ok("stop", running.uuid), 143),
        (lambda running: ground.rkpy.ok("stop", "--force", running.uuid), 137),
    )
    for ask, status in ways:
        with ground.running(KVM, ground.app("say up"), pod=[HUNG]) as running:
            machine = in_machine(running)
            until(lambda uuid=running.uuid: poddir.read_leader(ground.place(uuid)))  # type: ignore[misc]
            ask(running)
            result = running.wait()
            assert (result.status, result.out, result.err) == (status, "", ""), result
            # By the kernel, which takes its time, where --force did not find the monitor listening yet.
            until(lambda machine=machine: are_gone(machine))  # type: ignore[misc]


# --- machines that go down


def sleeping(ground: Ground) -> list[str]:
    return ground.app("say up + sleep")


@pytest.mark.parametrize(
    ("name", "line"),
    [("qemu-system-x86", "QEMU was killed by signal 9"), ("virtiofsd", "virtiofsd has ended, which")],
    ids=["qemu", "virtiofsd"],
)
def test_a_part_of_it_is_killed(ground: Ground, name: str, line: str) -> None:
    with ground.running(KVM, sleeping(ground)) as running:
        assert running.line() == "up"
        uuid, machine = running.uuid, in_machine(running)
        os.kill(children(running.process.pid)[name], signal.SIGKILL)
        one_line(running.wait(), line)
        assert are_gone(machine)
    assert poddir.read_ending(ground.place(uuid), "app") == Ending(137, signal=9)
    assert ground.rkpy.ok("logs", uuid) == "up\n"
    assert ground.status(uuid)["state"] == "exited"


FILL = """
dd if=/dev/zero of=/fat bs=65536 2>&1 | grep 'No space left on device'
until test -e /go; do sleep 0.1; done
echo room
exit 3
"""


def test_a_guest_that_fills_the_disk_harms_only_itself(tmp_path: Path, inspector: str) -> None:
    with flavours.small_disk(tmp_path / "disk", 160) as disk, flavours.ground(disk / "ground", inspector) as ground:
        image = ground.image({**images.busybox_files(), "bin/dd": "->busybox", "bin/grep": "->busybox"})
        with ground.running(KVM, [image, "--name=app", "--exec=/bin/sh", "--", "-c", FILL]) as running:
            assert "No space left on device" in running.line()
            uuid = running.uuid
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                (disk / "more").write_bytes(bytes(1 << 20))
            assert ground.status(uuid)["state"] == "running"
            ground.rkpy.ok("enter", uuid, "/bin/busybox", "rm", "/fat")
            # virtiofsd has it open until the guest's kernel says that it knows it no more.
            until(lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 1 << 20)
            ground.rkpy.ok("enter", uuid, "/bin/touch", "/go")
            assert running.line() == "room"
            result = running.wait()
        assert (result.status, result.err) == (3, "")
        assert poddir.read_ending(ground.place(uuid), "app") == Ending(3)
        logs = ground.rkpy("logs", uuid)
        # The first line, or on the other stream that there was no room for it.
        assert logs.out.endswith("room\n"), logs
        assert (logs.out + logs.err).count("o space left on device\n") == 1, logs


def test_the_monitor_is_killed(ground: Ground) -> None:
    with ground.running(KVM, sleeping(ground)) as running:
        assert running.line() == "up"
        uuid, machine = running.uuid, in_machine(running)
        running.process.kill()
        until(lambda: are_gone(machine))
        running.wait()
    assert ground.status(uuid)["state"] == "exited"
    ground.rkpy.ok("gc", "--grace-period=0s")
    assert not os.path.exists(ground.place(uuid))


def test_killed_while_it_boots(ground: Ground) -> None:
    """Whichever of its processes are killed, the others end, and `rkpy gc` (the fixture's) can clear up."""
    for chosen in (slice(3), slice(1), slice(1, 3), slice(2)):
        with ground.running(KVM, sleeping(ground), pod=[HUNG]) as running:
            machine = in_machine(running)
            _kill([running.process.pid, *machine][chosen])
            running.wait()
            until(lambda: are_gone(machine))  # noqa: B023


def _kill(pids: Iterable[int]) -> None:
    """All of them, and nobody else: some end, and are collected, because others were killed."""
    opened = [os.pidfd_open(pid) for pid in pids]
    for pidfd in opened:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


FLOOD_AND_PANIC = """
mount -t devtmpfs none /tmp
(while :; do echo flood; printf '\\033[31mred\\n'; done) >/tmp/ttyS0 &
head -c 300000 /dev/zero | tr '\\000' x
echo
echo flooded
read line
echo c >/proc/sysrq-trigger
sleep 1000
"""


def test_a_guest_that_floods_its_console_and_panics(ground: Ground) -> None:
    files = images.busybox_files()
    more = {f"bin/{name}": "->busybox" for name in ("head", "tr", "printf")}
    image = ground.image({**files, **more}, exec=["/bin/sh", "-c", FLOOD_AND_PANIC])
    words = ["--insecure-options=image,paths,seccomp", "run", *KVM.words]
    app = [image, "--name=app", "--caps-retain=CAP_SYS_ADMIN,CAP_DAC_OVERRIDE", "--stdin=stream"]
    with ground.running_command(words, app) as running:
        assert running.line() == "x" * 300000
        assert running.line() == "flooded"
        uuid = running.uuid
        log = f"{ground.place(uuid)}/{console.NAME}"
        written: set[bytes] = set()

        def is_rotated() -> bool:
            """Seen with different content when it was as full as it gets."""
            data = Path(log).read_bytes()
            assert len(data) <= console.LIMIT
            if len(data) > console.LIMIT // 2:
                written.add(data[:64] + data[-4096:])
            return len(written) > 2

        until(is_rotated)
        assert control.request(ground.place(uuid), {"op": "states"}) == {"states": {"app": "running"}}
        shown = ground.rkpy.ok("logs", "--console", "--tail=50", uuid)
        assert "\x1b" not in shown
        assert "\\x1b[31mred" in shown
        subprocess.run(
            ground.rkpy.command("attach", "--mode=stdin", uuid),
            input="\n", text=True, check=False, timeout=flavours.DEADLINE, env=ground.rkpy.environment(),
        )  # fmt: skip
        result = running.wait()
    one_line(result, "the virtual machine has switched itself off", "Kernel panic - not syncing: sysrq triggered crash")
    assert poddir.read_ending(ground.place(uuid), "app") == Ending(137, signal=9)


def test_only_machines_have_a_console(ground: Ground) -> None:
    file = ground.new("uuid") / "uuid"
    nspawn = Variant("nspawn", ("--stage1=nspawn", "--net=none"), frozenset())
    ground.ask(nspawn, "say up", pod=[f"--uuid-file-save={file}"])
    assert "has no console" in ground.rkpy.refused("logs", "--console", file.read_text().strip())
    assert "goes with --tail only" in ground.rkpy.refused("logs", "--console", "--follow", file.read_text().strip())
