"""Credentials by host, from the `auth` and `dockerAuth` documents of `auth.d` (rktVersion v1).

    {"rktKind": "auth", "rktVersion": "v1", "domains": ["example.com"], "type": "basic",
     "credentials": {"user": "me", "password": "secret"}}

`type` is `basic` or `oauth` (`credentials.token`, sent as a bearer token). A domain is a host as it stands in the URL,
with its port unless that is 443. `dockerAuth` has `registries` instead of `domains`, and is always user and password.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.errors import ConfigError
from common.records import NamedTuple
from stage0 import config as configuration
from stage0.config import Config

_SUBDIRECTORY = "auth.d"
_LISTS = {"auth": "domains", "dockerAuth": "registries"}
_FIELDS = {
    "basic": ("user", "password"),
    "oauth": ("token",),
    "aws": ("accessKeyID", "secretAccessKey"),
    "docker": ("user", "password"),
}


class Credential(NamedTuple):
    """What one file says about one host. `repr` shows no secret."""

    type: str
    """"basic", "oauth", "aws" or "docker"."""
    values: dict[str, str]
    path: str
    """The file it comes from."""

    def __repr__(self) -> str:
        return f"Credential({self.type!r} from {self.path!r})"

    def authorization(self) -> str:
        """The value of the Authorization header. Raises ConfigError for a type that this version cannot send."""
        if self.type == "oauth":
            return f"Bearer {self.values['token']}"
        if self.type == "aws":
            raise ConfigError(
                f"{self.path}: credentials of type aws are not supported by this version",
                hint="use basic or oauth, or fetch the file with other means and give rkpy its path",
            )
        import base64

        pair = f"{self.values['user']}:{self.values['password']}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


def by_host(config: Config) -> dict[str, Credential]:
    """The credentials for HTTPS servers, by host (`example.com`, `example.com:8443`). Raises ConfigError."""
    return _effective(config, "auth")


def by_registry(config: Config) -> dict[str, Credential]:
    """The credentials for image registries, by registry (`quay.io`, `index.docker.io`). Raises ConfigError."""
    return _effective(config, "dockerAuth")


def normal_host(host: str) -> str:
    """`host` as the mappings here have it: lower case, without the port that https implies."""
    return host.lower().removesuffix(":443")


def _effective(config: Config, kind: str) -> dict[str, Credential]:
    """Later directories win, host by host; within one directory each host may be named once."""
    found: dict[str, Credential] = {}
    for directory in config.directories:
        here: dict[str, Credential] = {}
        for path, document in configuration.read(directory, _SUBDIRECTORY):
            if document["rktKind"] != kind:
                continue
            for host, credential in _parse(path, document, kind):
                if host in here:
                    raise ConfigError(f"{path}: {host} has credentials in {here[host].path} already")
                here[host] = credential
        found.update(here)
    return found


def _parse(path: str, document: dict[str, Any], kind: str) -> Iterator[tuple[str, Credential]]:
    type_ = document.get("type") if kind == "auth" else "docker"
    if not isinstance(type_, str) or type_ not in _FIELDS or (kind == "auth" and type_ == "docker"):
        raise ConfigError(f"{path}: type has to be basic, oauth or aws")
    credential = Credential(type_, _values(path, document.get("credentials"), type_), path)
    hosts = document.get(_LISTS[kind])
    if not isinstance(hosts, list) or not hosts:
        raise ConfigError(f"{path}: {_LISTS[kind]} has to be a list of hosts")
    for host in hosts:
        if not isinstance(host, str) or not host or "://" in host or (kind == "auth" and "/" in host):
            raise ConfigError(f"{path}: {_LISTS[kind]} has to be a list of hosts, as example.com or example.com:8443")
        yield normal_host(host), credential


def _values(path: str, credentials: object, type_: str) -> dict[str, str]:
    if not isinstance(credentials, dict):
        raise ConfigError(f"{path}: credentials has to be an object")
    values: dict[str, str] = {}
    for name in _FIELDS[type_]:
        value = credentials.get(name)
        # A line break would let the secret of one header become another header.
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ConfigError(f"{path}: credentials.{name} has to be a string on one line")
        values[name] = value
    if type_ in ("basic", "docker") and ":" in values["user"]:
        raise ConfigError(f"{path}: credentials.user cannot have a colon")
    return values
