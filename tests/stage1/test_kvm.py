"""What kvm ignores, and says so, and what it refuses; needs no root and no machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aci.image_manifest import Isolator
from common.errors import LaunchError, UsageError
from stage1 import boot, compiling, kvm, poddir
from stage1.flavour import Device, Mount, PreparedApp, PreparedPod
from stage1.limits import Limits
from stage1.systemd.given import Given
from stage2 import capabilities
from tests.stage1.test_nspawn import app, pod

BY_THE_SUPERVISOR = {
    "PreparedPod": "hostname interactive mutable exit_policy stop_timeout isolators",
    "PreparedApp": "name app streams restart stop_signal health notifies",
}
"""What goes to the guest in the plan, and is done there as anywhere."""
BY_THE_HOST = {
    "PreparedPod": "uuid directory lock_fd apps name data_directory insecure networks plugin_path published names ready"
    " credentials register keep_unit manager unit delegated starts log_driver debug bandwidth ports name_options net"
    " asked",
    "PreparedApp": "image_id layers read_only_root mounts from_oci image_name reload_signal",
}
"""What the engine or the monitor does; of `net` and `mounts` a part is refused, of `mounts` a part is ignored."""
REFUSED = {"PreparedPod": "ipc join given", "PreparedApp": "devices listening"}
"""Of `given` the sockets, which `listening` are some of. The rest of it is the monitor's."""
IGNORED = {"PreparedPod": "private_users private_range"}
OWN = {"PreparedPod": "own_kernel machine"}


@pytest.mark.parametrize("record", [PreparedPod, PreparedApp])
def test_something_becomes_of_every_field(record: type[PreparedPod | PreparedApp]) -> None:
    """Who adds one has to say here what kvm does with it."""
    known = [
        field
        for fields in (BY_THE_SUPERVISOR, BY_THE_HOST, REFUSED, IGNORED, OWN)
        for field in fields.get(record.__name__, "").split()
    ]
    assert sorted(known) == sorted(record._fields)


def test_whoever_waits_for_a_trial_of_kvm_hears_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "_told", None)
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        tell = kvm._telling(pod(tmp_path)._replace(given=Given(notify=address)))
        for _ in range(2):
            tell()
            assert manager.recv(1000).endswith(b"\nEXTEND_TIMEOUT_USEC=20000000")
    assert capfd.readouterr().err.count("waiting for a first guest") == 1


def mounting(source: str, **fields: Any) -> PreparedApp:
    return app()._replace(mounts=(Mount(source, "/data", False, None, "v", **fields),))


