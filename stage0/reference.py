"""What an image argument means: an ID, a file, a transport such as `oci-archive:`, a URL, or an appC name.

The order is rkt's: `sha512-…`, then existing files, then URLs and transports, then names.
"""

from __future__ import annotations

import os

from aci.types import ac_identifier, host_platform
from common.errors import UsageError
from common.records import NamedTuple

ARCHIVES = {"oci": "oci-layout", "oci-archive": "oci-archive", "docker-archive": "docker-archive"}
REMOTE = ("http", "https")
FILES = ("file", *ARCHIVES.values())


class Reference(NamedTuple):
    """`kind`: "id", "file" (format still to be looked at), "oci-layout", "oci-archive", "docker-archive", "name",
    "docker" (an image of a registry) or "remote" (an ACI at a URL)."""

    kind: str
    value: str
    """The ID or its prefix, the absolute path, the appC name, or the URL."""
    image: str = ""
    """Which image of an archive that holds several."""
    labels: tuple[tuple[str, str], ...] = ()


def parse(text: str) -> Reference:
    """Decide what `text` refers to; looks at the file system for relative names. Raises UsageError."""
    if text.startswith("sha512-"):
        return Reference("id", text)
    if text.startswith("/") or (":" not in text and os.path.isfile(text)):
        return Reference("file", os.path.abspath(text))
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "file":
        return Reference("file", os.path.abspath(rest.removeprefix("//")))
    if colon and scheme in ARCHIVES:
        return _archive(ARCHIVES[scheme], rest)
    if colon and scheme == "docker":
        return Reference("docker", text)
    if colon and scheme in REMOTE and rest.startswith("//"):
        return Reference("remote", text)
    if ":" not in text and ("./" in text or text.endswith(".aci")):
        return Reference("file", os.path.abspath(text))
    name, labels = app_name(text)
    return Reference("name", name, labels=tuple(labels.items()))


def _archive(kind: str, rest: str) -> Reference:
    """`PATH[:IMAGE]`; a path that exists as it stands is taken whole, colons and all."""
    path, _, image = (rest, "", "") if os.path.exists(rest) else rest.partition(":")
    if not path:
        raise UsageError(f'no path after "{kind}:"')
    return Reference(kind, os.path.abspath(path), image)


def app_name(text: str) -> tuple[str, dict[str, str]]:
    """`name[:version][,label=value]…` (spec 0.8.11, "App Container Image Discovery"). Raises UsageError."""
    first, *rest = text.split(",")
    name, colon, version = first.partition(":")
    labels = {"version": version} if colon else {}
    for item in rest:
        key, given, value = item.partition("=")
        if not given or not key or key in labels:
            raise UsageError(f'"{text}" is no image name: "{item}" is not a new LABEL=VALUE')
        labels[key] = value
    ac_identifier(name, strict=True)
    return name, labels


def wanted_labels(reference: Reference) -> dict[str, str]:
    """The labels a stored image must have to satisfy `reference`: those asked for, and this host's os and arch."""
    return {**platform_labels(), **dict(reference.labels)}


def platform_labels() -> dict[str, str]:
    """What an image says that is for this host."""
    os_name, arch = host_platform()
    return {"os": os_name, "arch": arch}
