"""One table of cases for every flavour that claims the feature: pods run by the real command, asked by the inspector.

A case names the features it needs, a variant those it claims; a case is collected for exactly the variants that claim
all of them, so nothing is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from common import syscalls
from stage1 import logreader, poddir, supervised
from tests import images, ordinary
from tests.host.commands import Rkpy
from tests.host.oci import build_oci
from tests.ordinary import User

DEADLINE = 300.0
"""Seconds until a test gives up waiting for what should take milliseconds, or a few seconds where a machine boots."""

NAMESPACES = "namespaces"
"""Processes, hostname, IPC and network of its own, a closed /dev, and nothing of the host's to write to."""
CAPABILITIES = "capabilities"
SECCOMP = "seccomp"
LIMITS = "limits"
"""Resource limits and the out-of-memory score."""
SUPERVISED = "supervised"
"""Somebody stays while the apps run: exit statuses are kept, apps restarted, handlers run, output collected."""
SEVERAL = "several apps"
TERMINAL = "terminal"
"""--interactive gives the app a terminal of its own."""
IMPLICIT = "implicit volumes"
HOST_IDS = "host IDs"
"""User 0 of the pod is user 0 of the host, so files of the host's belong to whom they belong to."""
ALL_IDS = "all IDs"
"""Every number there is can be a user."""
FLY = "fly"
"""What only fly does, because everything but the root is the host's."""
HERE = "this kernel"
"""The pod's kernel is the host's, so its devices, IPC, special files and namespaces can be had, and told apart."""
QUICK = "quick"
"""A pod costs next to nothing, so a test may start as many as it likes. A machine takes seconds to boot: what the same
supervisor does in there is asked of few of them, in test_machine_apps.py, test_kvm_life.py and test_kvm_failures.py."""
ROOT = "run by root"
"""rkpy is not run by an ordinary user: files of the host show their owners, devices can be made, limits be kept."""
MACHINE = "machine"
"""What only kvm does, because the pod has a kernel of its own."""


class Variant(NamedTuple):
    """A way to run pods."""

    name: str
    words: tuple[str, ...]
    """Flags of `rkpy run`, and of `rkpy app sandbox`."""
    claims: frozenset[str]
    user: str = ""
    """Who runs rkpy, if it is not root: one of ORDINARY."""
    shares: bool = False
    """Tests share one pod where they can: what wants nothing special of its pod is an app added to it."""


RANGE, ALONE = "range", "alone"
ORDINARY = (RANGE, ALONE)
"""Ordinary users: with a range of IDs in /etc/subuid, and without."""
_OWN = frozenset({NAMESPACES, CAPABILITIES, SECCOMP, LIMITS, SUPERVISED, SEVERAL, TERMINAL, IMPLICIT})
_HERE = frozenset({HERE, QUICK, ROOT})
KVM = Variant(
    # Emulated: it is the one that works everywhere.
    "kvm", ("--stage1=kvm", "--kvm-accel=tcg", "--net=none"), _OWN | {HOST_IDS, ALL_IDS, MACHINE, ROOT}, shares=True
)  # fmt: skip
VARIANTS = (
    Variant("fly", ("--stage1=fly",), _HERE | {HOST_IDS, ALL_IDS, FLY}),
    Variant("nspawn", ("--stage1=nspawn", "--net=none"), _OWN | _HERE | {HOST_IDS, ALL_IDS}),
    Variant("nspawn-users", ("--stage1=nspawn", "--net=none", "--private-users"), _OWN | _HERE),
    KVM,
)
ROOTLESS = (
    # These two only: --private-users and machines are for root.
    Variant("rootless", ("--stage1=nspawn", "--net=none"), _OWN | _HERE - {ROOT}, user=RANGE),
    Variant("rootless-fly", ("--stage1=fly",), _HERE - {ROOT} | {FLY}, user=RANGE),
)
EVERYBODY = (*VARIANTS, *ROOTLESS)


