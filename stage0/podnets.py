"""What a pod's record says of its networks (`stage1.network.record`), for `list`, `status` and `net`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from common import addresses
from common.errors import RkpyError
from common.records import NamedTuple
from stage1.network import record as records
from stage1.network.plugin import BUILTIN
from stage1.network.record import Attachment, Record


class NetworkInfo(NamedTuple):
    """One network a pod is or was attached to."""

    name: str
    interface: str
    source: str
    """The file it is defined in; empty when it is built in."""
    plugin: str
    """The program that does it; empty when it is built in."""
    args: str
    addresses: tuple[str, ...] = ()
    """In CIDR notation."""


def read(directory: str) -> tuple[NetworkInfo, ...]:
    """Those of the pod in `directory`. What cannot be made sense of is left out."""
    try:
        record = records.read(directory)
    except RkpyError:
        return ()
    return () if record is None else tuple(_info(record, attachment) for attachment in record.attachments)


def _info(record: Record, attachment: Attachment) -> NetworkInfo:
    return NetworkInfo(
        name=str(attachment.network),
        interface=str(attachment.interface),
        source=str(attachment.source),
        plugin=_program(record, attachment),
        args=";".join(f"{key}={value}" for key, value in _pairs(attachment.args)),
        addresses=_addresses(attachment.result),
    )


def _pairs(args: Any) -> list[tuple[str, str]]:
    try:
        return [(key, value) for key, value in args]
    except (TypeError, ValueError):
        return []


def _program(record: Record, attachment: Attachment) -> str:
    try:
        kind = json.loads(attachment.conf)["plugins"][0]["type"]
        places = record.plugin_path if kind in BUILTIN else (*record.plugin_path, *record.system_plugin_path)
        return next((path for path in (f"{place}/{kind}" for place in places) if os.path.isfile(path)), "")
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return ""


def _addresses(result: Any) -> tuple[str, ...]:
    """Of a result (CNI spec 1.0.0, section 5): those of the pod, not of interfaces of the host."""
    try:
        document = json.loads(result or "{}")
        interfaces = document.get("interfaces") or []
        texts = [ip["address"] for ip in document.get("ips") or () if _is_in_the_pod(ip, interfaces)]
        return tuple(text for text in texts if addresses.subnet(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def _is_in_the_pod(ip: dict[str, Any], interfaces: list[dict[str, Any]]) -> bool:
    index = ip.get("interface")
    return not isinstance(index, int) or not 0 <= index < len(interfaces) or bool(interfaces[index].get("sandbox"))


def describe(networks: Iterable[NetworkInfo]) -> str:
    """`NAME:ip4=ADDRESS,ip6=ADDRESS`, the first of each family, networks with commas between them as rkt has it."""
    return ",".join(_describe(network) for network in networks)


def _describe(network: NetworkInfo) -> str:
    first: dict[int, str] = {}
    for text in network.addresses:
        address = text.partition("/")[0]
        first.setdefault(addresses.version(address), f"ip{addresses.version(address)}={address}")
    return f"{network.name}:{','.join(first[kind] for kind in sorted(first))}" if first else network.name


def to_json(network: NetworkInfo) -> dict[str, Any]:
    """rkt's NetInfo, with all addresses as `ips` besides the one that rkt knew."""
    texts = sorted(network.addresses, key=addresses.version)
    address, _, length = texts[0].partition("/") if texts else ("", "", "")
    return {
        "netName": network.name,
        "netConf": network.source,
        "pluginPath": network.plugin,
        "ifName": network.interface,
        "ip": address,
        "args": network.args,
        "mask": _mask(address, int(length)) if texts else "",
        "ips": texts,
    }


def _mask(address: str, length: int) -> str:
    kind = addresses.version(address)
    bits = 128 if kind == 6 else 32
    return addresses.to_text(kind, ((1 << length) - 1) << (bits - length))
