from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from stage0 import registries_conf
from stage0.docker_reference import parse
from stage0.registries_conf import Endpoint, Registries

A = "a" * 64


def load(tmp_path: Path, *texts: str) -> Registries:
    files = []
    for at, text in enumerate(texts):
        path = tmp_path / f"{at}.conf"
        path.write_text(text)
        files.append(str(path))
    return registries_conf.load(files)


def places(registries: Registries, text: str) -> list[str]:
    return [str(place) for place in registries.endpoints(parse(text))]


def test_without_configuration_the_registry_itself_is_asked_securely() -> None:
    assert Registries().endpoints(parse("quay.io/a/b:1")) == (Endpoint("quay.io", "a/b", False),)
    assert places(Registries(), "busybox") == ["registry-1.docker.io/library/busybox"]


def test_the_longest_prefix_wins(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        [[registry]]
        prefix = "example.com/foo"
        location = "internal.example.net/bar"
        insecure = true
        [[registry]]
        location = "example.com"
        """,
    )
    assert found.endpoints(parse("example.com/foo/image:1")) == (Endpoint("internal.example.net", "bar/image", True),)
    assert places(found, "example.com/food/image") == ["example.com/food/image"]
    assert places(found, "example.com:5000/foo/image") == ["example.com:5000/foo/image"]


def test_wildcards_mean_the_hosts_below(tmp_path: Path) -> None:
    found = load(tmp_path, '[[registry]]\nprefix = "*.example.com"\ninsecure = true\n')
    assert [found.endpoints(parse(f"{host}/a"))[0].insecure for host in ("x.example.com", "x.y.example.com:5000")] == [
        True,
        True,
    ]
    assert [found.endpoints(parse(f"{host}/a"))[0].insecure for host in ("example.com", "xexample.com")] == [
        False,
        False,
    ]


def test_mirrors_come_first(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        [[registry]]
        prefix = "docker.io"
        [[registry.mirror]]
        location = "all.example.com/hub"
        [[registry.mirror]]
        location = "digests.example.com"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example.com"
        pull-from-mirror = "tag-only"
        """,
    )
    hub = "registry-1.docker.io/library/app"
    assert places(found, "app:1") == ["all.example.com/hub/library/app", "tags.example.com/library/app", hub]
    digest = f"app@sha256:{A}"
    assert places(found, digest) == ["all.example.com/hub/library/app", "digests.example.com/library/app", hub]


def test_mirror_by_digest_only(tmp_path: Path) -> None:
    text = '[[registry]]\nlocation="quay.io"\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation="m.example.com"'
    found = load(tmp_path, text)
    assert places(found, "quay.io/a") == ["quay.io/a"]
    assert places(found, f"quay.io/a@sha256:{A}") == ["m.example.com/a", "quay.io/a"]


def test_blocked(tmp_path: Path) -> None:
    found = load(tmp_path, '[[registry]]\nlocation = "quay.io/bad"\nblocked = true\n')
    assert places(found, "quay.io/badge") == ["quay.io/badge"]
    with pytest.raises(ConfigError, match="blocked"):
        found.endpoints(parse("quay.io/bad/app"))


def test_later_files_replace_tables_and_lists(tmp_path: Path) -> None:
    first = 'unqualified-search-registries=["a.io"]\n[[registry]]\nlocation="q.io"\nblocked=true\n'
    first += '[aliases]\na="x.io/a"\nb="x.io/b"'
    second = 'unqualified-search-registries=["b.io"]\n[[registry]]\nlocation="q.io"\n[aliases]\nb=""\nc="x.io/c"'
    found = load(tmp_path, first, second)
    assert places(found, "q.io/a") == ["q.io/a"]
    assert found.search == ("b.io",)
    assert found.aliases == {"a": "x.io/a", "c": "x.io/c"}


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("a", ("x.io/y/a",)),
        ("a:1", ("x.io/y/a:1",)),
        (f"a:1@sha256:{A}", (f"x.io/y/a:1@sha256:{A}",)),
        (f"a@sha256:{A}", (f"x.io/y/a@sha256:{A}",)),
        ("b:1", ("s.io/b:1", "t.io/b:1")),
    ],
)
def test_short_names(tmp_path: Path, short: str, full: tuple[str, ...]) -> None:
    text = 'unqualified-search-registries = ["s.io", "t.io"]\n[aliases]\n"a" = "x.io/y/a"\n'
    assert load(tmp_path, text).candidates(short) == full


@pytest.mark.parametrize(
    "text",
    [
        "[[registry]\n",
        "[[registry]]\ninsecure = true\n",
        '[[registry]]\nlocation = "https://quay.io"\n',
        '[[registry]]\nlocation = "quay.io"\ninsecure = "yes"\n',
        '[[registry]]\nlocation = "quay.io"\n[[registry]]\nprefix = "quay.io"\n',
        '[[registry]]\nlocation = "*.quay.io"\n',
        '[[registry]]\nprefix = "*.quay.io/a"\n',
        '[[registry]]\nlocation = "quay.io"\n[[registry.mirror]]\ninsecure = true\n',
        '[[registry]]\nlocation = "q.io"\n[[registry.mirror]]\nlocation = "m.io"\npull-from-mirror = "some"\n',
        '[registries.search]\nregistries = ["quay.io"]\n',
        'unqualified-search-registries = "quay.io"\n',
        "[aliases]\na = 1\n",
        'registry = "quay.io"\n',
    ],
)
def test_what_makes_no_sense_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.conf"):
        load(tmp_path, text)


def test_where_files_are_looked_for(tmp_path: Path) -> None:
    own = tmp_path / ".config/containers"
    (own / "registries.conf.d").mkdir(parents=True)
    (own / "registries.conf").touch()
    (own / "registries.conf.d/1.conf").touch()
    (own / "registries.conf.d/README").touch()
    named = tmp_path / "named.conf"
    named.touch()
    found = registries_conf.paths({"HOME": str(tmp_path)})
    assert (found[0], found[-1]) == (f"{own}/registries.conf", f"{own}/registries.conf.d/1.conf")
    assert registries_conf.paths({"HOME": str(tmp_path), "CONTAINERS_REGISTRIES_CONF": str(named)})[0] == str(named)
