"""The primitive types, rule by rule."""

from __future__ import annotations

import datetime
import fractions
import math
import os
import re
import uuid as standard_uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci import types
from common.errors import ManifestError

FULL_ID = "sha512-" + "0f" * 64


@pytest.mark.parametrize("text", ["a", "0", "example.com/app", "a-b_c~d.e/f", "coreos.com/rkt/stage1-fly", "a1.2"])
def test_identifier_strict(text: str) -> None:
    assert types.ac_identifier(text, strict=True) == text


@pytest.mark.parametrize("text", ["a//b", "a..b", "a-_b", "a.-b", "a/..b", "a/b../c"])
def test_identifier_of_an_old_image(text: str) -> None:
    assert types.ac_identifier(text) == text
    with pytest.raises(ManifestError, match="follow each other"):
        types.ac_identifier(text, strict=True)


@pytest.mark.parametrize(
    "text",
    ["", "A", "a b", "-a", "a-", "/a", "a/", ".a", "a:1", "é", "a\n", "\na", "a\0", "a/../b", "a/./b", "a@b", "a+b"],
)
def test_identifier_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="AC identifier"):
        types.ac_identifier(text)


@given(st.text("ab0-._~/A ", max_size=8))
def test_strict_identifier_is_the_specified_expression(text: str) -> None:
    wanted = re.fullmatch(r"[a-z0-9]+([-._~/][a-z0-9]+)*", text) is not None
    assert _passes(lambda: types.ac_identifier(text, strict=True)) == wanted


@given(st.text("ab0-._A ", max_size=8))
def test_strict_name_is_the_specified_expression(text: str) -> None:
    wanted = re.fullmatch(r"[a-z0-9]+([-][a-z0-9]+)*", text) is not None
    assert _passes(lambda: types.ac_name(text, strict=True)) == wanted


def test_name_of_an_old_image() -> None:
    assert types.ac_name("a--b") == "a--b"


@pytest.mark.parametrize("text", ["", "a.b", "a/b", "a_b", "-a", "a-", "A", "a\n", "..", "é"])
def test_name_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="AC name"):
        types.ac_name(text)


@pytest.mark.parametrize(
    ("text", "wanted"), [("Foo", "foo"), ("a b!c", "a_b_c"), ("//Example.com/A//", "example.com/a"), ("ä1", "1")]
)
def test_sanitise_identifier(text: str, wanted: str) -> None:
    assert types.sanitise_identifier(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("Foo", "foo"), ("my_app.v2", "my-app-v2"), ("_x_", "x"), ("a__b", "a--b")]
)
def test_sanitise_name(text: str, wanted: str) -> None:
    assert types.sanitise_name(text) == wanted


@given(st.text())
def test_what_was_sanitised_is_valid(text: str) -> None:
    if _passes(lambda: types.sanitise_name(text)):
        types.ac_name(types.sanitise_name(text))
    else:
        assert not re.search("[a-z0-9]", text.lower())


@pytest.mark.parametrize(
    ("image", "app"), [("example.com/busybox", "busybox"), ("plain", "plain"), ("example.com/a/b_c.d", "b-c-d")]
)
def test_default_app_name(image: str, app: str) -> None:
    assert types.default_app_name(image) == app


def test_image_id() -> None:
    assert types.image_id(FULL_ID, full=True) == FULL_ID
    assert types.image_id("sha512-0f") == "sha512-0f"


@pytest.mark.parametrize(
    "text",
    ["", "sha512-", "sha512-0", "0f", "sha256-0f0f", "sha512-0F", "sha512-0g", "sha512-0f-0f", FULL_ID + "0", "sha512"],
)
def test_image_id_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="image ID"):
        types.image_id(text)


def test_prefix_is_not_a_full_image_id() -> None:
    with pytest.raises(ManifestError, match="needs 128 hex digits, not 64"):
        types.image_id("sha512-" + "0f" * 32, full=True)


@given(st.uuids().filter(lambda value: value.int != 0))
def test_uuid_forms(value: standard_uuid.UUID) -> None:
    for form in (str(value), value.hex, str(value).upper(), value.hex.upper()):
        assert types.uuid(form) == str(value)


