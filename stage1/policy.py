"""What follows from an app's end: whether it starts again, whether the pod goes on, and what the pod's status is."""

from __future__ import annotations

from stage1.plan import ON_ANY, ON_ANY_FAILURE, Restart

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
"""Seconds before an app is started again, doubled each time: one that fails at once must not keep a core busy."""


def restarts(restart: Restart, times: int, status: int) -> bool:
    """Whether an app that ended with `status`, and was started again `times` times already, is started once more."""
    if restart.policy == "no" or (restart.policy == "on-failure" and status == 0):
        return False
    return not restart.limit or times < restart.limit


def delay(times: int) -> float:
    """Seconds to wait before the start number `times` (0 for the first) after an end."""
    return min(FIRST_DELAY * 2.0 ** min(times, 10), LONGEST_DELAY)


class Outcome:
    """How a pod fares, from the ends of its apps in the order they come."""

    def __init__(self, exit_policy: str) -> None:
        self._exit_policy = exit_policy
        self.status = 0
        """The pod's exit status so far: that of the first app that failed."""
        self.over = False
        """Whether the apps that still run are to be stopped."""

    def ended(self, status: int) -> None:
        """An app ended for good. Once the others are being stopped because of it, how they end does not count."""
        if self.over:
            return
        if not self.status:
            self.status = status
        if self._exit_policy == ON_ANY or (self._exit_policy == ON_ANY_FAILURE and status):
            self.over = True
