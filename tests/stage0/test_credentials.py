"""Which credentials a pod gets, and what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0 import credentials, options
from stage0.options import Values

FLAGS = options.table(options.RUNTIME)


def flags(**given: list[str]) -> Values:
    found = Values()
    for name, values in given.items():
        for value in values:
            found.add(FLAGS[name.replace("_", "-")], value)
    return found


@pytest.fixture
def service(tmp_path: Path) -> Path:
    place = tmp_path / "given"
    place.mkdir()
    (place / "one").write_bytes(b"1")
    (place / "two").write_bytes(b"2\0\n")
    return place


def test_those_of_the_service_are_taken(service: Path) -> None:
    assert credentials.collect(str(service), flags()) == {"one": b"1", "two": b"2\0\n"}
    assert credentials.collect("", flags()) == {}


def test_what_systemd_does_not_make_is_passed_over(service: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of somebody else's")
    (service / "link").symlink_to(tmp_path / "secret")
    (service / "a:b").write_text("x")
    (service / "new\nline").write_text("x")
    (service / "below").mkdir()
    os.mkfifo(service / "pipe")
    assert set(credentials.collect(str(service), flags())) == {"one", "two"}


def test_flags_add_and_win(service: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    found = credentials.collect(
        str(service),
        flags(
            load_credential=[f"file:{tmp_path}/file", "again:one", "two"],
            set_credential=["one:first", "one:last:x", "e:"],
        ),
    )
    assert found == {"one": b"last:x", "two": b"2\0\n", "file": b"\xff", "again": b"1", "e": b""}


@pytest.mark.parametrize("name", ["a", "a.b", "A B", "~", "x" * 255, "..."])
def test_names(name: str) -> None:
    assert credentials.is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\n", "ä", "\x7f", "x" * 256])
def test_no_names(name: str) -> None:
    assert not credentials.is_name(name)
    if ":" not in name:
        with pytest.raises(UsageError, match="its ID is no name of a credential"):
            credentials.collect("", flags(set_credential=[f"{name}:x"]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"a\nb", b"a\nb"), (r"\x00\xFf", b"\0\xff"), (r"\101\000", b"A\0"), (r"\\n", rb"\n"), (r"\s\"\'", b" \"'"),
        ("ä\udcff", "ä".encode() + b"\xff"), ("", b""),
    ],
)  # fmt: skip
def test_escapes(text: str, value: bytes) -> None:
    assert credentials.unescaped("x", text) == value


@pytest.mark.parametrize("text", ["secret\\", r"secret\q", r"secret\x1", r"secret\9", r"secret\777"])
def test_no_escapes(text: str) -> None:
    with pytest.raises(UsageError, match="begins no escape") as caught:
        credentials.unescaped("x", text)
    assert "secret" not in str(caught.value)


@given(st.binary())
def test_every_value_can_be_written(value: bytes) -> None:
    assert credentials.unescaped("x", "".join(f"\\x{byte:02x}" for byte in value)) == value


def test_there_is_an_end_to_their_size_and_number(service: Path) -> None:
    (service / "large").write_bytes(b"x" * ((1 << 20) - 4))
    assert len(credentials.collect(str(service), flags())) == 3
    (service / "large").write_bytes(b"x" * ((1 << 20) - 3))
    with pytest.raises(UsageError, match="larger than 1 MiB together"):
        credentials.collect(str(service), flags())
    (service / "large").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="large: it is larger than 1 MiB"):
        credentials.collect(str(service), flags())
    with pytest.raises(UsageError, match="257 credentials are more than the 256"):
        credentials.collect("", flags(set_credential=[f"n{number}:x" for number in range(257)]))


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot read the credentials in /nonexistent: no such file"):
        credentials.collect("/nonexistent", flags())
    with pytest.raises(UsageError, match="pipe: it is not a regular file"):
        credentials.collect("", flags(load_credential=[f"a:{tmp_path}/pipe"]))
    with pytest.raises(UsageError, match='not given a credential "one"'):
        credentials.collect("", flags(load_credential=["a:one"]))
    with pytest.raises(UsageError, match="takes ID:VALUE") as caught:
        credentials.collect("", flags(set_credential=["secret"]))
    assert "secret" not in str(caught.value)