@pytest.mark.parametrize(
    "text", ["", "0" * 32, "00000000-0000-0000-0000-000000000000", "1" * 31, "1" * 33, "g" * 32, "-" * 36, "1-1" * 12]
)
def test_uuid_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="UUID"):
        types.uuid(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.8.11", (0, 8, 11, "", "")),
        ("1.30.0+git-dirty", (1, 30, 0, "", "git-dirty")),
        ("1.0.0-rc.1", (1, 0, 0, "rc.1", "")),
        ("1.2.3-a-b+c-d", (1, 2, 3, "a-b", "c-d")),
    ],
)
def test_version(text: str, wanted: tuple[int, int, int, str, str]) -> None:
    assert types.version(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.x", "1.2.3-", "1.2.3+", "1.2.-3", "1.2.3 ", "1..3", "9" * 5000]
)
def test_version_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="of the form MAJOR"):
        types.version(text)


def test_ac_version() -> None:
    assert types.ac_version("0.9.0") == "0.9.0"
    assert types.ac_version("1.30.0+git-dirty", newest_major=1) == "1.30.0+git-dirty"
    with pytest.raises(ManifestError, match="newer than this rkpy"):
        types.ac_version("1.0.0")
    with pytest.raises(ManifestError, match="all zero"):
        types.ac_version("0.0.0")


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_date(moment: datetime.datetime) -> None:
    plain = moment.replace(tzinfo=None).isoformat()
    for zone in ("Z", "+02:00", "-11:30"):
        assert types.date(plain + zone) == plain + zone


@pytest.mark.parametrize(
    "text",
    [
        "", "2015", "2015-01-01", "2015-01-01T12:00:00", "2015-13-01T12:00:00Z", "2015-02-29T12:00:00Z",
        "1900-02-29T00:00:00Z", "2015-01-00T12:00:00Z", "2015-01-01T24:00:00Z", "2015-01-01T12:60:00Z",
        "2015-01-01T12:00:60Z", "2015-01-01t12:00:00z", "2015-01-01 12:00:00Z", "2015-01-01T12:00:00.Z",
        "2015-01-01T12:00:00+2:00", "2015-01-01T12:00:00+0200", "2015-01-01T12:00:00Z\n", "٢٠١٥-01-01T12:00:00Z",
        "2015-01-01T12:00:00+24:00", "2015-01-01T12:00:00+02:60", "2015-01-01T12:00:00+02:000", "15-01-01T12:00:00Z",
        "2015-01-01T12:00:00.1", "2015-01-01T12:00:00.٣Z", "2015-1-001T12:00:00Z",
    ],
)  # fmt: skip
def test_date_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="RFC 3339"):
        types.date(text)


def test_leap_years() -> None:
    for year in (2000, 2004):
        types.date(f"{year}-02-29T00:00:00Z")


@pytest.mark.parametrize(
    "labels",
    [
        [],
        [("version", "1"), ("os", "linux"), ("arch", "amd64")],
        [("os", "freebsd")],
        [("os", "linux"), ("arch", "s390x")],
        [("anything", "")],
    ],
)
def test_labels(labels: list[tuple[str, str]]) -> None:
    types.check_labels(labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([("version", "1"), ("version", "1")], '"version" is given twice'),
        ([("name", "x")], 'called "name"'),
        ([("os", "windows")], '"windows" is not an os'),
        ([("os", "linux"), ("arch", "x86_64")], '"x86_64" is not an arch of the os linux'),
        ([("arch", "amd64")], 'needs a label "os"'),
        ([("os", "linux"), ("arch", "")], "is not an arch"),
    ],
)
def test_labels_refused(labels: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        types.check_labels(labels)


def test_annotations() -> None:
    types.check_annotations(
        [
            ("created", "2015-01-01T12:00:00.5+01:00"),
            ("authors", "A. Uthor <a@example.com>, whatever"),
            ("homepage", "https://example.com/"),
            ("documentation", "HTTP://example.com"),
            ("mine", "anything"),
        ]
    )


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (("created", "yesterday"), "RFC 3339"),
        (("homepage", "ftp://example.com"), "http or https"),
        (("homepage", "https:///path"), "http or https"),
        (("homepage", "https://"), "http or https"),
        (("documentation", "example.com"), "documentation"),
        (("documentation", "http://exa mple.com"), "http or https"),
        (("documentation", "http://example.com/\x1b[2J"), "http or https"),
    ],
)
def test_annotations_refused(annotation: tuple[str, str], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        types.check_annotations([annotation])


def test_annotations_are_unique() -> None:
    with pytest.raises(ManifestError, match='"a" is given twice'):
        types.check_annotations([("a", ""), ("a", "")])


def test_environment() -> None:
    types.check_environment([("PATH", "/bin"), ("_", ""), ("a.b-C_1", "é")])


@pytest.mark.parametrize("name", ["", "1A", "A=B", "A B", "-A", "é", "A\n"])
def test_environment_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="environment variable"):
        types.check_environment([(name, "")])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0), ("1", 1), ("16Mi", 16 << 20), ("1G", 10**9), ("1Gi", 1 << 30), ("1.5Ki", 1536), ("2e3", 2000),
        ("2E3", 2000), ("1E", 10**18), ("1k", 1000), ("500m", 1), ("1e-3", 1), ("+5", 5), (".5M", 500_000),
        ("5.", 5), ("7Ei", 7 << 60), ("128974848", 128974848), ("129e6", 129_000_000), ("0.1", 1), ("1e+2", 100),
    ],
)  # fmt: skip
def test_quantity(text: str, wanted: int) -> None:
    assert types.quantity(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("500m", 500), ("2", 2000), ("0.25", 250), ("1u", 1), ("1n", 1)])
