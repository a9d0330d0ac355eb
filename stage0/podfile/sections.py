"""Which sections and keys a `.pod` file has, and which assignments of them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from stage0.podfile import keys
from stage0.podfile.keys import APP, EACH, INSTALL, PASSED, POD, SWAPPED, WORDS, Key
from stage0.podfile.syntax import Entry, Mistake, Parsed, Section

_IGNORED = "X-"
"""What sections and keys begin with that are somebody else's (systemd.unit(5))."""
_ALSO = "a generator cannot enable another unit; give that one an [Install] section"

_OF_QUADLET = {"Container": "it is written [Pod], or [App NAME] in a pod of several"}
_LINKED = ("WantedBy", "RequiredBy", "UpheldBy")
SOCKETS = "sockets.target"
"""Which starts sockets at boot (systemd.special(7)), in users' service managers as well."""

Settings = dict[str, list[Entry]]
"""The assignments that count, by key."""


def app_name(section: str) -> str | None:
    """The name in `[App NAME]`, empty for `[App]`; None for a section that is no app's."""
    word, _, name = section.partition(" ")
    return name.strip() if word == "App" else None


def apps(parsed: Parsed) -> list[str]:
    """The sections that are apps', in order."""
    return list(dict.fromkeys(section.name for section in parsed.sections if app_name(section.name) is not None))


def settings(parsed: Parsed, section: str, table: Mapping[str, Key]) -> Settings:
    """Of keys that can be repeated everything since the last empty value, of others the last."""
    found: Settings = {}
    for entry in parsed.entries:
        if entry.section != section or entry.key not in table:
            continue
        if not entry.value:
            found.pop(entry.key, None)
        elif table[entry.key].kind in (EACH, WORDS):
            found.setdefault(entry.key, []).append(entry)
        else:
            found[entry.key] = [entry]
    return found


def socket(parsed: Parsed) -> Section | None:
    """The first section about the sockets that start the service; None for a pod that no socket starts."""
    return next((section for section in parsed.sections if section.name == "Socket"), None)


def is_installed(parsed: Parsed) -> bool:
    """Whether [Install] says who wants the pod, be it nobody."""
    return any(entry.section == "Install" and entry.key in _LINKED for entry in parsed.entries)


def mistakes(parsed: Parsed) -> Iterator[Mistake]:
    """Sections and keys that mean nothing, and sockets that a pod cannot be started by."""
    named = apps(parsed)
    for section in parsed.sections:
        if section.name not in ("Pod", *PASSED, *named) and not section.name.startswith(_IGNORED):
            instead = _OF_QUADLET.get(section.name, "there is [Pod], [App NAME], [Unit], ...")
            yield section.mistake(f"there is no section [{section.name}]: {instead}")
    for entry in parsed.entries:
        if not entry.key.startswith(_IGNORED) and (wrong := _wrong(entry, named)):
            yield entry.mistake(wrong)
    yield from _socket(parsed)


def _socket(parsed: Parsed) -> Iterator[Mistake]:
    """What makes no sense of a socket whatever version systemd is of; the rest is left to it."""
    section = socket(parsed)
    if section is None:
        return
    own = {entry.key: entry for entry in parsed.entries if entry.section == section.name and entry.value}
    listening = [entry for entry in parsed.entries if entry.section == section.name and entry.key in keys.LISTENING]
    if not listening or not listening[-1].value:
        yield section.mistake("[Socket] listens on nothing: ListenStream= is missing, or another of its kind")
    if "Accept" in own and own["Accept"].value.lower() in keys.TRUE:
        yield own["Accept"].mistake("Accept=: a pod gets the socket that listens, not one connection: leave it out")
    if "Service" in own:
        yield own["Service"].mistake("Service=: what the socket starts is this pod: leave it out")


def _wrong(entry: Entry, named: list[str]) -> str:
    if entry.section == "Install":
        return "" if entry.key in INSTALL else _ALSO if entry.key == "Also" else _unknown(entry, INSTALL)
    if entry.section == "Pod":
        if entry.key in APP and entry.key not in POD and named:
            return f"{entry.key}= is an app's: it stands in [{named[0]}], because there are sections of apps"
        return "" if entry.key in POD or entry.key in APP else _unknown(entry, {**POD, **APP})
    if entry.section in named:
        if entry.key in POD and entry.key not in APP:
            return f"{entry.key}= is the pod's: it stands in [Pod]"
        return "" if entry.key in APP else _unknown(entry, APP)
    return ""


def _unknown(entry: Entry, known: Mapping[str, object] | frozenset[str]) -> str:
    hint = SWAPPED.get(entry.key, "")
    if not hint:
        hint = _meant(entry.key, known)
    return f"there is no key {entry.key}= in [{entry.section}]" + (f": {hint}" if hint else "")


def _meant(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    same = [name for name in known if name.lower() == key.lower()]
    if same:
        return f"it is written {same[0]}="
    near = get_close_matches(key, sorted(known), 1, 0.8)
    return f"perhaps {near[0]}= is meant" if near else ""
