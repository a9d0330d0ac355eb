"""Images for tests, made the way the formats' own tools make them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

COMPRESSIONS = {"": "w", "gzip": "w:gz", "bzip2": "w:bz2", "xz": "w:xz"}


def manifest(name: str = "example.com/app", version: str = "1", **fields: Any) -> dict[str, Any]:
    """A valid image manifest; `fields` are added to it or replace what is there."""
    base: dict[str, Any] = {
        "acKind": "ImageManifest",
        "acVersion": "0.8.11",
        "name": name,
        "labels": [
            {"name": "version", "value": version},
            {"name": "os", "value": "linux"},
            {"name": "arch", "value": "amd64"},
        ],
        "app": {"exec": ["/bin/sh"], "user": "0", "group": "0"},
    }
    return {**base, **fields}


def make_aci(
    path: str, image_manifest: Mapping[str, Any], files: Mapping[str, bytes | str], *, compression: str = "gzip"
) -> str:
    """Write an ACI to `path`. `files` maps paths inside the root to contents; executable when under a `bin` directory.
    A str that begins with "->" makes a symlink to the rest; a path that ends in "/" makes a directory."""
    with tarfile.open(path, COMPRESSIONS[compression]) as archive:  # type: ignore[call-overload]
        _add(archive, "manifest", json.dumps(image_manifest).encode())
        _add(archive, "rootfs/", b"")
        for name, content in files.items():
            _add(archive, f"rootfs/{name}", content)
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes | str) -> None:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mtime = 1_000_000_000
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    elif isinstance(content, str) and content.startswith("->"):
        info.type, info.linkname = tarfile.SYMTYPE, content[2:]
        archive.addfile(info)
    else:
        raw = content.encode() if isinstance(content, str) else content
        info.size, info.mode = len(raw), 0o755 if "bin/" in name else 0o644
        archive.addfile(info, io.BytesIO(raw))


def busybox_files(busybox: str = "/bin/busybox") -> dict[str, bytes | str]:
    """A root with a static busybox and the usual applets (Debian: busybox-static)."""
    with open(busybox, "rb") as file:
        program = file.read()
    applets = (
        "sh",
        "cat",
        "echo",
        "env",
        "id",
        "ls",
        "pwd",
        "sleep",
        "true",
        "false",
        "stat",
        "touch",
        "kill",
        "mount",
    )
    links: dict[str, bytes | str] = {f"bin/{name}": "->busybox" for name in applets}
    passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
    group = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"
    return {
        "bin/": b"", "bin/busybox": program, **links, "etc/": b"", "etc/passwd": passwd, "etc/group": group,
        "tmp/": b"", "root/": b"", "home/": b"", "home/user/": b"",
    }  # fmt: skip
