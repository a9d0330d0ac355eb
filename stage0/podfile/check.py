"""`rkpy unit check`: what a pod file says is put before the very parsers of `rkpy run`, and what is passed on to
systemd before systemd's. Every mistake is found, and led back to the line it is in."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator

from aci.image_manifest import App, ImageManifest
from aci.store import ImageRecord
from common.errors import RkpyError, UsageError
from stage0 import (
    assemble,
    behaviour,
    caller,
    config,
    credentials,
    grammar,
    netflags,
    options,
    ordinary,
    ports,
    reference,
    values,
)
from stage0 import fetch as fetching
from stage0.assemble import Selected
from stage0.commands import run
from stage0.config import Config
from stage0.grammar import ImageArguments, Request
from stage0.options import Values
from stage0.podfile import data, generate, pods, search, sections, specifiers, units
from stage0.podfile.pods import PodWords, Word
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Entry, Mistake, Parsed, Section
from stage1 import flavour as flavours
from stage1.network.plan import Names
from stage2 import capabilities

_FLAGS = {**run.FLAGS["run"], **options.table(options.GLOBAL)}
_TOGETHER = ("mount",)
"""Flags that mean something only beside others."""
_CAPABILITIES = ("caps-retain", "caps-remove", "caps-ambient")
_OF_ANOTHER = ("User", "Group", "SupplementaryGroups", "DynamicUser")
"""Settings that make a service somebody else's."""
_TARGETS = ("multi-user.target", "graphical.target")
"""Those that pods of the system are wanted by, which users' service managers do not have (systemd.special(7))."""
_VERIFY_SECONDS = 30
_FOUND = re.compile(r"(/.*?):(\d+): (.*)")


def mistakes(file: PodFile, *, users: bool = False, ask_systemd: bool = True) -> list[Mistake]:
    """Everything that is wrong with a pod file and its drop-ins, by file and line. `users`: the service will be one of
    a user's own service manager, who is not root."""
    if file.masked:
        return []
    parsed = search.read(file)
    pod = pods.build(file.name, file.path, parsed)
    found = [*pod.mistakes, *(entry.mistake(why) for entry, why in generate.bad_links(file, parsed))]
    if not search.is_name(file.name):
        found.append(Mistake(file.path, 0, f'"{file.name}" cannot be the name of a unit'))
    found += [*_values(file, pod), *_reloading(file, parsed, pod)]
    found += _not_for_machines(file, parsed, pod)
    if users:
        found += _not_for_users(file, parsed, pod)
    if ask_systemd:
        found += _systemd(file, parsed, pod)
    return sorted(dict.fromkeys(found), key=lambda mistake: _place(file, mistake))


def of_data(path: str, settings: Config) -> list[Mistake]:
    """What is wrong with a pod in JSON or TOML; such a file has no lines."""
    try:
        words = data.words(path, settings, run.FLAGS["run"])
    except RkpyError as error:
        return [Mistake(path, 0, str(error).removeprefix(f"{path}: ").removeprefix(f"open {path}: "))]
    file = PodFile(os.path.basename(path).partition(".")[0], path)
    found = [*_of_words(file, words)]
    together = None if found else _whole(file, [Word(word) for word in words], set(), expand=False)
    return found if together is None else [Mistake(path, 0, str(together))]


def _of_words(file: PodFile, words: list[str]) -> Iterator[Mistake]:
    """Each flag of a command line alone, with the image it is said of."""
    image, arguments = "", False
    for word in words:
        arguments = (arguments or word == "--") and word != "---"
        try:
            if arguments or word == "---":
                continue
            if word.startswith("--"):
                _judge([image, word] if image else [word, "image"])
            else:
                image = word
                reference.parse(word)
        except RkpyError as error:
            yield Mistake(file.path, 0, str(error))


def _not_for_machines(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Mistake]:
    """Sockets of the host, which a virtual machine cannot have."""
    section = sections.socket(parsed)
    if section is None:
        return
    if _flavour(file, pod) == "kvm":
        yield section.mistake("[Socket]: kvm cannot hand a socket to an app: publish a port, or use another flavour")


def _flavour(file: PodFile, pod: PodWords) -> str:
    """The one that runs the pod; empty where mistakes keep it from being told."""
    words = [_put_in(word.text, file.name) for word in (*pod.leading, *pod.pod)]
    try:
        flags = grammar.parse([*words, "image"], _FLAGS).flags
        return run.flavour(flags, config.load(flags).stage1)
    except RkpyError:
        return ""  # That has been said.


