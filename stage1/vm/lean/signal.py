"""As https://docs.python.org/3/library/signal.html, with numbers that are nothing but numbers."""

from _signal import *  # type: ignore[import-not-found]  # noqa: F403
