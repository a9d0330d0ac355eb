"""fly with real pods: what the app sees, what it cannot reach, and what is left on the host."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aci.image_manifest import App, EventHandler, Isolator
from common import syscalls
from common.errors import PodError, UsageError
from stage1 import fly, poddir
from stage1.flavour import EnterRequest, Mount, PreparedApp
from stage2.environment import DEFAULT_PATH
from tests.host import seccomp
from tests.host.flying import Workshop, until

MS_SHARED = 1 << 20

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
web:x:33:34:Web:/srv/www:/bin/ash
1000:x:4321:8765::/home/odd:/bin/sh
"""
GROUP = "root:x:0:\nweb:x:34:\nstaff:x:50:web\n1000:x:777:\n"


@pytest.fixture
def shop(tmp_path: Path, inspector: str) -> Workshop:
    return Workshop(str(tmp_path), inspector)


@pytest.fixture
def accounts(shop: Workshop) -> str:
    return shop.layer({"etc/passwd": PASSWD, "etc/group": GROUP, "srv/www/": ""})


@pytest.fixture(autouse=True)
def host_untouched(tmp_path: Path) -> Iterator[None]:
    """No test may change what is mounted in the host's namespace below its directory."""
    yield
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert not [line for line in file if str(tmp_path) in line]


def host_mount(source: str, target: str, *, read_only: bool = False, recursive: bool | None = None) -> Mount:
    return Mount(source, target, read_only, recursive, os.path.basename(target) or "root")


# --- how it ends


@pytest.mark.parametrize("status", [0, 1, 7, 126, 255])
def test_the_exit_status_is_the_apps(shop: Workshop, status: int) -> None:
    assert shop.run(shop.pod("exit", str(status))).status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGPIPE, signal.SIGXFSZ])
def test_the_engine_process_becomes_the_app(shop: Workshop, number: int) -> None:
    """A deadly signal shows that no process of ours stays in between, and that SIGPIPE is not ignored."""
    assert shop.run(shop.pod("signal", str(int(number)))).status == -number


# --- what it is


def test_environment_is_exact(shop: Workshop, accounts: str) -> None:
    pod = shop.pod("env", layers=(accounts,), user="web", environment=(("A", "1"), ("EMPTY", ""), ("U", "\u00fc")))
    assert sorted(shop.run(pod, before=lambda: os.environ.update(SECRET="host")).lines) == sorted(
        [
            f"PATH={DEFAULT_PATH}", "HOME=/srv/www", "USER=web", "LOGNAME=web", "SHELL=/bin/ash",
            "AC_APP_NAME=app", "container=rkpy", "A=1", "EMPTY=", "U=\u00fc",
        ]
    )  # fmt: skip


IDENTITIES = [
    ("0", "0", "0 0"),
    ("", "", "0 0"),
    ("web", "", "33 34"),
    ("web", "web", "33 34"),
    ("web", "staff", "33 50"),
    ("33", "", "33 34"),
    ("1000", "1000", "4321 777"),
    ("4000000000", "4294967294", "4000000000 4294967294"),
    ("/srv/www", "/srv/www", "0 0"),
    ("/etc/passwd", "staff", "0 50"),
    ("77", "", "77 0"),
]


@pytest.mark.parametrize(("user", "group", "expected"), IDENTITIES)
def test_identity(shop: Workshop, accounts: str, user: str, group: str, expected: str) -> None:
    uid, gid = expected.split()
    result = shop.run(shop.pod("id", layers=(accounts,), user=user, group=group))
    assert result.lines == [f"uid {uid} {uid} {uid}", f"gid {gid} {gid} {gid}", "groups"], result.err


def test_owner_of_a_path(shop: Workshop) -> None:
    layer = shop.layer({"data": "", "link": "->data"})
    os.chown(f"{layer}/data", 123, 456)
    result = shop.run(shop.pod("id", layers=(layer,), user="/link", group="/data"))
    assert result.lines[:2] == ["uid 123 123 123", "gid 456 456 456"]


def test_supplementary_groups_are_exact(shop: Workshop) -> None:
    pod = shop.pod("id", user="5", group="6", supplementary_gids=(50, 4000000000))
    assert shop.run(pod, before=lambda: os.setgroups([1, 2, 3])).lines[2] == "groups 50 4000000000"


BAD_IDENTITIES = [
    ("nobody-here", "0", 'no user "nobody-here" in the image'),
    ("0", "staff", 'no group "staff" in the image'),
    ("-1", "0", 'no user "-1"'),
    ("4294967295", "0", 'no user "4294967295"'),
    ("+5", "0", 'no user "+5"'),
    ("\u0665", "0", "no user"),
    ("/nowhere", "0", 'cannot take the owner of "/nowhere" in the image: no such file or directory'),
]


