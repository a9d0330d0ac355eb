"""Which kernel is taken, and what is taken out of it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import LaunchError
from stage1.vm import kernel
from stage1.vm.decompress import decompress
from tests.stage1.vm import kernels
from tests.stage1.vm.kernels import Host, bzimage, elf


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# --- which one


def test_the_newest_is_taken_by_version_and_not_by_name(host: Host) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "5.19.0", "6.1.0-10-amd64-rc1"):
        host.install(release)
    assert kernel.choose(**host.where()).release == "6.1.0-10-amd64"


def test_one_that_cannot_be_a_guest_is_passed_over(host: Host) -> None:
    host.install("6.1.0")
    host.install("6.2.0", dependencies=kernels.DEPENDENCIES.replace("virtiofs", "otherfs"))
    (host.boot / "vmlinuz-6.3.0").write_bytes(bzimage("6.3.0"))  # without modules
    host.install("6.4.0", image=b"not a kernel")
    found = kernel.choose(**host.where())
    assert found == kernel.Kernel(str(host.boot / "vmlinuz-6.1.0"), "6.1.0", str(host.modules / "6.1.0"))


def test_the_image_may_lie_beside_its_modules(host: Host) -> None:
    path = host.install("6.1.0").rename(host.modules / "6.1.0" / "vmlinuz")
    assert kernel.choose(**host.where()).path == kernel.choose("6.1.0", **host.where()).path == str(path)


def test_the_version_is_the_headers_and_not_the_files(host: Host) -> None:
    host.install("6.1.0").rename(host.boot / "mine")
    assert kernel.choose(str(host.boot / "mine"), **host.where()).release == "6.1.0"


def test_one_is_taken_by_version(host: Host) -> None:
    host.install("6.1.0")
    host.install("6.2.0")
    assert kernel.choose("6.1.0", **host.where()).release == "6.1.0"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("", "/lib/modules/6.9.0|modules/6.9.0/modules.dep"),
        ("6.1.0", 'no kernel of version "6.1.0"'),
        ("../boot/vmlinuz-6.9.0", "no kernel of version"),
        ("/nowhere", "cannot use kernel /nowhere: no such file"),
        ("/etc/passwd", "cannot use kernel /etc/passwd: it is no bzImage"),
    ],
)
def test_what_is_missing_is_said(wanted: str, message: str, host: Host) -> None:
    (host.boot / "vmlinuz-6.9.0").write_bytes(bzimage("6.9.0"))
    with pytest.raises(LaunchError, match=message) as caught:
        kernel.choose(wanted, **host.where())
    assert "linux-image-cloud-amd64" in caught.value.hint


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LaunchError, match="it is no bzImage"):
        kernel.choose(f"{tmp_path}/pipe")


def test_no_kernel_at_all(host: Host) -> None:
    with pytest.raises(LaunchError, match="there is no kernel for a virtual machine"):
        kernel.choose(**host.where())


@pytest.mark.parametrize("release", ["", "../../etc", ".hidden", "a/b", "x" * 65, "\N{SNOWMAN}"])
def test_a_version_is_never_a_path(release: str, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(bzimage(release))
    with pytest.raises(LaunchError, match="does not say its version"):
        kernel.release(str(tmp_path / "k"))


# --- what is in it


def lz4(data: bytes) -> bytes:
    if shutil.which("lz4") is None:
        pytest.skip("needs lz4")
    return subprocess.run(["lz4", "-l", "-9", "-c"], input=data, capture_output=True, check=True).stdout


def packed(form: str, data: bytes) -> bytes:
    """As the kernel's own Makefile does it, which adds the size at the end but for gzip, where it is there already."""
    size = struct.pack("<I", len(data))
    if form == "gzip":
        return gzip.compress(data)
    if form == "lz4":
        return lz4(data) + size
    made = {"xz": lzma.compress, "zstd": zstandard.ZstdCompressor(write_content_size=False).compress}[form](data)
    return made + size


FORMS = ("gzip", "xz", "zstd", "lz4")


@pytest.mark.parametrize("form", FORMS)
def test_what_qemu_can_start_is_taken_out(form: str, tmp_path: Path) -> None:
    program = elf() + random.Random(1).randbytes(1 << 20) + bytes(8 << 20)
    (tmp_path / "k").write_bytes(bzimage("6.1.0", packed(form, program)) + b"what follows")
    assert kernel.vmlinux(str(tmp_path / "k")) == program


@pytest.mark.parametrize(
    "image",
    [
        b"", b"MZ", bzimage("6.1.0"), bzimage("6.1.0", b"\x1f\x8b"), bzimage("6.1.0", bz2.compress(elf())),
        bzimage("6.1.0", gzip.compress(elf()), protocol=0x207), bzimage("6.1.0", gzip.compress(elf()))[:-9],
        bzimage("6.1.0", gzip.compress(elf(kind=17))), bzimage("6.1.0", gzip.compress(elf(name=b"Abc\0"))),
        bzimage("6.1.0", gzip.compress(elf()[:60])), bzimage("6.1.0", gzip.compress(b"\x7fELF\x01")),
    ],
)  # fmt: skip
def test_anything_else_is_left_as_it_is(image: bytes, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(image)
    assert kernel.vmlinux(str(tmp_path / "k")) is None


def test_a_note_without_end_ends(tmp_path: Path) -> None:
    program = bytearray(elf())
    struct.pack_into("<III", program, 120, 0xFFFFFFFF, 0xFFFFFFFF, 1)
    (tmp_path / "k").write_bytes(bzimage("6.1.0", gzip.compress(program)))
    assert kernel.vmlinux(str(tmp_path / "k")) is None


@pytest.mark.parametrize("form", FORMS)
def test_nothing_larger_than_its_limit_is_believed(form: str) -> None:
    data = packed(form, bytes(1 << 20))
    assert len(decompress(data, limit=1 << 20)) == 1 << 20
    with pytest.raises(ValueError, match="larger than"):
        decompress(data, limit=(1 << 20) - 1)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_data_is_damaged(form: str) -> None:
    data = packed(form, random.Random(1).randbytes(1 << 16) * 2)
    with pytest.raises(ValueError, match="damaged"):
        decompress(data[: len(data) // 2])


@given(st.binary(max_size=200))
def test_no_lz4_data_does_harm(block: bytes) -> None:
    frame = b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block
    try:
        assert len(decompress(frame, limit=1 << 16)) <= 1 << 16
    except ValueError:
        pass
