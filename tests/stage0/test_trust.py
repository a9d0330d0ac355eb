"""`rkpy trust`, run as its own process; the review on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from common.errors import TrustError
from stage0.keystore import Keystore
from stage0.verify import require_trusted, verify_detached
from tests.gpg import Signer, signer

QUESTION = "Are you sure you want to trust this key (yes/no)?"
ROOM = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Case:
    def __init__(self, directory: str, who: Signer) -> None:
        self.directory, self.who = directory, who
        self.keystore = Keystore(f"{directory}/etc", f"{directory}/usr")

    def command(self, *arguments: str) -> list[str]:
        configuration = [f"--local-config={self.directory}/etc", f"--system-config={self.directory}/usr"]
        return [sys.executable, "-m", "rkpy", *configuration, "trust", *arguments]

    def trust(self, *arguments: str) -> Done:
        """Run it without a terminal."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOM, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, answers: str, *arguments: str) -> Done:
        """Run it on a terminal and type `answers` when it asks; `out` is all it said."""
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(ROOM)
            os.execv(sys.executable, self.command(*arguments))
        said = b""
        typed = False
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not typed and QUESTION.encode() in said:
                os.write(terminal, answers.encode())
                typed = True
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    chunk = os.read(terminal, 4096)
                except OSError:  # EIO: the other side is closed
                    break
                if not chunk:
                    break
                said += chunk
        os.close(terminal)
        return Done(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode(errors="replace"), "")

    def key_file(self, *fingerprints: str, armor: bool = True, name: str = "key.asc") -> str:
        path = f"{self.directory}/{name}"
        with open(path, "wb") as file:
            file.writelines(self.who.export(fingerprint, armor=armor) for fingerprint in fingerprints)
        return path

    def written(self) -> list[str]:
        return sorted(file.path.removeprefix(f"{self.keystore.local}/") for file in self.keystore.files())


@pytest.fixture(scope="module")
def who() -> Iterator[Signer]:
    with signer() as somebody:
        yield somebody


@pytest.fixture(scope="module")
def alice(who: Signer) -> str:
    return who.key("Alice <alice@example.com>")


@pytest.fixture
def case(tmp_path: os.PathLike[str], who: Signer) -> Case:
    return Case(os.fspath(tmp_path), who)


def fours(fingerprint: str) -> str:
    return " ".join(fingerprint.upper()[i : i + 4] for i in range(0, 40, 4))


@pytest.mark.parametrize("armor", [True, False])
def test_a_key_for_a_prefix_is_stored_armoured(case: Case, alice: str, armor: bool) -> None:
    key_file = case.key_file(alice, armor=armor)
    done = case.trust("--prefix=example.com/app", "--skip-fingerprint-review", key_file)
    path = f"{case.keystore.local}/prefix.d/example.com/app/{alice}"
    assert done == (0, f'Added key for prefix "example.com/app" at "{path}"\n', "")
    with open(path, "rb") as file:
        assert file.read() == case.who.export(alice)


def test_a_root_key(case: Case, alice: str) -> None:
    done = case.trust("--root", "--skip-fingerprint-review=true", "--list=false", case.key_file(alice))
    assert done == (0, f'Added root key at "{case.keystore.local}/root.d/{alice}"\n', "")


def test_from_trust_to_verdict(case: Case, alice: str) -> None:
    image = case.key_file(alice, name="image.aci")
    signature = case.who.sign(alice, image)
    case.trust("--prefix=example.com", "--skip-fingerprint-review", case.key_file(alice))
    verified = require_trusted(case.keystore, verify_detached(case.keystore, image, signature), "example.com/a")
    assert verified.trusted_for == "example.com"


