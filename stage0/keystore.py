"""The keys an administrator trusts, as files.

    CONFIG/trustedkeys/root.d/FINGERPRINT             trusted for every image
    CONFIG/trustedkeys/prefix.d/IDENTIFIER/FINGERPRINT  trusted for IDENTIFIER and the names below it

CONFIG is the local directory (/etc/rkpy) or the system's (/usr/lib/rkpy), and for those who are not root before these
their own ($XDG_CONFIG_HOME/rkpy). IDENTIFIER's slashes are directories.
FINGERPRINT is that of the one key inside, and its length says of which kind that is: 40 lower-case hex digits for the
primary key of an OpenPGP key, 64 for the key of a cosign key pair (`stage0.spki`). An empty file masks those of
the same name in later directories. Names beginning with a dot are not looked at.

A file that is none of this is an error for the images it would apply to, and for no others.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator

from aci.types import ac_identifier
from common import files
from common.errors import ManifestError, TrustError, reason
from common.records import NamedTuple
from stage0 import caller, openpgp, spki
from stage0.config import Config

OPENPGP, COSIGN = "openpgp", "cosign"
"""Kinds of keys."""
MAX_KEY_SIZE = 1 << 20
"""Octets of a key file. A key grows past this only by being flooded with other people's signatures."""

_FINGERPRINT = re.compile(r"[0-9a-f]{40}")
_COSIGN_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
USER, LOCAL, SYSTEM = "user", "local", "system"
"""Whose keys: in this order of precedence."""
_REMEDY = "correct or remove that file; one that is not yours is masked by an empty file of that name in your directory"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class KeyFile(NamedTuple):
    """One file of the keystore, not yet read."""

    path: str
    prefix: str
    """The identifier it is trusted for; empty for a root key."""
    fingerprint: str
    """Its name, which must be the key's fingerprint."""
    level: str
    """USER, LOCAL or SYSTEM."""
    masked_by: str = ""
    """The empty file that disables this key."""

    @property
    def kind(self) -> str:
        """COSIGN or OPENPGP; the latter for names that are no fingerprint at all, too."""
        return COSIGN if _COSIGN_FINGERPRINT.fullmatch(self.fingerprint) else OPENPGP

    def applies_to(self, name: str) -> bool:
        """Whether images called `name` are this key's to sign: whole components, so `a/foo` is not over `a/foobar`."""
        return not self.prefix or name == self.prefix or name.startswith(f"{self.prefix}/")


