"""Whether the machine is run by the processor (KVM) or emulated (TCG), and how one knows that KVM works.

That /dev/kvm is there and can be opened says little: on a host that is a virtual machine itself, guests may start and
never get anywhere. So one is started once a boot of the host, from what the pods' machines boot from, and has to say
that it is there.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from common import files, locks, syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1 import poddir
from stage1.vm.bootfiles import BootFiles
from stage1.vm.initramfs import ALIVE, PROBE

AUTO, KVM, TCG = "auto", "kvm", "tcg"
Q35, MICROVM = "q35", "microvm"
"""Types of machines. The smaller one is there sooner, but has no clocks except those that KVM gives a guest."""
CPU = {KVM: "host", TCG: "Nehalem,+rdrand"}
"""Models for -cpu. Emulating what a newer one can do takes the guest longer than doing without, since libraries use it
wherever it is there; rdrand gives the kernel randomness, for which everything would wait otherwise."""
PARAMETERS = (
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 cryptomgr.notests random.trust_cpu=1 "
    "quiet panic=-1 console=ttyS0"
)
"""The kernel's: what a guest need not find out or wait for (Documentation/admin-guide/kernel-parameters.txt), and that
its end is the machine's."""
EMULATED = "noreplace-smp mitigations=off"
"""More of them for an emulated machine, where every byte of code that the kernel changes is translated anew. What makes
a processor safe that speculates is not what is run there, but a translation of it; against that of the guest's it is
the host's kernel that protects the host."""
LOCKED = "lockdown=confidentiality"
"""For a kernel whose modules are signed, which it insists on then. It leaves out tracefs, whose files take 9 MB and a
twentieth of an emulated boot (kernel_lockdown(7), security_locked_down() in kernel/trace/trace.c)."""
ALONE = "nolapic_timer"
"""And for one with a single processor: the timer that others need one each of takes a tenth of a second to measure,
which an emulated one spends on waiting for it. It has another one."""
DEVICE = "/dev/kvm"
STATE = "/run/rkpy/kvm"
PATIENCE = 30
"""Seconds a guest has to say that it is there, in either type of machine: a hundred times as long as it takes where
nothing else runs. Somebody waits for it."""
_GLANCE = 1.0
"""Seconds between two times that whoever waits is told."""
_AGAIN = 600
"""Seconds after which KVM is tried once more when it did not work, or not in the smaller machine for want of time."""
_SOON = 30
"""The same when it took too long, which a busy host is no proof of. The many that a host starts when it is booted wait
for the first of them, and have its answer."""
_SAID = 64 << 10
"""Bytes of what a guest and QEMU say that are kept."""
_HINT = "allow emulation, which is much slower: make the pod with --kvm-accel=tcg, or see stage1.d"


class Proof(NamedTuple):
    """What came of starting a guest."""

    problem: str = ""
    """What was wrong; empty when it said that it is there."""
    late: bool = False
    """Whether that was only that it took too long."""


class Chosen(NamedTuple):
    acceleration: str
    """KVM or TCG."""
    kind: str
    """The type of the machine, MICROVM or Q35."""


def parameters(acceleration: str, cpus: int, *, signed: bool, more: str = "") -> str:
    """The kernel's, for a machine that is accelerated so and has so many processors. `signed`: whether its modules are.
    `more`: what was asked for besides, and can say otherwise; the kernel itself takes no lockdown back."""
    words = [PARAMETERS]
    if signed and not any(word.startswith("lockdown=") for word in more.split()):
        words.append(LOCKED)
    if acceleration != KVM:
        words += [EMULATED, ALONE] if cpus == 1 else [EMULATED]
    return " ".join(filter(None, (*words, more)))


def cpu(acceleration: str, wanted: str = "") -> str:
    """What -cpu gets, of `wanted` if somebody has chosen. An emulated guest has its randomness from the processor
    whichever that is, for there is no other device for it."""
    if not wanted:
        return CPU[acceleration]
    return f"{wanted},+rdrand" if acceleration == TCG else wanted


def choose(
    wanted: str,
    qemu: str,
    boots: BootFiles,
    *,
    state: str = STATE,
    device: str = DEVICE,
    patience: float = PATIENCE,
    waits: Callable[[], None] = lambda: None,
) -> Chosen:
    """AUTO is KVM, proved to work, and never TCG: nobody is to wonder why everything is slow. KVM by name is taken at
    its word, if there is such a device.

    `qemu`: its absolute path. `state`: the file in which the result is kept until the host is booted anew. `waits` is
    called now and then while a guest lets wait for itself. Raises LaunchError."""
    if wanted == TCG:
        return Chosen(TCG, Q35)
    problem, kind = _unusable(device), Q35
    if not problem and wanted == AUTO:
        problem, kind = _known(qemu, boots, state, patience, waits)
    if problem:
        raise LaunchError(f"KVM does not work here: {problem}", hint=_HINT)
    return Chosen(KVM, kind)


