"""Pods of somebody who is not root: what only they have to be told, and ways out of them to what is their user's, each
with a control that succeeds. What such pods have in common with root's is in test_conformance.py and
test_supervised.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import images, ordinary
from tests.host import flavours
from tests.host.commands import Done, Rkpy
from tests.host.flavours import ALONE, DEADLINE, PASSWD, RANGE, ROOTLESS, Ground, Variant, until
from tests.host.test_escape import DENIALS, all_calls, answers, with_key
from tests.host.test_supervised import Terminal
from tests.ordinary import User

NSPAWN, FLY = ROOTLESS
OTHER_GROUP = 61000
WITHOUT = "rkpy: warning: apps can have no other user and group than root"


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Callable[[str], Ground]]:
    with flavours.grounds(tmp_path_factory.mktemp("rootless"), inspector) as find:
        yield find


@pytest.fixture
def ground(grounds: Callable[[str], Ground]) -> Ground:
    """Of a user with a range of IDs."""
    return grounds(RANGE)


@pytest.fixture(scope="module")
def alone(grounds: Callable[[str], Ground]) -> Ground:
    """Of one who has no other ID than his own."""
    return grounds(ALONE)


@pytest.fixture(scope="module")
def plain_file(alone: Ground) -> str:
    """An image with nothing in it that is not root's."""
    files: dict[str, bytes | str] = {
        "bin/inspect": Path(alone.inspector).read_bytes(),
        "etc/passwd": PASSWD,
        "tmp/": "",
    }
    manifest = images.manifest(app={"exec": ["/bin/inspect"], "user": "0", "group": "0"})
    return images.make_aci(str(alone.new("plain") / "image.aci"), manifest, files)


@pytest.fixture(scope="module")
def plain(alone: Ground, plain_file: str) -> str:
    """The same in his store."""
    return alone.rkpy.ok("--insecure-options=image", "fetch", "--full", plain_file).strip()


@pytest.fixture
def user(ground: Ground) -> User:
    assert ground.rkpy.user is not None
    return ground.rkpy.user


@pytest.fixture
def program(ground: Ground, user: User) -> Path:
    """The inspector where the user finds it."""
    return ground.root() / "bin/inspect"


def volume(source: Path | str, target: str = "/data", **options: str) -> list[str]:
    more = "".join(f",{name}={value}" for name, value in options.items())
    return [f"--volume=data,kind=host,source={source}{more}", f"--mount=volume=data,target={target}"]


def as_user(user: User, *words: object) -> list[str]:
    """What a program prints that the user runs without rkpy."""
    done = subprocess.run(user.command(words), capture_output=True, text=True, timeout=DEADLINE, check=False)
    return done.stdout.splitlines()


# --- what cannot be had


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--private-users"], "--private-users is for root"),
        (volume("/usr", propagation="shared"), 'volume "data": propagation=shared is for root'),
        (volume("/dev", recursive="false"), 'the mounts below host path "/dev" cannot be left out without root'),
        (["--volume=data,kind=empty,uid=70000,gid=1", "--mount=volume=data,target=/data"], "user 70000 and group 1,"),
        (["--volume=data,kind=named,uid=70000", "--mount=volume=data,target=/data"], "cannot belong to user 70000,"),
        (volume("/none"), 'host path "/none" does not exist'),
    ],
)
def test_what_pods_cannot_have(ground: Ground, words: list[str], text: str) -> None:
    before = ground.rkpy.pods()
    line = ground.rkpy.refused("--insecure-options=image", "run", *NSPAWN.words, *words, *ground.app("id"))
    assert text in line
    assert ground.rkpy.pods() == before


def test_machines_are_roots(ground: Ground) -> None:
    for command in (["run", "--net=none"], ["prepare"], ["app", "sandbox", "--net=none"]):
        image = [] if "app" in command else ground.app("id")
        line = ground.rkpy.refused("--insecure-options=image", *command, "--stage1=kvm", *image)
        assert "the flavour kvm is for root" in line


def test_mounts_below_a_volume_come_along(ground: Ground) -> None:
    """The control of what is refused: /dev has some."""
    for variant in ROOTLESS:
        seen = ground.ask(variant, "stat /data/shm", pod=volume("/dev", recursive="true"))
        assert seen[0].startswith("directory 1777"), seen


