"""The supervisor does in a virtual machine what it does in namespaces: what the neighbours of this module ask of many
pods (test_supervised, test_service, test_credentials, test_robust, test_escape), asked of few, since a machine takes
seconds to boot. How such pods start, are used and end is in test_kvm_life, what can go wrong in test_kvm_failures."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import control, poddir
from tests import images
from tests.host import activating, flavours, servicemanager
from tests.host.activating import Handed
from tests.host.flavours import KVM, Ground, Running, until
from tests.host.servicemanager import Manager, service
from tests.host.test_robust import GARBAGE, ask
from tests.host.test_supervised import handlers, noting

CREDENTIALS = "/run/host/credentials"
SECRET = "s3cr3t-Kv7"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("machine-apps"), inspector) as made:
        yield made


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A directory for apps to write to; every user of a pod can."""
    place = tmp_path / "notes"
    place.mkdir()
    place.chmod(0o1777)
    (place / "log").touch()
    (place / "log").chmod(0o666)
    return place


def logged(ground: Ground, uuid: str, app: str) -> list[str]:
    """Lines of its standard output."""
    return ground.rkpy.ok("logs", f"--app={app}", uuid).splitlines()


# --- apps that end, each in its way


ENDINGS = {
    "flaky": poddir.Ending(6),
    "handled": poddir.Ending(4),
    "unready": poddir.Ending(254),
    "hungry": poddir.Ending(137, signal=9, oom=True),
    "many": poddir.Ending(0),
    "loud": poddir.Ending(0),
    "leaving": poddir.Ending(3),
    "deaf": poddir.Ending(137, signal=9, stopped=True),
    "other": poddir.Ending(138, signal=10, stopped=True),
}


def test_apps_end_as_they_do_anywhere(ground: Ground, notes: Path) -> None:
    """Restarts, handlers, limits (which count in there, whatever cgroups the host has), what is left behind, output."""
    around = ground.image(
        user="web",
        group="web",
        eventHandlers=handlers(
            pre_start="append /notes/log pre + write /made-before x", post_stop="append /notes/log post"
        ),
    )
    failing = ground.image(eventHandlers=handlers(pre_start="say-error trouble + exit 9"))
    apps = [
        ground.app("append /notes/starts x + exit 6", "--name=flaky", "--restart=on-failure:2"),
        ground.app("stat /made-before + append /notes/log app + exit 4", "--name=handled", image=around),
        ground.app("append /notes/never x", "--name=unready", image=failing),
        ground.app("memhog 268435456", "--name=hungry", "--memory=16Mi"),
        ground.app("forkbomb 100", "--name=many", "--pids-limit=20"),
        ground.app("lines 20000 out + error-lines 20000 err", "--name=loud"),
        ground.app("daemon + hold + say done + exit 3", "--name=leaving"),
        ground.app("ignore-term + say up + sleep", "--name=deaf"),
        ground.app("zombies 5 + say up + sleep", "--name=other", "--stop-signal=SIGUSR1"),
    ]
    staying = {"deaf", "other"}
    with ground.running(KVM, *apps, pod=["--exit-policy=until-all", "--stop-timeout=5s", *noting(notes)]) as running:
        uuid = running.uuid
        place = ground.place(uuid)
        ground.rkpy.ok("status", "--wait-ready=300s", uuid)

        def states() -> dict[str, str]:
            found: dict[str, str] = control.request(place, {"op": "states"})["states"]
            return found

        until(lambda: {name for name, state in states().items() if state == "running"} == staying, states)

        def kinds() -> list[str]:
            processes = ground.rkpy.ok("enter", "--app=other", uuid, "/bin/inspect", "ps").splitlines()
            return [line.split()[2] for line in processes]

        until(lambda: "Z" not in kinds())
        ground.rkpy.ok("stop", uuid)
        assert running.wait().status != 0
    assert {name: poddir.read_ending(place, name) for name in ENDINGS} == ENDINGS
    assert (notes / "starts").read_text() == "xxx" and poddir.read_restarts(place, "flaky") == 2
    assert (notes / "log").read_text() == "preapppost"
    assert logged(ground, uuid, "handled") == ["file 0644 0 0"]
    assert not (notes / "never").exists()
    assert ground.status(uuid)["limit-hungry-memory"] == "enforced: memory.max = 16777216"
    (children,) = logged(ground, uuid, "many")
    assert 10 < int(children.split()[0]) < 20
    assert logged(ground, uuid, "leaving") == ["done"]
    loud = ground.rkpy("logs", "--app=loud", uuid)
    for name, text in (("out", loud.out), ("err", loud.err)):
        assert text.splitlines() == [f"{name} {number}" for number in range(20000)]


