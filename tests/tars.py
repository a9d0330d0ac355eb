"""Tar archives for tests: honest ones by the standard library, and single headers with anything in their fields."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

MTIME = 1_000_000_000
END = bytes(1024)

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, kind: bytes, *, data: bytes = b"", pax: Mapping[str, str] | None = None, **fields: Any) -> Entry:
    """One entry; `fields` are attributes of tarfile.TarInfo, `pax` goes into its extended header as it is."""
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.size = kind, MTIME, len(data)
    info.pax_headers = dict(pax or {})
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def file(name: str, data: bytes = b"", **fields: Any) -> Entry:
    """A regular file."""
    return entry(name, tarfile.REGTYPE, data=data, **fields)


def directory(name: str, **fields: Any) -> Entry:
    """A directory."""
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, to: str, **fields: Any) -> Entry:
    """A symbolic link."""
    return entry(name, tarfile.SYMTYPE, linkname=to, **fields)


def hardlink(name: str, to: str, **fields: Any) -> Entry:
    """A hard link."""
    return entry(name, tarfile.LNKTYPE, linkname=to, **fields)


def device(name: str, kind: bytes = tarfile.CHRTYPE, major: int = 0, minor: int = 0, **fields: Any) -> Entry:
    """A device node."""
    return entry(name, kind, devmajor=major, devminor=minor, **fields)


def pack(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    """The archive with `entries` in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: bytes = b"f", kind: bytes = b"0", **fields: bytes) -> bytes:
    """One ustar header with `fields` (mode, uid, gid, size, mtime, linkname, magic, major, minor, prefix, checksum) put
    in as they are; the checksum is computed unless given."""
    layout = {
        "name": 100, "mode": 8, "uid": 8, "gid": 8, "size": 12, "mtime": 12, "checksum": 8, "kind": 1, "linkname": 100,
        "magic": 8, "uname": 32, "gname": 32, "major": 8, "minor": 8, "prefix": 155, "rest": 12,
    }  # fmt: skip
    values = {
        "name": name, "mode": b"0000644", "uid": b"0000000", "gid": b"0000000", "size": b"00000000000",
        "mtime": b"07346545000", "checksum": b" " * 8, "kind": kind, "magic": b"ustar\x0000", **fields,
    }  # fmt: skip
    raw = b"".join(values.get(key, b"").ljust(size, b"\0")[:size] for key, size in layout.items())
    if "checksum" not in fields:
        raw = raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]
    return raw


def block(data: bytes) -> bytes:
    """`data` padded to whole blocks."""
    return data + bytes(-len(data) % 512)


def octal(value: int, digits: int = 11) -> bytes:
    """A numeric field."""
    return b"%0*o" % (digits, value)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax header, for the entry that is put behind it or (kind `g`) for all that follow."""
    data = b"".join(pax_record(key, value) for key, value in records)
    return header(b"pax", kind, size=octal(len(data))) + block(data)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One record with its own length in front."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest
