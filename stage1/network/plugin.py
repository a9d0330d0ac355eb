"""What a plugin is called with, and which are built in (CNI spec 1.0.0, section 2).

A built-in plugin is a module here with the functions of `Plugin`. Whatever a plugin does to the network must be visible
in its result, in `Call.elements` or in a claim (`state`) before it does it: `delete` may be called at any moment after.
"""

from __future__ import annotations

from typing import Any, Protocol

from common.records import NamedTuple
from stage1.network.record import Element

BUILTIN = {
    "ptp": "ptp", "bridge": "bridge", "macvlan": "macvlan", "ipvlan": "macvlan", "loopback": "loopback",
    "host-local": "leases", "portmap": "portmap", "bandwidth": "bandwidth", "tuning": "tuning",
}  # fmt: skip
"""Modules of this package by the plugin's type."""


class Call(NamedTuple):
    """One call of one plugin."""

    container: str
    """The pod's UUID."""
    netns: str
    """A path of the pod's network namespace that can be opened; empty when it is gone, for `delete` only."""
    interface: str
    """The interface in the pod that this is about."""
    args: dict[str, str]
    """CNI_ARGS."""
    conf: dict[str, Any]
    """The plugin's own part of the configuration with `name`, `cniVersion`, `runtimeConfig` and `prevResult`; the
    last in the form of CNI 1.0.0, as are the results of built-in plugins."""
    plugin_path: tuple[str, ...]
    """As in NetworkPlan."""
    system_plugin_path: tuple[str, ...]
    elements: list[Element]
    """A built-in plugin's `add` appends what the firewall is to have; it is applied once, after the last plugin, and
    withdrawn as one too."""
    about: str = ""
    """The pod, for people: its name or UUID."""


class Plugin(Protocol):
    """What such a module provides. Failures are NetworkError. `delete` must do without the netlink library
    (`netlink`): it is called where that is not there."""

    def add(self, call: Call) -> dict[str, Any]:
        """Do it; a result in the form of CNI 1.0.0, in a chain the previous one with what was added."""
        ...

    def delete(self, call: Call) -> None:
        """Undo it as far as it was done, as often as wanted, and whether the namespace is still there or not."""
        ...

    def check(self, call: Call) -> None:
        """NetworkError when what `prevResult` says is not there any more."""
        ...
