"""Where an image called `example.com/app` is to be had: meta tags of the web page of that name (spec 0.8.11, "App
Container Image Discovery").

    <meta name="ac-discovery" content="example.com/app https://storage.example.com/{name}-{version}-{os}-{arch}.{ext}">
    <meta name="ac-discovery-pubkeys" content="example.com/app https://example.com/pubkeys.asc">

The page of the whole name is asked first, then that of each shorter name down to the bare host. See docs/discovery.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from typing import TypeVar
from urllib.parse import quote

from aci.types import host_platform
from common.records import NamedTuple
from stage0.http import Client, FetchError, read_all, split

MAX_PAGE = 1 << 20
"""Octets of a page."""
MAX_TAG = 4 << 10
"""Characters of one tag. html.parser takes quadratic time for some tags, so it never sees a longer one."""
MAX_ENDPOINTS = 16

_HTML = frozenset({"", "text/html", "application/xhtml+xml"})
# Not with possessive quantifiers: Python before 3.11.5 gets them wrong (python/cpython#106052).
_TAG = re.compile(r"""</?[a-z!?](?:[^>"']|"[^"]*"|'[^']*')*>""", re.IGNORECASE)
_WORD = re.compile(r"</?([a-z0-9!?-]*)", re.IGNORECASE)
_RAW = frozenset({"script", "style", "title", "textarea", "noscript", "template", "iframe", "noframes", "xmp"})
"""Elements whose content is text, however much it looks like tags."""
_VARIABLE = re.compile(r"\{([^{}]*)\}")
_ANSWERS = frozenset({200, *range(400, 500)} - {408, 425, 429})
"""A page that is not there, or not for us, is like one without tags; whatever else goes wrong is an error."""
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


class Endpoint(NamedTuple):
    """One place that may have the image."""

    image: str
    signature: str


class _Page(NamedTuple):
    """The tags of one page that apply to a name, in their order."""

    templates: tuple[str, ...]
    keys: tuple[str, ...]


_NOTHING = _Page((), ())
_Found = TypeVar("_Found")


def images(client: Client, name: str, labels: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """The places of the image `name` with `labels`, in the order to try them; at least one. Labels that are not given
    are the host's os and arch, and the version `latest`. Raises FetchError."""
    os_name, arch = host_platform()
    values = {"version": "latest", "os": os_name, "arch": arch, **labels}

    def found(page: _Page) -> tuple[Endpoint, ...]:
        pairs = ((expand(t, name, "aci", values), expand(t, name, "aci.asc", values)) for t in page.templates)
        return tuple(Endpoint(image, signature) for image, signature in pairs if image and signature)[:MAX_ENDPOINTS]

    return _walk(client, name, found, "image", "ac-discovery")


def keys(client: Client, prefix: str) -> tuple[str, ...]:
    """The URLs of the keys that sign images called `prefix` or below it; at least one. Raises FetchError."""
    return _walk(client, prefix, lambda page: page.keys[:MAX_ENDPOINTS], "public key", "ac-discovery-pubkeys")


def expand(template: str, name: str, ext: str, labels: Mapping[str, str]) -> str:
    """`template` with its variables replaced; empty when one has no value, or what comes out is no URL.

    Values are percent-encoded as in a path (RFC 6570, simple expansion), so that a label stays one component."""
    values = {key: quote(value, safe="+:@!$,;=~") for key, value in labels.items()}
    values |= {"name": name, "ext": ext}
    if any(variable not in values for variable in _VARIABLE.findall(template)):
        return ""
    url = _VARIABLE.sub(lambda match: values[match[1]], template)
    return url if _is_url(url) else ""


def covers(prefix: str, name: str) -> bool:
    """Whether a tag for `prefix` speaks of `name`. By whole components: example.com/foo is not over example.com/foobar,
    which may be somebody else's."""
    prefix = prefix.rstrip("/")
    return bool(prefix) and (name == prefix or name.startswith(f"{prefix}/"))


def tags(page: str) -> Iterator[tuple[str, str, str]]:
    """The discovery tags of a page: tag, prefix, and template or URL.

    Only the head counts: what is in the body may come from visitors. Reading ends at a tag that is not closed."""
    for text in _meta_tags(page):
        parser = _Meta()
        parser.feed(text)
        name, content = parser.found.get("name", ""), parser.found.get("content", "")
        words = content.split()
        if name.lower() in ("ac-discovery", "ac-discovery-pubkeys") and len(words) == 2:
            yield name.lower(), words[0], words[1]


class _Meta(HTMLParser):
    """Takes one tag apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.found.setdefault(name, value or "")


def _meta_tags(page: str) -> Iterator[str]:
    """Each `<meta …>` of the head, as it stands. Takes linear time whatever the page is."""
    lower, at = page.lower(), 0
    while (at := page.find("<", at)) >= 0:
        if page.startswith("<!--", at):
            end = page.find("-->", at + 4)
            if end < 0:
                return
            at = end + 3
            continue
        word = _WORD.match(lower, at)
        if word is None or not word[1]:
            at += 1
            continue
        tag = _TAG.match(page, at, at + MAX_TAG)
        if tag is None or word[1] == "body" or word[0] == "</head":
            return
        at = tag.end()
        if word[0] == "<meta":
            yield tag[0]
        elif word[0][1:] in _RAW:
            at = lower.find(f"</{word[1]}", at)
            if at < 0:
                return


def _walk(
    client: Client, name: str, found: Callable[[_Page], tuple[_Found, ...]], what: str, tag: str
) -> tuple[_Found, ...]:
    """What `found` sees on the first page that has any, from the page of the whole name down to the host's."""
    host = name.partition("/")[0]
    if not _HOST.fullmatch(host):
        raise FetchError(f"discovery failed: {name}: {host} is no host name", hint="see docs/discovery.md")
    without, asked = [], name
    while True:
        page, why = _page(client, asked, name)
        results = found(page)
        if results:
            return results
        without.append(f"{asked} ({why})")
        if "/" not in asked:
            break
        asked = asked.rpartition("/")[0]
    raise FetchError(
        f"discovery failed: no {tag} tag for {name} at {', '.join(without)}", hint=_remedy(name, what), url=name
    )


def _remedy(name: str, what: str) -> str:
    if what == "public key":
        return "get the key elsewhere and give its file or https URL to rkpy trust"
    if "." not in name.partition("/")[0]:
        return f"an appC name begins with a host; an image of a registry is docker://{name}"
    return "check the name, or give the image as a file or an https URL"


def _page(client: Client, asked: str, name: str) -> tuple[_Page, str]:
    """The tags for `name` on the page of `asked`, and what to say if there is none of use."""
    try:
        return _read(client, f"https://{asked}?ac-discovery=1", name)
    except FetchError as error:
        if "http" not in client.insecure:
            raise _failed(error, name) from error
    try:
        return _read(client, f"http://{asked}?ac-discovery=1", name)
    except FetchError as error:
        raise _failed(error, name) from error


def _read(client: Client, url: str, name: str) -> tuple[_Page, str]:
    with client.open(url, what="discovery page", ok=_ANSWERS, limit=MAX_PAGE) as response:
        if response.status != 200:
            return _NOTHING, str(response.status)
        if response.content_type not in _HTML:
            return _NOTHING, f"{response.content_type[:40]!r} is no web page"
        page = read_all(response).decode("ascii", "replace")
    applying = [(tag, where) for tag, prefix, where in tags(page) if covers(prefix, name)]
    templates = tuple(where for tag, where in applying if tag == "ac-discovery")
    keys = tuple(where for tag, where in applying if tag == "ac-discovery-pubkeys" and _is_url(where))
    why = "no tag" if not applying else "no tag of use"
    return _Page(templates, keys), why


def _failed(error: FetchError, name: str) -> FetchError:
    hint = error.hint if "." in name.partition("/")[0] else _remedy(name, "image")
    return FetchError(f"discovery failed: {error.message}", hint=hint, url=error.url, status=error.status)


def _is_url(text: str) -> bool:
    try:
        split(text)
    except FetchError:
        return False
    return True
