"""Which keeps the output of a pod's apps: the journal or files (docs/logs.md). Decided when the pod is started, and
recorded, so that `rkpy logs` knows where to look."""

from __future__ import annotations

from common import journal
from common.errors import LaunchError
from stage1 import poddir
from stage1.plan import AUTO, FILE, JOURNALD


def choose(asked: str, *, there: bool) -> str:
    """JOURNALD or FILE; `there`: whether there is a journal. LaunchError when what was asked for is not."""
    if asked == JOURNALD and not there:
        raise LaunchError(
            f"--log-driver=journald: there is no journal: nobody listens on {journal.SOCKET}",
            hint="leave it at auto, or use --log-driver=file",
        )
    return (JOURNALD if there else FILE) if asked == AUTO else asked


def record(directory: str, driver: str) -> None:
    poddir.write_log_driver(directory, driver)


def of_pod(directory: str) -> str:
    """What the pod uses, or used when it was run last."""
    return JOURNALD if poddir.read_log_driver(directory) == JOURNALD else FILE
