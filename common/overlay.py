"""How overlayfs marks its own in layers ("User xattr" in the kernel's Documentation/filesystems/overlayfs.rst). A user
namespace cannot write attributes that are `trusted`, so its overlays are told to go by the other kind."""

from __future__ import annotations

from common import users


def prefix() -> str:
    """Of the extended attributes that are overlayfs's business."""
    return "user.overlay." if users.confined() else "trusted.overlay."


def opaque() -> str:
    """The attribute, with the value `y`, of a directory that hides what lower layers have in it."""
    return f"{prefix()}opaque"


def options() -> tuple[tuple[str, str | None], ...]:
    """Of a mount."""
    return (("userxattr", None),) if users.confined() else ()
