"""Tests in a virtual machine, see machine.py. Its root is kept in the directory RKPY_TEST_CACHE names, or made anew."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.vm.machine import Machine, missing

# Written for a flavour that supervises its pods; they are run from the day there is one.
collect_ignore = [] if importlib.util.find_spec("stage1.nspawn") else ["test_pods.py"]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if lacking := missing():
        pytest.skip(lacking)
    cache = os.environ.get("RKPY_TEST_CACHE")
    return Machine(Path(cache) if cache else tmp_path_factory.mktemp("vm"))
