"""Everything about a pod's network, decided before it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aci.image_manifest import App, Isolator, Port
from aci.pod_manifest import ExposedPort, PodManifest
from common.errors import NetworkError, UsageError
from stage0 import networking, routes
from stage0.config import Config
from stage1 import fly, nspawn
from stage1.flavour import PreparedApp, PreparedPod
from stage1.network import plan
from stage1.network.plan import Names
from tests.stage0.test_netflags import runtime_flags

ROOT = Path(__file__).parent.parent.parent
HTTP = Port("http", "tcp", 80, 1, socket_activated=False)
APP = PreparedApp("web", "sha512-0", App(exec=("/bin/true",), ports=(HTTP,)), (), False, ())
BANDWIDTH = "resource/network-bandwidth"


@pytest.fixture(autouse=True)
def no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has in use."""
    monkeypatch.setattr(routes, "read", lambda proc: [])


def pod(**fields: Any) -> PreparedPod:
    base = PreparedPod("the-uuid", "/pods/x", 3, (APP,), None, (), (), "box", "auto", False, (), (), False, name="pod")
    return base._replace(**fields)


def settle(
    *given: tuple[str, str], ports: tuple[ExposedPort, ...] = (), config: Config | None = None, **fields: Any
) -> PreparedPod:
    flags = runtime_flags(*given)
    fields.setdefault("name_options", tuple(f"--{name}" for name in flags.typed() if name != "net"))
    settings = config or Config(system_config="/nowhere", local_config="/nowhere")
    return networking.settle(pod(**fields), PodManifest(apps=(), ports=ports), flags, settings)


def test_flavours_say_whether_they_have_networks() -> None:
    assert networking.has_networks(nspawn)
    assert not networking.has_networks(fly)
    assert not networking.has_networks(SimpleNamespace())


def test_what_was_asked_for_by_name() -> None:
    assert networking.asked(runtime_flags()) is None
    for text, expected in {
        "none": ("none",), "host": ("host",), "default": ("default",), "a,b:K=V": ("a", "b"), "all,a": ("all", "a"),
        "ns:/x": ("ns:/x",),
    }.items():  # fmt: skip
        assert networking.asked(runtime_flags(("net", text))) == expected
    assert networking.asked(runtime_flags(("net", "a"), ("net", "b"))) == ("a", "b")
    with pytest.raises(UsageError):
        networking.asked(runtime_flags(("net", "a,a")))


def test_by_default_there_is_the_default_network() -> None:
    settled = settle(ports=(ExposedPort("http", 8080),))
    assert [network.name for network in settled.networks] == ["default"]
    assert settled.published == (plan.Port("http", "tcp", "", 8080, 80),)
    assert settled.names == Names("box", "pod", ("web",))
    assert settled.plugin_path[-1] == "/nowhere/plugins/net"
    assert settled.join == "" and settled.bandwidth == 0


@pytest.mark.parametrize("net", ["none", "host"])
def test_pods_without_networks_have_names_nevertheless(net: str) -> None:
    settled = settle(("net", net), ("dns", "10.0.0.1"), ("hosts-entry", "10.0.0.2=db"))
    assert settled.networks == () and settled.plugin_path == ()
    assert settled.names == Names("box", "pod", ("web",), dns=("10.0.0.1",), hosts=(("10.0.0.2", "db"),))


@pytest.mark.parametrize("net", ["none", "host", "ns:/proc/1/ns/net"])
def test_ports_need_a_network(net: str) -> None:
    with pytest.raises(UsageError, match=f"--port cannot be combined with --net={net}"):
        settle(("net", net), ports=(ExposedPort("http", 8080),))


def test_ports_need_a_network_within_the_hosts_reach(tmp_path: Path) -> None:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/mac.conf").write_text(json.dumps({"name": "mac", "type": "macvlan"}))
    config = Config(system_config="/nowhere", local_config=str(tmp_path))
    with pytest.raises(NetworkError, match=r"macvlan and ipvlan networks \(mac\)"):
        settle(("net", "mac"), ports=(ExposedPort("http", 8080),), config=config)
    assert settle(("net", "mac,default"), ports=(ExposedPort("http", 8080),), config=config).published
    assert settle(("net", "mac"), config=config).networks


def test_ports_of_a_manifest_are_looked_at_when_it_is_prepared() -> None:
    manifest = PodManifest(apps=(), ports=(ExposedPort("https", 443),))
    with pytest.raises(UsageError, match="no image of this pod has a port of that name"):
        networking.check_ports(pod(), manifest)
    networking.check_ports(pod(), PodManifest(apps=()))


def test_bandwidth_is_bits() -> None:
    isolators = (Isolator(BANDWIDTH, {"default": True, "limit": "1M"}), Isolator("resource/memory", {"limit": "1G"}))
    assert settle(isolators=isolators).bandwidth == 8_000_000
    assert settle(isolators=(*isolators, Isolator(BANDWIDTH, {"default": True, "limit": "2M"}))).bandwidth == 16_000_000
    assert settle(("net", "host"), isolators=isolators).bandwidth == 0


def test_net_d_and_plugins_are_the_configuration_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/a.conf").write_text(json.dumps({"name": "a", "type": "bridge"}))
    (tmp_path / "net.d/b.conf").write_text("{")
    config = Config(system_config="/nowhere", local_config=str(tmp_path), cni_plugins=("/opt/cni",))
    settled = settle(("net", "a,default"), config=config)
    assert [(network.name, network.interface) for network in settled.networks] == [("a", "eth0"), ("default", "eth1")]
    assert settled.plugin_path == (f"{tmp_path}/net.d", "/nowhere/net.d", "/opt/cni", "/nowhere/plugins/net")
    assert f"rkpy: warning: {tmp_path}/net.d/b.conf makes no sense" in capsys.readouterr().err
    with pytest.raises(NetworkError, match='there is no network "c"'):
        settle(("net", "c"), config=config)


def test_a_namespace_to_join_is_looked_at() -> None:
    with pytest.raises(UsageError, match="not a network namespace"):
        settle(("net", "ns:/dev/null"))


@pytest.mark.parametrize(("net", "loaded"), [("none", False), ("host", False), ("default", True)])
def test_nothing_is_loaded_for_pods_without_networks(net: str, loaded: bool, tmp_path: Path) -> None:
    code = f"""
import sys
from aci.pod_manifest import PodManifest
from stage0 import networking, options, starting
from stage0.config import Config
from stage1.flavour import PreparedPod
flags = options.Values()
flags.add(options.table(options.RUNTIME)["net"], {net!r})
pod = PreparedPod("u", "/x", 3, (), None, (), (), "box", "auto", False, (), (), False)
networking.settle(pod, PodManifest(apps=()), flags, Config(local_config={str(tmp_path)!r}))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(done.stdout.split())
    assert ("stage0.networks" in modules, "stage0.netd" in modules, "stage0.routes" in modules) == (loaded,) * 3
    assert not {"ipaddress", "stage0.ports", "hashlib"} & modules
