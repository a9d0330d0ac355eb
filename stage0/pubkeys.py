"""Public keys on their way into the keystore: from files and https URLs, and looked at by gpg."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from common.errors import TrustError, reason
from common.records import NamedTuple
from stage0 import openpgp
from stage0.config import Config
from stage0.gpg import KeyInfo, isolated
from stage0.keystore import MAX_KEY_SIZE, Keystore, load, read_limited

if TYPE_CHECKING:
    from stage0.http import Client

Say = Callable[[str], None]


class Candidate(NamedTuple):
    """A key that may be trusted."""

    info: KeyInfo
    armored: bytes


def content(location: str, client: Callable[[], Client]) -> bytes:
    """What lies at `location`, a path or a URL. No credentials are sent for a key. Raises TrustError and FetchError."""
    try:
        if "://" in location:
            return client().content(location, what="public key", limit=MAX_KEY_SIZE, credentials=False)
        return read_limited(location, MAX_KEY_SIZE)
    except OSError as e:
        hint = "name a file made with gpg --export, or cosign.pub"
        raise TrustError(f"open {openpgp.printable(location)}: {reason(e)}", hint=hint) from e
    except openpgp.PacketError as e:
        raise TrustError(f"{openpgp.printable(location)} is not a public key: {e}") from e


def openpgp_keys(data: bytes, location: str) -> list[openpgp.PublicKey]:
    """The OpenPGP keys in `data`, which came from `location`. Raises TrustError."""
    shown = openpgp.printable(location)
    try:
        return openpgp.public_keys(data)
    except openpgp.SecretKeyError as e:
        hint = "give the public key: gpg --armor --export; whoever could read this file has the secret"
        raise TrustError(f"{shown} is not a public key: {e}", hint=hint) from e
    except openpgp.PacketError as e:
        raise TrustError(f"{shown} is not an OpenPGP public key: {e}", hint="make it with gpg --armor --export") from e


def examine(keystore: Keystore, key: openpgp.PublicKey, where: str, prefix: str | None) -> Candidate:
    """What gpg makes of `key`, joined with what is in its place already: a copy without a revocation that is known
    here must not undo it. Raises TrustError."""
    with isolated() as gpg:
        accepted = gpg.import_keys([*_present(keystore, key, prefix), key.raw])
        if key.fingerprint not in accepted:
            raise TrustError(
                f"gpg refuses the key in {openpgp.printable(where)}",
                hint="it has no valid self-signature, perhaps only one with SHA-1; ask its owner for an updated key",
            )
        return Candidate(gpg.describe(key.fingerprint), gpg.export(key.fingerprint))


def _present(keystore: Keystore, key: openpgp.PublicKey, prefix: str | None) -> list[bytes]:
    found = []
    for file in keystore.files():
        if (file.fingerprint, file.prefix) == (key.fingerprint, prefix or ""):
            try:
                found.append(load(file).raw)
            except TrustError:
                continue  # it is about to be replaced by one that can be used
    return found


def trust_first_seen(config: Config, keystore: Keystore, name: str, say: Say) -> None:
    """With --trust-keys-from-https, trust the keys that `name` announces if no key is trusted for it yet.

    The keys come over verified TLS and nothing else, whatever else is insecure: there is no other proof of whose they
    are. `--insecure-options=pubkey` gives that up too. A key that was masked is not brought back.
    Raises FetchError and TrustError."""
    if keystore.trusted_for(name):
        return
    from stage0 import discovery
    from stage0.http import Client

    kept = config.insecure | {"http"} if "pubkey" in config.insecure else config.insecure - {"http", "tls"}
    client = Client(config, insecure=kept)
    masked = {file.fingerprint for file in keystore.files() if file.masked_by and file.applies_to(name)}
    for url in discovery.keys(client, name):
        for key in openpgp_keys(content(url, lambda: client), url):
            if key.fingerprint in masked:
                continue
            path = keystore.add(examine(keystore, key, url, name).armored, name)
            say(f'Trusting "{url}" for prefix "{name}" without fingerprint review.')
            say(f'Added key for prefix "{name}" at "{path}"')