def test_devices_are_those_the_user_may_open(ground: Ground, user: User) -> None:
    place = ground.new("devices")
    for name, mode, group in (("roots", 0o600, 0), ("groups", 0o660, OTHER_GROUP), ("own", 0o600, 0)):
        os.mknod(place / name, 0o20000, os.makedev(1, 5))
        os.chown(place / name, user.uid if name == "own" else 0, group)
        (place / name).chmod(mode)
    words = ["--insecure-options=image", "run", *NSPAWN.words]
    for name in ("roots", "groups"):
        line = ground.rkpy.refused(*words, *ground.app("id", f"--device={place}/{name}:/dev/hw"))
        assert f'device "{place}/{name}": permission denied' in line
    assert ground.ask(NSPAWN, "open /dev/hw rw", f"--device={place}/own:/dev/hw") == ["/dev/hw: ok"]
    member = Rkpy(ground.directory, user=user._replace(groups=(OTHER_GROUP,)))
    done = member(*words, *ground.app("open /dev/hw rw", f"--device={place}/groups:/dev/hw"))
    assert done.out == "/dev/hw: EACCES\n", done
    assert f"cannot open {place}/groups: you may by a group that you are in" in done.err


def test_what_undoes_read_only_volumes_is_said(ground: Ground) -> None:
    result = ground.run(NSPAWN, "id", "--caps-retain=CAP_SYS_ADMIN,CAP_NET_ADMIN,CAP_SYS_MODULE")
    assert "can get at all that its user has by CAP_SYS_ADMIN\n" in result.err
    assert "of the host" not in result.err


# --- changing a pod, and what is left of one


def test_a_pod_that_changes(ground: Ground) -> None:
    owned = ["--mnt-volume=name=kept,kind=empty,uid=33,gid=34,target=/kept", "--user=web"]
    with ground.running_command(["app", "sandbox", *NSPAWN.words]) as pod:
        said = ground.rkpy("app", "add", pod.uuid, *ground.app("write /kept/x 1 + stat /kept/x", "--name=a", *owned))
        assert (said.status, said.err) == (0, ""), said
        ground.rkpy.ok("app", "start", "--app=a", pod.uuid)
        until(lambda: ground.rkpy.ok("app", "list", "--no-legend", pod.uuid) == "a\texited\n")
        assert ground.rkpy.ok("logs", pod.uuid) == "file 0644 33 0\n"
        shared = "--mnt-volume=name=v,kind=host,source=/usr,propagation=shared,target=/v"
        refused = ground.rkpy.refused("app", "add", pod.uuid, *ground.app("id", "--name=b", shared))
        assert "propagation=shared is for root" in refused
        # Its volume is somebody else's on the host.
        ground.rkpy.ok("app", "rm", "--app=a", pod.uuid)
        assert ground.rkpy.ok("app", "list", "--no-legend", pod.uuid) == ""
        assert not [*Path(ground.place(pod.uuid)).glob("volumes/*")]


def test_a_fly_pod_of_another_user_of_his_ends_when_asked(ground: Ground) -> None:
    for flag, status in (((), 128 + signal.SIGTERM), (("--force",), 128 + signal.SIGKILL)):
        with ground.running(FLY, ground.app("say up + sleep", "--user=web")) as pod:
            assert pod.line() == "up"
            assert ground.rkpy.ok("enter", pod.uuid, "/bin/inspect", "id").splitlines()[0] == "uid 33 33 33"
            ground.rkpy.ok("stop", *flag, pod.uuid)
            assert pod.wait().status == status


def test_what_a_killed_pod_leaves_is_collected(ground: Ground) -> None:
    """Files of other users included, and whichever process is killed."""
    for variant, supervisor in ((NSPAWN, False), (NSPAWN, True), (FLY, False)):
        with ground.running(variant, ground.app("write /tmp/x 1 + say up + sleep", "--user=web")) as pod:
            assert pod.line() == "up"
            os.kill(int(ground.status(pod.uuid)["pid"]) if supervisor else pod.process.pid, signal.SIGKILL)
            pod.wait()
            until(lambda uuid=pod.uuid: ground.state(uuid) == "exited")  # type: ignore[misc]
            ground.rkpy.ok("gc", "--grace-period=0s")
            assert pod.uuid not in [path.name for path in ground.rkpy.pods()]


def test_an_app_is_exported_with_the_owners_it_saw(ground: Ground) -> None:
    assert ground.ask(NSPAWN, "write /new 1 + chown /new 33 34", "--name=exported") == ["/new: ok"]
    uuid = next(path.name for path in ground.rkpy.pods() if (path / "appsinfo/exported").exists())
    target = ground.new("export") / "app.aci"
    ground.rkpy.ok("export", uuid, target)
    with tarfile.open(target) as archive:
        owners = {
            name: (archive.getmember(name).uid, archive.getmember(name).gid) for name in ("rootfs/new", "rootfs/owned")
        }
    assert owners == {"rootfs/new": (33, 34), "rootfs/owned": (123, 456)}
    assert target.stat().st_uid == ground.outside(0)
    ground.rkpy.ok("rm", uuid)


