"""net.d, the built-in networks, and what --net makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import addresses
from common.errors import NetworkError, UsageError
from stage0 import netd, netflags, networks
from stage0.netd import Definition
from stage1.network.plan import Network


class Etc:
    """Configuration directories."""

    def __init__(self, root: Path) -> None:
        self.directories = tuple(str(root / name) for name in ("system", "local", "user"))

    def put(self, where: str, name: str, document: Any) -> str:
        path = Path(self.directories[("system", "local", "user").index(where)]) / "net.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    def resolve(self, *texts: str) -> networks.Resolved:
        return networks.resolve(netflags.networks(texts), self.directories)

    def names(self, *texts: str) -> list[str]:
        return [network.name for network in self.resolve(*texts).networks]

    def error(self, *texts: str) -> str:
        with pytest.raises(NetworkError) as caught:
            self.resolve(*texts)
        return str(caught.value)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def single(name: str, kind: str = "bridge", **fields: Any) -> dict[str, Any]:
    return {"cniVersion": "0.2.0", "name": name, "type": kind, **fields}


def listed(name: str, *kinds: str, **fields: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind} for kind in kinds], **fields}


# What there is


def test_without_net_d_there_are_the_built_in_networks(etc: Etc) -> None:
    default, restricted = etc.resolve("default,default-restricted").networks
    assert (default.name, default.interface, default.source) == ("default", "eth0", "")
    assert (restricted.name, restricted.interface) == ("default-restricted", "eth1")
    conf = json.loads(default.conf)
    assert conf["plugins"][0]["ipMasq"] is True
    subnets = [group[0]["subnet"] for group in conf["plugins"][0]["ipam"]["ranges"]]
    assert subnets[0] == "172.16.28.0/24" and addresses.subnet(subnets[-1]).version == 6
    assert [route["dst"] for route in conf["plugins"][0]["ipam"]["routes"]] == ["0.0.0.0/0", "::/0"]
    plugin = json.loads(restricted.conf)["plugins"][0]
    assert plugin["ipMasq"] is False and plugin["rkpy"] == {"restricted": True} and "routes" not in plugin["ipam"]
    assert etc.names() == ["default"]


def test_every_ending_and_order(etc: Etc) -> None:
    source = etc.put("local", "20.conf", single("two", mtu=1400))
    etc.put("local", "10.conflist", listed("one", "bridge", "portmap", disableCheck=True))
    etc.put("local", "30.json", listed("three", "macvlan"))
    etc.put("local", "40.yaml", single("four"))
    etc.put("local", "50.conf.bak", single("five"))
    os.mkdir(f"{etc.directories[1]}/net.d/60.conf")
    os.mkfifo(f"{etc.directories[1]}/net.d/70.conf")
    found = etc.resolve("all").networks
    assert [(network.name, network.interface) for network in found] == [
        ("one", "eth0"), ("two", "eth1"), ("three", "eth2"), ("default", "eth3"),
    ]  # fmt: skip
    assert json.loads(found[0].conf) == listed("one", "bridge", "portmap", disableCheck=True)
    assert json.loads(found[1].conf) == {
        "cniVersion": "0.2.0", "name": "two", "plugins": [{"type": "bridge", "mtu": 1400}],
    }  # fmt: skip
    assert found[1].source == source
    assert "four" in etc.error("four")


def test_the_order_asked_for_counts(etc: Etc) -> None:
    for name in ("a", "b", "c"):
        etc.put("local", f"{name}.conf", single(name))
    assert etc.names("c,a") == ["c", "a"]
    assert etc.names("all,c:IP=1.2.3.4") == ["c", "a", "b", "default"]
    assert etc.resolve("all,c:IP=1.2.3.4").networks[0].args == (("IP", "1.2.3.4"),)


def test_the_user_s_directory_beats_the_local_one_beats_the_system_s(etc: Etc) -> None:
    for where in ("system", "local", "user"):
        source = etc.put(where, "z.conf", single("net", comment=where))
        assert etc.resolve("net").networks[0].source == source
    assert etc.resolve("net,default").warnings == ()


def test_a_second_file_of_a_directory_is_ignored_with_a_notice(etc: Etc) -> None:
    first = etc.put("local", "a.conf", single("net"))
    second = etc.put("local", "b.conf", single("net"))
    found = etc.resolve("net")
    assert found.networks[0].source == first
    assert found.warnings == (f'{second} is ignored: network "net" is defined by {first}',)
    assert etc.resolve("default").warnings == ()
    assert len(etc.resolve("all").warnings) == 1


@pytest.mark.parametrize("name", ["default", "default-restricted"])
def test_a_file_replaces_a_built_in_network(etc: Etc, name: str) -> None:
    source = etc.put("system", "a.conf", single(name, "ptp"))
    assert etc.resolve(name).networks[0].source == source
    assert etc.names("all") == ([name] if name == "default" else [name, "default"])


def test_a_network_that_is_not_there(etc: Etc) -> None:
    etc.put("local", "a.conf", single("lan"))
    assert etc.error("lam") == 'there is no network "lam" (there is: lan, default, default-restricted)'


# What makes no sense


MALFORMED = {
    "": "Expecting value",
    "{": "Expecting",
    "[]": "it is not a JSON object",
    '{"type": "ptp"}': "it has no name",
    '{"name": "", "type": "ptp"}': "it has no name",
    '{"name": 1, "type": "ptp"}': "1 cannot be a network's name",
    '{"name": "../x", "type": "ptp"}': "cannot be a network's name",
    '{"name": "none", "type": "ptp"}': 'no network can be called "none"',
    '{"name": "x"}': "the type of a plugin is missing",
    '{"name": "x", "type": ""}': "the type of a plugin is missing",
    '{"name": "x", "type": "../../bin/sh"}': "cannot be the name of a plugin",
    '{"name": "x", "type": ".."}': "cannot be the name of a plugin",
    '{"name": "x", "type": 5}': "cannot be the name of a plugin",
    '{"name": "x", "type": "ptp", "cniVersion": "2.0.0"}': 'cniVersion "2.0.0" is not known',
    '{"name": "x", "type": "ptp", "cniVersion": 1}': "cniVersion 1 is not known",
    '{"name": "x", "type": "ptp", "cniVersion": {"a": 1}}': "is not known",
    '{"name": "x", "type": "ptp", "plugins": []}': "both a type and plugins",
    '{"name": "x", "plugins": []}': "plugins is not a list with something in it",
    '{"name": "x", "plugins": {}}': "plugins is not a list with something in it",
    '{"name": "x", "plugins": [1]}': "one of its plugins is not a JSON object",
    '{"name": "x", "plugins": [{"type": "ptp"}, {}]}': "the type of a plugin is missing",
    '{"name": "x", "type": "ptp", "ipam": "host-local"}': 'ipam of plugin "ptp" is not a JSON object',
    '{"name": "x", "type": "ptp", "ipam": {"subnet": "10.0.0.0/8"}}': "the type of ipam is missing",
    '{"name": "x", "type": "ptp", "ipam": {"type": "a/b"}}': "cannot be the name of a plugin",
    '{"name": "x", "type": "ptp", "capabilities": []}': None,
    '{"name": "x", "type": "ptp", "capabilities": ["a"]}': 'capabilities of plugin "ptp" is not a JSON object',
    '{"name": "x", "type": "ptp", "mtu": NaN}': "NaN is not JSON",
    '{"name": "x", "plugins": [{"type": "ptp"}], "disableCheck": 3}': "disableCheck is no boolean",
    "[" * 100_000: "nested too deeply",
    '{"name": "x", "type": "ptp", "comment": "' + "x" * netd.SIZE_LIMIT + '"}': "larger than 1 MiB",
}  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:60])
def test_malformed_files(etc: Etc, text: str) -> None:
    """Only who may have meant the network hears of it."""
    path = etc.put("local", "x.conf", text)
    etc.put("local", "good.conf", single("good"))
    why = MALFORMED[text]
    if why is None:
        assert etc.names("x") == ["x"]
        return
    error = etc.error("x")
    assert path in error and why in error
    found = etc.resolve("all")
    assert [network.name for network in found.networks] == ["good", "default"]
    assert any(path in warning and why in warning for warning in found.warnings)
    assert etc.names("none") == etc.names("host") == []


def test_a_file_that_nobody_can_read_is_no_other_network_s_matter(etc: Etc) -> None:
    etc.put("local", "a.conf", single("a"))
    path = f"{etc.directories[1]}/net.d/b.conf"
    os.symlink("nowhere", path)
    assert etc.resolve("a") == etc.resolve("a")._replace(warnings=())
    assert etc.error("b") == (
        f'there is no network "b" (it may be in a file that cannot be read: {path} makes no sense: no such file or '
        "directory)"
    )
    (warning,) = etc.resolve("default").warnings
    assert warning.startswith(path)


def test_a_malformed_file_is_not_replaced_by_what_it_was_meant_to_replace(etc: Etc) -> None:
    etc.put("system", "a.conf", single("net"))
    path = etc.put("local", "a.conf", single("net", "/bin/sh"))
    assert etc.error("net").startswith(f'network "net" is defined by {path}, which makes no sense: type "/bin/sh"')
    assert etc.names("all") == ["default"]
    etc.put("user", "a.conf", single("net"))
    assert etc.resolve("net").warnings == ()
    path = etc.put("local", "b.conf", single("default", ""))
    assert path in etc.error("default")
    assert etc.names("all") == ["net"]


def test_a_named_malformed_file_warns_nobody_else(etc: Etc) -> None:
    etc.put("local", "a.conf", single("a", ""))
    assert etc.resolve("default").warnings == ()


def test_a_directory_that_is_a_file(etc: Etc) -> None:
    os.makedirs(etc.directories[1])
    Path(etc.directories[1], "net.d").write_text("")
    assert etc.names("default") == ["default"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["1.0.0", "0.3.1", "ptp", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "type", "plugins", "cniVersion", "ipam", "capabilities", "disableCheck", "dns"]),
            inner,
        )
    ),
)


@given(_JSON)
def test_whatever_a_file_says_it_is_a_list_or_makes_no_sense(document: Any) -> None:
    try:
        made = netd.configuration_list(document)
    except ValueError:
        return
    assert netflags.is_name(made["name"]) and made["cniVersion"] in netd.VERSIONS
    assert all(isinstance(plugin["type"], str) and "/" not in plugin["type"] for plugin in made["plugins"])
    assert netd.configuration_list(made) == made


@given(st.binary(max_size=60) | _JSON.map(lambda document: json.dumps(document).encode()))
def test_whatever_is_in_a_file_it_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "any/net.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "x.conf").write_bytes(content)
    found = netd.read([str(directory.parent)])
    assert len(found.networks) + len(found.malformed) == 1
    for malformed in found.malformed:
        assert malformed.why and malformed.source == str(directory / "x.conf")


# IPv6


def test_ipv6_subnets_are_the_machine_s_own(tmp_path: Path) -> None:
    machine, other = tmp_path / "machine-id", tmp_path / "other"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    other.write_text("0123456789abcdef0123456789abcdee\n")
    found = networks.unique_local("default", str(machine))
    assert found == networks.unique_local("default", str(machine))
    subnet = addresses.subnet(found)
    assert subnet.length == 64 and subnet.first >> 120 == 0xFD and str(subnet) == found
    assert subnet.first >> 64 & 0xFFFF == 0  # RFC 4193: the subnet ID
    others = {networks.unique_local("default", str(other)), networks.unique_local("x", str(machine)), found}
    assert len(others) == 3
    assert "0123" not in found


@pytest.mark.parametrize("text", [None, "", "uninitialized\n", "0123\n", "x" * 32])
def test_without_a_machine_id_all_hosts_have_the_same(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "machine-id"
    if text is not None:
        path.write_text(text)
    assert networks.unique_local("default", str(path)) == networks.unique_local("default", "/nowhere")


@pytest.mark.parametrize(("off", "inet6", "expected"), [("0", True, True), ("1", True, False), ("0", False, False)])
def test_whether_the_host_has_ipv6(tmp_path: Path, off: str, inet6: bool, expected: bool) -> None:
    directory = tmp_path / "sys/net/ipv6/conf/all"
    directory.mkdir(parents=True)
    (directory / "disable_ipv6").write_text(f"{off}\n")
    (tmp_path / "net").mkdir()
    if inet6:
        (tmp_path / "net/if_inet6").write_text("")
    assert networks.has_ipv6(str(tmp_path)) is expected
    assert networks.has_ipv6(str(tmp_path / "nowhere")) is False


def test_without_ipv6_the_built_in_networks_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "has_ipv6", lambda: False)
    ipam = json.loads(networks.builtin("default").conf)["plugins"][0]["ipam"]
    assert ipam == {
        "type": "host-local", "ranges": [[{"subnet": "172.16.28.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
    }  # fmt: skip


def test_built_in_networks_pass_for_files(etc: Etc) -> None:
    for name in networks.SUBNETS:
        conf = networks.builtin(name).conf
        assert netd.configuration_list(json.loads(conf)) == json.loads(conf)
        assert isinstance(networks.builtin(name), Definition)


# Namespaces to join


def test_what_is_no_network_namespace_cannot_be_joined(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path, message in {
        str(tmp_path / "file"): "not a network namespace",
        str(tmp_path / "pipe"): "not a network namespace",
        str(tmp_path): "not a network namespace",
        "/dev/null": "not a network namespace",
        str(tmp_path / "missing"): "no such file",
        "/proc/self/ns/mnt": "a namespace, but not a network namespace",
        "/proc/self/ns/net": "the host's own",
    }.items():
        with pytest.raises(UsageError, match=message):
            networks.check_join(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
def test_a_network_namespace_can_be_joined() -> None:
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x\n")
        child.stdin.flush()
        child.stdout.readline()  # cat is there
        networks.check_join(f"/proc/{child.pid}/ns/net")
        child.stdin.close()


def test_where_plugins_are_looked_for(etc: Etc) -> None:
    system, local, user = etc.directories
    assert networks.plugin_path(etc.directories, ("/opt/a",)) == (
        f"{user}/net.d", f"{local}/net.d", f"{system}/net.d", "/opt/a", f"{system}/plugins/net",
    )  # fmt: skip


def test_bandwidth_needs_somebody_who_limits_it() -> None:
    made = networks.builtin("default")
    network = Network("default", "eth0", made.conf)
    plugins = json.loads(networks.limited(network).conf)["plugins"]
    assert plugins[:-1] == json.loads(made.conf)["plugins"]
    assert plugins[-1]["capabilities"] == {"bandwidth": True}
    again = networks.limited(networks.limited(network))
    assert again == networks.limited(network)
    with pytest.raises(NetworkError, match=r"cannot limit .*/etc/x\.conf"):
        networks.limited(network._replace(source="/etc/x.conf"))
