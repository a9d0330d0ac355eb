"""Images, trust and configuration of users who are not root: real layers, in the user namespaces they get."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gpg, images, layouts, ordinary, servers, tars
from tests.host import registries
from tests.host.commands import ROOT, Rkpy
from tests.ordinary import User
from tests.tars import device, directory, file, hardlink, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HERE = Path(__file__).parent
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""CAP_NET_RAW, as setcap(8) has it in an image (capabilities(7), VFS_CAP_REVISION_2)."""
APPLETS = ("sh", "cat", "stat", "rm", "mkdir", "chown", "chmod")
BASE = tars.pack(
    directory("bin"),
    file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o4755),
    *(symlink(f"bin/{name}", "busybox") for name in APPLETS),
    file("bin/ping", b"#!", mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}),
    directory("data"), file("data/old", b"old"), directory("data/below"), file("data/below/secret", b"hidden"),
    file("gone", b"gone"), directory("home", uid=1000, gid=1000), file("home/one", b"1", uid=1000, gid=65535),
    hardlink("home/two", "home/one"), file("home/set", b"", uid=1000, gid=42, mode=0o6750),
)  # fmt: skip
UPPER = tars.pack(directory("data"), file("data/.wh..wh..opq"), file("data/new", b"new"), file(".wh.gone"))
LOOK = "cd /; stat -c '%a %u:%g %h %n' gone data/* data/below/* home/* bin/busybox"
SEEN = [
    "644 0:0 1 data/new", "644 1000:65535 2 home/one", "6750 1000:42 1 home/set", "644 1000:65535 2 home/two",
    "4755 0:0 1 bin/busybox",
]  # fmt: skip


@pytest.fixture(scope="module")
def person() -> Iterator[User]:
    with ordinary.user(30) as made:
        yield made


@pytest.fixture(scope="module")
def alone() -> Iterator[User]:
    """Who has no other IDs than his own."""
    with ordinary.user(31, ranges=False) as made:
        yield made


def rkpy_of(user: User, request: pytest.FixtureRequest) -> Rkpy:
    """rkpy as this user, with directories for this test alone."""
    place = user.directory / re.sub(r"\W", "-", request.node.name)
    place.mkdir()
    return Rkpy(user.own(place), user=user)


@pytest.fixture
def rkpy(person: User, request: pytest.FixtureRequest) -> Rkpy:
    return rkpy_of(person, request)


def unverified(rkpy: Rkpy, *words: object) -> str:
    return rkpy.ok("--insecure-options=image", *words)


def in_pod(rkpy: Rkpy, image: object, script: str, *flags: str) -> list[str]:
    """What the script says; that it finds something missing is no failure."""
    words = ("run", "--net=none", *flags, image, "--exec=/bin/sh", "--", "-c", f"{script} 2>/dev/null; :")
    return unverified(rkpy, *words).replace("\r", "").splitlines()


def two_layers(directory: Path, *layers: bytes) -> str:
    path = str(directory / "layout")
    layouts.simple(path, "example.com/app:1", *(layers or (BASE, UPPER)), media_type=layouts.TAR)
    return f"oci:{path}"


def aci(directory: Path, name: str = "app") -> Path:
    path = directory / f"{name}.aci"
    images.make_aci(str(path), images.manifest(f"example.com/{name}"), images.busybox_files())
    return path


# Layers


