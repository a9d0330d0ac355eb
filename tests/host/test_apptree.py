"""The file system of a supervised app: what it sees, what it cannot reach, and what is left on the host."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aci.image_manifest import MountPoint
from common import syscalls
from common.errors import LaunchError, RkpyError
from stage1 import app_steps, implicit, kernelfs, mounts, poddir, resources
from stage1.apptree import open_app
from stage1.flavour import Device, Mount, PreparedApp, PreparedPod
from stage1.plan import AppPlan
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage2.launch import LaunchSpec
from tests.host import seccomp
from tests.host.flying import Workshop, wait
from tests.host.furnishing import COUNT, FIRST, PLAIN, Setting, inside, user_namespace

USERS = Setting(users=True)
BOTH = pytest.mark.parametrize("setting", [PLAIN, USERS], ids=["plain", "users"])
COPIED = pytest.mark.parametrize("copied", [False, True], ids=["overlay", "copied"])
MS_REMOUNT, MS_BIND = 0x20, 0x1000
LAUNCH = LaunchSpec("app", ("/x",), (), "0", "0", (), "/", False, ())


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    (tmp_path / "inspector").touch()
    return Workshop(str(tmp_path), str(tmp_path / "inspector"))


@pytest.fixture(autouse=True)
def host_untouched(tmp_path: Path) -> Iterator[None]:
    """No test may change what is mounted in the host's namespace below its directory."""
    yield
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert not [line for line in file if str(tmp_path) in line]


def prepared(
    shop: Workshop, setting: Setting, app: Mapping[str, Any], **fields: Any
) -> tuple[PreparedPod, PreparedApp]:
    """One app in a pod directory as stage0 makes it; `app` are fields of PreparedApp."""
    own = {"private_range": (FIRST, COUNT)} if setting.users else {}
    network = ("host",) if setting.host_network else None
    words = {key: fields.pop(key) for key in ("layers", "mounts", "copied") if key in fields}
    pod = shop.pod(**words, pod_fields={**own, "net": network, **fields})
    os.close(pod.lock_fd)
    return pod, pod.apps[0]._replace(**app)


def planned(shop: Workshop, setting: Setting = PLAIN, app: Mapping[str, Any] | None = None, **fields: Any) -> AppPlan:
    pod, one = prepared(shop, setting, app or {}, **fields)
    app_steps.write_names(pod.directory, "pod-one")
    implicit.fill(pod, one)
    place = poddir.rootfs(pod.directory, "app")
    root: CopiedRoot | OverlayRoot = CopiedRoot(place)
    if one.layers:
        root = OverlayRoot(one.layers, poddir.overlay(pod.directory, "app"), place, pod.uuid)
    return AppPlan("app", root, app_steps.steps(pod, one), LAUNCH)


def host(source: object, target: str, **fields: Any) -> Mount:
    return Mount(str(source), target, False, None, "data")._replace(**fields)


def fails_to_write(path: str) -> str:
    return fails(lambda: write(path))


