"""The built-in plugins that make interfaces: real ones, in namespaces of our own, with real packets between them.

Each call is a process in the namespace that plays the host (`plugging`); what a plugin's `delete` does is done as the
monitor does it, without site-packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.host.flying import until
from tests.netlab import FAR4, FAR6, HOST4, UPLINK, Lab, Unreachable

ROOT = Path(__file__).parent.parent.parent
DRIVER = Path(__file__).parent / "plugging.py"
GROUP = "29291"
DUAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "172.16.28.0/24"}], [{"subnet": "fd11::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
PTP = {"type": "ptp", "name": "default", "cniVersion": "1.0.0", "ipMasq": True, "ipam": DUAL}
BRIDGE = {**PTP, "type": "bridge", "name": "wire", "bridge": "br-test", "isDefaultGateway": True}


class Pod(NamedTuple):
    """A network namespace and whose it is."""

    name: str
    uuid: str


class Site:
    """A lab, and plugins that are called in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._count = 0

    def pod(self) -> Pod:
        self._count += 1
        name = f"pod{self._count}"
        self.lab.namespace(name)
        return Pod(name, str(uuid.uuid4()))

    def call(self, verb: str, pod: Pod, conf: dict[str, Any], interface: str = "eth0", **fields: Any) -> dict[str, Any]:
        """What the driver prints."""
        call = {
            "container": pod.uuid, "netns": self.lab.path(pod.name), "interface": interface, "args": {}, "conf": conf,
            "plugin_path": [], "system_plugin_path": [], "about": pod.name, **fields,
        }  # fmt: skip
        bare = ("-I", "-S") if verb == "delete" else ()
        answer = self._drive(*bare, verbs=(verb, "apply"), given=call)
        if verb == "delete":
            assert answer["loaded"] == 0
        return answer

    def _drive(self, *flags: str, verbs: tuple[str, ...], given: Any) -> dict[str, Any]:
        words = (sys.executable, *flags, str(DRIVER), str(ROOT), *verbs)
        found: dict[str, Any] = json.loads(self.lab.host(*words, input=json.dumps(given)))
        return found

    def open_loopback(self, interface: str) -> None:
        self._drive(verbs=("open",), given=interface)

    def add(self, pod: Pod, conf: dict[str, Any], interface: str = "eth0", **fields: Any) -> dict[str, Any]:
        answer = self.call("add", pod, conf, interface, **fields)
        assert "error" not in answer, answer
        assert not answer["asyncio"]
        result: dict[str, Any] = answer["result"]
        return result

    def fail(self, verb: str, pod: Pod, conf: dict[str, Any], interface: str = "eth0", **fields: Any) -> str:
        error = self.call(verb, pod, conf, interface, **fields)["error"]
        assert isinstance(error, str)
        assert "\n" not in error
        return error

    def check(self, pod: Pod, conf: dict[str, Any], result: dict[str, Any], interface: str = "eth0") -> None:
        answer = self.call("check", pod, {**conf, "prevResult": result}, interface)
        assert "error" not in answer, answer

    def ping(self, where: str, address: str) -> bool:
        done = self.lab.finish(where, "busybox", "ping", "-c1", "-W20", address, check=False)
        return done.returncode == 0

    def ip(self, where: str, *words: str) -> Any:
        text = self.lab.run(where, "ip", "-j", "-d", *words)
        return json.loads(text) if text.strip() else []

    def interfaces(self, where: str) -> set[str]:
        return {link["ifname"] for link in self.ip(where, "link")}

    def leases(self) -> list[str]:
        found = self.lab.host("sh", "-c", "cd /run/rkpy/net/leases 2>/dev/null && find . -name '[0-9f]*' || true")
        return found.split()

    def sysctl(self, where: str, name: str) -> str:
        return self.lab.run(where, "cat", f"/proc/sys/net/{name}").strip()


@pytest.fixture
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def addresses(result: dict[str, Any]) -> list[str]:
    return [entry["address"].partition("/")[0] for entry in result["ips"]]


