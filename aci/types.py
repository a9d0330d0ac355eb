"""The primitive types of appC (spec 0.8.11, "AC Types"): what a name, an image ID, a date or a quantity may be.

Every function takes text and returns it (or what it means), and raises ManifestError, without saying where the text
came from: the manifest readers add the place, the command line its option.

Character classes are tested with `str.strip`: it leaves nothing exactly when every character is in the class. These
checks run at every start, and compiling a regular expression costs more than reading a whole manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Final

from common.errors import ManifestError
from common.records import NamedTuple

_DIGITS: Final = "0123456789"
_HEX: Final = _DIGITS + "abcdef"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ALNUM: Final = _DIGITS + _LETTERS
_IDENTIFIER_MARKS: Final = "-._~/"
_NAME_MARKS: Final = "-"
_ENVIRONMENT_START: Final = _LETTERS + _LETTERS.upper() + "_"
_ENVIRONMENT: Final = _ENVIRONMENT_START + _DIGITS + ".-"
_VERSION_SUFFIX: Final = _ALNUM + _LETTERS.upper() + ".-"

ID_PREFIX: Final = "sha512-"
ID_DIGITS: Final = 128
"""Hex digits of a full image ID."""
_ID_DIGITS_MIN: Final = 2
OWNER_MAX: Final = 2**32 - 2
"""The highest uid or gid: chown(2) and setresuid(2) take (uid_t) -1 for "leave as it is"."""


def quote(value: str) -> str:
    """`value` for a message: in quotes, shortened, and with nothing in it that a terminal would obey."""
    return json.dumps(value if len(value) <= 64 else value[:61] + "...").replace("\x7f", "\\u007f")


# Identifiers and names


def ac_identifier(text: str, *, strict: bool = False) -> str:
    """Check an AC Identifier: an image name, or the name of a label, an annotation or an isolator.

    As the specification writes it (`strict`, for what a user types): `[a-z0-9]+([-._~/][a-z0-9]+)*`. Otherwise also
    what the reference validator lets pass, since such images exist: several of `-._~/` in a row (`a//b`), except where
    that would spell the path components `.` or `..`.
    """
    _check_word("AC identifier", text, _IDENTIFIER_MARKS, strict=strict)
    if "/." in text and not {".", ".."}.isdisjoint(text.split("/")):
        raise ManifestError(f"{quote(text)} is not an AC identifier: it has a component . or ..")
    return text


def ac_name(text: str, *, strict: bool = False) -> str:
    """Check an AC Name: the name of an app, a volume, a mount point or a port.

    `strict` is the specification's `[a-z0-9]+([-][a-z0-9]+)*`; otherwise several `-` in a row pass too (`a--b`), as in
    the reference validator.
    """
    return _check_word("AC name", text, _NAME_MARKS, strict=strict)


def _check_word(kind: str, text: str, marks: str, *, strict: bool) -> str:
    if not text:
        raise ManifestError(f"an {kind} must not be empty")
    if text.strip(_ALNUM + marks):
        raise ManifestError(f"{quote(text)} is not an {kind}: only a-z, 0-9 and {' '.join(marks)} may be in it")
    if text[0] in marks or text[-1] in marks:
        raise ManifestError(f"{quote(text)} is not an {kind}: it must start and end with one of a-z, 0-9")
    if strict and _has_neighbours(text, marks):
        raise ManifestError(f"{quote(text)} is not an {kind}: two of {' '.join(marks)} follow each other")
    return text


def _has_neighbours(text: str, marks: str) -> bool:
    return any(text[i] in marks and text[i + 1] in marks for i in range(len(text) - 1))


def sanitise_identifier(text: str) -> str:
    """Make an AC Identifier out of any text: lower case, what is illegal becomes `_`, edges are cut clean."""
    return _sanitise(text, _IDENTIFIER_MARKS, "_")


def sanitise_name(text: str) -> str:
    """Make an AC Name out of any text: lower case, what is illegal becomes `-`, edges are cut clean.

    As rkt does it: different texts may give one name, and `a__b` gives `a--b`, which is a name but not a strict one.
    """
    return _sanitise(text, _NAME_MARKS, "-")


def _sanitise(text: str, marks: str, substitute: str) -> str:
    allowed = _ALNUM + marks
    clean = "".join(char if char in allowed else substitute for char in text.lower()).strip(marks)
    if not clean:
        raise ManifestError(f"{quote(text)} has no letter or digit to make a name of")
    return clean


def default_app_name(image_name: str) -> str:
    """The app name an image gets when the user gives none: the last component of the image's name, sanitised."""
    return sanitise_name(image_name.rpartition("/")[2])


