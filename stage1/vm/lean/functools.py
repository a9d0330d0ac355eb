"""What the standard library itself needs of https://docs.python.org/3/library/functools.html, to define things."""

from __future__ import annotations

from _functools import partial, reduce  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any

__all__ = ("partial", "reduce", "wraps")

_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")


def wraps(wrapped: object) -> Callable[[Any], Any]:
    def wrap(wrapper: Any) -> Any:
        for name in _NAMES:
            if hasattr(wrapped, name):
                setattr(wrapper, name, getattr(wrapped, name))
        wrapper.__dict__.update(getattr(wrapped, "__dict__", {}))
        return wrapper

    return wrap
