"""Debian's CNI plugins in a lab of our own (`netlab`): what they do, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stage1.network import results
from tests import netlab

ROOT = pathlib.Path(__file__).parent.parent.parent
PLUGINS = "/usr/lib/cni"
ADDRESSES = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
BRIDGE: dict[str, Any] = {"type": "bridge", "bridge": "cni9", "isGateway": True, "ipam": ADDRESSES}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}

pytestmark = pytest.mark.skipif(not os.path.exists(f"{PLUGINS}/bridge"), reason="needs Debian's CNI plugins")


@pytest.fixture
def lab() -> Iterator[netlab.Lab]:
    with netlab.Lab() as lab:
        lab.namespace("pod")
        yield lab


class Attachment:
    """A pod to be attached to one network, with Debian's programs in the place of what is built in."""

    def __init__(self, lab: netlab.Lab, *plugins: dict[str, Any], version: str = "1.0.0", **more: Any) -> None:
        self.lab = lab
        self.request: dict[str, Any] = {
            "uuid": "6d1ecfca-0000-4000-8000-000000000001",
            "conf": {"cniVersion": version, "name": "net", "plugins": list(plugins)},
            "netns": lab.path("pod"), "interface": "eth0", "args": {}, "ports": [], "bandwidth": 0, "path": [PLUGINS],
            "result": None, "elements": [],
            **more,
        }  # fmt: skip
        self.error = ""
        self.interpreter = [sys.executable, "-m", "tests.host.attaching"]

    def __call__(self, verb: str) -> Any:
        """None when it failed; then `error` says how."""
        request = json.dumps({**self.request, "verb": verb})
        said = json.loads(self.lab.host(*self.interpreter, input=request, cwd=str(ROOT)))
        self.error = said.get("error", "")
        return said.get("answer")

    def add(self) -> dict[str, Any]:
        answer = self("add")
        assert self.error == ""
        result, elements = answer
        self.request.update(result=result, elements=elements)
        return dict(result)

    def check(self) -> str:
        self("check")
        return self.error

    def delete(self) -> list[str]:
        problems = self("delete")
        assert self.error == ""
        return list(problems)


def addresses(lab: netlab.Lab, interface: str = "eth0") -> list[str]:
    """As ip(8) tells them, those of the link's own aside."""
    links = json.loads(lab.run("pod", "ip", "-j", "address"))
    return [f"{address['local']}/{address['prefixlen']}" for link in links if link["ifname"] == interface
            for address in link["addr_info"] if address["scope"] != "link"]  # fmt: skip


def left(lab: netlab.Lab) -> dict[str, str]:
    """What there may be of plugins on the lab's host."""
    return {
        "links": " ".join(link["ifname"] for link in json.loads(lab.host("ip", "-j", "link"))),
        "leases": lab.host("find", "/var/lib", "-name", "[0-9f][0-9d]*[.:]*"),
        "rules": "\n".join(line for line in lab.host("iptables-save").splitlines() if "10.99.0." in line),
        "rules6": "\n".join(line for line in lab.host("ip6tables-save").splitlines() if "fd99:" in line),
        "pins": lab.host("sh", "-c", "ls /run/rkpy/net/netns 2>/dev/null; grep nsfs /proc/self/mounts || :"),
    }


