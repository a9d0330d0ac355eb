"""What is mounted into an app of a supervised pod, as steps; needs no root."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.image_manifest import App, MountPoint
from common import syscalls
from common.errors import UsageError
from stage1 import app_steps, implicit, kernelfs, poddir
from stage1.flavour import Device as Granted
from stage1.flavour import Mount, PreparedApp, PreparedPod
from stage1.kernelfs import Device, FileSystem, Kernel, Link, Mask, Node, ReadOnlyPath, Writable
from stage1.mounts import Bind, HostFile, MemoryVolume, ReadOnlyRoot, Step, Tmpfs
from stage1.network import resolvers
from stage1.network.plan import Names
from stage1.plan import dumps, loads


def app(**fields: Any) -> PreparedApp:
    section = App(**{"exec": ("/bin/web",), **fields.pop("app", {})})
    return PreparedApp("web", "sha512-0", section, ("/l/1",), False, ())._replace(**fields)


def pod(**fields: Any) -> PreparedPod:
    base = PreparedPod("the-uuid", "/pods/x", 3, (), None, (), (), "", "auto", False, (), (), False)
    return base._replace(**fields)


def mount(target: str, name: str = "v", **fields: Any) -> Mount:
    return Mount("/src", target, False, None, name)._replace(**fields)


@pytest.fixture(autouse=True)
def a_host_with_both_kinds_of_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernelfs, "has_only_cgroup2", lambda: False)


def targets(steps: tuple[Step, ...]) -> list[str]:
    """Where something is mounted, but for what hides or replaces something that was mounted before."""
    return [step.target for step in steps if not isinstance(step, Mask | ReadOnlyPath) and not replaces(step)]


def replaces(step: Step) -> bool:
    return isinstance(step, HostFile) and step.always and step.optional


def test_a_plain_app() -> None:
    described = [step.describe() for step in app_steps.steps(pod(), app())]
    assert described == [
        "tmpfs on /dev (mode 755) of 65536 bytes",
        "proc on /proc",
        "sys on /sys (read-only)",
        "link /dev/fd to /proc/self/fd",
        "device /dev/full",
        "mqueue on /dev/mqueue",
        "device /dev/null",
        "link /dev/ptmx to pts/ptmx",
        "devpts on /dev/pts",
        "device /dev/random",
        "tmpfs on /dev/shm (mode 1777) of 67108864 bytes",
        "link /dev/stderr to /proc/self/fd/2",
        "link /dev/stdin to /proc/self/fd/0",
        "link /dev/stdout to /proc/self/fd/1",
        "device /dev/tty",
        "device /dev/urandom",
        "device /dev/zero",
        "bind /pods/x/etc/hostname on /etc/hostname (read-only)",
        "bind /pods/x/etc/hosts on /etc/hosts (read-only) unless the image has one",
        "bind /pods/x/etc/resolv.conf.default on /etc/resolv.conf (read-only) if it is there unless the image has one",
        "bind /pods/x/etc/resolv.conf on /etc/resolv.conf (read-only) if it is there",
        *(f"mask {path}" for path in app_steps.MASKED),
        *(f"make {path} read-only" for path in app_steps.READ_ONLY),
    ]


CHANGES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], set[str], set[str]]] = {
    "the host's IPC": ({"ipc": "parent"}, {}, set(), {"/dev/mqueue"}),
    "its own IPC": ({"ipc": "private"}, {}, set(), set()),
    "a volume at a default's place": ({}, {"mounts": (mount("/dev/shm"), mount("/etc/hosts", "w"))}, set(), set()),
    "a volume": ({}, {"mounts": (mount("/a/../b//"),)}, {"/b"}, set()),
    "a device": ({}, {"devices": (Granted("/dev/fuse", "/dev//fuse"),)}, {"/dev/fuse"}, set()),
    "a read-only root": ({}, {"read_only_root": True}, {"/", "/tmp", "/run", "/var/tmp"}, set()),
    "a volume at /tmp in it": (
        {}, {"read_only_root": True, "mounts": (mount("/tmp"),)}, {"/", "/tmp", "/run", "/var/tmp"}, set(),
    ),
    "a mount point": (
        {}, {"app": {"mount_points": (MountPoint("db", "/db", False), MountPoint("s", "/sys/fs/cgroup", False))}},
        {"/db"}, set(),
    ),
    "a mount point with a volume": (
        {}, {"app": {"mount_points": (MountPoint("db", "/db", False),)}, "mounts": (mount("/db/"),)}, {"/db"}, set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes(case: str) -> None:
    pod_fields, app_fields, more, less = CHANGES[case]
    plain = targets(app_steps.steps(pod(), app()))
    found = targets(app_steps.steps(pod(**pod_fields), app(**app_fields)))
    assert len(set(found)) == len(found)
    assert set(found) == set(plain) - less | more


def test_a_volume_wins_over_a_default() -> None:
    steps = app_steps.steps(pod(), app(read_only_root=True, mounts=(mount("/dev/shm"), mount("/tmp", "w"))))
    kinds = {step.target: type(step) for step in steps}
    assert (kinds["/dev/shm"], kinds["/tmp"], kinds["/run"]) == (Bind, Bind, Writable)


def test_volumes() -> None:
    mounts = (
        mount("/a", read_only=True, propagation="slave"),
        mount("/b", "e", source="", recursive=False),
        mount("/c", "m", source="", size=4096, mode=0o1777, uid=1, gid=2),
    )
    steps = app_steps.steps(pod(), app(mounts=mounts, app={"mount_points": (MountPoint("p", "/d", True),)}))
    found = {step.target: step for step in steps}
    a = Bind("/src", "/a", True, True, 'volume "v"', own=False, hardened=True, propagation="slave")
    assert found["/a"] == a
    assert found["/b"] == Bind("/pods/x/volumes/e", "/b", False, False, 'volume "e"', own=True, hardened=True)
    bind = Bind("/pods/x/volumes/m", "/c", False, True, 'volume "m"', own=True, hardened=True)
    assert found["/c"] == MemoryVolume(bind, 4096, 0o1777, 1, 2)
    assert found["/d"] == Bind("/pods/x/volumes/web.p", "/d", True, False, 'volume "web-p"', own=True, hardened=True)
    assert a.describe() == "bind /src on /a (read-only, recursive, hardened, slave)"


def test_no_two_implicit_volumes_share_a_directory() -> None:
    assert poddir.implicit_volume("/p", "a-b", "c") != poddir.implicit_volume("/p", "a", "b-c")
    assert poddir.implicit_volume("/p", "a", "b") != poddir.volume("/p", "a-b")


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/sys/fs/cgroup", "/sys", "/dev", "/a/../proc", "//dev/"])
def test_volumes_in_the_kernels_places(target: str) -> None:
    with pytest.raises(UsageError, match=r'volume "v" cannot be mounted on ".*--insecure-options=paths'):
        app_steps.steps(pod(), app(mounts=(mount(target),)))
    steps = app_steps.steps(pod(insecure=("paths",)), app(mounts=(mount(target),)))
    assert [step for step in steps if isinstance(step, Bind)]
    assert not [step for step in steps if isinstance(step, Mask | ReadOnlyPath)]


@pytest.mark.parametrize("target", ["/development", "/process", "/dev/log", "/system/proc"])
def test_volumes_beside_them(target: str) -> None:
    assert target in targets(app_steps.steps(pod(), app(mounts=(mount(target),))))


def test_a_volume_over_all_devices_stands_alone() -> None:
    steps = app_steps.steps(pod(insecure=("paths",)), app(mounts=(mount("/dev"), mount("/dev/x", "w"))))
    assert [target for target in targets(steps) if target.startswith("/dev")] == ["/dev", "/dev/x"]


@pytest.mark.parametrize(
    ("names", "hosts", "resolv"),
    [
        ({}, [], ["/pods/x/etc/resolv.conf"]),
        ({"dns": ("192.0.2.1",)}, [], ["/pods/x/etc/resolv.conf"]),
        ({"dns": ("host",)}, [], ["/etc/resolv.conf"]),
        ({"hosts": (("192.0.2.1", "a"),)}, ["/pods/x/etc/hosts"], ["/pods/x/etc/resolv.conf"]),
        ({"hosts": (("host", ""),)}, ["/etc/hosts"], ["/pods/x/etc/resolv.conf"]),
    ],
)  # fmt: skip
def test_names_that_were_asked_for_win_over_volumes(
    names: Mapping[str, Any], hosts: list[str], resolv: list[str]
) -> None:
    volumes = (mount("/etc/hosts", "h"), mount("/etc/resolv.conf", "r"))
    steps = app_steps.steps(pod(names=Names("x", **names)), app(mounts=volumes))
    after = steps[max(index for index, step in enumerate(steps) if isinstance(step, Bind)) :]
    for path, sources in (("/etc/hosts", hosts), ("/etc/resolv.conf", resolv)):
        assert [step.source for step in after if isinstance(step, HostFile) and step.target == path] == sources


@pytest.mark.parametrize("from_oci", [True, False])
def test_an_oci_images_hosts_file_is_a_placeholder(from_oci: bool) -> None:
    steps = app_steps.steps(pod(), app(from_oci=from_oci))
    hosts = [step for step in steps if isinstance(step, HostFile) and step.target == "/etc/hosts"]
    assert [step.always for step in hosts] == [from_oci]


def test_two_at_one_target() -> None:
    with pytest.raises(UsageError, match='the same target "/dev/x": volume "v" and /dev/x'):
        app_steps.steps(pod(), app(mounts=(mount("/dev/x"),), devices=(Granted("/dev/null", "/dev/x"),)))


def test_protection_is_last() -> None:
    mounts = tuple(mount(path, f"v{number}") for number, path in enumerate(("/a/b", "/a", "/z/y/x/w", "/dev/log")))
    steps = app_steps.steps(pod(), app(mounts=mounts, read_only_root=True))
    kinds = [isinstance(step, Mask | ReadOnlyPath | ReadOnlyRoot) for step in steps]
    assert kinds == sorted(kinds)
    assert isinstance(steps[-1], ReadOnlyRoot)
    assert [step.target for step in steps[:3]] == ["/dev", "/proc", "/sys"]


@pytest.mark.parametrize("guarded", [True, False])
def test_cgroups_where_there_is_one_kind(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernelfs, "has_only_cgroup2", lambda: True)
    steps = app_steps.steps(pod(insecure=() if guarded else ("paths",)), app())
    cgroup = FileSystem("cgroup2", "/sys/fs/cgroup", kernelfs.QUIET | syscalls.MOUNT_ATTR_RDONLY)
    assert steps[-1] == cgroup
    masks = {step.target: step.cover for step in steps if isinstance(step, Mask)}
    assert masks.get("/sys/fs") == ("/only-cgroup" if guarded else None)


def test_cgroups_of_another_kernel() -> None:
    assert app_steps.steps(pod(own_kernel=True), app())[-1].target == "/sys/fs/cgroup"


@pytest.mark.parametrize(("private_range", "has_group"), [((0, 0), True), ((500, 65536), True), ((500, 5), False)])
def test_the_group_of_terminals(private_range: tuple[int, int], has_group: bool) -> None:
    steps = app_steps.steps(pod(private_range=private_range), app())
    options = next(step.options for step in steps if isinstance(step, FileSystem) and step.kind == "devpts")
    assert (("gid", "5") in options) == has_group


def test_implicit_volumes_are_told_of(tmp_path: Any) -> None:
    directory = str(tmp_path)
    (tmp_path / "appsinfo/web").mkdir(parents=True)
    manifest: dict[str, Any] = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/web"}
    path = tmp_path / "appsinfo/web/manifest"
    path.write_text(json.dumps(manifest))
    one = app(app={"mount_points": (MountPoint("db", "/var/db", False),)})
    said = ['no volume for "/var/db" of app "web": it gets one of its own, "web-db"']
    assert implicit.warnings(pod(directory=directory), one) == said
    path.write_text(json.dumps(manifest | {"annotations": [{"name": "appc.io/docker/tag", "value": "1"}]}))
    assert implicit.warnings(pod(directory=directory), one) == []
    assert implicit.warnings(pod(directory=directory), app()) == []


STEPS = [
    Bind("/s", "/t", True, False, 'volume "v"', own=True, hardened=True, propagation="slave"),
    HostFile("/etc/hosts", "/pod/etc/hosts", always=True),
    Tmpfs("/tmp", 0o1777, size=5, no_exec=True, plain=True),
    MemoryVolume(Bind("/s", "/t", False, True, "x"), 1, 2, 3, 4),
    ReadOnlyRoot(),
    Kernel("/sys", "/sys", read_only=True, guarded=False),
    FileSystem("devpts", "/dev/pts", 7, (("newinstance", None), ("mode", "620"))),
    Node("null"),
    Device("/dev/fuse", "/dev/fuse"),
    Link("/dev/fd", "/proc/self/fd"),
    Writable("/run"),
    Mask("/proc/kcore"),
    ReadOnlyPath("/proc/sys"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_steps_cross_between_processes(step: Step) -> None:
    found = loads(dumps(step))
    assert type(found) is type(step)
    assert found == step


paths = st.lists(st.sampled_from(["a", "b", "dev", "x"]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


@given(st.sets(paths, max_size=6))
def test_outer_before_inner(wanted: set[str]) -> None:
    """Whatever the volumes, nothing is mounted over a place below it that is there already."""
    wanted -= {"/dev"}
    mounts = tuple(mount(path, f"v{number}") for number, path in enumerate(sorted(wanted)))
    found = targets(app_steps.steps(pod(), app(mounts=mounts)))
    assert wanted <= set(found)
    for number, target in enumerate(found):
        assert not [other for other in found[:number] if other.startswith(f"{target}/")]


def test_apps_may_read_what_is_said_of_names_whatever_the_umask(tmp_path: Path) -> None:
    """They need not be root."""
    umask = os.umask(0o077)
    try:
        app_steps.write_names(str(tmp_path), "web")
        resolvers.write(str(tmp_path), Names("", dns=("10.0.0.1",)), [], connected=False)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "etc").iterdir()}
    assert modes == dict.fromkeys(("hosts", "hostname", "resolv.conf"), 0o644)