# --- commands beside an app, and callers that talk nonsense

SELF = "caps + nnp + seccomp + ns + signals + umask + hostname + limits nofile + id + cwd"


def test_enter_and_nonsense(ground: Ground) -> None:
    image = ground.image(user="web", group="web", workingDirectory="/srv/www")
    app = ground.app(f"{SELF} + say up + sleep", "--caps-remove=CAP_NET_RAW", "--ulimit=nofile=99", image=image)
    with ground.running(KVM, app) as running:
        own = list(iter(running.line, "up"))
        assert len(own) == 24 and own[-4:] == ["uid 33 33 33", "gid 34 34 34", "groups", "/srv/www"], own
        # What came with the news that the app had started is closed by then.
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        before = _descriptors(running)
        _enter(ground, running, own)
        _talk_nonsense(ground, running)
        until(lambda: _descriptors(running) == before)
        assert ground.rkpy.ok("enter", running.uuid, "inspect", "say", "alive") == "alive\n"
        ground.rkpy.ok("stop", running.uuid)
        assert running.wait().err == ""


def _descriptors(running: Running) -> int:
    """How many the monitor has."""
    return len(os.listdir(f"/proc/{running.process.pid}/fd"))


def _enter(ground: Ground, running: Running, own: list[str]) -> None:
    uuid = running.uuid

    def enter(*words: str) -> list[str]:
        return ground.rkpy.ok("enter", *words).splitlines()

    assert enter(uuid, "inspect", *SELF.split(" ")) == own
    assert [line.split()[0] for line in enter(uuid, "inspect", "fds")] == ["0", "1", "2"]
    assert enter("--user=root", uuid, "inspect", "id")[:1] == ["uid 0 0 0"]
    assert enter("--user=77:staff", "--cwd=/etc", uuid, "inspect", "id", "+", "cwd") == [
        "uid 77 77 77", "gid 50 50 50", "groups", "/etc",
    ]  # fmt: skip
    privileged = enter("--privileged", uuid, "inspect", "id", "+", "seccomp", "+", "caps", "+", "ns")
    assert privileged[0] == "uid 0 0 0" and "Seccomp:\t0" in privileged
    bounding = next(line for line in privileged if line.startswith("CapBnd"))
    assert int(bounding.split()[1], 16) & 1 << 21, "no CAP_SYS_ADMIN"
    assert {line for line in own if line.startswith(("mnt:", "pid:", "net:", "uts:"))} <= {*privileged}
    for words, status in (
        ((uuid, "inspect", "exit", "9"), 9),
        ((uuid, "inspect", "signal", "9"), 137),
        ((uuid, "nowhere"), 127),
        (("--user=nobody-here", uuid, "inspect", "id"), 254),
        (("--cwd=/none", uuid, "inspect", "id"), 254),
    ):
        done = ground.rkpy("enter", *words)
        assert (flavours.shell_status(done.status), done.out) == (status, ""), done
    command = ground.rkpy.command("enter", uuid, "inspect", "echo", "+", "say-error", "err")
    piped = subprocess.run(
        command, input="through\n", capture_output=True, text=True, check=True, env=ground.rkpy.environment()
    )
    assert (piped.stdout, piped.stderr) == ("through\n", "err\n")


def _talk_nonsense(ground: Ground, running: Running) -> None:
    """To the monitor, which serves more requests where there is a machine."""
    place = ground.place(running.uuid)
    enter = (b'{"op": "enter"}', b'{"op": "enter", "app": "app"}', b'{"op": "enter", "app": "no", "terminal": 1}')
    with open(os.devnull) as null:
        for message in (*GARBAGE, *enter):
            for fds in ([], [null.fileno()], [null.fileno()] * 3, [null.fileno()] * 5, [null.fileno()] * 200):
                answer = ask(place, message, fds)
                assert "error" in answer or b"resize" in message or not message, message
    assert control.request(place, {"op": "states"}) == {"states": {"app": "running"}}