def _not_for_users(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Mistake]:
    """What no service of a user's can have, or what would never start it."""
    for word in (*pod.leading, *pod.pod):
        try:
            flags = grammar.parse([_put_in(word.text, file.name), "image"], _FLAGS).flags
            asked = flags.get("stage1") or flags.get("stage1-name")
            flavour = flavours.load(run.flavour(flags, "")) if asked else None
        except RkpyError:
            continue  # That has been said.
        try:
            ordinary.refuse(flavour, private_users=flags.boolean("private-users"))
        except UsageError as error:
            yield _mistake(file, word.origin, error)
    for entry in parsed.entries:
        if entry.section == "Service" and entry.key in _OF_ANOTHER and entry.value:
            yield entry.mistake(f"{entry.key}=: a user's service manager runs nothing as somebody else")
    for entry, name in generate.installed(file, parsed):
        if name in _TARGETS:
            yield entry.mistake(f"{entry.key}=: a user's service manager has no {name}: use default.target")


def _reloading(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Mistake]:
    """What systemd would send to have the pod reload, and that ends it or means nothing to it. Under fly the app itself
    is sent it."""
    if _flavour(file, pod) == "fly":
        return
    ours = [entry for entry in parsed.entries if entry.section == "Service" and entry.value]
    for entry in ours:
        if entry.key == "ReloadSignal" and not (units.signals_to_reload(parsed) and _is_hangup(entry.value)):
            yield entry.mistake(
                "ReloadSignal= in [Service] is what systemd sends to rkpy with Type=notify-reload, SIGHUP:"
                " what the apps are sent is ReloadSignal= in [Pod] or [App]"
            )
        if entry.key == "Type" and units.signals_to_reload(parsed) and not pod.reloads and not _has_manifest(pod):
            yield entry.mistake("Type=notify-reload: without ReloadSignal= in [Pod] or [App] a reload ends the pod")


def _is_hangup(text: str) -> bool:
    try:
        return behaviour.stop_signal(text) == signal.SIGHUP
    except UsageError:
        return False


def _has_manifest(pod: PodWords) -> bool:
    """Whose annotations may say more than the file."""
    return any(word.text.startswith("--pod-manifest=") for word in pod.pod)


def _place(file: PodFile, found: Mistake | Entry) -> tuple[int, int]:
    """For sorting by what is read first."""
    return (file.path, *file.dropins).index(found.path), found.line


def _values(file: PodFile, pod: PodWords) -> Iterator[Mistake]:
    """What `rkpy run` would say: of each flag alone, and of all that are good alone together."""
    bad: list[object] = []
    for word, judge in _alone(pod):
        if file.is_template and specifiers.of_instance(word.text):
            bad.append(word.origin)  # Nobody knows yet; each instance is checked.
            continue
        try:
            judge(_put_in(word.text, file.name))
        except RkpyError as error:
            bad.append(word.origin)
            yield _mistake(file, word.origin, error)
    yield from _together(file, list(pod.after_verb()), bad)


def _alone(pod: PodWords) -> Iterator[tuple[Word, Callable[[str], object]]]:
    """Each word, and who has to say something about it alone."""
    for word in (*pod.leading, *pod.pod):
        yield word, lambda text: _judge([text, "image"])
    for app in pod.apps:
        yield app.image, reference.parse
        for word in app.flags:
            yield word, lambda text: _judge(["image", text])


def _put_in(text: str, name: str) -> str:
    return specifiers.expand(text, name).replace("$$", "$")


def _mistake(file: PodFile, origin: Entry | Section | None, error: RkpyError) -> Mistake:
    if origin is None:
        return Mistake(file.path, 0, str(error))
    prefix = f"{origin.key}=: " if isinstance(origin, Entry) else ""
    return origin.mistake(f"{prefix}{error}")


def _judge(words: list[str]) -> None:
    """Put a command line before all who would read it. Raises RkpyError."""
    request = grammar.parse(words, _FLAGS)
    for text in (text for flags in _all(request) for text in flags.all("mount")):
        values.mount(text)
    _judged(request, config.load(request.flags).stage1, mounts=False)


def _judged(request: Request, stage1: str, *, mounts: bool) -> None:
    flags = request.flags
    fetching.pull_policy(flags, "new")
    netflags.networks(flags.all("net"))
    netflags.names(flags, Names("", "", ()))
    behaviour.ipc(flags.get("ipc") or "auto")
    if hostname := flags.get("hostname"):
        behaviour.hostname(hostname)
    _credentials(flags)
    flavours.load(run.flavour(flags, stage1))
    for text in flags.all("port"):
        ports.exposed(text)
    for name in (name for image in request.images for flag in _CAPABILITIES for name in _listed(image.flags, flag)):
        capabilities.number(name)
    images = [
        Selected(ImageArguments(image.reference, _without(image.flags, mounts), image.arguments), _stand_in(index))
        for index, image in enumerate(request.images)
    ]
    assemble.pod_manifest(_without(flags, mounts, ports_by_name=False), images, {})


