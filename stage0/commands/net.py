"""`rkpy net`: the networks there are, what pods have of them, and putting right what others broke."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from common.errors import EXIT_FAILURE, NetworkError, PodError, RkpyError, UsageError
from common.records import NamedTuple
from stage0 import flags, netd, netflags, networks, podnets, render, routes, usernet
from stage0.config import Config
from stage0.netd import Definition, Found
from stage0.pods import RUN, Pod, Pods, State
from stage1.network import record as records
from stage1.network.record import Record

_HEADER = ("NAME", "TYPE", "SUBNETS", "PODS", "SOURCE")


class _Attached(NamedTuple):
    """A pod that lives, of whatever data directory, and what was done for it."""

    uuid: str
    name: str
    directory: str
    record: Record


@click.command("list")
@flags.switch("--no-legend", "leave out the header")
@click.option("--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead")
@click.pass_obj
def list_networks(config: Config, no_legend: bool, form: str) -> None:
    """List networks: those of net.d, and the built-in ones they leave."""
    found = netd.read(config.directories)
    known = _known(found)
    attached = list(_attached(config))
    if form:
        render.write_json([_listed(network, attached) for network in known], pretty=form == "json-pretty")
    else:
        rows = [] if no_legend else [_HEADER]
        click.echo(render.table([*rows, *(_row(network, attached) for network in known)]), nl=False)
    for bad in found.malformed if not usernet.is_all_there_is() else ():
        _notice("list", f"{bad.source} makes no sense: {bad.why}")
    for loser, winner in found.ignored if not usernet.is_all_there_is() else ():
        _notice("list", f'{loser.source} is ignored: network "{loser.name}" is defined by {winner.source}')


def _known(found: Found) -> list[Definition]:
    """What can be asked for by name: of those that a malformed file is meant to define nothing is known."""
    if usernet.is_all_there_is():
        return [Definition(networks.DEFAULT, usernet.network(netflags.DEFAULT).conf)]
    spoilt = {bad.name for bad in found.malformed if all(bad.rank < each.rank for each in _named(found, bad.name))}
    defined = {network.name for network in found.networks}
    builtin = [networks.builtin(name) for name in networks.SUBNETS if name not in defined]
    return [network for network in (*found.networks, *builtin) if network.name not in spoilt]


def _named(found: Found, name: str) -> list[Definition]:
    return [network for network in found.networks if network.name == name]


def _row(network: Definition, attached: list[_Attached]) -> tuple[str, ...]:
    plugins = json.loads(network.conf)["plugins"]
    return (
        network.name,
        ",".join(plugin["type"] for plugin in plugins),
        ",".join(map(str, routes.subnets(plugins[0]))) or "-",
        str(len(_of(network.name, attached))),
        network.source or "built in",
    )


def _listed(network: Definition, attached: list[_Attached]) -> dict[str, Any]:
    plugins = json.loads(network.conf)["plugins"]
    return {
        "name": network.name,
        "types": [plugin["type"] for plugin in plugins],
        "subnets": [str(subnet) for subnet in routes.subnets(plugins[0])],
        "pods": [pod.uuid for pod in _of(network.name, attached)],
        "source": network.source,
    }


def _of(network: str, attached: list[_Attached]) -> list[_Attached]:
    return [pod for pod in attached if any(each.network == network for each in pod.record.attachments)]


def _attached(config: Config) -> Iterator[_Attached]:
    if usernet.is_all_there_is():
        yield from _connected(config)
        return
    from stage1 import poddir
    from stage1.network import owners, state

    for uuid in sorted(state.listing("pods")):
        directory = owners.find(uuid)
        record = _record(directory) if directory and owners.is_alive(uuid) else None
        if record is not None:
            yield _Attached(uuid, poddir.read_name(directory), directory, record)


def _connected(config: Config) -> Iterator[_Attached]:
    """Those of the data directory: nobody else's can be looked at."""
    for pod in Pods(config.pods).all((RUN,)):
        with pod:
            record = _record(pod.base) if pod.state() is State.RUNNING else None
            if record is not None:
                yield _Attached(pod.uuid, pod.name(), f"{config.pods}/{RUN}/{pod.uuid}", record)


def _record(directory: str) -> Record | None:
    try:
        return records.read(directory)
    except NetworkError as error:
        click.echo(f"rkpy: net: {error}", err=True)
        return None


@click.command("inspect")
@flags.switch("--pretty-print", "indent the JSON", default="true")
@click.argument("name", nargs=-1)
@click.pass_obj
def inspect(config: Config, name: tuple[str, ...], pretty_print: bool) -> None:
    """Show a network, its addresses and who has them, or what a pod has of networks, as JSON."""
    if len(name) != 1:
        raise UsageError("must provide exactly one network or pod UUID")
    found = netd.read(config.directories)
    network = next((each for each in _known(found) if each.name == name[0]), None)
    if network is not None:
        document = _network(config, network)
    elif any(bad.name == name[0] for bad in found.malformed):
        networks.find(name[0], found)  # which says why it is not there
        return
    else:
        try:
            document = _pod(config, name[0])
        except PodError as error:
            raise PodError(error.message, hint=error.hint or "nor is it a network: see rkpy net list") from error
    render.write_json(document, pretty=pretty_print)