# Image IDs, UUIDs, versions, dates


def image_id(text: str, *, full: bool = False) -> str:
    """Check an image ID: `sha512-` and lower-case hex digits; all 128 of them when `full`, else 2 or more."""
    digits = text.removeprefix(ID_PREFIX)
    if digits == text or digits.strip(_HEX) or not digits:
        raise ManifestError(f"{quote(text)} is not an image ID", hint="it looks like sha512-0f3a…, in lower case")
    if len(digits) > ID_DIGITS or len(digits) < (ID_DIGITS if full else _ID_DIGITS_MIN):
        wanted = f"{ID_DIGITS}" if full else f"{_ID_DIGITS_MIN} to {ID_DIGITS}"
        raise ManifestError(f"{quote(text)} is not an image ID: it needs {wanted} hex digits, not {len(digits)}")
    return text


def uuid(text: str) -> str:
    """The canonical form (lower case, 8-4-4-4-12) of a UUID given in any case, with or without dashes; never zero."""
    digits = text.lower()
    if len(digits) == 36 and digits[8] == digits[13] == digits[18] == digits[23] == "-":
        digits = digits.replace("-", "")
    if len(digits) != 32 or digits.strip(_HEX):
        raise ManifestError(f"{quote(text)} is not a UUID")
    if not digits.strip("0"):
        raise ManifestError("a UUID must not be all zero")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Version(NamedTuple):
    """A semantic version (semver.org)."""

    major: int
    minor: int
    patch: int
    pre_release: str = ""
    build: str = ""


def version(text: str) -> Version:
    """Read `MAJOR.MINOR.PATCH[-PRE][+BUILD]`."""
    rest, plus, build = text.partition("+")
    core, dash, pre_release = rest.partition("-")
    numbers = core.split(".")
    suffixes = ([pre_release] if dash else []) + ([build] if plus else [])
    numbers_ok = len(numbers) == 3 and all(0 < len(number) < 10 and not number.strip(_DIGITS) for number in numbers)
    if not numbers_ok or not all(suffix and not suffix.strip(_VERSION_SUFFIX) for suffix in suffixes):
        raise ManifestError(f"{quote(text)} is not a version of the form MAJOR.MINOR.PATCH")
    major, minor, patch = map(int, numbers)
    return Version(major, minor, patch, pre_release, build)


def ac_version(text: str, *, newest_major: int = 0) -> str:
    """Check an `acVersion`: not 0.0.0, and no newer in its first number than `newest_major`."""
    found = version(text)
    if found[:3] == (0, 0, 0):
        raise ManifestError("a version must not be all zero")
    if found.major > newest_major:
        raise ManifestError(
            f"version {quote(text)} of the specification is newer than this rkpy understands",
            hint=f"it reads versions up to {newest_major}.x",
        )
    return text


def date(text: str) -> str:
    """Check a date of RFC 3339, section 5.6 (`2015-01-01T12:00:00Z`)."""
    numbers = [text[:4], text[5:7], text[8:10], text[11:13], text[14:16], text[17:19]]
    zone = text[19:]
    if zone[:1] == "." and zone[1:2].isdigit():
        zone = zone[1:].lstrip(_DIGITS)
    if zone != "Z":
        numbers += [zone[1:3], zone[4:]]
    marks = text[4:5] + text[7:8] + text[10:11] + text[13:14] + text[16:17] + zone[:1] + zone[3:4]
    shaped = marks in ("--T::Z", "--T::+:", "--T::-:") and all(len(number) == 2 for number in numbers[1:])
    if not shaped or "".join(numbers).strip(_DIGITS) or not _is_moment(*map(int, numbers)):
        raise ManifestError(f"{quote(text)} is not a date of RFC 3339", hint="one looks like 2015-01-01T12:00:00Z")
    return text