def test_layers_are_what_they_are_for_root(rkpy: Rkpy) -> None:
    """Opaque directories and whiteouts hide, set-ID files, owners, hard links and capabilities are as they were."""
    image = two_layers(rkpy.directory)
    assert unverified(rkpy, "fetch", image).startswith("sha512-")
    assert in_pod(rkpy, "example.com/app:1", LOOK) == SEEN
    assert in_pod(rkpy, "example.com/app:1", LOOK, "--no-overlay") == SEEN
    assert "successfully verified" in rkpy.ok("image", "verify", "example.com/app:1")
    assert rkpy.user is not None
    target = rkpy.directory / "out"
    rkpy.ok("image", "render", "--rootfs-only", "example.com/app:1", target)
    assert sorted(os.listdir(target / "data")) == ["new"]
    status = os.stat(target / "home" / "set")
    assert (status.st_uid, status.st_gid) == (rkpy.user.outside(1000), rkpy.user.outside(42))
    # With the user's own ID as root's, or it would be worth something on the host.
    attribute = os.getxattr(target / "bin" / "ping", "security.capability")
    assert int.from_bytes(attribute[-4:], "little") == rkpy.user.uid


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "aci"])
def test_every_format(rkpy: Rkpy, form: str) -> None:
    path = str(rkpy.directory / "image")
    if form == "oci-archive":
        layouts.simple(str(rkpy.directory / "layout"), "example.com/app:1", BASE, UPPER).archive(path)
    elif form == "docker-archive":
        layouts.docker_archive(path, [BASE, UPPER], tags=["example.com/app:1"])
    else:
        below = images.make_aci(
            str(rkpy.directory / "below.aci"), images.manifest("example.com/below"), images.busybox_files()
        )
        unverified(rkpy, "fetch", below)
        dependencies = [{"imageName": "example.com/below"}]
        images.make_aci(path, images.manifest(dependencies=dependencies), {"etc/upper": b"upper"})
    unverified(rkpy, "fetch", path)
    expected = ["upper"] if form == "aci" else SEEN
    assert in_pod(rkpy, "example.com/app:1", "cat /etc/upper" if form == "aci" else LOOK) == expected
    if form == "aci":
        rkpy.ok("image", "export", "example.com/app:1", rkpy.directory / "exported.aci")
        assert tarfile.is_tarfile(rkpy.directory / "exported.aci")
        rkpy.ok("image", "extract", "example.com/app:1", rkpy.directory / "extracted")
        assert (rkpy.directory / "extracted/rootfs/etc/upper").read_bytes() == b"upper"
    name = json.loads(rkpy.ok("image", "cat-manifest", "example.com/app:1"))["name"]
    assert name == "example.com/app"
    rkpy.ok("gc", "--grace-period=0s")
    rkpy.ok("image", "rm", "example.com/app:1")


def test_what_an_app_left_becomes_an_image(rkpy: Rkpy) -> None:
    """With the owners that it saw, and without what it has removed, which the kernel marks in the user's own way."""
    unverified(rkpy, "fetch", two_layers(rkpy.directory))
    change = "cd /; rm -r home data/new; mkdir home data/sub; echo >home/file"
    in_pod(rkpy, "example.com/app:1", f"{change}; chown 7:8 home home/file; chmod 4711 home/file")
    (uuid,) = (line.split()[0] for line in rkpy.ok("list", "--no-legend", "--full").splitlines())
    path = rkpy.directory / "exported.aci"
    rkpy.ok("export", uuid, path)
    with tarfile.open(path) as archive:
        found = {name.removeprefix("rootfs/"): (m.uid, m.gid, m.mode) for m in archive if (name := m.name)}
    assert found["home/file"] == (7, 8, 0o4711)
    assert found["home"][:2] == (7, 8)
    assert {name for name in found if name.startswith(("home", "data", "gone"))} == {
        "home", "home/file", "data", "data/sub",
    }  # fmt: skip


def test_device_nodes_are_left_out_and_named(rkpy: Rkpy) -> None:
    layer = tars.pack(
        directory("jail"), device("jail/null", major=1, minor=3), hardlink("jail/same", "jail/null"),
        device("jail/disk", tarfile.BLKTYPE, 8, 0), file("jail/became"), device("jail/became", major=1, minor=5),
        device("jail/again", major=1, minor=5), file("jail/again", b"file"), device("jail/hidden", major=1, minor=3),
        file("jail/.wh.hidden"), device("jail/gone"), file("jail/f"),
    )  # fmt: skip
    lower = tars.pack(directory("jail"), file("jail/hidden", b"lower"), file("jail/gone", b"lower"))
    done = rkpy("--insecure-options=image", "fetch", two_layers(rkpy.directory, BASE, lower, layer))
    assert done.status == 0, done
    names = "'jail/null', 'jail/same', 'jail/disk', 'jail/became', 'jail/again' and 1 more"
    assert f"device nodes, which only root of the host can make, were left out: {names}\n" in done.err
    assert in_pod(rkpy, "example.com/app:1", "cd /jail; echo *; cat again") == ["again f", "file"]
    assert "successfully verified" in rkpy.ok("image", "verify", "example.com/app:1")


