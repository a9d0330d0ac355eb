"""Everything about the network of a pod that is about to run, decided: for flavours whose pods have networks of their
own (`NETWORKS`)."""

from __future__ import annotations

from aci.isolators import NETWORK_BANDWIDTH
from aci.pod_manifest import PodManifest
from aci.types import quantity
from common import users
from common.errors import UsageError
from stage0 import netflags
from stage0.config import Config
from stage0.netflags import HOST, JOIN, NETWORKS, NONE, Wanted
from stage0.notices import warn
from stage0.options import Values
from stage1.flavour import Flavour, PreparedPod
from stage1.network.plan import Names, Port


def has_networks(flavour: Flavour) -> bool:
    """Whether its pods have networks of their own; a flavour that does not say has none."""
    return getattr(flavour, "NETWORKS", False)


def asked(flags: Values) -> tuple[str, ...] | None:
    """The networks asked for by name, None when nobody asked. UsageError for what makes no sense."""
    if flags.get("net") is None:
        return None
    wanted = netflags.networks(flags.all("net"))
    if wanted.kind == NETWORKS:
        return (*((netflags.ALL,) if wanted.every else ()), *(name for name, _ in wanted.networks))
    return (f"{JOIN}:{wanted.path}" if wanted.kind == JOIN else wanted.kind,)


def settle(pod: PreparedPod, manifest: PodManifest, flags: Values, settings: Config) -> PreparedPod:
    """`pod` with its networks, ports and names. UsageError and NetworkError before anything is done."""
    wanted = netflags.networks(flags.all("net"))
    names = Names(pod.hostname, pod.name, tuple(app.name for app in pod.apps))
    pod = pod._replace(names=netflags.names(flags, names) if pod.name_options else names)
    if manifest.ports:
        pod = pod._replace(published=_ports(pod, manifest, wanted))
    pod = pod._replace(bandwidth=_bandwidth(pod, wanted))
    if wanted.kind in (NONE, HOST):
        return pod
    from stage0 import networks

    if wanted.kind == JOIN:
        networks.check_join(wanted.path)
        return pod._replace(join=wanted.path)
    if users.confined():
        from stage0 import usernet

        usernet.require_no_limit(pod.bandwidth)
        return pod._replace(networks=(usernet.network(wanted),))
    from stage0 import routes

    resolved = networks.resolve(wanted, settings.directories)
    for warning in resolved.warnings:
        warn(warning)
    path = networks.plugin_path(settings.directories, settings.cni_plugins)
    routes.check(resolved.networks, path)
    if pod.published:
        networks.require_publisher(resolved.networks)
    chosen = tuple(map(networks.limited, resolved.networks)) if pod.bandwidth else resolved.networks
    return pod._replace(networks=chosen, plugin_path=path)


def _ports(pod: PreparedPod, manifest: PodManifest, wanted: Wanted) -> tuple[Port, ...]:
    if wanted.kind != NETWORKS:
        shown = f"{JOIN}:{wanted.path}" if wanted.kind == JOIN else wanted.kind
        why = "apps listen on the host itself" if wanted.kind == HOST else "nothing leads to its pods from here"
        raise UsageError(f"--port cannot be combined with --net={shown}: {why}")
    from stage0 import ports

    return ports.resolve(manifest.ports, [(app.name, app.app) for app in pod.apps])


def check_ports(pod: PreparedPod, manifest: PodManifest) -> None:
    """UsageError for ports that could not be published when the pod runs."""
    if manifest.ports:
        _ports(pod, manifest, netflags.DEFAULT)


def _bandwidth(pod: PreparedPod, wanted: Wanted) -> int:
    """Bits per second; of a pod without networks 0, of which the flavour warns. The isolator (appC spec 0.8.11) counts
    bytes; the last with a limit wins."""
    values = [value for name, value in pod.isolators if name == NETWORK_BANDWIDTH and value.get("limit") is not None]
    return quantity(str(values[-1]["limit"])) * 8 if values and wanted.kind == NETWORKS else 0
