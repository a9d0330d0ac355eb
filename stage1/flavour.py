"""The contract between stage0 and a flavour, and how a flavour is found.

A flavour is a module with the functions of `Flavour`. Built-in ones are listed in `BUILTIN`; any installed Python
distribution may add one through the entry-point group `rkpy.stage1`, whose value names such a module.
"""

from __future__ import annotations

from typing import NoReturn, Protocol, cast

from aci.image_manifest import App, Isolator
from common.errors import UsageError
from common.records import NamedTuple
from stage1.network.plan import Names, Network, Port
from stage1.plan import AUTO, ON_ANY_FAILURE, HandedSocket, Health, Restart
from stage1.streams import Streams
from stage1.systemd.given import Given
from stage1.systemd.manager import Manager
from stage1.vm.machine import MachineOptions

BUILTIN = {"fly": "stage1.fly", "nspawn": "stage1.nspawn", "kvm": "stage1.kvm"}
ENTRY_POINTS = "rkpy.stage1"
NOTIFIES = "appc.io/executor/supports-systemd-notify"
"""The annotation, rkt's, of images and apps that speak the protocol of sd_notify(3)."""


class Mount(NamedTuple):
    """One host directory, file, socket or device that appears inside an app."""

    source: str
    """Absolute path on the host; empty for an empty volume, which lies in the pod directory."""
    target: str
    """Absolute path inside the app's root; symlinks in it are resolved inside that root."""
    read_only: bool
    recursive: bool | None
    """Whether mounts below `source` come along; None leaves it to the flavour."""
    volume: str
    """The volume's name, for messages."""
    implicit: bool = False
    """A volume nobody asked for, at a mount point of the image; `source` lies in the pod directory."""
    propagation: str = ""
    """"private", "slave" or "shared" (mount_namespaces(7)); empty leaves it to the flavour."""
    size: int = 0
    """Bytes an empty volume may grow to, in memory then; 0 for one on disk without a limit."""
    mode: int = 0o755
    """Of an empty volume of limited size, as `uid` and `gid`."""
    uid: int = 0
    gid: int = 0


class Device(NamedTuple):
    """A device of the host that an app may use."""

    source: str
    """Absolute path on the host."""
    target: str
    """Absolute path in the app."""


class PreparedApp(NamedTuple):
    """One app of a pod, everything about it decided."""

    name: str
    image_id: str
    app: App
    layers: tuple[str, ...]
    """Absolute paths of the unpacked layers, lowest first; empty when the root was copied to `rootfs`."""
    read_only_root: bool
    mounts: tuple[Mount, ...]
    streams: Streams = Streams()
    restart: Restart = Restart()
    stop_signal: int = 15
    devices: tuple[Device, ...] = ()
    from_oci: bool = False
    """The image is an OCI image: its /etc/hosts is a placeholder, as every engine for such images takes it."""
    image_name: str = ""
    """With its version, as far as the manifest has them."""
    notifies: bool = False
    """It tells how it fares by the protocol of sd_notify(3)."""
    health: Health | None = None
    listening: tuple[HandedSocket, ...] = ()
    """What the service manager listens on for the app: descriptors of this process, from FIRST_SOCKET on."""
    reload_signal: int = 0
    """What asks it to read its files anew; 0 when nothing does."""


