"""`rkpy trust`: put keys into the keystore after a look at their fingerprints, list them, take them out."""

from __future__ import annotations

import sys
from typing import NamedTuple

import click

from common.errors import RkpyError, TrustError, UsageError, reason
from stage0 import flags, openpgp, render
from stage0.config import Config
from stage0.gpg import KeyInfo, Subkey, isolated
from stage0.keystore import MAX_KEY_SIZE, KeyFile, Keystore, load, normal_fingerprint, read_limited

_NOTES = {"r": " (revoked)", "e": " (expired)", "i": " (invalid)"}


@click.command("trust")
@click.option("--prefix", metavar="PREFIX", help="trust the keys for images of this name and below it")
@flags.switch("--root", "trust the keys for every image")
@flags.switch("--skip-fingerprint-review", "do not ask; the fingerprints were checked elsewhere")
@flags.switch("--insecure-allow-http", "allow keys to be fetched over plain http")
@flags.switch("--list list_keys", "list the keys of the keystore")
@click.option("--remove", metavar="FINGERPRINT", help="stop trusting a key; a key of the system is masked")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "json-pretty"]),
    default="table",
    help="how --list shows the keys: table, json or json-pretty",
)
@click.argument("pubkeys", metavar="[PUBKEY]...", nargs=-1)
@click.pass_obj
def command(
    config: Config,
    prefix: str | None,
    root: bool,
    skip_fingerprint_review: bool,
    insecure_allow_http: bool,
    list_keys: bool,
    remove: str | None,
    format_: str,
    pubkeys: tuple[str, ...],
) -> None:
    """Trust keys for verifying images.

    PUBKEY is a file with OpenPGP public keys. Each is shown and asked about, and then trusted for every image whose
    name begins with PREFIX in whole components (example.com/app is not over example.com/apple), or with --root for
    every image.
    """
    keystore = Keystore(config.local_config, config.system_config)
    if prefix is not None and root:
        raise UsageError("--prefix and --root exclude each other", hint="a root key is trusted for every prefix")
    if list_keys or remove is not None:
        if pubkeys or (list_keys and remove is not None):
            raise UsageError("--list and --remove stand alone", hint="add keys with another call")
        if remove is not None:
            _remove(keystore, normal_fingerprint(remove), prefix, root)
        else:
            _list(keystore, format_)
        return
    _require_place(prefix, root)
    keystore.place(prefix)  # a bad prefix is an error before any question is asked
    if not pubkeys:
        raise UsageError(
            "no key file given", hint="rkpy trust does not look for keys yet: get the key and name its file"
        )
    for pubkey in pubkeys:
        _trust_file(keystore, pubkey, prefix, review=not skip_fingerprint_review)


def _require_place(prefix: str | None, root: bool) -> None:
    if prefix is None and not root:
        raise UsageError(
            "neither --prefix nor --root given",
            hint="say which images the key may sign: --prefix=example.com/app, or --root for all",
        )


class _Candidate(NamedTuple):
    info: KeyInfo
    armored: bytes


def _trust_file(keystore: Keystore, location: str, prefix: str | None, *, review: bool) -> None:
    keys = _read(location)
    for number, key in enumerate(keys, 1):
        where = f"{location} (key {number} of {len(keys)})" if len(keys) > 1 else location
        candidate = _examine(keystore, key, where, prefix)
        if review and not _reviewed(candidate.info, where, prefix):
            click.echo(f'Not trusting "{openpgp.printable(where)}"', err=True)
            continue
        path = keystore.add(candidate.armored, prefix)
        what = "root key" if prefix is None else f'key for prefix "{prefix}"'
        click.echo(f'Added {what} at "{path}"')


def _read(location: str) -> list[openpgp.PublicKey]:
    shown = openpgp.printable(location)
    if "://" in location:
        raise TrustError(
            f"{shown} is a URL, and keys are not downloaded yet",
            hint="download the key, check its fingerprint, and give the file",
        )
    try:
        return openpgp.public_keys(read_limited(location, MAX_KEY_SIZE))
    except OSError as e:
        raise TrustError(f"open {shown}: {reason(e)}", hint="name a file made with gpg --export") from e
    except openpgp.SecretKeyError as e:
        hint = "give the public key: gpg --armor --export; whoever could read this file has the secret"
        raise TrustError(f"{shown} is not a public key: {e}", hint=hint) from e
    except openpgp.PacketError as e:
        raise TrustError(f"{shown} is not an OpenPGP public key: {e}", hint="make it with gpg --armor --export") from e


