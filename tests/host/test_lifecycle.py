"""The end of pods for real: mounts, hostile contents, and the commands only root may run."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from common import syscalls
from common.errors import PodError, RkpyError
from stage0 import gc
from stage0.pods import DIRECTORIES, Pods
from tests.host.flying import Workshop
from tests.living import Living, die, start

ROOT = Path(__file__).parent.parent.parent
MS_BIND = 0x1000
MS_SHARED = 1 << 20


def in_mount_namespace(body: Callable[[], None]) -> None:
    """Run `body` in a child with a mount namespace of its own, which no mistake in it can get out of."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def tmpfs(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    syscalls.mount("tmpfs", str(path), "tmpfs", 0)


def mounts_below(path: Path) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [gc.unescape(line.split()[4]) for line in file]
    return [point for point in points if f"{point}/".startswith(f"{path}/")]


def dead_pod(pods: Pods) -> Path:
    """A pod that has exited, as a path that stays right until it is marked."""
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_run()
        os.makedirs(f"{pod.path}/rootfs/app")
        Path(pod.path, "pod").write_text("{}")
        return Path(pod.path)


def unexpected(error: RkpyError) -> None:
    raise error


def collect(pods: Pods) -> list[str]:
    """gc without grace; what failed."""
    failures: list[str] = []

    def complain(error: Exception) -> None:
        failures.append(str(error))

    list(gc.mark_exited(pods, complain))
    mounts = gc.read_mounts(pods.root)
    for pod, _ in gc.sweep(pods, 0, complain):
        try:
            gc.remove(pod, mounts)
        except PodError as error:
            failures.append(str(error))
    return failures


def left(pods: Pods) -> list[str]:
    return [pod.uuid for pod in pods.all(DIRECTORIES)]


def test_mounts_below_a_pod_go_and_those_of_the_host_stay(tmp_path: Path) -> None:
    """The classic: a recursive bind of a shared tree. Its copies are peers of the host's mounts, so to unmount them
    one by one is to unmount the host's, and to delete through them is to delete the host's files."""

    def body() -> None:
        host = tmp_path / "host"
        tmpfs(host)
        syscalls.mount(None, str(host), None, MS_SHARED)
        tmpfs(host / "pts")
        (host / "precious").touch()
        (host / "pts/precious").touch()
        pods = Pods(str(tmp_path / "pods"))
        root = dead_pod(pods) / "rootfs/app"
        (root / "dev").mkdir()
        syscalls.mount(str(host), str(root / "dev"), None, MS_BIND | syscalls.MS_REC)
        tmpfs(root / "odd name\nwith \\ and\ttab")
        tmpfs(root / "odd name\nwith \\ and\ttab/below")
        (root / "twice").mkdir()
        tmpfs(root / "twice")
        tmpfs(root / "twice")
        (root / "file").touch()
        syscalls.mount(str(host / "precious"), str(root / "file"), None, MS_BIND)
        assert len(mounts_below(Path(pods.root))) == 7
        (order,) = gc.read_mounts(pods.root).values()
        assert [point.count("/") for point in order] == sorted((point.count("/") for point in order), reverse=True)
        assert collect(pods) == []
        assert left(pods) == []
        assert mounts_below(Path(pods.root)) == []
        assert mounts_below(host) == [str(host), str(host / "pts")]
        assert (host / "precious").exists() and (host / "pts/precious").exists()

    in_mount_namespace(body)


def test_a_busy_mount_is_detached(tmp_path: Path) -> None:
    def body() -> None:
        pods = Pods(str(tmp_path / "pods"))
        root = dead_pod(pods) / "rootfs/app"
        tmpfs(root / "busy")
        user = os.open(root / "busy", os.O_RDONLY)
        assert collect(pods) == []
        assert left(pods) == []
        os.close(user)

    in_mount_namespace(body)


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_what_is_still_mounted_is_never_entered_and_the_next_gc_finishes(tmp_path: Path, kind: str) -> None:
    """As if it had been mounted after the mount table was read. A bind of the same file system has the same device
    number, which is what `rm --one-file-system` goes by."""

    def body() -> None:
        pods = Pods(str(tmp_path / "pods"))
        place = dead_pod(pods)
        (tmp_path / "host").mkdir()
        (place / "rootfs/app/mnt").mkdir()
        if kind == "tmpfs":
            tmpfs(place / "rootfs/app/mnt")
        else:
            syscalls.mount(str(tmp_path / "host"), str(place / "rootfs/app/mnt"), None, MS_BIND)
        (place / "rootfs/app/mnt/precious").touch()
        list(gc.mark_exited(pods, unexpected))
        for pod, _ in gc.sweep(pods, 0, unexpected):
            with pytest.raises(PodError, match=r"unable to remove pod .*something is mounted there"):
                gc.remove(pod, {})
            assert Path(pod.path, "rootfs/app/mnt/precious").exists()
            assert Path(pod.path, "pod").exists() and Path(pod.path, "lock").exists()
        assert collect(pods) == []
        assert left(pods) == []
        assert kind == "tmpfs" or (tmp_path / "host/precious").exists()

    in_mount_namespace(body)