# --- without a range


def ask(ground: Ground, image: str, *words: str, variant: Variant = NSPAWN, flags: tuple[str, ...] = ()) -> Done:
    return ground.rkpy("run", *variant.words, image, *flags, "--", *words)


@pytest.mark.parametrize("variant", ROOTLESS, ids=lambda variant: variant.name)
def test_apps_of_root_run_without_a_range(alone: Ground, plain: str, variant: Variant) -> None:
    words = ["id", "+", "write", "/x", "1", "+", "stat", "/x", "+", "chown", "/x", "1", "1"]
    done = ask(alone, plain, *words, variant=variant)
    assert done.out.splitlines() == ["uid 0 0 0", "gid 0 0 0", "groups", "file 0644 0 0", "/x: EINVAL"]
    assert done.status == 0
    assert done.err == f"{WITHOUT}: /etc/subuid grants this user nothing\n"


@pytest.mark.parametrize("variant", ROOTLESS, ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--user=web",), "the app cannot be user 33, group 0"),
        (("--group=7",), "the app cannot be user 0, group 7"),
        (("--supplementary-gids=7",), "cannot give the app supplementary groups: 7"),
    ],
)
def test_other_users_need_one(alone: Ground, plain: str, variant: Variant, flags: tuple[str, ...], text: str) -> None:
    done = ask(alone, plain, "id", variant=variant, flags=flags)
    assert (done.status, done.out) == (254, "")
    warning, line = done.err.splitlines()
    assert warning.startswith(WITHOUT)
    assert text in line and "they come from /etc/subuid and /etc/subgid" in line


def test_groups_of_the_caller_stay_and_that_is_said(alone: Ground, plain: str) -> None:
    assert alone.rkpy.user is not None
    member = Rkpy(alone.directory, user=alone.rkpy.user._replace(groups=(OTHER_GROUP,)))
    done = member("run", *NSPAWN.words, plain, "--", "id")
    assert done.out.splitlines()[2] == "groups 65534", done
    assert done.err == f"{WITHOUT} and stay in your groups: /etc/subuid grants this user nothing\n"


def test_where_privileges_cannot_be_gained_a_range_is_of_no_use(ground: Ground, user: User) -> None:
    """NoNewPrivileges= of a service; the control is every other test of this user's."""
    command = ["setpriv", "--no-new-privs", *ground.rkpy.command(*ground.words(NSPAWN), *ground.app("id"))]
    done = subprocess.run(command, capture_output=True, text=True, env=ground.rkpy.environment(), timeout=DEADLINE)
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["uid 0 0 0"]), done
    assert "newuidmap has no privileges here (NoNewPrivileges=)" in done.stderr


def test_a_terminal_and_changes_without_a_range(alone: Ground, plain: str) -> None:
    terminal = Terminal(alone, ["run", *NSPAWN.words, "--interactive", plain, "--", "tty", "+", "say", "end"])
    try:
        assert terminal.end() == 0
        terminal.read_until("end")
    finally:
        terminal.close()
    with alone.running_command(["app", "sandbox", *NSPAWN.words]) as pod:
        kept = "--mnt-volume=name=kept,kind=empty,target=/kept"
        said = alone.rkpy("app", "add", pod.uuid, plain, "--name=a", kept, "--", "say", "up", "+", "sleep")
        assert (said.status, said.err) == (0, ""), said
        alone.rkpy.ok("app", "start", "--app=a", pod.uuid)
        assert alone.rkpy.ok("enter", "--app=a", pod.uuid, "/bin/inspect", "id").splitlines()[0] == "uid 0 0 0"
        alone.rkpy.ok("app", "stop", "--app=a", pod.uuid)
        alone.rkpy.ok("app", "rm", "--app=a", pod.uuid)
    alone.rkpy.ok("gc", "--grace-period=0s")


# --- out of the pod to what is the user's


