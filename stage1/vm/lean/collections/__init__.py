"""Those of https://docs.python.org/3/library/collections.html that are not written in Python."""

from _collections import OrderedDict, defaultdict, deque  # type: ignore[import-not-found]

__all__ = ("OrderedDict", "defaultdict", "deque")