def claiming(*needs: str, of: Sequence[Variant] = VARIANTS) -> list[Variant]:
    """The variants a test with these needs runs for."""
    return [variant for variant in of if variant.claims.issuperset(needs)]


def every(*needs: str, of: Sequence[Variant] = VARIANTS) -> pytest.MarkDecorator:
    """A test that runs for each variant that claims `needs`."""
    return pytest.mark.parametrize("variant", claiming(*needs, of=of), ids=lambda variant: variant.name)


class Case(NamedTuple):
    """One row of a table."""

    name: str
    ask: str
    """Words for the inspector, as they are split at spaces."""
    lines: tuple[str, ...] = ()
    """What it prints, exactly."""
    app: tuple[str, ...] = ()
    """Flags of the app."""
    pod: tuple[str, ...] = ()
    """Flags of the pod."""
    image: Mapping[str, Any] = {}
    """Fields of the app section of the image's manifest."""
    needs: tuple[str, ...] = ()
    status: int = 0
    error: str = ""
    """A part of standard error."""


def table(*cases: Case, of: Sequence[Variant] = VARIANTS) -> pytest.MarkDecorator:
    """A test that runs for every case and each variant that claims what it needs."""
    rows = [(variant, case) for case in cases for variant in claiming(*case.needs, of=of)]
    ids = [f"{variant.name}-{case.name}" for variant, case in rows]
    return pytest.mark.parametrize(("variant", "case"), rows, ids=ids)


class Result(NamedTuple):
    status: int
    """As a shell has it: 128+N for a death by signal N, be it the app's or, where they are one, the engine's."""
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Running:
    """A pod in the background."""

    def __init__(self, process: subprocess.Popen[str], uuid_file: Path) -> None:
        self.process = process
        self._uuid_file = uuid_file

    @property
    def uuid(self) -> str:
        until(lambda: self._uuid_file.exists() and self._uuid_file.read_text().strip(), self._told)
        return self._uuid_file.read_text().strip()

    def line(self) -> str:
        """The next line of its output, without the newline."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE), f"no output: {self._told()}"
        return _read_line(self.process.stdout) or self._told()

    def wait(self) -> Result:
        out, err = self.process.communicate(timeout=DEADLINE)
        return Result(shell_status(self.process.returncode), out, err)

    def _told(self) -> str:
        if self.process.poll() is None:
            return "(still running)"
        return "".join(stream.read() for stream in (self.process.stdout, self.process.stderr) if stream)


def _read_line(stream: IO[str]) -> str:
    """One byte at a time, so that nothing is hidden in a buffer where select(2) does not see it."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(stream.fileno(), 1)
        if not byte:
            break
        line += byte
    return line.decode(errors="replace").rstrip("\n")


def shell_status(code: int) -> int:
    return code if code >= 0 else 128 - code