@pytest.mark.parametrize("entry", [file("d/f", uid=65537), directory("d", gid=70000), symlink("d", "x", uid=1 << 31)])
def test_owners_that_the_user_does_not_have(rkpy: Rkpy, entry: tars.Entry) -> None:
    line = rkpy.refused("--insecure-options=image", "fetch", two_layers(rkpy.directory, tars.pack(entry)))
    assert re.search(r"archive entry 'd[/f]*' belongs to (user|group) \d+, which is none of the IDs", line), line
    assert "/etc/subuid" in line
    assert rkpy.ok("image", "list", "--no-legend") == ""
    assert os.listdir(rkpy.data / "cas" / "tmp") == []


def test_a_user_without_a_range(alone: User, request: pytest.FixtureRequest) -> None:
    """What is all root's works; of the rest one line says what is missing."""
    rkpy = rkpy_of(alone, request)
    done = rkpy("--insecure-options=image", "fetch", two_layers(rkpy.directory))
    assert done.status == 254, done
    assert done.err.count("\n") == 1, done
    assert "archive entry 'home/one' belongs to user 1000 and group 65535, which is none" in done.err
    unverified(rkpy, "fetch", aci(rkpy.directory))
    assert in_pod(rkpy, "example.com/app:1", "stat -c %u:%g /bin/busybox /etc") == ["0:0", "0:0"]


