"""Finding a program, and reading the loader it needs from files that may be anything."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage2.program import candidates, elf_interpreter


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("/a/b", "/x", ["/a/b"]),
        ("./b", "/x", ["./b"]),
        ("b", "/x:/y", ["/x/b", "/y/b"]),
        ("b", ":/y", ["./b", "/y/b"]),
        ("b", "", ["./b"]),
    ],
)
def test_candidates(name: str, path: str, expected: list[str]) -> None:
    assert candidates(name, path) == expected


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_the_loader_is_the_one_readelf_names() -> None:
    program = os.path.realpath("/bin/ls")
    with open(program, "rb") as file:
        loader = elf_interpreter(file.read(4096))
    headers = subprocess.run(["readelf", "-l", program], capture_output=True, text=True, check=True).stdout
    assert loader.startswith("/")
    assert f"[Requesting program interpreter: {loader}]" in headers


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01"]))
def test_any_bytes_are_read(data: bytes, magic: bytes) -> None:
    elf_interpreter(magic + data)