def _network(config: Config, network: Definition) -> dict[str, Any]:
    from stage1.network import obstacles

    attached = list(_attached(config))
    members = _of(network.name, attached)
    configuration = json.loads(network.conf)
    subnets = map(str, routes.subnets(configuration["plugins"][0]))
    return {
        "name": network.name,
        "source": network.source,
        "configuration": configuration,
        "leases": list(_leases(network.name, {pod.uuid: pod.name for pod in attached})),
        "pods": [{"uuid": pod.uuid, "name": pod.name, **_part(pod, network.name)} for pod in members],
        "ports": [
            *_ports({pod.uuid for pod in members}),
            *(port for pod in members for port in _forwarded(pod.record)),
        ],
        "obstacles": [] if usernet.is_all_there_is() else obstacles.foreign_obstacles(subnets),
    }


def _part(pod: _Attached, network: str) -> dict[str, Any]:
    """What a pod has of the network."""
    infos = [info for info in podnets.read(pod.directory) if info.name == network]
    return {"interface": infos[0].interface, "ips": list(infos[0].addresses)} if infos else {}


def _leases(network: str, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    from stage1.network import state

    for address in sorted(state.listing("leases", network)):
        uuid, _, interface = state.holder(state.path("leases", network, address)).partition(" ")
        if uuid:
            yield {"address": address, "pod": uuid, "podName": names.get(uuid, ""), "interface": interface}


def _ports(uuids: set[str]) -> Iterator[dict[str, Any]]:
    from stage1.network import ports

    for claim, uuid in sorted(ports.all_claims()):
        if uuid in uuids:
            protocol, number, address = ports.parse(claim)
            yield {"protocol": protocol, "hostPort": number, "hostIP": address, "pod": uuid}


def _forwarded(record: Record) -> Iterator[dict[str, Any]]:
    """What pasta publishes."""
    from stage1.network import usermode

    for mapping in usermode.published(record) if usermode.is_of(record) else ():
        port = {"protocol": mapping["protocol"], "hostPort": mapping["hostPort"], "hostIP": mapping.get("hostIP", "")}
        yield {**port, "pod": record.uuid}


def _pod(config: Config, name: str) -> dict[str, Any]:
    with Pods(config.pods).find(name) as pod:
        record = records.read(pod.base) or Record(pod.uuid)
        return {
            "uuid": pod.uuid,
            "name": pod.name(),
            "state": str(pod.state()),
            "networks": [
                {**podnets.to_json(info), "configuration": _json(attachment.conf), "result": _json(attachment.result)}
                for info, attachment in zip(podnets.read(pod.base), record.attachments, strict=False)
            ],
            "ports": [*_ports({pod.uuid}), *_forwarded(record)],
            "firewall": [element._asdict() for element in record.elements],
        }


def _json(text: str) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _require_root() -> None:
    if os.geteuid() != 0:
        raise RkpyError("the networks of the host are for root to change", hint="run it as root")


@click.command("gc")
@click.pass_obj
def collect(config: Config) -> int:
    """Take back addresses, ports and rules of pods that are no more."""
    _require_root()
    from stage1.network import owners

    failures: list[RkpyError] = []
    for uuid in owners.sweep(failures.append):
        click.echo(f'took back what pod "{uuid}" had of networks')
    for failure in failures:
        _notice("gc", str(failure))
    return EXIT_FAILURE if failures else 0


@click.command("check")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def check(config: Config, uuid: tuple[str, ...]) -> int:
    """Check that running pods, or these, still have of their networks what they were given."""
    if not usernet.is_all_there_is():
        _require_root()
    pods = Pods(config.pods).require_own()
    found = [pods.find(name) for name in uuid] if uuid else list(pods.all((RUN,)))
    problems = []
    for pod in found:
        with pod:
            if pod.state() is State.RUNNING:
                problems += _problems(pod)
            elif uuid:
                raise PodError(f'pod "{pod.uuid}" isn\'t currently running: it is {pod.state()}')
    for problem in problems:
        _notice("check", problem)
    return EXIT_FAILURE if problems else 0


def _problems(pod: Pod) -> list[str]:
    from stage1.network import cni, firewall, usermode

    about, path, found = f'pod "{pod.uuid}"', _namespace(pod), []
    if not path:
        return []
    try:
        record = records.read(pod.base) or Record(pod.uuid)
    except NetworkError as error:
        return [f"{about}: {error}"]
    if usermode.is_of(record):
        gone = not usermode.is_alive(pod.base) and pod.state() is State.RUNNING
        return [f"{about}: network {networks.DEFAULT}: pasta has ended"] if gone else []
    checks = [partial(cni.check, record, attachment, path) for attachment in record.attachments]
    for verify in (*checks, partial(firewall.check, pod.uuid)):
        try:
            verify()
        except RkpyError as error:
            found.append(f"{about}: {error}")
    return found if pod.state() is State.RUNNING else []


def _namespace(pod: Pod) -> str:
    """The path of its network namespace; empty while it is just being started, and when it has just ended."""
    leader = pod.leader()
    if leader is None:
        return ""
    return f"/proc/{_machine(pod) if pod.flavour() == 'kvm' else leader.pid}/ns/net"


def _machine(pod: Pod) -> int:
    """The PID of its QEMU, whose leader is the monitor; one that is nobody's when it has just ended."""
    from stage1 import control

    try:
        return int(control.request(pod.base, {"op": "process"})["pid"])
    except PodError:
        return -1


@click.command("reload")
@click.pass_obj
def reload(config: Config) -> None:
    """Make the firewall's rules for all running pods anew, after somebody has flushed the ruleset."""
    _require_root()
    from stage1.network import firewall

    firewall.reload()


def _notice(command: str, text: str) -> None:
    click.echo(f"rkpy: net {command}: {text}", err=True)
