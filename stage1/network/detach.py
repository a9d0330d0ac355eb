"""Taking back what was done to the network for a pod: at its end by its monitor, after that by `gc` and by whoever
needs what a dead pod has.

It may be killed anywhere and is finished by the next. What leads to an address goes before the claim of the address:
nobody can be given one that the firewall still knows as another's. What the record says of the firewall is not gone by:
it may be of another boot, and tell of what is somebody else's by now.

This runs in the monitor's interpreter: no library beyond Python's own, and little of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from common import users
from common.errors import RkpyError
from stage1.network import leases, owners, ports, state, usermode
from stage1.network import record as records
from stage1.network.record import Attachment, Record


def detach(directory: str) -> list[str]:
    """Take back everything that was done for the pod in `directory`, as often as wanted; what could not be, a line
    each. That stays on record, and claimed. The pod's processes are gone, and its lock is held by the caller."""
    try:
        record = records.read(directory)
    except RkpyError as error:
        return _without_record(directory, str(error))
    if record is not None and usermode.is_of(record):
        return usermode.detach(directory, record)
    uuid = os.path.basename(directory) if record is None else record.uuid
    if record is None:
        return abandon(uuid) if owners.is_registered(uuid) else []
    if _is_over(record) and not owners.is_registered(uuid):
        return []
    return _take_back(directory, record)


def abandon(uuid: str) -> list[str]:
    """Take back what a pod claims of which nothing else is known; what could not be, a line each."""
    from stage1.network import firewall, names, netns

    problems: list[str] = []
    if not _try(problems, lambda: firewall.withdraw(uuid)):
        return problems
    _try(problems, lambda: names.forget(uuid))
    _try(problems, lambda: netns.unpin(uuid))
    _try(problems, lambda: leases.release(uuid))
    _try(problems, lambda: ports.release(ports.held_by(uuid), uuid))
    if not problems:
        _try(problems, lambda: owners.forget(uuid))
    return problems


def claimants() -> set[str]:
    """The UUIDs of all pods that claim something, or once did and were not taken off the list."""
    found = {*state.listing("pods"), *state.listing("netns"), *state.listing("firewall")}
    found.update(holder for _, holder in ports.all_claims())
    found.update(holder.partition(" ")[0] for *_, holder in leases.all_claims())
    for network in state.listing("names"):
        found.update(state.listing("names", network))
    return set(filter(_is_uuid, found))


def tidy() -> None:
    """Drop what is no pod's. NetworkError when that cannot be."""
    leases.tidy()
    ports.tidy()
    for parts in (("firewall",), *(("names", network) for network in state.listing("names"))):
        with state.lock():  # both are written with it: what is half written now stays so
            for name in state.listing(*parts):
                if not _is_uuid(name):
                    state.drop(state.path(*parts, name))
            state.drop_directory(state.path(*parts))


def _is_uuid(name: str) -> bool:
    """Not so a file that is half written (`files.replace`)."""
    return len(name) == 36 and name.count("-") == 4


def _take_back(directory: str, record: Record) -> list[str]:
    from stage1.network import cni, firewall, names, netns, programs

    uuid, problems = record.uuid, list[str]()
    if not _try(problems, lambda: firewall.withdraw(uuid)):
        return problems
    _try(problems, lambda: names.forget(uuid))
    where = record.netns if netns.is_alive(record.netns) else ""  # after a reboot it is not there
    attachments = _undo(record, problems, lambda attachment: cni.delete(record, attachment, where))
    _try(problems, lambda: _release_leases(uuid, attachments))
    _try(problems, lambda: ports.release({*record.ports, *ports.held_by(uuid)}, uuid))
    # Whatever else is in the namespace goes with it: to keep it for a plugin that failed would be to leak that. Only
    # one that was interrupted has its turn again.
    kept = record.netns if problems and programs.is_over() else ""
    if not kept:
        _try(problems, lambda: netns.unpin(uuid))
    left = record._replace(attachments=attachments, elements=(), ports=(), netns=kept)
    if _try(problems, lambda: records.write(directory, left)) and not problems:
        _try(problems, lambda: owners.forget(uuid))
    return problems


def _undo(
    record: Record, problems: list[str], delete: Callable[[Attachment], list[str] | None]
) -> tuple[Attachment, ...]:
    """The attachments, the last one first, as they are then."""
    undone = []
    for attachment in reversed(record.attachments):
        if not attachment.over:
            before = len(problems)
            try:
                problems += delete(attachment) or ()
            except (RkpyError, OSError) as error:
                problems.append(str(error))
            attachment = attachment._replace(over=len(problems) == before)
        undone.append(attachment)
    return tuple(reversed(undone))


def _release_leases(uuid: str, attachments: Iterable[Attachment]) -> None:
    """What is still there: of an attachment that is not on record. What a plugin failed to take back stays claimed."""
    failed = {attachment.network for attachment in attachments if not attachment.over}
    for network in {network for network, _ in leases.held_by(uuid)} - failed:
        leases.release(uuid, network)


def _without_record(directory: str, problem: str) -> list[str]:
    """Once: the next finds a record that makes sense, and nothing in it."""
    uuid = os.path.basename(directory)
    problems = [problem, *(usermode.detach(directory, Record(uuid)) if users.confined() else abandon(uuid))]
    if len(problems) == 1:
        _try(problems, lambda: records.write(directory, Record(uuid)))
    return problems


def _is_over(record: Record) -> bool:
    return all(attachment.over for attachment in record.attachments) and not (record.ports or record.netns)


def _try(problems: list[str], action: Callable[[], object]) -> bool:
    """Whether it worked; what went wrong is added to `problems`."""
    try:
        action()
    except (RkpyError, OSError) as error:
        problems.append(str(error))
        return False
    return True
