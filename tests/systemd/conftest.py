"""The container of container.py: booted once for all tests inside, and gone before what is left is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.conftest import nothing_left_behind
from tests.systemd.container import Container, missing

__all__ = ["nothing_left_behind"]


@pytest.fixture(scope="session")
def container(nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    if lacking := missing():
        pytest.skip(lacking)
    with Container(tmp_path_factory.mktemp("systemd")) as booted:
        yield booted