def until(condition: Callable[[], object], explain: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain {explain()}"
        time.sleep(0.02)


PASSWD = """\
root:x:0:0:root:/root:/bin/sh
web:x:33:34:Web:/srv/www:/bin/ash
1000:x:4321:8765::/home/odd:/bin/sh
"""
GROUP = "root:x:0:\nweb:x:34:\nstaff:x:50:web\n1000:x:777:\n"


class Shared:
    """A pod that runs, to which apps are added, one at a time."""

    def __init__(self, rkpy: Rkpy, variant: Variant, place: Path) -> None:
        file = place / "uuid"
        self._rkpy = rkpy
        self._count = 0
        self._removals: list[subprocess.Popen[str]] = []
        self._said = place / "stderr"
        with self._said.open("w") as said:
            words = ("--insecure-options=image", "app", "sandbox", *variant.words, f"--uuid-file-save={file}")
            self._process = rkpy.start(*words, stdout=subprocess.DEVNULL, stderr=said)
        self.uuid = Running(self._process, file).uuid
        self.directory = str(rkpy.data / "pods/run" / self.uuid)
        rkpy.ok("status", "--wait-ready", self.uuid)

    def run(self, words: Sequence[str], pod: Sequence[object] = (), insecure: str = "image") -> Result:
        """An app, to its end; `words` are what `rkpy app add` takes, `pod` flags of `rkpy run` (see `possible`)."""
        self._count += 1
        name = f"a{self._count}"
        before = self._said.stat().st_size
        image, *rest = words
        flags = [f"--name={name}", *_as_added(pod, name)]
        added = self._rkpy(f"--insecure-options={insecure}", "app", "add", self.uuid, image, *flags, *rest)
        if added.status:
            return Result(shell_status(added.status), added.out, added.err)
        # That an app cannot be executed is said there too, and told by its status as well.
        self._rkpy("app", "start", f"--app={name}", self.uuid)
        until(lambda: supervised.app_states(self.directory)[name] == "exited", lambda: self._told(before))
        ending = poddir.read_ending(self.directory, name)
        assert ending is not None
        texts = {"stdout": b"", "stderr": added.err.encode() + self._told(before).encode()}
        for entry in logreader.read(self.directory, [name]):
            texts[entry.stream] += entry.data
        self._remove(name)
        return Result(ending.status, texts["stdout"].decode(), texts["stderr"].decode())

    @staticmethod
    def possible(pod: Sequence[object]) -> bool:
        """Whether an app can be given what these flags give a pod: volumes, and nothing else."""
        return all(str(flag).startswith(("--volume=", "--mount=")) for flag in pod)

    def _told(self, start: int) -> str:
        """What the command itself has said since, and not its apps."""
        with self._said.open("rb") as file:
            file.seek(start)
            return "".join(line.decode() for line in file if line.startswith(b"rkpy: "))

    def _remove(self, name: str) -> None:
        """While the next test begins."""
        self._removals.append(self._rkpy.start("app", "rm", f"--app={name}", self.uuid))
        while len(self._removals) > 1 and self._removals[0].poll() is not None:
            self._collect()

    def _collect(self) -> None:
        removal = self._removals.pop(0)
        told = removal.communicate(timeout=DEADLINE)
        assert removal.returncode == 0, told

    def end(self) -> None:
        while self._removals:
            self._collect()
        self._rkpy.ok("stop", "--force", self.uuid)
        assert shell_status(self._process.wait(timeout=DEADLINE)) == 128 + signal.SIGKILL


def _as_added(pod: Sequence[object], app: str) -> list[str]:
    """Volumes of a pod as those of an app that is added to one, under names that no other has."""
    volumes: dict[str, str] = {}
    found = []
    for flag in map(str, pod):
        kind, _, text = flag.partition("=")
        if kind == "--volume":
            name, _, options = text.partition(",")
            volumes[name] = options
        else:
            fields = dict(field.split("=", 1) for field in text.split(","))
            found.append(f"--mnt-volume=name={app}-{fields['volume']},target={fields['target']}")
            found[-1] += f",{volumes.pop(fields['volume'])}"
    assert not volumes, pod
    return found


@contextmanager
def small_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at `place`, with a directory `ground` in it."""
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, f"size={mebibytes}m,mode=755")
    try:
        (place / "ground").mkdir()
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


Files = Mapping[str, bytes | str]
NO_FILES: Files = {}
Arrange = Callable[[Path], object]


class Ground:
    """A data directory, images made of one root, and the pods run from them."""

    def __init__(self, directory: Path, inspector: str, user: User | None = None) -> None:
        self.directory = directory
        self.rkpy = Rkpy(directory, user=user)
        self.inspector = inspector
        self._images: dict[str, str] = {}
        self._count = 0
        self._shared: dict[Variant, Shared] = {}

    # Images

    def root(self, files: Files = NO_FILES, arrange: Arrange | None = None) -> Path:
        """A tree with the inspector, accounts and what `files` says: "name/" is a directory, "->x" a symlink,
        executable below bin/. `arrange` does the rest."""
        root = self.new("root")
        os.chown(root, 0, 0)
        base: dict[str, bytes | str] = {
            "bin/": "", "etc/passwd": PASSWD, "etc/group": GROUP, "root/": "", "srv/www/": "", "tmp/": "", "owned": "",
        }  # fmt: skip
        for name, content in {**base, **files}.items():
            _put(root / name.rstrip("/"), content, directory=name.endswith("/"))
        shutil.copy(self.inspector, root / "bin/inspect")
        os.chown(root / "owned", 123, 456)
        os.chown(root / "srv/www", 33, 34)
        (root / "tmp").chmod(0o1777)
        if arrange:
            arrange(root)
        return root

    def image(self, files: Files = NO_FILES, arrange: Arrange | None = None, **app: Any) -> str:
        """The ID of an ACI of `root(files, arrange)` in the store. Without `arrange` an image is made once only."""
        key = json.dumps([sorted((name, str(content)) for name, content in files.items()), app], sort_keys=True)
        if arrange or key not in self._images:
            made = self._fetch(self._aci(self.root(files, arrange), app))
            if arrange:
                return made
            self._images[key] = made
        return self._images[key]

    def _aci(self, root: Path, app: Mapping[str, Any]) -> Path:
        path = self.new("aci") / "image.aci"
        section = {"exec": ["/bin/inspect"], "user": "0", "group": "0", **app}
        manifest = path.with_name("manifest")
        manifest.write_text(json.dumps(images.manifest(app=section)))
        with tarfile.open(path, "w") as archive:
            archive.add(manifest, "manifest")
            archive.add(root, "rootfs")
        return path

    def oci(self, *config: str, files: Files = NO_FILES, arrange: Arrange | None = None, docker: bool = False) -> str:
        """The ID of an image of the same root made by buildah; `config` are words of `buildah config`."""
        return self._fetch(build_oci(self.new("oci"), str(self.root(files, arrange)), config, docker=docker))

    def _fetch(self, path: object) -> str:
        return self.rkpy.ok("--insecure-options=image", "fetch", "--full", path).strip()

    def new(self, prefix: str) -> Path:
        self._count += 1
        path = self.directory / f"{prefix}{self._count}"
        path.mkdir()
        return path if self.rkpy.user is None else self.rkpy.user.own(path)

    def outside(self, number: int) -> int:
        """Which ID of the host is `number` in pods without --private-users."""
        return number if self.rkpy.user is None else self.rkpy.user.outside(number)

    # Pods

    def words(self, variant: Variant, *pod: object, insecure: str = "image") -> list[object]:
        return [f"--insecure-options={insecure}", "run", *variant.words, *pod]

    def app(self, ask: str | Sequence[str], *flags: str, image: str = "") -> list[str]:
        """The words of a command line for one app; without an `ask` it does what its image says."""
        words = ask.split(" ") if isinstance(ask, str) else ask
        return [image or self.image(), *flags, *(["--", *words] if words else [])]

    def run(
        self,
        variant: Variant,
        ask: str | Sequence[str],
        *flags: str,
        image: str = "",
        pod: Sequence[object] = (),
        insecure: str = "image",
    ) -> Result:
        """A pod of one app, to its end; `flags` are the app's. Where a variant's pods are shared the app is added to
        one, unless it wants more of its pod than volumes."""
        if variant.shares and Shared.possible(pod):
            return self.shared(variant).run(self.app(ask, *flags, image=image), pod, insecure)
        done = self.rkpy(*self.words(variant, *pod, insecure=insecure), *self.app(ask, *flags, image=image))
        return Result(shell_status(done.status), done.out, done.err)

    def shared(self, variant: Variant) -> Shared:
        """The pod that runs for apps of this variant, until the last test has ended."""
        if variant not in self._shared:
            self._shared[variant] = Shared(self.rkpy, variant, self.new("shared"))
        return self._shared[variant]

    def ask(self, variant: Variant, ask: str | Sequence[str], *flags: str, **more: Any) -> list[str]:
        """The lines of a pod that has to succeed."""
        result = self.run(variant, ask, *flags, **more)
        assert result.status == 0, result
        return result.lines

    def pod(self, variant: Variant, *apps: Sequence[str], pod: Sequence[object] = ()) -> Result:
        """A pod of several apps, each made by `app`, to its end."""
        done = self.rkpy(*self.words(variant, *pod), *_joined(apps))
        return Result(shell_status(done.status), done.out, done.err)

    @contextmanager
    def running(self, variant: Variant, *apps: Sequence[str], pod: Sequence[object] = ()) -> Iterator[Running]:
        """A pod in the background, ended by force when the test leaves it running."""
        with self.running_command(self.words(variant, *pod), _joined(apps)) as running:
            yield running

    @contextmanager
    def running_command(self, words: Sequence[object], rest: Sequence[str] = ()) -> Iterator[Running]:
        """A command that starts a pod and takes --uuid-file-save; the flag is put between `words` and `rest`."""
        file = self.new("uuid") / "uuid"
        process = self.rkpy.start(*words, f"--uuid-file-save={file}", *rest)
        try:
            yield Running(process, file)
        finally:
            if file.exists():
                self.rkpy("stop", "--force", file.read_text().strip())
            try:
                process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise

    def place(self, uuid: str) -> str:
        """The directory of a pod that has run."""
        return str(self.rkpy.data / "pods/run" / uuid)

    def state(self, uuid: str) -> str:
        """`state=` of `rkpy status`."""
        return self.status(uuid).get("state", "")

    def status(self, uuid: str) -> dict[str, str]:
        """`rkpy status` as a mapping."""
        return dict(line.split("=", 1) for line in self.rkpy.ok("status", uuid).splitlines() if "=" in line)

    def stop_all(self) -> None:
        while self._shared:
            self._shared.popitem()[1].end()
        found: list[dict[str, Any]] = []

        def running() -> list[str]:
            found[:] = json.loads(self.rkpy.ok("list", "--format=json"))
            return [pod["name"] for pod in found if pod["state"] == "running"]

        for uuid in running():
            self.rkpy("stop", "--force", uuid)
        until(lambda: not running(), lambda: found)
        done = self.rkpy("gc", "--grace-period=0s", "--expire-prepared=0s")
        assert done.status == 0, done
        assert not self.rkpy.pods()

    def check(self, variant: Variant, case: Case) -> None:
        """Run a row of a table."""
        image = self.image(**case.image)
        result = self.run(variant, case.ask, *case.app, image=image, pod=case.pod)
        assert (result.lines, result.status) == (list(case.lines), case.status), result
        assert case.error in result.err, result


@contextmanager
def grounds(directory: Path, inspector: str) -> Iterator[Callable[[str], Ground]]:
    """A ground for root (""), and one for each ordinary user who is asked for."""
    made: dict[str, Ground] = {}
    with contextlib.ExitStack() as stack:

        def find(who: str) -> Ground:
            if who not in made:
                user = stack.enter_context(ordinary.user(ORDINARY.index(who), ranges=who == RANGE)) if who else None
                made[who] = stack.enter_context(ground(user.directory if user else directory, inspector, user))
            return made[who]

        yield find


@contextmanager
def ground(directory: Path, inspector: str, user: User | None = None) -> Iterator[Ground]:
    """A data directory that has to be empty of pods, and without mounts, after its last test."""
    made = Ground(directory, inspector, user)
    try:
        yield made
    finally:
        made.stop_all()
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert not [line for line in file if str(directory) in line]


def _joined(apps: Sequence[Sequence[str]]) -> list[str]:
    joined: list[str] = []
    for words in apps:
        joined += [*(["---"] if joined else []), *words]
    return joined


def _put(path: Path, content: bytes | str, *, directory: bool) -> None:
    (path if directory else path.parent).mkdir(parents=True, exist_ok=True)
    if directory:
        return
    if isinstance(content, str) and content.startswith("->"):
        path.symlink_to(content[2:])
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o755 if "bin/" in str(path) else 0o644)
