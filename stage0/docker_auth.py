"""Logins for registries: rkpy's own `auth.d`, containers-auth.json(5), docker's config.json and credential helpers.

First come rkpy's own files (`rktKind` `dockerAuth`), then $REGISTRY_AUTH_FILE alone if it is set, else podman's
auth.json (of the session, then of the user) and docker's config.json. Helpers are programs called
`docker-credential-NAME` that get a server's name on standard input and answer with JSON
(github.com/docker/docker-credential-helpers); what they answer is never written anywhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from aci.types import quote
from common.errors import ConfigError, reason
from common.records import NamedTuple
from stage0 import auth, caller
from stage0.config import Config
from stage0.docker_reference import HUB_ALIASES

_OF_ALL = "/run/containers"
"""Where podman has a directory for each user. Where root's was first it is closed, and has nothing of others."""
_HUB_KEY = "https://index.docker.io/v1/"
"""What docker calls its hub in its files."""
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper says that the secret is a token
_HELPER_TIMEOUT = 60


class Login(NamedTuple):
    """User and password, or an identity token (to be exchanged for access tokens, as OAuth 2 does)."""

    user: str
    password: str
    identity_token: str
    origin: str
    """Where it was found, for messages."""

    def __repr__(self) -> str:
        return f"Login({self.user!r}, origin={self.origin!r})"


class Logins:
    """The logins there are. `looked_at` says where, found or not."""

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self._own = auth.by_registry(config)
        self._files = _paths(environment)
        self._environment = environment
        self.looked_at = (*(f"{directory}/auth.d" for directory in config.directories), *self._files)

    def find(self, registry: str, repository: str) -> Login | None:
        """The login for a repository, the most specific one first. Raises ConfigError for files and helpers that
        cannot be used."""
        for name in _names(registry):
            if (own := self._own.get(name)) is not None:
                return Login(own.values["user"], own.values["password"], "", own.path)
        for path in self._files:
            found = _in_file(path, registry, repository, self._environment)
            if found is not None:
                return found
        return None


def _names(registry: str) -> tuple[str, ...]:
    return HUB_ALIASES if registry in HUB_ALIASES else (registry,)


# Docker's and podman's files


def _paths(environment: Mapping[str, str]) -> tuple[str, ...]:
    if alone := environment.get("REGISTRY_AUTH_FILE"):
        return (alone,)
    home = environment.get("HOME", "")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"{_OF_ALL}/{caller.UID}"
    settings = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    docker = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    found = [f"{runtime}/containers/auth.json" if environment.get("XDG_RUNTIME_DIR") else f"{runtime}/auth.json"]
    found += [f"{settings}/containers/auth.json"] if settings else []
    found += [f"{docker}/config.json"] if docker else []
    return tuple(found)


def _in_file(path: str, registry: str, repository: str, environment: Mapping[str, str]) -> Login | None:
    document = _document(path)
    helpers = _object(document, "credHelpers", path)
    store = document.get("credsStore")
    logins = _object(document, "auths", path)
    for name in _names(registry):
        if name in helpers:
            return _ask(helpers[name], _server(registry), path, environment)
    for key in _keys(registry, repository):
        if key in logins and (login := _login(logins[key], f"{path} ({key})")) is not None:
            return login
    return _ask(store, _server(registry), path, environment) if store else None


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        if isinstance(error, PermissionError) and path.startswith(f"{_OF_ALL}/"):
            return {}
        raise ConfigError(f"open {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable JSON document: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


def _object(document: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} has to be an object")
    return value


def _server(registry: str) -> str:
    return _HUB_KEY if registry in HUB_ALIASES else registry


def _keys(registry: str, repository: str) -> Iterator[str]:
    """What a file may call the login: podman the repository or part of its path, docker the host, with or without a
    scheme and the API's version."""
    for name in _names(registry):
        path = f"{name}/{repository}"
        while "/" in path:
            yield path
            path = path.rpartition("/")[0]
        yield path
    for name in _names(registry):
        yield from (f"https://{name}", f"https://{name}/", f"https://{name}/v1/", f"https://{name}/v2/")


def _login(entry: Any, origin: str) -> Login | None:
    """The login in an entry of `auths`; None for an empty one, which docker leaves beside a credsStore."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{origin}: has to be an object")
    token = entry.get("identitytoken") or ""
    encoded = entry.get("auth") or ""
    if not isinstance(token, str) or not isinstance(encoded, str):
        raise ConfigError(f"{origin}: auth and identitytoken have to be strings")
    if not encoded:
        user, password = entry.get("username") or "", entry.get("password") or ""
        return Login(str(user), str(password), token, origin) if user or token else None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ConfigError(f"{origin}: auth is not user:password in base64", hint="log in again")
    return Login(user, password.rstrip("\0"), token, origin)


# Helpers


def _ask(helper: Any, server: str, path: str, environment: Mapping[str, str]) -> Login | None:
    """What the program docker-credential-`helper` knows about `server`."""
    if not isinstance(helper, str) or not helper or "/" in helper or not helper.isprintable():
        raise ConfigError(f"{path}: {quote(str(helper))} is not the name of a credential helper")
    program = f"docker-credential-{helper}"
    missing = ConfigError(f"{path}: {program} is not installed", hint="install it, or take it out of the file")
    if shutil.which(program, path=environment.get("PATH")) is None:
        raise missing
    try:
        done = subprocess.run(
            [*_as_caller(), program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            env=dict(environment),
        )
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise ConfigError(f"{program}: {reason(error)}") from error
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{program} get: no answer within {_HELPER_TIMEOUT} s") from None
    if done.returncode == 0:
        return _answer(program, done.stdout)
    _check_unknown(program, server, done.stdout + done.stderr)
    return None


def _as_caller() -> list[str]:
    """What a program is started by that has to know who its user is, although we may be root of a user namespace now:
    the services of his session let in nobody who goes by another number (dbus-daemon(1), EXTERNAL)."""
    if not caller.is_ordinary() or os.geteuid() == caller.UID:
        return []
    return ["unshare", "--user", f"--map-user={caller.UID}", f"--map-group={caller.GID}", "--"]


def _check_unknown(program: str, server: str, said: bytes) -> None:
    """Helpers say in words that they know no login; anything else is a failure."""
    text = said.decode(errors="replace").strip()
    if "credentials not found" in text.lower():
        return
    raise ConfigError(f"{program} get {server}: {quote(text or 'failed without a word')}")


def _answer(program: str, data: bytes) -> Login:
    try:
        value = json.loads(data)
        user, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{program} get: the answer is not a JSON object with Username and Secret") from None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise ConfigError(f"{program} get: Username and Secret have to be strings")
    if user == _TOKEN_USER:
        return Login("", "", secret, program)
    return Login(user, secret, "", program)