class Keystore:
    """The trusted keys of a local and a system configuration directory, and those of a user; any may be missing. Whose
    keystore it is may add keys to the first and mask what is in the others."""

    def __init__(self, local_config: str, system_config: str, user_config: str = "") -> None:
        self.local = f"{local_config}/trustedkeys"
        self.system = f"{system_config}/trustedkeys"
        self.user = f"{user_config}/trustedkeys" if user_config else ""
        levels = [(USER, self.user), (LOCAL, self.local), (SYSTEM, self.system)][not user_config :]
        self._own_level, self.own = levels[0]
        self._levels = [levels[0], *((level, root) for level, root in levels[1:] if root != self.own)]

    def files(self) -> list[KeyFile]:
        """Every key file, masked ones included, in the order of precedence."""
        masks: dict[tuple[str, str], str] = {}
        keys: list[KeyFile] = []
        for level, root in self._levels:
            here = list(_walk(root, level))
            empty = [file for file in here if level != SYSTEM and _is_empty(file.path)]
            keys += [
                file._replace(masked_by=masks.get((file.prefix, file.fingerprint), ""))
                for file in here
                if file not in empty
            ]
            for file in empty:
                masks.setdefault((file.prefix, file.fingerprint), file.path)
        return keys

    def active(self) -> list[KeyFile]:
        """The key files that are not masked."""
        return [file for file in self.files() if not file.masked_by]

    def trusted_for(self, name: str) -> list[tuple[KeyFile, openpgp.PublicKey]]:
        """The OpenPGP keys that may sign images called `name`, the longest prefix first and root keys last.

        Raises TrustError for a file that would apply to `name` and cannot be used."""
        return [(file, load(file)) for file in self._applying(OPENPGP, name)]

    def cosign_trusted_for(self, name: str) -> list[tuple[KeyFile, spki.PublicKey]]:
        """As `trusted_for`, of cosign keys."""
        return [(file, load_cosign(file)) for file in self._applying(COSIGN, name)]

    def _applying(self, kind: str, name: str) -> list[KeyFile]:
        files = [file for file in self.active() if file.kind == kind and file.applies_to(name)]
        return sorted(files, key=lambda file: len(file.prefix), reverse=True)

    def is_own(self, file: KeyFile) -> bool:
        """Whether it is among the keys that the keystore's owner has added."""
        return file.level == self._own_level

    def place(self, prefix: str | None) -> str:
        """The own directory for keys of `prefix`, or for root keys when it is None. Raises TrustError."""
        if prefix is None:
            return f"{self.own}/root.d"
        check_prefix(prefix)
        return f"{self.own}/prefix.d/{prefix}"

    def add(self, armored: bytes, prefix: str | None) -> str:
        """Trust the one public key in `armored` for `prefix`, or for every image when that is None; return its path.

        A file of the same name, a masking one too, is replaced. Raises TrustError."""
        directory = self.place(prefix)
        key = _one_key(armored, "the key")
        _write(self.own, directory, key.fingerprint, armored)
        return f"{directory}/{key.fingerprint}"

    def add_cosign(self, pem: bytes, prefix: str | None) -> str:
        """As `add`, for the public key of a cosign key pair."""
        directory = self.place(prefix)
        try:
            key = spki.public_key(pem)
        except spki.UnusableKey as e:
            raise TrustError(f"the key is not a cosign public key: {e}") from e
        _write(self.own, directory, key.fingerprint, key.pem)
        return f"{directory}/{key.fingerprint}"

    def remove(self, file: KeyFile) -> str:
        """Stop trusting `file`: an own key is deleted, another masked. Return the path deleted or written."""
        if not self.is_own(file):
            directory = self.place(file.prefix or None)
            _write(self.own, directory, file.fingerprint, b"")
            return f"{directory}/{file.fingerprint}"
        try:
            os.unlink(file.path)
        except OSError as e:
            raise TrustError(f"remove {file.path}: {reason(e)}", hint=_permission_hint(e)) from e
        return file.path


def of(config: Config) -> Keystore:
    """The keystore of whoever called us. Root's is the machine's."""
    return Keystore(config.local_config, config.system_config, config.user_config if caller.is_ordinary() else "")


def check_prefix(prefix: str) -> None:
    """Raise TrustError unless `prefix` is an AC identifier."""
    if "://" in prefix:
        raise TrustError(f'the prefix "{openpgp.printable(prefix)}" has a scheme', hint="give it as example.com/app")
    try:
        ac_identifier(prefix, strict=True)
    except ManifestError as e:
        raise TrustError(
            f"invalid prefix: {e.message}", hint="give an image name or its beginning, as example.com/app"
        ) from e


def normal_fingerprint(text: str) -> str:
    """A fingerprint as people write it (groups, upper case, 0x) in the keystore's form. Raises TrustError."""
    compact = text.replace(" ", "").lower().removeprefix("0x")
    if not _is_fingerprint(compact):
        hint = "it has 40 hexadecimal digits, or 64 if it is of a cosign key"
        raise TrustError(f'"{openpgp.printable(text)}" is not a fingerprint', hint=hint)
    return compact


