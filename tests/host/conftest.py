"""Tests that need root: they run real pods, and the session fails when one of them leaves something behind."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests import leaks
from tests.conftest import MUST_RUN
from tests.host.networked import Site
from tests.netlab import Lab

BESIDE = os.environ.get("RKPY_TESTS_BESIDE")
"""The processes whose tests go on beside these and are to be over before the machine is looked at; "0" when it is
others who look, and only what has our own mark is ours."""
PAYLOAD = pathlib.Path(__file__).parent / "payload"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No mount, network namespace, cgroup, interface, firewall rule or process of ours outlives the session."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    # It is said once, and would be found in the output of whichever test comes first.
    said = pathlib.Path("/run/rkpy/without-systemd")
    said.parent.mkdir(exist_ok=True)
    said.touch()
    leaks.become_subreaper()
    before = leaks.take()
    yield
    for pid in (BESIDE or "0").split():
        leaks.await_end(int(pid))
    left = leaks.children()
    marks = (str(tmp_path_factory.getbasetemp()), *(() if BESIDE == "0" else (leaks.MARK,)))
    left += leaks.leaked(before, leaks.take(), marks=marks, strict=MUST_RUN and BESIDE != "0")
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The static program that tells what an app sees (payload/inspect.c)."""
    path = tmp_path_factory.mktemp("payload") / "inspect"
    try:
        subprocess.run(["cc", "-static", "-O1", "-o", path, PAYLOAD / "inspect.c"], check=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    return str(path)


@pytest.fixture
def site(lab: Lab, tmp_path: pathlib.Path) -> Iterator[Site]:
    """Where to run pods with networks, which has to be afterwards as it was; the test's module says what `lab` is."""
    made = Site(lab, tmp_path)
    before = made.state()
    yield made
    made.ok("gc", "--grace-period=0s")
    made.settles_to(before)
