"""The network of a pod whose rkpy is not root: what pasta(1) is to make of it."""

from __future__ import annotations

import os

from common import users
from common.errors import NetworkError, UsageError
from stage0 import caller, routes
from stage0.netflags import Wanted
from stage0.networks import DEFAULT, unique_local
from stage1.network import pasta
from stage1.network.pasta import Decided
from stage1.network.plan import Network

_PREFIX = "172.16.29"
"""Not that of root's pods, whom one would otherwise not reach."""
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_TUN = "/dev/net/tun"
_HINT = "--net=host and --net=none do without"


def is_all_there_is() -> bool:
    """Whether pods have this network and no other."""
    return caller.is_ordinary() or users.confined()


def network(wanted: Wanted) -> Network:
    """The only one there is. UsageError for any other, NetworkError where there is no pasta."""
    for name, arguments in wanted.networks:
        if name != DEFAULT:
            raise UsageError(f'network "{name}" is for root to make', hint=f"there is {DEFAULT}; {_HINT}")
        if arguments:
            raise UsageError(f"--net={name}: {arguments[0][0]} is for networks that root makes", hint="leave it out")
    if wanted.every:
        raise UsageError("--net=all asks for networks that are for root to make", hint=f"there is {DEFAULT}")
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise NetworkError(f"the network of a pod needs {_TUN}, without root (the kernel's module tun)", hint=_HINT)
    return pasta.network(DEFAULT, _decided())


def require_no_limit(bandwidth: int) -> None:
    """NetworkError for a pod whose bandwidth is to be limited: a limit that nobody enforces is none."""
    if bandwidth:
        raise NetworkError(
            f'network "{DEFAULT}" cannot limit the bandwidth of a pod, without root',
            hint="leave out resource/network-bandwidth",
        )


def _decided() -> Decided:
    """The families that the host reaches others by. One that reaches nobody has addresses at least: what listens on it
    can be reached, and whoever turns up later."""
    found = routes.defaults()
    template = "" if found else routes.somewhere() or "lo"
    addresses, gateways = [], []
    if 4 in found or not found:
        addresses.append(f"{_PREFIX}.2/24")
        gateways.append(f"{_PREFIX}.1")
    if 6 in found:
        prefix = unique_local(pasta.TYPE).removesuffix("::/64")
        addresses.append(f"{prefix}::2/64")
        gateways.append(f"{prefix}::1")
    return Decided(_program(), tuple(addresses), tuple(gateways), template)


def _program() -> str:
    """Not by PATH alone: a service may have none, and who has one need not have /usr/sbin in it."""
    for directory in (*os.environ.get("PATH", "").split(":"), *_PATH.split(":")):
        path = f"{directory}/{pasta.TYPE}"
        if directory.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise NetworkError("the network of a pod needs pasta, without root (Debian: passt)", hint=_HINT)