def _credentials(flags: Values) -> None:
    """Those that are in files; what the service is given, nobody knows before it starts."""
    kept = Values()
    for flag in ("set-credential", "load-credential"):
        for text in flags.all(flag):
            name, _, path = text.partition(":")
            if flag == "set-credential" or path.startswith("/") or not credentials.is_name(name):
                kept.add(_FLAGS[flag], text)
    credentials.collect("", kept)


def _listed(flags: Values, name: str) -> list[str]:
    return [word for text in flags.all(name) for word in text.split(",") if word]


def _all(request: Request) -> list[Values]:
    return [request.flags, *(image.flags for image in request.images)]


def _without(flags: Values, mounts: bool, *, ports_by_name: bool = True) -> Values:
    """The flags but for those that nobody can judge yet: the image is what has ports by name."""
    kept = Values()
    for name in flags.typed():
        for text in flags.all(name):
            by_name = name == "port" and not ports_by_name and ports.exposed(text).pod_port is None
            if not by_name and (mounts or name not in _TOGETHER):
                kept.add(_FLAGS[name], text)
    return kept


def _stand_in(index: int) -> ImageRecord:
    """An image of which nothing is known, and whose app is called what no file calls one."""
    manifest = ImageManifest(name=f"example.com/an-app-without-a-name-{index}", app=App(exec=("/program",)))
    return ImageRecord("", "aci", manifest, (), (), 0, 0, 0, latest=False, verification=None)


def _together(file: PodFile, words: list[Word], bad: list[object]) -> Iterator[Mistake]:
    """What does not go together. To blame is the last assignment without which that would not be said."""
    flags = [(at, word.origin) for at, word in enumerate(words) if isinstance(word.origin, Entry) and _is_flag(word)]
    taken = {at for at, entry in flags if entry in bad}
    while (error := _whole(file, words, taken)) is not None:
        without = [(at, entry) for at, entry in flags if at not in taken]
        guilty = [entry for at, entry in without if str(_whole(file, words, {*taken, at})) != str(error)]
        last = max(guilty, key=lambda entry: _place(file, entry), default=None)
        yield _mistake(file, last, error)
        if last is None:
            return
        taken |= {at for at, entry in flags if entry == last}


def _is_flag(word: Word) -> bool:
    return word.text.startswith("--")


def _whole(file: PodFile, words: list[Word], without: set[int], *, expand: bool = True) -> RkpyError | None:
    texts = [word.text for index, word in enumerate(words) if index not in without]
    kept = [_put_in(text, file.name) for text in texts] if expand else texts
    try:
        request = grammar.parse(kept, _FLAGS)
        _judged(request, "", mounts=True)
        if request.flags.get("pod-manifest") is not None and request.images:
            raise UsageError("a pod manifest stands instead of images")
    except RkpyError as error:
        return error
    return None


def _systemd(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Mistake]:
    """What systemd says of the sections that are its own, where it is installed (systemd-analyze(1), "verify")."""
    analyze = shutil.which("systemd-analyze")
    theirs = [entry for entry in parsed.entries if entry.section in ("Unit", "Service", "Socket")]
    if analyze is None or not theirs:
        return
    import subprocess
    import tempfile

    whose = ["--user"] if caller.is_ordinary() else []
    # systemd does not verify templates, but instances of them.
    instance = "instance" if file.is_template else ""
    with tempfile.TemporaryDirectory(prefix="rkpy-check-") as directory:
        origins: dict[str, list[Entry | None]] = {}
        for name, lines in units.made(file, parsed, pod).items():
            path = f"{directory}/{file.name}{instance}{name.removeprefix(file.name)}"
            origins[path] = [line.origin for line in lines for _ in line.text.split("\n")]
            with open(path, "w", encoding="utf-8") as unit:
                unit.write(units.text(lines))
        try:
            done = subprocess.run(
                [analyze, *whose, "verify", "--man=no", "--recursive-errors=no", *origins],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_VERIFY_SECONDS,
                env={**os.environ, "SYSTEMD_LOG_COLOR": "0", "SYSTEMD_LOG_LEVEL": "info"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return
    for line in done.stderr.splitlines():
        found = _FOUND.fullmatch(line)
        lines_of = origins.get(found[1], []) if found else []
        if found and int(found[2]) <= len(lines_of) and (origin := lines_of[int(found[2]) - 1]) is not None:
            yield origin.mistake(found[3].removesuffix(", ignoring."))