def test_ptp_pods_reach_each_other_the_host_and_what_is_beyond(site: Site) -> None:
    first, second = site.pod(), site.pod()
    one, two = site.add(first, PTP), site.add(second, PTP)
    for address in ("172.16.28.1", "fd11::1", HOST4, *addresses(two)):
        assert site.ping(first.name, address)
    for address in addresses(one):
        assert site.ping("host", address)
    site.lab.serve("outside", "tcp", FAR4, 80)
    site.lab.serve("outside", "udp", FAR6, 80)
    # As it arrives there it comes from the host: `outside` knows no way to pods.
    assert site.lab.ask(first.name, "tcp", FAR4, 80) == HOST4
    assert site.lab.ask(first.name, "udp", FAR6, 80) == "2001:db8:1::1"
    site.check(first, PTP, one)


def test_ptp_is_usable_at_once(site: Site) -> None:
    """No address waits for anything, not even the link-local ones that neighbours are asked with."""
    pod = site.pod()
    # Whoever did wait would do so for longer than we do.
    for where in (pod.name, "host"):
        site.lab.run(where, "sh", "-c", "echo 100000 > /proc/sys/net/ipv6/conf/default/dad_transmits")
    name = site.add(pod, PTP)["interfaces"][0]["name"]

    def has_all(where: str, interface: str) -> bool:
        """The kernel adds it, and says that it is good, when it gets round to that."""
        shown = site.lab.run(where, "ip", "-6", "address", "show", "dev", interface)
        return "fe80::" in shown and "tentative" not in shown

    for where, interface in ((pod.name, "eth0"), ("host", name)):
        until(partial(has_all, where, interface))


def test_ptp_result_and_host_end(site: Site) -> None:
    pod = site.pod()
    result = site.add(pod, {**PTP, "mtu": 1400})
    host, inside = result["interfaces"]
    assert [entry["interface"] for entry in result["ips"]] == [1, 1]
    assert [entry["gateway"] for entry in result["ips"]] == ["172.16.28.1", "fd11::1"]
    assert {route["dst"] for route in result["routes"]} == {"0.0.0.0/0", "::/0"}
    [link] = site.ip("host", "link", "show", host["name"])
    assert host["name"] == f"rk0-{pod.uuid[:8]}"
    assert (link["group"], link["ifalias"]) == (GROUP, f"rkpy {pod.name} network default")
    assert (link["address"], link["mtu"]) == (host["mac"], 1400)
    assert link["altnames"] == [f"rkpy-{pod.name}-eth0"]
    [link] = site.ip(pod.name, "link", "show", "eth0")
    assert (link["address"], link["mtu"]) == (inside["mac"], 1400)
    assert inside["sandbox"] == site.lab.path(pod.name)


@pytest.mark.parametrize(
    ("args", "conf"),
    [({"MAC": "02:00:00:00:00:01"}, {}), ({}, {"runtimeConfig": {"mac": "02:00:00:00:00:01"}}),
     ({}, {"mac": "02:00:00:00:00:01"})],
)  # fmt: skip
def test_hardware_address_that_was_asked_for(site: Site, args: dict[str, str], conf: dict[str, Any]) -> None:
    pod = site.pod()
    assert site.add(pod, {**PTP, **conf}, args=args)["interfaces"][1]["mac"] == "02:00:00:00:00:01"
    assert site.ip(pod.name, "link", "show", "eth0")[0]["address"] == "02:00:00:00:00:01"


def test_the_default_route_is_that_of_the_first_network(site: Site) -> None:
    pod = site.pod()
    ranges = [[{"subnet": "172.16.29.0/24"}], [{"subnet": "fd12::/64"}]]
    other = {**PTP, "name": "other", "ipam": {**DUAL, "ranges": ranges}}
    later, first = site.add(pod, other, "eth1"), site.add(pod, PTP, "eth0")
    for family, address in (("-4", FAR4), ("-6", FAR6)):
        [route] = site.ip(pod.name, family, "route", "get", address)
        assert route["dev"] == "eth0"
        assert len(site.ip(pod.name, family, "route", "show", "default")) == 2
    for address in (*addresses(first), *addresses(later)):
        assert site.ping("host", address)


def test_a_dead_pods_route_is_replaced(site: Site) -> None:
    """Its wire may take a while to go, with a route to the address that the next pod has."""
    site.lab.host("ip", "link", "add", "stale0", "type", "veth", "peer", "name", "stale1")
    site.lab.host("ip", "link", "set", "stale0", "up")
    for address in ("172.16.28.2", "fd11::2"):
        site.lab.host("ip", "route", "add", address, "dev", "stale0")
    pod = site.pod()
    result = site.add(pod, PTP)
    assert addresses(result) == ["172.16.28.2", "fd11::2"]
    for address in addresses(result):
        assert site.ping("host", address)


