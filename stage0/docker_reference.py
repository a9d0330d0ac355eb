"""Names of images in registries, in the one full form in which they can be compared.

The grammar and the short forms (`busybox` for `docker.io/library/busybox:latest`) are those of
github.com/distribution/reference, which docker, podman and the signatures of images go by.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from common.errors import UsageError
from stage0.openpgp import printable

_HUB = "docker.io"
_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_MAX_NAME = 255


class DockerReference(NamedTuple):
    """A reference as it was given, but for the short forms of its repository."""

    domain: str
    """Host, with a port where it has one."""
    path: str
    """Of the repository, without the host."""
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def wanted(self) -> DockerReference:
        """What is fetched: the digest where there is one, whatever the tag beside it; else the tag or `latest`."""
        if self.digest:
            return self._replace(tag="")
        return self._replace(tag=self.tag or "latest")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse(text: str) -> DockerReference:
    """`[HOST[:PORT]/]PATH[:TAG][@DIGEST]`. Raises UsageError."""
    name, at, digest = text.partition("@")
    head, slash, tail = name.rpartition("/")
    tail, colon, tag = tail.partition(":")
    domain, path = _split_domain(head + slash + tail)
    good = (
        _DOMAIN.fullmatch(domain)
        and _PATH.fullmatch(path)
        and len(domain) + 1 + len(path) <= _MAX_NAME
        and (not colon or _TAG.fullmatch(tag))
        and (not at or is_digest(digest))
    )
    if not good:
        raise UsageError(
            f'"{printable(text[:300])}" is not the name of an image in a registry',
            hint="it looks like registry.example.com/app:1.0",
        )
    return DockerReference(domain, path, tag, digest)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        first, rest = _HUB, name
    if first in _HUB_ALIASES:
        first = _HUB
    if first == _HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest
