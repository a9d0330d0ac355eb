"""No more imports, for a process that is about to be inside the root of an app.

There every path is the image's to fill. A module or a codec that Python only looks for then would be the image's code,
run with all that the process may do: on the host, when the process is one that brings a command into a pod
(CVE-2019-14271 was this with the C library's name services)."""

from __future__ import annotations

import codecs
import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter


def seal() -> None:
    """From now on nothing is imported but what is part of the interpreter itself, and no file is read to show the lines
    of a traceback. What messages about the app need is loaded first."""
    codecs.lookup("unicode_escape")
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.tracebacklimit = 0
