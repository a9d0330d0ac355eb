"""Named tuples, against those of `typing`."""

from __future__ import annotations

import copy
import pickle
import typing
from collections.abc import Callable
from typing import Any

import pytest

from common import records


class Ours(records.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    z: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.x + self.y


class Theirs(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    z: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.x + self.y


USES: list[Callable[[Any], Any]] = [
    lambda kind: tuple(kind(1)),
    lambda kind: tuple(kind(1, 3, ("a",))),
    lambda kind: tuple(kind(z=("a",), x=4)),
    lambda kind: tuple(kind(5, z=("a",))),
    lambda kind: repr(kind(1)).partition("(")[2],
    lambda kind: (kind(1).x, kind(1).y, kind(1).total),
    lambda kind: tuple(kind(1)._replace(y=7)),
    lambda kind: kind(1)._asdict(),
    lambda kind: tuple(kind._make((1, 2, ()))),
    lambda kind: (kind._fields, kind._field_defaults, kind.__match_args__, kind.__doc__),
    lambda kind: kind(1) == (1, 2, ()) and hash(kind(1)) == hash((1, 2, ())) and kind(1) < kind(2),
    lambda kind: pickle.loads(pickle.dumps(kind(9))) == copy.deepcopy(kind(9)) == kind(9),
    lambda kind: type(copy.copy(kind(9))) is kind and isinstance(kind(9), tuple),
    lambda kind: hasattr(kind(1), "__dict__"),
]


@pytest.mark.parametrize("use", USES)
def test_they_are_used_alike(use: Callable[[Any], Any]) -> None:
    assert use(Ours) == use(Theirs)


REFUSED: list[Callable[[Any], Any]] = [
    lambda kind: kind(),
    lambda kind: kind(1, 2, (), 4),
    lambda kind: kind(1, x=1),
    lambda kind: kind(1, w=1),
    lambda kind: kind(y=1),
    lambda kind: setattr(kind(1), "x", 2),
    lambda kind: setattr(kind(1), "w", 2),
]


@pytest.mark.parametrize("use", REFUSED)
def test_they_refuse_alike(use: Callable[[Any], Any]) -> None:
    for kind in (Theirs, Ours):
        with pytest.raises((TypeError, AttributeError)):
            use(kind)
