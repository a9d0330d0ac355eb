"""Manual pages, made of what the commands know of themselves: rkpy(1), one for each command and each group of them, and
rkpy.pod(5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stage0 import help as helping
from stage0 import options
from stage0.help import Described
from stage0.main import VERBS
from stage0.options import BOOL, LIST, OPTIONAL, Flag
from stage0.podfile import manual
from stage0.roff import bold, example, italic, page, paragraphs, reference, references, section, sentence, text

_ABOUT = {
    "run": """\
Resolves, verifies and prepares the images, and becomes the pod: the exit status is the app's.

The position of flags matters. A flag of an app belongs to the image before it; "--" begins the arguments of the app,
and "---" ends them so that another image may follow. Flags of the pod may stand anywhere outside of arguments.

An image is a file (an ACI, an archive or a layout of OCI, an archive of docker), the ID or the name of an image in the
store, an appC name, an https URL, or docker://NAME.""",
    "prepare": "Does everything that run does up to the start, and prints the UUID of the pod for run-prepared.",
    "run-prepared": "Starts a pod that prepare has made, once, and becomes it.",
    "start": """\
Runs a pod that has exited once more, with the files its apps left, its name and its user IDs; or one that is prepared,
as run-prepared does. Flags that are not given are those of the last run.""",
    "fetch": "Finds, verifies and imports images, and prints an ID for each.",
    "app add": "Adds an app made from an image in the store to a pod of app sandbox, without starting it.",
    "app sandbox": "Runs a pod without apps, in the foreground as run does; app add puts some into it.",
    "systemd": """\
Given one word that is a pod's UUID or name, prints the unit that starts this pod, with the flags of its last run where
none are given. Else the words are those of run, and
the unit runs such a pod. Nothing is fetched, prepared or started; paths become absolute ones.""",
}
_EXAMPLES = {
    "run": (
        "rkpy run --port=8080:80 ./web.aci",
        "rkpy run --stage1=fly example.com/hello:1.0 --exec=/bin/sh -- -c 'echo hello'",
        "rkpy run --net=host docker://redis:7 --memory=256M --restart=on-failure",
    ),
    "prepare": ("rkpy run-prepared $(rkpy prepare ./web.aci)",),
    "fetch": ("rkpy fetch example.com/hello:1.0", "rkpy fetch ./hello.aci --signature=./hello.aci.asc"),
    "stop": ("rkpy stop web",),
    "enter": ("rkpy enter --app=redis 5a3e /bin/sh",),
    "logs": ("rkpy logs --follow web",),
    "gc": ("rkpy gc --grace-period=0s",),
    "systemd": ("rkpy systemd --pod-name=web --port=8080:80 ./web.aci > /etc/systemd/system/web.service",),
    "trust": ("rkpy trust --prefix=example.com builder.pub",),
    "install-units": ("rkpy install-units", "rkpy install-units --root=$DESTDIR --prefix=/usr --program=rkpy"),
}
_APP_STATUS = ("run", "run-prepared", "start", "enter", "app exec", "app sandbox")
"""Commands that end with the status of a program of the pod."""
_WITH_FILES = ("run", "systemd", "unit")
"""Commands that have to do with pod files."""
_INTRODUCTION = """\
rkpy runs signed images as pods without a daemon. It fetches an appC or OCI image, checks who signed it, and hands it to
the isolation chosen for that run, its flavour.

Flags may come before the name of the command and global flags after it; the name may be shortened."""
_FILES = (
    ("/var/lib/rkpy", "data directory: images and pods"),
    ("/etc/rkpy, /usr/lib/rkpy", "configuration: paths.d, stage1.d, auth.d, net.d, registries.d, trustedkeys, pods"),
    ("~/.local/share/rkpy, ~/.config/rkpy", "those of an ordinary user, whose configuration comes first"),
    ("/run/rkpy", "what pods of this machine claim of its network"),
)


def pages() -> Iterator[tuple[str, str]]:
    """The file names, such as `rkpy-run.1`, and the texts."""
    yield "rkpy.1", _overview()
    yield f"{manual.TITLE}.{manual.NUMBER}", manual.page()
    for group, about in helping.groups().items():
        yield _file(group), _group(group, about)
    for name in VERBS:
        yield _file(name), _command(helping.describe(name))


def _file(name: str) -> str:
    return f"{_title(name)}.1"


