"""The keystore's files and what they are trusted for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from common.errors import TrustError
from stage0 import caller, openpgp
from stage0.config import Config
from stage0.keystore import Keystore, check_prefix, load, normal_fingerprint, of
from tests.gpg import Signer, signer


class Keys:
    """Two public keys, as armoured exports, and the one who has their secrets."""

    def __init__(self, who: Signer) -> None:
        self.who = who
        self.one, self.two = who.key("One <one@example.com>"), who.key("Two <two@example.com>")
        self.one_file, self.two_file = who.export(self.one), who.export(self.two)


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with signer() as who:
        yield Keys(who)


@pytest.fixture
def keystore(tmp_path: os.PathLike[str]) -> Keystore:
    return Keystore(f"{os.fspath(tmp_path)}/etc", f"{os.fspath(tmp_path)}/usr")


def put(root: str, place: str, name: str, data: bytes) -> str:
    path = f"{root}/{place}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def trusted(keystore: Keystore, name: str) -> list[tuple[str, str]]:
    return [(file.prefix, key.fingerprint) for file, key in keystore.trusted_for(name)]


def test_prefixes_match_whole_components(keystore: Keystore, keys: Keys) -> None:
    keystore.add(keys.one_file, "example.com/foo")
    mine = [("example.com/foo", keys.one)]
    assert trusted(keystore, "example.com/foo") == mine
    assert trusted(keystore, "example.com/foo/bar") == mine
    for other in ("example.com/foobar", "example.com", "example.com/bar/example.com/foo", "example.com/foo.bar", ""):
        assert trusted(keystore, other) == []


def test_the_longest_prefix_comes_first_and_root_last(keystore: Keystore, keys: Keys) -> None:
    for prefix in (None, "example.com", "example.com/a/b"):
        keystore.add(keys.one_file, prefix)
    assert [prefix for prefix, _ in trusted(keystore, "example.com/a/b/c")] == ["example.com/a/b", "example.com", ""]
    assert trusted(keystore, "elsewhere.org/x") == [("", keys.one)]


def test_a_key_is_written_with_the_modes_rkt_uses(keystore: Keystore, keys: Keys) -> None:
    before = os.umask(0o077)
    try:
        path = keystore.add(keys.one_file, "example.com/a")
    finally:
        os.umask(before)
    assert path == f"{keystore.local}/prefix.d/example.com/a/{keys.one}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    directory = os.path.dirname(path)
    while directory != os.path.dirname(keystore.local):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o2755, directory
        directory = os.path.dirname(directory)
    assert os.listdir(os.path.dirname(path)) == [keys.one], "nothing temporary is left"
    assert keystore.add(keys.two_file, None) == f"{keystore.local}/root.d/{keys.two}"


def test_an_empty_local_file_masks_the_system_key_of_that_prefix_only(keystore: Keystore, keys: Keys) -> None:
    for place in ("root.d", "prefix.d/example.com", "prefix.d/example.org"):
        put(keystore.system, place, keys.one, keys.one_file)
    mask = put(keystore.local, "prefix.d/example.com", keys.one, b"")
    put(keystore.local, "root.d", keys.one, b"")
    assert trusted(keystore, "example.com/a") == []
    assert trusted(keystore, "example.org/a") == [("example.org", keys.one)]
    assert mask in [file.masked_by for file in keystore.files()]


def test_an_empty_system_file_is_no_mask(keystore: Keystore, keys: Keys) -> None:
    put(keystore.system, "root.d", keys.one, b"")
    with pytest.raises(TrustError, match=f"root.d/{keys.one} is not an OpenPGP public key: it is empty"):
        keystore.trusted_for("a")


def test_local_and_system_keys_both_count(keystore: Keystore, keys: Keys) -> None:
    put(keystore.system, "prefix.d/example.com", keys.one, keys.one_file)
    keystore.add(keys.two_file, "example.com")
    assert {key for _, key in trusted(keystore, "example.com")} == {keys.one, keys.two}


ABSENT, KEY, MASK = "absent", "key", "mask"


@pytest.mark.parametrize("user", [ABSENT, KEY, MASK])
@pytest.mark.parametrize("local", [ABSENT, KEY, MASK])
@pytest.mark.parametrize("system", [ABSENT, KEY])
def test_a_users_directory_comes_before_the_machines(
    tmp_path: os.PathLike[str], keys: Keys, user: str, local: str, system: str
) -> None:
    """A key counts wherever it is, unless a directory before that masks it; and the machine's keystore knows nothing of
    what a user has."""
    top = os.fspath(tmp_path)
    machines, users = Keystore(f"{top}/etc", f"{top}/usr"), Keystore(f"{top}/etc", f"{top}/usr", f"{top}/user")
    for root, what in ((users.user, user), (users.local, local), (users.system, system)):
        if what != ABSENT:
            put(root, "prefix.d/example.com", keys.one, keys.one_file if what == KEY else b"")
    levels = {"user": user == KEY, "local": local == KEY and user != MASK, "system": False}
    levels["system"] = system == KEY and MASK not in (user, local)
    assert [file.level for file in users.active()] == [level for level, active in levels.items() if active]
    assert bool(trusted(users, "example.com/a")) == any(levels.values())
    assert bool(trusted(machines, "example.com/a")) == (local == KEY or (system == KEY and local != MASK))
    for file in users.active():
        users.remove(file)
    assert trusted(users, "example.com/a") == []
    assert bool(trusted(machines, "example.com/a")) == (local == KEY or (system == KEY and local != MASK))


def test_a_users_keys_are_written_to_his_directory(tmp_path: os.PathLike[str], keys: Keys) -> None:
    top = os.fspath(tmp_path)
    keystore = Keystore(f"{top}/etc", f"{top}/usr", f"{top}/user")
    assert keystore.add(keys.one_file, "example.com") == f"{top}/user/trustedkeys/prefix.d/example.com/{keys.one}"
    assert os.listdir(top) == ["user"]


def test_a_member_of_the_group_may_name_the_machines_directory_as_his(tmp_path: os.PathLike[str], keys: Keys) -> None:
    top = os.fspath(tmp_path)
    keystore = Keystore(f"{top}/etc", f"{top}/usr", f"{top}/etc")
    keystore.add(keys.one_file, None)
    (file,) = keystore.files()
    assert keystore.remove(file) == file.path
    assert keystore.files() == []
    assert not os.path.exists(file.path)


@pytest.mark.parametrize(("uid", "own"), [(0, "/etc/rkpy/trustedkeys"), (1000, "/home/me/rkpy/trustedkeys")])
def test_whose_keystore_it_is(monkeypatch: pytest.MonkeyPatch, uid: int, own: str) -> None:
    monkeypatch.setattr(caller, "UID", uid)
    assert of(Config(user_config="/home/me/rkpy")).own == own


def broken_files(keys: Keys) -> list[tuple[str, bytes, str]]:
    both = keys.one_file + keys.two_file
    return [
        (keys.two, keys.one_file, f"the key inside has the fingerprint {keys.one}"),
        (keys.one.upper(), keys.one_file, "not a fingerprint of 40 lower-case"),
        ("README", b"hello", "not a fingerprint of 40 lower-case"),
        (keys.one, b"garbage", "it is not OpenPGP data"),
        (keys.one, keys.one_file[:200], "its armour is cut short"),
        (keys.one, keys.who.export(keys.one, armor=False)[:60], "it is cut short"),
        (keys.one, both, "holds 2 keys"),
        (keys.one, keys.who.run("--armor", "--export-secret-keys", keys.one), "it contains a secret key"),
        (keys.one, keys.who.export(keys.one, armor=False) + b"\xcb\x08b\x00\x00\x00\x00\x00hi", "a message's data"),
        (keys.one, b"\xff" * 2_000_000, "larger than 1024 KiB"),
    ]


def test_a_broken_key_file_is_an_error_where_it_applies_and_only_there(keystore: Keystore, keys: Keys) -> None:
    keystore.add(keys.two_file, "example.org")
    for name, data, message in broken_files(keys):
        path = put(keystore.local, "prefix.d/example.com", name, data)
        with pytest.raises(TrustError) as caught:
            keystore.trusted_for("example.com/app")
        assert path in caught.value.message and message in caught.value.message
        assert caught.value.hint
        assert trusted(keystore, "example.org/app") == [("example.org", keys.two)]
        os.unlink(path)


def test_symbolic_links_are_refused(keystore: Keystore, keys: Keys, tmp_path: os.PathLike[str]) -> None:
    elsewhere = put(os.fspath(tmp_path), "elsewhere", keys.one, keys.one_file)
    os.makedirs(f"{keystore.local}/prefix.d/example.com")
    os.symlink(elsewhere, f"{keystore.local}/prefix.d/example.com/{keys.one}")
    os.symlink(os.path.dirname(elsewhere), f"{keystore.local}/prefix.d/example.org")
    for name in ("example.com/a", "example.org/a"):
        with pytest.raises(TrustError, match="it is a symbolic link"):
            keystore.trusted_for(name)
    with pytest.raises(TrustError, match=r"write .*example\.org"):
        keystore.add(keys.two_file, "example.org")
    assert os.listdir(os.path.dirname(elsewhere)) == [keys.one]


def test_a_fifo_is_refused_and_does_not_block(keystore: Keystore, keys: Keys) -> None:
    os.makedirs(f"{keystore.local}/root.d")
    os.mkfifo(f"{keystore.local}/root.d/{keys.one}")
    with pytest.raises(TrustError, match="it is not a regular file"):
        keystore.trusted_for("a")


def test_hidden_files_are_not_looked_at(keystore: Keystore, keys: Keys) -> None:
    put(keystore.local, "root.d", f".{keys.one}.17.new", b"half a key")
    assert trusted(keystore, "a") == []


def test_adding_replaces_a_mask(keystore: Keystore, keys: Keys) -> None:
    put(keystore.local, "root.d", keys.one, b"")
    keystore.add(keys.one_file, None)
    assert trusted(keystore, "a") == [("", keys.one)]


def test_removing(keystore: Keystore, keys: Keys) -> None:
    local = keystore.add(keys.one_file, "example.com")
    put(keystore.system, "prefix.d/example.com", keys.two, keys.two_file)
    for file in keystore.active():
        keystore.remove(file)
    assert trusted(keystore, "example.com") == []
    assert not os.path.exists(local)
    assert os.stat(f"{keystore.local}/prefix.d/example.com/{keys.two}").st_size == 0


@pytest.mark.parametrize(
    "prefix", ["", "/", "a//b", "a/", "/a", "a..b", "../etc", "a/../b", "A", "a b", "ä", "a\n", "a\0b", "https://a"]
)
def test_prefixes_are_identifiers(prefix: str, keystore: Keystore, keys: Keys) -> None:
    with pytest.raises(TrustError, match="scheme" if ":" in prefix else "invalid prefix"):
        keystore.add(keys.one_file, prefix)
    assert not os.path.exists(keystore.local)


def test_valid_prefixes() -> None:
    for prefix in ("a", "example.com", "example.com/a-b_c~d/e.f", "0"):
        check_prefix(prefix)


def test_fingerprints_as_people_write_them() -> None:
    digits = "0123456789abcdef0123456789abcdef01234567"
    for text in (digits, digits.upper(), f"0x{digits}", " ".join(digits[i : i + 4] for i in range(0, 40, 4))):
        assert normal_fingerprint(text) == digits
    with pytest.raises(TrustError, match="is not a fingerprint"):
        normal_fingerprint("01234567")


def test_the_parser_agrees_with_gpg_about_fingerprints(keystore: Keystore) -> None:
    with signer() as who:
        who.run("--quick-generate-key", "RSA", "rsa2048", "sign", "never")
        (primary,) = who._primaries()
        subkey = who.subkey(primary)
        for armor in (True, False):
            (key,) = openpgp.public_keys(who.export(primary, armor=armor))
            assert (key.fingerprint, key.subkeys, key.user_ids) == (primary, (subkey,), (b"RSA",))


def test_a_key_file_loses_gpgs_notes_about_what_it_checked(keystore: Keystore, keys: Keys) -> None:
    note = b"\xb0\x02\x00\x03"  # a trust packet: "this signature was checked and is good"
    raw = keys.who.export(keys.one, armor=False)
    path = put(keystore.local, "root.d", keys.one, raw + note)
    (file,) = keystore.files()
    assert file.path == path
    assert load(file).raw == raw


def test_armour_with_things_around_it() -> None:
    with pytest.raises(openpgp.PacketError, match="its armour is damaged"):
        openpgp.public_keys(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----\n")
    with pytest.raises(openpgp.WrongKindError, match="it contains a PGP signature"):
        openpgp.public_keys(b"-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n")
