"""The pod's /etc/resolv.conf (resolv.conf(5)).

What the user says wins over what the networks say, and that over the image's own file; the host's name servers are for
images that have none. So there are two files: `etc/resolv.conf` stands in for the image's, and
`etc/resolv.conf.default` is used where there is none.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, inet_pton
from collections.abc import Iterable
from typing import Any

from common import files
from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1 import poddir
from stage1.network.plan import Names

HOST = "/etc/resolv.conf"
BEHIND_STUB = "/run/systemd/resolve/resolv.conf"
"""What systemd-resolved asks itself where HOST names it alone (systemd-resolved.service(8), "/etc/resolv.conf")."""
DEFAULT = "resolv.conf.default"
_USED = 3
"""MAXNS of resolv.conf(5)."""


class _Settings(NamedTuple):
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""

    def text(self) -> str:
        lines = [f"nameserver {server}" for server in self.servers]
        # The last of the two is what counts for searching.
        if self.domain:
            lines.append(f"domain {self.domain}")
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return "".join(f"{line}\n" for line in lines)


def write(
    directory: str,
    names: Names,
    results: Iterable[dict[str, Any]],
    *,
    connected: bool,
    hidden: tuple[str, ...] = (),
) -> list[str]:
    """Write what the pod is to have; warnings. `connected`: whether it has any network, by which it could ask the
    host's servers; `hidden`: where those on the host's loopback answer to it. NetworkError when that cannot be
    written."""
    if names.dns == ("none",):
        return []
    try:
        os.makedirs(os.path.dirname(poddir.etc(directory, "hosts")), exist_ok=True)
        if names.dns == ("host",):
            with open(HOST, "rb") as file:
                files.replace(poddir.etc(directory, "resolv.conf"), file.read(), exact=True)
            return []
        return _write(directory, names, results, connected, hidden)
    except OSError as error:
        raise NetworkError(f"write resolv.conf: {error.filename or directory}: {reason(error)}") from error


def _write(
    directory: str, names: Names, results: Iterable[dict[str, Any]], connected: bool, hidden: tuple[str, ...]
) -> list[str]:
    said = _of_user(names)
    told, warnings = _of_networks(results)
    host = _Settings() if said.servers or told.servers or not connected else _of_host(hidden)
    # Each thing from the first who says anything of it.
    searching = next((each for each in (said, told, host) if each.search or each.domain), host)
    chosen = _Settings(
        said.servers or told.servers or host.servers,
        searching.search,
        said.options or told.options or host.options,
        searching.domain,
    )
    if not chosen.servers and connected:
        hint = "name one with --dns=ADDRESS"
        return [*warnings, f"the pod has no name server: the host has none that is not on its own loopback ({hint})"]
    if len(chosen.servers) > _USED:
        warnings.append(f"programs use the first {_USED} of {len(chosen.servers)} name servers only")
    if any(said) or any(told):
        files.replace(poddir.etc(directory, "resolv.conf"), chosen.text().encode(), exact=True)
    elif connected:
        files.replace(poddir.etc(directory, DEFAULT), chosen.text().encode(), exact=True)
    return warnings


def _of_user(names: Names) -> _Settings:
    said = _Settings(names.dns, names.search, names.options, names.domain)
    for word in (*names.search, *names.options, *filter(None, (names.domain,))):
        if not _is_word(word):
            raise NetworkError(f'"{word}" cannot be in a resolv.conf')
    for server in names.dns:
        if not _is_address(server):
            raise NetworkError(f'"{server}" is not the address of a name server')
    return said


def _of_networks(results: Iterable[dict[str, Any]]) -> tuple[_Settings, list[str]]:
    """What CNI results say (CNI spec 1.0.0, section 5, `dns`), all networks together, and what is wrong with it."""
    servers, search, options, domain = dict[str, None](), dict[str, None](), dict[str, None](), ""
    warnings = []
    for result in results:
        dns = result.get("dns")
        if not isinstance(dns, dict):
            continue
        for server in _words(dns.get("nameservers")):
            if _is_address(server):
                servers[server] = None
            else:
                warnings.append(f'a network says "{server!a:.60}" is a name server, which is not an address')
        search.update(dict.fromkeys(filter(_is_word, _words(dns.get("search")))))
        options.update(dict.fromkeys(filter(_is_word, _words(dns.get("options")))))
        domain = domain or next(filter(_is_word, _words([dns.get("domain")])), "")
    return _Settings(tuple(servers), tuple(search), tuple(options), domain), warnings


def _words(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _of_host(hidden: tuple[str, ...]) -> _Settings:
    found = _parse(HOST)
    if not found.servers:
        behind = _parse(BEHIND_STUB)
        if hidden:  # The others are for when nobody answers there, or by UDP alone.
            return found._replace(servers=(*hidden, *behind.servers))
        found = behind if behind.servers else found
    return found


def is_hidden(gateway: str) -> bool:
    """Whether all name servers of the host are on its loopback, one of the family of this address among them."""
    if _parse(HOST).servers:
        return False
    servers = [values[0] for keyword, *values in _lines(HOST) if keyword == "nameserver" and values]
    return any(_is_address(server) and (":" in server) == (":" in gateway) for server in servers)


def _parse(path: str) -> _Settings:
    """A file of the host's, without servers that a pod cannot get at. Missing is empty."""
    servers, search, options, domain = list[str](), tuple[str, ...](), list[str](), ""
    for keyword, *values in _lines(path):
        if keyword == "nameserver" and values and _is_address(values[0]) and not _is_of_the_host(values[0]):
            servers.append(values[0])
        elif keyword == "search":
            search = tuple(filter(_is_word, values))
        elif keyword == "domain" and values and _is_word(values[0]):
            search, domain = (), values[0]
        elif keyword == "options":
            options += filter(_is_word, values)
    return _Settings(tuple(dict.fromkeys(servers)), search, tuple(options), domain)


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.split() for line in file if line.strip() and line[0] not in "#;"]
    except FileNotFoundError:
        return []


def _is_of_the_host(server: str) -> bool:
    """Loopback, or the unspecified address, which means the same to the resolver."""
    packed = inet_pton(AF_INET6 if ":" in server else AF_INET, server)
    if len(packed) == 16 and packed[:12] == bytes(10) + b"\xff\xff":
        packed = packed[12:]
    return packed[0] == 127 or packed == bytes(4) if len(packed) == 4 else packed[:15] == bytes(15) and packed[15] < 2


def _is_address(text: str) -> bool:
    try:
        inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def _is_word(text: str) -> bool:
    """One word, without anything that would end the line or begin a comment."""
    return bool(text) and text.isascii() and text.isprintable() and not set(text) & set(" #;")
