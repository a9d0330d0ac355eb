"""The stream between the monitor and the agent in the guest: frames, each a header of 12 bytes and its payload.

    u32 length of the payload, u32 kind, u32 stream; little endian

    MESSAGE  stream 0: a line of text, and after the first newline, if there is one, bytes that go with it (a "blob")
    DATA     what was written to a stream
    CREDIT   u32: so many bytes more may be sent on the stream. Nothing is sent without: WINDOW is there at first
    END      no more data comes on the stream: its writer has closed it, or its reader wants no more

A stream is opened by a message that names it and has two directions, each with a window and an END of its own. Numbers
are chosen by the host, from 1, and never used again. Both sides drop what concerns streams they do not know (any more).

The host says (what is in [] is the blob; NAME of an app):
    pod [PodPlan]                      first of all
    network [netlink messages]         before the first start, when the pod has networks; `stage1.vm.guestnet`
    start NAME IN OUT ERR [AppPlan]    stream numbers, 0 for /dev/null; a terminal has one number three times
    sealed, stop NAME, kill NAME, restart NAME, remove NAME, signal NUMBER [NAME], terminate, ping, cleared NAME
                                       as the supervisor has it
    resize STREAM ROWS COLUMNS         of a terminal
    enter ID NAME IN OUT ERR [LaunchSpec]    a command beside the app NAME; ID is a number chosen by the host
    signal-entered ID NUMBER
The agent says:
    up KERNEL                          the kernel's release: it is there, and waits for the pod
    started NAME PID, failed …, ended NAME STATUS SIGNAL STOPPED AGAIN OOM, again NAME, idle NAME, ready, health …,
    stopping, over STATUS, pong, broken TEXT    as the supervisor has it; OOM is 1 when memory had run out. By then
                                       everything the app wrote was sent
    limits [Report, …]                 what became of the limits (`stage1.cgroup.Report`), after every start
    datagram NAME SOCKET [bytes]       written to one of the app's sockets (`stage1.appsockets`)
    entered ID STATUS                  the command has ended
    refused ID STATUS TEXT             it could not be run

The guest is hostile: the host's side bounds everything it keeps and ends the pod over a frame that cannot be.
"""

from __future__ import annotations

MESSAGE, DATA, CREDIT, END = range(4)
WINDOW = 1 << 18
LARGEST = 1 << 24
"""Bytes of a payload."""
PORT = "rkpy"
"""The name of the port in /sys/class/virtio-ports/*/name."""
SHARE = "/share"
"""Where the guest mounts what the host shares (`stage1.vm.share`), virtiofs tag "rkpy"."""
SOCKETS = "/run/rkpy/sockets"
"""Where the agent listens for the apps: SOCKETS/APP is the app's /run/systemd."""