def test_no_symlink_in_a_pod_leads_unmounting_astray(tmp_path: Path) -> None:
    """A process the pod left behind swaps a directory for a symlink after the mount table was read."""

    def body() -> None:
        pods = Pods(str(tmp_path / "pods"))
        place = dead_pod(pods)
        tmpfs(tmp_path / "host/mnt")
        (place / "rootfs/app/trap").symlink_to(tmp_path / "host")
        list(gc.mark_exited(pods, unexpected))
        for pod, _ in gc.sweep(pods, 0, unexpected):
            with pytest.raises(PodError, match="too many levels of symbolic links"):
                gc.remove(pod, {pod.uuid: ["rootfs/app/trap/mnt"]})
        assert str(tmp_path / "host/mnt") in mounts_below(tmp_path)

    in_mount_namespace(body)


def test_a_data_directory_behind_a_symlink(tmp_path: Path) -> None:
    def body() -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        pods = Pods(str(tmp_path / "link/pods"))
        tmpfs(dead_pod(pods) / "rootfs/app/mnt")
        assert collect(pods) == []
        assert left(pods) == []

    in_mount_namespace(body)


def test_a_hostile_root_is_removed(tmp_path: Path) -> None:
    """What images can bring and apps can make: whiteouts, devices, pipes, unreadable and endless directories, names
    that are no text, attributes against removal."""
    pods = Pods(str(tmp_path / "pods"))
    place = dead_pod(pods)
    upper = place / "overlay/app/upper"
    upper.mkdir(parents=True)
    (place / "overlay/app/work/work").mkdir(parents=True)
    (place / "overlay/app/work/work").chmod(0)
    os.mknod(upper / "whiteout", 0o20000, os.makedev(0, 0))
    os.mknod(upper / "disk", 0o60600, os.makedev(7, 250))
    os.mkfifo(upper / "pipe")
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    (upper / "new\nline").touch()
    (upper / "\udcff\udcfe").touch()
    (upper / "up").symlink_to("../../../../../..")
    (upper / "fixed/below").mkdir(parents=True)
    (upper / "fixed/file").touch()
    subprocess.run(["chattr", "+i", upper / "fixed/file", upper / "fixed"], check=True)
    deep = os.open(upper, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("deep", dir_fd=deep)
        below = os.open("deep", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    assert collect(pods) == []
    assert left(pods) == []


def rkpy(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rkpy", f"--dir={data_dir}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_rm(tmp_path: Path) -> None:
    pods = Pods(str(tmp_path / "pods"))
    exited = dead_pod(pods).name
    with pods.create() as pod:
        pod.to_prepare()
        pod.to_prepared()
    done = rkpy(tmp_path, "rm", exited, pod.uuid)
    assert done.stdout == f'"{exited}"\n"{pod.uuid}"\n'
    assert done.stderr == f'rkpy: rm: moving expired prepared pod "{pod.uuid}" to garbage\n'
    assert done.returncode == 0
    assert left(pods) == []
    done = rkpy(tmp_path, "rm", "1234")
    assert done.stderr == (
        'rkpy: rm: cannot get pod: no matches found for "1234"\nrkpy: rm: failed to remove one or more pods\n'
    )
    assert done.returncode == 254


def test_rm_refuses_a_running_pod_and_removes_the_others(tmp_path: Path) -> None:
    pods = Pods(str(tmp_path / "pods"))
    living: Living = []
    try:
        with pods.create() as pod:
            pod.to_prepare()
            pod.to_run()
            living.append(start(pod))
        other = dead_pod(pods).name
        (tmp_path / "uuid").write_text(f"{pod.uuid}\n")
        done = rkpy(tmp_path, "rm", pod.uuid, other)
        assert (done.returncode, done.stdout) == (254, f'"{other}"\n')
        assert f'pod "{pod.uuid}" is currently running' in done.stderr
        die(living[0])
        done = rkpy(tmp_path, "rm", f"--uuid-file={tmp_path}/uuid")
        assert (done.returncode, done.stdout, done.stderr) == (0, f'"{pod.uuid}"\n', "")
        assert left(pods) == []
    finally:
        for process in living:
            die(process)


def test_gc(tmp_path: Path) -> None:
    pods = Pods(str(tmp_path / "pods"))
    done = rkpy(tmp_path, "gc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    uuid = dead_pod(pods).name
    done = rkpy(tmp_path, "gc", "--mark-only")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f'rkpy: gc: moving pod "{uuid}" to garbage\n'
    done = rkpy(tmp_path, "gc")
    assert done.stderr == f'rkpy: gc: pod "{uuid}" not removed: still within grace period\n'
    done = rkpy(tmp_path, "gc", "--grace-period=0s")
    assert (done.returncode, done.stdout, done.stderr) == (0, f'Garbage collecting pod "{uuid}"\n', "")
    assert left(pods) == []


def test_gc_that_is_quiet_tells_of_failures_only(tmp_path: Path) -> None:
    pods = Pods(str(tmp_path / "pods"))
    bad, _ = dead_pod(pods), dead_pod(pods)
    done = rkpy(tmp_path, "gc", "--quiet", "--mark-only")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = rkpy(tmp_path, "gc", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (next(Path(pods.root).glob(f"*/{bad.name}")) / "flavour").write_text("nonesuch")
    done = rkpy(tmp_path, "gc", "--quiet", "--grace-period=0s")
    assert (done.returncode, done.stdout) == (254, "")
    assert done.stderr.startswith("rkpy: gc: ") and done.stderr.count("\n") == 1
    assert left(pods) == [bad.name]


def test_gc_goes_on_after_a_failure_and_says_so(tmp_path: Path) -> None:
    pods = Pods(str(tmp_path / "pods"))
    bad, good = dead_pod(pods), dead_pod(pods)
    (bad / "flavour").write_text("nonesuch")
    done = rkpy(tmp_path, "gc", "--grace-period=0s")
    assert done.returncode == 254
    assert 'no stage1 flavour called "nonesuch"' in done.stderr
    assert left(pods) == [bad.name]
    assert f'Garbage collecting pod "{good.name}"' in done.stdout


def test_a_fly_pod_from_its_start_to_its_end(tmp_path: Path, inspector: str) -> None:
    """A real app: it lives by the lock it inherited, and every command agrees on that."""
    pods = Pods(str(tmp_path / "pods"))
    (tmp_path / "shop").mkdir()
    shop = Workshop(str(tmp_path / "shop"), inspector)
    prepared = shop.pod("fds", "+", "sleep")
    os.close(prepared.lock_fd)
    with pods.create() as pod:
        pod.to_prepare()
        Path(pod.path, "flavour").write_text("fly")
        Path(pod.path, "pod").write_text('{"acKind": "PodManifest", "acVersion": "0.8.11", "apps": []}')
        pod.to_run()
        prepared = prepared._replace(uuid=pod.uuid, directory=pod.path, lock_fd=pod.hand_over_lock())
    with shop.running(prepared) as running:
        assert Path(pod.path, "out").read_text().splitlines()[3:] == [f"{prepared.lock_fd} file read"]
        status = rkpy(tmp_path, "status", "--wait-ready", pod.uuid).stdout
        assert "state=running\n" in status and f"pid={running.pid}\nexited=false\n" in status
        assert "is currently running" in rkpy(tmp_path, "rm", pod.uuid).stderr
        assert rkpy(tmp_path, "gc", "--grace-period=0s").stdout == ""
        assert rkpy(tmp_path, "stop", pod.uuid).stdout == f'"{pod.uuid}"\n'
        assert running.wait() == -15
    assert "state=exited\n" in rkpy(tmp_path, "status", "--wait=20s", pod.uuid).stdout
    assert rkpy(tmp_path, "stop", pod.uuid).stdout == f'pod "{pod.uuid}" is already stopped\n'
    assert rkpy(tmp_path, "gc", "--grace-period=0s").returncode == 0
    assert left(pods) == []
    assert mounts_below(tmp_path) == []