def fails(action: Callable[[], object]) -> str:
    """The name of the error `action` ends with."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "it worked"


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str = "x") -> None:
    with open(path, "w") as file:
        file.write(text)


def mount_options() -> dict[str, list[str]]:
    """What is mounted where: options, root in the file system, and kind."""
    with open("/proc/self/mountinfo") as file:
        lines = [line.split() for line in file]
    return {line[4]: [*line[5].split(","), line[line.index("-") + 1]] for line in lines}


# --- what it is made of


@BOTH
@COPIED
def test_a_plain_app(shop: Workshop, setting: Setting, copied: bool) -> None:
    def look() -> Any:
        return sorted(os.listdir("/")), sorted(os.listdir("/dev")), mount_options(), os.getcwd()

    names, devices, mounted, cwd = inside(planned(shop, setting, copied=copied), look, setting)
    assert names == ["bin", "dev", "etc", "proc", "sys"]
    assert devices == [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ]  # fmt: skip
    assert cwd == "/"
    assert {"nodev"} <= set(mounted["/"]) and "nosuid" not in mounted["/"]
    assert {"ro", "nosuid", "nodev", "noexec", "sysfs"} <= set(mounted["/sys"])
    assert {"rw", "nosuid", "nodev", "noexec", "proc"} <= set(mounted["/proc"])
    assert {"nosuid", "nodev", "noexec", "tmpfs"} <= set(mounted["/dev"])
    assert {"nosuid", "noexec", "devtmpfs"} <= set(mounted["/dev/null"])


@BOTH
def test_nothing_else_is_mounted(shop: Workshop, setting: Setting) -> None:
    """Neither the host's mounts nor the supervisor's root are left, attached anywhere or at all."""

    def look() -> Any:
        with open("/proc/self/mountinfo") as file:
            fields = [line.split() for line in file]
        ids = {line[0] for line in fields}
        supervisor = [] if setting.users else [*os.listdir("/proc/1/root"), fails_to_write("/proc/1/root/x")]
        return sorted(line[4] for line in fields if line[1] not in ids), sorted(supervisor)

    tops, supervisor = inside(planned(shop, setting), look, setting)
    assert tops == ["/"]
    assert supervisor == ([] if setting.users else ["EROFS", "app", "empty", "nodes", "only-cgroup", "proc", "sys"])


@BOTH
def test_devices_work(shop: Workshop, setting: Setting) -> None:
    def look() -> Any:
        with open("/dev/null", "w") as null, open("/dev/zero", "rb") as zero:
            null.write("gone")
            zeros = zero.read(3).hex()
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        number = int.from_bytes(__import__("fcntl").ioctl(master, 0x80045430, bytes(4)), "little")  # TIOCGPTN
        terminal = os.stat(f"/dev/pts/{number}")
        shm = os.stat("/dev/shm")
        return [
            zeros, read("/dev/null"), fails(lambda: write("/dev/full")), len(os.urandom(2)), terminal.st_gid,
            stat.S_IMODE(terminal.st_mode), stat.S_IMODE(shm.st_mode), os.readlink("/dev/fd"),
            os.listdir("/dev/mqueue"),
        ]  # fmt: skip

    wanted = ["000000", "", "ENOSPC", 2, 5, 0o620, 0o1777, "/proc/self/fd", []]
    assert inside(planned(shop, setting), look, setting) == wanted


def test_shared_memory_is_limited(shop: Workshop) -> None:
    def look() -> Any:
        found = os.statvfs("/dev/shm")
        return found.f_blocks * found.f_frsize

    assert inside(planned(shop), look) == resources.SHM_SIZE


NAMES: dict[str, tuple[str | None, str]] = {
    "none": (None, "127.0.0.1\tlocalhost localhost.localdomain pod-one"),
    "empty": ("", "127.0.0.1\tlocalhost localhost.localdomain pod-one"),
    "own": ("10.0.0.1 me\n", "10.0.0.1 me"),
    "dangling": ("->/etc/other", "127.0.0.1\tlocalhost localhost.localdomain pod-one"),
}


@BOTH
@pytest.mark.parametrize("case", NAMES)
def test_names(shop: Workshop, setting: Setting, case: str) -> None:
    has, wanted = NAMES[case]
    layer = shop.layer({"etc/hostname": "builder\n", **({} if has is None else {"etc/hosts": has})})

    def look() -> Any:
        names = read("/etc/hosts").splitlines()[0], read("/etc/hostname"), os.path.exists("/etc/resolv.conf")
        return [*names, fails(lambda: write("/etc/hostname"))]

    assert inside(planned(shop, setting, layers=(layer,)), look, setting) == [wanted, "pod-one\n", False, "EROFS"]


@pytest.mark.parametrize("link", ["->/proc/self/setgroups", "->/proc/sys/kernel/domainname"])
def test_no_link_leads_a_file_about_names_into_the_kernels(shop: Workshop, link: str) -> None:
    layer = shop.layer({"etc/hosts": link, "etc/hostname/": ""})

    def look() -> Any:
        return sorted(path for path in mount_options() if path in (link[2:], "/etc/hosts", "/etc/hostname"))

    assert inside(planned(shop, layers=(layer,)), look) == []


@BOTH
def test_the_hosts_network_comes_with_its_names_and_devices(shop: Workshop, setting: Setting) -> None:
    setting = setting._replace(host_network=True)

    def look() -> Any:
        where = os.path.exists("/etc/resolv.conf"), os.path.isdir("/sys/class/net/lo")
        return [*where, fails(lambda: write("/sys/class/net/lo/mtu", "1")), os.listdir("/sys/fs")]

    wanted = [os.path.isfile("/etc/resolv.conf"), True, "EROFS", []]
    assert inside(planned(shop, setting), look, setting) == wanted


@BOTH
@pytest.mark.parametrize("guarded", [True, False])
def test_cgroups(shop: Workshop, setting: Setting, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that has version 2 and nothing else."""
    monkeypatch.setattr(kernelfs, "has_only_cgroup2", lambda: True)

    def look() -> Any:
        group = "/sys/fs/cgroup/cgroup.procs"
        return (
            mount_options()["/sys/fs/cgroup"],
            len(os.listdir("/sys/fs")),
            os.path.exists(group),
            fails(lambda: write(group, "0")),
        )

    plan = planned(shop, setting, insecure=() if guarded else ("paths",))
    options, siblings, exists, error = inside(plan, look, setting)
    assert {"ro", "nosuid", "nodev", "noexec", "cgroup2"} <= set(options)
    assert (siblings == 1) == guarded
    assert (exists, error) == (True, "EROFS")


