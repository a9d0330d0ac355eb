"""Which sections and keys a `.pod` file has, and which assignments of them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from stage0.podfile.keys import APP, EACH, INSTALL, PASSED, POD, SWAPPED, WORDS, Key
from stage0.podfile.syntax import Entry, Mistake, Parsed

_IGNORED = "X-"
"""What sections and keys begin with that are somebody else's (systemd.unit(5))."""
_ALSO = "a generator cannot enable another unit; give that one an [Install] section"

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


def mistakes(parsed: Parsed) -> Iterator[Mistake]:
    """Sections and keys that mean nothing."""
    named = apps(parsed)
    for section in parsed.sections:
        if section.name not in ("Pod", *PASSED, *named) and not section.name.startswith(_IGNORED):
            yield section.mistake(f"there is no section [{section.name}]: there is [Pod], [App NAME], [Unit], ...")
    for entry in parsed.entries:
        if not entry.key.startswith(_IGNORED) and (wrong := _wrong(entry, named)):
            yield entry.mistake(wrong)


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
