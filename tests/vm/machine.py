"""A virtual machine with systemd as PID 1 and nothing but cgroup v2, to run tests in that need either.

QEMU boots the host's own Debian kernel, emulated (TCG), from two disks whose changes are thrown away after each run: a
Debian root, made once and cached, and a disk with this checkout, the Python packages it needs and what the test brings.
The root has one unit of ours, which runs what lies on the second disk. Its output and status come back through a virtio
port.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import secrets
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TOOLS = ("qemu-system-x86_64", "mmdebstrap", "mke2fs")
PACKAGES = (
    "systemd", "systemd-sysv", "systemd-container", "dbus", "udev", "kmod", "procps", "python3", "gnupg", "libseccomp2",
    "busybox-static", "ca-certificates", "iproute2", "nftables", "libnss-mymachines", "libpam-systemd",
    "python3-systemd", "dbus-user-session", "uidmap", "passwd", "passt",
)  # fmt: skip
SUITE = "bookworm"
ROOT_SIZE, PAYLOAD_SIZE = "2G", "512M"
DISTRIBUTIONS = ("rkpy", "pytest", "hypothesis")
"""Python packages that go into the guest with all they require; rkpy itself is taken from the checkout."""
ROOMS = ("aci", "common", "stage0", "stage1", "stage2", "systemd-units", "tests", "rkpy.py", "pyproject.toml")

DEADLINE = 3600.0
"""Seconds until a run counts as hung. Emulated on a busy machine a boot alone may take a minute."""

PORT = "rkpy.result"
SECTOR = 512
FIRST_SECTOR = 2048
"""Where the payload disk's only partition begins."""

UNIT = """\
[Unit]
Description=What the second disk brings
RequiresMountsFor=/payload

[Service]
Type=exec
ExecStart=/bin/sh /payload/start
StandardOutput=journal+console
StandardError=journal+console
"""
MASKED = (
    "getty@tty1.service", "serial-getty@ttyS0.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "e2scrub_reap.service", "systemd-binfmt.service",
)  # fmt: skip
"""What only takes time."""
FSTAB = """\
/dev/vda / ext4 defaults 0 0
/dev/vdb1 /payload ext4 defaults 0 0
"""
# The status is announced by a word made up for this run, so that nothing else can be taken for it.
START = """\
until [ -e /dev/virtio-ports/{port} ]; do sleep 0.1; done
exec >/dev/virtio-ports/{port} 2>&1
cd /payload/tree
# Not by PYTHONPATH, which tests set for what they start.
echo /payload/site >/usr/local/lib/python3.11/dist-packages/payload.pth
export PYTHONPATH=/payload/tree RKPY_TESTS_MUST_RUN=1 RKPY_IN_VM=1 HOME=/root
{command}
printf '\\n%s %d\\n' {word} $?
sync
exec systemctl poweroff -ff
"""


class Result(NamedTuple):
    """What a run in the machine came to."""

    status: int | None
    """Of the command; None when the machine never got so far."""
    output: str
    console: str


