"""Networks of net.d as people write them, from the file to the packet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.networked import Site, connected, running
from tests.netlab import FAR4, FAR6, HOST4, HOST6, OUTSIDE4, UPLINK, Lab, Unreachable

DOCUMENT = Path(__file__).parents[2] / "docs/networking.md"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with connected() as made:
        yield made


def examples() -> dict[str, object]:
    """The configurations of the documentation, by name."""
    blocks = re.findall(r"(?m)^    \{\n(?:    .*\n)*    \}\n", DOCUMENT.read_text())
    return {document["name"]: document for document in map(json.loads, blocks)}


def on_the_wire(kind: str) -> dict[str, object]:
    first = {
        "subnet": "198.51.100.0/24",
        "rangeStart": "198.51.100.50",
        "rangeEnd": "198.51.100.60",
        "gateway": OUTSIDE4,
    }
    ipam = {"type": "host-local", "ranges": [[first]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "0.4.0", "name": "wire", "type": kind, "master": UPLINK, "ipam": ipam}


def test_the_examples_of_the_documentation(site: Site) -> None:
    found = examples()
    assert set(found) == {"lan", "default"}
    for name, document in found.items():
        site.conf(f"{name}.conflist", document)
    asked = "--net=lan:IP=10.1.0.9;MAC=02:00:00:00:00:09,default"
    with running(site, asked, "--pod-name=shop") as shop, running(site, "--net=all", "--pod-name=stock") as stock:
        assert shop.addresses[0] == "10.1.0.9"
        assert "02:00:00:00:00:09" in shop.inside("ip", "link", "show", "eth0")
        # `all` is the files in the order of their names; the first default route is the one that is used.
        networks = stock.status()["networks"]
        assert re.fullmatch(r"default:ip4=10\.88\.0\.\d+,lan:ip4=10\.1\.0\.\d+,ip6=fd10:1::\w+", networks)
        for pod in (shop, stock):
            assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
            assert site.lab.ask(pod.pid, "tcp", FAR6, 80) == HOST6
        site.lab.serve(stock.pid, "tcp", "0.0.0.0", 80)
        lines = [line.split() for line in shop.enter("/bin/cat", "/etc/hosts").splitlines()]
        (address,) = [line[0] for line in lines if "stock" in line and line[0].startswith("10.1.")]
        assert site.lab.ask(shop.pid, "tcp", address, 80) == "10.1.0.9"
        assert site("net", "check").err == ""


def test_a_file_without_version_as_rkt_had_them(site: Site) -> None:
    ipam = {"type": "host-local", "subnet": "10.79.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    site.conf("10-old.conf", {"name": "old", "type": "bridge", "bridge": "old0", "isGateway": True, "ipMasq": True,
                              "ipam": ipam})  # fmt: skip
    with running(site, "--net=old", "--port=http:8080") as pod:
        assert pod.addresses[0].startswith("10.79.0.")
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
        site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
        assert site.lab.ask("outside", "tcp", HOST4, 8080).startswith("hello ")
        assert site("net", "check").err == ""


@pytest.mark.parametrize("programs", [(), ("macvlan", "host-local")], ids=["built in", "Debian's"])
def test_a_pod_on_a_macvlan_is_a_machine_of_its_own(site: Site, programs: tuple[str, ...]) -> None:
    site.plugins(*programs)
    site.conf("10-wire.conf", on_the_wire("macvlan"))
    with running(site, "--net=wire") as pod:
        (address,) = pod.addresses
        assert address == "198.51.100.50"
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == address
        site.lab.serve(pod.pid, "tcp", address, 80, "hello")
        assert site.lab.ask("outside", "tcp", address, 80) == f"hello {OUTSIDE4}"
        with pytest.raises(Unreachable):
            site.lab.ask("host", "tcp", address, 80, timeout=1)
        assert site("net", "check").err == ""
    assert "--net=default" in site.refused("run", "--net=wire", "--port=http:8080", "example.com/net")
    with running(site, "--net=wire,default", "--port=http:8080") as pod:
        site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
        assert site.lab.ask("host", "tcp", "127.0.0.1", 8080).startswith("hello ")


def test_ipvlan_where_the_kernel_has_it(site: Site) -> None:
    site.conf("10-wire.conf", on_the_wire("ipvlan"))
    available = site.lab.finish("host", "ip", "link", "add", "probe", "link", UPLINK, "type", "ipvlan", check=False)
    if available.returncode != 0:
        assert "this kernel has no ipvlan" in site.refused("run", "--net=wire", "example.com/net")
        return
    site.lab.host("ip", "link", "del", "probe")
    with running(site, "--net=wire") as pod:
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == pod.addresses[0]


def stubborn(site: Site) -> Path:
    """A plugin that refuses whatever it is asked for."""
    program = site.rkpy.config / "net.d/stubborn"
    program.parent.mkdir(parents=True)
    refusal = '{"cniVersion":"0.4.0","code":100,"msg":"not today"}'
    program.write_text(f"#!/bin/sh\necho '{refusal}'\nexit 1\n")
    program.chmod(0o755)
    site.conf("10-stubborn.conf", {"cniVersion": "0.4.0", "name": "stubborn", "type": "stubborn"})
    return program


def test_what_a_failed_plugin_cannot_take_back_is_told_once_and_done_later(site: Site) -> None:
    program = stubborn(site)
    done = site("run", "--net=stubborn", "example.com/net")
    assert done.status == 254
    assert done.err == 2 * "rkpy: run: network stubborn: plugin stubborn: not today\n"  # ADD, and what remains
    assert site("gc", "--grace-period=0s").status == 254
    program.write_text("#!/bin/sh\n")
    site.ok("gc", "--grace-period=0s")
    assert site.rkpy.pods() == []


def test_a_pod_can_be_removed_whatever_a_plugin_says(site: Site) -> None:
    stubborn(site)
    before = site.state()
    assert site("run", "--net=default,stubborn", "--port=http:8080", "example.com/net").status == 254
    (pod,) = site.rkpy.pods()
    refused = site("rm", pod.name)
    assert refused.status == 254
    assert "rkpy rm --force" in refused.err
    forced = site("rm", "--force", pod.name)
    assert (forced.status, forced.out) == (0, f'"{pod.name}"\n')
    assert "not today" in forced.err
    assert site.rkpy.pods() == []
    site.ok("net", "gc")
    site.settles_to(before)


def test_configurations_that_lack_something(site: Site) -> None:
    site.conf("10-bare.conf", {"cniVersion": "1.0.0", "name": "bare", "type": "ptp"})
    assert "the configuration has no ipam" in site.refused("run", "--net=bare", "example.com/net")
    ipam = {"type": "host-local", "subnet": "10.9.0.0/30"}
    site.conf("11-small.conf", {"cniVersion": "1.0.0", "name": "small", "type": "ptp", "ipam": ipam})
    with running(site, "--net=small"):
        assert "rkpy net inspect small shows whose" in site.refused("run", "--net=small", "example.com/net")


def test_an_argument_that_is_misspelt(site: Site) -> None:
    line = site.refused("run", "--net=default:ip=172.16.28.9", "example.com/net")
    assert 'no plugin of it knows the argument "ip" (they know IP and MAC)' in line


def test_behind_systemd_resolved_pods_ask_its_servers(site: Site) -> None:
    stub, real = site.directory / "stub", "/run/systemd/resolve/resolv.conf"
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n")
    site.lab.host("mkdir", "-p", "/run/systemd/resolve")
    site.lab.host("tee", real, input="nameserver 192.0.2.53\nsearch example.com\n")
    site.lab.host("mount", "--bind", str(stub), "/etc/resolv.conf")
    try:
        with running(site) as pod:
            lines = pod.enter("/bin/cat", "/etc/resolv.conf").splitlines()
            assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 192.0.2.53"]
            assert "search example.com" in lines
    finally:
        site.lab.host("umount", "/etc/resolv.conf")
        site.lab.host("rm", "-r", "/run/systemd")
