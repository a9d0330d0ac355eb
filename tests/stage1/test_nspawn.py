"""What nspawn ignores, and says so, and what it refuses; needs no root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aci.image_manifest import App, Isolator, Port
from common.errors import UsageError
from stage1 import compiling, nspawn
from stage1.flavour import PreparedApp, PreparedPod
from stage1.plan import PodPlan, dumps, loads
from stage1.vm.machine import MachineOptions


def app(name: str = "web", **fields: Any) -> PreparedApp:
    return PreparedApp(name, "sha512-0", App(**{"exec": ("/bin/web",), **fields}), ("/l/1",), False, ())


def pod(directory: Path, **fields: Any) -> PreparedPod:
    base = PreparedPod("the-uuid", str(directory), 3, (app(),), ("none",), (), (), "", "auto", False, (), (), False)
    return base._replace(**{"insecure": ("seccomp",), **fields})


WARNINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "the host's network": ({"net": ("host",)}, []),
    "the host's IPC": ({"ipc": "parent"}, []),
    "no word on networks": ({"net": None}, []),
    "isolators": (
        {"apps": (app(isolators=(Isolator("os/unix/sysctl", {}), Isolator("example.com/unknown", 1))),)},
        [f'nspawn ignores isolator "{name}" of app "web"' for name in ("os/unix/sysctl", "example.com/unknown")],
    ),
    "pod isolators": (
        {"isolators": (Isolator("os/linux/no-new-privileges", True), Isolator("resource/pids", {}))},
        ['nspawn ignores isolator "os/linux/no-new-privileges" of the pod'],
    ),
    "bandwidth": ({"isolators": (Isolator("resource/network-bandwidth", {}),), "bandwidth": 8}, []),
    "bandwidth without a network": (
        {"isolators": (Isolator("resource/network-bandwidth", {}),)},
        ['nspawn ignores isolator "resource/network-bandwidth" of the pod'],
    ),
    "a machine": (
        {"machine": MachineOptions("tcg", "6.1.0", "quiet", 1)},
        [f"nspawn ignores --kvm-{flag}" for flag in ("accel=tcg", "kernel=6.1.0", "params=quiet")],
    ),
    "ports": ({"apps": (app(ports=(Port("plain", "tcp", 80, 1, False), Port("http", "tcp", 81, 1, True))),)}, []),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_one_warning_per_ignored_field(tmp_path: Path, case: str) -> None:
    fields, expected = WARNINGS[case]
    found = nspawn.check(pod(tmp_path, **fields))
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no apps": ({"apps": ()}, "the pod has no apps"),
    "nothing to execute": ({"apps": (app(exec=()),)}, 'app "web" has nothing to execute'),
    "several at one terminal": ({"apps": (app(), app("db")), "interactive": True}, "takes exactly one app, not 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_ignored_safely_is_refused(tmp_path: Path, case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        nspawn.check(pod(tmp_path, **fields))


def test_a_sandbox_may_be_empty(tmp_path: Path) -> None:
    assert nspawn.check(pod(tmp_path, apps=(), mutable=True)) == []


def test_a_plan_survives_the_way_to_the_monitor(tmp_path: Path) -> None:
    made = compiling.compile_pod(pod(tmp_path, private_range=(1 << 20, 1 << 16), hostname="blue"))
    assert isinstance(made, PodPlan) and made.hostname == "blue"
    assert loads(dumps(made)) == made


PTRACE = Isolator("os/linux/capabilities-retain-set", {"set": ["CAP_SYS_PTRACE", "CAP_KILL"]})


@pytest.mark.parametrize(("private_range", "warned"), [((0, 0), True), ((1 << 20, 65536), False)])
def test_what_makes_root_of_the_host_is_told(tmp_path: Path, private_range: tuple[int, int], warned: bool) -> None:
    asked = pod(tmp_path, apps=(app(isolators=(PTRACE,)),), private_range=private_range)
    said = [line for line in nspawn.check(asked) if "root of the host by CAP_SYS_PTRACE;" in line]
    assert bool(said) == warned
    assert not any("root of the host" in line for line in nspawn.check(pod(tmp_path)))