def test_the_review(case: Case) -> None:
    key = case.who.key("Reviewed <r@example.com>")
    subkey = case.who.subkey(key)
    key_file = case.key_file(key)
    done = case.ask("yes\n", "--prefix=example.com", key_file)
    assert done.status == 0
    shown = done.out.replace("\r\n", "\n")
    assert f'prefix: "example.com"\nkey: "{key_file}"\n' in shown
    assert f"gpg key fingerprint is: {fours(key)}\n\tSubkey fingerprint: {fours(subkey)}\n" in shown
    assert "\tReviewed <r@example.com>\n" in shown
    assert f'Added key for prefix "example.com" at "{case.keystore.local}/prefix.d/example.com/{key}"' in shown


def test_only_the_whole_words_count(case: Case, alice: str) -> None:
    done = case.ask("y\nYES\n\nyes please\nno\n", "--root", case.key_file(alice))
    assert (done.status, case.written()) == (0, [])
    assert done.out.count(QUESTION) == 5
    assert "Not trusting" in done.out


def test_the_end_of_input_is_a_no(case: Case, alice: str) -> None:
    done = case.ask("\x04", "--root", case.key_file(alice))
    assert (done.status, case.written()) == (0, [])
    assert "Not trusting" in done.out


def test_without_a_terminal_nothing_is_trusted(case: Case, alice: str) -> None:
    done = case.trust("--root", case.key_file(alice))
    assert (done.status, done.out, case.written()) == (254, "", [])
    assert "standard input is not a terminal" in done.err and "--skip-fingerprint-review" in done.err


def test_a_hostile_user_id_cannot_rewrite_the_review(case: Case) -> None:
    evil = case.who.key("Nice\x1b[1A\x1b[2K\u202egpg key\u0085fpr:::::::::AAAA: \\x41")
    done = case.ask("no\n", "--root", case.key_file(evil))
    assert fours(evil) in done.out
    assert "\x1b" not in done.out and "\u202e" not in done.out and "\u0085" not in done.out
    assert "Nice\\x1b[1A\\x1b[2K\\u202egpg key\\x85fpr:::::::::AAAA: \\x41" in done.out
    case.keystore.add(case.who.export(evil), None)
    for output in (case.trust("--list").out, case.trust("--list", "--format=json").out):
        assert "\x1b" not in output and "\u202e" not in output


def test_each_key_of_a_file_is_asked_about(case: Case, alice: str) -> None:
    second = case.who.key("Second")
    done = case.ask("no\nyes\n", "--root", case.key_file(alice, second))
    assert done.status == 0
    assert "(key 1 of 2)" in done.out and "(key 2 of 2)" in done.out
    assert case.written() == [f"root.d/{second}"]


def test_a_secret_key_is_refused(case: Case, alice: str) -> None:
    for armor in (["--armor"], []):
        path = f"{case.directory}/secret"
        with open(path, "wb") as file:
            file.write(case.who.run(*armor, "--export-secret-keys", alice))
        done = case.trust("--root", "--skip-fingerprint-review", path)
        assert (done.status, case.written()) == (254, [])
        assert "it contains a secret key" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "neither --prefix nor --root given"),
        (("--prefix=a", "--root", "KEY"), "--prefix and --root exclude each other"),
        (("--prefix=https://example.com", "KEY"), "has a scheme"),
        (("--prefix=example.com/", "KEY"), "invalid prefix"),
        (("--prefix=", "KEY"), "invalid prefix"),
        (("--root",), "no key given"),
        (("--prefix=a", "--root=maybe", "KEY"), "neither true nor false"),
        (("--root", "http://localhost/key"), "plain http is neither private nor safe"),
        (("--root", "ftp://localhost/key"), "is no URL with https and a host"),
        (("--root", "/nonexistent"), "open /nonexistent: no such file or directory"),
        (("--root", "/"), "open /: is a directory"),
        (("--root", "/dev/null"), "it is not a regular file"),
        (("--root", "/etc/hostname"), "is not an OpenPGP public key: it is not OpenPGP data"),
        (("--list", "KEY"), "--list and --remove stand alone"),
        (("--remove=1234",), "is not a fingerprint"),
        (("--remove=0123456789012345678901234567890123456789",), "no trusted key has the fingerprint"),
    ],
)
def test_mistakes(case: Case, alice: str, arguments: tuple[str, ...], message: str) -> None:
    key_file = case.key_file(alice)
    given = [key_file if argument == "KEY" else argument for argument in arguments]
    done = case.trust("--skip-fingerprint-review", *given)
    assert (done.status, done.out, case.written()) == (254, "", [])
    assert message in done.err and done.err.count("\n") == 1


