"""Credentials reach the apps of a pod, their users only, and stay nowhere (docs/systemd.md)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import syscalls
from stage1 import credentials, mounts
from tests.host import activating, flavours
from tests.host.activating import Handed
from tests.host.flavours import (
    CAPABILITIES,
    HOST_IDS,
    NAMESPACES,
    QUICK,
    SEVERAL,
    SUPERVISED,
    Ground,
    Variant,
    every,
    until,
)

PLACE = "/run/host/credentials"
SECRET = "s3cr3t-Zq8"
TMPFS_MAGIC, RAMFS_MAGIC = 0x01021994, 0x858458F6


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("credentials"), inspector) as made:
        yield made


@pytest.fixture
def service(tmp_path: Path) -> Handed:
    """A service with a credential, and things that are none beside it."""
    place = tmp_path / "given"
    place.mkdir(mode=0o500)
    (place / "password").write_text(SECRET)
    (place / "link").symlink_to("/etc/passwd")
    (place / "a:b").write_text("no name for one")
    (place / "below").mkdir()
    os.mkfifo(place / "pipe")
    return Handed((), {"CREDENTIALS_DIRECTORY": str(place)})


@every(QUICK)
def test_an_app_has_those_of_the_service_and_of_flags(
    ground: Ground, variant: Variant, service: Handed, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"from a file")
    flags = (
        f"--load-credential=key:{tmp_path}/key",
        "--load-credential=again:password",
        r"--set-credential=set:a\x41\n",
    )
    ask = (
        f"env + list {PLACE} + read {PLACE}/password + read {PLACE}/again + say  + read {PLACE}/key + read {PLACE}/set"
    )
    result = activating.run(ground, service, *ground.words(variant, *flags), *ground.app(ask))
    assert result.status == 0, result
    assert f"CREDENTIALS_DIRECTORY={PLACE}" in result.lines
    start = result.lines.index("again")
    assert result.lines[start : start + 4] == ["again", "key", "password", "set"], result
    assert "".join(result.lines[start + 4 :]) == f"{SECRET}{SECRET}from a fileaA", result


@every(QUICK)
def test_only_the_apps_user_reads_them_and_nobody_writes(ground: Ground, variant: Variant, service: Handed) -> None:
    ask = (
        f"stat {PLACE} + stat {PLACE}/password + read {PLACE}/password + try write {PLACE}/password x"
        f" + try write {PLACE}/more x + try chmod {PLACE}/password 644 + try unlink {PLACE}/password"
    )
    app = ground.app(ask, "--user=web", "--group=web")
    result = activating.run(ground, service, *ground.words(variant), *app)
    assert result.lines[:2] == ["directory 0500 33 34", "file 0400 33 34"], result
    assert result.out.count("Read-only file system") + result.out.count("EROFS") == 4, result


@every(QUICK)
def test_another_user_of_the_app_does_not(ground: Ground, variant: Variant, service: Handed) -> None:
    """The inspector becomes somebody else before it looks."""
    ask = f"become 44 44 + try list {PLACE} + try read {PLACE}/password"
    result = activating.run(ground, service, *ground.words(variant), *ground.app(ask))
    assert SECRET not in result.out
    assert result.out.count("Permission denied") == 2, result


@every(CAPABILITIES, QUICK)
def test_root_of_the_pod_cannot_fill_the_memory_with_them(ground: Ground, variant: Variant, service: Handed) -> None:
    """Be it that it makes them writable: that takes CAP_SYS_ADMIN."""
    app = ground.app(f"statvfs {PLACE}")
    result = activating.run(ground, service, *ground.words(variant), *app)
    assert result.status == 0
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(result.out.replace(",", " ").split()), result
    mounts = activating.run(ground, service, *ground.words(variant), *ground.app("mounts"))
    (line,) = [line for line in mounts.lines if f" {PLACE} " in line]
    assert " - tmpfs " in line or " - ramfs " in line
    assert "noswap" in line or " - ramfs " in line, line


@every(SUPERVISED, QUICK)
def test_restarts_find_them(ground: Ground, variant: Variant, service: Handed) -> None:
    app = ground.app(f"read {PLACE}/password + say  + exit 1", "--restart=on-failure:2", "--user=web", "--group=web")
    result = activating.run(ground, service, *ground.words(variant), *app)
    assert result.lines == [SECRET] * 3, result


@every(QUICK)
def test_enter_finds_them(ground: Ground, variant: Variant, service: Handed) -> None:
    stay = ground.app("say up + sleep", "--user=web", "--group=web")
    with activating.running(ground, service, ground.words(variant), stay) as pod:
        pod.line()
        found = ground.rkpy.ok("enter", pod.uuid, "/bin/inspect", "env", "+", "read", f"{PLACE}/password")
        refused = ground.rkpy("enter", "--user=44:44", pod.uuid, "/bin/inspect", "read", f"{PLACE}/password")
        ground.rkpy.ok("stop", "--force", pod.uuid)
    assert SECRET in found
    assert f"CREDENTIALS_DIRECTORY={PLACE}" in found
    assert "Permission denied" in refused.out


@every(SEVERAL, QUICK)
def test_each_app_has_a_copy_for_its_own_user(ground: Ground, variant: Variant, service: Handed) -> None:
    ask = f"read {PLACE}/password + say "
    apps = [*ground.app(ask, "--name=a", "--user=web"), "---", *ground.app(ask, "--name=b", "--user=1000")]
    result = activating.run(ground, service, *ground.words(variant), *apps)
    assert result.out.count(SECRET) == 2, result


@every(QUICK)
def test_they_are_in_no_file_of_the_pod_and_no_command_line(ground: Ground, variant: Variant) -> None:
    secret = f"{SECRET}-{variant.name}"
    words = ground.words(variant, f"--set-credential=password:{secret}")
    with ground.running_command(words, ground.app("say up + sleep")) as pod:
        assert pod.line() == "up"
        shown = ground.rkpy.ok("cat-manifest", pod.uuid) + ground.rkpy.ok("status", pod.uuid)
        processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        done = subprocess.run(["grep", "-rls", secret, ground.rkpy.data], capture_output=True, text=True)
        uuid = pod.uuid
        ground.rkpy.ok("stop", "--force", uuid)
    assert secret not in shown
    assert secret not in processes
    assert done.stdout == ""


@every(SUPERVISED, NAMESPACES, QUICK)
def test_a_pod_that_runs_again_has_what_this_run_was_given(ground: Ground, variant: Variant) -> None:
    ask = f"try list {PLACE} + env"
    file = ground.new("uuid") / "uuid"
    first = ground.run(variant, ask, pod=("--set-credential=a:1", f"--uuid-file-save={file}"))
    assert first.lines[0] == "a"
    uuid = file.read_text().strip()
    net = [word for word in variant.words if word.startswith("--net")]
    second = ground.rkpy("start", *net, "--set-credential=b:2", uuid)
    assert second.out.splitlines()[0] == "b", second
    third = ground.rkpy("start", *net, uuid)
    assert "CREDENTIALS_DIRECTORY" not in third.out
    assert "b\n" not in third.out


@every(SEVERAL, QUICK)
def test_apps_that_are_added_later_have_them(ground: Ground, variant: Variant) -> None:
    with ground.running_command(["app", "sandbox", *variant.words, f"--set-credential=late:{SECRET}"]) as pod:
        ground.rkpy.ok("app", "add", pod.uuid, *ground.app(f"env + read {PLACE}/late", "--name=late"))
        for _ in range(2):
            ground.rkpy.ok("app", "start", "--app=late", pod.uuid)
            until(lambda: ground.rkpy.ok("app", "list", "--no-legend", pod.uuid) == "late\texited\n")
        logs = ground.rkpy.ok("logs", pod.uuid)
        ground.rkpy.ok("stop", "--force", pod.uuid)
    assert logs.count(SECRET) == 2, logs
    assert logs.count(f"CREDENTIALS_DIRECTORY={PLACE}") == 2


HOSTILE = {
    "a link to the kernel's": ({"run/host/credentials": "->/proc/tty"}, "leads into a file system of the kernel"),
    "a link to where nothing can be made": ({"run": "->/proc"}, "cannot reach"),
    "a file": ({"run": "a file"}, "cannot reach"),
}


@every(NAMESPACES, QUICK)
@pytest.mark.parametrize("case", HOSTILE)
def test_an_image_that_is_in_the_way(ground: Ground, variant: Variant, case: str) -> None:
    files, text = HOSTILE[case]
    result = ground.run(variant, "say hello", image=ground.image(files), pod=("--set-credential=a:1",))
    assert (result.status, result.out) == (254, ""), result
    assert text in result.err, result


@every(HOST_IDS, QUICK)
def test_a_link_of_the_image_leads_nowhere_on_the_host(ground: Ground, variant: Variant, tmp_path: Path) -> None:
    image = ground.image({"run/host/credentials": f"->{tmp_path}"})
    result = ground.run(variant, f"list {PLACE}", image=image, pod=("--set-credential=a:1",))
    assert result.lines == ["a"], result
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--set-credential=x", "--set-credential takes ID:VALUE"),
        (f"--set-credential=a/b:{SECRET}", "its ID is no name"),
        (f"--set-credential=a:{SECRET}\\q", "a backslash in the value"),
        ("--load-credential=a:nothing", 'was not given a credential "nothing"'),
        ("--load-credential=a:/nonexistent", "open /nonexistent: no such file or directory"),
        ("--load-credential=a:/", "--load-credential=a: open /: is a directory"),
    ],
)
def test_what_makes_no_sense_is_refused(ground: Ground, flag: str, text: str) -> None:
    pods = ground.rkpy.pods()
    said = ground.rkpy.refused("--insecure-options=image", "run", "--net=none", flag, ground.image())
    assert text in said
    assert SECRET not in said
    assert ground.rkpy.pods() == pods


@pytest.mark.parametrize("lacking", [(), ("noswap",), ("noswap", "ramfs")], ids=["tmpfs", "ramfs", "nothing better"])
def test_the_memory_is_the_best_there_is(lacking: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 6.4 and user namespaces do not have all of it."""
    real = mounts.new_file_system

    def limited(kind: str, attributes: int, *options: tuple[str, str | None]) -> int:
        if kind in lacking or any(key in lacking for key, _ in options):
            raise OSError(errno.EINVAL, "no such thing here")
        return real(kind, attributes, *options)

    monkeypatch.setattr(credentials, "new_file_system", limited)
    values = {"empty": b"", "large": bytes(range(256)) * 2048, "small": b"\0"}
    mount = credentials.pack(values)
    try:
        copy = credentials.Credentials(f"/proc/self/fd/{mount}", 1234).open_source()
        try:
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=copy)
            for name, value in values.items():
                with open(os.open(name, os.O_RDONLY, dir_fd=top), "rb") as file:
                    assert file.read() == value
                    found = os.fstat(file.fileno())
                assert (found.st_uid, found.st_mode & 0o777) == (1234, 0o400)
            assert sorted(os.listdir(top)) == sorted(values)
            assert os.fstat(top).st_mode & 0o777 == 0o500
            assert syscalls.filesystem_type(top) == (RAMFS_MAGIC if lacking == ("noswap",) else TMPFS_MAGIC)
            os.close(top)
        finally:
            os.close(copy)
    finally:
        os.close(mount)
