"""OFD locks, between real processes where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import locks


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "lock"
    file.touch()
    return str(file)


def test_free_file_is_not_locked(path: str) -> None:
    assert not locks.is_locked(path)


@pytest.mark.parametrize("exclusive", [True, False])
def test_held_lock_is_seen_and_ends_with_the_block(path: str, exclusive: bool) -> None:
    with locks.acquire(path, exclusive=exclusive):
        assert locks.is_locked(path)
    assert not locks.is_locked(path)


@pytest.mark.parametrize(
    ("first", "second", "possible"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_sharing(path: str, first: bool, second: bool, possible: bool) -> None:
    with locks.acquire(path, exclusive=first):
        if possible:
            locks.acquire(path, exclusive=second, blocking=False).close()
        else:
            with pytest.raises(BlockingIOError) as caught:
                locks.acquire(path, exclusive=second, blocking=False)
            assert caught.value.filename == path


def test_asking_takes_nothing(path: str) -> None:
    """The question is put while the lock is held, and by somebody who could have it; neither may change anything."""
    with locks.acquire(path, exclusive=True) as lock:
        assert locks.is_locked(path)
        assert locks.is_locked(path)
        lock.convert(exclusive=False)
        assert locks.is_locked(path)
    assert not locks.is_locked(path)
    with locks.acquire(path, exclusive=True, blocking=False):
        pass


def test_a_downgrade_lets_readers_in_and_an_upgrade_keeps_what_it_had(path: str) -> None:
    with locks.acquire(path, exclusive=True) as lock:
        lock.convert(exclusive=False)
        with locks.acquire(path, exclusive=False, blocking=False) as reader:
            with pytest.raises(BlockingIOError):
                lock.convert(exclusive=True, blocking=False)
            reader.close()
            lock.convert(exclusive=True, blocking=False)
            with pytest.raises(BlockingIOError):
                locks.acquire(path, exclusive=False, blocking=False)


def test_closing_another_descriptor_does_not_drop_the_lock(path: str) -> None:
    with locks.acquire(path, exclusive=True):
        os.close(os.open(path, os.O_RDWR))
        assert locks.is_locked(path)


def test_a_child_that_inherits_the_descriptor_holds_the_lock(path: str) -> None:
    lock = locks.acquire(path, exclusive=False)
    child = subprocess.Popen(["sleep", "1000"], pass_fds=(lock.fd,))
    try:
        lock.close()
        assert locks.is_locked(path)
    finally:
        child.kill()
        child.wait()
    assert not locks.is_locked(path)


def test_descriptors_are_not_inherited_by_accident(path: str) -> None:
    with locks.acquire(path, exclusive=True) as lock:
        assert not os.get_inheritable(lock.fd)


def test_a_shared_lock_cannot_write(path: str) -> None:
    with locks.acquire(path, exclusive=False) as lock, pytest.raises(OSError, match="Bad file descriptor"):
        os.write(lock.fd, b"x")


def test_blocking_waits_for_the_holder(path: str) -> None:
    """The child holds the lock until its input ends; once the parent has the lock, the child must be gone."""
    script = (
        "import sys; from common import locks\n"
        "with locks.acquire(sys.argv[1], exclusive=True): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            locks.acquire(path, exclusive=True, blocking=False)
        holder.stdin.close()
        locks.acquire(path, exclusive=True).close()


def test_create(tmp_path: Path) -> None:
    path = str(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        locks.acquire(path, exclusive=True)
    with locks.acquire(path, exclusive=True, create=0o640):
        assert os.stat(path).st_mode & 0o777 == 0o640


def test_symlinks_are_not_followed(path: str, tmp_path: Path) -> None:
    link = str(tmp_path / "link")
    os.symlink(path, link)
    with pytest.raises(OSError, match="symbolic links"):
        locks.acquire(link, exclusive=False)
    with pytest.raises(OSError, match="symbolic links"):
        locks.is_locked(link)


def test_closing_twice_is_harmless(path: str) -> None:
    lock = locks.acquire(path, exclusive=True)
    lock.close()
    lock.close()


def test_detach_leaves_the_descriptor_open(path: str) -> None:
    with locks.acquire(path, exclusive=False) as lock:
        fd = lock.detach()
    assert locks.is_locked(path)
    os.close(fd)
    assert not locks.is_locked(path)


def test_a_quiet_lock_keeps_others_away_and_does_not_show(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locks.acquire(path, exclusive=True, create=0o600, quietly=True):
        assert locks.held(path) == locks.FREE
        for exclusive, quietly in ((True, False), (False, False), (True, True)):
            with pytest.raises(BlockingIOError):
                locks.acquire(path, exclusive=exclusive, blocking=False, quietly=quietly)
    with locks.acquire(path, exclusive=False):
        assert locks.held(path) == locks.SHARED
        with pytest.raises(BlockingIOError):
            locks.acquire(path, exclusive=True, blocking=False, quietly=True)
    with locks.acquire(path, exclusive=True):
        assert locks.held(path) == locks.EXCLUSIVE
