"""What a pod's machine boots from, made once and kept: `boot_files`.

    CACHE/lock                 held by whoever makes something
    CACHE/KEY.record           what was made of what: the files' names, and the state of everything they were made of
    CACHE/vmlinux-DIGEST       a kernel
    CACHE/bzimage-DIGEST       one that had to stay as it was, where QEMU may read it
    CACHE/initramfs-DIGEST     an initramfs

A record is written last, so that what it names is whole. It holds as long as all that went into it, and what was
made, is as it was, by size and times: that is what each start looks at, some 200 calls of stat(2).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from common import files, locks
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.vm import kernel as kernels
from stage1.vm.kernel import Kernel

VERSION = 2
"""Of the record."""
_KEPT = 4
"""Records that are kept, the newest ones; and as many files that no record names, which somebody may be about to
use."""
_LARGEST = 1 << 20
"""Bytes of a record."""
_HERE = os.path.dirname(os.path.abspath(__file__))
_MAKERS = tuple(f"{_HERE}/{name}.py" for name in ("bootfiles", "decompress", "initramfs", "kernel", "runtime"))

_State = tuple[int, int, int]


class BootFiles(NamedTuple):
    kernel: str
    """Absolute path, as that of the next."""
    initramfs: str
    release: str
    """The version of the kernel."""
    signed: bool
    """Whether all of the modules in the initramfs are."""


def boot_files(wanted: str, cache: str) -> BootFiles:
    """What to boot: of the kernel that `wanted` names (`kernel.choose`), from the directory `cache`, which is made if
    need be and is for root alone. Raises LaunchError."""
    chosen = kernels.choose(wanted)
    record = f"{cache}/{_key(chosen)}.record"
    found = _read(record, cache)
    if found is not None:
        return found
    try:
        files.make_directories(os.path.dirname(cache), 0o755)
        files.make_directory(cache, 0o700)
        with locks.acquire(f"{cache}/lock", exclusive=True, create=0o600), _readable():
            return _read(record, cache) or _make(chosen, record, cache)
    except OSError as error:
        what = ": ".join(filter(None, (error.filename, reason(error))))
        raise LaunchError(f"cannot keep what virtual machines boot from in {cache}: {what}") from error


@contextmanager
def _readable() -> Iterator[None]:
    """What is made is for QEMU to read, who is not root, whatever the caller's umask; nobody else gets into the
    directory."""
    umask = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(umask)


def _make(kernel: Kernel, record: str, cache: str) -> BootFiles:
    """With the lock."""
    from stage1.vm import initramfs, runtime

    _clear_partial(cache)
    python = runtime.collect()
    modules = initramfs.modules(kernel)
    sources = {kernel.path, f"{kernel.modules}/modules.dep", f"{kernel.modules}/modules.builtin", *_makers()}
    sources |= {module.path for module in modules} | {file.source for file in python.files}
    # Before they are read: what changes meanwhile makes the record one that does not hold.
    states = {path: _state(path) for path in sorted(sources)}
    image = f"vmlinux-{_digest(kernel.path, states[kernel.path])}"
    name = f"initramfs-{_digest(record, sorted(states.items()))}"
    entries = tuple(initramfs.entries(python, modules))
    archive = initramfs.archive(entries)
    files.replace(f"{cache}/{name}", archive, durable=True)
    # Second, since that one is needed, and this one can do without the room that is not there.
    image = _keep(cache, image, lambda: kernels.vmlinux(kernel.path)) or _as_installed(kernel, cache, image)
    made = BootFiles(os.path.join(cache, image), f"{cache}/{name}", kernel.release, initramfs.are_signed(entries))
    about = {"kernel": image, "initramfs": name, "release": made.release, "signed": made.signed}
    about["states"] = [_state(made.kernel), _state(made.initramfs)]
    text = json.dumps({"version": VERSION, **about, "sources": states})
    files.replace(record, text.encode("utf-8", "surrogateescape"), durable=True)
    _forget(cache)
    return made


def _keep(cache: str, name: str, make: Callable[[], bytes | None]) -> str:
    """`name` if there is such a file and a record says it is as it was made, or it can be made: without it a guest
    boots too, only later. Empty when not."""
    if _is_ours(f"{cache}/{name}") and _is_known(cache, name):
        return name
    data = make()
    if data is None:
        return ""
    try:
        files.replace(f"{cache}/{name}", data, durable=True)
    except OSError:
        return ""
    return name


def _as_installed(kernel: Kernel, cache: str, image: str) -> str:
    """The bzImage; where root alone may read it, as on some distributions, a copy that QEMU may. Raises OSError."""
    if os.stat(kernel.path).st_mode & stat.S_IROTH:
        return kernel.path
    name = image.replace("vmlinux", "bzimage")
    with open(kernel.path, "rb") as file:
        files.replace(f"{cache}/{name}", file.read(), durable=True)
    return name


# --- which they are


def _key(kernel: Kernel) -> str:
    return _digest(VERSION, kernel, os.path.realpath(sys.executable), sys.version, _HERE)


def _digest(*parts: object) -> str:
    # hashlib costs more than everything else here.
    from _blake2 import blake2b

    return str(blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest())


def _makers() -> Iterable[str]:
    """This package's part in it, as far as it has sources."""
    return filter(os.path.exists, _MAKERS)


