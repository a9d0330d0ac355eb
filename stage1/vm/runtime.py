"""The Python that runs in the guest: the very interpreter that runs here, with what of its library the guest needs.

An interpreter is asked what it has loaded once the guest's modules are imported; of the host nothing else comes along.
Everything keeps its path, by which the interpreter finds it again (https://docs.python.org/3/library/sys_path_init.html);
only shared libraries come to lie beside the C library, under the names they are asked for by (ld.so(8)). Some modules
of the library are ours instead (`stage1.vm.lean`).
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

from common.errors import LaunchError, reason
from common.records import NamedTuple

PLACE = "/rkpy"
"""Where rkpy's own modules are in the guest."""
LEAN = "/stage1/vm/lean"
"""Where among them those are that stand in for some of the standard library's."""
FIRST = (PLACE + LEAN, PLACE)
"""What comes first on the guest's sys.path."""
MAIN = "stage1.vm.guest"
"""The module whose `main` is the guest's first process."""
MODULES = (
    MAIN, "stage1.vm.agent", "stage1.vm.guestnet", "stage1.vm.frames", "stage1.supervisor",
    "stage1.health", "stage1.cgroup", "stage1.apptree", "stage1.entrance", "stage1.channel", "stage1.plan",
    "stage2.launch", "importlib", "encodings.ascii", "encodings.latin_1", "encodings.unicode_escape",
)  # fmt: skip
"""What the guest imports, now or later, and with it all that these import."""
_ROOMS = ("common", "stage1", "stage2")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PATIENCE = 60
"""Seconds an interpreter has to import them."""

_ASK = """
import sys
root, first, *names = sys.argv[1:]
sys.path[:] = [*filter(None, [first]), *sys.path, root]
for name in names:
    __import__(name)
modules = dict(sys.modules)
files = [file for module in modules.values() if (file := getattr(module, "__file__", None))]
import json
from importlib.machinery import PathFinder
for name, module in modules.items():
    # Some put another one in their place, as collections.abc does since Python 3.13.
    parent = modules.get(name.rpartition(".")[0])
    own = getattr(getattr(module, "__spec__", None), "name", name)
    if own != name and hasattr(parent, "__path__"):
        spec = PathFinder.find_spec(name, parent.__path__)
        files += [spec.origin] if spec and spec.origin else []
with open("/proc/self/maps") as file:
    fields = [line.rstrip("\\n").split(None, 5) for line in file]
maps = {found[5] for found in fields if len(found) == 6 and found[5].startswith("/") and not found[5].endswith(")")}
import posix
said = [posix.readlink("/proc/self/exe"), sys.path, sorted(set(files)), sorted(maps)]
print(json.dumps(said, separators=(",", ":")))
"""


class File(NamedTuple):
    """One file of the guest."""

    target: str
    source: str
    """The file of the host it is made of."""
    compiled: bool = False
    """A module of Python: `target` is to be what `source` compiles to."""


class Runtime(NamedTuple):
    interpreter: str
    files: tuple[File, ...]
    path: tuple[str, ...]
    """Directories on the interpreter's sys.path, which have to be there for it to find its prefix."""


def collect(modules: Sequence[str] = MODULES) -> Runtime:
    """What it takes to run `modules`. Raises LaunchError."""
    try:
        interpreter, path, files, maps = _ask(modules, ROOT + LEAN)
    except LaunchError:
        # A library of another version may want what the stand-ins do not have. It takes longer without them.
        interpreter, path, files, maps = _ask(modules)
    try:
        return _collect(interpreter, path, files, maps)
    except (OSError, ValueError, struct.error) as error:
        text = f"{error.filename}: {reason(error)}" if isinstance(error, OSError) else str(error)
        raise LaunchError(f"cannot tell what {interpreter} needs in a virtual machine: {text}") from error


def _collect(interpreter: str, path: list[str], files: list[str], maps: list[str]) -> Runtime:
    own = [file for file in files if file.startswith(f"{ROOT}/")]
    others = [file for file in files if file not in own]
    if strange := [file for file in own if file.removeprefix(f"{ROOT}/").partition("/")[0] not in _ROOMS]:
        raise ValueError(f"{strange[0]} is not for guests")
    extensions = [file for file in others if not file.endswith((".py", ".pyc"))]
    found = [_module(file, PLACE + file.removeprefix(ROOT)) for file in own]
    found += [_module(file, file) for file in others]
    found.append(File(interpreter, interpreter))
    found += _libraries([interpreter, *extensions], maps)
    ours = (ROOT, ROOT + LEAN)
    places = tuple(directory for directory in path if directory.startswith("/") and directory not in ours)
    unique = {file.target: file for file in found}
    return Runtime(interpreter, tuple(unique[target] for target in sorted(unique)), places)