def test_quantity_in_thousandths(text: str, wanted: int) -> None:
    assert types.quantity(text, parts=1000) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "m", "Mi", "1K", "1mi", "16 Mi", "-1", "1.2.3", "1e", "e3", ".", "1e3Mi", "0x10", "1_000", "٣", "1e999",
        "9Ei", "9" * 100, "9" * 5000, "1e99", "inf", "nan", "+", "1\n", "1é", "1e+-2",
    ],
)  # fmt: skip
def test_quantity_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"not a quantity|too much"):
        types.quantity(text)


SUFFIXES = {"": (10, 0), "n": (10, -9), "m": (10, -3), "k": (10, 3), "G": (10, 9), "Ki": (2, 10), "e-2": (10, -2)}


@given(st.integers(0, 10**6), st.text("0123456789", max_size=4), st.sampled_from(sorted(SUFFIXES)))
def test_quantity_is_rounded_up(whole: int, fraction: str, suffix: str) -> None:
    base, exponent = SUFFIXES[suffix]
    exact = fractions.Fraction(f"{whole}.{fraction or 0}") * fractions.Fraction(base) ** exponent
    for parts in (1, 1000):
        assert types.quantity(f"{whole}.{fraction}{suffix}", parts=parts) == math.ceil(exact * parts)


@given(st.text("0123456789.eEkKmMiG+-", max_size=12))
def test_quantity_reads_or_refuses(text: str) -> None:
    if _passes(lambda: types.quantity(text)):
        assert 0 <= types.quantity(text) < 2**63


@pytest.mark.parametrize(
    ("go", "appc"),
    [
        (("linux", "amd64"), ("linux", "amd64")),
        (("linux", "386"), ("linux", "i386")),
        (("linux", "arm64", "v8"), ("linux", "aarch64")),
        (("linux", "arm", "v7"), ("linux", "armv7l")),
        (("linux", "arm", "v6"), ("linux", "armv6l")),
        (("linux", "arm"), ("linux", "armv7l")),
        (("linux", "ppc64le"), ("linux", "ppc64le")),
        (("linux", "s390x"), ("linux", "s390x")),
        (("darwin", "amd64"), ("darwin", "x86_64")),
        (("freebsd", "arm", "v7"), ("freebsd", "arm")),
    ],
)
def test_platform_from_go(go: tuple[str, ...], appc: tuple[str, str]) -> None:
    assert types.platform_from_go(*go) == appc
    types.check_labels([("os", appc[0]), ("arch", appc[1])])


@pytest.mark.parametrize(
    "go", [("windows", "amd64"), ("linux", "riscv64"), ("linux", "arm", "v5"), ("unknown", "unknown")]
)
def test_platform_without_a_word_for_it(go: tuple[str, ...]) -> None:
    with pytest.raises(ManifestError, match="no os and arch"):
        types.platform_from_go(*go)


def test_host_platform() -> None:
    system, arch = types.host_platform()
    assert system == os.uname().sysname.lower()
    if os.uname().machine in ("x86_64", "aarch64"):
        types.check_labels([("os", system), ("arch", arch)])


def test_quote_shows_no_control_characters() -> None:
    assert types.quote("\x1b[2J\x9b\x7f") == '"\\u001b[2J\\u009b\\u007f"'
    assert len(types.quote("x" * 10_000)) < 70


def _passes(call: Callable[[], object]) -> bool:
    try:
        call()
    except ManifestError:
        return False
    return True
