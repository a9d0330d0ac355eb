"""Become the app. Runs inside the app's root, in the process that will be the app."""

from __future__ import annotations

from typing import NamedTuple


class LaunchSpec(NamedTuple):
    """Everything stage2 needs to know of one app; all names (users, groups, programs) are resolved inside the root."""

    app_name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    user: str
    """Name, number, or absolute path of a file whose owner is meant (spec 0.8.11, "Image Manifest Schema")."""
    group: str
    supplementary_gids: tuple[int, ...]
    working_directory: str
    no_new_privileges: bool
    keep_fds: tuple[int, ...]
    """Descriptors above 2 the app inherits on purpose; every other one is closed."""
