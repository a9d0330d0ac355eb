"""The programs a machine is made of."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from common.errors import LaunchError
from stage1.vm import programs


def test_on_another_processor_nothing_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    with pytest.raises(LaunchError, match="kvm needs a processor of type x86_64, and this is aarch64"):
        programs.qemu()