def read_limited(path: str, limit: int, *, flags: int = 0) -> bytes:
    """The content of the regular file `path`. Raises OSError, and PacketError when it is not one or is too large."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)  # a FIFO must not stop us here
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise openpgp.PacketError("it is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise openpgp.PacketError(f"it is larger than {limit >> 10} KiB")
    return data


def load(file: KeyFile) -> openpgp.PublicKey:
    """Read an OpenPGP key file and hold it to the rules. Raises TrustError naming the file."""
    data = _read(file)
    if not _FINGERPRINT.fullmatch(file.fingerprint):
        raise TrustError(
            f"trusted key {openpgp.printable(file.path)}: the name is not a fingerprint of 40 lower-case hex digits",
            hint="add keys with rkpy trust; keep other files out of trustedkeys",
        )
    key = _one_key(data, f"trusted key {file.path}", hint=_REMEDY)
    _require_name(file, key.fingerprint)
    return key


def load_cosign(file: KeyFile) -> spki.PublicKey:
    """As `load`, of a cosign key."""
    try:
        key = spki.public_key(_read(file))
    except spki.UnusableKey as e:
        raise TrustError(f"trusted key {file.path} is not a cosign public key: {e}", hint=_REMEDY) from e
    _require_name(file, key.fingerprint)
    return key


def _read(file: KeyFile) -> bytes:
    try:
        return read_limited(file.path, MAX_KEY_SIZE, flags=os.O_NOFOLLOW)
    except openpgp.PacketError as e:
        raise TrustError(f"trusted key {file.path}: {e}", hint=_REMEDY) from e
    except OSError as e:
        if os.path.islink(file.path):
            raise TrustError(f"trusted key {file.path}: it is a symbolic link", hint="put the key itself there") from e
        raise TrustError(f"trusted key {file.path}: {reason(e)}", hint="make it readable, or remove it") from e


def _require_name(file: KeyFile, fingerprint: str) -> None:
    if fingerprint != file.fingerprint:
        raise TrustError(
            f"trusted key {file.path}: the key inside has the fingerprint {fingerprint}",
            hint="the file's name must be the fingerprint; check where the key came from before renaming it",
        )


def _is_fingerprint(text: str) -> bool:
    return bool(_FINGERPRINT.fullmatch(text) or _COSIGN_FINGERPRINT.fullmatch(text))


def _one_key(data: bytes, what: str, *, hint: str = "") -> openpgp.PublicKey:
    try:
        keys = openpgp.public_keys(data)
    except openpgp.PacketError as e:
        raise TrustError(f"{what} is not an OpenPGP public key: {e}", hint=hint) from e
    if len(keys) != 1:
        raise TrustError(f"{what} holds {len(keys)} keys", hint="a key file of the keystore holds one key")
    return keys[0]


def _walk(root: str, level: str) -> Iterator[KeyFile]:
    yield from _walk_directory(f"{root}/root.d", "", level, nested=False)
    yield from _walk_directory(f"{root}/prefix.d", "", level, nested=True)


def _walk_directory(directory: str, prefix: str, level: str, *, nested: bool) -> Iterator[KeyFile]:
    """Symbolic links are not followed: one is reported as a file, and `load` then refuses it."""
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError:
        # Which keys are in there is unknown, so it stands as one unusable key of its prefix.
        yield KeyFile(directory, prefix, os.path.basename(directory), level)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        below = f"{prefix}/{entry.name}" if prefix else entry.name
        if nested and entry.is_dir(follow_symlinks=False):
            yield from _walk_directory(entry.path, below, level, nested=True)
        elif nested and entry.is_symlink() and not _is_fingerprint(entry.name):
            yield KeyFile(entry.path, below, entry.name, level)  # stood for a directory, perhaps
        elif prefix or not nested:
            yield KeyFile(entry.path, prefix, entry.name, level)


def _is_empty(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _write(base: str, directory: str, name: str, data: bytes) -> None:
    """Write `directory`/`name` whole or not at all; neither `base` nor anything below it may be a symbolic link."""
    try:
        fd = _make_directories(base, os.path.relpath(directory, base).split("/"))
        try:
            _replace(fd, name, data)
        finally:
            os.close(fd)
    except OSError as e:
        raise TrustError(f"write {directory}/{name}: {reason(e)}", hint=_permission_hint(e)) from e


def _make_directories(base: str, components: list[str]) -> int:
    """A descriptor of the last of `components` below `base`. Directories that are new get mode 02755, so that what a
    group of administrators adds stays that group's."""
    config, name = os.path.split(base)
    files.make_directories(config, 0o755)
    fd = os.open(config, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in (name, *components):
        parent = fd
        try:
            created = _mkdir(parent, component)
            fd = os.open(component, _DIRECTORY_FLAGS, dir_fd=parent)
        finally:
            os.close(parent)
        if created:
            os.fchmod(fd, 0o2755)  # mkdir(2) is subject to the umask and drops the bit
    return fd


def _mkdir(parent: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _replace(directory: int, name: str, data: bytes) -> None:
    partial = f".{name}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(partial, flags, 0o644, dir_fd=directory), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=directory)
        raise
    os.fsync(directory)


def _permission_hint(error: OSError) -> str:
    return "run it as root or as a member of the group that owns the directory" if error.errno in (1, 13) else ""