# --- what a service manager is told


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Manager]:
    with servicemanager.manager(tmp_path) as made:
        yield made


def test_apps_tell_how_they_fare(ground: Ground, notes: Path, host: Manager) -> None:
    """Readiness, status, reloads, signs of life and health come from inside; so does the answer to machined."""
    program = servicemanager.build_service(ground.new("service"))
    image = ground.image({"bin/service": program})
    telling = (
        "show:NOTIFY_SOCKET", "say:STATUS=warming up", "wait:/notes/GO", "say:READY=1|STATUS=serving", "barrier",
        "every:50:WATCHDOG=1",
    )  # fmt: skip
    notifies = "--annotation=appc.io/executor/supports-systemd-notify=true"
    check = ('--health-cmd=["/bin/service", "need:/notes/GO", "exit:0"]', "--health-interval=200ms")
    apps = [
        [image, "--name=one", notifies, "--exec=/bin/service", "--", *telling],
        [
            image,
            "--name=two",
            "--reload-signal=HUP",
            *check,
            "--health-retries=1",
            "--exec=/bin/service",
            "--",
            "show:NOTIFY_SOCKET",
        ],
    ]
    words = ground.words(KVM, *noting(notes))
    with service(ground, words, apps, NOTIFY_SOCKET=host.address, WATCHDOG_USEC="60000000") as running:
        host.until("STATUS", "one: warming up")
        uuid = running.uuid
        until(lambda: ground.status(uuid).get("app-two-health") == "unhealthy")
        assert not host.values("READY")
        (notes / "GO").touch()
        assert host.until("READY", "1").pid == running.process.pid
        host.until("STATUS", "one: serving")
        until(lambda: ground.status(uuid).get("app-two-health") == "healthy")
        until(lambda: len(host.values("WATCHDOG")) > 2)
        after, before = len(host.heard), time.monotonic_ns() // 1000
        ground.rkpy.ok("kill", "--signal=HUP", "--app=one", uuid)
        # By the clock of this kernel, which the machine does not have (sd_notify(3)).
        stamp = int(host.until("RELOADING", "1", after=after).fields["MONOTONIC_USEC"])
        assert before <= stamp <= time.monotonic_ns() // 1000
        host.until("STATUS", "one: reloaded", after=after)
        assert logged(ground, uuid, "two") == ["NOTIFY_SOCKET"], "an app that does not tell has no socket"
        os.kill(running.process.pid, signal.SIGHUP)
        until(lambda: logged(ground, uuid, "two")[-1:] == ["reloaded"])
        assert logged(ground, uuid, "one")[:2] == ["NOTIFY_SOCKET=/run/systemd/notify", "barrier"]
        os.kill(int(ground.status(uuid)["pid"]), signal.SIGRTMIN + 4)
        host.until("STOPPING", "1")
        assert servicemanager.status(running.process) == 0


# --- credentials