class Machine:
    """A machine whose root lies in `cache` once it is made."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def run(self, *command: str, files: tuple[Path, ...] = (), deadline: float = DEADLINE) -> Result:
        """Boot, run `command` in the checkout (as root, with `files` in /payload/files), and switch off."""
        root = self.root()
        with tempfile.TemporaryDirectory(prefix="rkpy-vm-") as directory:
            place = Path(directory)
            word = secrets.token_hex(16)
            start = START.format(port=PORT, command=shlex.join(command), word=word)
            make_payload(place / "payload", start, {**_checkout(), **{file: f"files/{file.name}" for file in files}})
            process = subprocess.Popen(_qemu(root, place), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            try:
                output = _await(process, place / "result", word, time.monotonic() + deadline)
            finally:
                process.kill()
                process.wait()
            return _result(output, word, (place / "console").read_text(errors="replace"))

    def passes(self, *modules: str, files: tuple[Path, ...] = ()) -> None:
        """The tests of modules of the checkout pass in the machine: there are some, and none failed or was skipped."""
        result = self.run("python3", "-m", "pytest", "-p", "no:cacheprovider", "--durations=10", *modules, files=files)
        assert result.status == 0, f"{result.output}\n{result.console[-2000:] if result.status is None else ''}"

    def root(self) -> Path:
        """The disk with Debian, made when it is not cached; whatever it is made from is part of its name."""
        recipe = repr((PACKAGES, SUITE, ROOT_SIZE, UNIT, FSTAB, MASKED, _kernel().name))
        image = self.cache / f"vm-root-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.img"
        if not image.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="rkpy-vm-root-", dir=self.cache) as directory:
                _make_root(Path(directory))
                os.rename(f"{directory}/img", image)
        return image


def missing() -> str:
    """What this host lacks to run a machine, or empty."""
    absent = [tool for tool in TOOLS if _tool(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    if sys.version_info[:2] != (3, 11):
        return "needs Debian 12's Python 3.11, whose compiled packages the guest can use"
    return "" if _kernels() else "needs a Debian kernel in /boot (linux-image-cloud-amd64)"


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _kernels() -> list[Path]:
    """Those with an initramfs and modules, oldest first."""

    def version(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    found = (path for path in Path("/boot").glob("vmlinuz-*") if _initramfs(path).exists() and _modules(path).is_dir())
    return sorted(found, key=version)


def _kernel() -> Path:
    return _kernels()[-1]


def _initramfs(kernel: Path) -> Path:
    return kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))


def _modules(kernel: Path) -> Path:
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


# Disks


def _make_root(directory: Path) -> None:
    """`directory`/img. mmdebstrap writes an archive, so that no directory of ours ever has its mounts below."""
    archive, root = directory / "root.tar", directory / "root"
    mode = ("--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}")
    subprocess.run(["mmdebstrap", *mode, SUITE, archive], check=True)
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", archive, "--exclude=./dev/*", "--numeric-owner"], check=True)
    shutil.copytree(_modules(_kernel()), root / "lib/modules" / _modules(_kernel()).name, symlinks=True)
    (root / "payload").mkdir()
    (root / "etc/fstab").write_text(FSTAB)
    # With an ID of its own the machine is not taken for one that boots for the first time.
    (root / "etc/machine-id").write_text("5d7a9b1e00004000800000000000c9a1\n")
    units = root / "etc/systemd/system"
    (units / "rkpy-test.service").write_text(UNIT)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/rkpy-test.service").symlink_to("../rkpy-test.service")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    _make_file_system(directory / "img", root, ROOT_SIZE)


def make_payload(disk: Path, start: str, content: Mapping[Path, str]) -> None:
    """A disk of one partition with a file system, as disks of machines have it. On it are copies of files and
    directories, and the script `start` that the machine runs when it has booted."""
    payload = disk.with_name(f"{disk.name}-content")
    for source, target in content.items():
        _copy(source, payload / target)
    (payload / "start").write_text(start)
    _make_file_system(disk, payload, PAYLOAD_SIZE, "-E", f"offset={FIRST_SECTOR * SECTOR}")
    with disk.open("r+b") as raw:
        sectors = disk.stat().st_size // SECTOR - FIRST_SECTOR
        # A master boot record: one Linux partition (0x83) in the first of four entries, and the signature.
        raw.seek(446)
        raw.write(struct.pack("<4xB3xII", 0x83, FIRST_SECTOR, sectors))
        raw.seek(510)
        raw.write(b"\x55\xaa")
    shutil.rmtree(payload)


def _checkout() -> dict[Path, str]:
    return {ROOT / room: f"tree/{room}" for room in ROOMS} | packages("site", *DISTRIBUTIONS)


def _copy(source: Path, target: Path) -> None:
    """With times, so that compiled modules stay valid."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _make_file_system(image: Path, content: Path, size: str, *options: str) -> None:
    tool = _tool("mke2fs")
    assert tool is not None
    subprocess.run([tool, "-q", "-t", "ext4", "-d", content, *options, image, size], check=True)


def packages(below: str, *names: str) -> dict[Path, str]:
    """The files of distributions and of all they require, rkpy's own excepted, and where they go."""
    return {
        Path(str(file.locate())): f"{below}/{file}"
        for distribution in _closure(*names)
        if distribution.name != "rkpy"
        for file in distribution.files or ()
        # Some list files they did not install.
        if ".." not in file.parts and Path(str(file.locate())).exists()
    }


def _closure(*names: str) -> Iterator[importlib.metadata.Distribution]:
    """Distributions and what they require, in any direction, as far as it is installed: what is not, is for other
    platforms or optional."""
    pending, seen = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        yield distribution
        required = (line for line in distribution.requires or () if "extra ==" not in line)
        pending += [match[0] for line in required if (match := re.match(r"[\w.-]+", line))]


# Running


def emulator(console: Path) -> list[str]:
    """The words that boot the kernel with `console` as its terminal; its disks are still to be named, root first."""
    kernel = _kernel()
    append = "console=ttyS0 root=/dev/vda rw panic=-1 systemd.show_status=true"
    return [
        "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", str(kernel), "-initrd", str(_initramfs(kernel)), "-append", append,
        "-serial", f"file:{console}", "-device", "virtio-serial",
    ]  # fmt: skip


def _qemu(root: Path, place: Path) -> list[str]:
    return [
        *emulator(place / "console"), "-no-reboot",
        "-drive", f"file={root},format=raw,if=virtio,snapshot=on",
        "-drive", f"file={place}/payload,format=raw,if=virtio,snapshot=on",
        "-chardev", f"file,id=result,path={place}/result", "-device", f"virtserialport,chardev=result,name={PORT}",
    ]  # fmt: skip


def _await(process: subprocess.Popen[bytes], result: Path, word: str, deadline: float) -> str:
    """What the guest wrote, once it has said its status, is off, or has run out of time."""
    while True:
        running = process.poll() is None
        output = result.read_text(errors="replace") if result.exists() else ""
        if not running or re.search(rf"^{word} \d+$", output, re.MULTILINE) or time.monotonic() > deadline:
            return output
        time.sleep(0.2)


def _result(output: str, word: str, console: str) -> Result:
    found = re.search(rf"^{word} (\d+)$", output, re.MULTILINE)
    if found is None:
        return Result(None, output, console)
    return Result(int(found[1]), output[: found.start()], console)