# --- what the image has in its place


ODD: dict[str, dict[str, str | bytes]] = {
    "links": {"dev": "->/etc", "proc": "->/etc", "sys": "->etc"},
    "links out": {"dev": "->../../../../etc", "proc": "->/proc/1/root/etc", "sys": "->/sys/../../.."},
    "dangling": {"dev": "->/nowhere", "proc": "->proc", "sys": "->/a/b/c"},
    "files": {"dev": "a", "proc": "b", "sys": "c"},
    "links below": {"dev/pts": "->/etc", "dev/null": "->/etc/passwd", "dev/shm": "->/bin", "proc/sys": "->/etc"},
}


@BOTH
@COPIED
@pytest.mark.parametrize("case", ODD)
def test_an_image_has_no_say_in_the_kernels_places(shop: Workshop, setting: Setting, copied: bool, case: str) -> None:
    def look() -> Any:
        places = [os.path.isdir(path) and not os.path.islink(path) for path in ("/dev", "/proc", "/sys")]
        mounted = mount_options()
        return places, [mounted[path][-1] for path in ("/dev", "/proc", "/sys", "/dev/pts")], os.listdir("/etc")

    plan = planned(shop, setting, layers=(shop.layer({"etc/": "", **ODD[case]}),), copied=copied)
    places, kinds, etc = inside(plan, look, setting)
    assert places == [True] * 3
    assert kinds == ["tmpfs", "proc", "sysfs", "devpts"]
    assert sorted(etc) == ["hostname", "hosts"]


