"""What `--net`, `--dns…` and `--hosts-entry` say, checked and nothing looked up. All raise UsageError."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from common.addresses import canonical
from common.errors import UsageError
from common.records import NamedTuple
from stage0.options import Values
from stage1.network.plan import Names

NONE, HOST, ALL, JOIN, NETWORKS = "none", "host", "all", "ns", "networks"
RESERVED = (NONE, HOST, ALL, JOIN)
"""Words that no network can be called by."""
LONGEST_NAME = 128
"""Names of files are made of it."""

_ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_LONGEST_DOMAIN, _LONGEST_LABEL = 253, 63

Arguments = tuple[tuple[str, str], ...]


class Wanted(NamedTuple):
    """What `--net` asks for."""

    kind: str
    """NONE, HOST, JOIN or NETWORKS."""
    path: str = ""
    """Of JOIN: a network namespace."""
    every: bool = False
    """Of NETWORKS: `all` is among them."""
    networks: tuple[tuple[str, Arguments], ...] = ()
    """Names in the order asked for, each with its arguments."""


def is_name(text: str) -> bool:
    """Whether a network can be called that (CNI spec 1.0.0, section 1)."""
    return 0 < len(text) <= LONGEST_NAME and text[0] in _ALNUM and not text.strip(_ALNUM + "_.-")


DEFAULT = Wanted(NETWORKS, networks=(("default", ()),))


def networks(texts: Iterable[str]) -> Wanted:
    """`none`, `host`, `ns:PATH`, or names with commas between them, each `NAME[:K=V[;K=V]…]`, `all` among them or not.
    A flag that is repeated adds to what came before."""
    texts = tuple(texts)
    if not texts:
        return DEFAULT
    if any(text.startswith(f"{JOIN}:") for text in texts):
        return _join(texts)
    found: dict[str, Arguments] = {}
    for text in texts:
        for name, arguments in _items(text):
            if name in found:
                raise UsageError(f'--net={text}: network "{name}" is asked for twice')
            found[name] = arguments
    alone = [name for name in found if name in (NONE, HOST)]
    if alone and len(found) > 1:
        raise UsageError(f"--net={','.join(texts)}: {alone[0]} stands alone")
    if alone:
        return Wanted(alone[0])
    every = found.pop(ALL, None) is not None
    return Wanted(NETWORKS, every=every, networks=tuple(found.items()))


def _join(texts: tuple[str, ...]) -> Wanted:
    path = texts[0].removeprefix(f"{JOIN}:")
    if len(texts) > 1:
        raise UsageError(f"--net={','.join(texts)}: {JOIN}:PATH stands alone")
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"--net={texts[0]}: it takes the absolute path of a network namespace", hint="ns:/run/netns/x")
    return Wanted(JOIN, path=path)


def _items(text: str) -> Iterator[tuple[str, Arguments]]:
    for item in _split(text):
        name, colon, rest = item.partition(":")
        if not is_name(name):
            raise UsageError(f'--net={text}: "{name}" cannot be the name of a network')
        if name == JOIN:
            raise UsageError(f"--net={text}: {JOIN}:PATH stands alone")
        if colon and name in RESERVED:
            raise UsageError(f"--net={text}: {name} takes no arguments")
        yield name, _arguments(text, rest) if colon else ()


def _split(text: str) -> list[str]:
    """At the commas, but for those in a list of addresses: `net:IP=10.1.0.9,fd00::9`."""
    items: list[str] = []
    for piece in text.split(","):
        if items and "=" in items[-1] and _is_address(piece):
            items[-1] += f",{piece}"
        else:
            items.append(piece)
    return items


def _is_address(text: str) -> bool:
    address, _, length = text.partition(";")[0].partition("/")
    try:
        canonical(address)
    except ValueError:
        return False
    return not length or length.isdigit()


def _arguments(text: str, rest: str) -> Arguments:
    found: dict[str, str] = {}
    for pair in rest.split(";"):
        key, equals, value = pair.partition("=")
        if not equals or not key or key.strip(_ALNUM + "_") or not value.isprintable():
            raise UsageError(f'--net={text}: "{pair}" is not of the form KEY=VALUE', hint="NAME:K=V;K2=V2")
        if key in found:
            raise UsageError(f"--net={text}: {key} is given twice")
        found[key] = value
    return tuple(found.items())


def names(flags: Values, base: Names) -> Names:
    """`base` with what the flags say about name servers and /etc/hosts."""
    servers = _servers(flags)
    search = _each(flags, "dns-search", lambda word: word == "." or _is_domain(word), "a domain")
    options = _each(flags, "dns-opt", _is_option, "an option of resolv.conf(5)")
    domain = flags.get("dns-domain") or ""
    if domain and not _is_domain(domain):
        raise UsageError(f"--dns-domain={domain}: it is not a domain")
    if servers in ((HOST,), (NONE,)) and (search or options or domain):
        raise UsageError(f"--dns={servers[0]} leaves no place for --dns-search, --dns-opt and --dns-domain")
    return base._replace(dns=servers, search=search, options=options, domain=domain, hosts=_hosts(flags))


def _servers(flags: Values) -> tuple[str, ...]:
    found = _words(flags, "dns")
    for word in (HOST, NONE):
        if word in found:
            if len(found) > 1:
                raise UsageError(f"--dns={word} excludes every other --dns")
            return (word,)
    return tuple(dict.fromkeys(_address("dns", word) for word in found))


def _words(flags: Values, flag: str) -> list[str]:
    return [word for text in flags.all(flag) for word in text.split(",")]


def _each(flags: Values, flag: str, passes: Callable[[str], bool], what: str) -> tuple[str, ...]:
    found = _words(flags, flag)
    for word in found:
        if not passes(word):
            raise UsageError(f'--{flag}: "{word}" is not {what}')
    return tuple(dict.fromkeys(found))


def _is_domain(text: str) -> bool:
    return len(text) <= _LONGEST_DOMAIN and all(map(_is_label, text.removesuffix(".").split(".")))


def _is_label(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_LABEL and not text.strip(_ALNUM + "_-") and "-" not in (text[0], text[-1])


def _is_option(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_DOMAIN and text.isascii() and text.isprintable() and " " not in text


def _hosts(flags: Values) -> tuple[tuple[str, str], ...]:
    found = _words(flags, "hosts-entry")
    if HOST in found:
        if len(found) > 1:
            raise UsageError("--hosts-entry=host excludes every other --hosts-entry")
        return ((HOST, ""),)
    return tuple(dict.fromkeys(map(_entry, found)))


def _entry(text: str) -> tuple[str, str]:
    address, equals, name = text.partition("=")
    if not equals or not _is_domain(name):
        raise UsageError(f'--hosts-entry: "{text}" is not of the form IP=HOST')
    return _address("hosts-entry", address), name


def _address(flag: str, text: str) -> str:
    try:
        return canonical(text)
    except ValueError as error:
        raise UsageError(f"--{flag}: {error}") from None
