"""The container of container.py: booted once for all tests inside, and gone before what is left is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import leaks
from tests.systemd.container import Container, missing


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the containers' outlives the session. What else is new belongs to tests that run beside it."""
    leaks.become_subreaper()
    before = leaks.take()
    yield
    left = leaks.children()
    left += leaks.leaked(before, leaks.take(), marks=(leaks.CONTAINER, str(tmp_path_factory.getbasetemp())))
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def container(nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    if lacking := missing():
        pytest.skip(lacking)
    with Container(tmp_path_factory.mktemp("systemd")) as booted:
        yield booted