def test_a_key_gpg_refuses(case: Case) -> None:
    """Without its self-signature a user id, and with it the key, may be anybody's."""
    key = case.who.key("Bare")
    raw = case.who.export(key, armor=False)
    signature_start = raw.index(b"Bare\x88") + len("Bare")
    path = f"{case.directory}/bare"
    with open(path, "wb") as file:
        file.write(raw[:signature_start])
    done = case.trust("--root", "--skip-fingerprint-review", path)
    assert (done.status, case.written()) == (254, [])
    assert "gpg refuses the key" in done.err


def test_an_old_copy_does_not_undo_a_revocation(case: Case) -> None:
    key = case.who.key("Revoked later")
    before = case.key_file(key, name="before")
    image = case.key_file(key, name="image")
    signature = case.who.sign(key, image)
    case.who.revoke(key)
    after = case.key_file(key, name="after")
    done = case.ask("yes\n", "--root", after)
    assert f"{fours(key)} (revoked)" in done.out and "Revoked later" in done.out
    assert case.trust("--root", "--skip-fingerprint-review", before).status == 0
    with pytest.raises(TrustError, match="has been revoked"):
        verify_detached(case.keystore, image, signature)


def test_listing_and_removing(case: Case, alice: str) -> None:
    assert case.trust("--list").out.split() == ["PREFIX", "FINGERPRINT", "FROM", "STATE", "USER", "ID"]
    case.trust("--prefix=example.com", "--skip-fingerprint-review", case.key_file(alice))
    case.trust("--root", "--skip-fingerprint-review", case.key_file(alice))
    system = f"{case.keystore.system}/root.d/{alice}"
    os.makedirs(os.path.dirname(system))
    with open(system, "wb") as file:
        file.write(case.who.export(alice))
    with open(f"{case.keystore.local}/root.d/README", "wb") as file:
        file.write(b"hello")
    rows = json.loads(case.trust("--list", "--format=json").out)
    assert sorted((row["prefix"], row["from"], row["state"][:8], row["user_id"]) for row in rows) == [
        ("", "local", "trusted", "Alice <alice@example.com>"),
        ("", "local", "unusable", ""),
        ("", "system", "trusted", "Alice <alice@example.com>"),
        ("example.com", "local", "trusted", "Alice <alice@example.com>"),
    ]
    removed = case.trust(f"--remove={fours(alice)}", "--root")
    assert removed.out.splitlines() == [
        f'Removed "{case.keystore.local}/root.d/{alice}"',
        f'Masked "{system}" by "{case.keystore.local}/root.d/{alice}"',
    ]
    assert [file.prefix for file in case.keystore.active() if file.fingerprint == alice] == ["example.com"]
    assert "masked" in case.trust("--list").out
    assert case.trust(f"--remove={alice}").status == 0
    assert not [file for file in case.keystore.active() if file.fingerprint == alice]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_without_permission(case: Case, alice: str) -> None:
    """As somebody else the message names the file and says who may write it."""
    key = case.who.export(alice)
    case.keystore.add(key, "example.com")  # and whatever is imported late is imported
    os.seteuid(65534)
    try:
        with pytest.raises(TrustError) as caught:
            case.keystore.add(key, None)
    finally:
        os.seteuid(0)
    assert caught.value.message == f"write {case.keystore.local}/root.d/{alice}: permission denied"
    assert "run it as root" in caught.value.hint
