"""Manual pages, made of what the commands know of themselves: rkpy(1), and one for each command and each group of them.

roff as man(7) and groff_man(7) have it; groff and mandoc take it without a warning."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from rkpy import VERSION
from stage0 import help as helping
from stage0 import options
from stage0.help import Described
from stage0.main import VERBS
from stage0.options import BOOL, LIST, OPTIONAL, Flag

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
as run-prepared does.""",
    "fetch": "Finds, verifies and imports images, and prints an ID for each.",
    "app add": "Adds an app made from an image in the store to a pod of app sandbox, without starting it.",
    "app sandbox": "Runs a pod without apps, in the foreground as run does; app add puts some into it.",
    "systemd": """\
Given one word that is a pod's UUID or name, prints the unit that starts this pod. Else the words are those of run, and
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
_SPECIAL = {"\\": "\\(rs", "-": "\\-", "~": "\\(ti", "^": "\\(ha", "`": "\\(ga"}


def pages() -> Iterator[tuple[str, str]]:
    """The file names, such as `rkpy-run.1`, and the texts."""
    yield "rkpy.1", _overview()
    for group, about in helping.groups().items():
        yield _file(group), _group(group, about)
    for name in VERBS:
        yield _file(name), _command(helping.describe(name))


def _file(name: str) -> str:
    return f"{_title(name)}.1"


def _title(name: str) -> str:
    return "-".join(["rkpy", *name.split()])


def _overview() -> str:
    return _page(
        "",
        "a daemonless pod engine",
        _section("SYNOPSIS", [f"{_bold('rkpy')} [{_italic('OPTIONS')}] {_italic('COMMAND')} [{_italic('ARGUMENTS')}]"]),
        _section("DESCRIPTION", _paragraphs(_INTRODUCTION)),
        _section("COMMANDS", _commands(VERBS)),
        _section("OPTIONS", _options(options.GLOBAL)),
        _exit_status(of_app=True),
        _section("FILES", [line for path, about in _FILES for line in (".TP", _italic(path), text(about))]),
        _section("SEE ALSO", [_references([_title(name) for name in VERBS], systemd=True)]),
    )


def _group(group: str, about: str) -> str:
    names = [name for name in VERBS if name.split()[0] == group]
    usage = f"{_bold(f'rkpy {group}')} {_italic('COMMAND')} [{_italic('OPTIONS')}]"
    return _page(
        group,
        about,
        _section("SYNOPSIS", [usage]),
        _section("COMMANDS", _commands(names)),
        _section("SEE ALSO", [_references(["rkpy", *map(_title, names)])]),
    )


def _command(command: Described) -> str:
    about = _ABOUT.get(command.name, command.text)
    own = _options(command.flags)
    return _page(
        command.name,
        command.summary,
        _section("SYNOPSIS", [f"{_bold(f'rkpy {command.name}')} {text(command.usage)}"]),
        _section("DESCRIPTION", _paragraphs(about) if about else [text(f"{command.summary}.")]),
        _section("OPTIONS", [*own, *([".PP"] if own else []), f"{_reference('rkpy')} has those of every command."]),
        _exit_status(of_app=command.name in _APP_STATUS),
        _section("EXAMPLES", [line for each in _EXAMPLES.get(command.name, ()) for line in (".EX", text(each), ".EE")]),
        _section("SEE ALSO", [_references(["rkpy", *_related(command.name)])]),
    )


def _related(name: str) -> Iterable[str]:
    """The other commands of its group."""
    group = name.split()[0]
    return [_title(each) for each in VERBS if each != name and each.split()[0] == group and " " in each]


def _page(name: str, about: str, *sections: str) -> str:
    title = _title(name)
    head = f'.TH "{text(title.upper())}" 1 "{_date()}" "rkpy {VERSION}" "rkpy Manual"\n'
    return head + _section("NAME", [f"{text(title)} \\- {text(about)}"]) + "".join(sections)


def _date() -> str:
    """Today, or what makes the pages the same every time (https://reproducible-builds.org/specs/source-date-epoch/)."""
    try:
        seconds = int(os.environ["SOURCE_DATE_EPOCH"])
        return time.strftime("%Y-%m-%d", time.gmtime(seconds))
    except (KeyError, ValueError, OverflowError):
        return time.strftime("%Y-%m-%d", time.gmtime())


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f'.SH "{title}"\n{body}\n' if body else ""


def _paragraphs(about: str) -> list[str]:
    lines: list[str] = []
    for paragraph in about.strip().split("\n\n"):
        lines += [".PP", text(" ".join(paragraph.split()))]
    return lines[1:]


def _commands(names: Iterable[str]) -> list[str]:
    return [line for name in names for line in (".TP", _reference(_title(name)), text(f"{VERBS[name].summary}."))]


def _options(flags: Iterable[Flag]) -> list[str]:
    return [line for flag in sorted(flags) for line in (".TP", _flag(flag), _flag_text(flag))]


def _flag(flag: Flag) -> str:
    name = _bold(f"--{flag.name}")
    value = "|".join(map(_bold, flag.values)) or _italic("VALUE")
    if flag.kind == BOOL:
        return f"{name}[={_italic('true')}|{_italic('false')}]" if flag.default == "true" else name
    return f"{name}[={value}]" if flag.kind == OPTIONAL else f"{name}={value}"


def _flag_text(flag: Flag) -> str:
    notes = ["may be repeated"] if flag.kind == LIST else []
    if flag.default and (flag.kind != BOOL or flag.default == "true"):
        notes.append(f"default: {flag.default}")
    if flag.kind == OPTIONAL and flag.bare != flag.default:
        notes.append(f"without a value: {flag.bare}")
    about = flag.help[:1].upper() + flag.help[1:] + "."
    return text(f"{about} {'; '.join(notes)[:1].upper()}{'; '.join(notes)[1:]}." if notes else about)


def _exit_status(*, of_app: bool) -> str:
    rows = [("0", "done")]
    if of_app:
        rows = [
            ("the status of the app", "or 128+N when signal N ended it"),
            ("126, 127", "the program was found and cannot be executed; was not found"),
        ]
    rows += [("130", "interrupted"), ("254", "everything else that went wrong, in one line on standard error")]
    return _section("EXIT STATUS", [line for status, why in rows for line in (".TP", _bold(status), text(f"{why}."))])


def _references(names: list[str], *, systemd: bool = False) -> str:
    others = [_reference("systemd.service", 5), _reference("machinectl"), _reference("journalctl")] if systemd else []
    return ",\n".join([*map(_reference, names), *others])


def _reference(page: str, section: int = 1) -> str:
    return f"{_bold(page)}({section})"


def _bold(words: str) -> str:
    return f"\\fB{text(words)}\\fR"


def _italic(words: str) -> str:
    return f"\\fI{text(words)}\\fR"


def text(words: str) -> str:
    """`words` as one line of roff that shows exactly them."""
    line = "".join(_SPECIAL.get(char) or (char if char.isascii() else f"\\[u{ord(char):04X}]") for char in words)
    return f"\\&{line}" if line.startswith((".", "'")) else line
