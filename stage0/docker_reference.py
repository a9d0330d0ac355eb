"""Names of images in registries, as docker writes them: `[registry/]repository[:tag][@digest]`.

The grammar is that of github.com/distribution/reference, and so is the rule for short ("familiar") names: what stands
before the first slash is a registry only if it has a dot, a port or an upper-case letter, or is `localhost`; all other
names are Docker Hub's, and those of a single component are in its `library`.
"""

from __future__ import annotations

import re

from aci import oci_config, types
from aci.types import quote
from common.errors import UsageError
from common.records import NamedTuple

SCHEME = "docker"
DOCKER_HUB = "docker.io"
API_HUB = "registry-1.docker.io"
HUB_ALIASES = (DOCKER_HUB, "index.docker.io", API_HUB)
_LENGTH = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


class DockerReference(NamedTuple):
    """One image of a registry, nothing left implicit."""

    registry: str
    """`host[:port]`; Docker Hub is `docker.io` whichever of its names was used."""
    repository: str
    tag: str
    """Empty only when there is a digest."""
    digest: str
    """`sha256:HEX` or `sha512:HEX`; empty when the reference does not pin the image."""

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest where there is one, the tag then being only a label."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{'@' if self.digest else ''}{self.digest}"


def parse(text: str) -> DockerReference:
    """What `docker://…`, `docker:…` or the bare name `text` refers to. Raises UsageError."""
    rest = text.removeprefix(f"{SCHEME}:").removeprefix("//")
    rest, pinned, digest = rest.partition("@")
    name, tag = _split_tag(rest)
    if pinned and not _DIGEST.fullmatch(digest):
        raise _no_reference(text, f"{quote(digest)} is not a sha256 or sha512 digest")
    if tag is not None and not _TAG.fullmatch(tag):
        raise _no_reference(text, f"{quote(tag)} is not a tag")
    registry, repository = _split_registry(name)
    _check(text, registry, repository)
    return DockerReference(registry, repository, tag or ("" if digest else "latest"), digest)


def image_name(reference: DockerReference) -> oci_config.Name:
    """What the store calls the image: registry and repository, and the tag as its version, or the digest where there is
    one: what a signature of another tag allowed must not pass for this tag later."""
    host = API_HUB if reference.registry == DOCKER_HUB else reference.registry
    name = types.sanitise_identifier(f"{host}/{reference.repository}")
    return oci_config.Name(name, reference.digest or reference.tag, str(reference))


def _split_tag(text: str) -> tuple[str, str | None]:
    """A colon before the last slash belongs to the registry's port."""
    head, slash, tail = text.rpartition("/")
    name, colon, tag = tail.partition(":")
    return head + slash + name, tag if colon else None


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    named = slash and (first == "localhost" or "." in first or ":" in first or first != first.lower())
    registry, repository = (first, rest) if named else (DOCKER_HUB, name)
    if registry in HUB_ALIASES:
        return DOCKER_HUB, repository if "/" in repository else f"library/{repository}"
    return registry, repository


def is_short(text: str) -> bool:
    """Whether `text` leaves out the registry."""
    name = _split_tag(text.removeprefix(f"{SCHEME}:").removeprefix("//").partition("@")[0])[0]
    first, slash, _ = name.partition("/")
    return not (slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()))


def _check(text: str, registry: str, repository: str) -> None:
    if not _REGISTRY.fullmatch(registry):
        raise _no_reference(text, f"{quote(registry)} is not a registry's host and port")
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            hint = "repositories are in lower case" if component != component.lower() else ""
            raise _no_reference(text, f"{quote(component)} is not a repository's name", hint=hint)
    if len(registry) + 1 + len(repository) > _LENGTH:
        raise _no_reference(text, f"the name is longer than {_LENGTH} characters")


def _no_reference(text: str, why: str, *, hint: str = "") -> UsageError:
    hint = hint or "one looks like docker://registry.example.com/team/app:1.0"
    return UsageError(f"{quote(text)} names no image of a registry: {why}", hint=hint)