@pytest.mark.parametrize(("user", "group", "message"), BAD_IDENTITIES)
def test_unknown_identities(shop: Workshop, user: str, group: str, message: str) -> None:
    result = shop.run(shop.pod("id", user=user, group=group))
    assert (result.status, result.out) == (254, "")
    assert message in result.err


HOSTILE_PASSWD = [
    b"web:x:0\n" + PASSWD.encode(),
    b"web:x:-0:0::/:/\nweb:x:00000000000:0::/:/\n" + PASSWD.encode(),
    b"\xff\xfe\0:x:0:0::/:/\n:x:0:0::/:/\n" + PASSWD.encode(),
    b"web\0:x:0:0::/:/\n" + PASSWD.encode(),
    b":" * 100_000 + b"\n" + PASSWD.encode(),
    PASSWD.replace("/srv/www", "relative").replace("/bin/ash", "").encode(),
]


@pytest.mark.parametrize("passwd", HOSTILE_PASSWD)
def test_hostile_passwd_lines_are_skipped(shop: Workshop, passwd: bytes) -> None:
    result = shop.run(shop.pod("id", "+", "env", layers=(shop.layer({"etc/passwd": passwd}),), user="web", group=""))
    assert result.lines[:2] == ["uid 33 33 33", "gid 34 34 34"], result.err


def test_oversized_passwd(shop: Workshop) -> None:
    result = shop.run(shop.pod("id", layers=(shop.layer({"etc/passwd": b"#" * (5 << 20)}),)))
    assert (result.status, result.out) == (254, "")
    assert '"/etc/passwd" in the image is larger than 4 MiB' in result.err


def test_passwd_that_is_no_file(shop: Workshop) -> None:
    layer = shop.layer({"etc/": ""})
    os.mkfifo(f"{layer}/etc/passwd")
    result = shop.run(shop.pod("id", layers=(layer,)))
    assert '"/etc/passwd" in the image is not a regular file' in result.err
    # A link that leaves the root stays in it.
    link = shop.layer({"etc/passwd": "->../../../../../../etc/passwd-of-the-host"})
    assert shop.run(shop.pod("id", layers=(link,), user="0")).status == 0


def test_working_directory(shop: Workshop, accounts: str) -> None:
    assert shop.run(shop.pod("cwd")).lines == ["/"]
    assert shop.run(shop.pod("cwd", layers=(accounts,), working_directory="/srv/www")).lines == ["/srv/www"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nowhere", "no such file or directory"),
        ("/etc/passwd", "not a directory"),
        ("/private", "permission denied"),
        ("/proc/self/fd/0", "no such file or directory"),
    ],
)
def test_bad_working_directory(shop: Workshop, accounts: str, path: str, why: str) -> None:
    """The last one is a directory of the host, through the app's own standard input (CVE-2024-21626)."""
    private = shop.layer({"private/": ""})
    os.chmod(f"{private}/private", 0o700)
    pod = shop.pod("cwd", layers=(accounts, private), user="web", working_directory=path)
    result = shop.run(pod, stdin="/usr" if path.startswith("/proc") else os.devnull)
    assert (result.status, result.out) == (254, "")
    assert f'cannot enter working directory "{path}" as user 33: {why}' in result.err


def test_descriptors(shop: Workshop, tmp_path: Path) -> None:
    """Standard streams and the lock, which nobody can write to; not what the engine or its caller had open."""

    def litter() -> None:
        for fd in (30, 31, 1000):
            os.dup2(os.open("/", os.O_RDONLY), fd, inheritable=True)

    pod = shop.pod("fds")
    assert shop.run(pod, before=litter).lines == [
        "0 character read", "1 file write", "2 file write", f"{pod.lock_fd} file read",
    ]  # fmt: skip


def test_signals_and_umask(shop: Workshop) -> None:
    def disturb() -> None:
        os.umask(0o077)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})

    result = shop.run(shop.pod("signals", "+", "umask"), before=disturb)
    assert result.out.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "0022"]


@pytest.mark.parametrize(("value", "shown"), [(True, "1"), (False, "0"), ("true", "0")])
def test_no_new_privileges(shop: Workshop, value: object, shown: str) -> None:
    pod = shop.pod("nnp", isolators=(Isolator("os/linux/no-new-privileges", value),))
    assert shop.run(pod).out.split() == ["NoNewPrivs:", shown]


def test_arguments_are_passed_as_they_are(shop: Workshop) -> None:
    words = ("a b", "", "$HOME", "ü", "--", "\udcff")
    assert shop.run(shop.pod("args", *words)).lines == list(words)


# --- the root


def test_layers_stack_and_stay_untouched(shop: Workshop) -> None:
    lower = shop.layer({"etc/name": "lower", "etc/both": "lower"})
    upper = shop.layer({"etc/both": "upper", "odd:name,with\\everything/x": "y"})
    reading = shop.pod("read", "/etc/name", "+", "read", "/etc/both", layers=(lower, upper))
    assert shop.run(reading).out == "lowerupper"
    writing = shop.run(shop.pod("write", "/etc/name", "mine", "+", "read", "/etc/name", layers=(lower, upper)))
    assert writing.out == "mine"
    assert shop.run(shop.pod("read", "/etc/name", layers=(lower, upper))).out == "lower"
    assert Path(lower, "etc/name").read_text() == "lower"
    assert sorted(os.listdir(lower)) == ["etc"]


def test_two_pods_at_once_do_not_see_each_other(shop: Workshop) -> None:
    words = ("write", "/shared", "one", "+", "write", "/tmp/t", "one", "+", "args", "ready", "+", "sleep")
    with shop.running(shop.pod(*words)):
        assert shop.run(shop.pod("stat", "/shared")).status == 99
        assert shop.run(shop.pod("list", "/tmp")).out == ""


def test_the_roots_own_mode_is_that_of_the_top_layer(shop: Workshop) -> None:
    top = shop.layer({})
    os.chmod(top, 0o711)
    os.chown(top, 5, 6)
    assert shop.run(shop.pod("stat", "/", layers=(top,)), before=lambda: os.umask(0o077)).lines == [
        "directory 0711 5 6"
    ]


def test_many_layers(shop: Workshop) -> None:
    layers = tuple(shop.layer({f"l/{number}": str(number)}) for number in range(120))
    assert len(shop.run(shop.pod("list", "/l", layers=layers)).lines) == 120


def _kernel_without(*numbers: int) -> Callable[[], None]:
    def deny_all() -> None:
        for number in numbers:
            seccomp.deny(number, errno.EINVAL)

    return deny_all


@pytest.mark.parametrize("layers", [0, 1, 60])
def test_overlay_on_kernels_without_lowerdir_plus(shop: Workshop, layers: int) -> None:
    stack = tuple(shop.layer({"etc/name": f"{number}\n", f"l/{number}": ""}) for number in range(-1, layers))
    pod = shop.pod(
        "write", "/etc/w", "mine\n", "+", "read", "/etc/w", "+", "read", "/etc/name", "+", "mounts", layers=stack
    )
    result = shop.run(pod, before=_kernel_without(431))
    assert result.lines[:2] == ["mine", str(layers - 1)], result.err
    assert "lowerdir=/proc/self/fd/" in result.out
    assert "lowerdir+=" not in result.out


def test_too_many_layers_for_one_page_of_options(shop: Workshop) -> None:
    stack = tuple(shop.layer({}) for _ in range(250))
    result = shop.run(shop.pod("cwd", layers=stack), before=_kernel_without(431))
    assert result.status == 254
    assert "cannot stack the app's 251 layers: too many layers for this kernel" in result.err
    assert shop.run(shop.pod("cwd", layers=stack)).status == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of pivot_root differs")
def test_a_root_that_cannot_be_pivoted(shop: Workshop) -> None:
    """As on an initramfs; pod and enter still agree on the root."""
    pod = shop.pod("list", "/", "+", "cwd")
    result = shop.run(pod, before=_kernel_without(155))
    assert result.lines == ["bin", "dev", "etc", "proc", "sys", "tmp", "/"], result.err


def test_a_volume_of_limited_size(shop: Workshop) -> None:
    volume = Mount("", "/data", False, None, "scratch", size=1 << 20, mode=0o1777)
    pod = shop.pod("write", "/data/x", "text\n", "+", "read", "/data/x", "+", "mounts", mounts=(volume,))
    os.makedirs(poddir.volume(pod.directory, "scratch"))
    result = shop.run(pod)
    assert result.lines[0] == "text", result.err
    assert "size=1024k" in next(line for line in result.lines if " /data " in line)
    assert os.listdir(poddir.volume(pod.directory, "scratch")) == []


def test_copied_root(shop: Workshop) -> None:
    pod = shop.pod("write", "/new", "x", "+", "list", "/", copied=True)
    assert "new" in shop.run(pod).lines
    assert Path(poddir.rootfs(pod.directory, "app"), "new").read_text() == "x"


@pytest.mark.parametrize("copied", [False, True])
def test_read_only_root(shop: Workshop, tmp_path: Path, copied: bool) -> None:
    """Read-only is the root, not what is mounted in it; places for mounts can still be made."""
    (tmp_path / "data").mkdir()
    mounts = (host_mount(f"{tmp_path}/data", "/made/for/this"),)
    words = ("write", "/made/for/this/x", "1", "+", "write", "/tmp/x", "+", "write", "/etc/x")
    pod = shop.pod(*words, mounts=mounts, read_only_root=True, copied=copied)
    result = shop.run(pod)
    assert (result.status, result.out) == (99, "/etc/x: Read-only file system\n")
    assert (tmp_path / "data/x").read_text() == "1"


