from __future__ import annotations

import base64
import errno
import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from common.errors import ConfigError
from stage0 import caller, docker_auth
from stage0.config import Config
from stage0.docker_auth import Login, Logins


def entry(user: str = "u", password: str = "p", **fields: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode(), **fields}


class Home:
    """A user's files and programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bin").mkdir()
        self.config = Config(system_config=str(directory / "usr"), local_config=str(directory / "etc"))
        self.environment = {
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "PATH": f"{directory}/bin:/usr/bin:/bin",
        }

    def write(self, path: str, value: Any) -> str:
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(target)

    def helper(self, name: str, script: str) -> None:
        path = Path(self.write(f"bin/docker-credential-{name}", f"#!/bin/sh\n{script}\n"))
        path.chmod(0o755)

    def find(self, registry: str, repository: str = "team/app") -> Login | None:
        return Logins(self.config, self.environment).find(registry, repository)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_nothing_is_found_in_nothing_and_the_places_are_named(home: Home) -> None:
    assert home.find("quay.io") is None
    looked_at = Logins(home.config, home.environment).looked_at
    assert looked_at == tuple(
        f"{home.directory}/{path}"
        for path in (
            "usr/auth.d", "etc/auth.d",
            "run/containers/auth.json", ".config/containers/auth.json", ".docker/config.json",
        )
    )  # fmt: skip


def test_the_runtime_directory_is_that_of_who_called(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may since have become root of a user namespace."""
    monkeypatch.setattr(caller, "UID", 1234)
    del home.environment["XDG_RUNTIME_DIR"]
    assert "/run/containers/1234/auth.json" in Logins(home.config, home.environment).looked_at


def test_a_directory_that_is_closed_to_all_has_no_logins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, **_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "", path)

    monkeypatch.setattr(docker_auth, "open", refuse, raising=False)
    with pytest.raises(ConfigError, match=r"auth\.json: permission denied"):
        home.find("quay.io")
    home.environment = {}
    assert home.find("quay.io") is None


@pytest.mark.parametrize("path", ["run/containers/auth.json", ".config/containers/auth.json", ".docker/config.json"])
def test_each_file_is_read(home: Home, path: str) -> None:
    file = home.write(path, {"auths": {"quay.io": entry()}})
    assert home.find("quay.io") == Login("u", "p", "", f"{file} (quay.io)")
    assert home.find("other.io") is None


def test_the_first_file_wins(home: Home) -> None:
    home.write(".docker/config.json", {"auths": {"quay.io": entry("docker")}})
    home.write("run/containers/auth.json", {"auths": {"quay.io": entry("podman")}})
    assert home.find("quay.io") == Login("podman", "p", "", f"{home.directory}/run/containers/auth.json (quay.io)")


def test_a_named_file_is_the_only_one(home: Home) -> None:
    home.write("run/containers/auth.json", {"auths": {"quay.io": entry()}})
    home.environment["REGISTRY_AUTH_FILE"] = home.write("mine.json", {"auths": {}})
    assert home.find("quay.io") is None


def test_rkts_logins_come_first(home: Home) -> None:
    home.write("run/containers/auth.json", {"auths": {"quay.io": entry()}})
    document = {"rktKind": "dockerAuth", "rktVersion": "v1", "registries": ["quay.io", "index.docker.io"]}
    path = home.write("etc/auth.d/a.json", {**document, "credentials": {"user": "r", "password": "k"}})
    assert home.find("quay.io") == Login("r", "k", "", path)
    assert home.find("registry-1.docker.io") == Login("r", "k", "", path)


@pytest.mark.parametrize(
    "key",
    ["quay.io", "quay.io/team", "quay.io/team/app", "https://quay.io", "https://quay.io/v2/", "https://quay.io/v1/"],
)
def test_what_a_login_may_be_called(home: Home, key: str) -> None:
    home.write(".docker/config.json", {"auths": {key: entry()}})
    assert home.find("quay.io") is not None
    assert home.find("quay.io", "other/app") is not None or "team" in key
    assert home.find("quay.io.evil.com") is None


def test_the_most_specific_login_wins(home: Home) -> None:
    names = ("quay.io", "quay.io/team", "quay.io/team/app")
    home.write(".docker/config.json", {"auths": {name: entry(name) for name in names}})
    users = [home.find("quay.io", repository) for repository in ("other", "team/x", "team/app", "team/app/sub")]
    assert [login and login.user for login in users] == [
        "quay.io",
        "quay.io/team",
        "quay.io/team/app",
        "quay.io/team/app",
    ]


def test_docker_hub_has_many_names(home: Home) -> None:
    home.write(".docker/config.json", {"auths": {"https://index.docker.io/v1/": entry()}})
    assert home.find("registry-1.docker.io") is not None


def test_identity_tokens(home: Home) -> None:
    home.write(".docker/config.json", {"auths": {"quay.io": entry("u", "", identitytoken="tok")}})
    found = home.find("quay.io")
    assert found is not None
    assert (found.user, found.password, found.identity_token) == ("u", "", "tok")


def test_a_login_does_not_show_its_secret() -> None:
    assert "hidden" not in repr(Login("u", "hidden", "hidden", "file"))


def test_a_helper_for_one_registry(home: Home) -> None:
    home.helper("x", """read -r s; [ "$1" = get ] && printf '{"Username":"%s","Secret":"s"}' "$s" """)
    home.write(".docker/config.json", {"credHelpers": {"quay.io": "x"}, "auths": {"quay.io": entry()}})
    assert home.find("quay.io") == Login("quay.io", "s", "", "docker-credential-x")


def test_a_store_for_all(home: Home) -> None:
    home.helper("x", """read -r s; printf '{"Username":"<token>","Secret":"%s"}' "$s" """)
    home.write(".docker/config.json", {"credsStore": "x", "auths": {"quay.io": {}}})
    assert home.find("quay.io") == Login("", "", "quay.io", "docker-credential-x")
    assert home.find("registry-1.docker.io") == Login("", "", "https://index.docker.io/v1/", "docker-credential-x")


def test_a_helper_that_knows_nothing(home: Home) -> None:
    home.helper("x", "echo 'credentials not found in native keychain'; exit 1")
    home.write(".docker/config.json", {"credsStore": "x"})
    assert home.find("quay.io") is None


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo boom >&2; exit 1", "boom"),
        ("echo hello", "not a JSON object"),
        ("echo '{\"Username\": 1}'", "not a JSON"),
    ],
)
def test_a_helper_that_fails(home: Home, script: str, says: str) -> None:
    home.helper("x", script)
    home.write(".docker/config.json", {"credsStore": "x"})
    with pytest.raises(ConfigError, match=says):
        home.find("quay.io")


@pytest.mark.parametrize(
    "document",
    [
        "{", "[]", {"auths": []}, {"auths": {"quay.io": 1}}, {"auths": {"quay.io": {"auth": "no base64"}}},
        {"auths": {"quay.io": {"auth": base64.b64encode(b"nocolon").decode()}}}, {"auths": {"quay.io": {"auth": 1}}},
        {"credHelpers": {"quay.io": "../evil"}}, {"credsStore": "not-installed"}, {"credsStore": ["x"]},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(home: Home, document: Any) -> None:
    home.write(".docker/config.json", document)
    with pytest.raises(ConfigError):
        home.find("quay.io")
