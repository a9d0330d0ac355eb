"""rkpy's public face: `python -m rkpy`, the `rkpy` command, and the version."""

from __future__ import annotations

import gc
import sys

VERSION = "0.1.0"


def main() -> None:
    """The `rkpy` command: runs it with the process's arguments and exits."""
    # A start is over before there is garbage worth collecting, and looking for it costs 2 ms of the 30.
    gc.disable()
    try:
        from stage0.main import main as run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
