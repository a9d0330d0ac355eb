from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0.docker_reference import DockerReference, is_short, parse

A = "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("busybox", "docker.io", "library/busybox", "latest", ""),
        ("docker://busybox", "docker.io", "library/busybox", "latest", ""),
        ("docker:busybox:1.36", "docker.io", "library/busybox", "1.36", ""),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest", ""),
        ("index.docker.io/team/app", "docker.io", "team/app", "latest", ""),
        ("registry-1.docker.io/library/busybox", "docker.io", "library/busybox", "latest", ""),
        ("team/app:v1", "docker.io", "team/app", "v1", ""),
        ("localhost/app", "localhost", "app", "latest", ""),
        ("localhost:5000/app", "localhost:5000", "app", "latest", ""),
        ("quay.io/a/b/c__d/e-f.g:T_1.x", "quay.io", "a/b/c__d/e-f.g", "T_1.x", ""),
        ("HOST/app", "HOST", "app", "latest", ""),
        ("[::1]:5000/app:1", "[::1]:5000", "app", "1", ""),
        (f"quay.io/app@sha256:{A}", "quay.io", "app", "", f"sha256:{A}"),
        (f"quay.io/app:1@sha256:{A}", "quay.io", "app", "1", f"sha256:{A}"),
        (f"quay.io/app@sha512:{A}{A}", "quay.io", "app", "", f"sha512:{A}{A}"),
    ],
)
def test_names(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    assert parse(text) == DockerReference(registry, repository, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "", "docker://", "/", "app:", "App", "team/App", "a//b", "a/", "quay.io/", "quay.io/a..b", "a___b", "-a", "a-",
        "app:" + "x" * 129, "app:.x", "app@", "app@sha256:abc", f"app@sha256:{A.upper()}", f"app@md5:{A[:32]}",
        "quay.io:port/app", "quay.io:123456/app", "-host.io/app", "host_x.io/app", "a b", "app:1\n", "quay.io/../app",
        "quay.io/app?x", "user@quay.io/app", "quay.io/" + "a" * 250, "http://quay.io/app", "ä/app",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize(("text", "short"), [("app", True), ("team/app:1", True), ("quay.io/app", False)])
def test_short_names(text: str, short: bool) -> None:
    assert is_short(text) is short


def test_what_is_asked_for() -> None:
    assert parse("quay.io/app:1").wanted == "1"
    assert parse(f"quay.io/app:1@sha256:{A}").wanted == f"sha256:{A}"


@given(st.text(alphabet="aB0.:/@-_[] ", max_size=30))
def test_what_was_understood_is_written_as_the_same_name(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(str(reference)) == reference
