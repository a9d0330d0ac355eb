"""Tests that run where systemd is PID 1: in the container of tests/systemd, or in the machine of tests/vm."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import images, leaks
from tests.host.commands import Rkpy

NAME = "example.com/busybox"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What carries our mark, that is: units of systemd's come and go."""
    if not os.path.isdir("/run/systemd/system"):
        pytest.skip("needs systemd as PID 1: tests/systemd/test_container.py runs these")
    leaks.become_subreaper()
    # What networks leave by design: where claims are written, and the lock that stays.
    frame = frozenset(f"{leaks.CLAIMS}/{name}" for name in ("leases", "lock", "names", "pods"))
    before = leaks.take()
    before = before._replace(network_claims=before.network_claims | frame)
    yield
    left = leaks.children()
    left += leaks.leaked(before, leaks.take(), marks=(leaks.MARK, str(tmp_path_factory.getbasetemp())))
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def rkpy(nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rkpy]:
    """The command, with an image `example.com/busybox` in its store; no pod is there any more afterwards."""
    made = Rkpy(tmp_path_factory.mktemp("rkpy"))
    image = images.make_aci(str(made.directory / "busybox.aci"), images.manifest(NAME), images.busybox_files())
    made.ok("--insecure-options=image", "fetch", image)
    yield made
    for _ in range(2):  # Dead pods become garbage at the first run, and are removed at the second.
        made.ok("gc", "--grace-period=0s")
    assert not made.pods()
