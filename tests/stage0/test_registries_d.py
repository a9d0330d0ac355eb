"""registries.d, as containers-registries.d(5) has it."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from stage0 import caller, docker_reference, registries_d
from stage0.config import Config

MANUAL = """
docker:
    registry.example.com:
        lookaside: https://registry-lookaside.example.com
    registry.example.com/mydepartment:
        lookaside: https://lookaside.mydepartment.example.com
        lookaside-staging: file:///mnt/mydepartment/lookaside-staging
    registry.example.com/mydepartment/myproject:mybranch:
        lookaside: http://localhost:4242/lookaside
        lookaside-staging: file:///home/useraccount/webroot/lookaside
    registry.example.com/mydepartment/none: {}
    old.example.com:
        sigstore: https://old.example.com/sigstore
default-docker:
    lookaside: file:///srv/signatures
"""


class Case:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def write(self, text: str, name: str = "a.yaml", place: str = "one") -> str:
        os.makedirs(f"{self.directory}/{place}", exist_ok=True)
        with open(f"{self.directory}/{place}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
        return f"{self.directory}/{place}/{name}"

    def lookaside(self, reference: str, *places: str) -> tuple[str, ...]:
        directories = tuple(f"{self.directory}/{place}" for place in places or ("one",))
        return registries_d.lookaside(docker_reference.parse(reference), directories)


@pytest.fixture
def case(tmp_path: os.PathLike[str]) -> Case:
    return Case(os.fspath(tmp_path))


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("registry.example.com/app", "https://registry-lookaside.example.com"),
        ("registry.example.com/mydepartment/app:1", "https://lookaside.mydepartment.example.com"),
        ("registry.example.com/mydepartmental/app:1", "https://registry-lookaside.example.com"),
        ("registry.example.com/mydepartment/myproject:mybranch", "http://localhost:4242/lookaside"),
        ("registry.example.com/mydepartment/myproject:other", "https://lookaside.mydepartment.example.com"),
        ("registry.example.com:5000/app", "file:///srv/signatures"),
        ("old.example.com/app", "https://old.example.com/sigstore"),
        ("busybox", "file:///srv/signatures"),
    ],
)
def test_the_most_specific_section_counts(case: Case, reference: str, url: str) -> None:
    case.write(MANUAL)
    assert case.lookaside(reference) == (url,)


def test_a_section_that_names_no_store(case: Case) -> None:
    case.write(MANUAL)
    assert case.lookaside("registry.example.com/mydepartment/none") == ()


def test_without_configuration_the_store_of_podman(case: Case) -> None:
    case.write("docker: {other.example.com: {lookaside: 'https://x.example.com'}}")
    assert case.lookaside("busybox") == (registries_d.built_in(),)
    assert case.lookaside("busybox", "missing") == (registries_d.built_in(),)
    assert registries_d.built_in().startswith("file:///")


@pytest.mark.parametrize(
    ("uid", "store"), [(0, "/var/lib/containers/sigstore"), (1000, "/home/me/.local/share/containers/sigstore")]
)
def test_the_store_is_that_of_who_called(monkeypatch: pytest.MonkeyPatch, uid: int, store: str) -> None:
    """Who may since have become root of a user namespace."""
    monkeypatch.setattr(caller, "UID", uid)
    monkeypatch.setenv("HOME", "/home/me")
    assert registries_d.built_in() == f"file://{store}"


def test_several_directories(case: Case) -> None:
    case.write("default-docker: {lookaside: 'https://one.example.com'}")
    case.write("default-docker: {lookaside: 'https://two.example.com'}", place="two")
    case.write("default-docker: {lookaside: 'https://one.example.com'}", place="three")
    assert case.lookaside("busybox", "one", "two", "three") == ("https://one.example.com", "https://two.example.com")


def test_only_yaml_files_are_read(case: Case) -> None:
    case.write("{{{{", name="README")
    case.write("default-docker: {lookaside: 'https://one.example.com'}")
    assert case.lookaside("busybox") == ("https://one.example.com",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable YAML document"),
        ("\x00", "not a readable YAML document"),
        ("[a]", "the file has to be a mapping"),
        ("dockr: {}", "dockr is not known there"),
        ("docker: []", "docker has to be a mapping"),
        ("docker: {a.example.com: []}", "docker: a.example.com has to be a mapping"),
        ("docker: {a.example.com: {lookaside: 1}}", "lookaside has to be a URL"),
        ("docker: {1: {}}", "1 is not the name of a registry"),
        ("docker: {a.example.com: {}, a.example.com: {}}", "a.example.com is there twice"),
        ("default-docker: {}\ndefault-docker: {}", "default-docker is there twice"),
        ("docker: !!python/object/apply:os.system ['true']", "not a readable YAML document"),
        ("? [a]\n: b", "not a readable YAML document|is not known there"),
        ("- &a [*a]", "the file has to be a mapping"),
    ],
)
def test_files_that_are_refused(case: Case, text: str, message: str) -> None:
    path = case.write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        case.lookaside("busybox")
    assert path in caught.value.message and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://x.example.com", "sigs.example.com", "/srv/sigs", "https://", "file://host/x", "file:x", "https://x/?a=b",
     "https://x/#a", "https://[x"],
)  # fmt: skip
def test_urls_that_are_none(case: Case, url: str) -> None:
    case.write(f"default-docker: {{lookaside: '{url}'}}")
    with pytest.raises(ConfigError, match="is not a URL"):
        case.lookaside("busybox")


def test_two_files_must_not_speak_of_one_registry(case: Case) -> None:
    first = case.write("docker: {a.example.com: {lookaside: 'https://x.example.com'}}")
    case.write("docker: {a.example.com: {lookaside: 'https://x.example.com'}}", name="b.yaml")
    with pytest.raises(ConfigError, match=f'"a.example.com" is in {first} already'):
        case.lookaside("busybox")


def test_the_directories(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", case.directory)
    config = Config(user_config="/home/me/rkpy")
    own = ("/home/me/rkpy/registries.d", "/etc/rkpy/registries.d", "/usr/lib/rkpy/registries.d")
    assert registries_d.directories(config) == (*own, "/etc/containers/registries.d")
    os.makedirs(f"{case.directory}/containers/registries.d")
    assert registries_d.directories(config) == (*own, f"{case.directory}/containers/registries.d")


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_text(case: Case, text: str) -> None:
    case.write("".join(char for char in text if not "\ud800" <= char <= "\udfff"))
    try:
        case.lookaside("busybox")
    except ConfigError as error:
        assert "\n" not in str(error)