def _state(path: str) -> _State:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(record: str, cache: str) -> BootFiles | None:
    """What a record names, if it holds."""
    try:
        if not _is_ours(record) or os.path.getsize(record) > _LARGEST:
            return None
        with open(record, encoding="utf-8", errors="surrogateescape") as file:
            found = json.load(file)
        if found["version"] != VERSION or not found["sources"]:
            return None
        kernel, initramfs = os.path.join(cache, found["kernel"]), f"{cache}/{found['initramfs']}"
        if [list(_state(path)) for path in (kernel, initramfs)] != found["states"]:
            return None
        if any(list(_state(path)) != state for path, state in found["sources"].items()):
            return None
        return BootFiles(kernel, initramfs, str(found["release"]), found["signed"] is True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_known(cache: str, kernel: str) -> bool:
    state = list(_state(f"{cache}/{kernel}"))
    for name in os.listdir(cache):
        if name.endswith(".record"):
            found = _content(f"{cache}/{name}")
            if found.get("kernel") == kernel and state in found.get("states", ()):
                return True
    return False


def _content(record: str) -> dict[str, Any]:
    """What is in it, which may be of any version; nothing if it cannot be read."""
    try:
        with open(record, encoding="utf-8", errors="surrogateescape") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(path: str) -> bool:
    """A file that nobody else can have written."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


# --- what goes


def _clear_partial(cache: str) -> None:
    """What somebody left who was killed while he had the lock: names that `files.replace` makes."""
    for name in os.listdir(cache):
        if name.rpartition(".")[2] not in ("record", name):
            os.unlink(f"{cache}/{name}")


def _forget(cache: str) -> None:
    """All but the newest records, and what they do not name. With the lock."""
    records: list[str] = []
    others: list[str] = []
    for name in os.listdir(cache):
        if name != "lock":
            (records if name.endswith(".record") else others).append(name)
    records.sort(key=lambda name: _time(f"{cache}/{name}"), reverse=True)
    used: set[str] = set()
    for name in records[:_KEPT]:
        used |= _names(f"{cache}/{name}")
    unused = [name for name in others if name not in used]
    unused.sort(key=lambda name: _time(f"{cache}/{name}"), reverse=True)
    for name in (*records[_KEPT:], *unused[_KEPT:]):
        os.unlink(f"{cache}/{name}")


def _time(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _names(record: str) -> set[str]:
    found = _content(record)
    return {str(found[what]) for what in ("kernel", "initramfs") if what in found}
