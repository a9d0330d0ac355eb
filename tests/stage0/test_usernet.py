"""The network of a pod whose rkpy is not root: what is decided, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import NetworkError, UsageError
from stage0 import netflags, routes, usernet
from stage1.network import pasta

DEFAULT4 = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
NEAR4 = "wlan0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
DEFAULT6 = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003 eth0\n"
UNREACHABLE6 = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200 lo\n"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "pasta"
    path.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"relative:/nowhere:{tmp_path}")
    monkeypatch.setattr(usernet, "_PATH", "/nowhere")
    monkeypatch.setattr(usernet, "_TUN", os.devnull)
    return path


def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ipv4: str, ipv6: str) -> None:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "net/route").write_text("Iface\tDestination\n" + ipv4)
    (proc / "net/ipv6_route").write_text(ipv6)
    monkeypatch.setattr(routes, "_PROC", str(proc))


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "families", "template"),
    [
        (DEFAULT4, DEFAULT6, [4, 6], ""),
        (NEAR4 + DEFAULT4, UNREACHABLE6, [4], ""),
        ("", DEFAULT6, [6], ""),
        (NEAR4, UNREACHABLE6, [4], "wlan0"),
        ("", "", [4], "lo"),
    ],
)
def test_it_has_the_families_that_the_host_reaches_others_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: Path,
    ipv4: str, ipv6: str, families: list[int], template: str,
) -> None:  # fmt: skip
    host(monkeypatch, tmp_path, ipv4, ipv6)
    network = usernet.network(netflags.DEFAULT)
    decided = pasta.decided(network.conf)
    assert decided is not None
    assert (decided.program, decided.template) == (str(program), template)
    assert sorted(pasta.families([network])) == families
    assert len(decided.addresses) == len(decided.gateways) == len(families)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("lan", 'network "lan" is for root to make'),
        ("default,lan", 'network "lan" is for root to make'),
        ("default-restricted", 'network "default-restricted" is for root to make'),
        ("all", "--net=all asks for networks that are for root to make"),
        ("default:IP=10.0.0.1", "--net=default: IP is for networks that root makes"),
        ("default:MAC=02:00:00:00:00:09", "--net=default: MAC is for networks that root makes"),
    ],
)
def test_other_networks_are_refused(program: Path, word: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        usernet.network(netflags.networks([word]))


def test_without_pasta_it_says_what_to_install(program: Path) -> None:
    program.chmod(0o644)
    with pytest.raises(NetworkError, match=r"needs pasta.*Debian: passt.*--net=host and --net=none"):
        usernet.network(netflags.DEFAULT)


def test_without_taps_it_says_so(program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(usernet, "_TUN", str(tmp_path / "tun"))
    with pytest.raises(NetworkError, match=r"needs .*/tun, without root"):
        usernet.network(netflags.DEFAULT)


def test_a_limit_that_nobody_would_keep_is_refused() -> None:
    usernet.require_no_limit(0)
    with pytest.raises(NetworkError, match="cannot limit the bandwidth"):
        usernet.require_no_limit(8_000_000)
