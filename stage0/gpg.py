"""gpg in a home of its own: no configuration, no agent, no network, nothing left behind.

python-gnupg starts gpg; reading what gpg said is done here, from bytes. Its own reader splits lines where Unicode does
(U+0085 among others) although gpg escapes only ASCII controls, so a user id could forge a status line, and it keeps one
verdict for many signatures.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from common.errors import TrustError, reason
from common.records import NamedTuple

_STATUS = b"[GNUPG:] "


class Status(NamedTuple):
    """One line of gpg's status output (GnuPG doc/DETAILS): `GOODSIG` and what follows it, undecoded."""

    keyword: str
    rest: bytes

    @property
    def fields(self) -> list[str]:
        return self.rest.decode("ascii", "replace").split(" ")


class Subkey(NamedTuple):
    fingerprint: str
    validity: str
    """gpg's letter: `r` revoked, `e` expired, `i` invalid, `-` or others for nothing known against it."""
    expires: int
    """Seconds since the epoch, 0 for never."""


class KeyInfo(NamedTuple):
    """What gpg makes of a key after checking its self-signatures."""

    primary: Subkey
    subkeys: tuple[Subkey, ...]
    user_ids: tuple[bytes, ...]


class Gpg:
    """gpg with a keyring that exists as long as this does; made by `isolated`."""

    def __init__(self, home: str) -> None:
        import gnupg

        self.home = home
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": home}
        try:
            self._gpg = gnupg.GPG(gnupghome=home, options=_options(home), env=environment)
        except (OSError, ValueError) as e:
            raise TrustError("cannot run gpg", hint="install GnuPG (Debian: apt install gpg)") from e
        self._gpg.result_map = {**gnupg.GPG.result_map, **dict.fromkeys(("verify", "import", "list"), _raw_result())}

    def import_keys(self, keys: Iterable[bytes]) -> list[str]:
        """Add public keys (binary, one or more); return the fingerprints gpg accepted, in lower case."""
        statuses = _statuses(self._gpg.import_keys(b"".join(keys)).stderr)
        return [status.fields[1].lower() for status in statuses if status.keyword == "IMPORT_OK"]

    def verify(self, signature: bytes, data_path: str) -> tuple[int, list[Status]]:
        """Check one detached signature packet over a file; return gpg's exit status and what it said."""
        signature_path = f"{self.home}/signature"
        with open(signature_path, "wb") as file:
            file.write(signature)
        # The paths go as arguments because python-gnupg would copy the signature to a file outside this home.
        arguments = ["--", signature_path, os.path.abspath(data_path)]
        result = self._gpg.verify_file(io.BytesIO(), extra_args=arguments)
        return result.returncode, _statuses(result.stderr)

    def describe(self, fingerprint: str) -> KeyInfo:
        """Validity, expiry and user ids of an imported key."""
        listing: bytes = self._gpg.list_keys(keys=[fingerprint]).data
        return _key_info(listing)

    def export(self, fingerprint: str) -> bytes:
        """An imported key, armoured."""
        text: str = self._gpg.export_keys(fingerprint)
        return text.encode("ascii")


@contextlib.contextmanager
def isolated() -> Iterator[Gpg]:
    """A Gpg whose home is removed at the end, whatever happens. Raises TrustError when gpg cannot be started."""
    import tempfile

    try:
        directory = tempfile.TemporaryDirectory(prefix="rkpy-gpg-")  # mode 0700
    except OSError as e:
        raise TrustError(f"make a directory for gpg: {reason(e)}", hint="see whether TMPDIR is writable") from e
    with directory as home:
        try:
            yield Gpg(home)
        except OSError as e:
            raise TrustError(f"run gpg in {home}: {reason(e)}", hint="see whether TMPDIR is full") from e


def _options(home: str) -> list[str]:
    return [
        "--no-options",
        "--no-autostart",  # no gpg-agent, no keyboxd
        "--disable-dirmngr",
        "--no-auto-key-locate",
        "--no-auto-key-retrieve",
        "--trust-model", "always",  # what a key is trusted for is the keystore's business
        "--weak-digest", "SHA1",  # MD5 always is
        # Status lines share descriptor 2 with messages, which quote file names and user ids. Send those elsewhere.
        "--logger-file", f"{home}/log",
    ]  # fmt: skip


def _raw_result() -> type[Any]:
    """A python-gnupg result that keeps gpg's output and interprets nothing of it."""
    import gnupg

    class RawResult(gnupg.StatusHandler, list):  # type: ignore[misc,type-arg]
        returncode: int | None = None
        stderr = ""
        data = b""

        def handle_status(self, key: str, value: str) -> None:
            pass

        def _ignore(self, fields: list[str]) -> None:
            pass

        pub = sec = uid = fpr = sub = ssb = sig = grp = _ignore

    return RawResult


def _statuses(text: str) -> list[Status]:
    found = []
    for line in text.encode("latin-1").split(b"\n"):  # python-gnupg decoded it as Latin-1, so this is what gpg wrote
        if line.startswith(_STATUS):
            keyword, _, rest = line.removeprefix(_STATUS).partition(b" ")
            found.append(Status(keyword.decode("ascii", "replace"), rest.rstrip(b"\r")))
    return found


def _key_info(listing: bytes) -> KeyInfo:
    """Read `--with-colons` output (GnuPG doc/DETAILS) about one key."""
    keys: list[Subkey] = []
    user_ids: list[bytes] = []
    revoked_user_ids: list[bytes] = []
    for line in listing.split(b"\n"):
        fields = line.split(b":")
        if fields[0] in (b"pub", b"sub"):
            keys.append(Subkey("", fields[1].decode("ascii", "replace"), int(fields[6] or b"0")))
        elif fields[0] == b"fpr" and keys:
            keys[-1] = keys[-1]._replace(fingerprint=fields[9].decode("ascii", "replace").lower())
        elif fields[0] == b"uid":
            (revoked_user_ids if fields[1] == b"r" else user_ids).append(_unescape(fields[9]))
    if not keys:
        raise TrustError("gpg does not list a key it has imported")
    # With a revoked key all of its user ids are; then they are what there is to tell it by.
    return KeyInfo(keys[0], tuple(keys[1:]), tuple(user_ids or revoked_user_ids))


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text)
