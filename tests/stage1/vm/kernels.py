"""Kernels and their modules as distributions lay them out, with nothing in them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

DEPENDENCIES = """\
kernel/fs/fuse/virtiofs.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko kernel/fs/fuse/fuse.ko
kernel/fs/fuse/fuse.ko:
kernel/fs/overlayfs/overlay.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
"""
BUILT_IN = "kernel/drivers/net/virtio_net.ko\n"


def elf(*, kind: int = 18, name: bytes = b"Xen\0") -> bytes:
    """A program with nothing but a note, after one that is not it."""
    notes = b"".join(
        struct.pack("<III", len(owner), 4, number) + owner + bytes(-len(owner) % 4) + bytes(4)
        for owner, number in ((b"GNU\0", 3), (name, kind))
    )
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4) + notes


def bzimage(release: str, payload: bytes = b"", *, protocol: int = 0x20F, offset: int = 16) -> bytes:
    """See Documentation/arch/x86/boot.rst; of the code nothing is there."""
    setup = bytearray(4 * 512 + 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<HHHH", setup, 0x206, protocol, 0, 0, 0x300)
    setup[0x20E:0x210] = struct.pack("<H", 0x300)
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    text = f"{release} (root@builder) #1 SMP".encode() + b"\0"
    setup[0x500 : 0x500 + len(text)] = text
    return bytes(setup) + bytes(offset) + payload


class Host:
    """Directories that stand in for /boot and /lib/modules."""

    def __init__(self, root: Path) -> None:
        self.boot, self.modules = root / "boot", root / "modules"
        self.boot.mkdir()
        self.modules.mkdir()

    def where(self) -> dict[str, str]:
        return {"boot": str(self.boot), "modules": str(self.modules), "beside": str(self.modules)}

    def install(self, release: str, *, image: bytes | None = None, dependencies: str = DEPENDENCIES) -> Path:
        """The kernel's image."""
        directory = self.modules / release
        directory.mkdir()
        (directory / "modules.dep").write_text(dependencies)
        (directory / "modules.builtin").write_text(BUILT_IN)
        for line in dependencies.splitlines():
            path = directory / line.partition(":")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"module {path.name}".encode())
        path = self.boot / f"vmlinuz-{release}"
        path.write_bytes(bzimage(release, gzip.compress(elf())) if image is None else image)
        return path