def _title(name: str) -> str:
    return "-".join(["rkpy", *name.split()])


def _overview() -> str:
    return page(
        "rkpy",
        1,
        "a daemonless pod engine",
        section("SYNOPSIS", [f"{bold('rkpy')} [{italic('OPTIONS')}] {italic('COMMAND')} [{italic('ARGUMENTS')}]"]),
        section("DESCRIPTION", paragraphs(_INTRODUCTION)),
        section("COMMANDS", _commands(VERBS)),
        section("OPTIONS", _options(options.GLOBAL)),
        _exit_status(of_app=True),
        section("FILES", [line for path, about in _FILES for line in (".TP", italic(path), text(about))]),
        section("SEE ALSO", [references([*_pages(VERBS), *_others()])]),
    )


def _group(group: str, about: str) -> str:
    names = [name for name in VERBS if name.split()[0] == group]
    usage = f"{bold(f'rkpy {group}')} {italic('COMMAND')} [{italic('OPTIONS')}]"
    return page(
        _title(group),
        1,
        about,
        section("SYNOPSIS", [usage]),
        section("COMMANDS", _commands(names)),
        section("SEE ALSO", [references([*_pages(["", *names]), *_of_files(group)])]),
    )


def _command(command: Described) -> str:
    about = _ABOUT.get(command.name, command.text)
    own = _options(command.flags)
    return page(
        _title(command.name),
        1,
        command.summary,
        section("SYNOPSIS", [f"{bold(f'rkpy {command.name}')} {text(command.usage)}"]),
        section("DESCRIPTION", paragraphs(about) if about else [text(f"{command.summary}.")]),
        section("OPTIONS", [*own, *([".PP"] if own else []), f"{reference('rkpy')} has those of every command."]),
        _exit_status(of_app=command.name in _APP_STATUS),
        section("EXAMPLES", [line for each in _EXAMPLES.get(command.name, ()) for line in example(each)]),
        section("SEE ALSO", [references([*_pages(["", *_related(command.name)]), *_of_files(command.name)])]),
    )


def _related(name: str) -> Iterable[str]:
    """The other commands of its group."""
    group = name.split()[0]
    return [each for each in VERBS if each != name and each.split()[0] == group and " " in each]


def _pages(names: Iterable[str]) -> list[str]:
    return [reference(_title(name)) for name in names]


def _of_files(name: str) -> list[str]:
    return [reference(manual.TITLE, manual.NUMBER)] if name.split()[0] in _WITH_FILES else []


def _others() -> list[str]:
    pages = ((manual.TITLE, manual.NUMBER), ("systemd.service", 5), ("machinectl", 1), ("journalctl", 1))
    return [reference(*each) for each in pages]


def _commands(names: Iterable[str]) -> list[str]:
    return [line for name in names for line in (".TP", reference(_title(name)), text(f"{VERBS[name].summary}."))]


def _options(flags: Iterable[Flag]) -> list[str]:
    return [line for flag in sorted(flags) for line in (".TP", _flag(flag), _flag_text(flag))]


def _flag(flag: Flag) -> str:
    name = bold(f"--{flag.name}")
    value = "|".join(map(bold, flag.values)) or italic("VALUE")
    if flag.kind == BOOL:
        return f"{name}[={italic('true')}|{italic('false')}]" if flag.default == "true" else name
    return f"{name}[={value}]" if flag.kind == OPTIONAL else f"{name}={value}"


def _flag_text(flag: Flag) -> str:
    notes = ["may be repeated"] if flag.kind == LIST else []
    if flag.default and (flag.kind != BOOL or flag.default == "true"):
        notes.append(f"default: {flag.default}")
    if flag.kind == OPTIONAL and flag.bare != flag.default:
        notes.append(f"without a value: {flag.bare}")
    return text(" ".join(map(sentence, (flag.help, *(["; ".join(notes)] if notes else [])))))


def _exit_status(*, of_app: bool) -> str:
    rows = [("0", "done")]
    if of_app:
        rows = [
            ("the status of the app", "or 128+N when signal N ended it"),
            ("126, 127", "the program was found and cannot be executed; was not found"),
        ]
    rows += [("130", "interrupted"), ("254", "everything else that went wrong, in one line on standard error")]
    return section("EXIT STATUS", [line for status, why in rows for line in (".TP", bold(status), text(f"{why}."))])
