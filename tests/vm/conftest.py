"""Tests in a virtual machine, see machine.py. Its root is kept in the directory RKPY_TEST_CACHE names, or made anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.machine import Machine, missing


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if lacking := missing():
        pytest.skip(lacking)
    cache = os.environ.get("RKPY_TEST_CACHE")
    return Machine(Path(cache) if cache else tmp_path_factory.mktemp("vm"))