@BOTH
def test_targets_stay_inside(shop: Workshop, setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").mkdir()
    layer = shop.layer(
        {"a": f"->{tmp_path}/outside", "b": "->../../../../../../../../proc/../a", "c": "->/d", "d/": ""}
    )
    targets = ("/a/x", "/b/y", "/c")
    plan = planned(shop, setting, layers=(layer,), mounts=tuple(host(tmp_path / "data", path) for path in targets))

    def look() -> Any:
        return sorted(path for path in mount_options() if path.startswith((str(tmp_path), "/d")) and "/dev" not in path)

    assert inside(plan, look, setting) == ["/d", f"{tmp_path}/outside/x", f"{tmp_path}/outside/y"]
    assert os.listdir(tmp_path / "outside") == []


@BOTH
@pytest.mark.parametrize("link", ["/proc", "/proc/self", "/sys/kernel", "proc/sys"])
def test_no_link_leads_a_volume_into_the_kernels(shop: Workshop, setting: Setting, tmp_path: Path, link: str) -> None:
    (tmp_path / "data").mkdir()
    layer = shop.layer({"data": f"->{link}"})
    plan = planned(shop, setting, layers=(layer,), mounts=(host(tmp_path / "data", "/data"),))
    with pytest.raises(RkpyError, match='volume "data": "/data" in the app leads into a file system of the kernel'):
        inside(plan, lambda: "started", setting)


def test_unless_paths_are_allowed(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").touch()
    plan = planned(shop, mounts=(host(tmp_path / "data", "/sys/kernel"),), insecure=("paths",))
    assert inside(plan, lambda: os.listdir("/sys/kernel")) == ["mine"]


@BOTH
def test_devices_of_an_image_do_not_work(shop: Workshop, setting: Setting) -> None:
    layer = shop.layer({"x/": ""})
    os.mknod(f"{layer}/x/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.chmod(f"{layer}/x/zero", 0o666)

    def look() -> Any:
        made = fails(lambda: os.mknod("/x/own", stat.S_IFCHR | 0o666, os.makedev(1, 5)))
        return fails(lambda: os.open("/x/zero", os.O_RDONLY)), fails(lambda: os.open("/x/own", os.O_RDONLY)), made

    read_image, read_own, _ = inside(planned(shop, setting, layers=(layer,)), look, setting)
    assert (read_image, read_own) == ("EACCES", "ENOENT" if setting.users else "EACCES")


# --- masks


@BOTH
def test_masked_and_read_only_paths(shop: Workshop, setting: Setting) -> None:
    masked = [path for path in app_steps.MASKED if os.path.lexists(path)]
    read_only = [path for path in app_steps.READ_ONLY if os.path.lexists(path)]
    assert len(masked) > 5 and len(read_only) > 2

    def look() -> Any:
        def shown(path: str) -> object:
            if os.path.isdir(path):
                return os.listdir(path), fails(lambda: os.mkdir(f"{path}/x"))
            return os.stat(path).st_rdev, read(path)

        mounted = mount_options()
        writes = list(map(fails_to_write, ("/proc/sys/kernel/hostname", "/sys/kernel/notes")))
        return [shown(path) for path in masked], ["ro" in mounted[path] for path in read_only], writes

    found, flags, writes = inside(planned(shop, setting), look, setting)
    null = os.makedev(1, 3)
    assert all(item in ([[], "EROFS"], [null, ""]) for item in found), found
    assert all(flags)
    assert writes == ["EROFS"] * 2


@BOTH
def test_insecure_paths(shop: Workshop, setting: Setting) -> None:
    def look() -> Any:
        return sorted(path for path in mount_options() if path.startswith(("/proc/", "/sys/"))), os.listdir("/sys/fs")

    below, shown = inside(planned(shop, setting, insecure=("paths",)), look, setting)
    assert below == []
    assert shown


def test_a_null_device_that_is_none(shop: Workshop) -> None:
    """Masks come from the host's /dev/null only if it is one."""

    def replace() -> None:
        place = os.open("/dev/null", os.O_PATH)
        syscalls.move_mount(syscalls.open_tree(-100, "/dev/zero", syscalls.OPEN_TREE_CLONE), place, "/dev/null")

    with pytest.raises(RkpyError, match='"/dev/null" of the host is not the device of that name'):
        inside(planned(shop), lambda: "started", Setting(in_monitor=replace))


@pytest.mark.parametrize("kind", [kernelfs.Mask, kernelfs.ReadOnlyPath])
def test_a_mask_that_is_not_there(shop: Workshop, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """What was mounted has to be what is seen (runc, CVE-2025-31133)."""
    plan = planned(shop)
    real = mounts.attach

    def elsewhere(source: int, target: int, path: str, about: str) -> None:
        if path == "/proc/sys":
            target = os.open("/app/proc/fs", os.O_PATH)
        real(source, target, path, about)

    monkeypatch.setattr(kernelfs, "attach", elsewhere)
    wrong = plan._replace(steps=(*(step for step in plan.steps if step.target != "/proc/sys"), kind("/proc/sys")))
    with pytest.raises(RkpyError, match='"/proc/sys" in the app changed while it was being protected'):
        inside(wrong, lambda: "started")


# --- volumes


@BOTH
def test_volumes(shop: Workshop, setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").write_text("old")
    os.chown(tmp_path / "data/mine", 1000, 1001)
    (tmp_path / "file").write_text("file")
    os.mkfifo(tmp_path / "pipe")
    mounts = (
        host(tmp_path / "data", "/data"),
        host(tmp_path / "data", "/ro", read_only=True),
        host(tmp_path / "file", "/made/file"),
        host(tmp_path / "pipe", "/made/pipe"),
    )

    def look() -> Any:
        write("/data/new")
        os.chown("/data/new", 5, 6)
        own, new = os.stat("/data/mine"), os.stat("/ro/new")
        flags = set(mount_options()["/data"]) & {"nosuid", "nodev", "noexec"}
        kinds = read("/made/file"), stat.S_ISFIFO(os.stat("/made/pipe").st_mode)
        owners = own.st_uid, own.st_gid, new.st_uid, new.st_gid
        return [owners, fails(lambda: write("/ro/x")), sorted(flags), *kinds]

    wanted = [[1000, 1001, 5, 6], "EROFS", ["nodev", "nosuid"], "file", True]
    assert inside(planned(shop, setting, mounts=mounts), look, setting) == wanted
    new = (tmp_path / "data/new").stat()
    assert (new.st_uid, new.st_gid) == (5, 6)


@BOTH
def test_order_and_places_in_volumes(shop: Workshop, setting: Setting, tmp_path: Path) -> None:
    for name in ("outer/b", "inner"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "inner/mine").touch()
    mounts = (host(tmp_path / "inner", "/a/b"), host(tmp_path / "outer", "/a"))
    assert inside(planned(shop, setting, mounts=mounts), lambda: os.listdir("/a/b"), setting) == ["mine"]
    mounts = (host(tmp_path / "inner", "/a/c"), host(tmp_path / "outer", "/a"))
    with pytest.raises(RkpyError, match='cannot reach "/a/c" in the app: it is missing, and creating it would write'):
        inside(planned(shop, setting, mounts=mounts), lambda: "started", setting)
    assert os.listdir(tmp_path / "outer") == ["b"]


@BOTH
@pytest.mark.parametrize("recursive", [None, True, False])
def test_read_only_all_the_way_down(shop: Workshop, setting: Setting, tmp_path: Path, recursive: bool | None) -> None:
    (tmp_path / "data/sub").mkdir(parents=True)

    def on_host() -> None:
        syscalls.mount("tmpfs", str(tmp_path / "data/sub"), "tmpfs", 0)
        os.mkdir(tmp_path / "data/sub/deep")

    def look() -> Any:
        below = {name: os.stat(f"/data/sub/{name}").st_uid for name in os.listdir("/data/sub")}
        return fails_to_write("/data/x"), fails_to_write("/data/sub/x"), below

    mount = host(tmp_path / "data", "/data", read_only=True, recursive=recursive)
    found = inside(planned(shop, setting, mounts=(mount,)), look, setting._replace(on_host=on_host))
    assert found == ["EROFS", "EROFS", {} if recursive is False else {"deep": 0}]


def test_a_read_only_volume_that_is_not(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says yes and does nothing is found out, on both sides."""
    (tmp_path / "data").mkdir()
    plan = planned(shop, mounts=(host(tmp_path / "data", "/data", read_only=True),))
    real = syscalls.mount_setattr

    def careless(fd: int, path: str, *, set_attributes: int, **more: Any) -> None:
        real(fd, path, set_attributes=set_attributes & ~syscalls.MOUNT_ATTR_RDONLY, **more)

    monkeypatch.setattr(syscalls, "mount_setattr", careless)
    with pytest.raises(RkpyError, match='volume "data": it could not be made read-only'):
        inside(plan, lambda: "started")
    monkeypatch.setattr(mounts, "is_read_only", lambda fd: True)
    with pytest.raises(RkpyError, match='volume "data": it could not be made read-only'):
        inside(plan, lambda: "started")


@pytest.mark.parametrize(
    ("source", "target", "fields", "message"),
    [
        ("/nowhere", "/x", {}, 'host path "/nowhere" does not exist'),
        ("/dev/zero", "/x", {"read_only": True}, "does not keep the app from writing to the device"),
        ("/etc", "/etc/passwd", {}, '"/etc" is a directory and "/etc/passwd" in the app is a file'),
        ("/etc", "/bin/..", {}, "cannot be mounted over the app's root"),
        ("/proc/self/root", "/x", {}, 'cannot use host path "/proc/self/root"'),
    ],
)
def test_bad_volumes(shop: Workshop, source: str, target: str, fields: Mapping[str, Any], message: str) -> None:
    layer = shop.layer({"etc/passwd": "x"})
    with pytest.raises(RkpyError, match=message):
        inside(planned(shop, layers=(layer,), mounts=(host(source, target, **fields),)), lambda: "started")


def test_a_file_system_that_cannot_be_mapped(shop: Workshop) -> None:
    plan = planned(shop, USERS, mounts=(host("/sys/class", "/x"),))
    with pytest.raises(RkpyError, match=r'volume "data": the file system of "/sys/class" cannot be mapped .*--private'):
        inside(plan, lambda: "started", USERS)


def test_a_device_as_volume(shop: Workshop) -> None:
    plan = planned(shop, mounts=(host("/dev/zero", "/x/zero"),), app={"devices": (Device("/dev/full", "/dev/other"),)})

    def look() -> Any:
        with open("/x/zero", "rb") as file:
            return file.read(1).hex(), fails(lambda: write("/dev/other"))

    assert inside(plan, look) == ["00", "ENOSPC"]


@BOTH
def test_a_granted_device(shop: Workshop, setting: Setting) -> None:
    plan = planned(shop, setting, app={"devices": (Device("/dev/full", "/dev/deep/other"),)})
    assert inside(plan, lambda: fails(lambda: write("/dev/deep/other")), setting) == "ENOSPC"
    with pytest.raises(RkpyError, match='"/etc" is not a device'):
        inside(planned(shop, setting, app={"devices": (Device("/etc", "/x"),)}), lambda: "started", setting)


@BOTH
def test_a_volume_of_limited_size(shop: Workshop, setting: Setting) -> None:
    """Both places show one file system, which is gone with the pod."""
    one = Mount("", "/one", False, None, "scratch", size=1 << 20, mode=0o1770, uid=7, gid=8)
    pod, app = prepared(shop, setting, {"mounts": (one, one._replace(target="/two", read_only=True))})
    os.makedirs(poddir.volume(pod.directory, "scratch"))
    app_steps.write_names(pod.directory, "x")
    root = OverlayRoot(app.layers, poddir.overlay(pod.directory, "app"), poddir.rootfs(pod.directory, "app"), pod.uuid)
    plan = AppPlan("app", root, app_steps.steps(pod, app), LAUNCH)

    def look() -> Any:
        write("/one/x", "text")
        status = os.stat("/one")
        error = fails(lambda: write("/one/big", "x" * (2 << 20)))
        return read("/two/x"), error, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    assert inside(plan, look, setting) == ["text", "ENOSPC", 7, 8, 0o1770]
    assert os.listdir(poddir.volume(pod.directory, "scratch")) == []


PROPAGATION = [
    ("", None, False), ("private", None, False), ("slave", None, False), ("shared", None, True),
    ("shared", False, True),
]  # fmt: skip


@pytest.mark.parametrize(("propagation", "recursive", "appears"), PROPAGATION)
def test_what_the_app_mounts(
    shop: Workshop, tmp_path: Path, propagation: str, recursive: bool | None, appears: bool
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mount = host(data, "/data", recursive=recursive, propagation=propagation)

    def on_host() -> None:
        syscalls.mount("tmpfs", str(data), "tmpfs", 0)
        syscalls.mount(None, str(data), None, syscalls.MS_SHARED)
        (data / "sub").mkdir()

    def look() -> Any:
        syscalls.mount("tmpfs", "/data/sub", "tmpfs", 0)
        write("/data/sub/inside")
        return "mounted"

    setting = Setting(on_host=on_host, afterwards=lambda: os.listdir(data / "sub"))
    assert inside(planned(shop, mounts=(mount,)), look, setting) == ["mounted", ["inside"] if appears else []]


@BOTH
@pytest.mark.parametrize(("propagation", "follows"), [("", False), ("private", False), ("slave", True)])
def test_what_the_host_mounts_later(
    shop: Workshop, setting: Setting, tmp_path: Path, propagation: str, follows: bool
) -> None:
    """It comes as the host mounted it, with devices and set-ID programs that work, and so only to who asked for it."""
    data = tmp_path / "data"
    data.mkdir()

    def on_host() -> None:
        syscalls.mount("tmpfs", str(data), "tmpfs", 0)
        syscalls.mount(None, str(data), None, syscalls.MS_SHARED)

    def look() -> Any:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return ["master:" in line for line in lines if line.split(" ")[4] == "/data"]

    mount = host(data, "/data", recursive=True, propagation=propagation)
    assert inside(planned(shop, setting, mounts=(mount,)), look, setting._replace(on_host=on_host)) == [follows]


# --- volumes nobody asked for


@BOTH
@COPIED
@pytest.mark.parametrize("layers", [0, 1])
def test_implicit_volumes(shop: Workshop, setting: Setting, copied: bool, layers: int) -> None:
    """They have what the image has, keep what is written, and what has a volume is left alone."""
    os.makedirs(f"{shop.base}/srv/data/sub")
    write(f"{shop.base}/srv/data/sub/file", "below")
    stack = tuple(shop.layer({"srv/data/top": "above"}) for _ in range(layers))
    data = f"{(shop.base, *stack)[-1]}/srv/data"
    os.chown(data, 70, 71)
    os.chmod(data, 0o2750)
    os.chown(f"{shop.base}/srv/data/sub/file", 72, 73)
    os.setxattr(f"{shop.base}/srv/data/sub/file", "user.mark", b"1")
    os.symlink("srv/data", f"{shop.base}/link")
    points = (
        MountPoint("data", "/srv/data", False), MountPoint("new", "/new/place", True),
        MountPoint("sys", "/sys/fs", False),
    )  # fmt: skip

    def look() -> Any:
        status, file = os.stat("/srv/data"), os.stat("/srv/data/sub/file")
        owners = status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), file.st_uid, file.st_gid
        write("/srv/data/sub/file", "changed")
        names = sorted(os.listdir("/srv/data")), os.listdir("/new/place")
        return [
            owners,
            os.getxattr("/srv/data/sub/file", "user.mark").decode(),
            names,
            fails(lambda: write("/new/place/x")),
        ]

    pod, one = prepared(shop, setting, {}, layers=stack, copied=copied)
    one = one._replace(app=one.app._replace(mount_points=points))
    app_steps.write_names(pod.directory, "x")
    place = poddir.rootfs(pod.directory, "app")
    root: CopiedRoot | OverlayRoot = CopiedRoot(place)
    if one.layers:
        root = OverlayRoot(one.layers, poddir.overlay(pod.directory, "app"), place, pod.uuid)
    if copied:
        os.chown(f"{place}/srv/data", 70, 71)
        os.chown(f"{place}/srv/data/sub/file", 72, 73)
    implicit.fill(pod, one)
    assert sorted(os.listdir(f"{pod.directory}/volumes")) == ["app.data", "app.new"]
    plan = AppPlan("app", root, app_steps.steps(pod, one), LAUNCH)
    names = ["sub", "top"] if layers else ["sub"]
    assert inside(plan, look, setting) == [[70, 71, 0o2750, 72, 73], "1", [names, []], "EROFS"]
    implicit.fill(pod, one)
    assert inside(plan, lambda: read("/srv/data/sub/file"), setting) == "changed"


def test_implicit_volumes_cannot_be_led_out(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").touch()
    layer = shop.layer({"a": f"->{tmp_path}/secret", "b": "->../../../../../../../../../etc", "c": "file"})
    points = tuple(MountPoint(name, f"/{name}", False) for name in ("a", "b", "c"))
    pod, one = prepared(shop, PLAIN, {}, layers=(layer,))
    one = one._replace(app=one.app._replace(mount_points=points))
    implicit.fill(pod, one)
    assert {name: os.listdir(f"{pod.directory}/volumes/{name}") for name in os.listdir(f"{pod.directory}/volumes")} == {
        "app.a": [], "app.b": [], "app.c": []
    }  # fmt: skip


# --- user namespaces


@COPIED
def test_owners(shop: Workshop, copied: bool) -> None:
    """Files of the image belong to whom the image says; what the app makes lies under the pod's IDs in the overlay,
    and under the image's in a copy."""
    layer = shop.layer({"a": "a", "b/c": "c", "e": "e"})
    for path in (layer, shop.base):
        os.chmod(path, 0o755)
    os.chown(f"{layer}/a", 33, 44)
    os.chown(f"{layer}/b", 65535, 65535)
    os.chown(f"{layer}/e", 65535, 65536)

    def look() -> Any:
        write("/new")
        os.chown("/new", 7, 8)
        write("/a", "changed")
        write("/b/d")
        found = [os.stat(path) for path in ("/", "/a", "/b", "/new", "/b/d", "/e")]
        return [[status.st_uid, status.st_gid] for status in found]

    plan = planned(shop, USERS, layers=(layer,), copied=copied)
    if copied:
        os.chown(f"{plan.root.place}/a", 33, 44)
        os.chown(f"{plan.root.place}/b", 65535, 65535)
        os.chown(f"{plan.root.place}/e", 65535, 65536)
    seen = inside(plan, look, USERS)
    # 65536 is not among the pod's IDs, and shows as nobody.
    assert seen == [[0, 0], [33, 44], [65535, 65535], [7, 8], [0, 0], [65535, 65534]]
    upper = plan.root.place if isinstance(plan.root, CopiedRoot) else f"{plan.root.state}/upper"
    shift = 0 if copied else FIRST
    for name, owner in {"new": (7, 8), "a": (33, 44), "b/d": (0, 0), ".": (0, 0)}.items():
        status = os.stat(f"{upper}/{name}")
        assert (status.st_uid - shift, status.st_gid - shift) == owner, name
    assert os.stat(f"{layer}/a").st_uid == 33
    assert read(f"{layer}/a") == "a"


@pytest.mark.parametrize("layers", [1, 60])
def test_mapped_layers_on_kernels_without_lowerdir_plus(shop: Workshop, layers: int) -> None:
    stack = tuple(shop.layer({f"l/{number}": ""}) for number in range(layers))
    plan = planned(shop, USERS, layers=stack)

    def look() -> int:
        users = user_namespace()
        seccomp.deny(431, errno.EINVAL)
        listed = os.open("l", os.O_RDONLY | os.O_DIRECTORY, dir_fd=plan.root.open(users))
        assert os.fstat(listed).st_uid == FIRST
        return len(os.listdir(listed))

    assert _in_private_mounts(look) == layers


def _in_private_mounts(action: Callable[[], int]) -> int:
    """What `action` returns, up to 255, in a child with mounts of its own."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # And not MS_SLAVE: what others mount meanwhile would come here, and be counted.
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            code = action()
        finally:
            os._exit(code)
    return wait(child)


def test_what_failed_leaves_nothing_behind(shop: Workshop) -> None:
    """The monitor goes on when one of its apps cannot start."""
    plan = planned(shop, USERS, mounts=(host("/nowhere", "/x"),))
    assert isinstance(plan.root, OverlayRoot)
    broken = plan._replace(root=plan.root._replace(layers=(shop.base, "/nowhere")))

    def attempt() -> int:
        users = user_namespace()
        before = len(os.listdir("/proc/self/fd")), len(mounts.mount_table())
        with pytest.raises(LaunchError):
            open_app(plan, users)
        with pytest.raises(LaunchError):
            open_app(broken, users)
        return int((len(os.listdir("/proc/self/fd")), len(mounts.mount_table())) == before)

    assert _in_private_mounts(attempt) == 1


def test_root_of_the_pod_cannot_undo_what_the_host_decided(shop: Workshop, tmp_path: Path) -> None:
    """With all capabilities in its user namespace: no device of the image, no writing to a read-only volume, nothing
    that lies below a mount point in a volume."""
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/hidden").touch()
    layer = shop.layer({"x/": ""})
    os.mknod(f"{layer}/x/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.chmod(f"{layer}/x/zero", 0o666)
    volumes = (host(tmp_path / "data", "/ro", read_only=True), host(tmp_path / "data", "/rw", volume="other"))

    def remount(path: str) -> str:
        return fails(lambda: syscalls.mount(None, path, None, MS_REMOUNT | MS_BIND))

    def look() -> Any:
        tries = [remount(path) for path in ("/", "/ro", "/ro/sub", "/rw")]
        tries += [fails(lambda: syscalls.umount2("/rw/sub", syscalls.MNT_DETACH))]
        return tries, fails(lambda: os.open("/x/zero", os.O_RDONLY)), fails_to_write("/ro/x"), os.listdir("/rw/sub")

    def on_host() -> None:
        syscalls.mount("tmpfs", str(tmp_path / "data/sub"), "tmpfs", 0)

    plan = planned(shop, USERS, layers=(layer,), mounts=volumes)
    tries, device, written, below = inside(plan, look, USERS._replace(on_host=on_host))
    assert tries == ["EPERM", "EPERM", "EPERM", "EPERM", "EINVAL"]
    assert (device, written, below) == ("EACCES", "EROFS", [])


def test_many_volumes(shop: Workshop, tmp_path: Path) -> None:
    """More descriptors than one message takes."""
    (tmp_path / "data").mkdir()
    volumes = tuple(host(tmp_path / "data", f"/v/{number}", volume=f"v{number}") for number in range(450))
    assert inside(planned(shop, USERS, mounts=volumes), lambda: len(os.listdir("/v")), USERS) == 450


def test_nothing_of_a_pod_with_users_of_its_own_is_shared(shop: Workshop) -> None:
    plan = planned(shop, USERS, mounts=(host("/etc", "/x", propagation="shared"),))
    with pytest.raises(RkpyError, match='volume "data": propagation "shared" is not possible here'):
        inside(plan, lambda: "started", USERS)


# --- read-only roots


@BOTH
@COPIED
def test_a_read_only_root(shop: Workshop, setting: Setting, copied: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    layer = shop.layer({"run/app/": "", "tmp/": "", "var/tmp": "->../tmp"})
    os.chmod(f"{layer}/tmp", 0o1777)
    plan = planned(
        shop, setting, {"read_only_root": True}, layers=(layer,), copied=copied,
        mounts=(host(tmp_path / "data", "/made/data"), host(tmp_path / "data", "/run/deep/er")),
    )  # fmt: skip

    def look() -> Any:
        kept = ("/run/app/x", "/tmp/x", "/var/tmp/y", "/made/data/x", "/dev/shm/x", "/run/deep/er/y", "/dev/null")
        refused = ("/x", "/etc/x", "/var/x", "/made/x", "/proc/sys/kernel/hostname")
        mode = stat.S_IMODE(os.stat("/tmp").st_mode)
        return list(map(fails_to_write, kept)), list(map(fails_to_write, refused)), mode

    kept, refused, mode = inside(plan, look, setting)
    assert kept == ["it worked"] * 7
    assert refused == ["EROFS"] * 5
    assert mode == 0o1777


def test_a_link_does_not_make_a_volume_the_pods_own(shop: Workshop, tmp_path: Path) -> None:
    """Targets may be created in what stays writable, but not on the host."""
    (tmp_path / "data").mkdir()
    layer = shop.layer({"tmp": "->/a"})
    volumes = (host(tmp_path / "data", "/a"), host("/etc", "/a/missing", volume="other"))
    plan = planned(shop, app={"read_only_root": True}, layers=(layer,), mounts=volumes)
    with pytest.raises(RkpyError, match="it is missing, and creating it would write to the host"):
        inside(plan, lambda: "started")
    assert os.listdir(tmp_path / "data") == []


def test_links_do_not_make_more_of_a_read_only_root_writable(shop: Workshop) -> None:
    layer = shop.layer({"run": "->/", "tmp": "->proc", "var/tmp": "->/dev"})
    plan = planned(shop, app={"read_only_root": True}, layers=(layer,))
    assert inside(plan, lambda: [fails(lambda: write("/x")), fails(lambda: write("/proc/sys/x"))])[0] == "EROFS"
