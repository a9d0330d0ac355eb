"""The file system of a supervised app: what it sees, what it cannot reach, and what is left on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stage1 import app_steps, poddir
from stage1.flavour import Mount
from stage1.plan import AppPlan
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage2.launch import LaunchSpec
from tests.host.flying import Workshop
from tests.host.furnishing import COUNT, FIRST, PLAIN, Setting, inside

USERS = Setting(users=True)
BOTH = pytest.mark.parametrize("setting", [PLAIN, USERS], ids=["plain", "users"])
LAUNCH = LaunchSpec("app", ("/x",), (), "0", "0", (), "/", False, ())


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with open(tmp_path / "inspector", "w"):
        pass
    yield Workshop(str(tmp_path), str(tmp_path / "inspector"))


@pytest.fixture(autouse=True)
def host_untouched(tmp_path: Path) -> Iterator[None]:
    """No test may change what is mounted in the host's namespace below its directory."""
    yield
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert not [line for line in file if str(tmp_path) in line]


def planned(
    shop: Workshop,
    setting: Setting = PLAIN,
    *,
    layers: tuple[str, ...] = (),
    mounts: tuple[Mount, ...] = (),
    copied: bool = False,
    app: Mapping[str, Any] | None = None,
    pod: Mapping[str, Any] | None = None,
    **prepared: Any,
) -> AppPlan:
    """The plan of one app, its pod directory made as stage0 makes it."""
    fields = {"private_range": (FIRST, COUNT)} if setting.users else {}
    made = shop.pod(layers=layers, mounts=mounts, copied=copied, pod_fields={**fields, **(pod or {})}, **(app or {}))
    os.close(made.lock_fd)
    one = made.apps[0]._replace(**prepared)
    app_steps.write_names(made.directory, "pod-one")
    place = poddir.rootfs(made.directory, "app")
    root: CopiedRoot | OverlayRoot = CopiedRoot(place)
    if one.layers:
        root = OverlayRoot(one.layers, poddir.overlay(made.directory, "app"), place, made.uuid)
    if setting.host_network:
        made = made._replace(net=("host",))
    return AppPlan("app", root, app_steps.steps(made, one), LAUNCH)


@BOTH
def test_a_plain_app(shop: Workshop, setting: Setting) -> None:
    def look() -> Any:
        with open("/proc/self/mountinfo") as file:
            return sorted(os.listdir("/")), sorted(os.listdir("/dev")), file.read().splitlines()

    names, _, mounts = inside(planned(shop, setting), look, setting)
    print(*mounts, sep="\n")
    assert names == ["bin", "dev", "etc", "proc", "sys"]
