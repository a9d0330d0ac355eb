"""A pod's virtual machine: what it boots from, how it is started and confined, and how its two sides speak.

    engine     bootfiles, acceleration, size          what to boot, made once and kept, and in which machine
    monitor    virtualmachine, qemu, share, bridge    the machine, seen from the host
    guest      guest, agent, guestnet                 the machine, seen from inside
    both       machine, frames, traffic               what they agree on

The guest's first process (`guest`) makes the kernel usable and becomes the agent, which does in there what the monitor
does for pods in namespaces: it opens mounts, makes pipes and cgroups, and starts the very same supervisor. Between the
monitor and that supervisor stands one byte stream, a port of virtio-serial, with `bridge` and `agent` at its ends; the
words of the supervisor's protocol (`stage1.supervisor`) go over it as they are. See docs/kvm.md, and
docs/architecture.md for all of the modules.
"""