def test_nothing_is_said_of_what_is_done(tmp_path: Path) -> None:
    limited = app(isolators=(Isolator("os/linux/oom-score-adj", -1000), Isolator("resource/pids", {"limit": 5})))
    assert kvm.check(pod(tmp_path, apps=(limited,))) == []
    assert kvm.check(pod(tmp_path, apps=(mounting(str(tmp_path), propagation="private"),))) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"private_users": True, "private_range": (65536, 65536)}, "kvm ignores --private-users"),
        (
            {"apps": (app(isolators=(Isolator("example.com/own", 1),)),)},
            'kvm ignores isolator "example.com/own" of app "web"',
        ),
        ({"isolators": (Isolator("os/linux/no-new-privileges", True),)}, "kvm ignores isolator"),
    ],
)
def test_one_warning_per_ignored_field(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    (found,) = kvm.check(pod(tmp_path, **fields))
    assert found.startswith(expected)


def larger(**fields: Any) -> PreparedApp:
    limits = (Isolator("resource/memory", {"limit": "2Gi"}), Isolator("resource/cpu", {"limit": "1500m"}))
    return app("big", isolators=limits)._replace(mounts=(Mount("", "/data", False, None, "v", **fields),))


def test_apps_added_to_a_machine_that_is_too_small_for_them(tmp_path: Path) -> None:
    poddir.write_leader(str(tmp_path), os.getpid())
    poddir.write_hardware(str(tmp_path), poddir.Hardware("tcg", 1, 512 << 20, "6.1.0"))
    memory, cpu, volume = kvm.check(pod(tmp_path, apps=(larger(size=1 << 30),)))
    assert memory.startswith('app "big" may use 2048 MiB, but the pod\'s virtual machine has 512 MiB')
    assert cpu == 'app "big" may use 2 processors, but the pod\'s virtual machine has 1'
    assert volume.startswith('the volume "v" may take 1024 MiB of memory that the pod was not given')


def test_nothing_is_said_of_added_apps_that_fit(tmp_path: Path) -> None:
    poddir.write_leader(str(tmp_path), os.getpid())
    poddir.write_hardware(str(tmp_path), poddir.Hardware("tcg", 2, 2 << 30, "6.1.0"))
    assert kvm.check(pod(tmp_path, apps=(larger(size=1 << 20), larger()))) == []


def test_nothing_is_said_of_a_machine_that_is_still_to_be_made(tmp_path: Path) -> None:
    """What a pod had that is to be started again says nothing about what it will have."""
    poddir.write_hardware(str(tmp_path), poddir.Hardware("tcg", 1, 512 << 20, "6.1.0"))
    assert kvm.check(pod(tmp_path, apps=(larger(size=1 << 30),))) == []


@pytest.mark.parametrize(("of_pod", "said"), [(0, 1), (300 << 20, 0)])
def test_a_machine_that_is_told_to_be_too_small(
    of_pod: int, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stage1.d, or by what the host has. Under a limit of the pod's nobody expects more."""
    made: Any = SimpleNamespace(memory=512 << 20, limits=Limits(memory=of_pod))
    monkeypatch.setattr(kvm, "_machine", lambda _pod: (made, Limits(), ""))
    assert len(kvm.check(pod(tmp_path, apps=(larger(),), starts=True))) == said


@pytest.mark.parametrize("word", ["slave", "shared"])
def test_propagation_is_ignored(tmp_path: Path, word: str) -> None:
    made = pod(tmp_path, apps=(mounting(str(tmp_path), propagation=word),))
    assert kvm.check(made) == [f'kvm ignores propagation={word} of volume "v"']


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ipc": "parent"}, "--ipc=parent: a virtual machine shares no memory"),
        ({"given": Given(sockets=("one",))}, "kvm cannot hand the service manager's sockets"),
        ({"apps": (app()._replace(devices=(Device("/dev/null", "/dev/x"),)),)}, "has no device /dev/null of the host"),
        ({"apps": (mounting("/dev/null"),)}, "/dev/null is neither a directory nor a file"),
        ({"net": ("host",)}, "--net=host"),
        ({"join": "/run/netns/x"}, "--net=ns:/run/netns/x"),
        ({"apps": (app(exec=()),)}, "nothing to execute"),
        ({"interactive": True, "apps": (app(), app("other"))}, "--interactive takes exactly one app"),
    ],
)
def test_what_is_refused(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        kvm.check(pod(tmp_path, **fields))


def test_special_files_are_no_volumes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"pipe is neither a directory nor a file"):
        kvm.check(pod(tmp_path, apps=(mounting(f"{tmp_path}/pipe"),)))
    with pytest.raises(LaunchError, match="does not exist"):
        kvm.check(pod(tmp_path, apps=(mounting(f"{tmp_path}/none"),)))


def test_root_of_a_kernel_of_its_own_has_every_capability(tmp_path: Path) -> None:
    """Whatever this process has."""
    names = [f"CAP_{name}" for name in capabilities.NAMES]
    every = app(isolators=(Isolator("os/linux/capabilities-retain-set", {"set": names}),))
    made = compiling.compile_pod(kvm._for_machine(pod(tmp_path, apps=(every,))))
    assert made.apps[0].launch.capabilities == tuple(range(len(names)))


def test_a_monitor_that_does_not_answer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        monkeypatch.chdir(tmp_path)  # an address is short
        listening.bind(poddir.CONTROL)
        listening.listen()
        stuck = subprocess.Popen(["sleep", "600"])
        try:
            poddir.write_leader(str(tmp_path), stuck.pid)
            kvm.stop(str(tmp_path), force=True)
            assert stuck.wait(60) == -signal.SIGKILL
        finally:
            stuck.kill()
            stuck.wait()
