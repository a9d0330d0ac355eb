"""The documents and the program say the same: every link leads somewhere, every command, flag and module is named."""

from __future__ import annotations

import pathlib
import re
from importlib import import_module

import click
import pytest

from stage0 import options
from stage0.main import VERBS

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def headings(document: pathlib.Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def flags(name: str) -> set[str]:
    """The flags of a command, without the global ones."""
    module = import_module(f"stage0.commands.{VERBS[name].module}")
    if VERBS[name].fast:
        return set(module.FLAGS[name])
    command: click.Command = getattr(module, VERBS[name].attribute)
    options_of = [option for param in command.params if isinstance(param, click.Option) for option in param.opts]
    own = {option.removeprefix("--") for option in options_of if option.startswith("--")}
    return own - options.table(options.GLOBAL).keys() - {"help", "h"}


@pytest.mark.parametrize("name", VERBS)
def test_every_command_and_flag_is_described(name: str) -> None:
    text = "".join((ROOT / "docs" / page).read_text() for page in ("commands.md", "trust.md"))
    assert re.search(rf"(rkpy |`|and |, ){name}\b", text), name
    missing = [flag for flag in sorted(flags(name)) if not re.search(rf"--{flag}(?![\w-])", text)]
    assert not missing


def test_every_global_flag_is_described() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert all(f"`--{flag.name}`" in text for flag in options.GLOBAL)


def tabled() -> set[str]:
    """Modules of stage1 by the tables of docs/architecture.md, each of which says of what directory it is."""
    room, found = "", set()
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if header := re.search(r"(?:^\| |The modules of )`(stage[01]/[a-z/]*)`(?: \||:$)", line):
            room = header[1]
        elif line.startswith("#"):
            room = ""
        elif line.startswith("|") and room:
            found |= {f"{room}{name}" for name in re.findall(r"`([a-z_]+)`", line)}
    return found


def test_every_module_of_stage1_has_its_place() -> None:
    paths = (path for path in (ROOT / "stage1").rglob("*.py") if path.stem != "__init__" and "lean" not in path.parts)
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in paths} - tabled() == set()
