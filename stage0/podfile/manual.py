"""rkpy.pod(5): the manual page of pod files, made of the tables that they are read by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stage0 import options, roff
from stage0.options import BOOL
from stage0.podfile import keys
from stage0.podfile.keys import EACH, ONE, SWITCH, WORDS, Key
from stage0.roff import bold, example, italic, paragraphs, reference, references, section, sentence, text

TITLE = "rkpy.pod"
NUMBER = 5

PLACES = ("/etc/rkpy/pods", "/run/rkpy/pods", "/usr/lib/rkpy/pods", "~/.config/rkpy/pods", "/run/user/UID/rkpy/pods")
_INTRODUCTION = """\
A file NAME.pod describes a pod, and is a service NAME.service after the next boot or "systemctl daemon-reload": a
generator makes it, rkpy-generator (systemd.generator(7)). The syntax is that of unit files (systemd.syntax(7)), the
names of the keys are those of Podman's Quadlet where it has them. "rkpy unit check" says what is wrong with a file,
"rkpy unit show" what it becomes. A file with mistakes becomes a service that cannot be started, and whose status says
why.

Of one name the first file counts, in the order above; the last two directories are for the service manager of an
ordinary user, and the others for the system's. An empty file or a symlink to /dev/null masks the others.
NAME.pod.d/*.conf is read after the file, as are drop-ins of units. NAME@.pod is a template with %i as its instance,
and a symlink NAME@INSTANCE.pod an instance of it that is started as [Install] says."""
_SECTIONS = (
    ("[Pod]", "what the pod has, and when it is a pod of one app what that has"),
    ("[App NAME]", "an app of a pod of several, called NAME; [App] without a name is one too"),
    (
        "[Unit], [Service]",
        "systemd's, see systemd.unit(5) and systemd.service(5). They are passed on after what rkpy writes, so that the "
        "file has the last word",
    ),
    (
        "[Socket]",
        "of a NAME.socket that starts the pod when somebody connects, see systemd.socket(5). Its apps get what "
        "listens; Accept=yes and Service= are refused",
    ),
    (
        "[Install]",
        "WantedBy=, RequiredBy=, UpheldBy=, Alias= and DefaultInstance= are carried out by the generator. With "
        "[Socket] they are the socket's, and without the first three sockets.target wants it",
    ),
    ("[X-...]", "somebody else's, as are keys of such names"),
)
_VALUES = """\
Specifiers (%i, %H, %%) are put in by systemd, in every value. A key counts by its last value; one that may be
repeated adds up until an empty value takes back all before it; one of words has several in one value, quoted as in
Environment= of systemd.exec(5).

Exec= is a command line as in ExecStart=: $VARIABLE is one of the service, $$ a dollar sign. In all other values a
dollar sign is just that."""
_OF_APPS = """\
These stand in an [App] section, or in [Pod] when there is none. Those that are in both tables mean all apps in [Pod],
and one in [App]."""
_DATA = """\
NAME.toml and NAME.json in the same directories are pods too, which rkpy@NAME.service runs. Their keys are the flags
of rkpy-run(1) without the hyphens before them; each app is an [[app]] table with its image and its args."""
_EXAMPLE = """\
[Pod]
Image=docker://docker.io/library/nginx:1.25
PublishPort=8080:80
Volume=/srv/www:/usr/share/nginx/html:ro
Memory=512M

[Service]
Restart=always

[Install]
WantedBy=multi-user.target
"""
_KINDS = {ONE: "", EACH: "May be repeated.", WORDS: "Words; may be repeated.", SWITCH: "A boolean."}


def page() -> str:
    """The text of the page."""
    return roff.page(
        TITLE,
        NUMBER,
        "pods as units of systemd",
        section("SYNOPSIS", _synopsis()),
        section("DESCRIPTION", paragraphs(_INTRODUCTION)),
        section("SECTIONS", [line for name, about in _SECTIONS for line in (".TP", bold(name), text(sentence(about)))]),
        section("VALUES", paragraphs(_VALUES)),
        section("KEYS OF [POD]", _keys(keys.POD)),
        section("KEYS OF [APP]", [*paragraphs(_OF_APPS), *_keys(keys.APP)]),
        section("KEYS OF QUADLET", [*paragraphs("Other keys of Quadlet are refused:"), *_swapped()]),
        section("PODS IN JSON OR TOML", paragraphs(_DATA)),
        section("EXAMPLES", [text("/etc/rkpy/pods/web.pod:"), ".PP", *example(_EXAMPLE)]),
        section("SEE ALSO", [references(_others())]),
    )


def _synopsis() -> Iterator[str]:
    for place in PLACES:
        yield italic(f"{place}/NAME.pod")
        yield ".br"


def _keys(table: Mapping[str, Key]) -> Iterator[str]:
    for name in sorted(table, key=str.casefold):
        yield from (".TP", bold(f"{name}="), _about(table[name]))


def _about(key: Key) -> str:
    """What the key is, how often it may be said, and the flag it is."""
    flag = options.table(options.PREPARE, options.RUNTIME, options.APP).get(key.flag)
    about = key.about or (flag.help if flag else "")
    default = f"Default: {flag.default}." if flag and flag.default and flag.kind != BOOL and not key.convert else ""
    words = text(" ".join(filter(None, (sentence(about), _KINDS[key.kind], default))))
    return f"{words} This is {bold(f'--{key.flag}')} of {reference('rkpy-run')}." if key.flag else words


def _swapped() -> Iterator[str]:
    for name, instead in keys.SWAPPED.items():
        yield from (".TP", bold(f"{name}="), text(sentence(instead)))


def _others() -> list[str]:
    ours = [reference("rkpy-run"), reference("rkpy-unit-check"), reference("rkpy-unit-show"), reference("rkpy-volume")]
    systemd = [reference(f"systemd.{name}", 5) for name in ("unit", "service", "socket")]
    return [*ours, *systemd, reference("systemd.generator", 7)]
