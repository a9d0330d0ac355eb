"""Lists of plugins: what each is told in what order, with programs that write down what they see."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import types
from typing import Any

import pytest

from common.errors import NetworkError, PodError
from stage1.network import capabilities, cni, plugin, results
from stage1.network.plan import Names, Network, NetworkPlan, Port
from stage1.network.record import Attachment, Element, Record

UUID = "6d1ecfca-0000-4000-8000-000000000000"
VERSIONS = results.VERSIONS
PROGRAM = """#!{interpreter} -IS
import json, os, sys
conf = json.load(sys.stdin)
here, kind, command = os.path.dirname(sys.argv[0]), os.path.basename(sys.argv[0]), os.environ["CNI_COMMAND"]
environment = {{name: value for name, value in os.environ.items() if name.startswith("CNI_")}}
with open(here + "/../calls", "a") as file:
    file.write(json.dumps([kind, command, environment, conf]) + "\\n")
if command in conf.get("fails", ()):
    print(json.dumps({{"code": 7, "msg": "no " + command}}))
    raise SystemExit(1)
if command == "ADD":
    old = conf["cniVersion"] < "0.3.0"
    ours = {{"ip4": {{"ip": "10.0.0.2/24"}}}} if old else {{"ips": [{{"address": "10.0.0.2/24", "version": "4"}}]}}
    print(json.dumps({{"cniVersion": conf["cniVersion"], **conf.get("prevResult", ours)}}))
