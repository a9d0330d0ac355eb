"""Volumes with names: made once whoever wants them at the same time, kept until nobody uses them."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aci import pod_manifest
from aci.pod_manifest import PodManifest, Volume
from aci.store import Store
from common import locks
from common.errors import PodError, UsageError
from stage0 import gc, namedvolumes, values
from stage0.pods import Pod, Pods
from tests.cgroups import until


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    (tmp_path / "data").mkdir()
    return Pods(str(tmp_path / "data/pods"))


def wanted(*texts: str) -> PodManifest:
    return PodManifest(apps=(), volumes=tuple(map(values.volume, texts)))


def settled(pods: Pods, *texts: str) -> AbstractContextManager[PodManifest]:
    """For a pod without apps, whose volumes begin empty."""
    return namedvolumes.settled(wanted(*texts), pods, {}, Store(f"{os.path.dirname(pods.root)}/cas"))


def settle(pods: Pods, *texts: str) -> PodManifest:
    with settled(pods, *texts) as manifest:
        return manifest


def made(pods: Pods, *texts: str) -> Pod:
    """A pod with these volumes, in `prepared`."""
    with pods.create() as pod:
        pod.to_prepare()
        write(pod, settle(pods, *texts))
        pod.to_prepared()
    return pod


def write(pod: Pod, manifest: PodManifest) -> None:
    Path(pod.path, "pod").write_text(pod_manifest.dumps(manifest, pretty=False))


def test_it_is_made_when_it_is_wanted_and_found_again(pods: Pods) -> None:
    root = Path(namedvolumes.directory(pods))
    before = os.umask(0o077)
    try:
        manifest = settle(pods, "a,kind=named", "b,kind=named,source=db_1.x,readOnly=true,mode=1770", "c,kind=empty")
    finally:
        os.umask(before)
    assert manifest.volumes == (
        Volume(name="a", kind="host", source=f"{root}/a"),
        Volume(name="b", kind="host", source=f"{root}/db_1.x", read_only=True),
        Volume(name="c", kind="empty"),
    )
    assert pod_manifest.parse(pod_manifest.dumps(manifest, pretty=False).encode()) == manifest
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root, root / "a", root / "db_1.x")}
    assert modes == {"volumes": 0o700, "a": 0o755, "db_1.x": 0o1770}
    (root / "a/file").write_text("kept")
    (root / "a").chmod(0o711)
    settle(pods, "other,kind=named,source=a,mode=0700")
    assert (root / "a/file").read_text() == "kept"
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o711
    assert namedvolumes.names(pods) == ["a", "db_1.x"]


def test_what_was_interrupted_is_no_volume(pods: Pods) -> None:
    root = Path(namedvolumes.directory(pods))
    settle(pods, "a,kind=named")
    for name in (".new", ".gone"):
        (root / name / "below").mkdir(parents=True)
    assert namedvolumes.names(pods) == ["a"]
    namedvolumes.finish(pods)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["a"]
    (root / ".new/below").mkdir(parents=True)
    settle(pods, "b,kind=named")
    assert not list((root / "b").iterdir())
    namedvolumes.remove(pods, "b")
    assert sorted(path.name for path in root.iterdir()) == [".lock", ".making", ".removal", "a"]


@pytest.mark.parametrize("name", ["", ".", "..", ".lock", "a/b", "../x", "-a", "_a", "a b", "ä", "a\n", "x" * 129])
def test_names_no_volume_can_have(pods: Pods, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a volume"):
        values.volume(f"v,kind=named,source={name}")
    settle(pods, "a,kind=named")
    with pytest.raises(PodError, match="there is no volume"):
        namedvolumes.remove(pods, name)


@pytest.mark.parametrize("text", ["v,kind=named,size=1M", "v,kind=named,recursive=true", "v,kind=named,uid=x"])
def test_what_a_named_volume_does_not_take(text: str) -> None:
    with pytest.raises(UsageError):
        values.volume(text)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_its_place(pods: Pods, tmp_path: Path, kind: str) -> None:
    settle(pods, "other,kind=named")
    there = Path(namedvolumes.directory(pods), "a")
    if kind == "file":
        there.write_text("")
    else:
        there.symlink_to(tmp_path)
    with pytest.raises(PodError, match=f"{there} is not a directory"):
        settle(pods, "a,kind=named")
    with pytest.raises(PodError, match=f"{there} is not a directory"):
        namedvolumes.remove(pods, "a")


def test_nobody_waits_for_one_that_is_being_filled(pods: Pods) -> None:
    root = Path(namedvolumes.directory(pods))
    settle(pods, "old,kind=named")
    settle(pods, "other,kind=named")
    (root / ".new/below").mkdir(parents=True)
    with locks.acquire(str(root / ".making"), exclusive=True):
        settle(pods, "old,kind=named")
        namedvolumes.remove(pods, "other")
        namedvolumes.finish(pods)
        assert (root / ".new/below").is_dir()
    namedvolumes.finish(pods)
    assert not (root / ".new").exists()


def test_two_pods_want_the_same_new_one(pods: Pods) -> None:
    """Each puts something into it; nothing is lost, and it was made once."""
    together = threading.Barrier(8)

    def want(number: int) -> int:
        together.wait()
        with settled(pods, "v,kind=named,source=shared") as manifest:
            place = Path(manifest.volumes[0].source)
            (place / str(number)).write_text("")
            return place.stat().st_ino

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(want, range(8)))) == 1
    assert len(list(Path(namedvolumes.directory(pods), "shared").iterdir())) == 8


def test_one_that_is_used_stays_until_the_pod_is_collected(pods: Pods) -> None:
    pod = made(pods, "v,kind=named,source=data")
    settle(pods, "v,kind=named,source=free")
    assert namedvolumes.users(pods) == {"data": [pod.uuid]}
    with pytest.raises(PodError, match=f'volume "data" is used by pod "{pod.uuid}"'):
        namedvolumes.remove(pods, "data")
    namedvolumes.remove(pods, "free")
    with pods.find(pod.uuid) as found:
        found.take()
        found.to_garbage()
        gc.remove(found, gc.read_mounts(pods.root))
    assert namedvolumes.users(pods) == {}
    place = Path(namedvolumes.directory(pods), "data")
    (place / "below").mkdir()
    namedvolumes.remove(pods, "data")
    assert not place.exists()


def test_a_pod_that_is_taken_back_takes_its_new_volumes_along(pods: Pods) -> None:
    """Not what was there before, and not what another pod uses by now."""
    (Path(namedvolumes.directory(pods)) / "old").mkdir(parents=True)
    with pods.create() as pod:
        pod.to_prepare()
        write(pod, settle(pods, "a,kind=named,source=old", "b,kind=named,source=new", "c,kind=named,source=shared"))
        made(pods, "x,kind=named,source=shared")
        pod.discard()
    assert namedvolumes.names(pods) == ["old", "shared"]


def test_a_pod_that_nobody_can_read_may_use_it(pods: Pods) -> None:
    with pods.create() as pod:
        pod.to_prepare()
        settle(pods, "data,kind=named")
        assert namedvolumes.users(pods) == {}  # not written yet
        Path(pod.path, "pod").write_text("broken")
        with pytest.raises(PodError, match=pod.uuid):
            namedvolumes.remove(pods, "data")
    assert namedvolumes.names(pods) == ["data"]


def test_it_is_not_removed_while_a_pod_is_made_that_wants_it(pods: Pods) -> None:
    with ThreadPoolExecutor(1) as pool, pods.create() as pod:
        pod.to_prepare()
        with settled(pods, "data,kind=named") as manifest:
            removal = pool.submit(namedvolumes.remove, pods, "data")
            until(lambda: locks.waiting == 1)
            write(pod, manifest)
        assert isinstance(removal.exception(timeout=60), PodError)
    assert namedvolumes.names(pods) == ["data"]


def test_a_removal_that_was_interrupted_is_finished_by_the_next(pods: Pods) -> None:
    settle(pods, "data,kind=named")
    place = Path(namedvolumes.directory(pods))
    (place / "data").rename(place / ".gone")
    with pytest.raises(PodError, match='there is no volume "data"'):
        namedvolumes.remove(pods, "data")
    assert not (place / ".gone").exists()
    (place / ".gone").mkdir()
    namedvolumes.finish(pods)
    assert not (place / ".gone").exists()