def test_missing_layer(shop: Workshop) -> None:
    result = shop.run(shop.pod("cwd", layers=("/nowhere/sha512-abc",)))
    assert result.status == 254
    assert 'cannot open layer "sha512-abc": no such file or directory (fetch the image again)' in result.err


def test_only_the_pods_mounts_are_in_its_namespace(shop: Workshop, tmp_path: Path) -> None:
    """None of the host's file systems is kept busy by a pod."""
    lines = [line.split() for line in shop.run(shop.pod("mounts")).lines]
    tops = {fields[4] for fields in lines if not fields[4].startswith(("/dev/", "/proc/", "/sys/"))}
    assert tops == {"/", "/dev", "/proc", "/sys", "/tmp", "/etc/hosts", "/etc/resolv.conf"}
    assert not [fields for fields in lines if any(field.startswith("shared:") for field in fields)]


def test_nothing_is_told_to_a_host_that_shares_its_mounts(shop: Workshop) -> None:
    """systemd makes / shared; what the pod mounts must not appear there (rkt/rkt#2351)."""

    def share() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | MS_SHARED)

    result = shop.run(shop.pod("mounts"), before=share)
    fields = [line.split(" - ")[0].split()[6:] for line in result.lines]
    assert result.status == 0, result.err
    assert not [names for names in fields if any(name.startswith("shared:") for name in names)]


def test_tmp(shop: Workshop) -> None:
    assert shop.run(shop.pod("stat", "/tmp"), before=lambda: os.umask(0o077)).lines == ["directory 1777 0 0"]


# --- volumes