"""


class Plugins:
    """Directories with such programs: one that was configured, and one of the system."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.own, self.system = directory / "own", directory / "system"
        self.own.mkdir()
        self.system.mkdir()
        for kind in ("first", "second", "addresses"):
            self.make(self.system, kind)

    def make(self, where: pathlib.Path, kind: str) -> None:
        (where / kind).write_text(PROGRAM.format(interpreter=sys.executable))
        (where / kind).chmod(0o755)

    def calls(self) -> list[tuple[str, str, dict[str, str], dict[str, Any]]]:
        """And forget them."""
        path = self.directory / "calls"
        found = [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def order(self) -> list[str]:
        return [f"{kind} {command}" for kind, command, _, _ in self.calls()]

    def plan(self, *plugins: dict[str, Any], version: str = "1.0.0", args: str = "", **more: Any) -> NetworkPlan:
        conf = {"cniVersion": version, "name": "net", "plugins": plugins, **more.pop("conf", {})}
        pairs = tuple((name, value) for name, _, value in (pair.partition("=") for pair in args.split(";") if pair))
        names = more.pop("names", Names("h"))
        network = Network("net", "eth0", json.dumps(conf), pairs)
        paths = {"plugin_path": (str(self.own),), "system_plugin_path": (str(self.system),)}
        return NetworkPlan(UUID, "/pod", (network,), names, **{**paths, **more})


@pytest.fixture
def plugins(tmp_path: pathlib.Path) -> Plugins:
    return Plugins(tmp_path)


def add(plan: NetworkPlan) -> tuple[dict[str, Any], list[Element]]:
    network = plan.networks[0]
    return cni.add(plan, network, "/proc/self/ns/net", capabilities.runtime(plan, network))


def recorded(plan: NetworkPlan, result: dict[str, Any] | None = None) -> tuple[Record, Attachment]:
    network = plan.networks[0]
    done = json.dumps(result) if result is not None else ""
    attachment = Attachment(network.name, network.interface, network.conf, network.args,
                            runtime=json.dumps(capabilities.runtime(plan, network)), result=done)  # fmt: skip
    record = Record(plan.uuid, "", plan.plugin_path, plan.system_plugin_path, (attachment,))
    return record, attachment


class BuiltIn:
    """A module that stands among the built-in plugins for a test."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, plugin.Call]] = []
        self.answer: Any = results.empty()
        self.error: Exception | None = None
        module = types.ModuleType(f"stage1.network.test_{name}")
        module.__dict__.update({word: self._function(word) for word in ("add", "delete", "check")})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(plugin.BUILTIN, name, f"test_{name}")

    def _function(self, word: str) -> Any:
        def function(call: plugin.Call) -> Any:
            self.calls.append((word, call))
            if self.error:
                raise self.error
            return self.answer if word == "add" else None

        return function


@pytest.mark.parametrize("version", VERSIONS)
def test_a_list_forth_and_back(plugins: Plugins, version: str) -> None:
    plan = plugins.plan({"type": "first", "x": 1, "capabilities": {}}, {"type": "second"}, version=version)
    result, elements = add(plan)
    assert result == {**results.empty(), "ips": [{"address": "10.0.0.2/24"}]}
    assert elements == []
    (kind, command, environment, conf), (kind2, command2, environment2, conf2) = plugins.calls()
    assert [kind, command, kind2, command2] == ["first", "ADD", "second", "ADD"]
    assert conf == {"cniVersion": version, "name": "net", "type": "first", "x": 1}
    assert conf2 == {"cniVersion": version, "name": "net", "type": "second",
                     "prevResult": results.emit(result, version)}  # fmt: skip
    assert environment == environment2
    assert environment == {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": UUID, "CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "eth0",
        "CNI_ARGS": "", "CNI_PATH": f"{plugins.own}:{plugins.system}",
    }  # fmt: skip

    since_4 = version in ("0.4.0", "1.0.0")
    cni.check(*recorded(plan, result), "/proc/self/ns/net")
    calls = plugins.calls()
    assert [call[:2] for call in calls] == ([("first", "CHECK"), ("second", "CHECK")] if since_4 else [])
    assert all(conf["prevResult"] == results.emit(result, version) for _, _, _, conf in calls)

    assert cni.delete(*recorded(plan, result), "/proc/self/ns/net") == []
    calls = plugins.calls()
    assert [call[:2] for call in calls] == [("second", "DEL"), ("first", "DEL")]
    for _, _, environment, conf in calls:
        assert conf.get("prevResult") == (results.emit(result, version) if since_4 else None)
        assert environment["CNI_NETNS"] == "/proc/self/ns/net"


@pytest.mark.parametrize("path", ["", "/nothing", "/etc/passwd"])
def test_delete_without_namespace_or_result(plugins: Plugins, path: str) -> None:
    plan = plugins.plan({"type": "first"})
    assert cni.delete(*recorded(plan), path) == []
    _, _, environment, conf = plugins.calls()[0]
    assert environment["CNI_NETNS"] == ""
    assert "prevResult" not in conf


@pytest.mark.parametrize("disabled", [True, "true"])
def test_a_list_that_is_not_to_be_checked(plugins: Plugins, disabled: Any) -> None:
    plan = plugins.plan({"type": "first"}, conf={"disableCheck": disabled})
    cni.check(*recorded(plan, results.empty()), "/proc/self/ns/net")
    assert plugins.order() == []


def test_a_plugin_that_fails_is_taken_back_with_all_others(plugins: Plugins) -> None:
    plan = plugins.plan({"type": "first"}, {"type": "second", "fails": ["ADD"]}, {"type": "addresses"})
    with pytest.raises(NetworkError) as error:
        add(plan)
    assert str(error.value) == "network net: plugin second: no ADD"
    assert plugins.order() == ["first ADD", "second ADD", "addresses DEL", "second DEL", "first DEL"]


def test_the_first_failure_is_what_is_told(plugins: Plugins) -> None:
    plan = plugins.plan({"type": "first", "fails": ["DEL"]}, {"type": "second", "fails": ["ADD", "DEL"]})
    with pytest.raises(NetworkError, match=r"^network net: plugin second: no ADD$"):
        add(plan)
    assert plugins.order() == ["first ADD", "second ADD", "second DEL", "first DEL"]


def test_delete_goes_on(plugins: Plugins) -> None:
    plan = plugins.plan({"type": "first"}, {"type": "second", "fails": ["DEL"]}, {"type": "gone"})
    problems = cni.delete(*recorded(plan, results.empty()), "")
    assert plugins.order() == ["second DEL", "first DEL"]
    assert problems[0].startswith("network net: plugin gone: there is no plugin gone (looked in ")
    assert problems[1:] == ["network net: plugin second: no DEL"]


def test_check_says_what_is_missing(plugins: Plugins) -> None:
    plan = plugins.plan({"type": "first"}, {"type": "second", "fails": ["CHECK"]})
    with pytest.raises(NetworkError, match=r"^network net: plugin second: no CHECK$"):
        cni.check(*recorded(plan, results.empty()), "/proc/self/ns/net")


def test_nothing_is_known_to_check(plugins: Plugins) -> None:
    with pytest.raises(NetworkError, match=r"^network net: nothing is known of what was done$"):
        cni.check(*recorded(plugins.plan({"type": "first"})), "/proc/self/ns/net")
    assert plugins.order() == []


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ("", ""),
        ("IP=10.0.0.9;X=y", "IgnoreUnknown=1;IP=10.0.0.9;X=y"),
        ("X=y;IgnoreUnknown=0", "IgnoreUnknown=0;X=y"),
        ("IP=10.0.0.9,fd00::9;X=y", "IgnoreUnknown=1;IP=10.0.0.9,fd00::9;X=y"),
    ],
)
def test_arguments(plugins: Plugins, args: str, given: str) -> None:
    add(plugins.plan({"type": "first"}, args=args))
    assert plugins.calls()[0][2]["CNI_ARGS"] == given


def test_an_argument_that_nobody_knows(plugins: Plugins) -> None:
    """Programs may know any; where all is built in a misspelt one is not just lost."""
    built_in = {"type": "loopback"}
    with pytest.raises(NetworkError, match='network net: no plugin of it knows the argument "ip"') as refusal:
        add(plugins.plan(built_in, args="IP=10.0.0.9;ip=10.0.0.9"))
    assert refusal.value.hint == "they know IP and MAC"
    add(plugins.plan(built_in, {"type": "first"}, args="ip=10.0.0.9"))
    with pytest.raises(NetworkError, match="/nope"):
        plan = plugins.plan(built_in, args="ip=x;IgnoreUnknown=1")
        cni.add(plan, plan.networks[0], "/nope", {})


def test_more_addresses_than_an_argument_has(plugins: Plugins) -> None:
    add(plugins.plan({"type": "first", "capabilities": {"ips": True}}, args="IP=10.0.0.9,fd00::9;X=y"))
    _, _, environment, conf = plugins.calls()[0]
    assert environment["CNI_ARGS"] == "IgnoreUnknown=1;X=y"
    assert conf["runtimeConfig"] == {"ips": ["10.0.0.9", "fd00::9"]}


def test_a_plugin_is_offered_what_it_is_capable_of(plugins: Plugins) -> None:
    plan = plugins.plan(
        {"type": "first", "capabilities": {"mac": True, "ips": False, "aliases": True, "strange": True}},
        {"type": "second", "capabilities": {"portMappings": True, "bandwidth": True, "dns": True}},
        {"type": "addresses", "capabilities": ["mac"]},
        args="IP=10.0.0.9;MAC=02:00:00:00:00:01",
        ports=(Port("a", "tcp", "", 8080, 80, 2), Port("b", "udp", "::1", 53, 53)),
        bandwidth=20_000_000,
        names=Names("h", "pod", ("web", "pod", "db"), ("10.0.0.1",), ("x.org",), ("ndots:2",)),
    )
    result, _ = add(plan)
    offered = [
        {"mac": "02:00:00:00:00:01", "aliases": ["pod", "web", "db"]},
        {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "::1"},
            ],
            "bandwidth": {"ingressRate": 20_000_000, "ingressBurst": 2_000_000, "egressRate": 20_000_000,
                          "egressBurst": 2_000_000},
            "dns": {"servers": ["10.0.0.1"], "searches": ["x.org"], "options": ["ndots:2"]},
        },
        None,
    ]  # fmt: skip
    assert [conf.get("runtimeConfig") for _, _, _, conf in plugins.calls()] == offered
    assert cni.delete(*recorded(plan, result), "") == []
    assert [conf.get("runtimeConfig") for _, _, _, conf in plugins.calls()] == offered[::-1]


def networks(*confs: list[dict[str, Any]]) -> NetworkPlan:
    found = tuple(
        Network(f"n{index}", f"eth{index}", json.dumps({"cniVersion": "1.0.0", "name": f"n{index}", "plugins": conf}))
        for index, conf in enumerate(confs)
    )
    return NetworkPlan(UUID, "/pod", found, Names("h"), (Port("a", "tcp", "", 1, 1),))


PLAIN: list[dict[str, Any]] = [{"type": "ptp"}]
MASQUERADED: list[dict[str, Any]] = [{"type": "ptp", "ipMasq": True}]
BESIDE: list[dict[str, Any]] = [{"type": "macvlan"}]
CAPABLE: list[dict[str, Any]] = [{"type": "ptp"}, {"type": "portmap", "capabilities": {"portMappings": True}}]


@pytest.mark.parametrize(
    ("confs", "publisher"),
    [
        ([PLAIN, MASQUERADED, PLAIN], ("n1", "engine")),
        ([PLAIN, MASQUERADED, CAPABLE, CAPABLE], ("n2", "plugin")),
        ([PLAIN, PLAIN], ("n1", "engine")),
        ([BESIDE, PLAIN, BESIDE], ("n1", "engine")),
        ([[*BESIDE, *CAPABLE[1:]]], ("n0", "plugin")),
        ([BESIDE], ("", "engine")),
        ([], ("", "engine")),
    ],
)
def test_who_publishes(confs: list[list[dict[str, Any]]], publisher: tuple[str, str]) -> None:
    plan = networks(*confs)
    assert capabilities.publisher(plan.networks) == publisher
    offered = {network.name: capabilities.runtime(plan, network) for network in plan.networks}
    assert tuple(name for name, runtime in offered.items() if "portMappings" in runtime) == (
        publisher[:1] if publisher[1] == "plugin" else ()
    )


def test_the_hosts_name_servers_are_no_addresses() -> None:
    for word in ("host", "none"):
        plan = networks(PLAIN)._replace(names=Names("h", dns=(word,)))
        assert "dns" not in capabilities.runtime(plan, plan.networks[0])


def test_built_in_and_program_in_a_chain(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = BuiltIn("middle", monkeypatch)
    built_in.answer = {"ips": [{"address": "10.0.0.3/24"}]}
    plan = plugins.plan({"type": "first"}, {"type": "middle", "y": 1}, {"type": "second"}, version="0.4.0", args="A=b")
    result, _ = add(plan)
    assert result["ips"] == [{"address": "10.0.0.3/24"}]
    word, call = built_in.calls.pop()
    assert word == "add"
    assert call.conf["prevResult"] == {**results.empty(), "ips": [{"address": "10.0.0.2/24"}]}
    assert call.conf["y"] == 1
    assert call.args == {"A": "b"}
    assert (call.container, call.interface) == (UUID, "eth0")
    assert plugins.calls()[1][3]["prevResult"] == results.emit(result, "0.4.0")
    assert cni.delete(*recorded(plan, result), "") == []
    word, call = built_in.calls.pop()
    assert (word, call.netns, call.conf["prevResult"]) == ("delete", "", result)
    cni.check(*recorded(plan, result), "/proc/self/ns/net")
    assert built_in.calls.pop()[0] == "check"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NetworkError("no", hint="do"), r"^network net: plugin middle: no \(do\)$"),
        (NetworkError("network net: no"), r"^network net: plugin middle: no$"),
        (PodError("lock x: no"), r"^network net: plugin middle: lock x: no$"),
        (FileNotFoundError(2, "x", "/p"), r"^network net: plugin middle: /p: x$"),
    ],
)
def test_a_built_in_plugin_that_fails(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    built_in = BuiltIn("middle", monkeypatch)
    built_in.error = error
    plan = plugins.plan({"type": "first"}, {"type": "middle"})
    with pytest.raises(NetworkError, match=said):
        add(plan)
    assert [word for word, _ in built_in.calls] == ["add", "delete"]
    assert plugins.order() == ["first ADD", "first DEL"]


def test_a_built_in_plugin_with_a_bug_does_not_stop_delete(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    BuiltIn("middle", monkeypatch).error = KeyError("x")
    plan = plugins.plan({"type": "first"}, {"type": "middle"})
    assert cni.delete(*recorded(plan), "") == ["network net: plugin middle: KeyError: 'x'"]
    assert plugins.order() == ["first DEL"]


def test_a_built_in_plugin_that_answers_nonsense(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    BuiltIn("middle", monkeypatch).answer = {"ips": 7}
    with pytest.raises(NetworkError, match="plugin middle: the result makes no sense"):
        add(plugins.plan({"type": "middle"}))


def test_a_program_that_was_configured_stands_in_for_a_built_in_one(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = BuiltIn("middle", monkeypatch)
    plugins.make(plugins.system, "middle")
    plan = plugins.plan({"type": "middle"})
    assert not cni.uses_programs(plan)
    add(plan)
    assert (plugins.order(), len(built_in.calls)) == ([], 1)
    plugins.make(plugins.own, "middle")
    assert cni.uses_programs(plan)
    add(plan)
    assert (plugins.order(), len(built_in.calls)) == (["middle ADD"], 1)


def test_uses_programs(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    BuiltIn("middle", monkeypatch)
    assert cni.uses_programs(plugins.plan({"type": "middle"}, {"type": "first"}))
    assert cni.uses_programs(plugins.plan({"type": "middle", "ipam": {"type": "addresses"}}))
    assert not cni.uses_programs(plugins.plan({"type": "middle", "ipam": {"type": "host-local"}}))
    assert not cni.uses_programs(plugins.plan({"type": "middle", "ipam": {}}))


@pytest.mark.parametrize("kind", ["gone", "host-local/../first", "../first", "", ".", None, 7, "a\0b"])
@pytest.mark.parametrize("of_ipam", [False, True])
def test_no_such_plugin(plugins: Plugins, monkeypatch: pytest.MonkeyPatch, kind: Any, of_ipam: bool) -> None:
    built_in = BuiltIn("middle", monkeypatch)
    wrong = {"type": "middle", "ipam": {"type": kind}} if of_ipam else {"type": kind}
    plan = plugins.plan({"type": "middle"}, wrong)
    with pytest.raises(NetworkError, match=r"^network net: ") as error:
        add(plan)
    assert built_in.calls == [], "nothing is begun that cannot be ended"
    with pytest.raises(NetworkError):
        cni.uses_programs(plan)
    if kind == "gone":
        assert str(error.value) == (
            f"network net: there is no plugin gone (looked in {plugins.own}, {plugins.system}; "
            "Debian has plugins in the package containernetworking-plugins)"
        )


@pytest.mark.parametrize("kind", ["middle", "portmap"])
def test_a_built_in_plugin_for_interfaces_gives_no_addresses(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    BuiltIn("middle", monkeypatch)
    with pytest.raises(NetworkError, match=f"there is no plugin {kind}"):
        add(plugins.plan({"type": "middle", "ipam": {"type": kind}}))


@pytest.mark.parametrize(
    "conf",
    ["", "[]", "null", "{}", '{"plugins": []}', '{"plugins": [7]}', '{"plugins": {"type": "first"}}', "[" * 100_000,
     '{"plugins": [{"type": "first"}], "cniVersion": "3.0.0"}'],
)  # fmt: skip
def test_configurations_that_make_no_sense(plugins: Plugins, conf: str) -> None:
    plan = plugins.plan({"type": "first"})
    plan = plan._replace(networks=(plan.networks[0]._replace(conf=conf),))
    with pytest.raises(NetworkError, match=r"^network net: "):
        cni.add(plan, plan.networks[0], "/proc/self/ns/net", {})
    problems = cni.delete(Record(UUID), Attachment("net", "eth0", conf), "")
    assert len(problems) == 1
    assert problems[0].startswith("network net: ")
    assert plugins.order() == []


@pytest.mark.parametrize("result", ["{", "7", '{"ips": 7}'])
@pytest.mark.parametrize("runtime", ["{}", "7", "["])
def test_a_record_that_makes_no_sense_is_taken_back_as_well_as_can_be(
    plugins: Plugins, result: str, runtime: str
) -> None:
    record, attachment = recorded(plugins.plan({"type": "first"}))
    assert cni.delete(record, attachment._replace(runtime=runtime, result=result), "") == []
    assert plugins.order() == ["first DEL"]


def call_of(plugins: Plugins, ipam: Any, version: str = "1.0.0", **conf: Any) -> plugin.Call:
    own = {"type": "middle", "name": "net", "cniVersion": version, "ipam": ipam, **conf}
    return plugin.Call(UUID, "/proc/self/ns/net", "eth0", {"IP": "10.0.0.2"}, own, (), (str(plugins.system),), [])


@pytest.mark.parametrize("version", VERSIONS)
def test_addresses_from_a_program(plugins: Plugins, version: str) -> None:
    call = call_of(plugins, {"type": "addresses", "z": 1}, version)
    assert cni.ipam(call, "ADD")["ips"] == [{"address": "10.0.0.2/24"}]
    ((kind, _, environment, conf),) = plugins.calls()
    assert kind == "addresses"
    assert conf == {"type": "middle", "name": "net", "cniVersion": version, "ipam": {"type": "addresses", "z": 1}}
    assert environment["CNI_ARGS"] == "IgnoreUnknown=1;IP=10.0.0.2"
    assert cni.ipam(call, "DEL") == cni.ipam(call, "CHECK") == {}
    since_4 = version in ("0.4.0", "1.0.0")
    assert plugins.order() == ["addresses DEL", "addresses CHECK"] if since_4 else ["addresses DEL"]


def test_addresses_from_a_built_in_plugin(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = BuiltIn("host-local", monkeypatch)
    call = call_of(plugins, {"type": "host-local"})
    assert cni.ipam(call, "ADD") == results.empty()
    assert cni.ipam(call, "DEL") == cni.ipam(call, "CHECK") == {}
    assert built_in.calls == [("add", call), ("delete", call), ("check", call)]


@pytest.mark.parametrize("ipam", [None, {}])
def test_no_addresses(plugins: Plugins, ipam: Any) -> None:
    assert cni.ipam(call_of(plugins, ipam), "ADD") == {}


def test_a_program_for_addresses_that_fails(plugins: Plugins) -> None:
    with pytest.raises(NetworkError, match=r"^IPAM plugin addresses: no ADD$"):
        cni.ipam(call_of(plugins, {"type": "addresses"}, fails=["ADD"]), "ADD")


def test_what_takes_back_loads_little() -> None:
    """It runs in a small process that has not even site-packages."""
    code = "import sys; from stage1.network import cni; print(*sys.modules)"
    root = pathlib.Path(__file__).parent.parent.parent
    words = [sys.executable, "-S", "-c", code]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True, cwd=root).stdout.split()
    assert not {"subprocess", "socket", "ipaddress", "pyroute2", "asyncio", "threading", "inspect"} & set(loaded)
