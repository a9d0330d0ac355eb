"""Pods of somebody who is not root, connected by pasta in a lab: real packets, and what is left of it all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ordinary
from tests.host.networked import DEADLINE, NetPod, Site, connected, running, until
from tests.netlab import FAR4, FAR6, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Lab, Unreachable
from tests.ordinary import User

POD4, GATEWAY4 = "172.16.29.2", "172.16.29.1"
NOT_LONG = 0.5
"""Seconds until nobody is there: what is there answers at once."""
PORTS = (
    "--port=8080:80", "--port=127.0.0.1:8081:81", "--port=[::1]:8082:82", "--port=8090-8092:9090-9092",
    "--port=7007:7007/udp", f"--port={HOST4}:7008:8/udp",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with connected() as made:
        for address in (FAR4, FAR6):
            made.serve("outside", "udp", address, 80)
        yield made


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary.user(40) as made:
        yield made


@pytest.fixture(scope="module")
def home(lab: Lab, user: User) -> Site:
    directory = user.directory / "site"
    directory.mkdir()
    user.own(directory)
    return Site(lab, directory, user)


@pytest.fixture(scope="module")
def shop(home: Site) -> Iterator[NetPod]:
    with running(home, "--pod-name=shop", *PORTS) as pod:
        for protocol, port in (("asked", 80), ("udp", 7007)):
            for address in (POD4, pod.addresses[1]):
                home.lab.serve(pod.pid, protocol, address, port, "shop")
        home.lab.serve(pod.pid, "asked", pod.addresses[1], 9092, "shop")
        home.lab.serve(pod.pid, "udp", POD4, 8, "shop")
        # Connections over the host's loopback come from that of the pod.
        for address, port in (("127.0.0.1", 80), ("::1", 80), ("127.0.0.1", 81), ("::1", 82)):
            home.lab.serve(pod.pid, "tcp", address, port, "loop")
        home.lab.serve(pod.pid, "udp", "::1", 7007, "loop")
        yield pod


@pytest.fixture(autouse=True, scope="module")
def nothing_left(home: Site) -> Iterator[None]:
    yield
    home.ok("gc", "--grace-period=0s")
    assert not pastas(home)


def pastas(home: Site) -> list[int]:
    """Processes of pasta's for pods of this site. Tests of another checkout may have the same user."""
    assert home.rkpy.user is not None
    words = ["pgrep", "-U", str(home.rkpy.user.uid), "-r", "D,R,S,T", "^(pasta|passt)"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    ours = os.fsencode(home.rkpy.data)
    return [int(pid) for pid in found.stdout.split() if ours in Path(f"/proc/{pid}/cmdline").read_bytes()]


def pasta_of(pod: NetPod) -> int:
    return int((home_of(pod) / "net/pasta").read_text().split()[0])


def home_of(pod: NetPod) -> Path:
    return pod.site.rkpy.data / "pods/run" / pod.uuid


# --- packets


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "source"), [(FAR4, HOST4), (FAR6, HOST6)])
def test_it_reaches_others_from_the_hosts_addresses(shop: NetPod, protocol: str, address: str, source: str) -> None:
    assert shop.site.lab.ask(shop.pid, protocol, address, 80) == source


@pytest.mark.parametrize(
    ("where", "protocol", "address", "port", "answer"),
    [
        ("outside", "asked", HOST4, 8080, f"shop {OUTSIDE4}"),
        ("outside", "asked", HOST6, 8080, f"shop {OUTSIDE6}"),
        ("outside", "asked", HOST6, 8092, f"shop {OUTSIDE6}"),
        ("outside", "udp", HOST4, 7007, f"shop {OUTSIDE4}"),
        ("outside", "udp", HOST6, 7007, f"shop {OUTSIDE6}"),
        ("outside", "udp", HOST4, 7008, f"shop {OUTSIDE4}"),
        ("host", "asked", HOST4, 8080, f"shop {HOST4}"),
        ("host", "tcp", "127.0.0.1", 8080, "loop 127.0.0.1"),
        ("host", "tcp", "::1", 8080, "loop ::1"),
        ("host", "tcp", "127.0.0.1", 8081, "loop 127.0.0.1"),
        ("host", "tcp", "::1", 8082, "loop ::1"),
        ("host", "udp", "::1", 7007, "loop ::1"),
    ],
)
def test_a_published_port_sees_who_asks(
    shop: NetPod, where: str, protocol: str, address: str, port: int, answer: str
) -> None:
    assert shop.site.lab.ask(where, protocol, address, port) == answer


@pytest.mark.parametrize(
    ("where", "protocol", "address", "port"),
    [
        ("outside", "tcp", HOST4, 8081),
        ("outside", "tcp", HOST6, 8082),
        ("outside", "udp", HOST6, 7008),
        ("outside", "udp", HOST4, 8080),
    ],
)
def test_what_was_not_published_is_not_there(shop: NetPod, where: str, protocol: str, address: str, port: int) -> None:
    with pytest.raises(Unreachable):
        shop.site.lab.ask(where, protocol, address, port, timeout=NOT_LONG)


def test_the_hosts_loopback_is_out_of_reach(shop: NetPod) -> None:
    lab = shop.site.lab
    gateways = {"127.0.0.1": GATEWAY4, "::1": shop.addresses[1].replace("::2", "::1")}
    for protocol in ("tcp", "udp"):
        for address in (*gateways, HOST4):
            lab.serve("host", protocol, address, 5555, "host")
        assert lab.ask(shop.pid, protocol, HOST4, 5555) == f"host {HOST4}"
        for address in (*gateways, *gateways.values()):
            with pytest.raises(Unreachable):
                lab.ask(shop.pid, protocol, address, 5555, timeout=NOT_LONG)


FRAME = """
import socket, struct, sys
source, target, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
card.bind(("eth0", 0))
family = socket.AF_INET6 if ":" in target else socket.AF_INET
addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)

def sum_of(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

body = b"??"
size = 8 + len(body)
check = sum_of(addresses + struct.pack(">HHHHHH", size, 17, 4444, port, size, 0) + body)
packet = struct.pack(">HHHH", 4444, port, size, check) + body
if family == socket.AF_INET:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 17, 0) + addresses
    head = head[:10] + struct.pack(">H", sum_of(head)) + head[12:]
else:
    head = struct.pack(">LHBB", 0x60000000, size, 17, 64) + addresses
kind = 0x0800 if family == socket.AF_INET else 0x86DD
card.send(b"\\x02" * 6 + card.getsockname()[4] + struct.pack(">H", kind) + head + packet)
card.settimeout(float(sys.argv[4]))
try:
    while b"host " not in (answer := card.recv(2048)):
        pass
    print(answer.partition(b"host ")[2].decode())
except TimeoutError:
    print("nothing")
"""


@pytest.mark.parametrize("target", ["127.1.2.3", "0.0.0.0", "::1", "::"])
def test_frames_of_its_own_making_do_not_get_to_the_hosts_loopback(shop: NetPod, target: str) -> None:
    """Which CAP_NET_RAW is enough for, and apps have that by default. pasta of Debian 12 delivers them."""
    lab = shop.site.lab
    for address in ("0.0.0.0", "::") if "5557" not in lab.host("ss", "-Hlnu") else ():
        lab.serve("host", "udp", address, 5557, "host")

    def send(to: str, seconds: float) -> str:
        source = shop.addresses[":" in to]
        return lab.run(shop.pid, sys.executable, "-I", "-c", FRAME, source, to, "5557", str(seconds)).strip()

    assert send(HOST6 if ":" in target else HOST4, DEADLINE) == (HOST6 if ":" in target else HOST4)
    assert send(target, NOT_LONG) == "nothing"


# --- what it looks like


def test_it_is_shown_with_its_addresses(shop: NetPod) -> None:
    found = re.fullmatch(r"default:ip4=172\.16\.29\.2,ip6=(fd[0-9a-f:]+::2)", shop.status()["networks"])
    assert found
    assert shop.addresses == [POD4, found[1]]
    shown = shop.inside("ip", "-br", "address", "show", "dev", "eth0")
    assert f"{POD4}/24 {found[1]}/64" in shown
    assert "default:ip4=172.16.29.2" in shop.site.ok("list")


