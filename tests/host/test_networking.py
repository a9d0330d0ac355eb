"""Pods on networks, from the command line to the packet."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import images
from tests.host.networked import Site, connected, running, until
from tests.netlab import FAR4, FAR6, HOST4, HOST6, Lab, Unreachable

FAMILIES = (0, 1)
"""Which of a network's two addresses."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with connected() as made:
        yield made


# --- the default network


@pytest.mark.parametrize("users", [(), ("--private-users",)], ids=["plain", "users"])
def test_a_pod_reaches_the_internet_behind_the_hosts_address(site: Site, users: tuple[str, ...]) -> None:
    with running(site, *users) as pod:
        assert len(pod.addresses) == 2
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
        assert site.lab.ask(pod.pid, "tcp", FAR6, 80) == HOST6


@pytest.mark.parametrize("family", FAMILIES)
def test_pod_to_pod_and_pod_to_host(site: Site, family: int) -> None:
    with running(site) as one, running(site) as other:
        mine, theirs = one.addresses[family], other.addresses[family]
        assert mine != theirs
        site.lab.serve(other.pid, "tcp", theirs, 80)
        assert site.lab.ask(one.pid, "tcp", theirs, 80) == mine
        host = (HOST4, HOST6)[family]
        site.lab.serve("host", "tcp", host, 81)
        assert site.lab.ask(one.pid, "tcp", host, 81) == mine
        assert site.lab.ask("host", "tcp", theirs, 80)


def test_names_of_interfaces_say_whose_they_are(site: Site) -> None:
    with running(site, "--pod-name=web") as pod:
        links = json.loads(site.lab.host("ip", "-j", "link"))
        mine = [link for link in links if link["ifname"] == f"rk0-{pod.uuid[:8]}"]
        assert len(mine) == 1
        assert "web" in mine[0]["ifalias"]
        assert "default" in mine[0]["ifalias"]


def test_list_and_status_tell_the_addresses(site: Site) -> None:
    with running(site) as pod:
        four, six = pod.addresses
        assert four in site.ok("list", "--full")
        assert f"default:ip4={four}" in pod.status()["networks"]
        assert six in pod.status()["networks"]


# --- restricted, none, several, existing


def test_a_restricted_network_cannot_leave(site: Site) -> None:
    with running(site, "--net=default-restricted") as pod, running(site, "--net=default-restricted") as peer:
        for address in (FAR4, FAR6):
            with pytest.raises(Unreachable):
                site.lab.ask(pod.pid, "tcp", address, 80, timeout=2)
        # Nor when the pod thinks it knows a way.
        gateway = (
            json.loads(pod.inside("ip", "-j", "route"))[0].get("gateway") or pod.addresses[0].rsplit(".", 1)[0] + ".1"
        )
        pod.inside("ip", "route", "add", "default", "via", gateway, "onlink", "dev", "eth0")
        with pytest.raises(Unreachable):
            site.lab.ask(pod.pid, "tcp", FAR4, 80, timeout=2)
        site.lab.serve("host", "tcp", HOST4, 82)
        assert site.lab.ask(pod.pid, "tcp", HOST4, 82) == pod.addresses[0]
        site.lab.serve(peer.pid, "tcp", peer.addresses[0], 80)
        assert site.lab.ask(pod.pid, "tcp", peer.addresses[0], 80)


def test_two_networks_in_one_pod(site: Site) -> None:
    with running(site, "--net=default,default-restricted") as pod:
        names = {link["ifname"] for link in json.loads(pod.inside("ip", "-j", "link"))}
        assert {"lo", "eth0", "eth1"} <= names
        assert len(pod.addresses) == 4
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
        with running(site, "--net=default-restricted") as peer:
            site.lab.serve(peer.pid, "tcp", peer.addresses[0], 80)
            assert site.lab.ask(pod.pid, "tcp", peer.addresses[0], 80) == pod.addresses[2]


def test_no_network_is_loopback_alone(site: Site) -> None:
    with running(site, "--net=none") as pod:
        assert [link["ifname"] for link in json.loads(pod.inside("ip", "-j", "link"))] == ["lo"]
        site.lab.serve(pod.pid, "tcp", "127.0.0.1", 80)
        assert site.lab.ask(pod.pid, "tcp", "127.0.0.1", 80) == "127.0.0.1"


@pytest.mark.parametrize("users", [(), ("--private-users",)], ids=["plain", "users"])
def test_a_namespace_that_exists_can_be_joined(site: Site, users: tuple[str, ...]) -> None:
    site.lab.host("ip", "netns", "add", "theirs")
    try:
        with running(site, "--net=ns:/run/netns/theirs", *users) as pod:
            theirs = int(site.lab.host("stat", "-Lc", "%i", "/run/netns/theirs"))
            assert os.stat(f"/proc/{pod.pid}/ns/net").st_ino == theirs
        assert site.lab.host("ip", "netns", "list").strip() == "theirs"
    finally:
        site.lab.host("ip", "netns", "del", "theirs")
        site.lab.host("umount", "/run/netns", check=False)
        site.lab.host("rmdir", "/run/netns")


