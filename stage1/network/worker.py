"""The process that attaches a pod to its networks: forked when rkpy starts, over when the pod's apps can start.

What it needs takes as long to load as everything else takes to be prepared, so it is begun early and loads meanwhile; a
pod that turns out to need no network just lets it go. It is the monitor's child, on the host's side in every respect.

It hears, from the engine and then from the monitor (descriptors in brackets):
    plan [plan, lock]  a NetworkPlan, and the pod's lock
    netns [namespace]  the pod's network namespace; that of a virtual machine has its taps already
When nobody holds the other end any more it gives up. It says, to the monitor:
    ready [file]       the pod is attached; what follows is for people only. [] comes for virtual machines: a memory
                       file with what is to be done inside (`stage1.vm.guestnet`); and where pasta connects the pod: a
                       pidfd of it (`usermode`)
    failed STATUS TEXT it is not, and nothing of it is left
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

from common import users
from common.errors import EXIT_FAILURE, NetworkError, RkpyError, located
from common.records import NamedTuple
from stage1 import channel
from stage1.channel import Channel
from stage1.network import record
from stage1.network.plan import Network, NetworkPlan
from stage1.network.record import Attachment, Record

_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""A terminal sends them to us too; it is the monitor that decides, and lets go of our channel when we are to end."""
_TOO_LATE = "the pod has ended before it was attached to its networks"


class Worker(NamedTuple):
    """The worker as its parent, the engine and the monitor see it."""

    pid: int
    channel: Channel


def begin() -> Worker:
    """Fork the worker. It ends by itself once nobody holds the other end of its channel."""
    ours, theirs = channel.pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        # Whatever happens: nobody of the callers' is to run here.
        os._exit(_main(theirs))
    theirs.close()
    return Worker(pid, ours)


def _main(source: Channel) -> int:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        _load()
        message, fds = source.receive()
        if message != "plan":
            return 0
        from stage1.plan import loads

        # The pod's lock comes along: as long as we are at it, also after the monitor was killed, the pod is not dead.
        plan: NetworkPlan = loads(channel.read_memory_file(fds[0]))
        _work(plan, source)
    except RkpyError as error:
        _send(source, f"failed {error.exit_status} {error}")
    except OSError as error:
        _send(source, f"failed {EXIT_FAILURE} {located(error)}")
    except Exception as error:
        # Whoever waits for us has to hear of it.
        _send(source, f"failed {EXIT_FAILURE} attaching the pod to its networks: {error!r}")
    return 0


def _load() -> None:
    """What will be needed in all likelihood."""
    if users.confined():
        import stage1.network.capabilities
        import stage1.network.names
        import stage1.network.ports
        import stage1.network.usermode

        return
    import ipaddress  # noqa: F401

    import stage1.network.cni
    import stage1.network.firewall
    import stage1.network.leases
    import stage1.network.names
    import stage1.network.owners
    import stage1.network.ports
    import stage1.network.ptp  # noqa: F401
    from stage1.network import netlink

    netlink.load()


def _send(source: Channel, text: str, fds: tuple[int, ...] = ()) -> bool:
    """Whether it was taken. Closes `fds`."""
    try:
        source.send(text, fds)
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _work(plan: NetworkPlan, source: Channel) -> None:
    from stage1.network import obstacles, programs

    programs.depend_on(source.fileno())
    try:
        subnets, given = _attach(plan, source)
        # The monitor may have been killed meanwhile.
        gone = not _send(source, "ready", given)
    except BaseException:
        _take_back(plan)  # What stays, the monitor will say: it tries again.
        raise
    if gone:
        _complain(_take_back(plan))
    else:
        _complain(obstacles.foreign_obstacles(subnets))


def _take_back(plan: NetworkPlan) -> list[str]:
    from stage1.network import netns, programs
    from stage1.network.detach import detach

    if programs.is_over() and netns.is_alive(netns.place(plan.uuid)):
        return []  # Programs are to have their turn, in the namespace: the monitor sees to that, or gc.
    return detach(plan.directory)


