"""What fly would mount, warn about and refuse, without root."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.image_manifest import App, EventHandler, Isolator, Port
from common.errors import LaunchError, UsageError
from stage1 import cgroup, fly, flylimits
from stage1.flavour import Mount, PreparedApp, PreparedPod
from stage1.limits import Limits
from stage1.mounts import Bind, HostFile, ReadOnlyRoot, Tmpfs, normalize
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage1.systemd import units
from stage1.systemd.manager import SYSTEM, Manager
from stage1.vm.machine import MachineOptions

DEFAULTS = (
    Bind("/dev", "/dev", read_only=False, recursive=True, about="/dev"),
    Bind("/proc", "/proc", read_only=False, recursive=True, about="/proc"),
    Bind("/sys", "/sys", read_only=False, recursive=True, about="/sys"),
    Tmpfs("/tmp", 0o1777),
    HostFile("/etc/hosts"),
    HostFile("/etc/resolv.conf"),
)


def pod(app: Mapping[str, Any] | None = None, prepared: Mapping[str, Any] | None = None, **fields: Any) -> PreparedPod:
    one = PreparedApp("web", "sha512-0", App(**{"exec": ("/bin/web",), **(app or {})}), ("/l/1", "/l/2"), False, ())
    apps = (one._replace(**prepared or {}),)
    base = PreparedPod("the-uuid", "/pods/x", 3, apps, None, (), (), "", "auto", False, (), (), False)
    return base._replace(**fields)


def mount(target: str, name: str = "v", source: str = "/src", **fields: Any) -> Mount:
    return Mount(source, target, False, None, name)._replace(**fields)


def targets(*mounts: Mount) -> list[str]:
    return [step.target for step in fly.plan(pod(prepared={"mounts": mounts})).steps]


def test_the_plan_of_a_plain_pod() -> None:
    planned = fly.plan(pod())
    assert planned.root == OverlayRoot(("/l/1", "/l/2"), "/pods/x/overlay/web", "/pods/x/rootfs/web", "the-uuid")
    assert planned.steps == DEFAULTS
    assert planned.describe() == [
        "overlay /l/2:/l/1 under /pods/x/overlay/web/upper on /pods/x/rootfs/web",
        "bind /dev on /dev (recursive)",
        "bind /proc on /proc (recursive)",
        "bind /sys on /sys (recursive)",
        "tmpfs on /tmp (mode 1777)",
        "bind /etc/hosts on /etc/hosts (read-only) unless the image has one",
        "bind /etc/resolv.conf on /etc/resolv.conf (read-only) unless the image has one",
    ]


def test_a_copied_root_and_a_read_only_one() -> None:
    planned = fly.plan(pod(prepared={"layers": (), "read_only_root": True}))
    assert planned.root == CopiedRoot("/pods/x/rootfs/web")
    assert planned.steps == (*DEFAULTS, ReadOnlyRoot())
    assert planned.describe()[-1] == "make / read-only"


def test_volumes() -> None:
    mounts = (
        mount("/data/", read_only=True, recursive=True),
        mount("/own", "e", source="", recursive=False),
    )
    steps = fly.plan(pod(prepared={"mounts": mounts})).steps
    assert Bind("/src", "/data", read_only=True, recursive=True, about='volume "v"') in steps
    assert Bind("/pods/x/volumes/e", "/own", read_only=False, recursive=False, about='volume "e"', own=True) in steps
    assert "bind /src on /data (read-only, recursive)" in [step.describe() for step in steps]


def test_order_is_outer_first_then_by_name() -> None:
    mounts = [mount(target) for target in ("/b/c/d", "/a", "/b/c", "/z", "/b")]
    wanted = ["/a", "/b", "/dev", "/proc", "/sys", "/tmp", "/z", "/b/c", "/etc/hosts", "/etc/resolv.conf", "/b/c/d"]
    assert targets(*mounts) == targets(*reversed(mounts)) == wanted


@pytest.mark.parametrize("target", ["/dev", "/proc", "/sys", "/tmp", "/etc/hosts", "/etc/resolv.conf"])
def test_a_volume_replaces_a_default(target: str) -> None:
    steps = fly.plan(pod(prepared={"mounts": (mount(target),)})).steps
    assert [step for step in steps if step.target == target] == [Bind("/src", target, False, False, 'volume "v"')]
    assert len(steps) == len(DEFAULTS)


@pytest.mark.parametrize("other", ["/a/b", "/a//b/", "/a/./b", "/a/c/../b", "/../a/b"])
def test_two_volumes_at_one_target(other: str) -> None:
    with pytest.raises(UsageError, match='the same target "/a/b": volume "v" and volume "w"'):
        targets(mount("/a/b"), mount(other, "w"))


@pytest.mark.parametrize("target", ["/", "//", "/.", "/..", "/a/.."])
def test_the_root_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match='volume "v" cannot be mounted over the app\'s root'):
        fly.check(pod(prepared={"mounts": (mount(target),)}))


@pytest.mark.parametrize(
    ("source", "read_only", "message"),
    [
        ("/nowhere/at/all", False, 'volume "v": host path "/nowhere/at/all" does not exist'),
        ("/dev/null", True, 'does not keep the app from writing to the device "/dev/null"'),
        ("/proc/self/cwd", False, 'volume "v": cannot use host path "/proc/self/cwd"'),
    ],
)
def test_sources_are_looked_at_before_the_pod_runs(source: str, read_only: bool, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        fly.check(pod(prepared={"mounts": (mount("/v", source=source, read_only=read_only),)}))


@given(st.lists(st.sampled_from(["", ".", "..", "a", "bb"])).map("/".join))
def test_normalized_paths_are_plain(path: str) -> None:
    plain = normalize(path)
    assert plain.startswith("/") and normalize(plain) == plain
    assert not {".", ".."} & set(plain.split("/"))


WARNINGS: dict[str, tuple[PreparedPod, list[str]]] = {
    "nothing": (pod(), []),
    "host network": (pod(net=("host",)), []),
    "network": (pod(net=("default", "lan")), [f'fly ignores network "{name}"' for name in ("default", "lan")]),
    "machine": (pod(machine=MachineOptions("kvm")), ["fly ignores --kvm-accel=kvm"]),
    "hostname": (pod(hostname="box"), ['fly ignores hostname "box"']),
    "published ports": (pod(ports=("http", "ssh")), [f'fly ignores --port of "{name}"' for name in ("http", "ssh")]),
    "names": (pod(name_options=("--dns", "--hosts-entry")), ["fly ignores --dns:", "fly ignores --hosts-entry:"]),
    "the host's IPC": (pod(ipc="parent"), []),
    "pod isolators": (
        pod(isolators=(Isolator("os/unix/sysctl", {}),)),
        ['fly ignores isolator "os/unix/sysctl" of the pod'],
    ),
    "isolators": (
        pod({"isolators": (Isolator("os/linux/oom-score-adj", 1), Isolator("example.com/unknown", 1))}),
        [f'fly ignores isolator "{name}" of app "web"' for name in ("os/linux/oom-score-adj", "example.com/unknown")],
    ),
    "no new privileges": (pod({"isolators": (Isolator("os/linux/no-new-privileges", True),)}), []),
    "event handlers": (
        pod({"event_handlers": (EventHandler("pre-start", ("a",)), EventHandler("post-stop", ("b",)))}),
        ['fly ignores event handler "post-stop" of app "web"'],
    ),
    "ports": (pod({"ports": (Port("plain", "tcp", 80, 1, False), Port("http", "tcp", 81, 1, True))}), []),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_one_warning_per_ignored_field(case: str) -> None:
    value, expected = WARNINGS[case]
    found = fly.check(value)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


REFUSED: dict[str, tuple[PreparedPod, str]] = {
    "two apps": (pod(apps=pod().apps * 2), "one app per pod, not 2"),
    "no apps": (pod(apps=()), "one app per pod, not 0"),
    "nothing to execute": (pod({"exec": ()}), 'app "web" has nothing to execute'),
    "user namespaces": (pod(private_users=True), "no user namespaces"),
    "an IPC namespace": (pod(ipc="private"), "no IPC namespaces"),
    "asked for": (pod(asked=("--caps-retain", "--memory", "--ulimit")), "cannot enforce --caps-retain, --ulimit"),
    "no network": (pod(net=("none",)), "cannot take the network away"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_ignored_safely_is_refused(case: str) -> None:
    value, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        fly.check(value)


# --- limits


def limited(directory: Path, *, asked: tuple[str, ...] = (), manager: Manager | None = None) -> PreparedPod:
    made = pod({"isolators": (Isolator("resource/memory", {"limit": "1M"}), Isolator("resource/cpu", {"limit": "2"}))})
    of_pod = (Isolator("resource/pids", {"limit": 5}),)
    return made._replace(directory=str(directory), isolators=of_pod, asked=asked, manager=manager)


def test_a_limit_that_is_kept_is_nothing_to_speak_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "enforceable", lambda *_, **__: dict.fromkeys(cgroup.CONTROLLERS, ""))
    assert fly.check(limited(tmp_path, asked=("--memory", "--cpu"))) == []


def test_a_limit_that_is_not_kept_is_refused_when_typed_and_else_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cgroup, "enforceable", lambda *_, **__: {"cpu": "", "io": "", "memory": "no memory", "pids": "none"}
    )
    assert fly.check(limited(tmp_path, asked=("--cpu",))) == [
        "pids limit of the pod is not enforceable here: none",
        'memory limit of app "web" is not enforceable here: no memory',
    ]
    with pytest.raises(UsageError, match="--memory cannot be enforced here: no memory"):
        fly.check(limited(tmp_path, asked=("--memory",)))


def test_what_systemd_has_put_into_a_unit_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "enforceable", lambda *_, **__: dict.fromkeys(cgroup.CONTROLLERS, ""))
    monkeypatch.setattr(cgroup, "find", lambda **_: cgroup.Place("/c", "/c/rkpy", False, ""))
    monkeypatch.setattr(units, "own", lambda: "web.service")
    typed, known = (limited(tmp_path, asked=asked, manager=SYSTEM) for asked in (("--memory",), ()))
    assert fly.check(typed) == []  # It does not start here.
    with pytest.raises(UsageError, match=r"--memory cannot be enforced here: web\.service .*Delegate=yes"):
        fly.check(typed._replace(starts=True))
    assert len(fly.check(known._replace(starts=True))) == 3


def test_of_two_limits_the_lower_counts() -> None:
    of_pod, of_app = (
        Limits(memory=10, cpu=5, cpu_weight=7, pids=3),
        Limits(memory=5, cpu=5, cpu_weight=1, io_bandwidth=1),
    )
    whole, app = flylimits.stricter(of_pod, of_app)
    assert whole == Limits(cpu_weight=7, pids=3)
    assert app == Limits(memory=5, cpu=5, io_bandwidth=1)
    assert flylimits.Bounds(whole, app, {}).together() == Limits(5, 5, 7, 3, 1)