def test_credentials_reach_their_users_only(ground: Ground, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir(mode=0o500)
    (given / "password").write_text(SECRET)
    handed = Handed((), {"CREDENTIALS_DIRECTORY": str(given)})
    place = CREDENTIALS
    look = (
        f"env + list {place} + stat {place} + stat {place}/password + read {place}/password + say"
        f"  + try write {place}/password x + try write {place}/more x + try unlink {place}/password"
    )
    apps = [
        ground.app(look, "--name=user", "--user=web", "--group=web"),
        ground.app(f"become 44 44 + try list {place} + try read {place}/password", "--name=stranger"),
        ground.app(f"read {place}/password + say  + exit 1", "--name=again", "--user=1000", "--restart=on-failure:1"),
        ground.app("wait-for /go + exit 0", "--name=staying", "--user=web", "--group=web"),
    ]
    words = ground.words(KVM, "--exit-policy=until-all", "--set-credential=set:A")
    joined = [word for app in apps for word in ("---", *app)][1:]
    with activating.running(ground, handed, words, joined) as running:
        uuid = running.uuid
        until(lambda: logged(ground, uuid, "again") == [SECRET] * 2)
        ended = ("user", "stranger")
        until(lambda: all(poddir.read_ending(ground.place(uuid), name) for name in ended))
        user = logged(ground, uuid, "user")
        assert f"CREDENTIALS_DIRECTORY={place}" in user
        start = user.index("password")
        assert user[start : start + 5] == ["password", "set", "directory 0500 33 34", "file 0400 33 34", SECRET]
        assert len([line for line in user if "Read-only file system" in line or "EROFS" in line]) == 3, user
        stranger = logged(ground, uuid, "stranger")
        assert len([line for line in stranger if line.endswith("Permission denied")]) == 2, stranger
        found = ground.rkpy.ok("enter", "--app=staying", uuid, "/bin/inspect", "read", f"{place}/password")
        refused = ground.rkpy("enter", "--app=staying", "--user=44", uuid, "/bin/inspect", "read", f"{place}/password")
        assert found == SECRET and "Permission denied" in refused.out
        processes = subprocess.run(["ps", "axwwe", "-o", "args"], capture_output=True, text=True, check=True).stdout
        told = ground.rkpy.ok("cat-manifest", uuid) + ground.rkpy.ok("status", uuid)
        files = [f"{ground.place(uuid)}/{name}" for name in os.listdir(ground.place(uuid)) if name != "logs"]
        kept = subprocess.run(["grep", "-rls", SECRET, *files], capture_output=True, text=True, check=False).stdout
    assert SECRET not in processes + told
    assert kept == ""


# --- ways out

ATTACK = r"""
exec 2>&1
mkdir /m
mount -t virtiofs rkpy /m && echo mounted
grep ' /m ' /proc/self/mountinfo | grep -q ' rw,' && cat /m/file
ln -s VICTIM /link
for place in VICTIM /link /m/out /m/.. /m/../../.. /readonly/out /readonly/../../.. /proc/1/root /proc/1/cwd; do
    cat $place/secret $placeVICTIM/secret $place/victim/secret
    echo attacked >$place/secret
    echo attacked >$placeVICTIM/new
done
mount -o remount,rw /readonly
for place in /m /readonly; do
    echo attacked >$place/file || echo kept
    echo attacked >$place/new || echo kept
    rm $place/file || echo kept
    mv $place/file $place/other || echo kept
    ln /bin/busybox $place/linked || echo kept
    chmod 777 $place/file || echo kept
    chown 5 $place/file || echo kept
done
for kind in "b 8 0" "b 254 0" "c 1 1" "c 10 200"; do mknod /node-${kind##* } $kind && echo made; done
echo over
until [ -e /readonly/heard ]; do sleep 1; done
echo c >/proc/sysrq-trigger
sleep 1000
"""


def test_root_of_the_guest_reaches_nothing_else_of_the_host(ground: Ground, tmp_path: Path) -> None:
    """With every capability, no filter and nothing masked it may do with its kernel what it likes. What it has of the
    host are the files it was given, as they were given. In the end it breaks its kernel, which breaks the pod."""
    victim, volume = tmp_path / "victim", tmp_path / "volume"
    victim.mkdir()
    (victim / "secret").write_text("the host's\n")
    volume.mkdir()
    (volume / "file").write_text("given\n")
    (volume / "out").symlink_to(victim)
    manifest = images.manifest(app={"exec": ["/bin/sh"], "user": "0", "group": "0"})
    aci = images.make_aci(str(ground.new("attack") / "attack.aci"), manifest, images.busybox_files())
    image = ground.rkpy.ok("--insecure-options=image", "fetch", "--full", aci).strip()
    flags = [f"--volume=v,kind=host,source={volume},readOnly=true", "--mount=volume=v,target=/readonly"]
    words = ["--insecure-options=image,all-run", "run", *KVM.words, *flags]
    lines: list[str] = []
    with ground.running_command(words, [image, "--", "-c", ATTACK.replace("VICTIM", str(victim))]) as pod:
        while "over" not in lines:
            lines.append(pod.line())
            assert pod.process.poll() is None, lines
        (volume / "heard").touch()
        done = pod.wait()
    assert "mounted" in lines, lines
    assert lines.count("given") == 1 and lines.count("kept") == 14, lines
    assert not any("the host's" in line for line in lines), lines
    assert "made" not in lines, lines
    assert done.status == 254 and done.err.count("\n") == 1 and "Kernel panic" in done.err, done
    assert [path.name for path in victim.iterdir()] == ["secret"]
    assert (victim / "secret").read_text() == "the host's\n"
    assert sorted(path.name for path in volume.iterdir()) == ["file", "heard", "out"]
    assert (volume / "file").read_text() == "given\n"
    found = (volume / "file").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o644)
