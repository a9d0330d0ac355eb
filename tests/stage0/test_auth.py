"""Credentials: which file speaks for which host, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from stage0 import auth
from stage0.config import Config

BASIC = {"type": "basic", "credentials": {"user": "me", "password": "päss"}}


def write(directory: Path, name: str, **fields: Any) -> Path:
    folder = directory / "auth.d"
    folder.mkdir(parents=True, exist_ok=True)
    document = {"rktKind": "auth", "rktVersion": "v1", "domains": ["example.com"], **BASIC, **fields}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def config(directory: Path) -> Config:
    return Config(
        system_config=str(directory / "usr"), local_config=str(directory / "etc"), user_config=str(directory / "user")
    )


def test_basic_credentials_become_a_header(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", domains=["Example.com:443", "other.example.com:8443"])
    found = auth.by_host(config(tmp_path))
    assert set(found) == {"example.com", "other.example.com:8443"}
    assert found["example.com"].authorization() == "Basic bWU6cMOkc3M="


def test_a_token_becomes_a_bearer(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", type="oauth", credentials={"token": "t0k"})
    assert auth.by_host(config(tmp_path))["example.com"].authorization() == "Bearer t0k"


def test_aws_is_an_error_for_its_own_host_only(tmp_path: Path) -> None:
    path = write(tmp_path / "etc", "a.json", type="aws", credentials={"accessKeyID": "a", "secretAccessKey": "b"})
    found = auth.by_host(config(tmp_path))
    with pytest.raises(ConfigError, match=f"{path}: credentials of type aws are not supported"):
        found["example.com"].authorization()


def test_a_later_directory_wins(tmp_path: Path) -> None:
    for name in ("usr", "etc", "user"):
        write(tmp_path / name, "a.json", credentials={"user": name, "password": "p"})
    write(tmp_path / "usr", "b.json", domains=["kept.example.com"])
    found = auth.by_host(config(tmp_path))
    assert found["example.com"].values["user"] == "user"
    assert found["kept.example.com"].path.startswith(str(tmp_path / "usr"))


def test_a_host_twice_in_one_directory_is_an_error(tmp_path: Path) -> None:
    first = write(tmp_path / "etc", "a.json")
    second = write(tmp_path / "etc", "b.json", domains=["other.example.com", "EXAMPLE.com:443"])
    with pytest.raises(ConfigError) as error:
        auth.by_host(config(tmp_path))
    assert error.value.message == f"{second}: example.com has credentials in {first} already"


def test_registries_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json")
    write(tmp_path / "etc", "b.json", rktKind="dockerAuth", registries=["quay.io", "quay.io/team"])
    assert set(auth.by_registry(config(tmp_path))) == {"quay.io", "quay.io/team"}
    assert set(auth.by_host(config(tmp_path))) == {"example.com"}


def test_no_secret_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json")
    assert "päss" not in repr(auth.by_host(config(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "kerberos"}, "type has to be basic, oauth or aws"),
        ({"type": "docker"}, "type has to be basic, oauth or aws"),
        ({"type": None}, "type has to be basic, oauth or aws"),
        ({"type": ["basic"]}, "type has to be basic, oauth or aws"),
        ({"domains": []}, "domains has to be a list of hosts"),
        ({"domains": "example.com"}, "domains has to be a list of hosts"),
        ({"domains": ["https://example.com"]}, "domains has to be a list of hosts, as example.com"),
        ({"domains": ["example.com/path"]}, "domains has to be a list of hosts, as example.com"),
        ({"domains": [1]}, "domains has to be a list of hosts, as example.com"),
        ({"credentials": None}, "credentials has to be an object"),
        ({"credentials": {"user": "me"}}, "credentials.password has to be a string on one line"),
        ({"credentials": {"user": "me", "password": 1}}, "credentials.password has to be a string on one line"),
        ({"credentials": {"user": "a:b", "password": "c"}}, "credentials.user cannot have a colon"),
        ({"type": "oauth", "credentials": {"token": "a\r\nX: y"}}, "credentials.token has to be a string on one line"),
    ],
)
def test_mistakes_name_the_file(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "etc", "a.json", **fields)
    with pytest.raises(ConfigError) as error:
        auth.by_host(config(tmp_path))
    assert error.value.message.startswith(f"{path}: {message}")
    assert "päss" not in str(error.value)
