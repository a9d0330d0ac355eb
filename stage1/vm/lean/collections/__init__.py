"""Those of https://docs.python.org/3/library/collections.html that are not written in Python."""

from _collections import OrderedDict, defaultdict, deque

__all__ = ("OrderedDict", "defaultdict", "deque")
