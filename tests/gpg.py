"""Signers for tests: real keys and signatures, made by gpg in a home that is thrown away with its agent."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator


class Signer:
    """Somebody with a GnuPG home. Times are ISO (20200101T000000) and let keys and signatures lie in the past."""

    def __init__(self, home: str) -> None:
        self.home = home

    def run(self, *arguments: str, at: str = "", data: bytes = b"") -> bytes:
        clock = ["--faked-system-time", f"{at}!"] if at else []
        fixed = ["gpg", "--homedir", self.home, "--batch", "--yes", "--quiet", "--no-tty", "--passphrase", ""]
        fixed += ["--pinentry-mode", "loopback", *clock]
        done = subprocess.run([*fixed, *arguments], input=data, capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def key(self, user_id: str = "Somebody <somebody@example.com>", *, at: str = "", expires: str = "never") -> str:
        """Make a signing key; return its fingerprint in lower case."""
        known = set(self._primaries())
        self.run("--allow-freeform-uid", "--quick-generate-key", user_id, "ed25519", "sign", expires, at=at)
        (made,) = set(self._primaries()) - known
        return made

    def subkey(self, fingerprint: str, *, at: str = "", expires: str = "never") -> str:
        """Add a signing subkey; return its fingerprint in lower case."""
        known = set(self._fingerprints())
        self.run("--quick-add-key", fingerprint, "ed25519", "sign", expires, at=at)
        (made,) = set(self._fingerprints()) - known
        return made

    def sign(self, fingerprint: str, path: str, *options: str, at: str = "", armor: bool = True, to: str = "") -> str:
        """Sign the file `path` by exactly this key or subkey; return the path of the detached signature."""
        target = to or f"{path}.asc"
        form = ["--armor"] if armor else []
        self.run(*form, *options, "--local-user", f"{fingerprint}!", "--output", target, "--detach-sign", path, at=at)
        return target

    def export(self, fingerprint: str, *, armor: bool = True) -> bytes:
        return self.run(*(["--armor"] if armor else []), "--export", fingerprint)

    def revoke(self, fingerprint: str) -> None:
        """Revoke a whole key with the certificate gpg made beside it."""
        with open(f"{self.home}/openpgp-revocs.d/{fingerprint.upper()}.rev", encoding="utf-8") as file:
            self.run("--import", data=file.read().replace(":-----BEGIN", "-----BEGIN").encode())

    def revoke_subkey(self, fingerprint: str, number: int = 1) -> None:
        dialogue = f"key {number}\nrevkey\ny\n0\n\ny\nsave\n".encode()
        self.run("--no-batch", "--command-fd", "0", "--edit-key", fingerprint, data=dialogue)

    def _primaries(self) -> list[str]:
        return [fingerprint for kind, fingerprint in self._keys() if kind == "pub"]

    def _fingerprints(self) -> list[str]:
        return [fingerprint for _, fingerprint in self._keys()]

    def _keys(self) -> list[tuple[str, str]]:
        found, kind = [], ""
        for line in self.run("--with-colons", "--fingerprint", "--fingerprint", "--list-keys").split(b"\n"):
            fields = line.split(b":")
            if fields[0] in (b"pub", b"sub"):
                kind = fields[0].decode()
            elif fields[0] == b"fpr":
                found.append((kind, fields[9].decode().lower()))
        return found


@contextlib.contextmanager
def signer() -> Iterator[Signer]:
    """A Signer with a fresh home; its agent ends with it."""
    home = tempfile.mkdtemp(prefix="rkpy-test-gpg-", dir="/tmp")  # short: the agent's socket is in it
    os.chmod(home, 0o700)
    try:
        yield Signer(home)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
