"""Pod files for tests."""

from __future__ import annotations

from pathlib import Path

from stage0.podfile import pods, search
from stage0.podfile.pods import PodWords
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Parsed, parse


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def built(text: str, name: str = "web") -> PodWords:
    return pods.build(name, f"{name}.pod", parse(text.encode(), f"{name}.pod"))


def words(text: str, name: str = "web") -> list[str]:
    """The words after `rkpy run`, of a file without mistakes."""
    pod = built(text, name)
    assert not pod.mistakes
    return [word.text for word in pod.after_verb()]


def said(text: str, name: str = "web") -> list[str]:
    """What is wrong with the form of a file."""
    return list(map(str, built(text, name).mistakes))


def loaded(path: str) -> tuple[PodFile, Parsed, PodWords]:
    file = search.at(path, ())
    parsed = search.read(file)
    return file, parsed, pods.build(file.name, file.path, parsed)