def test_a_chain_of_five(lab: netlab.Lab) -> None:
    before = left(lab)
    pool = {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    pod = Attachment(
        lab, {**BRIDGE, "ipMasq": True, "ipam": pool}, PORTMAP, {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.all.accept_local": "1"}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        version="0.4.0", ports=[["web", "tcp", "", 8080, 80]], bandwidth=50_000_000,
    )  # fmt: skip
    result = pod.add()
    assert [ip["address"] for ip in result["ips"]] == addresses(lab) == ["10.99.0.2/24"]
    assert results.addresses(result, "eth0") == addresses(lab)
    assert lab.run("pod", "sysctl", "-n", "net.ipv4.conf.all.accept_local") == "1\n"
    assert "tbf" in lab.host("tc", "qdisc")
    assert "50Mbit" in lab.host("tc", "qdisc")
    lab.serve("pod", "tcp", "10.99.0.2", 80, "web")
    assert lab.ask("host", "tcp", "10.99.0.2", 80) == "web 10.99.0.1"
    assert lab.ask("outside", "tcp", netlab.HOST4, 8080) == f"web {netlab.OUTSIDE4}"
    during = left(lab)
    assert len(during["leases"].splitlines()) == 1
    assert during["rules"]
    plugins = pod.request["conf"]["plugins"]
    plugins.remove(PORTMAP)  # Version 1.1.1 looks for the rules of IPv4 among those of IPv6 and misses them.
    assert pod.check() == ""
    lab.run("pod", "ip", "address", "del", "10.99.0.2/24", "dev", "eth0")
    assert pod.check().startswith("network net: plugin bridge: ")
    lab.run("pod", "ip", "address", "add", "10.99.0.2/24", "dev", "eth0")
    plugins.insert(1, PORTMAP)
    assert pod.delete() == []
    assert pod.delete() == [], "as often as wanted"
    assert addresses(lab) == []
    pod("unpin")
    lab.host("ip", "link", "del", "cni9")
    assert left(lab) == before


def leases(lab: netlab.Lab) -> list[str]:
    """Of our own host-local."""
    names = lab.host("ls", "/run/rkpy/net/leases/net", check=False).split()
    return [name for name in names if "last" not in name]


@pytest.mark.parametrize("version", results.VERSIONS)
@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_versions(lab: netlab.Lab, kind: str, version: str) -> None:
    routes = [{"dst": "0.0.0.0/0"}]
    plugin = {"type": kind, "ipam": {"type": "host-local", "subnet": "10.99.0.0/24", "routes": routes}}
    pod = Attachment(lab, plugin, version=version)
    result = pod.add()
    assert results.addresses(result, "eth0") == addresses(lab) == ["10.99.0.2/24"]
    assert result["ips"][0]["gateway"] == "10.99.0.1"
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0"]
    assert lab.run("pod", "ip", "route", "show", "default").startswith("default via 10.99.0.1 dev eth0")
    assert pod.check() == ""
    assert pod.delete() == []
    assert left(lab)["leases"] == ""
    assert addresses(lab) == []


@pytest.mark.parametrize("version", results.VERSIONS)
def test_a_chain_of_any_version(lab: netlab.Lab, version: str) -> None:
    """portmap needs the result of the one before, in the form of its version. Those before 0.3.0 do not know of chains;
    libcni lets them."""
    plugin = {**BRIDGE, "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}
    pod = Attachment(lab, plugin, PORTMAP, version=version, ports=[["web", "tcp", "", 8080, 80]])
    result = pod.add()
    assert results.addresses(result) == ["10.99.0.2/24"]
    assert "10.99.0.2:80" in left(lab)["rules"]
    assert pod.delete() == []
    assert left(lab)["rules"] == ""


def test_macvlan_with_addresses_of_the_users(lab: netlab.Lab) -> None:
    pod = Attachment(
        lab,
        {"type": "macvlan", "master": netlab.UPLINK, "capabilities": {"ips": True}, "ipam": {"type": "static"}},
        args={"IP": "198.51.100.9/24,2001:db8:1::9/64"},
    )
    result = pod.add()
    assert results.addresses(result, "eth0") == ["198.51.100.9/24", "2001:db8:1::9/64"]
    assert set(addresses(lab)) == {"198.51.100.9/24", "2001:db8:1::9/64"}
    assert pod.check() == ""
    assert pod.delete() == []
    assert addresses(lab) == []


def test_an_address_by_argument_is_nothing_that_the_others_mind(lab: netlab.Lab) -> None:
    pod = Attachment(lab, BRIDGE, {"type": "tuning"}, args={"IP": "10.99.0.77", "MAC": "02:00:00:00:00:07", "X": "y"})
    assert results.addresses(pod.add(), "eth0") == addresses(lab) == ["10.99.0.77/24", "fd99::2/64"]
    assert "02:00:00:00:00:07" in lab.run("pod", "ip", "link", "show", "eth0")
    assert pod.delete() == []


def test_the_namespace_is_gone(lab: netlab.Lab) -> None:
    pod = Attachment(lab, BRIDGE, PORTMAP, ports=[["web", "tcp", "", 8080, 80]])
    pod.add()
    pod("unpin")
    assert pod.delete() == []
    assert (left(lab)["leases"], left(lab)["rules"]) == ("", "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("""echo '{"code": 7, "msg": "no", "details": "way"}'; exit 1""", "no: way"),
        ("echo garbage", "printed no result: garbage"),
        ("yes", f"printed more than {1 << 20} bytes and was killed"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_the_last_of_a_chain_fails(lab: netlab.Lab, tmp_path: pathlib.Path, body: str, said: str) -> None:
    before = left(lab)
    failing = tmp_path / "failing"
    failing.write_text(f'#!/bin/sh\ncat >/dev/null\ntest "$CNI_COMMAND" = ADD || exit 0\n{body}\n')
    failing.chmod(0o755)
    pod = Attachment(
        lab, BRIDGE, PORTMAP, {"type": "failing"}, ports=[["web", "tcp", "", 8080, 80]], path=[PLUGINS, str(tmp_path)]
    )
    assert pod("add") is None
    assert pod.error == f"network net: plugin failing: {said}"
    assert addresses(lab) == []
    assert pod.delete() == [], "as whoever detaches will do once more"
    pod("unpin")
    lab.host("ip", "link", "del", "cni9")
    assert left(lab) == before


def test_a_pool_that_is_exhausted(lab: netlab.Lab) -> None:
    pod = Attachment(lab, {**BRIDGE, "ipam": {"type": "host-local", "subnet": "10.99.0.0/30"}})
    pod.add()
    lab.namespace("other")
    other = Attachment(
        lab, *pod.request["conf"]["plugins"], netns=lab.path("other"), uuid=pod.request["uuid"][:-1] + "2"
    )
    assert other("add") is None
    assert other.error.startswith(
        "network net: plugin bridge: failed to allocate for range 0: no IP addresses available"
    )
    assert pod.delete() == []
    other.add()
    assert other.delete() == []


def test_programs_and_built_in_plugins_in_one_chain(lab: netlab.Lab) -> None:
    """ptp and portmap are ours, addresses and the firewall Debian's. Nothing is left of either."""
    before = left(lab)
    ipam = {"type": "static", "addresses": [{"address": "10.99.0.5/24", "gateway": "10.99.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
    pod = Attachment(lab, {"type": "ptp", "ipam": ipam}, {"type": "firewall"}, PORTMAP, {"type": "tuning"}, path=[],
                     ports=[["web", "tcp", "", 8080, 80]], version="0.4.0")  # fmt: skip
    assert pod("uses programs") is True
    result = pod.add()
    assert results.addresses(result, "eth0") == addresses(lab) == ["10.99.0.5/24"]
    assert "10.99.0.5" in left(lab)["rules"], "the firewall plugin heard of the address from ptp"
    lab.serve("pod", "tcp", "10.99.0.5", 80, "web")
    assert lab.ask("outside", "tcp", netlab.HOST4, 8080) == f"web {netlab.OUTSIDE4}"
    assert pod.check() == ""
    assert pod.delete() == []
    assert pod.delete() == []
    with pytest.raises(netlab.Unreachable):
        lab.ask("outside", "tcp", netlab.HOST4, 8080)
    pod("unpin")
    lab.run("pod", "ip", "link", "del", "eth0")
    assert left(lab) == before
    assert "rkpy" not in lab.host("nft", "list", "tables")


def test_the_built_in_portmap_for_a_bridge_of_the_program(lab: netlab.Lab, tmp_path: pathlib.Path) -> None:
    for name in ("bridge", "host-local"):
        (tmp_path / name).symlink_to(f"{PLUGINS}/{name}")
    pod = Attachment(lab, BRIDGE, PORTMAP, path=[str(tmp_path)], ports=[["web", "tcp", "", 8080, 80]])
    pod.add()
    assert pod.request["elements"]
    lab.serve("pod", "tcp", "10.99.0.2", 80, "web")
    lab.serve("pod", "tcp", "fd99::2", 80, "web6")
    assert lab.ask("outside", "tcp", netlab.HOST4, 8080) == f"web {netlab.OUTSIDE4}"
    assert lab.ask("outside", "tcp", netlab.HOST6, 8080) == f"web6 {netlab.OUTSIDE6}"
    assert left(lab)["rules"] == ""
    assert pod.check() == ""
    assert pod.delete() == []


@pytest.mark.parametrize(
    "plugin",
    [
        {"type": "ptp", "ipam": ADDRESSES},
        {**BRIDGE, "bridge": "rkbr9"},
        {"type": "macvlan", "master": netlab.UPLINK, "ipam": ADDRESSES},
        {"type": "loopback"},
    ],
    ids=lambda plugin: plugin["type"],
)
def test_built_in_plugins_are_taken_back_without_their_library(lab: netlab.Lab, plugin: dict[str, Any]) -> None:
    """As the monitor does it, in an interpreter that has no site-packages."""
    shaper = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    pod = Attachment(
        lab, plugin, {"type": "tuning", "mtu": 1400}, shaper, PORTMAP, path=[],
        ports=[["web", "tcp", "", 8080, 80]], bandwidth=50_000_000,
    )  # fmt: skip
    pod.request["interface"] = "lo" if plugin["type"] == "loopback" else "eth0"
    if plugin["type"] in ("macvlan", "loopback"):  # which have no interface on the host
        pod.request["conf"]["plugins"][2:] = []
    assert pod("uses programs") is False
    pod.add()
    assert len(leases(lab)) == (2 if "ipam" in plugin else 0)
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
    pod.interpreter = [sys.executable, "-I", "-S", "-c", code, str(ROOT), "tests.host.attaching"]
    assert pod.delete() == []
    assert pod.delete() == []
    pod("unpin")
    assert pod.delete() == []
    assert leases(lab) == []
    assert "rkpy" not in lab.host("nft", "list", "tables")


def test_addresses_for_a_built_in_plugin(lab: netlab.Lab) -> None:
    """As one asks for them by `cni.ipam`."""
    pod = Attachment(lab, {"type": "ptp", "ipam": ADDRESSES}, version="0.3.1")
    answer = pod("ADD")
    assert [ip["address"] for ip in answer["ips"]] == ["10.99.0.2/24", "fd99::2/64"]
    assert len(left(lab)["leases"].splitlines()) == 2
    assert pod("DEL") == {}
    assert left(lab)["leases"] == ""
    lone = Attachment(
        lab, {"type": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.99.0.5/24"}]}}, path=[]
    )
    assert [ip["address"] for ip in lone("ADD")["ips"]] == ["10.99.0.5/24"]


def test_a_pin_is_made_and_removed_as_often_as_wanted(lab: netlab.Lab) -> None:
    before = left(lab)
    pod = Attachment(lab)
    assert (pod("unpin"), pod.error) == (None, "")
    path = pod("pin")
    assert pod("pin") == path
    inside = lab.run("pod", "readlink", "/proc/self/ns/net")
    assert lab.host("nsenter", f"--net={path}", "readlink", "/proc/self/ns/net") == inside
    assert len(left(lab)["pins"].splitlines()) == 2, "its name and one mount"
    assert (pod("unpin"), pod.error) == (None, "")
    assert (pod("unpin"), pod.error) == (None, "")
    assert left(lab) == before
    lab.host("touch", path)  # killed before it was mounted
    assert pod("pin") == path
    lab.host("mount", "--bind", path, path)
    pod("unpin")
    assert left(lab) == before
    pod.request["netns"] = "/etc/passwd"
    assert pod("pin") is None
    assert pod.error == "/etc/passwd is no namespace"
    assert left(lab) == before
