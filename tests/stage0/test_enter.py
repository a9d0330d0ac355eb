"""Which app of a pod `rkpy enter` enters."""

from __future__ import annotations

import pytest

from aci.image_manifest import App
from common.errors import UsageError
from stage0.commands.enter import choose
from stage1.flavour import PreparedApp

ONE, TWO = (PreparedApp(name, "sha512-0", App(), (), False, ()) for name in ("one", "two"))


def test_the_named_app_or_the_only_one() -> None:
    assert choose((ONE, TWO), "two") is TWO
    assert choose((TWO,), "") is TWO


@pytest.mark.parametrize(
    ("name", "message"), [("", "pod contains multiple apps: one, two"), ("three", 'no app "three" in the pod')]
)
def test_no_app_is_guessed(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose((ONE, TWO), name)
