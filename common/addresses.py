"""IP addresses and subnets as numbers, by inet_pton(3); `ipaddress` costs a start too much."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from common.records import NamedTuple

_BITS = {4: 32, 6: 128}
_FAMILIES = {4: AF_INET, 6: AF_INET6}


class Subnet(NamedTuple):
    """An address range, its host bits zero."""

    version: int
    """4 or 6."""
    first: int
    length: int
    """Of the prefix."""

    def overlaps(self, other: Subnet) -> bool:
        shift = _BITS[self.version] - min(self.length, other.length)
        return self.version == other.version and self.first >> shift == other.first >> shift

    def __str__(self) -> str:
        return f"{to_text(self.version, self.first)}/{self.length}"


def canonical(text: str) -> str:
    """`text`, an IPv4 or IPv6 address, in the one way to write it (RFC 5952). Raises ValueError."""
    return to_text(*number(text))


def version(address: str) -> int:
    """4 or 6, of an address that is one."""
    return 6 if ":" in address else 4


def number(text: str) -> tuple[int, int]:
    """Version and value of an address. Raises ValueError."""
    kind = version(text)
    try:
        return kind, int.from_bytes(inet_pton(_FAMILIES[kind], text), "big")
    except (OSError, ValueError):
        raise ValueError(f'"{text}" is not an IP address') from None


def to_text(kind: int, value: int) -> str:
    return inet_ntop(_FAMILIES[kind], value.to_bytes(_BITS[kind] // 8, "big"))


def subnet(text: str) -> Subnet:
    """`ADDRESS/LENGTH`; host bits that are set do no harm, as in CNI configurations. Raises ValueError."""
    address, slash, digits = text.partition("/")
    kind, value = number(address)
    if not slash or not digits.isascii() or not digits.isdigit() or int(digits) > _BITS[kind]:
        raise ValueError(f'"{text}" is not a subnet')
    shift = _BITS[kind] - int(digits)
    return Subnet(kind, value >> shift << shift, int(digits))
