"""The guest's kernel: one of the host's, as its distribution made it.

QEMU can start what is in the file /boot/vmlinuz-… right away (PVH, xen/include/public/arch-x86/hvm/start_info.h),
without the code in front of it that decompresses it first. In an emulated machine that is a fifth of the time to boot.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.vm.decompress import LIMIT, decompress

BOOT, MODULES = "/boot", "/lib/modules"
_MODULES_TOO = "/usr/lib/modules"
"""Where distributions put the kernel beside its modules."""
_HINT = "install one, such as Debian's linux-image-cloud-amd64, or name one with --kvm-kernel"
_HEADER = 0x8200
"""Bytes that hold the header and the longest real-mode code (64 sectors), where the version is."""
_PVH_ENTRY = 18
"""XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)."""
_PT_NOTE = 4
_MOST = 64
"""Program headers, and notes of one, that are looked at."""


class Kernel(NamedTuple):
    path: str
    release: str
    """As uname(2) has it in the guest."""
    modules: str
    """The directory of its modules."""


def choose(wanted: str = "", *, boot: str = BOOT, modules: str = MODULES, beside: str = _MODULES_TOO) -> Kernel:
    """The kernel that `wanted` names, an absolute path or a version; when it names none the newest that can be a guest.
    `boot`, `modules`, `beside`: where kernels and modules are. Raises LaunchError."""
    if wanted.startswith("/"):
        return _usable(wanted, modules)
    if wanted:
        for path in (f"{boot}/vmlinuz-{wanted}", f"{beside}/{wanted}/vmlinuz"):
            if "/" not in wanted and os.path.exists(path):
                return _usable(path, modules)
        raise LaunchError(f'there is no kernel of version "{wanted}" in {boot} or {beside}', hint=_HINT)
    problem: LaunchError | None = None
    for path in sorted(_installed(boot, beside), key=_version, reverse=True):
        try:
            return _usable(path, modules)
        except LaunchError as error:
            problem = problem or error
    raise problem or LaunchError(f"there is no kernel for a virtual machine in {boot} or {beside}", hint=_HINT)


def _installed(boot: str, beside: str) -> Iterator[str]:
    for name in _names(boot):
        if name.startswith("vmlinuz-"):
            yield f"{boot}/{name}"
    for name in _names(beside):
        if os.path.exists(path := f"{beside}/{name}/vmlinuz"):
            yield path


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _version(path: str) -> tuple[tuple[int, int, str], ...]:
    """By which kernels are compared: numbers as numbers; after words comes the end and then numbers, so that 6.1-rc1 is
    older than 6.1, and that older than 6.1.1."""
    name = os.path.basename(path).removeprefix("vmlinuz").removeprefix("-") or os.path.basename(os.path.dirname(path))
    words = re.findall(r"[0-9]+|[A-Za-z]+", name)
    found = tuple((2, int(word[:18]), "") if word.isdigit() else (0, 0, word) for word in words)
    return (*found, (1, 0, ""))


def _usable(path: str, modules: str) -> Kernel:
    version = release(path)
    directory = f"{modules}/{version}"
    try:
        text = _read(f"{directory}/modules.dep") + _read(f"{directory}/modules.builtin")
    except OSError as error:
        raise LaunchError(
            f"kernel {path} is of no use without its modules: open {error.filename}: {reason(error)}", hint=_HINT
        ) from error
    if b"/virtiofs.ko" not in text:
        raise LaunchError(f"kernel {path} cannot be a guest: there is no virtiofs in {directory}", hint=_HINT)
    return Kernel(path, version, directory)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def release(path: str) -> str:
    """The version in the header of a bzImage (kernel_version in Documentation/arch/x86/boot.rst). Raises
    LaunchError."""
    try:
        # A pipe, which somebody may have named, would not be open before somebody else writes to it.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            head = file.read(_HEADER)
    except OSError as error:
        raise LaunchError(f"cannot use kernel {path}: {reason(error)}", hint=_HINT) from error
    if len(head) < 0x250 or head[0x202:0x206] != b"HdrS":
        raise LaunchError(f"cannot use kernel {path}: it is no bzImage for x86", hint=_HINT)
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[offset + 0x200 :].partition(b"\0")[0].split()[:1] if offset else []
    if not text or not re.fullmatch(rb"[A-Za-z0-9_+~][A-Za-z0-9_.+~-]{0,63}", text[0]):
        raise LaunchError(f"cannot use kernel {path}: it does not say its version", hint=_HINT)
    return text[0].decode()


def vmlinux(path: str) -> bytes | None:
    """What QEMU can start directly of the bzImage `path`; None when that is not possible for whatever reason. Raises
    OSError."""
    if os.path.getsize(path) > LIMIT:
        return None
    image = _read(path)
    try:
        found = decompress(_payload(image))
        return found if _has_pvh_entry(found) else None
    except (ValueError, struct.error):
        return None


def _payload(image: bytes) -> memoryview:
    """Where the header says it is (payload_offset and payload_length, since protocol 2.08). Raises ValueError."""
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if image[0x202:0x206] != b"HdrS" or protocol < 0x208:
        raise ValueError("not a bzImage that says where its payload is")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    if start + length > len(image):
        raise ValueError("truncated")
    return memoryview(image)[start : start + length]


def _has_pvh_entry(elf: bytes) -> bool:
    """Whether a 64-bit ELF file (elf(5)) has the note by which it can be started. Raises struct.error."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return False
    (headers,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for index in range(min(count, _MOST)):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, headers + index * size)
        if kind == _PT_NOTE and _has_note(elf[offset : offset + length]):
            return True
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    for _ in range(_MOST):
        if at + 12 > len(notes):
            return False
        name, description, kind = struct.unpack_from("<III", notes, at)
        if kind == _PVH_ENTRY and notes[at + 12 : at + 12 + name] == b"Xen\0":
            return True
        at += 12 + (name + 3 & ~3) + (description + 3 & ~3)
    return False