def test_an_address_can_be_asked_for(site: Site) -> None:
    with running(site, "--net=default:IP=172.16.28.77") as pod:
        assert pod.addresses[0] == "172.16.28.77"
        assert "172.16.28.77" in site.refused("run", "--net=default:IP=172.16.28.77", "example.com/net")


# --- ports


@pytest.mark.parametrize("where", ["outside", "host", "pod"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_port_is_reached_from_everywhere(site: Site, where: str, family: int) -> None:
    with running(site, "--port=http:8080") as pod:
        site.lab.serve(pod.pid, "tcp", ("0.0.0.0", "::")[family], 80, "hello")
        source = pod.pid if where == "pod" else where
        assert site.lab.ask(source, "tcp", (HOST4, HOST6)[family], 8080).startswith("hello ")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_is_reached_over_loopback(site: Site, address: str, protocol: str) -> None:
    name, port = ("http", 80) if protocol == "tcp" else ("echo", 7)
    with running(site, f"--port={name}:8080") as pod:
        site.lab.serve(pod.pid, protocol, "::" if ":" in address else "0.0.0.0", port, "hello")
        assert site.lab.ask("host", protocol, address, 8080).startswith("hello ")


@pytest.mark.parametrize("family", FAMILIES)
def test_udp_from_outside(site: Site, family: int) -> None:
    with running(site, "--port=echo:8007") as pod:
        site.lab.serve(pod.pid, "udp", ("0.0.0.0", "::")[family], 7, "hello")
        assert site.lab.ask("outside", "udp", (HOST4, HOST6)[family], 8007).startswith("hello ")


def test_a_port_of_one_address_is_not_one_of_the_others(site: Site) -> None:
    with running(site, "--port=http:127.0.0.1:8080") as pod:
        site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
        assert site.lab.ask("host", "tcp", "127.0.0.1", 8080).startswith("hello ")
        with pytest.raises(Unreachable):
            site.lab.ask("outside", "tcp", HOST4, 8080, timeout=2)


def test_ranges_and_ports_as_people_type_them(site: Site) -> None:
    with running(site, "--port=range:9100", "--port=8443:443/tcp") as pod:
        for port in (9000, 9002, 443):
            site.lab.serve(pod.pid, "tcp", "0.0.0.0", port, str(port))
        assert site.lab.ask("outside", "tcp", HOST4, 9100).startswith("9000 ")
        assert site.lab.ask("outside", "tcp", HOST4, 9102).startswith("9002 ")
        assert site.lab.ask("outside", "tcp", HOST4, 8443).startswith("443 ")


@pytest.mark.parametrize("way", ["manifest", "prepared", "again"])
def test_ports_of_a_pod_that_is_not_run_by_its_image(site: Site, way: str) -> None:
    if way == "prepared":
        words: tuple[str, ...] = ("run-prepared", site.ok("prepare", "--port=http:8080", "example.com/net").strip())
    else:
        with running(site, "--port=http:8080") as first:
            manifest = site.directory / "manifest"
            manifest.write_text(site.ok("cat-manifest", first.uuid))
        words = ("start", first.uuid) if way == "again" else ("run", f"--pod-manifest={manifest}")
    pod = site.launch(*words)
    site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
    assert site.lab.ask("outside", "tcp", HOST4, 8080).startswith("hello ")
    pod.stop()


def test_a_port_that_another_pod_has_is_refused_before_anything_starts(site: Site) -> None:
    with running(site, "--port=http:8080", "--pod-name=web") as pod:
        before = site.state()
        pods = site.rkpy.pods()
        line = site.refused("run", "--port=http:8080", "example.com/net")
        assert "8080" in line
        assert "web" in line or pod.uuid[:8] in line
        assert site.state() == before
        assert site.rkpy.pods() == pods


def test_the_hosts_loopback_stays_out_of_reach(site: Site) -> None:
    """Published ports make the kernel route to 127.0.0.0/8 (route_localnet); pods must not profit."""
    site.lab.serve("host", "tcp", "127.0.0.1", 83)
    with running(site, "--port=http:8080") as pod:
        gateway = pod.addresses[0].rsplit(".", 1)[0] + ".1"
        pod.inside("ip", "route", "add", "127.0.0.1/32", "via", gateway, "dev", "eth0", "table", "local", check=False)
        pod.inside("ip", "route", "del", "local", "127.0.0.1", "table", "local", check=False)
        pod.inside("ip", "route", "del", "local", "127.0.0.0/8", "table", "local", check=False)
        pod.inside("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet", check=False)
        with pytest.raises(Unreachable):
            site.lab.ask(pod.pid, "tcp", "127.0.0.1", 83, timeout=2)


# --- names


def test_pods_of_a_network_know_each_other_by_name(site: Site) -> None:
    with running(site, "--pod-name=one") as one:
        hosts = one.enter("/bin/cat", "/etc/hosts")
        assert "two" not in hosts.split()
        with running(site, "--pod-name=two", app=("--name=database",)) as two:
            hosts = one.enter("/bin/cat", "/etc/hosts")
            lines = [line.split() for line in hosts.splitlines()]
            for name in ("two", "database"):
                assert {line[0] for line in lines if name in line[1:]} == set(two.addresses)
            assert "one" in two.enter("/bin/cat", "/etc/hosts").split()
        assert "two" not in one.enter("/bin/cat", "/etc/hosts").split()


@pytest.mark.parametrize("origin", ["appc.io/docker/repository", "authors"], ids=["oci", "appc"])
def test_whose_hosts_file_an_app_has(site: Site, origin: str) -> None:
    """An OCI image's is a placeholder; what an appC image has stays."""
    path = str(site.directory / "own.aci")
    app = {"exec": ["/bin/sleep", "1000"], "user": "0", "group": "0"}
    annotations = [{"name": origin, "value": "somebody"}]
    files = {**images.busybox_files(), "etc/hosts": "192.0.2.7 of-the-image\n"}
    images.make_aci(path, images.manifest("example.com/own", app=app, annotations=annotations), files)
    site.ok("--insecure-options=image", "fetch", path)
    pod = site.launch("run", "--pod-name=own", "example.com/own")
    hosts = pod.enter("/bin/cat", "/etc/hosts").split()
    assert ("own" in hosts, "of-the-image" in hosts) == ((True, False) if "docker" in origin else (False, True))
    pod.stop()


def test_other_peoples_firewall_is_told_of_once_the_pod_runs(site: Site) -> None:
    site.lab.host("nft", "add table ip theirs")
    site.lab.host("nft", "add chain ip theirs f { type filter hook forward priority 0; policy drop; }")
    try:
        pod = site.start()
        with pytest.raises(Unreachable):
            site.lab.ask(pod.pid, "tcp", FAR4, 80, timeout=2)
        said = pod.stop().err
        assert 'rkpy: run: chain "f" of table "ip theirs" may be in the way of what pods in 172.16.28.0/24 send' in said
    finally:
        site.lab.host("nft", "delete table ip theirs")


def test_name_servers(site: Site) -> None:
    with running(site, "--dns=192.0.2.53", "--dns-search=example.com") as pod:
        lines = pod.enter("/bin/cat", "/etc/resolv.conf").splitlines()
        assert "nameserver 192.0.2.53" in lines
        assert "search example.com" in lines


def test_hosts_entries(site: Site) -> None:
    with running(site, "--net=none", "--hosts-entry=192.0.2.9=nine") as pod:
        assert ["192.0.2.9", "nine"] in [line.split() for line in pod.enter("/bin/cat", "/etc/hosts").splitlines()]


# --- other people's plugins


def test_debians_bridge_portmap_and_firewall(site: Site) -> None:
    site.conf("10-theirs.conflist", {
        "cniVersion": "0.4.0", "name": "theirs", "plugins": [
            {"type": "bridge", "bridge": "cni9", "isGateway": True, "ipMasq": True,
             "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
        ],
    })  # fmt: skip
    site.plugins("bridge", "portmap", "host-local")
    before = site.lab.host("nft", "list", "ruleset")
    with running(site, "--net=theirs", "--port=http:8090") as pod:
        site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
        assert pod.addresses[0].startswith("10.77.0.")
        assert site.lab.ask(pod.pid, "tcp", FAR4, 80) == HOST4
        assert site.lab.ask("outside", "tcp", HOST4, 8090).startswith("hello ")
        assert site.lab.host("ls", "/run/rkpy/net/netns").split() == [pod.uuid]
    assert not site.lab.host("ls", "/run/rkpy/net/netns", check=False).split()
    site.lab.host("ip", "link", "del", "cni9")  # which stays, as with everybody who runs that plugin
    assert "10.77.0" not in site.lab.host("nft", "list", "ruleset")
    site.lab.host("sh", "-c", "nft flush ruleset; rm -rf /var/lib/cni/*")
    assert not before


def test_a_plugin_that_fails_is_undone(site: Site) -> None:
    plugins = site.rkpy.config / "net.d"
    plugins.mkdir(parents=True)
    log = site.directory / "log"
    script = plugins / "broken"
    script.write_text(
        f'#!/bin/sh\necho "$CNI_COMMAND $CNI_IFNAME" >> {log}\ncat > /dev/null\n[ "$CNI_COMMAND" = ADD ] || exit 0\n'
        'echo \'{"cniVersion":"0.4.0","code":100,"msg":"no luck today"}\'\nexit 1\n'
    )
    script.chmod(0o755)
    site.conf("10-broken.conflist", {
        "cniVersion": "0.4.0", "name": "broken",
        "plugins": [
            {"type": "ptp", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.78.0.0/24"}},
            {"type": "broken"},
        ],
    })  # fmt: skip
    before = site.state()
    line = site.refused("run", "--net=broken", "example.com/net")
    assert "no luck today" in line
    assert "broken" in line
    added, *deleted = log.read_text().splitlines()
    assert added == "ADD eth0"
    assert set(deleted) == {"DEL eth0"}  # as often as it takes
    site.settles_to(before)


def test_a_malformed_file_concerns_its_own_network_only(site: Site) -> None:
    site.conf("10-bad.conf", "{")
    with running(site) as pod:
        assert pod.addresses
    assert "bad" in site.refused("run", "--net=bad", "example.com/net")


# --- the end, orderly and other


def test_a_pod_that_ends_by_itself_leaves_nothing(site: Site) -> None:
    before = site.state()
    done = site.run("--port=http:8080", app=("--exec=/bin/true",))
    assert done.status == 0, done
    site.settles_to(before)


def test_nothing_of_a_pod_is_held_once_its_run_is_over(site: Site) -> None:
    """What the kernel takes its time for goes on behind it."""
    for _ in range(5):
        saved = site.directory / "over"
        assert site.run(f"--uuid-file-save={saved}", app=("--exec=/bin/true",)).status == 0
        site.ok("rm", saved.read_text().strip())


@pytest.mark.parametrize("collect", [("gc", "--grace-period=0s"), ("net", "gc")], ids=["gc", "net-gc"])
def test_after_a_kill_gc_leaves_the_host_as_it_was(site: Site, collect: tuple[str, ...]) -> None:
    before = site.state()
    pod = site.start("--net=default,default-restricted", "--port=http:8080")
    pod.kill_everything()
    assert site.leases()
    site.ok(*collect)
    site.settles_to(before)


def test_what_a_killed_pod_had_can_be_had_at_once(site: Site) -> None:
    pod = site.start("--net=default:IP=172.16.28.50", "--port=http:8080")
    pod.kill_everything()
    with running(site, "--net=default:IP=172.16.28.50", "--port=http:8080") as again:
        site.lab.serve(again.pid, "tcp", "0.0.0.0", 80, "hello")
        assert site.lab.ask("outside", "tcp", HOST4, 8080).startswith("hello ")


def test_a_killed_pod_can_be_started_again(site: Site) -> None:
    """The port that it had is not somebody else's."""
    pod = site.start("--port=http:8080")
    pod.kill_everything()
    site.launch("start", pod.uuid).stop()


@pytest.mark.parametrize("turn", range(8))
def test_a_kill_during_the_start_leaves_nothing_for_long(site: Site, turn: int) -> None:
    """The monitor dies at some moment of the attachment, each turn at another."""
    before = site.state()
    words = site.rkpy.command("run", "--port=http:8080", "example.com/net")
    process = site.lab.popen("host", *words, env=site.rkpy.environment())
    with contextlib.suppress(Exception):
        process.wait(timeout=0.02 * (turn + 1))
    process.send_signal(signal.SIGKILL)
    process.wait()

    def collected() -> bool:
        # The worker may be at it still.
        return site("gc", "--grace-period=0s").status == 0 and site.state() == before

    until(collected)


def test_a_hundred_pods_up_and_down(site: Site) -> None:
    before = site.state()

    def one(number: int) -> tuple[int, str]:
        flags = [f"--port=8{number:03}:80"] if number % 3 == 0 else []
        done = site.run(*flags, app=("--exec=/bin/true",))
        return done.status, done.err

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(100)))
    assert {status for status, _ in results} == {0}, [err for status, err in results if status]
    site.settles_to(before)


def test_somebody_flushes_all_rules(site: Site) -> None:
    with running(site, "--port=http:8080") as pod:
        site.lab.serve(pod.pid, "tcp", "0.0.0.0", 80, "hello")
        site.lab.host("nft", "flush", "ruleset")
        with pytest.raises(Unreachable):
            site.lab.ask("outside", "tcp", HOST4, 8080, timeout=2)
        site.ok("net", "reload")
        assert site.lab.ask("outside", "tcp", HOST4, 8080).startswith("hello ")
