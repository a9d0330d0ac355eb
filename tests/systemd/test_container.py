"""What needs systemd as PID 1, D-Bus, journald, logind and machined. Limits are enforced in tests/vm only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.systemd.container import Container

INSIDE = Path(__file__).parent / "inside"
MODULES = ("basic", "scopes")
IN_MACHINE = ("limits",)
"""Those that tests/vm/test_guest.py runs, because they need controllers."""


@pytest.mark.parametrize("module", MODULES)
def test_all_passes_inside(container: Container, module: str) -> None:
    container.passes(f"tests/systemd/inside/{module}.py")


def test_no_module_is_forgotten() -> None:
    modules = {path.stem for path in INSIDE.glob("*.py")} - {"conftest"}
    assert modules == {*MODULES, *IN_MACHINE}
