"""The manual pages, judged by groff."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from stage0 import main, manpages, options, roff
from stage0.podfile import keys, manual
from tests.conftest import MUST_RUN


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return dict(manpages.pages())


def shown(page: str) -> str:
    """The page as it is read, and everything groff has to say against it."""
    if shutil.which("groff") is None and not MUST_RUN:
        pytest.skip("needs groff")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=10000n"],
        input=page.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode()


def test_every_command_and_group_has_one(pages: dict[str, str]) -> None:
    names = set(main.VERBS) | {name.split()[0] for name in main.VERBS if " " in name}
    assert set(pages) == {"rkpy.1", "rkpy.pod.5"} | {f"rkpy-{name.replace(' ', '-')}.1" for name in names}


def test_groff_has_nothing_to_say_against_them(pages: dict[str, str]) -> None:
    for text in pages.values():
        shown(text)


def test_a_page_says_what_the_command_takes(pages: dict[str, str]) -> None:
    text = shown(pages["rkpy-run.1"])
    for flag in options.table(options.PREPARE, options.RUNTIME, options.APP).values():
        assert f"--{flag.name}" in text
        assert flag.help[1:] in text
    assert "rkpy run [OPTIONS] IMAGE [APP OPTIONS] [-- ARGS... [---]] [IMAGE ...]" in text
    assert "126, 127" in text
    assert "126, 127" not in shown(pages["rkpy-list.1"])


def test_the_page_of_pod_files_says_every_key(pages: dict[str, str]) -> None:
    page = shown(pages["rkpy.pod.5"])
    assert page.startswith("RKPY.POD(5)")
    text = " ".join(page.split())
    flags = options.table(options.PREPARE, options.RUNTIME, options.APP)
    for name, key in (*keys.POD.items(), *keys.APP.items()):
        about = " ".join(roff.sentence(key.about or flags[key.flag].help).split())
        said = text.partition(f" {name}= {about} ")[2]
        assert said, name
        assert not key.flag or f"This is --{key.flag} of rkpy-run(1)." in said.partition("= ")[0], name
    assert all(f" {name}= {roff.sentence(instead)}" in text for name, instead in keys.SWAPPED.items())
    assert all(f"{place}/NAME.pod" in text for place in manual.PLACES)


def test_text_is_shown_as_it_is() -> None:
    text = r".start 'of' \fBa\fR \n-line--with ~/^`everything` “…” ü"
    page = f'.TH X 1 "" "" ""\n.SH NAME\n{roff.text(text)}\n.PP\n{roff.text(chr(39) + "quoted")}\n'
    out = shown(page)
    assert text.replace("'", "’") in out.replace("'", "’")
    assert "quoted" in out


def test_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    once, again = dict(manpages.pages()), dict(manpages.pages())
    assert once == again
    assert all('"2001-09-09"' in text for text in once.values())


def test_the_command_writes_them(tmp_path: Path) -> None:
    assert main.main(["man", f"--output={tmp_path / 'new' / 'man'}"]) == 0
    assert (tmp_path / "new" / "man" / "rkpy-image-list.1").read_text().startswith(".TH ")
