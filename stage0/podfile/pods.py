"""From what a `.pod` file says to the words of `rkpy run`, each with the line it comes from.

Only form is looked at here: which sections and keys there are, and that values can be taken apart. Nothing of it is
heavy, because it is done for every file while the machine boots. What values mean is checked by `stage0.podfile.check`,
or by `rkpy run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from aci.types import sanitise_name
from common.errors import ManifestError
from common.records import NamedTuple
from stage0.podfile import keys, quoting, sections, specifiers, volumes
from stage0.podfile.keys import APP, POD, WORDS, Key
from stage0.podfile.sections import Settings
from stage0.podfile.syntax import Entry, Mistake, Parsed, Section

_WORTHLESS = ("CAP_AUDIT_WRITE", "CAP_MKNOD", "CAP_NET_RAW")
"""Default capabilities that are good for nothing until they are asked for by name (docs/security.md)."""
_VOLUMES: Mapping[str, Callable[[str, str], volumes.Mounted]] = {
    "Volume": volumes.volume,
    "Mount": volumes.mount,
    "Tmpfs": volumes.tmpfs,
}
_SEPARATOR = "---"
_SENSELESS = {
    "--detach": "the service is the pod",
    "--interactive": "a service has no terminal",
    "--pod-file": "this is a pod file",
}


class Word(NamedTuple):
    """A word of the command line, and the assignment or the section it comes from."""

    text: str
    origin: Entry | Section | None = None


class AppWords(NamedTuple):
    """What the command line has of one app."""

    image: Word
    flags: tuple[Word, ...]
    arguments: tuple[Word, ...]


class PodWords(NamedTuple):
    """The command line in its parts, as systemd takes it: with specifiers, and with `$$` for a dollar sign."""

    name: str
    """Of the pod."""
    leading: tuple[Word, ...]
    """Before the verb."""
    pod: tuple[Word, ...]
    apps: tuple[AppWords, ...]
    sources: tuple[str, ...]
    """Paths of the host that the pod cannot do without."""
    stop_timeout: str
    mistakes: tuple[Mistake, ...]

    @property
    def reloads(self) -> bool:
        """Whether an app has a signal to reload by."""
        words = (*self.pod, *(word for app in self.apps for word in app.flags))
        return any(word.text.startswith("--reload-signal=") and word.text[-1] != "=" for word in words)

    def after_verb(self) -> Iterator[Word]:
        yield from self.pod
        for index, app in enumerate(self.apps):
            yield from (app.image, *app.flags)
            if app.arguments:
                yield from (Word("--"), *app.arguments)
                if index + 1 < len(self.apps):
                    yield Word(_SEPARATOR)


def build(name: str, path: str, parsed: Parsed) -> PodWords:
    """The pod that the file `name` (without `.pod`) at `path` describes. What is wrong is among the mistakes, and left
    out."""
    return _Builder(name, path, parsed).build()


class _Builder:
    def __init__(self, name: str, path: str, parsed: Parsed) -> None:
        self.name = name
        self.path = path
        self.parsed = parsed
        self.mistakes: list[Mistake] = [*parsed.mistakes, *sections.mistakes(parsed)]
        self.volumes: list[Word] = []
        self.sources: list[str] = []
        self.ready: list[Word] = []
        """What apps say of the pod's readiness."""

    def build(self) -> PodWords:
        named = sections.apps(self.parsed)
        everything = sections.settings(self.parsed, "Pod", POD if named else {**APP, **POD})
        own = {key: found for key, found in everything.items() if key in POD}
        of_app = {key: found for key, found in everything.items() if key not in POD}
        mounts = list(self._mounts(own))
        if named:
            apps = [self._app(title, sections.settings(self.parsed, title, APP), own) for title in named]
        elif "PodManifest" in own and not of_app:
            apps = []
        else:
            apps = [self._app("Pod", of_app, own)]
        given = own.get("PodName")
        name = given[0].value if given else self._name()
        flags = [*self._flags(own, POD), *self._pod_ready(own), *self.volumes, *mounts, *self._words(own, "RkpyArgs")]
        if not given and name:
            flags.insert(0, Word(f"--pod-name={name}"))
        for entry in given or ():
            self._look(entry.value, entry)
        return PodWords(
            name=name,
            leading=tuple(self._words(own, "GlobalArgs")),
            pod=tuple(flags),
            apps=tuple(apps),
            sources=tuple(dict.fromkeys(self.sources)),
            stop_timeout=_last(own, "StopTimeout"),
            mistakes=tuple(sorted(dict.fromkeys(self.mistakes), key=lambda mistake: mistake[:2])),
        )

    def _name(self) -> str:
        """The pod's name when the file gives none: its own, made into one. Of an instance, systemd knows the rest."""
        prefix, at, instance = self.name.partition("@")
        try:
            if not at:
                return sanitise_name(prefix)
            return f"{sanitise_name(prefix)}-{sanitise_name(instance) if instance else '%i'}"
        except ManifestError as error:
            self._wrong(f"{error.message}: give one with PodName=")
            return ""

    def _app(self, title: str, found: Settings, pod: Settings) -> AppWords:
        """The app of the section `title`."""
        self._capabilities_exclude(found)
        flags = [*self._named(title, found), *self._flags(found, APP), *self._capabilities(found)]
        flags += [*self._app_ready(found, pod), *self._mounts(found), *self._words(found, "RkpyArgs")]
        program, first = self._entrypoint(found)
        return AppWords(self._image(title, found), (*flags, *program), (*first, *self._arguments(found)))

    def _image(self, title: str, found: Settings) -> Word:
        if "Image" not in found:
            self._wrong(f"[{title}] names no image: Image= is missing", title)
            return Word("missing")
        entry = found["Image"][0]
        if entry.value.startswith("-"):
            self.mistakes.append(entry.mistake(f'"{entry.value}" is no image'))
        return next(self._literal([entry.value], entry), Word("missing"))

    def _named(self, title: str, found: Settings) -> Iterator[Word]:
        name = sections.app_name(title)
        if not name:
            return
        section = self._header(title)
        if "AppName" in found:
            self.mistakes.append(found["AppName"][0].mistake(f"[{title}] says what the app is called"))
        elif section:
            yield from self._literal([f"--name={name}"], section)

    def _entrypoint(self, found: Settings) -> tuple[list[Word], list[Word]]:
        """The program, and the arguments that come with it: `Entrypoint=` may be a JSON list, as in Quadlet."""
        for entry in found.get("Entrypoint", ()):
            words = self._json(entry) if entry.value.startswith("[") else [entry.value]
            if words:
                return list(self._literal([f"--exec={words[0]}"], entry)), list(self._literal(words[1:], entry))
        return [], []

    def _json(self, entry: Entry) -> list[str]:
        try:
            words = json.loads(entry.value)
        except (ValueError, RecursionError):
            words = None
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            self.mistakes.append(entry.mistake("Entrypoint=: neither a path nor a JSON list of strings"))
            return []
        return words

    def _arguments(self, found: Settings) -> Iterator[Word]:
        """`Exec=`: systemd's own command line, so its variables are put in."""
        for entry in found.get("Exec", ()):
            try:
                words = quoting.split_command(entry.value)
            except quoting.QuotingError as error:
                self.mistakes.append(entry.mistake(f"Exec=: {error}"))
                continue
            if _SEPARATOR in words:
                self.mistakes.append(entry.mistake(f"Exec=: an argument cannot be {_SEPARATOR}"))
            for word in words:
                if self._look(word, entry):
                    yield Word(word, entry)

    def _flags(self, found: Settings, table: Mapping[str, Key]) -> Iterator[Word]:
        """The flags of all keys that are simply that, in the table's order."""
        for name, key in table.items():
            for entry in found.get(name, ()):
                for value in self._values(key, entry):
                    if key.flag:
                        yield from self._literal([f"--{key.flag}={value}"], entry)

    def _values(self, key: Key, entry: Entry) -> list[str]:
        try:
            return list(keys.values(key, entry.value))
        except ValueError as error:
            self.mistakes.append(entry.mistake(f"{entry.key}=: {error}"))
            return []

    def _words(self, found: Settings, name: str) -> Iterator[Word]:
        """The words of a key that is a part of the command line."""
        for entry in found.get(name, ()):
            try:
                words = quoting.split_command(entry.value)
            except quoting.QuotingError as error:
                self.mistakes.append(entry.mistake(f"{name}=: {error}"))
                continue
            for word in words:
                if not word.startswith("--") or word in ("--", _SEPARATOR):
                    hint = "write --FLAG=VALUE in one word"
                    self.mistakes.append(entry.mistake(f'{name}=: "{word}" is no flag: {hint}'))
                elif word.partition("=")[0] in _SENSELESS:
                    why = _SENSELESS[word.partition("=")[0]]
                    self.mistakes.append(entry.mistake(f"{name}=: {word}: {why}"))
                elif self._look(word, entry):
                    yield Word(word, entry)

    def _mounts(self, found: Settings) -> Iterator[Word]:
        """The mounts of an app, or of all; what volumes they need is collected."""
        for key, read in _VOLUMES.items():
            for entry in found.get(key, ()):
                try:
                    mounted = read(entry.value, f"{volumes.PREFIX}-{len(self.volumes)}")
                except ValueError as error:
                    self.mistakes.append(entry.mistake(f"{key}=: {error}"))
                    continue
                if mounted.volume:
                    self.volumes.extend(self._literal([f"--volume={mounted.volume}"], entry))
                if mounted.source:
                    self.sources.append(mounted.source)
                if mounted.mount:
                    yield from self._literal([f"--mount={mounted.mount}"], entry)

    def _app_ready(self, found: Settings, pod: Settings) -> Iterator[Word]:
        """An app that says itself when it is ready. `Notify=` may be the app's or, for all of them, the pod's."""
        for entry in found.get("Notify", pod.get("Notify", ())):
            for value in self._values(APP["Notify"], entry):
                if value == "true":
                    yield Word(f"--annotation={keys.NOTIFY}=true", entry)
                if value != "false":
                    self.ready.append(Word(f"--ready={'notify' if value == 'true' else value}", entry))

    def _pod_ready(self, own: Settings) -> Iterator[Word]:
        """One for all: being healthy, where some app is asked for that, is more than having said so."""
        if "Ready" not in own:
            yield from sorted(self.ready, key=lambda word: word.text != "--ready=healthy")[:1]

    def _capabilities_exclude(self, found: Settings) -> None:
        for name in ("AddCapability", "DropCapability"):
            if name in found and ("CapsRetain" in found or "CapsRemove" in found):
                self.mistakes.append(found[name][0].mistake(f"{name}= has no meaning beside CapsRetain=, CapsRemove="))

    def _capabilities(self, found: Settings) -> Iterator[Word]:
        """`AddCapability=` adds to the default set, which `--caps-retain` replaces: so all that is kept is named."""
        added, dropped = self._capability_words(found, "AddCapability"), self._capability_words(found, "DropCapability")
        entries = [*found.get("AddCapability", ()), *found.get("DropCapability", ())]
        if not entries:
            return
        everything = "CAP_ALL" in dropped
        if not added:
            removed = _default() if everything else dropped
            yield from self._literal([f"--caps-remove={','.join(removed)}"], entries[-1])
            return
        kept = [name for name in _default() if name not in (*_WORTHLESS, *dropped, *added) and not everything]
        yield from self._literal([f"--caps-retain={','.join((*kept, *added))}"], entries[-1])

    def _capability_words(self, found: Settings, key: str) -> list[str]:
        words = [word for entry in found.get(key, ()) for word in self._values(Key(WORDS), entry)]
        return [word.upper() if word.upper().startswith("CAP_") else f"CAP_{word.upper()}" for word in words]

    def _literal(self, words: Iterable[str], origin: Entry | Section) -> Iterator[Word]:
        """Words in which nothing but specifiers is put in."""
        for word in words:
            if self._look(word, origin):
                yield Word(quoting.literal(word), origin)

    def _look(self, text: str, origin: Entry | Section) -> bool:
        try:
            specifiers.expand(text, self.name)
        except quoting.QuotingError as error:
            self.mistakes.append(origin.mistake(str(error)))
            return False
        return True

    def _header(self, title: str) -> Section | None:
        return next((section for section in self.parsed.sections if section.name == title), None)

    def _wrong(self, message: str, title: str = "Pod") -> None:
        """Something missing from a section, or from the file when it has no such section."""
        section = self._header(title)
        self.mistakes.append(section.mistake(message) if section else Mistake(self.path, 0, message))


def _default() -> list[str]:
    from stage2.capabilities import DEFAULT, name

    return list(map(name, sorted(DEFAULT)))


def _last(found: Settings, key: str) -> str:
    return found[key][-1].value if key in found else ""