@contextmanager
def process_of(user: User) -> Iterator[int]:
    process = subprocess.Popen(user.command(["sleep", "1000"]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        yield process.pid
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_processes_of_the_user_cannot_be_reached(ground: Ground, user: User, program: Path) -> None:
    with process_of(user) as pid:
        words = f"kill {pid} 0 + kill {pid} 18 + ptrace {pid} + open /proc/{pid}/mem rw + open /proc/{pid}/root"
        control = as_user(user, program, *words.split())
        assert set(answers(control).values()) == {"ok"}, "the control"
        assert ground.ask(FLY, f"kill {pid} 0") == [f"{pid}: ok"], "another: fly is no boundary"
        seen = ground.ask(NSPAWN, words)
        assert seen[:2] == [f"{pid}: ESRCH"] * 2
        assert seen[2] in (f"{pid}: ESRCH", f"{pid}: EPERM")
        assert seen[3:] == [f"/proc/{pid}/mem: ENOENT", f"/proc/{pid}/root: ENOENT"]


def test_nothing_outside_can_be_traced_from_within_the_namespace(ground: Ground, user: User, program: Path) -> None:
    """Not even under fly, with all capabilities that rkpy has there."""
    with process_of(user) as pid:
        asked = f"ptrace {pid} + open /proc/{pid}/mem rw + open /proc/{pid}/root"
        assert set(answers(as_user(user, program, *asked.split())).values()) == {"ok"}, "the control"
        assert set(answers(ground.ask(FLY, asked)).values()) <= {"EPERM", "EACCES"}


def test_handlers_under_fly_do_not_see_the_environment_of_the_user(alone: Ground) -> None:
    place = alone.new("handler")
    files: dict[str, bytes | str] = {
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        "bin/sh": "->busybox",
        "tmp/": "",
    }
    look = "echo looked; busybox cat /proc/$PPID/environ; busybox ls /proc/$PPID/fd/; :"
    handlers = [{"name": "pre-start", "exec": ["/bin/sh", "-c", look]}]
    app = {"exec": ["/bin/sh", "-c", "busybox ls /proc/self/fd/"], "user": "0", "group": "0", "eventHandlers": handlers}
    image = images.make_aci(str(place / "image.aci"), images.manifest(app=app), files)
    words = ("--insecure-options=image", "run", *FLY.words, image)
    done = alone.rkpy(*words, SECRET="of the user")
    assert done.out.splitlines()[:2] == ["looked", "0"], "and the app sees its own descriptors"
    assert done.err.count("ermission denied") == 2, done


def test_files_of_the_user_cannot_be_reached(ground: Ground, user: User, program: Path) -> None:
    secret = user.own(ground.new("home")) / "secret"
    secret.write_text("the user's\n")
    user.own(secret).chmod(0o600)
    assert as_user(user, program, "read", secret) == ["the user's"], "the control"
    given = volume(secret.parent)
    assert ground.ask(NSPAWN, "read /data/secret", pod=given) == ["the user's"], "another: root of the pod is the user"
    assert ground.ask(NSPAWN, "open /data/secret", "--user=web", pod=given) == ["/data/secret: EACCES"]
    ways = [f"{root}{secret}" for root in ("", "/proc/1/root", "/proc/1/cwd", "/proc/self/root")]
    seen = answers(ground.ask(NSPAWN, " + ".join(f"open {way}" for way in ways)))
    assert set(seen.values()) <= {"ENOENT", "EACCES"}, seen
    # Of the pod's own user namespace, which is that of rkpy's mounts too: from /proc there is no way to those.
    everything = [*ground.words(NSPAWN, insecure="image,all-run"), *ground.app(f"setns /proc/1/ns/mnt + open {secret}")]
    assert ground.rkpy.ok(*everything).splitlines()[-1] == f"{secret}: ENOENT"


def test_sockets_of_the_user_cannot_be_reached(ground: Ground, user: User) -> None:
    """Those of a session are where XDG_RUNTIME_DIR is, and some have an abstract name."""
    place = ground.new("runtime")
    path, name = f"{place}/bus", f"rkpy-rootless-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as abstract:
        own.bind(path)
        os.chown(path, user.uid, user.uid)
        os.chmod(path, 0o600)
        own.listen()
        abstract.bind(f"\0{name}")
        abstract.listen()
        environment = {"XDG_RUNTIME_DIR": str(place)}
        words = [*ground.words(NSPAWN), *ground.app(f"connect @{name} x + connect {path} x")]
        assert ground.rkpy.ok(*words, **environment).splitlines() == [f"@{name}: ECONNREFUSED", f"{path}: ENOENT"]
        seen = ground.ask(NSPAWN, "connect /data/bus x", pod=volume(place))
        assert seen == ["/data/bus: ok"], "the control: a volume"
        host = ground.rkpy.ok("run", "--stage1=nspawn", "--net=host", *ground.app(f"connect @{name} x"))
        assert host == f"@{name}: ok\n", "the control: the host's network"


def test_keys_of_the_user_are_not_inherited(ground: Ground) -> None:
    unfiltered = ("--insecure-options=image,seccomp", "run")
    find = ground.app("find-key callers")
    assert with_key(ground, *unfiltered, *FLY.words, *find) == ["callers: ok"], "the control"
    assert with_key(ground, *unfiltered, *NSPAWN.words, *find) == ["callers: ENOKEY"]


def test_all_capabilities_are_none_over_the_host(ground: Ground, inspector: str) -> None:
    names = ("swapon", "acct", "adjtimex", "syslog")
    host = ["unshare", "--mount", "--uts", inspector, *all_calls(names).split()]
    control = subprocess.run(host, capture_output=True, text=True, check=True)
    assert not set(answers(control.stdout.splitlines()).values()) & DENIALS, "the control"
    for variant in ROOTLESS:
        insecure = "image,all-run" if variant is NSPAWN else "image"
        words = [*ground.words(variant, insecure=insecure), *ground.app(all_calls(names))]
        seen = answers(ground.rkpy.ok(*words).splitlines())
        assert set(seen.values()) <= DENIALS, seen


# --- from another user to the pod


def test_another_user_reaches_nothing_of_the_pod(ground: Ground, user: User, program: Path) -> None:
    def arrange(root: Path) -> None:
        (root / "bin/as-root").write_bytes((root / "bin/inspect").read_bytes())
        (root / "bin/as-root").chmod(0o4755)

    image = ground.image(arrange=arrange)
    app = ground.app("write /written x + say said + sleep", image=image)
    with ordinary.user(2) as other, ground.running(NSPAWN, app) as pod:
        assert pod.line() == "said"
        place, pid = ground.place(pod.uuid), ground.status(pod.uuid)["pid"]
        files = [f"{place}/logs/app", *map(str, Path(place).rglob("written")), f"{place}/pid"]
        files += map(str, ground.rkpy.data.rglob("as-root"))
        assert len(files) > 3
        opened = " + ".join(f"open {path}" for path in files)
        asked = f"{opened} + connect {place}/control x + kill {pid} 0 + kill {pod.process.pid} 0"
        control = answers(as_user(user, program, *asked.split()))
        assert control.pop(f"{place}/control") == "EPROTOTYPE", "it is there, and no stream"
        assert set(control.values()) == {"ok"}, control
        seen = answers(as_user(other, program, *asked.split()))
        assert seen.pop(f"{place}/control") == "EACCES"
        assert seen.keys() == control.keys()
        assert set(seen.values()) <= {"EACCES", "EPERM"}, seen
        streams = " + ".join(f"open /proc/{pod.process.pid}/fd/{fd}" for fd in (0, 1, 2))
        assert set(answers(as_user(other, program, *streams.split())).values()) == {"EACCES"}
        for words in (["stop", pod.uuid], ["enter", pod.uuid, "/bin/inspect", "id"], ["logs", pod.uuid]):
            done = Rkpy(ground.directory, user=other)(*words)
            assert (done.status, done.out) == (254, ""), done
            assert "Traceback" not in done.err, done


# --- root in a container of somebody's


def test_in_a_namespace_that_somebody_else_made(alone: Ground, plain_file: str, tmp_path: Path) -> None:
    """As unshare(1) makes one, with a single ID."""
    rkpy = Rkpy(tmp_path)
    container = ["setpriv", f"--groups={OTHER_GROUP}", "unshare", "--map-root-user", "--mount"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*container, *rkpy.command("--insecure-options=image", *words)]
        return subprocess.run(command, capture_output=True, text=True, env=rkpy.environment(), timeout=DEADLINE)

    done = run("run", *NSPAWN.words, plain_file, "--", "id")
    assert done.stdout.splitlines() == ["uid 0 0 0", "gid 0 0 0", "groups 65534"], done
    assert (
        done.stderr
        == "rkpy: warning: apps stay in the groups of rkpy's caller: this user namespace denies setgroups(2)\n"
    )
    done = run("run", *NSPAWN.words, "--private-users", plain_file, "--", "id")
    assert (done.returncode, done.stdout) == (254, ""), done
    assert "--private-users: the IDs it takes are none of this user namespace's" in done.stderr
    assert run("gc", "--grace-period=0s").returncode == 0