def _complain(problems: list[str]) -> None:
    from stage1 import boot

    for problem in problems:
        boot.complain("run", problem)


def _attach(plan: NetworkPlan, source: Channel) -> tuple[list[str], tuple[int, ...]]:
    """The subnets that the pod can send from to anywhere, and what goes along with `ready`."""
    from stage1.network import cni, firewall, names, netns, owners, pasta, ports, programs

    if pasta.serves(plan.networks):
        return [], (_connect(plan, source),)
    owners.register(plan.uuid, plan.directory)
    done = Record(
        uuid=plan.uuid, plugin_path=plan.plugin_path, system_plugin_path=plan.system_plugin_path,
    )  # fmt: skip
    record.write(plan.directory, done)
    done = done._replace(ports=ports.claim(plan))
    namespace = _namespace(source)
    path = f"/proc/{os.getpid()}/fd/{namespace}"
    if cni.uses_programs(plan):
        done = done._replace(netns=netns.place(plan.uuid))
        record.write(plan.directory, done)
        path = netns.pin(path, plan.uuid)
    results: list[tuple[str, dict[str, Any]]] = []
    for network in plan.networks:
        if programs.is_over():
            raise NetworkError(_TOO_LATE)
        done, result = _attach_one(plan, network, path, done)
        results.append((network.name, result))
    done = _publish(plan, results, done)
    given = (channel.memory_file(_tie(plan, path)),) if plan.taps else ()
    _complain(names.write(plan, results))
    firewall.apply(done.elements, plan.uuid)
    return list(_travelling(results)), given


def _namespace(source: Channel) -> int:
    """A descriptor of the pod's network namespace, once there is one."""
    message, fds = source.receive()
    if message != "netns":
        raise NetworkError(_TOO_LATE)
    return fds[0]


def _connect(plan: NetworkPlan, source: Channel) -> int:
    """A pidfd of what connects the pod."""
    from stage1.network import usermode

    process, problems = usermode.attach(plan, _namespace(source))
    _complain(problems)
    return process


def _tie(plan: NetworkPlan, path: str) -> bytes:
    from stage1.network import taps

    inside, problems = taps.tie(plan.networks, path)
    _complain(problems)
    return inside


def _travelling(answers: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    from common import addresses
    from stage1.network import results

    for _, result in answers:
        routed = results.default_routes(result)
        subnets = (addresses.subnet(entry["address"]) for entry in result["ips"])
        yield from (str(subnet) for subnet in subnets if str(subnet.version) in routed)


def _attach_one(plan: NetworkPlan, network: Network, path: str, done: Record) -> tuple[Record, dict[str, Any]]:
    import json

    from stage1.network import cni

    intent = Attachment(network.name, network.interface, network.conf, network.args, network.source)
    runtime = cni.runtime(plan, network)
    before = done._replace(attachments=(*done.attachments, intent._replace(runtime=json.dumps(runtime))))
    record.write(plan.directory, before)
    result, elements = cni.add(plan, network, path, runtime)
    attached = before.attachments[-1]._replace(result=json.dumps(result))
    after = before._replace(
        attachments=(*before.attachments[:-1], attached), elements=(*before.elements, *elements)
    )  # fmt: skip
    record.write(plan.directory, after)
    return after, result


def _publish(plan: NetworkPlan, answers: list[tuple[str, dict[str, Any]]], done: Record) -> Record:
    """What of the ports no plugin takes care of."""
    from stage1.network import cni, firewall, links, results

    if not plan.ports:
        return done
    name, who = cni.publisher(plan.networks)
    result = dict(answers)[name]
    if who == "engine":
        addresses = [entry["address"] for entry in result.get("ips", ())]
        elements = firewall.publication(plan.ports, addresses, routed=results.default_routes(result))
        done = done._replace(elements=(*done.elements, *elements))
        record.write(plan.directory, done)
    for interface in result.get("interfaces", ()):
        if not interface.get("sandbox"):
            links.open_loopback(interface["name"])
    return done
