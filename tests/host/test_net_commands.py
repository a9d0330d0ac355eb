"""`rkpy net` and the errors of `--net` and `--port`, with pods on networks of a lab."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import pytest

from tests.host.networked import NetPod, Site, until
from tests.netlab import FAR4, HOST4, Lab, Unreachable


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.serve("outside", "tcp", FAR4, 80)
        # What the first pod would change for all.
        made.host("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        until(lambda: "local fe80:" in made.host("ip", "-6", "route", "show", "table", "local"))
        yield made


@pytest.fixture
def pod(site: Site) -> Iterator[NetPod]:
    made = site.start("--pod-name=web", "--port=http:127.0.0.1:8080")
    yield made
    if made.process.poll() is None:
        made.stop()


def test_who_has_what(site: Site, pod: NetPod) -> None:
    rows = {row.split("\t")[0]: row for row in site.ok("net", "list", "--no-legend").splitlines()}
    assert rows["default"].endswith("\t1\tbuilt in") and rows["default-restricted"].endswith("\t0\tbuilt in")
    address, address6 = pod.addresses
    told = json.loads(site.ok("net", "inspect", "default"))
    assert {lease["address"] for lease in told["leases"]} == {address, address6}
    assert all((lease["pod"], lease["podName"]) == (pod.uuid, "web") for lease in told["leases"])
    assert [(each["uuid"], each["interface"]) for each in told["pods"]] == [(pod.uuid, "eth0")]
    assert told["ports"] == [{"protocol": "tcp", "hostPort": 8080, "hostIP": "127.0.0.1", "pod": pod.uuid}]
    assert told["obstacles"] == []
    told = json.loads(site.ok("net", "inspect", "web"))
    assert told["networks"][0]["ip"] == address and any(address in each["key"] for each in told["firewall"])
    shown = f"default:ip4={address},ip6={address6}"
    assert pod.status()["networks"] == shown
    assert shown in site.ok("list")
    pod.stop()
    assert pod.status()["networks"] == shown
    assert json.loads(site.ok("net", "inspect", "default"))["leases"] == []


def test_what_a_pod_has_lost_is_found(site: Site, pod: NetPod) -> None:
    assert site.ok("net", "check") == site.ok("net", "check", "web") == ""
    pod.inside("ip", "address", "del", f"{pod.addresses[0]}/24", "dev", "eth0")
    assert site.refused("net", "check").startswith(f'rkpy: net check: pod "{pod.uuid}": network default: plugin ptp: ')
    pod.inside("ip", "link", "del", "eth0")
    assert "eth0" in site.refused("net", "check", pod.uuid)


def test_pods_of_every_kind_pass_the_check(site: Site) -> None:
    pod = site.start(
        "--net=default,default-restricted", "--port=8080:80", "--port=[::1]:53:53/udp", "--port=range:9000"
    )
    assert site.ok("net", "check") == ""
    assert len(json.loads(site.ok("net", "inspect", pod.uuid))["networks"]) == 2
    pod.stop()


def test_rules_that_were_flushed_come_back(site: Site, pod: NetPod) -> None:
    rules = site.lab.host("nft", "-s", "list", "table", "inet", "rkpy")
    assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
    site.lab.host("nft", "flush", "ruleset")
    with pytest.raises(Unreachable):
        site.lab.ask(pod.pid, "tcp", FAR4, 80, timeout=2)
    assert "the firewall has lost rules of the pod (rkpy net reload makes them anew)" in site.refused("net", "check")
    site.ok("net", "reload")
    assert site.ok("net", "check") == ""
    assert sorted(site.lab.host("nft", "-s", "list", "table", "inet", "rkpy").split()) == sorted(rules.split())
    assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4


def test_what_a_killed_pod_had_is_taken_back(site: Site, pod: NetPod) -> None:
    assert site.ok("net", "gc") == ""
    pid = pod.pid
    pod.process.kill()
    pod.process.communicate()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # the session adopts it
    until(lambda: pod.status()["state"] == "exited")
    assert pod.uuid in site.ok("net", "gc")
    assert json.loads(site.ok("net", "inspect", "default"))["leases"] == []
    assert site.ok("net", "gc") == ""


def test_a_route_of_the_hosts_is_not_taken_away(site: Site) -> None:
    site.lab.host("ip", "route", "add", "172.16.0.0/12", "via", "198.51.100.2")
    try:
        error = site.refused("run", "example.com/net")
    finally:
        site.lab.host("ip", "route", "del", "172.16.0.0/12")
    assert 'network "default" has the subnet 172.16.28.0/24, and this host a route to 172.16.0.0/12 by uplink0' in error
    assert site.ok("list", "--no-legend") == ""


def test_a_broken_file_concerns_its_own_network_only(site: Site) -> None:
    site.conf("10-bad.conf", '{"name": "bad", "type": ""}')
    done = site.run(app=("--exec=/bin/true",))
    assert (done.status, done.err) == (0, "")
    assert "10-bad.conf, which makes no sense: the type of a plugin is missing" in site.refused(
        "run", "--net=bad", "example.com/net"
    )
    site.conf("20-worse.conf", "{")
    done = site.run(app=("--exec=/bin/true",))
    assert done.status == 0 and done.err.count("20-worse.conf makes no sense") == done.err.count("\n") == 1
    done = site.run("--net=none", app=("--exec=/bin/true",))
    assert (done.status, done.err) == (0, "")
    assert "it may be in a file that cannot be read" in site.refused("run", "--net=lan", "example.com/net")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--net=nope",), 'there is no network "nope" (there is: default, default-restricted)'),
        (("--net=none,default",), "none stands alone"),
        (("--net=ns:/dev/null",), "it is not a network namespace"),
        (("--net=none", "--port=http:80"), "--port cannot be combined with --net=none"),
        (("--port=https:80",), "no image of this pod has a port of that name"),
        (("--port=http:80", "--port=80:81"), "want one port of the host"),
        (("--dns=example.com",), '"example.com" is not an IP address'),
        (("--hosts-entry=x",), "not of the form IP=HOST"),
    ],
)
def test_what_makes_no_sense_leaves_nothing(site: Site, flags: tuple[str, ...], message: str) -> None:
    assert message in site.refused("run", *flags, "example.com/net")
    assert site.ok("list", "--no-legend") == ""


def test_ports_are_kept_from_prepare_to_run(site: Site) -> None:
    uuid = site.ok("prepare", "--port=8080:80", "example.com/net", "--exec=/bin/true").strip()
    assert "--port cannot be combined with --net=none" in site.refused("run-prepared", "--net=none", uuid)
    assert "prepared" in site.ok("status", uuid)
    assert site("run-prepared", uuid).status == 0