def test_it_knows_itself_and_the_host_by_name(shop: NetPod) -> None:
    lines = shop.enter("/bin/cat", "/etc/hosts").splitlines()
    named = {line.split()[0]: line.split()[1:] for line in lines}
    assert named[POD4][0] == named[shop.addresses[1]][0] == "shop"
    assert named[HOST4] == named[HOST6] == ["host.rkpy.internal", "host.containers.internal"]


def test_pasta_is_shut_in_and_out_of_sight(shop: NetPod) -> None:
    pid = pasta_of(shop)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert int(status["PPid"]) == shop.process.pid
    assert status["NSpid"].split() == [str(pid), "1"]
    # In the pod's user namespace: one over networks, and what it takes to enter one.
    assert int(status["CapEff"], 16) & ~((1 << 21) | (1 << 12) | (1 << 10)) == 0
    assert os.listdir(f"/proc/{pid}/root/") == []
    assert os.getsid(pid) == pid
    assert not os.readlink(f"/proc/{pid}/fd/2").startswith("pipe:")
    assert set(shop.enter("/bin/sh", "-c", "/bin/cat /proc/[0-9]*/comm").split()) == {"rkpy-init", "sleep", "cat"}


def test_a_name_server_on_the_hosts_loopback_answers(home: Site, user: User, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.53\nsearch example.org\n")
    home.lab.serve("host", "udp", "127.0.0.53", 53, "names")
    enter = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{user.namespace}", "--"]
    subprocess.run([*enter, "mount", "--bind", file, "/etc/resolv.conf"], check=True, timeout=DEADLINE)
    try:
        with running(home) as pod:
            lines = pod.enter("/bin/cat", "/etc/resolv.conf").splitlines()
            assert lines[0] == f"nameserver {GATEWAY4}"
            assert "search example.org" in lines
            assert home.lab.ask(pod.pid, "udp", GATEWAY4, 53) == "names 127.0.0.1"
    finally:
        subprocess.run([*enter, "umount", "/etc/resolv.conf"], check=True, timeout=DEADLINE)


def test_a_host_that_reaches_nobody_is_reached(home: Site) -> None:
    lab = home.lab
    families: list[tuple[str, ...]] = [(), ("-6",)]
    routes = [lab.host("ip", *family, "route", "show", "default").split() for family in families]
    lab.serve("host", "tcp", HOST4, 5556, "host")
    try:
        for family in families:
            lab.host("ip", *family, "route", "del", "default")
        with running(home) as pod:
            assert pod.addresses == [POD4]
            assert lab.ask(pod.pid, "tcp", HOST4, 5556) == f"host {HOST4}"
    finally:
        for family, words in zip(families, routes, strict=True):
            lab.host("ip", *family, "route", "add", *words[: words.index("dev") + 2])


# --- what is refused


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((f"--net=ns:/proc/{os.getpid()}/ns/net",), "ermission denied"),
        (("--port=1023:80",), "port 1023/tcp is for root: ports of others begin at 1024 (net.ipv4.ip_unprivileged"),
        (("--port=203.0.113.99:8100:80",), "203.0.113.99 is not an address of this host"),
        (("--port=127.0.0.1:8100:80", "--port=[::1]:8100:80"), "port 8100/tcp cannot be published twice"),
        (("--port=8080:80",), 'port 8080/tcp is published by pod "shop"'),
        (("--port=127.0.0.1:7007:7/udp",), 'port 7007/udp of 127.0.0.1 is published by pod "shop"'),
        (("--port=8100:80", "--port=6666:80/udp"), "port 6666/udp is in use by a program of the host"),
    ],
)
def test_what_cannot_be_had_is_one_line(shop: NetPod, flags: tuple[str, ...], text: str) -> None:
    home = shop.site
    if any("6666" in flag for flag in flags):
        home.lab.serve("host", "udp", "127.0.0.1", 6666)
    before = home.ok("list", "--full", "--no-legend")
    assert text in home.refused("run", *flags, "example.com/net")
    assert home.ok("list", "--full", "--no-legend").count("\n") == before.count("\n")