def _ask(modules: Sequence[str], first: str = "") -> tuple[str, list[str], list[str], list[str]]:
    """`first`: a directory to look for modules in before any other."""
    import subprocess

    words = [sys.executable, "-I", "-S", "-c", _ASK, ROOT, first, *modules]
    try:
        # Nothing of the environment but what it may take to start, which says where libraries are.
        kept = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
        said = subprocess.run(
            words, capture_output=True, text=True, timeout=_PATIENCE, env=kept, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"cannot ask {sys.executable} what it needs in a virtual machine: {error}") from error
    if said.returncode:
        last = said.stderr.strip().rpartition("\n")[2] or f"exit status {said.returncode}"
        raise LaunchError(f"cannot ask {sys.executable} what it needs in a virtual machine: {last}")
    interpreter, path, files, maps = json.loads(said.stdout)
    return interpreter, path, files, maps


def _module(source: str, target: str) -> File:
    compiled = source.endswith(".py")
    return File(f"{target}c" if compiled else target, source, compiled)


def code(source: str, target: str) -> bytes:
    """The module `source` compiled, to be `target` without a source beside it: a file of PEP 552 that nothing is
    compared with, without docstrings and assertions. Raises OSError, and LaunchError for what does not compile."""
    import marshal
    from importlib.util import MAGIC_NUMBER, source_hash

    with open(source, "rb") as file:
        text = file.read()
    try:
        made = compile(text, target.removesuffix("c"), "exec", dont_inherit=True, optimize=2)
    except (SyntaxError, ValueError) as error:
        raise LaunchError(f"cannot compile {source}: {error}") from error
    return MAGIC_NUMBER + struct.pack("<I", 1) + source_hash(text) + marshal.dumps(made)


def program(source: str) -> bytes:
    """The program or library `source` without what is not loaded: the sections, and those for debuggers with them
    (elf(5)). Raises OSError."""
    with open(source, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        return data
    try:
        end = max(offset + length for _, _, offset, _, _, length in _segments(data))
    except (struct.error, ValueError):
        return data
    whole = bytearray(data[:end])
    struct.pack_into("<Q", whole, 0x28, 0)  # e_shoff
    struct.pack_into("<HH", whole, 0x3C, 0, 0)  # e_shnum, e_shstrndx
    return bytes(whole)


# --- shared libraries


def _libraries(programs: Iterable[str], maps: Iterable[str]) -> Iterator[File]:
    """Those that `programs` need, of the ones that were mapped, and the program that loads them."""
    by_name = {}
    for path in maps:
        if (elf := _elf(path)) is not None:
            by_name[elf.soname or os.path.basename(path)] = (path, elf)
    loader = ""
    wanted: list[str] = []
    for program in programs:
        if (elf := _elf(program)) is None:
            raise ValueError(f"{program} is no ELF file of 64 bits")
        loader = loader or elf.interpreter
        wanted += elf.needed
    if not loader:
        return  # linked statically
    yield File(loader, os.path.realpath(loader))
    names: list[str] = []
    for name in wanted:  # which grows
        if name in names or (name in by_name and os.path.samefile(by_name[name][0], loader)):
            continue
        if name not in by_name:
            raise ValueError(f"library {name} was not loaded")
        names.append(name)
        wanted += by_name[name][1].needed
    libc = next((by_name[name][0] for name in names if name.startswith("libc.")), loader)
    directory = os.path.dirname(_plain(libc))
    for name in names:
        yield File(f"{directory}/{name}", _plain(by_name[name][0]))


def _plain(path: str) -> str:
    """Instead of a library for processors that can do more, of which the guest's may not be one, the one for all."""
    plain = re.sub(r"/glibc-hwcaps/[^/]+(?=/)", "", path)
    return plain if os.path.exists(plain) else path


def _segments(data: bytes) -> list[tuple[int, ...]]:
    """Type, flags, offset, address twice and length of each. Raises struct.error."""
    (headers,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    return [struct.unpack_from("<IIQQQQ", data, headers + index * size) for index in range(count)]


class _Elf(NamedTuple):
    interpreter: str
    soname: str
    needed: tuple[str, ...]


def _elf(path: str) -> _Elf | None:
    """What an ELF file (elf(5)) says of its libraries; None when it is none of 64 bits. Raises OSError, ValueError and
    struct.error."""
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x7fELF\x02\x01":
                return None
            file.seek(0)
            data = file.read()
    except FileNotFoundError:
        return None  # Replaced while it was in use.
    segments = _segments(data)
    interpreter = next((data[s[2] : s[2] + s[5]] for s in segments if s[0] == 3), b"")  # PT_INTERP
    dynamic = next((data[s[2] : s[2] + s[5]] for s in segments if s[0] == 2), b"")  # PT_DYNAMIC
    entries = []
    for tag, value in struct.iter_unpack("<qQ", dynamic[: len(dynamic) & ~15]):
        if tag == 0:
            break
        entries.append((tag, value))
    table = next((value for tag, value in entries if tag == 5), 0)  # DT_STRTAB, an address
    strings = next((s[2] + table - s[3] for s in segments if s[0] == 1 and s[3] <= table < s[3] + s[5]), 0)

    def names(wanted: int) -> tuple[str, ...]:
        starts = (strings + value for tag, value in entries if tag == wanted)
        return tuple(os.fsdecode(data[start : data.index(b"\0", start)]) for start in starts)

    return _Elf(os.fsdecode(interpreter.rstrip(b"\0")), "".join(names(14)[:1]), names(1))  # DT_SONAME, DT_NEEDED
