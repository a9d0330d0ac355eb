"""rkpy's public face: `python -m rkpy`, the `rkpy` command, and the version."""

from __future__ import annotations

import gc
import os
import sys

VERSION = "0.1.0"
INTERRUPTED = 130
"""The exit status after ^C, 128 + SIGINT as shells have it."""


def main() -> None:
    """The `rkpy` command: runs it with the process's arguments and exits."""
    # A start is over before there is garbage worth collecting, and looking for it costs 2 ms of the 30.
    gc.disable()
    sys.unraisablehook = _unraisable
    try:
        from stage0.main import main as run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def _unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Where ^C comes in a callback of the interpreter's, as each import has one, nobody would hear of it but by a
    traceback. What is left then is what is left of a kill: for `rkpy gc`."""
    if ignored.exc_type is KeyboardInterrupt:
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    main()