def _is_moment(
    year: int, month: int, day: int, hour: int, minute: int, second: int, zone_hour: int = 0, zone_minute: int = 0
) -> bool:
    in_day = hour < 24 and minute < 60 and second < 60 and zone_hour < 24 and zone_minute < 60
    return in_day and 1 <= day <= _days_in(year, month)


def _days_in(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return {4: 30, 6: 30, 9: 30, 11: 30}.get(month, 31) if 1 <= month <= 12 else 0


# Labels, annotations, environment

PLATFORMS: Final[dict[str, tuple[str, ...]]] = {
    "linux": (
        "amd64", "i386", "aarch64", "aarch64_be", "armv6l", "armv7l", "armv7b", "ppc64", "ppc64le", "s390x",
    ),
    "freebsd": ("amd64", "i386", "arm"),
    "darwin": ("x86_64", "i386"),
}  # fmt: skip
"""The values the labels `os` and `arch` may have together."""


def check_labels(labels: Iterable[tuple[str, str]]) -> None:
    """Check that label names are unique and not `name`, and that `os` and `arch` are a pair the specification lists."""
    seen = _unique("label", labels)
    if "name" in seen:
        raise ManifestError('a label must not be called "name"')
    system, arch = seen.get("os"), seen.get("arch")
    if system is None:
        if arch is not None:
            raise ManifestError(f'the label "arch" ({quote(arch)}) needs a label "os" beside it')
        return
    if system not in PLATFORMS:
        raise ManifestError(f"{quote(system)} is not an os", hint=f"one of {', '.join(PLATFORMS)}")
    if arch is not None and arch not in PLATFORMS[system]:
        raise ManifestError(
            f"{quote(arch)} is not an arch of the os {system}", hint=f"one of {', '.join(PLATFORMS[system])}"
        )


def check_annotations(annotations: Iterable[tuple[str, str]]) -> None:
    """Check that annotation names are unique and that the well-known ones hold what they should."""
    seen = _unique("annotation", annotations)
    if (created := seen.get("created")) is not None:
        date(created)
    for name in ("homepage", "documentation"):
        if (address := seen.get(name)) is not None and not _is_web_address(address):
            raise ManifestError(f"the annotation {quote(name)} must be an http or https URL, not {quote(address)}")


def _is_web_address(text: str) -> bool:
    scheme, separator, rest = text.partition("://")
    has_host = bool(rest) and rest[0] not in "/?#"
    return (
        scheme.lower() in ("http", "https") and bool(separator) and has_host and text.isprintable() and " " not in text
    )


def check_environment(variables: Iterable[tuple[str, str]]) -> None:
    """Check that variable names are unique and of the form `[A-Za-z_][A-Za-z_0-9.-]*`."""
    for name in _unique("variable", variables):
        if not name or name[0] not in _ENVIRONMENT_START or name.strip(_ENVIRONMENT):
            raise ManifestError(f"{quote(name)} is not the name of an environment variable")


def _unique(kind: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    seen: dict[str, str] = {}
    for name, value in pairs:
        if name in seen:
            raise ManifestError(f"the {kind} {quote(name)} is given twice")
        seen[name] = value
    return seen


# Quantities

_POWERS: Final = {
    "n": (10, -9), "u": (10, -6), "m": (10, -3), "": (10, 0),
    "k": (10, 3), "M": (10, 6), "G": (10, 9), "T": (10, 12), "P": (10, 15), "E": (10, 18),
    "Ki": (2, 10), "Mi": (2, 20), "Gi": (2, 30), "Ti": (2, 40), "Pi": (2, 50), "Ei": (2, 60),
}  # fmt: skip
_QUANTITY_LENGTH: Final = 64
_QUANTITY_MAX: Final = 2**63 - 1


def quantity(text: str, *, parts: int = 1) -> int:
    """Read a Kubernetes resource quantity (`500m`, `1.5`, `16Mi`, `1G`, `2e3`) in units of 1/`parts`, rounded up.

    Bytes of memory are `quantity("16Mi")`, thousandths of a CPU `quantity("500m", parts=1000)`. A quantity is never
    negative here, and fits 63 bits.
    """
    number = text.rstrip(_LETTERS + _LETTERS.upper()) if text[-1:].isalpha() else text
    suffix = text[len(number) :]
    if not suffix:
        number, suffix = _split_exponent(text)
    whole, _, fraction = number.removeprefix("+").partition(".")
    digits = whole + fraction
    power = _power(suffix)
    if power is None or not digits or digits.strip(_DIGITS) or len(text) > _QUANTITY_LENGTH:
        raise ManifestError(f"{quote(text)} is not a quantity", hint="one looks like 500m, 2, 16Mi or 1G")
    base, exponent = power
    numerator = int(digits) * parts * base ** max(exponent, 0)
    denominator = 10 ** len(fraction) * base ** max(-exponent, 0)
    value: int = -(-numerator // denominator)
    if value > _QUANTITY_MAX:
        raise ManifestError(f"{quote(text)} is too much")
    return value


def _split_exponent(text: str) -> tuple[str, str]:
    """`2e3` as (`2`, `e3`); the exponent is empty when there is none."""
    place = max(text.find("e"), text.find("E"))
    return (text, "") if place < 0 else (text[:place], text[place:])


def _power(suffix: str) -> tuple[int, int] | None:
    """Base and exponent a suffix stands for; None when it is no suffix."""
    if suffix in _POWERS:
        return _POWERS[suffix]
    sign = -1 if suffix[1:2] == "-" else 1
    digits = suffix[2:] if suffix[1:2] in ("+", "-") else suffix[1:]
    if suffix[0] not in "eE" or not 0 < len(digits) <= 2 or digits.strip(_DIGITS):
        return None
    return 10, sign * int(digits)


# Platforms

_GO_ARCHS: Final = {
    "linux": {
        "amd64": "amd64", "386": "i386", "arm64": "aarch64", "arm64be": "aarch64_be", "arm": "armv7l",
        "ppc64": "ppc64", "ppc64le": "ppc64le", "s390x": "s390x",
    },
    "freebsd": {"amd64": "amd64", "386": "i386", "arm": "arm"},
    "darwin": {"amd64": "x86_64", "386": "i386"},
}  # fmt: skip
_ARM_VARIANTS: Final = {"": "armv7l", "v6": "armv6l", "v7": "armv7l", "v8": "armv7l"}
_MACHINES: Final = {
    "x86_64": "amd64", "i486": "i386", "i586": "i386", "i686": "i386", "arm64": "aarch64", "armv8l": "armv7l",
}  # fmt: skip


def platform_from_go(system: str, arch: str, variant: str = "") -> tuple[str, str]:
    """The appC (os, arch) of a platform named as Go and OCI do (`linux`, `arm`, `v7`); ManifestError without one."""
    found = _GO_ARCHS.get(system, {}).get(arch)
    if (system, arch) == ("linux", "arm"):
        found = _ARM_VARIANTS.get(variant)
    if found is None:
        named = "/".join(part for part in (system, arch, variant) if part)
        raise ManifestError(f"appC has no os and arch for the platform {quote(named)}")
    return system, found


def host_platform() -> tuple[str, str]:
    """The appC (os, arch) of this host (uname(2)). An arch appC has no word for is given as the kernel names it."""
    uname = os.uname()
    return uname.sysname.lower(), _MACHINES.get(uname.machine, uname.machine)