def test_volume(shop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mounts = (host_mount(str(source), "/a/b/c"),)
    result = shop.run(shop.pod("write", "/a/b/c/f", "hello", "+", "stat", "/a", mounts=mounts))
    assert (result.status, result.lines) == (0, ["directory 0755 0 0"])
    assert (source / "f").read_text() == "hello"
    assert not os.path.exists(f"{shop.base}/a")


def test_read_only_volume(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    mounts = (host_mount(str(tmp_path), "/v", read_only=True), host_mount(f"{tmp_path}/f", "/file", read_only=True))
    for path in ("/v/f", "/file", "/v/new"):
        result = shop.run(shop.pod("write", path, "new", mounts=mounts))
        assert result.out == f"{path}: Read-only file system\n"
    assert (tmp_path / "f").read_text() == "old"


@pytest.fixture
def submount(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file system mounted in it."""
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "rkpy-test", top / "sub"], check=True)
    (top / "sub/inner").write_text("inner")
    yield top
    subprocess.run(["umount", "-R", top / "sub"], check=True)


@pytest.mark.parametrize(("recursive", "seen"), [(True, ["inner"]), (False, []), (None, [])])
def test_recursion(shop: Workshop, submount: Path, recursive: bool | None, seen: list[str]) -> None:
    mounts = (host_mount(str(submount), "/v", recursive=recursive),)
    assert shop.run(shop.pod("list", "/v/sub", mounts=mounts)).lines == seen


def test_recursive_read_only_covers_submounts(shop: Workshop, submount: Path) -> None:
    mounts = (host_mount(str(submount), "/v", read_only=True, recursive=True),)
    result = shop.run(shop.pod("write", "/v/sub/inner", "new", mounts=mounts))
    assert result.out == "/v/sub/inner: Read-only file system\n"
    assert (submount / "sub/inner").read_text() == "inner"


def test_what_the_host_mounts_later(shop: Workshop, submount: Path) -> None:
    """A recursive volume follows the host; a read-only one must not, for what came would be writable."""
    subprocess.run(["mount", "--make-shared", submount / "sub"], check=True)
    (submount / "sub/late").mkdir()
    follow = host_mount(str(submount), "/rw", recursive=True)
    fixed = host_mount(str(submount), "/ro", recursive=True, read_only=True)
    with shop.running(shop.pod("args", "ready", "+", "sleep", mounts=(follow, fixed))) as pod:
        subprocess.run(["mount", "-t", "tmpfs", "rkpy-test", submount / "sub/late"], check=True)
        (submount / "sub/late/news").write_text("")
        assert shop.enter(pod.pod, "inspect", "list", "/rw/sub/late").lines == ["news"]
        assert shop.enter(pod.pod, "inspect", "list", "/ro/sub/late").lines == []


def test_nested_targets_in_any_order(shop: Workshop, tmp_path: Path) -> None:
    for name in ("outer/in/ner", "inner/most", "innermost"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "innermost/yes").touch()
    mounts = (
        host_mount(f"{tmp_path}/innermost", "/z/in/ner/../../in/most"),
        host_mount(f"{tmp_path}/inner", "/z/in"),
        host_mount(f"{tmp_path}/outer", "/z"),
    )
    for order in (mounts, mounts[::-1], mounts[1:] + mounts[:1]):
        assert shop.run(shop.pod("list", "/z/in/most", mounts=order)).lines == ["yes"]


@pytest.fixture
def host_places() -> Iterator[None]:
    """Where a mistake would create something; taken away, so that it shows once."""
    yield
    found = [path for path in ("/dev/rkpy", "/dev/shm/rkpy-x", "/rkpy-escape") if os.path.lexists(path)]
    for path in found:
        shutil.rmtree(path)
    assert found == []


ESCAPES = {
    "relative": ({"data": "->../../../../../../../../rkpy-escape"}, "/data"),
    "absolute": ({"data": "->/rkpy-escape"}, "/data"),
    "parent": ({"data": "->../../../../../../.."}, "/data/rkpy-escape"),
    "chain": ({"data": "->a", "a": "->b", "b": "->/rkpy-escape"}, "/data"),
    "dots": ({}, "/../../../../../../rkpy-escape"),
    "inside": ({"x/": "", "data": "->x/../x"}, "/data/../rkpy-escape"),
}


@pytest.mark.usefixtures("host_places")
@pytest.mark.parametrize("case", ESCAPES)
def test_targets_stay_inside(shop: Workshop, tmp_path: Path, case: str) -> None:
    """The volume lands in the root, and its place is made there and not on the host (rkt/rkt#3228)."""
    files, target = ESCAPES[case]
    source = tmp_path / "source"
    source.mkdir()
    (source / "here").touch()
    pod = shop.pod("list", "/rkpy-escape", layers=(shop.layer(files),), mounts=(host_mount(str(source), target),))
    result = shop.run(pod)
    assert result.lines == ["here"], result


def test_a_link_to_a_directory_of_the_host(shop: Workshop, tmp_path: Path) -> None:
    """/etc of the image is meant by a link to /etc, even where the host has what the image lacks."""
    (tmp_path / "f").write_text("volume")
    before = sorted(os.listdir("/etc"))
    layer = shop.layer({"config": "->/etc"})
    mounts = (host_mount(f"{tmp_path}/f", "/config/rkpy-test-only"),)
    assert shop.run(shop.pod("read", "/etc/rkpy-test-only", layers=(layer,), mounts=mounts)).out == "volume"
    assert sorted(os.listdir("/etc")) == before


BAD_TARGETS = {
    "missing in /dev": ({}, "/dev/rkpy/x", "it is missing, and creating it would write to the host"),
    "missing in /dev by link": ({"data": "->/dev/shm"}, "/data/rkpy-x/y", "creating it would write to the host"),
    "the root by link": ({"data": "->/"}, "/data", "this is the root itself"),
    "loop": ({"data": "->data"}, "/data", "too many levels of symbolic links"),
    "loop of two": ({"data": "->b/x", "b": "->data"}, "/data/z", "too many levels of symbolic links"),
    "through a file": ({"data": "text"}, "/data/x", "not a directory"),
    "magic link": ({"data": "->/proc/self/root"}, "/data/x", ""),
    "name too long": ({}, "/" + "x" * 300, "file name too long"),
}


@pytest.mark.usefixtures("host_places")
@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets(shop: Workshop, tmp_path: Path, case: str) -> None:
    files, target, message = BAD_TARGETS[case]
    pod = shop.pod("cwd", layers=(shop.layer(files),), mounts=(host_mount(str(tmp_path), target),))
    result = shop.run(pod)
    assert (result.status, result.out) == (254, "")
    assert message in result.err
    assert result.err.startswith('volume "')


def test_a_place_in_another_volume_must_exist(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    mounts = (host_mount(f"{tmp_path}/outer", "/v"), host_mount(f"{tmp_path}/outer", "/v/inner"))
    result = shop.run(shop.pod("cwd", mounts=mounts))
    assert 'volume "inner": cannot reach "/v/inner" in the app: it is missing' in result.err
    assert os.listdir(tmp_path / "outer") == []


def test_a_place_in_the_pods_own_volume_is_made(shop: Workshop, tmp_path: Path) -> None:
    pod = shop.pod("list", "/v")
    os.makedirs(poddir.volume(pod.directory, "empty"))
    mounts = (host_mount("", "/v")._replace(volume="empty"), host_mount(str(tmp_path), "/v/in"))
    app = pod.apps[0]._replace(mounts=mounts)
    assert shop.run(pod._replace(apps=(app,))).lines == ["in"]


def test_volumes_below_tmp_and_instead_of_the_defaults(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/yes").touch()
    for target in ("/tmp/.X11/unix", "/tmp", "/sys", "/dev"):
        pod = shop.pod("list", target, mounts=(host_mount(f"{tmp_path}/source", target),))
        assert shop.run(pod).lines == ["yes"], target


BAD_SOURCES = [
    ("/nowhere/at/all", 'volume "v": host path "/nowhere/at/all" does not exist'),
    ("/proc/self/root", 'volume "v": cannot use host path "/proc/self/root": too many levels of symbolic links'),
    ("/etc/passwd/x", 'volume "v": cannot use host path "/etc/passwd/x": not a directory'),
]


@pytest.mark.parametrize(("source", "message"), BAD_SOURCES)
def test_bad_sources(shop: Workshop, source: str, message: str) -> None:
    result = shop.run(shop.pod("cwd", mounts=(host_mount(source, "/v"),)))
    assert (result.status, result.out) == (254, "")
    assert message in result.err


def test_file_socket_and_link_as_source(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    (tmp_path / "link").symlink_to("f")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        mounts = (
            host_mount(f"{tmp_path}/f", "/new/file"),
            host_mount(f"{tmp_path}/link", "/etc/linked"),
            host_mount(f"{tmp_path}/s", "/run/s"),
        )
        words = ("read", "/new/file", "+", "read", "/etc/linked", "+", "stat", "/run/s")
        assert shop.run(shop.pod(*words, mounts=mounts)).out.startswith("texttextsocket ")


def test_file_and_directory_do_not_mix(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    result = shop.run(shop.pod("cwd", mounts=(host_mount(f"{tmp_path}/f", "/etc"),)))
    assert f'volume "etc": "{tmp_path}/f" is a file and "/etc" in the app is a directory' in result.err


def test_device_as_source(shop: Workshop) -> None:
    mounts = (host_mount("/dev/zero", "/devices/zero"),)
    assert shop.run(shop.pod("stat", "/devices/zero", mounts=mounts)).out.startswith("character ")
    result = shop.run(shop.pod("cwd", mounts=(host_mount("/dev/zero", "/z", read_only=True),)))
    assert "a read-only mount does not keep the app from writing to the device" in result.err


# --- names


@pytest.mark.parametrize(
    ("content", "host_wins"),
    [(None, True), ("", True), ("->../run/gone/stub", True), ("nameserver 192.0.2.1\n", False)],
)
def test_resolv_conf(shop: Workshop, content: str | None, host_wins: bool) -> None:
    layer = shop.layer({} if content is None else {"etc/resolv.conf": content})
    result = shop.run(shop.pod("read", "/etc/resolv.conf", layers=(layer,)))
    assert result.out == (Path("/etc/resolv.conf").read_text() if host_wins else content)
    if host_wins:
        written = shop.run(shop.pod("write", "/etc/resolv.conf", "x", layers=(layer,)))
        assert written.out == "/etc/resolv.conf: Read-only file system\n"


def test_a_volume_at_resolv_conf_wins(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    mounts = (host_mount(f"{tmp_path}/mine", "/etc/resolv.conf"),)
    assert shop.run(shop.pod("read", "/etc/resolv.conf", mounts=mounts)).out == "mine"


@pytest.mark.parametrize("etc", ["->/proc/sys/kernel", "->/dev/shm", "text", "->/"])
def test_an_image_with_a_strange_etc(shop: Workshop, etc: str) -> None:
    """The host's files are left out rather than put anywhere else."""
    root = shop.layer({"bin/": "", "etc": etc})
    shutil.copy(f"{shop.base}/bin/inspect", f"{root}/bin/inspect")
    pod = shop.pod("cwd")
    pod = pod._replace(apps=(pod.apps[0]._replace(layers=(root,)),))
    result = shop.run(pod)
    assert result.status == (254 if etc == "text" else 0), result.err
    assert not {"hosts", "resolv.conf"} & set(os.listdir("/dev/shm"))


# --- what cannot be executed


def _broken(shop: Workshop) -> str:
    layer = shop.layer(
        {
            "bin/script": "#!/bin/no-such-shell -e\n", "bin/crlf": "#!/bin/inspect\r\n", "bin/text": "echo hello\n",
            "bin/empty": "", "bin/dangling": "->nowhere", "bin/folder/": "", "data/plain": "x",
            "bin/foreign": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xf3\0\x01\0\0\0" + bytes(40),
        }
    )  # fmt: skip
    shutil.copy(os.path.realpath("/bin/ls"), f"{layer}/bin/dynamic")
    return layer


BROKEN = [
    ("/bin/script", 126, 'cannot execute "/bin/script": its interpreter "/bin/no-such-shell" is not in the image'),
    ("script", 126, 'cannot execute "/bin/script": its interpreter "/bin/no-such-shell" is not in the image'),
    ("/bin/crlf", 126, "(the line ends in a carriage return)"),
    ("/bin/text", 126, "it is neither a program nor a script that begins with #!"),
    ("/bin/empty", 126, "it is empty or cannot be read"),
    ("/bin/foreign", 126, "it is a program for another kind of machine"),
    ("/bin/folder", 126, 'cannot execute "/bin/folder": it is a directory'),
    ("/data/plain", 126, 'cannot execute "/data/plain": permission denied, it has no execute permission'),
    ("/bin/inspect/x", 127, 'program "/bin/inspect/x" not found'),
    ("/bin/dangling", 127, 'program "/bin/dangling", a dangling symlink not found'),
    ("/bin/dynamic", 126, "is not in the image"),
    ("/nowhere", 127, 'program "/nowhere" not found'),
    ("nowhere", 127, 'program "nowhere" not found in the app\'s PATH'),
    ("a\0b", 254, "embedded null byte"),
]


@pytest.mark.parametrize(("program", "status", "message"), BROKEN)
def test_programs_that_cannot_be_executed(shop: Workshop, program: str, status: int, message: str) -> None:
    def no_imports() -> None:
        """Inside the root there is no standard library: whatever the error path needs has to be there already."""
        sys.addaudithook(
            lambda event, args: os._exit(97) if event == "import" and os.path.exists("/data/plain") else None
        )

    result = shop.run(shop.pod(layers=(_broken(shop),), exec=(program, "x")), before=no_imports)
    assert (result.status, result.out) == (status, ""), result.err
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_the_search_goes_on_after_a_file_that_may_not_be_executed(shop: Workshop) -> None:
    layer = shop.layer({"first/inspect": "no program"})
    pod = shop.pod("args", "found", layers=(layer,), environment=(("PATH", "/first:/nowhere:/bin"),))
    assert shop.run(pod).lines == ["found"]


def test_pre_start(shop: Workshop, accounts: str) -> None:
    """As root, before the app, in its root; a failure keeps the app from starting."""
    handlers = (EventHandler("pre-start", ("inspect", "id", "+", "write", "/srv/www/pre")),)
    result = shop.run(shop.pod("stat", "/srv/www/pre", layers=(accounts,), user="web", event_handlers=handlers))
    assert [result.lines[0], result.lines[-1]] == ["uid 0 0 0", "file 0644 0 0"]
    failing = (EventHandler("pre-start", ("inspect", "exit", "3")),)
    result = shop.run(shop.pod("args", "never", event_handlers=failing))
    assert (result.status, result.out) == (254, "")
    assert 'pre-start handler of app "app" failed (exit status 3)' in result.err


# --- enter


def test_enter(shop: Workshop, accounts: str) -> None:
    fields: dict[str, Any] = {"user": "web", "group": "staff", "working_directory": "/srv/www"}
    pod = shop.pod("write", "/tmp/x", "1", "+", "args", "ready", "+", "sleep", layers=(accounts,), **fields)
    with shop.running(pod) as running:
        words = ("id", "+", "cwd", "+", "list", "/", "+", "read", "/tmp/x", "+", "fds")
        result = shop.enter(running.pod, "inspect", *words)
        assert result.lines[:4] == ["uid 33 33 33", "gid 50 50 50", "groups", "/srv/www"], result.err
        assert result.lines[4:11] == ["bin", "dev", "etc", "proc", "srv", "sys", "tmp"]
        assert result.lines[11:] == ["10 character read", "1 file write", "2 file write"]
        assert "AC_APP_NAME=app" in shop.enter(running.pod, "inspect", "env").lines
        assert shop.enter(running.pod, "inspect", "exit", "41").status == 41
        assert shop.enter(running.pod, "nowhere").status == 127


@pytest.mark.parametrize(("shells", "chosen"), [(("sh", "bash"), "bash"), (("sh",), "sh")])
def test_enter_runs_a_shell_by_default(shop: Workshop, shells: tuple[str, ...], chosen: str) -> None:
    layer = shop.layer({f"bin/{name}": "#!/bin/inspect args\n" for name in shells})
    with shop.running(shop.pod("args", "ready", "+", "sleep", layers=(layer,))) as running:
        assert shop.enter(running.pod).lines[0] == f"/bin/{chosen}"


def test_enter_a_pod_that_ended(shop: Workshop) -> None:
    pod = shop.pod("exit", "0")
    request = EnterRequest(pod.directory, pod.apps[0], ("inspect",))
    with pytest.raises(PodError, match="no leader"):
        fly.enter(request)
    shop.run(pod)
    with pytest.raises(PodError, match="isn't currently running"):
        fly.enter(request)


def test_a_reused_pid_is_neither_entered_nor_signalled(shop: Workshop) -> None:
    """The leader's number and its namespace's now belong to another pod's process: the only one a mistake can hit."""
    pod = shop.pod("exit", "0")
    with shop.running(shop.pod("args", "ready", "+", "sleep")) as other:
        namespace = os.stat(f"/proc/{other.pid}/ns/mnt").st_ino
        _record_leader(pod.directory, poddir.Leader(other.pid, 1, namespace, poddir.boot_id()))
        with pytest.raises(PodError, match="isn't currently running"):
            fly.enter(EnterRequest(pod.directory, pod.apps[0], ("inspect",)))
        fly.stop(pod.directory, force=False)
        fly.stop(pod.directory, force=True)
        time.sleep(0.2)  # What a signal would have needed to be noticed.
        assert poddir.start_time(other.pid) is not None
    os.close(pod.lock_fd)


def test_the_hosts_own_namespace_is_never_a_pods(shop: Workshop) -> None:
    """Only looked at, never signalled: a mistake would hit the whole machine."""
    pod = shop.pod("exit", "0")
    os.close(pod.lock_fd)
    leader = poddir.Leader(2**22, 1, os.stat("/proc/self/ns/mnt").st_ino, poddir.boot_id())
    named_as_a_mount_of_the_host = f"{shop.root}/proc"
    os.mkdir(named_as_a_mount_of_the_host)
    assert list(fly.members(named_as_a_mount_of_the_host, leader)) == []


def _record_leader(directory: str, leader: poddir.Leader) -> None:
    with open(f"{directory}/{poddir.PID}", "w", encoding="ascii") as file:
        file.write(" ".join(map(str, leader)))


# --- stop


def test_stop(shop: Workshop) -> None:
    with shop.running(shop.pod("args", "ready", "+", "sleep")) as running:
        fly.stop(running.pod.directory, force=False)
        assert running.wait() == -signal.SIGTERM
        fly.stop(running.pod.directory, force=False)
        fly.gc(running.pod.directory)


def test_stop_by_force(shop: Workshop) -> None:
    """All of the pod, and only the pod; not the process group, which the caller's shell is in."""
    words = ("ignore-term", "+", "orphan", "+", "args", "ready", "+", "sleep")
    pod = shop.pod(*words)
    with shop.running(shop.pod("args", "ready", "+", "sleep")) as other, shop.running(pod) as running:
        leader = poddir.read_leader(pod.directory)
        assert leader is not None
        until(lambda: len(list(fly.members(pod.directory, leader))) == 2)
        orphan = int(Path(pod.directory, "out").read_text().split()[0])
        fly.stop(pod.directory, force=False)
        fly.stop(pod.directory, force=True)
        assert running.wait() == -signal.SIGKILL
        until(lambda: not os.path.exists(f"/proc/{orphan}") or poddir.start_time(orphan) is None)
        assert poddir.start_time(other.pid) is not None


def test_stop_what_the_leader_left(shop: Workshop) -> None:
    pod = shop.pod("orphan", "+", "args", "ready")
    with shop.running(pod) as running:
        running.wait()
        orphan = int(Path(pod.directory, "out").read_text().split()[0])
        assert poddir.start_time(orphan) is not None
        fly.stop(pod.directory, force=False)
        until(lambda: poddir.start_time(orphan) is None)


def test_a_process_with_a_namespace_of_its_own_is_found_by_the_lock(shop: Workshop) -> None:
    """It keeps the pod alive, so it has to be stopped; somebody who merely looks at the lock does not."""
    pod = shop.pod("exit", "0")

    def hold() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)

    def look() -> None:
        os.close(pod.lock_fd)
        os.open(f"{pod.directory}/{poddir.LOCK}", os.O_RDONLY)

    holding, looking = _idle_child(hold), _idle_child(look)
    os.close(pod.lock_fd)
    leader = poddir.Leader(2**22, 1, 1, poddir.boot_id())
    _record_leader(pod.directory, leader)
    try:
        assert [pid for pid, _ in fly.members(pod.directory, leader)] == [holding]
        fly.stop(pod.directory, force=True)
        until(lambda: poddir.start_time(holding) is None)
        assert poddir.start_time(looking) is not None
    finally:
        for child in (holding, looking):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _idle_child(prepare: Callable[[], None]) -> int:
    """A child that has done `prepare` and waits to be killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        prepare()
        os.close(writer)
        os.close(reader)
        signal.pause()
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def test_debug_shows_the_plan(shop: Workshop) -> None:
    pod = shop.pod("cwd", pod_fields={"debug": True})
    assert [f"fly: {line}" for line in fly.plan(pod).describe()] == shop.run(pod).err.splitlines()


def test_check_refuses_before_anything_is_mounted(shop: Workshop) -> None:
    pod = shop.pod("cwd")
    app = PreparedApp("b", "sha512-0", App(exec=("x",)), (), False, ())
    os.close(pod.lock_fd)
    with pytest.raises(UsageError, match="one app per pod, not 2"):
        fly.check(pod._replace(apps=(*pod.apps, app)))
