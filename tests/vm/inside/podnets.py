"""Pods on networks, on a kernel as Debian has it and below systemd; run there by tests/vm/test_guest.py."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cgroups import until
from tests.host import test_networking
from tests.host.commands import Rkpy
from tests.host.conftest import site as site
from tests.host.test_networking import lab as lab
from tests.vm.inside.pods import APP, HOG, NAME, SHELL, lives, uuid
from tests.vm.inside.pods import rkpy as rkpy

test_the_internet = test_networking.test_a_pod_reaches_the_internet_behind_the_hosts_address
test_restricted = test_networking.test_a_restricted_network_cannot_leave

SERVE = "exec /bin/busybox httpd -f -p [::]:80"


@contextmanager
def unit(rkpy: Rkpy, *app: str, options: tuple[str, ...] = ()) -> Iterator[Path]:
    """A pod that is a service of systemd's: the cgroup of the service, which is delegated."""
    (rkpy.directory / "uuid").unlink(missing_ok=True)
    words = ("--insecure-options=image", "run", f"--uuid-file-save={rkpy.directory / 'uuid'}", *options, NAME)
    service = ("-q", "--unit=podnet", "-p", "Delegate=yes", "-p", "KillMode=mixed", "-p", "RemainAfterExit=yes")
    environment = f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}"
    subprocess.run(["systemd-run", *service, environment, *rkpy.command(*words, "--memory=32M", *app)], check=True)
    try:
        until(lambda: (rkpy.directory / "uuid").exists() and uuid(rkpy))
        yield Path("/sys/fs/cgroup/system.slice/podnet.service")
    finally:
        subprocess.run(["systemctl", "stop", "podnet"], check=True)
        subprocess.run(["systemctl", "reset-failed", "podnet"], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    until(lambda: not [name for name in os.listdir("/sys/class/net") if name.startswith("rk")])
    assert "rkpy" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 8080), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.recv(8) == b"HTTP/1.1"
    except OSError:
        return False


def test_a_pod_in_a_delegated_service_has_limits_and_a_network(rkpy: Rkpy) -> None:
    """The process that attaches it is in the service's cgroup too, where no limit could be set otherwise."""
    with unit(rkpy, *SHELL, SERVE, options=("--port=8080:80",)) as service:
        place = service / uuid(rkpy) / APP
        until(lambda: lives(place))
        assert (place / "memory.max").read_text() == f"{32 * 10**6 // 4096 * 4096}\n"
        until(lambda: answers("127.0.0.1"))
        until(lambda: answers("::1"))
    assert not place.exists()


def test_a_limit_holds_in_a_delegated_service_with_a_network(rkpy: Rkpy) -> None:
    with unit(rkpy, *SHELL, HOG):
        until(lambda: f"app-{APP}=137" in rkpy.ok("status", uuid(rkpy)))
