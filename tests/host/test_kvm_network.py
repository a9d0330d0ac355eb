"""Networks of a real virtual machine: what `tests.host.test_taps` shows part by part, once from end to end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.host.networked import Site, connected, running, until
from tests.netlab import FAR4, FAR6, HOST4, HOST6, Lab, Unreachable

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
SCRIPT = f"""
for far in {FAR4} {FAR6}; do nc $far 80 < /dev/null; echo; done
ip -o link show dev eth1
while :; do echo hello | nc -l -p 80; done
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with connected() as made:
        yield made


def test_a_virtual_machine_on_two_networks(site: Site) -> None:
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24"}
    site.conf("lan.conf", {"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "bridge": "lan0", "isGateway": True,
                           "mtu": 1400, "ipam": ipam})  # fmt: skip
    flags = ("--stage1=kvm", "--kvm-accel=tcg", "--net=default,lan", "--port=http:8080")
    with running(site, *flags, app=("--exec", "/bin/sh", "--", "-c", SCRIPT)) as pod:

        def greets(address: str, port: int) -> bool:
            try:
                return site.lab.ask("host", "tcp", address, port) == "hello\n"
            except Unreachable:  # It does not listen yet, or not again.
                return False

        until(lambda: greets("127.0.0.1", 8080))
        lan = next(address for address in pod.addresses if address.startswith("10.1.0."))
        until(lambda: greets(lan, 80))
        done = site("net", "check")
        assert (done.status, done.err) == (0, "")
        four, six, link = pod.stop().out.splitlines()[:3]
    assert (four, six) == (HOST4, HOST6)
    assert " mtu 1400 " in link
