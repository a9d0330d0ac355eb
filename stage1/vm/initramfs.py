"""The guest's first file system: an archive that the kernel unpacks into memory.

    /init                the first process, a script that goes on in `runtime.MAIN`
    /modules/order, …    paths of the kernel's modules in the order they are to be loaded, one a line (`guestmodules`)
    /modules/NAME.ko     each of them, not compressed
    /dev/console, …      what it has for standard streams, and what Python takes its randomness from
    /rkpy, PYTHON        see `runtime`

The archive is a cpio of the kind "newc" (Documentation/driver-api/early-userspace/buffer-format.rst). Everything in it
is root's, and the same entries make the same bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.vm.decompress import decompress
from stage1.vm.guestmodules import LATER, NETWORK, ORDER
from stage1.vm.kernel import Kernel
from stage1.vm.runtime import FIRST, MAIN, Runtime, code, program

REQUIRED = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "virtio_net")
"""Modules without which there is no pod in a machine."""
WELCOME = ("virtio_mmio", "virtio_balloon", "virtio_rng")
"""Those that are loaded where there are some."""
_LISTS = {"virtio_net": NETWORK, "virtio_balloon": LATER, "virtio_rng": LATER}
"""In which list modules are, with those they need. In ORDER if nothing else is said."""
PROBE = "rkpy_probe"
"""Among the kernel's parameters: the first process says ALIVE on the console and ends, and with it the machine."""
ALIVE = "rkpy: the machine works"
_DIRECTORIES = ("dev", "modules", "proc", "root", "run", "share", "sys", "tmp")
_DEVICES = {"console": (5, 1), "null": (1, 3), "urandom": (1, 9)}
"""Until devtmpfs is mounted. Without the last Python does not start when the kernel has no randomness yet."""
_SIGNED = b"~Module signature appended~\n"
"""The end of a module that is signed (MODULE_SIG_STRING in include/linux/module_signature.h)."""
_LIMIT = 64 << 20
"""Bytes of a module."""


class Entry(NamedTuple):
    """One name in the archive."""

    path: str
    """Without a slash at its beginning."""
    mode: int
    """With the kind of file, as in st_mode."""
    data: bytes = b""
    device: int = 0


class Module(NamedTuple):
    name: str
    path: str
    among: str = ORDER
    """The list it is in, by its path in the guest."""


def entries(runtime: Runtime, modules: Sequence[Module]) -> Iterator[Entry]:
    """Everything the guest starts with, but for directories that are only on the way. Raises LaunchError."""
    for directory in (*_DIRECTORIES, *(path.lstrip("/") for path in runtime.path if not path.endswith(".zip"))):
        yield Entry(directory, stat.S_IFDIR | 0o755)
    for name, number in _DEVICES.items():
        yield Entry(f"dev/{name}", stat.S_IFCHR | 0o600, device=os.makedev(*number))
    yield Entry("init", stat.S_IFREG | 0o755, _init(runtime))
    for path in (ORDER, NETWORK, LATER):
        order = "".join(f"/modules/{module.name}.ko\n" for module in modules if module.among == path)
        yield Entry(path.lstrip("/"), stat.S_IFREG | 0o644, order.encode())
    for module in modules:
        yield Entry(f"modules/{module.name}.ko", stat.S_IFREG | 0o644, _plain(module.path))
    for file in runtime.files:
        try:
            data = code(file.source, file.target) if file.compiled else program(file.source)
            mode = 0o644 if file.compiled else 0o755
        except OSError as error:
            raise LaunchError(f"cannot take {file.source} into a virtual machine: {reason(error)}") from error
        yield Entry(file.target.lstrip("/"), stat.S_IFREG | mode, data)


def are_signed(found: Iterable[Entry]) -> bool:
    """Whether the kernel's modules among `found` all are; by whom is for the kernel to say."""
    return all(entry.data.endswith(_SIGNED) for entry in found if entry.path.endswith(".ko"))


def _init(runtime: Runtime) -> bytes:
    """UTF-8 whatever the locale is, for there is none."""
    lines = [
        f"#!{runtime.interpreter} -ISXutf8",
        "import sys",
        f"sys.path[:0] = {FIRST!r}",
        f"if {PROBE!r} in sys.argv:",
        f"    sys.exit(print({ALIVE!r}, flush=True))",
        f"from {MAIN} import main",
        "main()",
    ]
    if len(lines[0]) > 255:
        raise LaunchError(f"{runtime.interpreter} is too long a path for the first line of a script (execve(2))")
    return "\n".join((*lines, "")).encode()


def archive(found: Iterable[Entry]) -> bytes:
    """The entries as the kernel takes them, with the directories they are in."""
    by_path: dict[str, Entry] = {}
    for entry in found:
        directory = os.path.dirname(entry.path)
        while directory:
            by_path.setdefault(directory, Entry(directory, stat.S_IFDIR | 0o755))
            directory = os.path.dirname(directory)
        by_path[entry.path] = entry
    # A directory sorts before what is in it.
    parts = [_cpio(number, by_path[path]) for number, path in enumerate(sorted(by_path), 1)]
    return b"".join((*parts, _cpio(0, Entry("TRAILER!!!", 0))))


def _cpio(number: int, entry: Entry) -> bytes:
    name = os.fsencode(entry.path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = os.major(entry.device), os.minor(entry.device)
    # ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, check
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return b"".join((header, bytes(-len(header) % 4), entry.data, bytes(-len(entry.data) % 4)))


# --- modules of the kernel


def modules(kernel: Kernel) -> list[Module]:
    """What the guest loads, in this order: each after those it needs (modules.dep(5)). Raises LaunchError."""
    needs, paths = _dependencies(f"{kernel.modules}/modules.dep")
    built_in = {_name(line) for line in _lines(f"{kernel.modules}/modules.builtin")}
    found: dict[str, Module] = {}
    for wanted in (*REQUIRED, *WELCOME):
        if wanted in built_in:
            continue
        if wanted not in needs and wanted in WELCOME:
            continue
        if wanted not in needs:
            raise LaunchError(
                f"kernel {kernel.path} cannot be a guest: there is no {wanted} in {kernel.modules}",
                hint="install a kernel for virtual machines, such as Debian's linux-image-cloud-amd64",
            )
        for name in (*reversed(needs[wanted]), wanted):
            path = os.path.join(kernel.modules, paths[name])
            found.setdefault(name, Module(name, path, _LISTS.get(wanted, ORDER)))
    return list(found.values())


def _dependencies(path: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """By module the names of those it needs, to be loaded from the last one on, and its path."""
    needs, paths = {}, {}
    for line in _lines(path):
        module, _, rest = line.partition(":")
        needs[_name(module)] = [_name(word) for word in rest.split()]
        paths[_name(module)] = module
    for names in needs.values():
        names[:] = [name for name in names if name in paths]
    return needs, paths


def _name(path: str) -> str:
    """The kernel knows no difference between - and _ in them."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _lines(path: str) -> list[str]:
    try:
        return _read(path).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise LaunchError(f"open {path}: {reason(error)}", hint="depmod(8) makes it") from error


def _plain(path: str) -> bytes:
    try:
        data = _read(path)
        return data if path.endswith(".ko") else decompress(data, limit=_LIMIT)
    except OSError as error:
        raise LaunchError(f"open {path}: {reason(error)}") from error
    except ValueError as error:
        raise LaunchError(f"kernel module {path}: {error}") from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
