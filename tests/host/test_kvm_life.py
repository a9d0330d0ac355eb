"""The life of a pod in a virtual machine, as whoever uses it sees it: it is that of any other pod. What all flavours
have in common is tested for kvm by the tables of `flavours`; here is what lies between the guest and the caller."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stage1 import poddir
from stage1.poddir import Ending
from stage1.vm import acceleration, initramfs, kernel
from stage1.vm.guestmodules import NETWORK
from tests import images
from tests.host import flavours
from tests.host.flavours import KVM, Ground, Running, shell_status, until

MORE = ("grep", "mkfifo", "stty", "tty", "dd", "ps", "free", "sed", "wc", "md5sum")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("kvm"), inspector) as made:
        yield made


def image_of(ground: Ground) -> str:
    """With busybox and the inspector."""
    more = {f"bin/{name}": "->busybox" for name in MORE}
    return ground.image({**images.busybox_files(), **more, "bin/plain": "no program", "vol/": ""})


def shell(ground: Ground, script: str, *flags: str) -> list[str]:
    """The words for an app that is a shell script."""
    return [image_of(ground), "--exec=/bin/sh", *flags, "--", "-c", script]


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, ground: Ground, *words: object, rows: int, columns: int) -> None:
        self.master, self._slave = pty.openpty()
        self._resize(rows, columns)
        self._modes = termios.tcgetattr(self._slave)
        self._said = b""
        self.process = subprocess.Popen(
            ground.rkpy.command(*words), stdin=self._slave, stdout=self._slave, stderr=self._slave,
            env=ground.rkpy.environment(), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def _resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._resize(rows, columns)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """What comes until `text` does."""
        end = time.monotonic() + flavours.DEADLINE
        while text.encode() not in self._said:
            assert time.monotonic() < end, (text, self._said)
            if select.select([self.master], [], [], 0.1)[0]:
                self._said += os.read(self.master, 65536)
        before, _, self._said = self._said.partition(text.encode())
        return before.decode()

    def ask(self, command: str, wanted: str) -> None:
        """Type a command until its output is `wanted`: what was done before may take a while to arrive."""
        end = time.monotonic() + flavours.DEADLINE
        while True:
            self.type(f"echo be''gin; {command}; echo e''nd\n")
            self.expect("begin\r\n")
            said = self.expect("end\r\n")
            if said == f"{wanted}\r\n":
                return
            assert time.monotonic() < end, said

    def interrupt(self) -> None:
        """^C ends what runs in the foreground. Again until it does: between two commands it is the shell's."""
        self.type("echo sle''eping; sleep 1000\n")
        self.expect("sleeping\r\n")
        end = time.monotonic() + flavours.DEADLINE
        while b"status 130\r\n" not in self._said:
            assert time.monotonic() < end, self._said
            self.type("\x03")
            self.type("echo sta''tus $?\n")
            if select.select([self.master], [], [], 1)[0]:
                self._said += os.read(self.master, 65536)
        self.expect("status 130\r\n")

    def wait(self) -> int:
        """The status; what was still said is read, and the terminal has to be as it was."""
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.05)[0]:
                self._said += os.read(self.master, 65536)
        assert termios.tcgetattr(self._slave) == self._modes
        return shell_status(self.process.returncode)


@contextlib.contextmanager
def terminal(ground: Ground, *words: object, rows: int = 20, columns: int = 60) -> Iterator[Terminal]:
    made = Terminal(ground, *words, rows=rows, columns=columns)
    try:
        yield made
    finally:
        made.close()


# --- beside the apps of one pod


