"""Where systemd is not PID 1 rkpy says so once: for root until the machine is booted anew, for an ordinary user until
his last session is over, which is when what is in /run and in his runtime directory goes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images, ordinary
from tests.host.commands import TIMEOUT, Rkpy
from tests.ordinary import User

SAID = "rkpy: warning: systemd is not running here: pods have no unit, no machine and no journal\n"
TWICE = 'mount -t tmpfs -o mode=755 tmpfs /run; test -z "$OWN" || install -d -m 700 -o "$OWN" "$OWN_PLACE"; '
TWICE += '"$@" && echo second >&2 && exec "$@"'


@pytest.fixture
def person() -> Iterator[User]:
    with ordinary.user() as made:
        yield made


def twice(rkpy: Rkpy, **environment: str) -> list[str]:
    """What two pods say, one after the other, on a machine that has just been booted without systemd."""
    image = images.make_aci(str(rkpy.directory / "app.aci"), images.manifest(), images.busybox_files())
    if rkpy.user is not None:
        rkpy.user.own(Path(image))
    words = rkpy.command("--insecure-options=image", "run", "--stage1=fly", image, "--", "-c", "exit 0")
    # Who becomes somebody else does so in here: only root can mount.
    cut = words.index("--") + 1 if rkpy.user is not None else 0
    fresh = ["unshare", "--mount", "--propagation=private", "sh", "-ec", TWICE, "sh"]
    done = subprocess.run(
        [*words[:cut], *fresh, *words[cut:]], capture_output=True, text=True, timeout=TIMEOUT,
        stdin=subprocess.DEVNULL, env={**rkpy.environment(), **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stderr.split("second\n")


def test_root_hears_it_once_a_boot(tmp_path: Path) -> None:
    rkpy = Rkpy(tmp_path)
    for _ in range(2):
        assert twice(rkpy) == [SAID, ""]


def test_a_user_hears_it_once_a_session(person: User) -> None:
    rkpy = Rkpy(person.directory, user=person)
    place = f"/run/user/{person.uid}"
    own = {"OWN": str(person.uid), "OWN_PLACE": place}
    assert twice(rkpy, XDG_RUNTIME_DIR=place, **own) == [SAID, ""]


def test_where_it_cannot_be_remembered_it_is_not_said(person: User) -> None:
    assert twice(Rkpy(person.directory, user=person)) == ["", ""]