class PreparedPod(NamedTuple):
    """What stage0 hands to a flavour: the pod directory, the lock that keeps it alive, and the apps."""

    uuid: str
    directory: str
    lock_fd: int
    """Inherited by whatever process is the pod (DESIGN: state is the filesystem)."""
    apps: tuple[PreparedApp, ...]
    net: tuple[str, ...] | None
    """Networks asked for, None when the user said nothing."""
    ports: tuple[str, ...]
    """Names of the ports to be published on the host."""
    name_options: tuple[str, ...]
    """Command-line options about /etc/resolv.conf and /etc/hosts (`--dns`, …) that the user typed for this run."""
    hostname: str
    """As asked for, else the pod's name, else `rkpy-UUID`."""
    ipc: str
    """IPC namespace: "auto" leaves it to the flavour, "private" or "parent"."""
    private_users: bool
    isolators: tuple[Isolator, ...]
    """Of the pod: they bound those of its apps."""
    asked: tuple[str, ...]
    """Command-line options that restrict the app (`--caps-retain`, …) or say where its streams lead (`--stdin`, …), and
    that the user typed for this run."""
    debug: bool
    name: str = ""
    """The name given with --pod-name."""
    data_directory: str = ""
    """Where rkpy keeps everything (Config.data): caches of flavours go to `cache/` in it."""
    interactive: bool = False
    """The caller's terminal, or its streams as they are, become the app's; exactly one app."""
    mutable: bool = False
    """Apps may be added to and taken from the pod while it runs (`rkpy app`)."""
    exit_policy: str = ON_ANY_FAILURE
    stop_timeout: int = 10
    """Seconds between asking the apps to end and killing them."""
    insecure: tuple[str, ...] = ()
    """Of --insecure-options what concerns running: "capabilities", "paths", "seccomp"."""
    private_range: tuple[int, int] = (0, 0)
    """With `private_users`: the first host ID of the pod's range and how many there are."""
    networks: tuple[Network, ...] = ()
    """What the pod is to be attached to. This and what follows is for flavours with NETWORKS only."""
    plugin_path: tuple[str, ...] = ()
    """Directories with CNI plugins that stand in for the built-in ones."""
    join: str = ""
    """A network namespace to live in instead (`--net=ns:PATH`); it was one when it was looked at."""
    published: tuple[Port, ...] = ()
    """Ports of the pod that the host is to have, without conflicts among themselves."""
    names: Names = Names("")
    """What the apps' files about names are to say; concerns pods without networks too."""
    given: Given = Given()
    """What the service manager handed to this process."""
    ready: str = ""
    """What being ready means, one of `plan.READINESS`; empty leaves it to the apps."""
    credentials: int = -1
    """A detached mount of the pod's credentials (`stage1.credentials.pack`); -1 when it has none."""
    register: bool = True
    """Whether the pod is to be known to systemd's machined."""
    keep_unit: bool = False
    """Whether it is to stay in the unit of systemd it was started in, whatever that is."""
    manager: Manager | None = None
    """The service manager that is to know of the pod, None when nobody is."""
    unit: str = ""
    """The unit that it stays in, when no manager is asked about it."""
    delegated: bool = False
    """Whether a manager has said that this unit's cgroup is the pod's to divide, which cannot be seen otherwise."""
    starts: bool = False
    """Whether it is to run here and now, and not by somebody else later."""
    bandwidth: int = 0
    """Bits per second that each of the pod's networks is to carry in either direction; 0 for no limit."""
    log_driver: str = AUTO
    """Where the apps' output is to be kept, one of LOG_DRIVERS."""
    own_kernel: bool = False
    """Whether it is to have a kernel of its own, which has cgroups of the second kind only. For flavours to say."""
    machine: MachineOptions = MachineOptions()
    """Of a pod that runs in a virtual machine. For flavours without MACHINES only what was asked for this very pod."""


class EnterRequest(NamedTuple):
    """`rkpy enter`: run `command` beside the app `app` of a running pod."""

    directory: str
    app: PreparedApp
    command: tuple[str, ...]
    user: str = ""
    """Instead of the app's own: a user, or USER:GROUP, as the image knows them."""
    cwd: str = ""
    """Instead of the app's working directory."""
    privileged: bool = False
    """As root, without the app's restrictions."""