ECHO = """
trap 'echo usr1' USR1
trap 'echo term; exit 9' TERM
echo up
while read -r line; do echo "got $line"; done
echo end
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def volume(ground: Ground) -> Path:
    made = ground.new("volume")
    (made / "below").mkdir()
    (made / "file").write_text("of the host\n")
    return made


@pytest.fixture(scope="module")
def pod(ground: Ground, volume: Path) -> Iterator[Running]:
    """One app with streams, one with a terminal."""
    pod = (
        "--hostname=box", "--dns=9.9.9.9", "--hosts-entry=1.2.3.4=far", "--set-credential=secret:word",
        f"--volume=host,kind=host,source={volume}", "--exit-policy=until-all",
    )  # fmt: skip
    streams = shell(
        ground, ECHO, "--name=streams", "--stdin=stream", "--memory=64M", "--user=1000", "--group=1000",
        "--mount=volume=host,target=/vol",
    )  # fmt: skip
    typed = [image_of(ground), "--name=typed", "--exec=/bin/sh", "--stdin=tty", "--stdout=tty", "--stderr=tty"]
    with ground.running(KVM, streams, typed, pod=pod) as running:
        uuid = running.uuid
        ground.rkpy.ok("status", "--wait-ready=300s", uuid)
        yield running


Answer = tuple[int, str, str]


def enter(
    ground: Ground, pod: Running, command: Sequence[str], *flags: str, app: str = "streams", said: str = ""
) -> Answer:
    """`rkpy enter`, with `said` for its input: status, output, errors."""
    words = ground.rkpy.command("enter", f"--app={app}", *flags, pod.uuid, *command)
    done = subprocess.run(
        words, input=said, capture_output=True, text=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment()
    )
    return done.returncode, done.stdout, done.stderr


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_how_a_command_ends_is_told(ground: Ground, pod: Running) -> None:
    assert enter(ground, pod, sh("echo out; echo err >&2; exit 5")) == (5, "out\n", "err\n")
    assert enter(ground, pod, sh("kill -9 $$")) == (137, "", "")
    assert enter(ground, pod, ["/nope"]) == (127, "", 'rkpy: enter: program "/nope" not found\n')
    assert enter(ground, pod, ["/etc/passwd"])[0] == 126
    assert enter(ground, pod, ["/bin/cat"], said="there and back\n") == (0, "there and back\n", "")


def test_a_command_is_who_the_app_is_or_who_it_was_told_to_be(ground: Ground, pod: Running) -> None:
    ask = sh("id -u; pwd; grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status")
    all_of_apps = "00000000a80425fb"
    assert enter(ground, pod, ask)[1].split() == [
        "1000", "/", "CapEff:", "0" * 16, "CapBnd:", all_of_apps, "Seccomp:", "2",
    ]  # fmt: skip
    assert enter(ground, pod, ask, "--user=0", "--cwd=/tmp")[1].split()[:4] == ["0", "/tmp", "CapEff:", all_of_apps]
    uid, _, _, effective, _, bounding, _, filtered = enter(ground, pod, ask, "--privileged")[1].split()
    assert (uid, effective, filtered) == ("0", bounding, "0")
    assert int(effective, 16) & (1 << 21)  # CAP_SYS_ADMIN: of the guest


def test_what_it_is_called_and_told(ground: Ground, pod: Running) -> None:
    asked = sh("cat /proc/sys/kernel/hostname /etc/hostname /etc/resolv.conf; grep far /etc/hosts")
    assert enter(ground, pod, asked)[1].split() == ["box", "box", "nameserver", "9.9.9.9", "1.2.3.4", "far"]
    asked = sh("cd $CREDENTIALS_DIRECTORY; cat secret; stat -c :%a:%u secret")
    assert enter(ground, pod, asked)[1] == "word:400:1000\n"


def test_files_are_those_of_the_host(ground: Ground, pod: Running, volume: Path) -> None:
    """Owners, links, attributes and content, from one side and the other."""
    script = """
        cat /vol/file
        cd /vol/below; umask 027
        echo guest >made; chown 123:456 made; chmod 4751 made; ln made linked; ln -s made symbolic
        mkfifo pipe
        dd if=/dev/urandom of=big bs=65536 count=40 conv=fsync 2>/dev/null
        md5sum big
        echo 'of the guest' >/vol/file
        inspect setxattr made user.mark x
    """
    status, out, err = enter(ground, pod, sh(script), "--privileged")
    assert (status, err) == (0, "")
    below = volume / "below"
    assert out.startswith("of the host\n")
    assert (volume / "file").read_text() == "of the guest\n"
    found = (below / "made").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777, found.st_nlink) == (123, 456, 0o4751, 2)
    assert os.readlink(below / "symbolic") == "made"
    assert (below / "pipe").is_fifo()
    assert hashlib.md5((below / "big").read_bytes()).hexdigest() in out
    assert os.getxattr(below / "made", "user.mark") == b"x"
    # What the host does is seen as well.
    (below / "late").write_text("late\n")
    assert enter(ground, pod, ["/bin/cat", "/vol/below/late"])[1] == "late\n"


def test_a_command_on_a_terminal(ground: Ground, pod: Running) -> None:
    with terminal(ground, "enter", "--app=streams", pod.uuid, "/bin/sh", rows=21, columns=61) as typed:
        typed.ask("stty size", "21 61")
        typed.resize(33, 77)
        typed.ask("stty size", "33 77")
        typed.interrupt()
        typed.type("exit 6\n")
        assert typed.wait() == 6
    with terminal(ground, "enter", "--app=streams", pod.uuid, "/bin/sh") as typed:
        typed.ask("tty | sed s/[0-9]//", "/dev/pts/")
        typed.type("\x1d\x1d\x1d")
        assert typed.wait() == 129


def commands(ground: Ground, pod: Running, text: str) -> int:
    """How many of the guest's processes have `text` in their command lines."""
    return enter(ground, pod, ["/bin/ps"], "--user=0")[1].count(text)


