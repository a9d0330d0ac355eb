"""Where `.pod` files lie: directories of ours, with systemd's precedence, masks, drop-ins and templates
(systemd.unit(5))."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence

from common.errors import reason
from common.records import NamedTuple
from stage0 import caller
from stage0.config import Config
from stage0.podfile import syntax
from stage0.podfile.syntax import Mistake, Parsed

SUFFIX = ".pod"
VOLATILE = "/run/rkpy"
_QUADLET = {
    ".container": "rename it to {name}.pod and its [Container] to [Pod]; rkpy.pod(5) has the keys that differ",
    ".network": "write the network into net.d",
    ".volume": "Volume={name}:/PATH makes the volume",
    **dict.fromkeys((".build", ".image", ".kube"), "there is nothing of the kind here"),
}
"""Files of Podman's (podman-systemd.unit(5)), and what is to be done about them."""
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]*)?")
_LONGEST = 255 - len(".service")


class PodFile(NamedTuple):
    """One pod: the file that describes it, and what is read after it."""

    name: str
    """`web`, `web@` for a template, `web@1` for an instance that has a file or a symlink."""
    path: str
    dropins: tuple[str, ...] = ()
    masked: bool = False

    @property
    def unit(self) -> str:
        return f"{self.name}.service"

    @property
    def socket(self) -> str:
        """The unit that has the service's sockets, when the file has a section for them."""
        return f"{self.name}.socket"

    @property
    def is_template(self) -> bool:
        return self.name.endswith("@")


def directories(config: Config) -> tuple[str, ...]:
    """Where to look, the first wins. The system's are for the system's services, and a user has none but his own."""
    if caller.is_ordinary():
        runtime = caller.runtime(os.environ)
        return tuple(f"{parent}/pods" for parent in (config.user_config, runtime and f"{runtime}/rkpy") if parent)
    return tuple(f"{parent}/pods" for parent in (config.local_config, VOLATILE, config.system_config))


def find(folders: Sequence[str]) -> tuple[list[PodFile], list[Mistake]]:
    """Every pod that is described, by name; and what could not be looked at."""
    found: dict[str, PodFile] = {}
    mistakes: list[Mistake] = []
    for folder in folders:
        for entry in _listed(folder, mistakes):
            name = entry.removesuffix(SUFFIX)
            path = f"{folder}/{entry}"
            if entry == name or name in found or os.path.isdir(path):
                continue
            if not is_name(name):
                mistakes.append(Mistake(path, 0, f'"{name}" cannot be the name of a unit'))
                continue
            found[name] = PodFile(name, path, dropins(folders, name), is_masked(path))
    return [found[name] for name in sorted(found)], mistakes


def _listed(folder: str, mistakes: list[Mistake]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        mistakes.append(Mistake(folder, 0, reason(error)))
        return []


def data_files(folders: Sequence[str]) -> list[str]:
    """The pods in JSON and TOML, of each name the first."""
    found: dict[str, str] = {}
    for folder in folders:
        for entry in _listed(folder, []):
            if entry.endswith((".json", ".toml")):
                found.setdefault(entry.rpartition(".")[0], f"{folder}/{entry}")
    return [found[name] for name in sorted(found)]


def quadlets(folders: Sequence[str]) -> list[Mistake]:
    """A warning for each file of Quadlet's but `.pod`: nobody reads them here."""
    found = []
    for folder in folders:
        for entry in _listed(folder, []):
            name, dot, suffix = entry.rpartition(".")
            if name and (advice := _QUADLET.get(f"{dot}{suffix}")):
                found.append(Mistake(f"{folder}/{entry}", 0, f"rkpy reads .pod files only: {advice.format(name=name)}"))
    return found


def at(path: str, folders: Sequence[str]) -> PodFile:
    """The pod that the file `path` describes, wherever it lies; drop-ins beside it count, and those of `folders` when
    it lies in one of them."""
    path = os.path.abspath(path)
    here = os.path.dirname(path)
    around = folders if here in folders else (here,)
    name = os.path.basename(path).removesuffix(SUFFIX)
    return PodFile(name, path, dropins(around, name), is_masked(path))


def is_name(name: str) -> bool:
    return len(name) <= _LONGEST and bool(_NAME.fullmatch(name)) and not name.startswith("@")


def is_masked(path: str) -> bool:
    """Whether it is empty, or a symlink to /dev/null."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return os.path.realpath(path) == os.devnull or (found.st_size == 0 and os.path.isfile(path))


def dropins(folders: Sequence[str], name: str) -> tuple[str, ...]:
    """Drop-ins by file name; of one name the first one counts, and none if that is masked."""
    found: dict[str, str] = {}
    general = [f"{folder}/pod.d" for folder in folders]
    for directory in [*(f"{folder}/{part}{SUFFIX}.d" for folder in folders for part in _parts(name)), *general]:
        for entry in _listed(directory, []):
            if entry.endswith(".conf"):
                found.setdefault(entry, f"{directory}/{entry}")
    return tuple(found[entry] for entry in sorted(found) if not is_masked(found[entry]))


def _parts(name: str) -> Iterator[str]:
    """The name, its template's, and what it has before each dash: `a-b@c`, `a-b@`, `a-`."""
    yield name
    prefix, at_sign, instance = name.partition("@")
    if at_sign and instance:
        yield f"{prefix}@"
    while (prefix := prefix.rstrip("-").rpartition("-")[0]) != "":
        yield f"{prefix}-"


def read(file: PodFile) -> Parsed:
    """The file and its drop-ins, as one."""
    parsed = Parsed()
    for path in (file.path, *file.dropins):
        parsed = parsed.then(_parsed(path))
    return parsed


def _parsed(path: str) -> Parsed:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Parsed(mistakes=(Mistake(path, 0, "this is not a regular file"),))
            return syntax.parse(file.read(syntax.LARGEST_FILE + 1) or b"", path)
    except OSError as error:
        return Parsed(mistakes=(Mistake(path, 0, reason(error)),))