class Flavour(Protocol):
    """What a flavour module provides. Paths are absolute; failures are RkpyError."""

    NETWORKS: bool
    """Whether its pods have networks of their own. False when it is left out: networks, ports and names are then not
    looked up, and what was asked for is in `net`, `ports` and `name_options` for `check` to refuse or warn of. So it is
    with MACHINES: whether its pods are virtual machines."""

    # There may be a function `of_unit(pod: PreparedPod) -> Limits`, too: what a service of the pod's own is limited to,
    # instead of what `resources.of_unit` says.

    def check(self, pod: PreparedPod) -> list[str]:
        """One warning for every field of `pod` this flavour will ignore; raises where ignoring it would be unsafe.
        Called before the pod is allowed to exist as running."""
        ...

    def run(self, pod: PreparedPod) -> NoReturn:
        """Become the pod: build the isolation, write `pid`, keep the lock, and exec or supervise the apps."""
        ...

    def enter(self, request: EnterRequest) -> NoReturn:
        """Run the command inside the pod, then exit with its status."""
        ...

    def stop(self, directory: str, *, force: bool) -> None:
        """Ask the pod to end (SIGTERM), or end it (`force`: SIGKILL). Does not wait."""
        ...

    def gc(self, directory: str) -> None:
        """Undo what the flavour left outside the pod directory. Idempotent; the pod is dead."""
        ...


class Changes(Protocol):
    """What a flavour module may provide beyond `Flavour`: any of these; `rkpy app`, `rkpy attach` and `rkpy kill` say
    where one is missing. `directory` is the pod's, which runs; `app` is an app of its manifest. An app may be in the
    manifest that the flavour was never told of, because somebody was killed in between: removing it is a success."""

    def app_add(self, pod: PreparedPod, app: PreparedApp) -> None:
        """Take in `app`, the last of `pod`, without starting it. Raising takes it out of the manifest again."""
        ...

    def app_start(self, directory: str, app: str) -> None:
        """Start an app that was added, or has ended. It can be entered and signalled when this returns."""
        ...

    def app_stop(self, directory: str, app: str, *, force: bool) -> None:
        """Ask the app to end, or end it. The pod goes on."""
        ...

    def app_restart(self, directory: str, app: str) -> None:
        """Stop the app if it runs, and start it."""
        ...

    def app_rm(self, directory: str, app: str) -> None:
        """End the app and forget it; its files are removed afterwards."""
        ...

    def app_states(self, directory: str) -> dict[str, str]:
        """By app: "created", "running" or "exited". Apps that are left out are told by their files."""
        ...

    def send_signal(self, directory: str, app: str, number: int) -> None:
        """Signal the main process of an app, of every app when `app` is empty. Of them there is one at least."""
        ...

    def reload(self, directory: str) -> None:
        """Have the apps reload that have a signal for it, and tell the service manager. Of them there is one at least.
        Without this they are signalled one after the other."""
        ...

    def attach(self, directory: str, app: str, mode: str) -> int:
        """Connect the caller's streams to the app's until one side ends; the exit status. `mode`: "auto", "list",
        "tty", "tty-in", "tty-out", or some of "stdin", "stdout" and "stderr" with commas between."""
        ...


def ignored_machine(flavour: str, machine: MachineOptions) -> list[str]:
    """The warnings of a flavour whose pods are no virtual machines."""
    asked = {"accel": machine.acceleration, "kernel": machine.kernel, "params": machine.parameters}
    return [
        f"{flavour} ignores --kvm-{name}={value}: its pods are not virtual machines"
        for name, value in asked.items()
        if value
    ]


def load(name: str) -> Flavour:
    """The flavour called `name`; UsageError when there is none."""
    import importlib

    module = BUILTIN.get(name)
    if module is None:
        from importlib.metadata import entry_points

        found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
        module = found.get(name)
        if module is None:
            known = ", ".join(sorted({*BUILTIN, *found}))
            raise UsageError(f'no stage1 flavour called "{name}"', hint=f"there is: {known}")
    return cast(Flavour, importlib.import_module(module))
