"""Pods on networks when plugins hang, nobody listens, and whoever waits loses patience."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.flavours import shell_status
from tests.host.networked import DEADLINE, Site, until
from tests.netlab import UPLINK, Lab

PROMPT = 60.0
"""Seconds; a plugin that hangs is waited for twice as long (`stage1.network.programs.LIMIT`)."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        until(lambda: "scope link" in made.host("ip", "-6", "address", "show", "dev", UPLINK, "-tentative"))
        until(lambda: "local fe80::" in made.host("ip", "-6", "route", "show", "table", "local"))
        yield made


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Site]:
    made = Site(lab, tmp_path)
    before = made.state()
    yield made
    made.ok("gc", "--grace-period=0s")
    made.settles_to(before)


def _plugin(site: Site, body: str) -> Path:
    """The network "odd": a wire of ours, and then a plugin that does `body`; the file with the commands it was given.
    What it is told on standard input it says to be the result."""
    site.conf("10-odd.conflist", {
        "cniVersion": "1.0.0", "name": "odd",
        "plugins": [
            {"type": "ptp", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.78.0.0/24"}},
            {"type": "odd"},
        ],
    })  # fmt: skip
    log = site.directory / "log"
    script = site.rkpy.config / "net.d/odd"
    script.write_text(
        f'#!/bin/sh\nread -r conf\necho "$CNI_COMMAND" >> {log}\n{body}\n[ "$CNI_COMMAND" = ADD ] || exit 0\n'
        'echo \'{"cniVersion":"1.0.0"}\'\n'
    )
    script.chmod(0o755)
    return log


def _run(site: Site, *flags: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    words = site.rkpy.command("run", "--net=odd", *flags, "example.com/net")
    environment = site.rkpy.environment()
    return site.lab.popen(
        "host", *words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True
    )


def _commands(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pod_whose_plugin_hangs_can_be_interrupted(site: Site, number: signal.Signals) -> None:
    before = site.state()
    log = _plugin(site, '[ "$CNI_COMMAND" != ADD ] || exec sleep 1000')
    process = _run(site)
    until(lambda: _commands(log))
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=PROMPT)
    assert shell_status(process.returncode) == 128 + number
    assert err == ""
    assert set(_commands(log)[1:]) == {"DEL"}
    site.settles_to(before)


def test_an_interrupted_plugin_may_finish(site: Site) -> None:
    """And what it did is taken back in the namespace that it did it in; and a signal that comes twice is one."""
    before = site.state()
    log = _plugin(site, f'sleep 0.1; echo "$CNI_COMMAND-done${{CNI_NETNS:+-there}}" >> {site.directory}/log')
    process = _run(site)
    until(lambda: _commands(log))
    os.killpg(process.pid, signal.SIGTERM)
    until(lambda: "DEL" in _commands(log))
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PROMPT)
    assert shell_status(process.returncode) == 128 + signal.SIGTERM
    assert err == ""
    assert _commands(log) == ["ADD", "ADD-done-there", "DEL", "DEL-done-there"]
    site.settles_to(before)


def test_a_second_interrupt_does_not_wait_for_a_plugin_that_takes_back(site: Site) -> None:
    before = site.state()
    where = f'[ ! -e "$CNI_NETNS" ] || echo there >> {site.directory}/log'
    log = _plugin(site, f"[ -e $0.well ] || exec sleep 1000\n{where}")
    process = _run(site)
    until(lambda: _commands(log))
    os.killpg(process.pid, signal.SIGINT)
    until(lambda: "DEL" in _commands(log))
    time.sleep(1.1)  # What comes at once is taken for the same interrupt.
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PROMPT)
    assert shell_status(process.returncode) == 128 + signal.SIGINT
    assert "plugin odd: was interrupted" in err
    assert err.count("\n") == 1
    (site.rkpy.config / "net.d/odd.well").touch()
    site.ok("gc", "--grace-period=0s")
    assert _commands(log)[-1] == "there"
    site.settles_to(before)


def test_a_plugin_that_hangs_does_not_outlive_the_monitor(site: Site) -> None:
    before = site.state()
    log = _plugin(site, '[ "$CNI_COMMAND" != ADD ] || exec sleep 1000')
    process = _run(site)
    until(lambda: _commands(log))
    process.kill()
    process.communicate(timeout=PROMPT)  # which all that hold its pipes have to leave

    def collected() -> bool:
        return site("gc", "--grace-period=0s").status == 0 and site.state() == before

    until(collected)
    assert "DEL" in _commands(log)


def test_nobody_reads_what_is_complained_of(site: Site) -> None:
    """A pipe that is full, as that of a pager that was left alone, keeps the pod neither from its start nor its end."""
    before = site.state()
    _plugin(site, "echo look out >&2")
    ours, theirs = os.pipe()
    try:
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
        os.write(theirs, bytes(4096))
        process = _run(site, f"--uuid-file-save={site.directory / 'uuid'}", stderr=theirs)
        until(lambda: (site.directory / "uuid").exists() and (site.directory / "uuid").read_text().strip())
        site.ok("status", "--wait-ready=300s", (site.directory / "uuid").read_text().strip())
        process.terminate()
        process.communicate(timeout=DEADLINE)
        site.settles_to(before)
    finally:
        os.close(ours)
        os.close(theirs)


def _crippled(site: Site, *prefix: str) -> str:
    """What a pod with networks says that cannot be, when rkpy is run by `prefix`."""
    words = site.rkpy.command("run", "example.com/net")
    done = site.lab.finish("host", *prefix, *words, check=False, env=site.rkpy.environment())
    assert done.returncode == 254, done
    assert done.stderr.count("\n") == 1, done
    return done.stderr


def test_the_library_is_missing(site: Site) -> None:
    found = importlib.util.find_spec("pyroute2")
    assert found is not None
    place = os.path.dirname(str(found.origin))
    line = _crippled(site, "unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place} && exec "$@"', "sh")
    assert "networks need pyroute2" in line


def test_the_pod_fails_before_it_is_attached(site: Site) -> None:
    assert "loopback interface: operation not permitted" in _crippled(site, "setpriv", "--bounding-set=-net_admin")


def test_what_is_no_directory_among_the_claims_is_in_nobodys_way(site: Site) -> None:
    untouched = site.state()
    site.run(app=("--exec=/bin/true",))
    site.settles_to(untouched)
    claims = [f"/run/rkpy/net/{kind}/garbage" for kind in ("leases", "names")]
    site.lab.host("touch", *claims)
    before = site.state()
    assert site.run("--port=http:8080", app=("--exec=/bin/true",)).status == 0
    site.ok("gc", "--grace-period=0s")
    site.settles_to(before)
    site.lab.host("rm", *claims)