def test_a_command_whose_client_is_gone_is_hung_up(ground: Ground, pod: Running) -> None:
    client = ground.rkpy.start("enter", "--app=streams", pod.uuid, "/bin/sleep", "4711")
    until(lambda: commands(ground, pod, "4711"))
    client.kill()
    client.communicate()
    until(lambda: not commands(ground, pod, "4711"))
    client = ground.rkpy.start("enter", "--app=streams", pod.uuid, "/bin/sleep", "4712")
    until(lambda: commands(ground, pod, "4712"))
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=flavours.DEADLINE)
    assert shell_status(client.returncode) == 143


def test_attaching(ground: Ground, pod: Running) -> None:
    listed = ground.rkpy.ok("attach", "--app=streams", "--mode=list", pod.uuid)
    assert listed.split() == ["stdin", "stdout", "stderr"]
    with terminal(ground, "attach", "--app=typed", "--mode=tty", pod.uuid, rows=22, columns=62) as typed:
        typed.ask("stty size", "22 62")
        typed.type("\x1d\x1d\x1d")
        assert typed.wait() == 0
    subprocess.run(
        ground.rkpy.command("attach", "--app=streams", "--mode=stdin", pod.uuid),
        input="one\ntwo\n", text=True, check=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment(),
    )  # fmt: skip
    until(lambda: "got one\ngot two\nend\n" in ground.rkpy.ok("logs", "--app=streams", pod.uuid))


def test_what_an_administrator_sees(ground: Ground, pod: Running) -> None:
    found = ground.status(pod.uuid)
    assert found["limit-streams-memory"].startswith("enforced: memory.max")
    assert (found["state"], found["pid"]) == ("running", str(pod.process.pid))
    assert (found["hardware-acceleration"], found["hardware-cpus"]) == ("tcg", "1")
    assert int(found["hardware-memory"].removesuffix("Mi")) > 256
    assert enter(ground, pod, ["/bin/cat", "/proc/sys/kernel/osrelease"])[1].strip() == found["hardware-kernel"]
    [listed] = [one for one in json.loads(ground.rkpy.ok("list", "--format=json")) if one["name"] == pod.uuid]
    assert (listed["state"], listed["hardware"]["kernel"]) == ("running", found["hardware-kernel"])