def test_what_fails_leaves_nothing(site: Site) -> None:
    pod = site.pod()
    before = site.interfaces("host")
    unreachable = {**DUAL, "routes": [{"dst": "10.0.0.0/8", "gw": "192.0.2.1"}]}
    for conf in ({**PTP, "ipam": unreachable}, {**BRIDGE, "ipam": unreachable}):
        error = site.fail("add", pod, conf)
        assert error.startswith("add route to 10.0.0.0/8 by 192.0.2.1 eth0: network is unreachable")
        assert site.interfaces("host") == before
        assert site.interfaces(pod.name) == {"lo"}
        assert site.leases() == []
    # And it can be tried again.
    site.add(pod, PTP)


def test_an_interface_that_is_there_is_not_touched(site: Site) -> None:
    pod = site.pod()
    result = site.add(pod, PTP)
    other = {**PTP, "name": "other", "ipam": {**DUAL, "ranges": [[{"subnet": "10.5.0.0/24"}]]}}
    namesake = Pod(pod.name, pod.uuid[:8] + str(uuid.uuid4())[8:])
    assert "create veth" in site.fail("add", pod, other)
    assert "create veth" in site.fail("add", namesake, other, "eth0")
    assert "create veth" in site.fail("add", Pod(pod.name, str(uuid.uuid4())), other)
    site.check(pod, PTP, result)
    assert len(site.leases()) == 2


@pytest.mark.parametrize("conf", [PTP, BRIDGE], ids=["ptp", "bridge"])
def test_a_wire_that_the_pod_had_before_is_replaced(site: Site, conf: dict[str, Any]) -> None:
    """The kernel takes it away only after the namespace, which may be after the pod was started again."""
    before = site.pod()
    name = site.add(before, conf)["interfaces"][-2]["name"]
    again = site.pod()._replace(uuid=before.uuid)
    result = site.add(again, conf)
    assert result["interfaces"][-2]["name"] == name
    assert site.interfaces(before.name) == {"lo"}
    assert site.ping("host", addresses(result)[0])
    site.check(again, conf, result)


def test_delete_gives_the_addresses_back_as_often_as_wanted(site: Site) -> None:
    pod = site.pod()
    site.add(pod, PTP)
    assert len(site.leases()) == 2
    for netns in (site.lab.path(pod.name), "", ""):
        assert "error" not in site.call("delete", pod, PTP, netns=netns)
        assert site.leases() == []


def test_check_notices_what_is_gone(site: Site) -> None:
    pod = site.pod()
    result = site.add(pod, PTP)
    conf = {**PTP, "prevResult": result}
    site.lab.run(pod.name, "ip", "route", "del", "default")
    assert site.fail("check", pod, conf) == "eth0 has lost its route to 0.0.0.0/0"
    site.lab.run(pod.name, "ip", "address", "del", "172.16.28.2/24", "dev", "eth0")
    assert site.fail("check", pod, conf) == "eth0 has lost its address 172.16.28.2/24"
    site.lab.run(pod.name, "ip", "link", "set", "eth0", "down")
    assert site.fail("check", pod, conf) == "the interface eth0 is down"
    site.lab.run(pod.name, "ip", "link", "del", "eth0")
    assert site.fail("check", pod, conf) == "the interface eth0 is gone"


def test_forwarding_does_not_cost_the_host_its_router(site: Site) -> None:
    conf = "ipv6/conf/{}/accept_ra"
    assert site.sysctl("host", conf.format(UPLINK)) == "1"
    site.lab.host("sh", "-c", f"echo 0 > /proc/sys/net/{conf.format('lo')}")
    assert site.sysctl("host", "ipv6/conf/all/forwarding") == "0"
    # One of a pod that is started at the same time.
    site.lab.host("ip", "link", "add", "rk0-00000000", "type", "veth", "peer", "name", "eth0", "netns",
                  site.lab.path(site.pod().name))  # fmt: skip
    result = site.add(site.pod(), PTP)
    assert site.sysctl("host", conf.format("rk0-00000000")) == "1"
    assert site.sysctl("host", "ipv6/conf/all/forwarding") == site.sysctl("host", "ipv4/ip_forward") == "1"
    assert site.sysctl("host", conf.format(UPLINK)) == "2"
    assert site.sysctl("host", conf.format("lo")) == "0"
    # And no pod plays the host's router.
    assert site.sysctl("host", conf.format(result["interfaces"][0]["name"])) == "0"