def _unusable(device: str) -> str:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"open {device}: {reason(error)}"
    return ""


def _known(qemu: str, boots: BootFiles, state: str, patience: float, waits: Callable[[], None]) -> tuple[str, str]:
    """What is wrong, and the type of machines with which nothing is, as far as that was found out since the host was
    booted; found out now if need be."""
    try:
        key: list[object] = [poddir.boot_id(), *(_identity(path) for path in (qemu, boots.kernel))]
        if (found := _read(state, key)) is not None:
            return found
        os.makedirs(os.path.dirname(state), exist_ok=True)
        with locks.acquire(f"{state}.lock", exclusive=True, create=0o600):
            found = _read(state, key)
            if found is None:
                found, good_for = _try(qemu, boots, patience, waits)
                made = {"of": key, "found": found, "at": time.clock_gettime(time.CLOCK_BOOTTIME), "for": good_for}
                files.replace(state, json.dumps(made).encode("utf-8", "surrogateescape"), mode=0o600)
            return found
    except OSError as error:
        return f"it cannot be tried: {error.filename or qemu}: {reason(error)}", ""


def _try(
    qemu: str, boots: BootFiles, patience: float, waits: Callable[[], None]
) -> tuple[tuple[str, str], float | None]:
    """As `_known`, and for how many seconds that is to be believed; None until the host is booted anew."""
    late, proof = False, Proof()
    for kind in (MICROVM, Q35):
        proof = prove(qemu, boots, accelerator=KVM, kind=kind, patience=patience, waits=waits)
        if not proof.problem:
            return ("", kind), _AGAIN if late else None
        late = late or proof.late
    return (proof.problem, ""), _SOON if late else _AGAIN


def _identity(path: str) -> list[object]:
    found = os.stat(path)
    return [path, found.st_size, found.st_mtime_ns]


def _read(state: str, key: list[object]) -> tuple[str, str] | None:
    try:
        with open(state, encoding="utf-8", errors="surrogateescape") as file:
            found = json.load(file)
        problem, kind = map(str, found["found"])
        if found["of"] != key or (not problem and kind not in (MICROVM, Q35)):
            return None
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - found["at"]
        if found["for"] is not None and not 0 <= age < found["for"]:
            return None
        return problem, kind
    except (OSError, ValueError, TypeError, KeyError):
        return None


def prove(
    qemu: str,
    boots: BootFiles,
    *,
    accelerator: str,
    kind: str,
    patience: float = PATIENCE,
    waits: Callable[[], None] = lambda: None,
) -> Proof:
    """Start a guest that says it is there, in a machine as pods have it, and end it. `waits` as in `choose`. Raises
    OSError when QEMU cannot be started."""
    import subprocess

    from stage1.vm.qemu import MACHINES, SANDBOX

    words = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot",
        "-sandbox", SANDBOX,
        "-machine", MACHINES[kind], "-accel", accelerator, "-cpu", CPU[accelerator], "-m", "256",
        "-kernel", boots.kernel, "-initrd", boots.initramfs, "-append", f"{PARAMETERS} {PROBE}", "-serial", "stdio",
    ]  # fmt: skip
    guest = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={},
        preexec_fn=_with_us,
    )
    with guest:
        try:
            return _listen(guest.stdout.fileno() if guest.stdout else -1, patience, waits)
        finally:
            guest.kill()


def _with_us() -> None:
    """Nobody would end it if we were killed; and QEMU aborts over what it does not understand."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.setrlimit(syscalls.RLIMIT_CORE, 0, 0)


def _listen(fd: int, patience: float, waits: Callable[[], None]) -> Proof:
    import select

    end = time.monotonic() + patience
    said = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while (left := end - time.monotonic()) > 0:
        if not poll.poll(min(left, _GLANCE) * 1000):
            waits()
            continue
        data = os.read(fd, 65536)
        if not data:
            return Proof(_last(said) or "QEMU ended without a word")
        said = (said + data)[-_SAID:]
        if ALIVE.encode() in said:
            return Proof()
    return Proof(f"a guest did not start within {patience:g} seconds", late=True)


def _last(said: bytes) -> str:
    """The last line of QEMU, else of the guest."""
    lines = [line.strip() for line in said.decode("ascii", "replace").splitlines() if line.strip()]
    qemu = [line for line in lines if line.startswith("qemu")]
    line = "".join(char for char in (qemu or lines or [""])[-1] if char.isprintable())
    return f"QEMU says: {line.partition(': ')[2]}" if qemu else f"the guest's last words: {line}" if line else ""
