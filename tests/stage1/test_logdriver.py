"""What keeps the output of a pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import LaunchError
from stage1 import logdriver


@pytest.mark.parametrize(
    ("asked", "there", "wanted"),
    [
        ("auto", True, "journald"), ("auto", False, "file"), ("file", True, "file"), ("file", False, "file"),
        ("journald", True, "journald"),
    ],
)  # fmt: skip
def test_choice(asked: str, there: bool, wanted: str) -> None:
    assert logdriver.choose(asked, there=there) == wanted


def test_a_journal_that_was_asked_for_and_is_not_there() -> None:
    with pytest.raises(LaunchError, match="there is no journal") as caught:
        logdriver.choose("journald", there=False)
    assert "--log-driver=file" in caught.value.hint


def test_what_is_recorded(tmp_path: Path) -> None:
    assert logdriver.of_pod(str(tmp_path)) == "file"
    for driver in ("journald", "file"):
        logdriver.record(str(tmp_path), driver)
        assert logdriver.of_pod(str(tmp_path)) == driver
    (tmp_path / "log-driver").write_text("something of the future\n")
    assert logdriver.of_pod(str(tmp_path)) == "file"
