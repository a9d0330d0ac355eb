"""What needs systemd as PID 1, D-Bus, journald, logind and machined. Limits are enforced in tests/vm only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.systemd.container import Container

INSIDE = Path(__file__).parent / "inside"
QEMU = "qemu-system-x86_64"
IN_MACHINE = ("limits", "rootless_limits")
"""Those that tests/vm/test_guest.py runs, because they need controllers."""
MODULES = sorted({path.stem for path in INSIDE.glob("*.py")} - {"conftest", *IN_MACHINE})


@pytest.mark.parametrize("module", MODULES)
def test_all_passes_inside(container: Container, module: str) -> None:
    if module == "machines" and shutil.which(QEMU) is None:
        pytest.skip(f"needs {QEMU}")
    container.passes(f"tests/systemd/inside/{module}.py")