def test_what_is_left_of_times_with_more_ids(rkpy: Rkpy) -> None:
    """Without new privileges there is the user's own ID only. What cannot be removed then stays for later."""
    assert rkpy.user is not None
    unverified(rkpy, "fetch", two_layers(rkpy.directory))
    in_pod(rkpy, "example.com/app:1", "", "--no-overlay")

    def less(*words: str) -> str:
        command = ["setpriv", "--no-new-privs", "--", *Rkpy(rkpy.directory).command(*words)]
        done = subprocess.run(
            rkpy.user.command(command) if rkpy.user else [],
            env=rkpy.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 254, done
        return done.stderr

    hint = "it may have files of IDs that are not yours now, see /etc/subuid"
    assert hint in less("gc", "--grace-period=0s")
    rkpy.ok("gc", "--grace-period=0s")
    assert hint in less("image", "rm", "example.com/app:1")
    rkpy.ok("image", "gc", "--grace-period=0s")
    assert [os.listdir(rkpy.data / place) for place in ("cas/tmp", "cas/layer", "pods/garbage")] == [[], [], []]


def test_archives_that_are_hostile_or_random(person: User) -> None:
    """What unpacks and stacks layers has its own tests, once more in the user's namespace."""
    names = ("unpack_hostile", "unpack_compare", "unpack_whiteouts", "tree")
    modules = [str(HERE / f"test_{name}.py") for name in names]
    code = (
        "import sys, pytest; from stage0 import rootless; rootless.become_root(); sys.exit(pytest.main(sys.argv[1:]))"
    )
    flags = [
        "-q",
        "-k",
        "not diamonds",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        f"--basetemp={person.directory}/tmp",
    ]
    done = subprocess.run(
        person.command([sys.executable, "-P", "-c", code, *flags, *modules]),
        env={**person.environment(), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed, 2 skipped", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 150, done.stdout


# Whose store it is


def test_root_does_not_work_in_a_users_directories(rkpy: Rkpy, person: User) -> None:
    image = aci(rkpy.directory)
    uuid = unverified(rkpy, "prepare", image).strip()
    root = Rkpy(rkpy.directory)
    store, pods = (
        rf"the store \S+/cas: it belongs to user ID {person.uid}",
        r"the pods in \S+: it belongs",
    )
    for words, why in (
        (("fetch", image), store), (("image", "gc"), store), (("image", "rm", "example.com/app"), store),
        (("image", "verify", "example.com/app"), store), (("image", "export", "example.com/app", "/x.aci"), store),
        (("run", "--net=none", image), store), (("gc",), pods), (("rm", uuid), pods), (("run-prepared", uuid), pods),
        (("start", uuid), pods), (("stop", uuid), pods), (("kill", uuid), pods), (("enter", uuid), pods),
        (("attach", uuid), pods), (("app", "rm", uuid), pods), (("export", uuid, "/x.aci"), pods),
    ):  # fmt: skip
        line = root.refused("--insecure-options=image", *words)
        assert re.search(f"cannot use {why}", line), line
    # Who may read may look, and leaves nothing.
    (rkpy.data / "cas" / "index.db").unlink()
    root.ok("image", "cat-manifest", "example.com/app")
    assert {os.lstat(path).st_uid for path in rkpy.data.rglob("*")} == {person.uid}
    assert not (rkpy.data / "cas" / "index.db").exists()
    assert "example.com/app" in root.ok("image", "list")
    assert uuid[:8] in root.ok("list")
    assert "state=prepared" in root.ok("status", uuid)
    assert os.stat(rkpy.data / "pods" / "prepared" / uuid / "lock").st_uid == person.uid


def test_a_user_does_not_work_in_the_stores_of_others(rkpy: Rkpy, tmp_path: Path) -> None:
    root = Rkpy(rkpy.directory)
    unverified(root, "prepare", aci(rkpy.directory))
    assert rkpy.user is not None
    rkpy.user.own(rkpy.data)
    for words in (("fetch", "example.com/app"), ("image", "gc"), ("run", "--net=none", "example.com/app")):
        assert "it belongs to somebody else (use one of your own, see --dir)" in rkpy.refused(*words)
    for command in ("gc", "rm 1234", "stop 1234", "run-prepared 1234"):
        assert "pods: it belongs to" in rkpy.refused(*command.split())
    assert "example.com/app" in rkpy.ok("image", "list")


def test_what_is_in_somebodys_directory_he_may_replace_at_any_time(rkpy: Rkpy, person: User) -> None:
    """As where somebody was quicker to make a directory in /tmp."""
    image, root = aci(rkpy.directory), Rkpy(rkpy.directory)
    rkpy.data.mkdir()
    for caller, owner in ((root, person.uid), (rkpy, person.uid + 1)):
        os.chown(rkpy.data, owner, owner)
        rkpy.data.chmod(0o777)
        for words in (("fetch", image), ("prepare", image), ("run", "--net=none", image), ("gc",), ("stop", "1234")):
            line = caller.refused("--insecure-options=image", *words)
            assert f"{rkpy.data} belongs to " in line, line
        assert os.listdir(rkpy.data) == []
    os.chown(rkpy.data, 0, 0)
    rkpy.data.chmod(0o1777)
    assert unverified(rkpy, "fetch", image).startswith("sha512-")


def test_root_in_a_user_namespace_has_a_store_of_its_own(tmp_path: Path) -> None:
    """The owner is the same number, but what hides is marked in another way."""
    outside, inside = Rkpy(tmp_path / "outside"), Rkpy(tmp_path / "inside")
    image = two_layers(tmp_path, tars.pack(directory("data"), file("data/old")), UPPER)
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]

    def namespaced(rkpy: Rkpy, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*unshare, *rkpy.command("--insecure-options=image", *words)]
        return subprocess.run(command, env=rkpy.environment(), capture_output=True, text=True, timeout=120)

    unverified(outside, "fetch", image)
    assert namespaced(inside, "fetch", image).returncode == 0
    assert "it was made outside of a user namespace" in namespaced(outside, "fetch", image).stderr
    assert "it was made in a user namespace" in inside.refused("--insecure-options=image", "fetch", image)


def test_a_home_of_somebody_else(rkpy: Rkpy, tmp_path: Path) -> None:
    """As runuser(1) leaves it."""
    tmp_path.chmod(0o700)
    line = rkpy("image", "list", HOME=str(tmp_path)).err
    assert line == (
        f"rkpy: image list: open {tmp_path}/.config/rkpy/paths.d: permission denied"
        f" (HOME is {tmp_path}, is that yours?)\n"
    )


def test_what_is_a_users_own_is_for_nobody_else(person: User) -> None:
    """The default directories, which nobody has made yet."""
    home = person.directory / "home"
    home.mkdir()
    person.own(home)
    image = aci(person.directory, "default")
    command = person.command([sys.executable, "-P", ROOT / "rkpy.py", "--insecure-options=image", "prepare", image])
    subprocess.run(
        command,
        env={**person.environment(), "HOME": str(home), "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
        umask=0,
    )
    data = home / ".local/share/rkpy"
    assert os.listdir(data / "cas" / "image")
    for path in (data.parent.parent, data.parent, data, data / "pods", data / "cas" / "layer"):
        assert (os.stat(path).st_mode & 0o777, os.stat(path).st_uid) == (0o700, person.uid), path


def test_a_fetch_that_was_killed_leaves_nothing_that_cannot_be_removed(rkpy: Rkpy) -> None:
    """And when the commands that the manual names are through, what is left is the user's own to remove."""
    image = two_layers(rkpy.directory)
    unverified(rkpy, "fetch", aci(rkpy.directory))
    unverified(rkpy, "run", "--net=none", "example.com/app", "--exec=/bin/true")
    code = (
        "import os, signal, sys\n"
        "from aci import unpack\n"
        "from stage0.main import main\n"
        "finish = unpack._Unpacker.finish\n"
        "unpack._Unpacker.finish = lambda self: (finish(self), self.size > 1 << 20 and os.killpg(0, signal.SIGKILL))\n"
        "main(sys.argv[1:])\n"
    )
    assert rkpy.user is not None
    words = [sys.executable, "-P", "-c", code, f"--dir={rkpy.data}", "--insecure-options=image", "fetch", image]
    done = subprocess.run(rkpy.user.command(words), env=rkpy.environment(), timeout=120, start_new_session=True)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in (rkpy.data / "cas/tmp").rglob("*") if os.lstat(path).st_uid != rkpy.user.uid]
    assert left, "nothing was unpacked before it was killed"
    rkpy.ok("gc", "--grace-period=0s", "--expire-prepared=0s")
    rkpy.ok("image", "gc", "--grace-period=0s")
    assert os.listdir(rkpy.data / "cas/tmp") == []
    subprocess.run(rkpy.user.command(["rm", "-r", str(rkpy.data)]), check=True, timeout=60)


def test_a_registry(rkpy: Rkpy) -> None:
    """Docker's own, which wants a login. A client certificate is not the user's to show where the key is root's."""
    made = registries.image({"etc/motd": b"hello"})
    place = rkpy.directory / "registry"
    place.mkdir()
    with registries.real(place) as registry:
        registry.put(made, "team/app:1")
        login = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()
        (rkpy.directory / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        folder = rkpy.directory / ".config/containers/certs.d" / registry.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(registry.ca.read_bytes())
        (folder / "client.cert").write_bytes(registry.ca.read_bytes())
        (folder / "client.key").touch(mode=0o600)
        where = {"HOME": str(rkpy.directory), "REGISTRY_AUTH_FILE": str(rkpy.directory / "auth.json")}
        rkpy.ok("--insecure-options=image", "fetch", f"docker://{registry.host}/team/app:1", **where)
    (name,) = (row["name"] for row in json.loads(rkpy.ok("image", "list", "--format=json")))
    rkpy.ok("image", "verify", name)


def test_an_image_by_its_name(rkpy: Rkpy) -> None:
    """Discovered and downloaded with what it depends on; the key that was announced comes to be the user's."""
    with gpg.signer() as signer, servers.site() as site, servers.proxy(site.port) as proxy:
        key = signer.key("Maker <maker@example.com>")
        site.pages["//mirror.example.com/keys"] = servers.page(signer.export(key))
        for name, below in (("app", [{"imageName": "example.com/below"}]), ("below", [])):
            path = str(rkpy.directory / f"{name}.aci")
            images.make_aci(path, images.manifest(f"example.com/{name}", dependencies=below), {f"etc/{name}": name})
            for ending, file_ in (("", path), (".asc", signer.sign(key, path))):
                site.pages[f"//mirror.example.com/example.com/{name}.aci{ending}"] = servers.page(
                    Path(file_).read_bytes()
                )
            site.pages[f"//example.com/{name}"] = servers.html(
                ("ac-discovery", "example.com https://mirror.example.com/{name}.{ext}"),
                ("ac-discovery-pubkeys", "example.com https://mirror.example.com/keys"),
            )
        authority = rkpy.directory / "ca.crt"
        authority.write_bytes(Path(servers.authority().certificate).read_bytes())
        where = {"HOME": str(rkpy.directory), "SSL_CERT_FILE": str(authority), "https_proxy": proxy.url}
        rkpy.ok("--trust-keys-from-https", "fetch", "example.com/app", **where)
    kept = list((rkpy.directory / ".config/rkpy/trustedkeys/prefix.d").rglob(key))
    assert rkpy.user is not None
    assert {os.stat(path).st_uid for path in kept} == {rkpy.user.uid}
    rkpy.ok("image", "render", "--rootfs-only", "example.com/app", rkpy.directory / "out")
    assert sorted(os.listdir(rkpy.directory / "out/etc")) == ["app", "below"]


# Trust and configuration


class Trusted:
    """A user with an image, signed by two keys that nobody trusts yet."""

    def __init__(self, rkpy: Rkpy) -> None:
        self.rkpy = rkpy
        self.image = aci(rkpy.directory)
        self.config = rkpy.directory / "user"
        self.keys = []
        with gpg.signer() as signer:
            for name in ("one", "two"):
                key = signer.key(f"{name} <{name}@example.com>")
                (rkpy.directory / f"{name}.pub").write_bytes(signer.export(key))
                signer.sign(key, str(self.image), to=f"{self.image}.{name}")
                self.keys.append(key)

    def trust(self, *words: object, root: bool = False) -> str:
        caller = Rkpy(self.rkpy.directory) if root else self.rkpy
        return caller.ok(f"--user-config={self.config}", "trust", *words)

    def add(self, name: str, *, root: bool = False) -> None:
        self.trust("--skip-fingerprint-review", "--prefix=example.com", self.rkpy.directory / f"{name}.pub", root=root)

    def accepts(self, name: str, *, root: bool = False) -> bool:
        directory = self.rkpy.directory / "roots" if root else self.rkpy.directory
        caller = Rkpy(directory) if root else self.rkpy
        own = [f"--local-config={self.rkpy.config}", f"--system-config={self.rkpy.directory / 'usr'}"]
        done = caller(*own, f"--user-config={self.config}", "fetch", self.image, f"--signature={self.image}.{name}")
        assert done.status == 0 or "key" in done.err, done
        return done.status == 0


def test_a_users_keys_are_his_alone(rkpy: Rkpy) -> None:
    case = Trusted(rkpy)
    one, two = case.keys
    case.add("one")
    path = case.config / "trustedkeys/prefix.d/example.com" / one
    assert rkpy.user is not None
    assert os.stat(path).st_uid == rkpy.user.uid
    assert not rkpy.config.exists()
    assert case.accepts("one")
    assert not case.accepts("one", root=True)
    # What root trusts everybody does, unless he masks it, which is nobody else's business.
    case.add("two", root=True)
    assert (rkpy.config / "trustedkeys/prefix.d/example.com" / two).exists()
    assert case.accepts("two")
    listed = json.loads(case.trust("--list", "--format=json"))
    assert [(row["fingerprint"], row["from"], row["state"]) for row in listed] == [
        (one, "user", "trusted"),
        (two, "local", "trusted"),
    ]
    assert "Masked" in case.trust(f"--remove={two}")
    assert not case.accepts("two")
    assert case.accepts("two", root=True)
    assert [row["state"] for row in json.loads(case.trust("--list", "--format=json"))] == ["trusted", "masked"]
    assert [row["state"] for row in json.loads(case.trust("--list", "--format=json", root=True))] == ["trusted"]
    # A key of root's that a user cannot read may hold a revocation: not passed over.
    os.chmod(rkpy.config / "trustedkeys/prefix.d/example.com", 0o700)
    assert not case.accepts("one")


def test_configuration_has_three_levels(rkpy: Rkpy) -> None:
    own, local, system = (rkpy.directory / name for name in ("user", "etc", "usr"))

    def write(place: Path, kind: str, **fields: object) -> None:
        (place / kind).mkdir(parents=True, exist_ok=True)
        (place / kind / "a.json").write_text(json.dumps({"rktVersion": "v1", **fields}))

    for place, password in ((system, "system"), (local, "local"), (own, "user")):
        write(
            place, "auth.d", rktKind="dockerAuth", registries=[f"{password}.example.com", "example.com"],
            credentials={"user": "me", "password": password},
        )  # fmt: skip
    write(local, "paths.d", rktKind="paths", data="/roots")
    write(system, "stage1.d", rktKind="stage1", name="fly")
    config = json.loads(rkpy.ok(f"--user-config={own}", "config"))["stage0"]
    logins = {tuple(one["registries"]): one["credentials"]["password"] for one in config if "registries" in one}
    assert logins[("user.example.com", "example.com")] == "user"
    (paths,) = (one for one in config if one["rktKind"] == "paths")
    assert paths["data"] == ""
    (stage1,) = (one for one in config if one["rktKind"] == "stage1")
    assert stage1["name"] == "fly"
    # What only root may read is not for others, and keeps nobody from the rest.
    os.chmod(local / "auth.d" / "a.json", 0o600)
    os.chmod(system / "auth.d", 0o700)
    config = json.loads(rkpy.ok(f"--user-config={own}", "config"))["stage0"]
    assert [one["credentials"]["password"] for one in config if "registries" in one] == ["user"]
    unverified(rkpy, f"--user-config={own}", "fetch", aci(rkpy.directory))
    assert not Path("/roots").exists()


@pytest.fixture(scope="module")
def registry(person: User) -> Iterator[registries.Fake]:
    made = registries.Fake(registries.certificate(person.directory))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("place", ["runtime", "config", "docker", "own", "helper"])
def test_logins_are_the_callers(rkpy: Rkpy, registry: registries.Fake, place: str) -> None:
    """Who is root of a namespace has the files of the user that he is, and not root's."""
    made = registries.image({"etc/motd": b"hello"})
    registry.add(made)
    registry.rules.clear()
    expected = "Basic " + base64.b64encode(b"me:secret").decode()
    registry.rules.append(
        lambda asked: (
            None
            if asked.headers.get("Authorization") == expected
            else registries.Answer(401, {"WWW-Authenticate": 'Basic realm="tests"'})
        )
    )
    home = rkpy.directory / "home"
    runtime = rkpy.directory / "run"
    login = json.dumps({"auths": {registry.host: {"auth": base64.b64encode(b"me:secret").decode()}}})
    own = {"rktKind": "dockerAuth", "rktVersion": "v1", "registries": [registry.host]}
    path, text = {
        "runtime": (runtime / "containers/auth.json", login),
        "config": (home / ".config/containers/auth.json", login),
        "docker": (home / ".docker/config.json", login),
        "helper": (home / ".docker/config.json", json.dumps({"credHelpers": {registry.host: "mine"}})),
        "own": (
            home / ".config/rkpy/auth.d/a.json",
            json.dumps({**own, "credentials": {"user": "me", "password": "secret"}}),
        ),
    }[place]
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert rkpy.user is not None
    path.chmod(0o600)
    for one in (path, *path.parents):
        if rkpy.directory in one.parents:
            rkpy.user.own(one)
    programs = rkpy.directory / "bin"
    programs.mkdir()
    helper = programs / "docker-credential-mine"
    # It is not root, and in the user's group.
    secret = '{"Username": "me", "Secret": "secret"}'
    helper.write_text(f"#!/bin/sh\n[ $(id -u):$(id -g) = {rkpy.user.uid}:{rkpy.user.uid} ] && echo '{secret}'\n")
    helper.chmod(0o755)
    where = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(runtime),
        "SSL_CERT_FILE": str(rkpy.user.directory / "ca.crt"),
    }
    words = ("--insecure-options=image", "fetch", f"docker://{registry.host}/app:1")
    assert rkpy.ok(*words, **where).startswith("sha512-")