def _examine(keystore: Keystore, key: openpgp.PublicKey, where: str, prefix: str | None) -> _Candidate:
    """What gpg makes of `key`, joined with what is in its place already: a copy without a revocation that is known
    here must not undo it."""
    with isolated() as gpg:
        accepted = gpg.import_keys([*_present(keystore, key, prefix), key.raw])
        if key.fingerprint not in accepted:
            raise TrustError(
                f"gpg refuses the key in {openpgp.printable(where)}",
                hint="it has no valid self-signature, perhaps only one with SHA-1; ask its owner for an updated key",
            )
        return _Candidate(gpg.describe(key.fingerprint), gpg.export(key.fingerprint))


def _present(keystore: Keystore, key: openpgp.PublicKey, prefix: str | None) -> list[bytes]:
    found = []
    for file in keystore.files():
        if (file.fingerprint, file.prefix) == (key.fingerprint, prefix or ""):
            try:
                found.append(load(file).raw)
            except TrustError:
                continue  # it is about to be replaced by one that can be used
    return found


def _reviewed(info: KeyInfo, where: str, prefix: str | None) -> bool:
    if not sys.stdin.isatty():
        raise TrustError(
            f"cannot ask whether to trust {openpgp.printable(where)}: standard input is not a terminal",
            hint="check the fingerprint yourself and pass --skip-fingerprint-review",
        )
    click.echo(describe(info, where, prefix), err=True)
    return _accepted()


def describe(info: KeyInfo, where: str, prefix: str | None) -> str:
    """The text to judge a key by. User ids are whatever the key's maker wrote, so they are made fit to print."""
    lines = [
        f'prefix: "{prefix or ""}"' if prefix is not None else "prefix: none, the key will be trusted for every image",
        f'key: "{openpgp.printable(where)}"',
        f"gpg key fingerprint is: {grouped(info.primary)}",
        *(f"\tSubkey fingerprint: {grouped(subkey)}" for subkey in info.subkeys),
        *(f"\t{openpgp.printable(user_id)}" for user_id in info.user_ids),
    ]
    return "\n".join(lines)


def grouped(key: Subkey) -> str:
    """A fingerprint in fours, as people compare it, and what is known against the key."""
    digits = key.fingerprint.upper()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4)) + _NOTES.get(key.validity, "")


def _accepted() -> bool:
    """Ask until the answer is yes or no in full; the end of input is a no."""
    while True:
        click.echo("Are you sure you want to trust this key (yes/no)?", err=True)
        answer = sys.stdin.buffer.readline()
        if answer.strip() == b"yes":
            return True
        if not answer or answer.strip() == b"no":
            return False
        click.echo("Please enter 'yes' or 'no'", err=True)


def _remove(keystore: Keystore, fingerprint: str, prefix: str | None, root: bool) -> None:
    found = [file for file in keystore.active() if file.fingerprint == fingerprint]
    if prefix is not None or root:
        found = [file for file in found if file.prefix == (prefix or "")]
    if not found:
        raise TrustError(f"no trusted key has the fingerprint {fingerprint}", hint="see rkpy trust --list")
    for file in found:
        path = keystore.remove(file)
        click.echo(f'Masked "{file.path}" by "{path}"' if file.system else f'Removed "{path}"')


def _list(keystore: Keystore, format_: str) -> None:
    rows = [_row(file) for file in keystore.files()]
    if format_ != "table":
        render.write_json(rows, pretty=format_ == "json-pretty")
        return
    cells = [("PREFIX", "FINGERPRINT", "FROM", "STATE", "USER ID")]
    cells += [
        (row["prefix"] or "(root)", row["fingerprint"], row["from"], row["state"], row["user_id"]) for row in rows
    ]
    click.echo(render.table(cells), nl=False)


def _row(file: KeyFile) -> dict[str, str]:
    state, user_id = "trusted", ""
    try:
        user_ids = load(file).user_ids
        user_id = openpgp.printable(user_ids[0]) if user_ids else ""
    except RkpyError as e:
        state = f"unusable: {e.message}"
    if file.masked_by:
        state = "masked"
    return {
        "prefix": openpgp.printable(file.prefix),
        "fingerprint": openpgp.printable(file.fingerprint),
        "from": "system" if file.system else "local",
        "state": state,
        "user_id": user_id,
        "path": openpgp.printable(file.path),
    }