def test_pasta_that_cannot_work_says_why(home: Site, user: User) -> None:
    enter = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{user.namespace}", "--"]
    subprocess.run([*enter, "mount", "--bind", "/dev/null", "/dev/net/tun"], check=True, timeout=DEADLINE)
    try:
        assert home.refused("run", "example.com/net").startswith("rkpy: run: pasta: ")
    finally:
        subprocess.run([*enter, "umount", "/dev/net/tun"], check=True, timeout=DEADLINE)
    assert all(_is_of_a_pod(home, pid) for pid in pastas(home))


def _is_of_a_pod(home: Site, pid: int) -> bool:
    files = (home.rkpy.data / "pods/run").glob("*/net/pasta")
    return any(file.read_text().split()[0] == str(pid) for file in files)


# --- the end


def test_it_ends_with_the_pod(home: Site) -> None:
    with running(home, "--port=8200:80") as pod:
        pid = pasta_of(pod)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)  # As a terminal or a unit sends them, when the apps are still to have their say.
        home.lab.serve(pod.pid, "tcp", "127.0.0.1", 80, "here")
        assert home.lab.ask("host", "tcp", "127.0.0.1", 8200) == "here 127.0.0.1"
        pod.stop()
        assert not os.path.exists(f"/proc/{pid}")
    assert home.run("--port=8200:80", app=("--exec=/bin/true",)).status == 0


def test_it_ends_when_the_monitor_is_killed(home: Site) -> None:
    with running(home, "--port=8201:80") as pod:
        pid = pasta_of(pod)
        pod.kill_everything()
        until(lambda: not _runs(pid))
        assert "8201" not in home.lab.host("ss", "-Hlnt")
        assert pod.uuid in home.ok("gc", "--grace-period=0s")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_pod_outlives_it(home: Site) -> None:
    with running(home) as pod:
        os.kill(pasta_of(pod), signal.SIGKILL)
        until(lambda: "eth0" not in pod.inside("ip", "-br", "link"))
        assert pod.enter("/bin/sh", "-c", "echo alive") == "alive\n"
        assert home("net", "check").err == f'rkpy: net check: pod "{pod.uuid}": network default: pasta has ended\n'
        done = pod.stop()
    assert done.err == "rkpy: run: pasta has ended: the pod goes on without a network\n"


@pytest.mark.parametrize("same", [True, False])
def test_what_the_kernel_left_is_collected_and_nothing_else(home: Site, user: User, same: bool) -> None:
    """As if it had not ended with the monitor; or it has, and another process has its PID."""
    with running(home) as pod:
        boot = (home_of(pod) / "net/pasta").read_text().split()[2]
        pod.stop()
    other = subprocess.Popen(user.command(["sleep", "1000"]))
    try:
        until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
        started = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        file = home_of(pod) / "net/pasta"
        file.write_text(f"{other.pid} {started if same else started - 1} {boot}\n")
        user.own(file)
        home.ok("gc", "--grace-period=0s")
        if same:
            assert other.wait(DEADLINE) == -signal.SIGKILL
        assert _runs(other.pid) is not same
    finally:
        other.kill()
        other.wait()


# --- rkpy net


def test_the_commands_about_networks_know_of_it(shop: NetPod) -> None:
    home = shop.site
    assert re.fullmatch(
        r"default\tpasta\t172\.16\.29\.0/24,fd[0-9a-f:]+::/64\t1\tbuilt in",
        re.sub(r"\t+", "\t", home.ok("net", "list", "--no-legend").strip()),
    )
    ports = [{"protocol": "tcp", "hostPort": 8081, "hostIP": "127.0.0.1", "pod": shop.uuid},
             {"protocol": "udp", "hostPort": 7007, "hostIP": "", "pod": shop.uuid}]  # fmt: skip
    for name in ("default", "shop"):
        found = json.loads(home.ok("net", "inspect", name))["ports"]
        assert all(port in found for port in ports)
    assert {
        "uuid": shop.uuid,
        "name": "shop",
        "interface": "eth0",
        "ips": [f"{POD4}/24", f"{shop.addresses[1]}/64"],
    } in (json.loads(home.ok("net", "inspect", "default"))["pods"])
    assert home.ok("net", "check", shop.uuid) == ""
    assert "for root" in home.refused("net", "reload")