def test_the_kernel_has_its_modules(ground: Ground, pod: Running) -> None:
    """Those too that are loaded when the pod runs already; without a network none for one."""
    wanted = {module.name for module in initramfs.modules(kernel.choose()) if module.among != NETWORK}
    assert wanted

    def loaded() -> set[str]:
        lines = enter(ground, pod, ["/bin/cat", "/proc/modules"])[1].splitlines()
        return {line.split()[0] for line in lines}

    until(lambda: wanted <= loaded())


def test_the_kernel_keeps_nothing_for_tracing(ground: Ground, pod: Running) -> None:
    """Which is 9 MB where it does; of the modules of this host's kernel it is known that they are signed."""
    said = enter(ground, pod, ["/bin/cat", "/proc/cmdline", "/proc/meminfo"])[1]
    assert acceleration.LOCKED in said.split()
    assert int(said.partition("SReclaimable:")[2].split()[0]) < 6 << 10


def test_the_end(ground: Ground, pod: Running) -> None:
    """The last of those that need the pod."""
    ground.rkpy.ok("kill", "--app=streams", "--signal=USR1", pod.uuid)
    until(lambda: "usr1\n" in ground.rkpy.ok("logs", "--app=streams", pod.uuid))
    follower = ground.rkpy.start("logs", "--follow", "--app=streams", pod.uuid)
    ground.rkpy.ok("kill", "--app=typed", "--signal=KILL", pod.uuid)
    ground.rkpy.ok("stop", pod.uuid)
    assert pod.wait().status == 137  # that of the first that failed
    followed = follower.communicate(timeout=flavours.DEADLINE)[0]
    assert followed.splitlines()[-1] == "term"
    assert followed == ground.rkpy.ok("logs", "--app=streams", pod.uuid)
    directory = ground.place(pod.uuid)
    assert poddir.read_ending(directory, "streams") == Ending(9, stopped=True)
    assert poddir.read_ending(directory, "typed") == Ending(137, signal=9)


# --- the caller's streams and terminal


def test_the_callers_terminal(ground: Ground) -> None:
    words = [*ground.words(KVM, "--interactive"), image_of(ground), "--exec=/bin/sh"]
    with terminal(ground, *words, rows=30, columns=100) as typed:
        typed.ask("stty size", "30 100")
        typed.resize(44, 111)
        typed.ask("stty size", "44 111")
        typed.interrupt()
        # Not to the shell, which ignores it when it is interactive.
        typed.type("""exec sh -c 'trap "exit 8" TERM; echo trap""ped; while :; do sleep 0.1; done'\n""")
        typed.expect("trapped\r\n")
        typed.type("\x1d\x1d\x1d")
        assert typed.wait() == 8


def test_the_callers_pipes(ground: Ground) -> None:
    """Nothing is lost on its way there and back, and the end of the input is the end of the app's."""
    data = os.urandom(1 << 20) * 6 + b"rest"
    app = shell(ground, "cat; echo aside >&2; exit 3")
    done = subprocess.run(
        ground.rkpy.command(*ground.words(KVM, "--interactive"), *app),
        input=data, capture_output=True, timeout=flavours.DEADLINE, env=ground.rkpy.environment(), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, b"aside\n")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


# --- pods that run again, and pods that change


def test_what_is_written_is_there_when_it_runs_again(ground: Ground, tmp_path: Path) -> None:
    """Here how many processors an app with a limit of two has."""
    processors = f"{min(2, len(os.sched_getaffinity(0)))}\n"
    file = ground.new("uuid") / "uuid"
    script = "cat /tmp/kept 2>/dev/null; grep -c ^processor /proc/cpuinfo >>/tmp/kept; exit 2"
    app = shell(ground, script, "--cpu=2")
    result = ground.pod(KVM, app, pod=[f"--uuid-file-save={file}"])
    assert (result.status, result.out) == (2, "")
    uuid = file.read_text().strip()
    again = ground.rkpy("start", "--net=none", uuid)
    assert (again.status, again.out) == (2, processors)
    exported = tmp_path / "exported.aci"
    ground.rkpy.ok("export", uuid, exported)
    with tarfile.open(exported) as archive:
        member = archive.extractfile("rootfs/tmp/kept")
        assert member is not None
        assert member.read().decode() == processors * 2


