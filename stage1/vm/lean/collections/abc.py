"""https://docs.python.org/3/library/collections.abc.html"""

from _collections_abc import *  # noqa: F403
