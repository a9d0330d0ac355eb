"""`rkpy trust`: put keys into the keystore after a look at their fingerprints, list them, take them out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from common.errors import RkpyError, TrustError, UsageError
from stage0 import flags, openpgp, pubkeys, render, spki
from stage0 import keystore as keystores
from stage0.config import Config
from stage0.cosign import signer
from stage0.gpg import KeyInfo, Subkey
from stage0.keystore import COSIGN, KeyFile, Keystore, load, load_cosign, normal_fingerprint

if TYPE_CHECKING:
    from stage0.http import Client

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
@click.argument("locations", metavar="[PUBKEY]...", nargs=-1)
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
    locations: tuple[str, ...],
) -> None:
    """Trust keys for verifying images.

    PUBKEY is a file or an https URL with OpenPGP public keys, or cosign's cosign.pub; without one, the keys that PREFIX
    announces on its web page are taken. Each is shown and asked about, and then trusted for every image whose name
    begins with PREFIX in whole components (example.com/app is not over example.com/apple), or with --root for every
    image.
    """
    keystore = keystores.of(config)
    if prefix is not None and root:
        raise UsageError("--prefix and --root exclude each other", hint="a root key is trusted for every prefix")
    if list_keys or remove is not None:
        if locations or (list_keys and remove is not None):
            raise UsageError("--list and --remove stand alone", hint="add keys with another call")
        if remove is not None:
            _remove(keystore, normal_fingerprint(remove), prefix, root)
        else:
            _list(keystore, format_)
        return
    _require_place(prefix, root)
    keystore.place(prefix)  # a bad prefix is an error before any question is asked

    @functools.cache
    def client() -> Client:
        from stage0.http import Client

        return Client(config, insecure=config.insecure | {"http"} if insecure_allow_http else config.insecure)

    for location in locations or _locations(prefix, client):
        _trust(keystore, location, prefix, client, review=not skip_fingerprint_review)


def _require_place(prefix: str | None, root: bool) -> None:
    if prefix is None and not root:
        raise UsageError(
            "neither --prefix nor --root given",
            hint="say which images the key may sign: --prefix=example.com/app, or --root for all",
        )


def _locations(prefix: str | None, client: Callable[[], Client]) -> tuple[str, ...]:
    """The keys that the prefix announces."""
    if prefix is None:
        raise UsageError("no key given", hint="a root key is announced nowhere: name its file or its https URL")
    from stage0 import discovery

    return discovery.keys(client(), prefix)


def _trust(
    keystore: Keystore, location: str, prefix: str | None, client: Callable[[], Client], *, review: bool
) -> None:
    data = pubkeys.content(location, client)
    if spki.is_pem(data):
        _trust_cosign(keystore, location, data, prefix, review=review)
        return
    keys = pubkeys.openpgp_keys(data, location)
    for number, key in enumerate(keys, 1):
        where = f"{location} (key {number} of {len(keys)})" if len(keys) > 1 else location
        candidate = pubkeys.examine(keystore, key, where, prefix)
        if not review or _reviewed(describe(candidate.info, where, prefix), where):
            _say_added(keystore.add(candidate.armored, prefix), prefix)


def _trust_cosign(keystore: Keystore, location: str, data: bytes, prefix: str | None, *, review: bool) -> None:
    shown = openpgp.printable(location)
    try:
        key = spki.public_key(data)
    except spki.SecretKey as e:
        hint = "give cosign.pub: cosign public-key --key cosign.key; whoever could read this file has the secret"
        raise TrustError(f"{shown} is not a public key: {e}", hint=hint) from e
    except spki.UnusableKey as e:
        hint = "make one with cosign generate-key-pair, or openssl pkey -pubout"
        raise TrustError(f"{shown} is not a cosign public key: {e}", hint=hint) from e
    if not review or _reviewed(_describe_cosign(key, location, prefix), location):
        _say_added(keystore.add_cosign(key.pem, prefix), prefix)


def _say_added(path: str, prefix: str | None) -> None:
    what = "root key" if prefix is None else f'key for prefix "{prefix}"'
    click.echo(f'Added {what} at "{path}"')


def _reviewed(description: str, where: str) -> bool:
    """Show what is to be trusted and ask. Raises TrustError when there is nobody to answer."""
    if not sys.stdin.isatty():
        raise TrustError(
            f"cannot ask whether to trust {openpgp.printable(where)}: standard input is not a terminal",
            hint="check the fingerprint yourself and pass --skip-fingerprint-review",
        )
    click.echo(description, err=True)
    accepted = _accepted()
    if not accepted:
        click.echo(f'Not trusting "{openpgp.printable(where)}"', err=True)
    return accepted


def describe(info: KeyInfo, where: str, prefix: str | None) -> str:
    """The text to judge a key by. User ids are whatever the key's maker wrote, so they are made fit to print."""
    lines = [
        *_heading(where, prefix),
        f"gpg key fingerprint is: {grouped(info.primary)}",
        *(f"\tSubkey fingerprint: {grouped(subkey)}" for subkey in info.subkeys),
        *(f"\t{openpgp.printable(user_id)}" for user_id in info.user_ids),
    ]
    return "\n".join(lines)


def _describe_cosign(key: spki.PublicKey, where: str, prefix: str | None) -> str:
    """As `describe`; the digits are what `openssl pkey -pubin -outform DER | sha256sum` prints, and nobody's name is in
    such a key."""
    lines = [
        *_heading(where, prefix),
        f"cosign key fingerprint is: {in_fours(key.fingerprint)}",
        f"\t{key.algorithm}, SHA-256 of the public key",
    ]
    return "\n".join(lines)


def _heading(where: str, prefix: str | None) -> tuple[str, str]:
    everything = "prefix: none, the key will be trusted for every image"
    return everything if prefix is None else f'prefix: "{prefix}"', f'key: "{openpgp.printable(where)}"'


def grouped(key: Subkey) -> str:
    """A fingerprint as people compare it, and what is known against the key."""
    return in_fours(key.fingerprint) + _NOTES.get(key.validity, "")


def in_fours(fingerprint: str) -> str:
    digits = fingerprint.upper()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


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
        click.echo(f'Removed "{path}"' if keystore.is_own(file) else f'Masked "{file.path}" by "{path}"')


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
        user_id = _owner(file)
    except RkpyError as e:
        state = f"unusable: {e.message}"
    if file.masked_by:
        state = "masked"
    return {
        "prefix": openpgp.printable(file.prefix),
        "fingerprint": openpgp.printable(file.fingerprint),
        "kind": file.kind,
        "from": file.level,
        "state": state,
        "user_id": user_id,
        "path": openpgp.printable(file.path),
    }


def _owner(file: KeyFile) -> str:
    """Who a key is said to belong to; with cosign there is nobody, so it is told by its kind."""
    if file.kind == COSIGN:
        return signer(load_cosign(file))
    user_ids = load(file).user_ids
    return openpgp.printable(user_ids[0]) if user_ids else ""