def states(ground: Ground, uuid: str) -> dict[str, str]:
    lines = [line.split() for line in ground.rkpy.ok("app", "list", "--no-legend", uuid).splitlines()]
    return {words[0]: words[1] for words in lines}


def test_a_sandbox(ground: Ground) -> None:
    def app(*words: object) -> str:
        return ground.rkpy.ok("app", words[0], uuid, *words[1:])

    def add(name: str, script: str, *flags: str) -> None:
        app("add", image_of(ground), f"--name={name}", *flags, "--exec=/bin/sh", "--", "-c", script)
        app("start", f"--app={name}")

    words = ["--insecure-options=image", "app", "sandbox", *KVM.words]
    with ground.running_command(words) as running:
        uuid = running.uuid
        ground.rkpy.ok("status", "--wait-ready=300s", uuid)
        add("one", "echo up; echo file >>/tmp/file; sleep 1000")
        # At once: a command waits for the app.
        done = ground.rkpy(
            "app",
            "exec",
            "--app=one",
            uuid,
            "/bin/sh",
            "-c",
            "until test -s /tmp/file; do sleep 0.1; done; cat /tmp/file; exit 6",
        )
        assert (done.status, done.out) == (6, "file\n"), done
        app("restart", "--app=one")
        until(lambda: poddir.read_restarts(ground.place(uuid), "one") == 1)
        # Files outlive a restart.
        until(lambda: ground.rkpy.ok("app", "exec", "--app=one", uuid, "/bin/cat", "/tmp/file") == "file\n" * 2)
        assert "running" in ground.rkpy.refused("app", "rm", uuid, "--app=one")
        app("stop", "--app=one")
        assert states(ground, uuid) == {"one": "exited"}
        app("rm", "--app=one")
        volume = ground.new("of-app")
        mount = f"--mnt-volume=name=v,kind=host,source={volume},target=/vol"
        add("hog", "free >/vol/free; inspect memhog 99999999999", "--memory=32M", mount)
        add("bad", "exit 3")
        until(lambda: {*states(ground, uuid).values()} == {"exited"})
        assert (volume / "free").exists()
        ground.rkpy.ok("stop", uuid)
        result = running.wait()
        assert (result.status, result.err) == (0, ""), result
    directory = ground.place(uuid)
    assert poddir.read_ending(directory, "hog") == Ending(137, signal=9, oom=True)
    assert poddir.read_ending(directory, "bad") == Ending(3)


def test_several_apps(ground: Ground) -> None:
    """A volume of the pod's, restarts, and a policy that ends it."""
    volumes: Sequence[str] = ("--volume=v,kind=empty", "--volume=small,kind=empty,size=1Mi")
    mounts = ("--mount=volume=v,target=/vol", "--mount=volume=small,target=/tmp")
    file = ground.new("uuid") / "uuid"
    pod = [*volumes, f"--uuid-file-save={file}", "--exit-policy=on-any-failure"]
    first = shell(
        ground, "echo x >>/vol/starts; test $(wc -l </vol/starts) -lt 3 && exit 1; echo >/tmp/done; exec sleep 1000",
        "--name=first", "--restart=on-failure", *mounts,
    )  # fmt: skip
    second = shell(
        ground, "until test -e /tmp/done; do sleep 0.1; done; wc -l </vol/starts; exit 4", "--name=second", *mounts
    )
    result = ground.pod(KVM, first, second, pod=pod)
    assert (result.status, result.err) == (4, ""), result
    assert [line.partition(": ")[2] for line in result.lines] == ["3"]
    directory = ground.place(file.read_text().strip())
    assert poddir.read_restarts(directory, "first") == 2
    assert poddir.read_ending(directory, "first") == Ending(143, signal=15, stopped=True)
