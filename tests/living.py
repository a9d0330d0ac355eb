"""Pods that live: real processes that hold a pod's lock, as an app does."""

from __future__ import annotations

import os
import subprocess

from stage0.pods import Pod
from stage1 import poddir

Living = list[subprocess.Popen[bytes]]


def start(pod: Pod) -> subprocess.Popen[bytes]:
    """Make a process the leader of `pod`, which must be ours and in `run`; hands it the lock as a flavour would."""
    fd = pod.hand_over_lock()
    process = subprocess.Popen(["sleep", "1000"], pass_fds=(fd,))
    os.close(fd)
    poddir.write_leader(pod.path, process.pid)
    return process


def die(process: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until it is gone; calling it twice is harmless."""
    process.kill()
    process.wait()
