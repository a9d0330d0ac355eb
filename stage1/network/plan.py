"""What a pod's networking is to be, decided by stage0; travels to the worker as part of a plan (`stage1.plan`)."""

from __future__ import annotations

from common.records import NamedTuple


class Port(NamedTuple):
    """`span` consecutive ports of the pod that are published on the host."""

    name: str
    protocol: str
    """tcp or udp."""
    host_ip: str
    """Canonical IPv4 or IPv6 address of the host; empty for all there are, of both families."""
    host_port: int
    pod_port: int
    span: int = 1


class Network(NamedTuple):
    """One network the pod is to be attached to."""

    name: str
    interface: str
    """Its name in the pod: eth0, eth1, … in the order asked for."""
    conf: str
    """The configuration list (CNI spec 1.0.0, section 1) as JSON; single configurations were made lists of one."""
    args: tuple[tuple[str, str], ...] = ()
    """Typed behind the network's name: CNI_ARGS."""
    source: str = ""
    """The file the configuration came from; empty for one that is built in."""


class Names(NamedTuple):
    """What the pod's files about names are to say besides what its networks bring."""

    hostname: str
    pod_name: str = ""
    apps: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    """Addresses of name servers; ("host",) for the host's resolv.conf as it is, ("none",) to leave the image's."""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""
    hosts: tuple[tuple[str, str], ...] = ()
    """(address, name) pairs for /etc/hosts; (("host", ""),) for the host's file as it is."""


class NetworkPlan(NamedTuple):
    """Everything the worker needs to know of a pod."""

    uuid: str
    directory: str
    """The pod's."""
    networks: tuple[Network, ...]
    names: Names
    ports: tuple[Port, ...] = ()
    bandwidth: int = 0
    """Bits per second in either direction (isolator resource/network-bandwidth); 0 for no limit."""
    plugin_path: tuple[str, ...] = ()
    """Directories with plugins that stand in for the built-in ones of the same name."""
    system_plugin_path: tuple[str, ...] = ("/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin")
    """Directories with plugins of every other name."""
    taps: bool = False
    """The pod is a virtual machine: its namespace has a tapN for every ethN there is to be (`stage1.vm.tap`)."""