def test_a_host_without_ipv6(site: Site) -> None:
    pod = site.pod()
    site.lab.host("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    result = site.add(pod, PTP)
    assert addresses(result) == ["172.16.28.2"]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0"]
    only = {**PTP, "ipam": {**DUAL, "ranges": [[{"subnet": "fd11::/64"}]]}}
    assert "this machine has no IPv6" in site.fail("add", site.pod(), only)


def test_interfaces_that_come_without_ipv6_have_it(site: Site) -> None:
    """Switched off for what is to come, but not for the machine."""
    site.lab.host("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    for address in addresses(site.add(site.pod(), PTP)):
        assert site.ping("host", address)


def test_the_loopback_opens_for_several_pods(site: Site) -> None:
    names = [site.add(site.pod(), PTP)["interfaces"][0]["name"] for _ in range(2)]
    for name in (*names, names[0]):
        site.open_loopback(name)
    routes = site.ip("host", "-6", "route", "show", "table", "local", "::1")
    assert {route["dev"] for route in routes} >= set(names)
    assert {site.sysctl("host", f"ipv4/conf/{name}/route_localnet") for name in names} == {"1"}
    assert site.ping("host", "::1")


def test_a_network_without_a_gateway_has_no_wire(site: Site) -> None:
    """IPAM that is a program may give out anything; ptp is nothing without a gateway."""
    pod = site.pod()
    conf = {**PTP, "ipam": {"type": "static", "addresses": [{"address": "10.1.1.1/24"}]}}
    error = site.fail("add", pod, conf, system_plugin_path=["/usr/lib/cni"])
    assert "ptp needs a gateway for 10.1.1.1/24" in error
    assert site.interfaces(pod.name) == {"lo"}


def test_bridge_pods_are_on_one_wire(site: Site) -> None:
    first, second = site.pod(), site.pod()
    one, two = site.add(first, BRIDGE), site.add(second, BRIDGE)
    for address in addresses(two):
        assert site.ping(first.name, address)
        # Nobody in between.
        [neighbour] = site.ip(first.name, "neighbour", "show", "to", address)
        assert neighbour["lladdr"] == two["interfaces"][-1]["mac"]
    site.lab.serve("outside", "tcp", FAR4, 80)
    assert site.lab.ask(second.name, "tcp", FAR4, 80) == HOST4
    bridge, port, _ = one["interfaces"]
    [link] = site.ip("host", "link", "show", "br-test")
    assert (bridge["name"], bridge["mac"], link["group"]) == ("br-test", link["address"], GROUP)
    assert link["ifalias"] == "rkpy network wire"
    assert site.ip("host", "link", "show", port["name"])[0]["master"] == "br-test"
    site.check(first, BRIDGE, one)
    site.lab.host("ip", "link", "set", "br-test", "down")
    assert site.fail("check", first, {**BRIDGE, "prevResult": one}) == "the interface br-test is down"


def test_bridge_goes_with_its_last_pod(site: Site) -> None:
    before = site.interfaces("host")
    pods = [site.pod(), site.pod()]
    for pod in pods:
        site.add(pod, BRIDGE)
    site.call("delete", pods[0], BRIDGE)
    assert site.interfaces("host") - before == {"br-test", f"rk0-{pods[1].uuid[:8]}"}
    for netns in (site.lab.path(pods[1].name), ""):
        assert "error" not in site.call("delete", pods[1], BRIDGE, netns=netns)
        assert site.interfaces("host") == before
    assert site.leases() == []


def test_somebody_elses_bridge_is_used_and_stays(site: Site) -> None:
    pod = site.pod()
    site.lab.host("ip", "link", "add", "br-test", "type", "bridge")
    site.add(pod, BRIDGE)
    site.call("delete", pod, BRIDGE)
    assert "br-test" in site.interfaces("host")
    assert f"{UPLINK} is not a bridge" in site.fail("add", pod, {**BRIDGE, "bridge": UPLINK})
    assert UPLINK in site.interfaces("host")


def test_a_port_of_another_pod_stays(site: Site) -> None:
    """Whose UUID begins alike."""
    pod = site.pod()
    site.add(pod, BRIDGE)
    other = Pod(pod.name, pod.uuid[:8] + str(uuid.uuid4())[8:])
    assert "file exists" in site.fail("add", other, BRIDGE, "eth0").lower()
    site.call("delete", other, BRIDGE)
    assert f"rk0-{pod.uuid[:8]}" in site.interfaces("host")


def test_bridge_comes_and_goes_under_everybodys_feet(site: Site) -> None:
    before = site.interfaces("host")
    pods = [site.pod() for _ in range(6)]
    errors: list[object] = []

    def live(pod: Pod) -> None:
        for _ in range(3):
            for verb in ("add", "delete"):
                errors.append(site.call(verb, pod, BRIDGE).get("error"))

    threads = [threading.Thread(target=live, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*errors} == {None}
    assert site.interfaces("host") == before
    assert site.leases() == []


def test_isolated_ports_reach_the_host_alone(site: Site) -> None:
    conf = {**BRIDGE, "portIsolation": True, "hairpinMode": True, "promiscMode": True}
    first, second = site.pod(), site.pod()
    site.add(first, conf)
    result = site.add(second, conf)
    assert site.ping(first.name, "172.16.28.1")
    site.lab.serve(second.name, "tcp", addresses(result)[0], 80)
    with pytest.raises(Unreachable):
        site.lab.ask(first.name, "tcp", addresses(result)[0], 80, timeout=1)
    assert site.lab.ask("host", "tcp", addresses(result)[0], 80)
    [port] = site.ip("host", "link", "show", result["interfaces"][1]["name"])
    assert port["linkinfo"]["info_slave_data"]["hairpin"]
    assert "PROMISC" in site.ip("host", "link", "show", "br-test")[0]["flags"]


def test_another_gateway_on_the_bridge_only_by_force(site: Site) -> None:
    site.add(site.pod(), BRIDGE)
    moved = {
        **DUAL,
        "ranges": [[{"subnet": "172.16.28.0/24", "gateway": "172.16.28.254", "rangeStart": "172.16.28.9"}]],
    }
    error = site.fail("add", site.pod(), {**BRIDGE, "ipam": moved})
    assert error.startswith("br-test has the address 172.16.28.1/24, not 172.16.28.254")
    pod = site.pod()
    site.add(pod, {**BRIDGE, "ipam": moved, "forceAddress": True})
    assert site.ping(pod.name, "172.16.28.254")


def test_bridge_of_the_second_layer_alone(site: Site) -> None:
    conf = {"type": "bridge", "name": "wire", "bridge": "br-test"}
    first, second = site.pod(), site.pod()
    for number, pod in enumerate((first, second), 1):
        assert site.add(pod, conf)["ips"] == []
        site.lab.run(pod.name, "ip", "address", "add", f"10.7.7.{number}/24", "dev", "eth0")
    assert site.ping(first.name, "10.7.7.2")
    assert site.sysctl("host", "ipv4/ip_forward") == "0"


def test_a_bridge_without_a_name_is_no_trouble_later(site: Site) -> None:
    pod, conf = site.pod(), {**BRIDGE, "bridge": "no/name"}
    assert "is not the name of an interface" in site.fail("add", pod, conf)
    assert "error" not in site.call("delete", pod, conf)


def test_what_a_built_in_plugin_leaves_out_is_refused(site: Site) -> None:
    pod = site.pod()
    for conf in (
        {**BRIDGE, "vlan": 7},
        {**BRIDGE, "macspoofchk": True},
        {**PTP, "type": "macvlan", "linkInContainer": 1},
    ):
        assert "does not have" in site.fail("add", pod, conf)
    assert site.leases() == []


def on_the_uplink(kind: str, **conf: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.50", "gateway": "198.51.100.2"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"type": kind, "name": "lan", "cniVersion": "1.0.0", "ipam": ipam, **conf}


@pytest.mark.parametrize("conf", [{"master": UPLINK}, {"mode": "private", "mac": "02:00:00:00:00:09", "mtu": 1300}])
def test_macvlan_is_on_the_masters_wire(site: Site, conf: dict[str, Any]) -> None:
    pod, whole = site.pod(), on_the_uplink("macvlan", **conf)
    result = site.add(pod, whole)
    site.lab.serve("outside", "tcp", FAR4, 80)
    assert site.lab.ask(pod.name, "tcp", FAR4, 80) == addresses(result)[0] == "198.51.100.50"
    [link] = site.ip(pod.name, "link", "show", "eth0")
    assert link["linkinfo"]["info_kind"] == "macvlan"
    assert link["linkinfo"]["info_data"]["mode"] == conf.get("mode", "bridge")
    assert result["interfaces"] == [{"name": "eth0", "mac": link["address"], "sandbox": site.lab.path(pod.name)}]
    assert conf.get("mac", link["address"]) == link["address"]
    assert link["mtu"] == conf.get("mtu", 1500)
    site.check(pod, whole, result)
    site.call("delete", pod, whole)
    assert site.leases() == []


@pytest.mark.parametrize("conf", [{"mac": "02:00:00:00:00:09"}, {"mode": "passthru"}], ids=["mac", "passthru"])
def test_what_a_pod_had_of_its_master_goes_to_the_next(site: Site, conf: dict[str, Any]) -> None:
    """As soon as the kernel takes it from the one that is over; that it has not yet is no failure."""
    over, pod, whole = site.pod(), site.pod(), on_the_uplink("macvlan", **conf)
    site.add(over, whole)
    site.lab.popen(over.name, "sh", "-c", "sleep 1; exec ip link delete eth0")
    result = site.add(pod, whole)
    site.check(pod, whole, result)


def test_macvlan_that_cannot_be(site: Site) -> None:
    pod = site.pod()
    assert "there is no interface nic9" in site.fail("add", pod, on_the_uplink("macvlan", master="nic9"))
    assert "macvlan has no mode 'x' (one of bridge," in site.fail("add", pod, on_the_uplink("macvlan", mode="x"))
    for family in ("-4", "-6"):
        site.lab.host("ip", family, "route", "del", "default")
    assert "names no master" in site.fail("add", pod, on_the_uplink("macvlan"))
    assert site.interfaces(pod.name) == {"lo"}
    assert site.leases() == []


@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_ipvlan_or_one_line(site: Site, mode: str) -> None:
    pod, conf = site.pod(), on_the_uplink("ipvlan", mode=mode)
    answer = site.call("add", pod, conf)
    if "error" in answer:
        assert answer["error"] == "this kernel has no ipvlan"
        assert site.interfaces(pod.name) == {"lo"}
        assert site.leases() == []
        return
    if mode == "l3":  # Nobody is asked for by neighbours there; they have to know.
        site.lab.outside("ip", "route", "add", "198.51.100.50", "via", HOST4)
    site.lab.serve("outside", "tcp", FAR4, 80)
    assert site.lab.ask(pod.name, "tcp", FAR4, 80) == "198.51.100.50"


def test_loopback_is_up(site: Site) -> None:
    pod, conf = site.pod(), {"type": "loopback", "name": "lo"}
    site.lab.run(pod.name, "ip", "link", "set", "lo", "down")
    assert not site.ping(pod.name, "127.0.0.1")
    result = site.add(pod, conf, "lo")
    assert addresses(result) == ["127.0.0.1", "::1"]
    assert site.ping(pod.name, "127.0.0.1")
    assert site.ping(pod.name, "::1")
    site.check(pod, conf, result, "lo")


def test_tuning(site: Site) -> None:
    pod = site.pod()
    conf: dict[str, Any] = {
        "type": "tuning", "name": "default", "prevResult": site.add(pod, PTP), "mtu": 1300, "txQLen": 77,
        "promisc": True, "allmulti": True, "mac": "02:00:00:00:00:07",
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv4/ip_forward": "1"},
    }  # fmt: skip
    machine = site.sysctl("host", "core/somaxconn")
    result = site.add(pod, conf)
    assert site.sysctl(pod.name, "core/somaxconn") == "500" != machine == site.sysctl("host", "core/somaxconn")
    assert site.sysctl(pod.name, "ipv4/conf/eth0/arp_filter") == "1"
    [link] = site.ip(pod.name, "link", "show", "eth0")
    assert (link["mtu"], link["txqlen"], link["address"]) == (1300, 77, "02:00:00:00:00:07")
    assert {"PROMISC", "ALLMULTI", "UP"} <= {*link["flags"]}
    assert result["interfaces"][1]["mac"] == "02:00:00:00:00:07"
    assert result["ips"] == conf["prevResult"]["ips"]
    site.check(pod, conf, result)
    site.lab.run(pod.name, "sh", "-c", "echo 99 > /proc/sys/net/core/somaxconn")
    assert "net.core.somaxconn is 99, not 500" in site.fail("check", pod, conf)


@pytest.mark.parametrize(
    "name",
    ["kernel.hostname", "net", "net.core", "net/../kernel/hostname", "net/ipv4/../../kernel/hostname", "net//core/x",
     "net.ipv4..x", "/net/core/somaxconn", "net/core/./somaxconn", "", "net/core/\0", "net/ipv4/conf/a b/x"],
)  # fmt: skip
def test_sysctls_that_are_not_the_pods(site: Site, name: str) -> None:
    pod = site.pod()
    conf = {"type": "tuning", "name": "n", "prevResult": {}, "sysctl": {name: "1"}}
    assert "is not a sysctl of the network" in site.fail("add", pod, conf)


def test_tuning_says_what_the_kernel_refuses(site: Site) -> None:
    pod = site.pod()
    conf = {"type": "tuning", "name": "n", "prevResult": {}, "sysctl": {"net.core.no_such": "1"}}
    assert site.fail("add", pod, conf) == "write 1 to /proc/sys/net/core/no_such: no such file or directory"
    assert "comes after it" in site.fail("add", pod, {"type": "tuning", "name": "n"})


SEND = """
import socket, sys, time
size = int(sys.argv[3])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=50) as client:
    begun = time.monotonic()
    client.sendall(bytes(size))
    client.shutdown(socket.SHUT_WR)
    client.recv(1)
    print(time.monotonic() - begun)
"""
RECEIVE = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            while connection.recv(65536):
                pass
"""


def seconds(site: Site, source: str, target: str, address: str, size: int) -> float:
    """That it takes to send that much."""
    server = site.lab.popen(
        target, sys.executable, "-I", "-S", "-c", RECEIVE, address, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    return float(site.lab.run(source, sys.executable, "-I", "-S", "-c", SEND, address, port, str(size)))


@pytest.mark.parametrize("conf", [PTP, BRIDGE], ids=["ptp", "bridge"])
def test_bandwidth_is_limited_either_way(site: Site, conf: dict[str, Any]) -> None:
    """A megabyte takes a second by eight megabits a second, on the fastest machine and on the slowest."""
    pod, size = site.pod(), 1_000_000
    result = site.add(pod, conf)
    [address, *_] = addresses(result)
    gateway = "172.16.28.1"
    limit = {"type": "bandwidth", "name": "default", "prevResult": result}
    incoming = {**limit, "runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 400_000}}}
    assert site.add(pod, incoming) == result
    assert seconds(site, "host", pod.name, address, size) > 0.7
    assert seconds(site, pod.name, "host", gateway, 40 * size) < 40
    outgoing = {**limit, "egressRate": 8_000_000, "egressBurst": 400_000}
    site.add(pod, outgoing)
    assert seconds(site, pod.name, "host", gateway, size) > 0.7
    site.check(pod, outgoing, result)
    site.lab.run(pod.name, "tc", "qdisc", "del", "dev", "eth0", "root")
    assert "egress on eth0 is not limited any more" in site.fail("check", pod, outgoing)


def test_bandwidth_that_cannot_be_limited(site: Site) -> None:
    pod = site.pod()
    wire = on_the_uplink("macvlan")
    conf = {"type": "bandwidth", "name": "n", "prevResult": site.add(pod, wire), "ingressRate": 8_000_000}
    assert "has no end on the host" in site.fail("add", pod, conf)
    for wrong in ({"ingressRate": "1"}, {"egressRate": -1}, {"ingressBurst": 9}):
        assert site.fail("add", pod, {**conf, "ingressRate": 0, **wrong})
    # None is wanted.
    site.add(pod, {**conf, "ingressRate": 0})


def test_how_long_it_takes(site: Site) -> None:
    """Not asserted: it depends on the machine."""
    taken = [site.call("add", site.pod(), PTP)["took"] for _ in range(3)]
    print("ptp.add takes", ", ".join(f"{milliseconds:.1f} ms" for milliseconds in taken))


def test_interfaces_go_with_the_namespace(site: Site) -> None:
    before = site.interfaces("host")
    pod = site.pod()
    site.add(pod, PTP)
    site.lab.run(pod.name, "ip", "link", "del", "eth0")
    until(lambda: site.interfaces("host") == before)
