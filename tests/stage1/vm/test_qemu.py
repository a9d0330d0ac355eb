"""QEMU's command line, and virtiofsd's."""

from __future__ import annotations

import itertools

from stage1.limits import Limits
from stage1.vm import qemu, share
from stage1.vm.machine import Machine

UUID = "6733c088-a507-4694-aabf-beefbaadf00d"
MACHINE = Machine(
    "/usr/bin/qemu-system-x86_64", "/usr/libexec/virtiofsd", "/k", "/i", "quiet a=b,c", "tcg", "q35", "Nehalem", 2,
    512 << 20, 2, Limits(), 60, 65534, 65534,
)  # fmt: skip


def _after(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


def test_a_machine_with_a_pci_bus() -> None:
    words = qemu.argv(MACHINE, UUID)
    assert words[0] == MACHINE.qemu
    assert _after(words, "-append") == ["quiet a=b,c"]
    assert _after(words, "-m") == ["524288K"]
    assert _after(words, "-smp") == ["2"]
    assert "memory-backend-memfd,id=memory,size=524288K,share=on" in words
    assert _after(words, "-accel")[0].startswith("tcg,tb-size=")
    assert _after(words, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert _after(words, "-netdev") == ["tap,id=net0,fd=6", "tap,id=net1,fd=7"]
    devices = _after(words, "-device")
    assert "virtserialport,chardev=port,name=rkpy" in devices
    assert [one for one in devices if one.startswith("virtio-net")] == [
        "virtio-net-pci,netdev=net0,mac=02:ba:ad:f0:0d:00,romfile=",
        "virtio-net-pci,netdev=net1,mac=02:ba:ad:f0:0d:01,romfile=",
    ]
    # Neither a file of the host's, nor anything to be told to it, nor what QEMU has by itself.
    assert not {"-monitor", "-qmp", "-drive", "-hda", "-usb", "-vga"} & set(words)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)


def test_a_machine_without_one() -> None:
    words = qemu.argv(MACHINE._replace(kind="microvm", acceleration="kvm", cpu="host"), UUID)
    assert _after(words, "-machine")[0].startswith("microvm,")
    assert _after(words, "-accel") == ["kvm"]
    devices = _after(words, "-device")
    assert not [one for one in devices if "-pci" in one or "romfile" in one]
    assert "vhost-user-fs-device,chardev=share,tag=rkpy" in devices


def test_addresses_of_two_pods_differ() -> None:
    assert qemu.hardware_address(UUID, 3) == "02:ba:ad:f0:0d:03"
    assert int(qemu.hardware_address(UUID, 0)[:2], 16) & 3 == 2
    assert qemu.hardware_address(UUID.replace("d", "e"), 3) != qemu.hardware_address(UUID, 3)


def test_virtiofsd() -> None:
    words = share.argv("/usr/libexec/virtiofsd")
    assert words[:3] == ["/usr/libexec/virtiofsd", "-f", "--fd=3"]
    options = _after(words, "-o")[0].split(",")
    assert {"source=/share", "sandbox=namespace", "announce_submounts", "modcaps=-mknod"} <= set(options)
