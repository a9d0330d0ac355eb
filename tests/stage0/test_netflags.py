"""--net, --dns… and --hosts-entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0 import netflags
from stage0.netflags import NETWORKS, RESERVED, Wanted
from stage0.options import RUNTIME, Values, table
from stage1.network.plan import Names


def runtime_flags(*given: tuple[str, str]) -> Values:
    flags, known = Values(), table(RUNTIME)
    for name, value in given:
        flags.add(known[name], value)
    return flags


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], Wanted(NETWORKS, networks=(("default", ()),))),
        (["default"], Wanted(NETWORKS, networks=(("default", ()),))),
        (["none"], Wanted("none")),
        (["host"], Wanted("host")),
        (["all"], Wanted(NETWORKS, every=True)),
        (["all,a:IP=10.0.0.9"], Wanted(NETWORKS, every=True, networks=(("a", (("IP", "10.0.0.9"),)),))),
        (["b,a"], Wanted(NETWORKS, networks=(("b", ()), ("a", ())))),
        (["b", "a"], Wanted(NETWORKS, networks=(("b", ()), ("a", ())))),
        (["a:K=V;K2=V2,b"], Wanted(NETWORKS, networks=(("a", (("K", "V"), ("K2", "V2"))), ("b", ())))),
        (["a:IP=fd00::9"], Wanted(NETWORKS, networks=(("a", (("IP", "fd00::9"),)),))),
        (
            ["a:IP=10.0.0.9,fd00::9;X=,b"],
            Wanted(NETWORKS, networks=(("a", (("IP", "10.0.0.9,fd00::9"), ("X", ""))), ("b", ()))),
        ),
        (["a:IP=10.0.0.9/24,fd00::9/64"], Wanted(NETWORKS, networks=(("a", (("IP", "10.0.0.9/24,fd00::9/64"),)),))),
        (["a:K=V=W"], Wanted(NETWORKS, networks=(("a", (("K", "V=W"),)),))),
        (["ns:/run/netns/x"], Wanted("ns", path="/run/netns/x")),
        (["ns:/a,b:c"], Wanted("ns", path="/a,b:c")),
    ],
)  # fmt: skip
def test_networks(texts: list[str], expected: Wanted) -> None:
    assert netflags.networks(texts) == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], 'cannot be the name of a network'),
        (["a,,b"], 'cannot be the name of a network'),
        (["a,"], 'cannot be the name of a network'),
        (["a/b"], 'cannot be the name of a network'),
        ([".a"], 'cannot be the name of a network'),
        (["a" * 129], 'cannot be the name of a network'),
        (["a\n"], 'cannot be the name of a network'),
        (["a,a"], 'network "a" is asked for twice'),
        (["a", "b,a:K=V"], 'network "a" is asked for twice'),
        (["all,all"], "asked for twice"),
        (["none,a"], "none stands alone"),
        (["a", "host"], "host stands alone"),
        (["none", "host"], "none stands alone"),
        (["all,none"], "none stands alone"),
        (["a,ns:/x"], "ns:PATH stands alone"),
        (["ns:/x", "a"], "ns:PATH stands alone"),
        (["ns"], "ns:PATH stands alone"),
        (["ns:x"], "the absolute path of a network namespace"),
        (["ns:"], "the absolute path of a network namespace"),
        (["none:K=V"], "none takes no arguments"),
        (["all:K=V"], "all takes no arguments"),
        (["a:"], "KEY=VALUE"),
        (["a:K"], "KEY=VALUE"),
        (["a:=V"], "KEY=VALUE"),
        (["a:K=V;"], "KEY=VALUE"),
        (["a:K=V\nX=Y"], "KEY=VALUE"),
        (["a:K=V;K=W"], "K is given twice"),
    ],
)  # fmt: skip
def test_bad_networks(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        netflags.networks(texts)


_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True).filter(lambda name: name not in RESERVED)
_ARGUMENTS = st.dictionaries(
    st.from_regex(r"[A-Z0-9_]{1,8}", fullmatch=True), st.from_regex(r"[a-z0-9.:/=]{0,12}", fullmatch=True), max_size=3
)


@given(st.dictionaries(_NAMES, _ARGUMENTS, min_size=1, max_size=4), st.booleans())
def test_networks_are_what_was_typed(wanted: dict[str, dict[str, str]], every: bool) -> None:
    items = [
        name + (":" + ";".join(f"{key}={value}" for key, value in pairs.items()) if pairs else "")
        for name, pairs in wanted.items()
    ]
    # A name that is an address too, behind arguments, belongs to them.
    if any(netflags._is_address(item) for item in items):
        return
    expected = tuple((name, tuple(pairs.items())) for name, pairs in wanted.items())
    for texts in ([",".join(["all", *items] if every else items)], ["all", *items] if every else items):
        assert netflags.networks(texts) == Wanted(NETWORKS, every=every, networks=expected)


@given(st.lists(st.text(alphabet="abns:;=,/.1-_ \n", max_size=12), min_size=1, max_size=3))
def test_no_text_ends_in_anything_but_networks_or_our_error(texts: list[str]) -> None:
    try:
        wanted = netflags.networks(texts)
    except UsageError:
        return
    assert all(netflags.is_name(name) for name, _ in wanted.networks)


BASE = Names("box", "web", ("app",))


def test_names_without_flags() -> None:
    assert netflags.names(runtime_flags(), BASE) == BASE


def test_names() -> None:
    flags = runtime_flags(
        ("dns", "10.0.0.1,FD00::0:1"), ("dns", "10.0.0.1"), ("dns-search", "example.com,a.b"), ("dns-search", "."),
        ("dns-opt", "ndots:5"), ("dns-opt", "rotate"), ("dns-domain", "example.com"),
        ("hosts-entry", "10.0.0.1=a,10.0.0.1=b.c"), ("hosts-entry", "::1=d"),
    )  # fmt: skip
    assert netflags.names(flags, BASE) == BASE._replace(
        dns=("10.0.0.1", "fd00::1"),
        search=("example.com", "a.b", "."),
        options=("ndots:5", "rotate"),
        domain="example.com",
        hosts=(("10.0.0.1", "a"), ("10.0.0.1", "b.c"), ("::1", "d")),
    )


@pytest.mark.parametrize("word", ["host", "none"])
def test_host_and_none_stand_alone(word: str) -> None:
    assert netflags.names(runtime_flags(("dns", word)), BASE).dns == (word,)
    for other in (("dns", "1.1.1.1"), ("dns-search", "a.b"), ("dns-opt", "rotate"), ("dns-domain", "a.b")):
        with pytest.raises(UsageError, match=f"--dns={word}"):
            netflags.names(runtime_flags(("dns", word), other), BASE)


def test_the_hosts_file_of_the_host_stands_alone() -> None:
    assert netflags.names(runtime_flags(("hosts-entry", "host")), BASE).hosts == (("host", ""),)
    with pytest.raises(UsageError, match="excludes every other"):
        netflags.names(runtime_flags(("hosts-entry", "host,::1=a")), BASE)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dns", ""), ("dns", "example.com"), ("dns", "1.2.3"), ("dns", "1.1.1.1,"), ("dns", "1.1.1.1\noptions x"),
        ("dns", "fe80::1%eth0"), ("dns", "127.0.0.1\0"), ("dns", "host,none"), ("dns-search", "a b"),
        ("dns-search", "-a"), ("dns-search", "a\nnameserver 1.1.1.1"), ("dns-search", "a" * 64), ("dns-search", "a..b"),
        ("dns-search", ".".join(["abcdefghi"] * 26)), ("dns-opt", "a b"), ("dns-opt", ""), ("dns-opt", "a\n"),
        ("dns-domain", "a b"), ("dns-domain", "a\n"), ("hosts-entry", "1.1.1.1"), ("hosts-entry", "x=a"),
        ("hosts-entry", "1.1.1.1="), ("hosts-entry", "1.1.1.1=a b"), ("hosts-entry", "1.1.1.1=a\n"),
        ("hosts-entry", ""),
    ],
)  # fmt: skip
def test_bad_names(flag: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{flag}"):
        netflags.names(runtime_flags((flag, value)), BASE)
