"""The syntax of pod files is systemd's: systemd itself says so where it is installed."""

from __future__ import annotations

import re
import shutil
import string
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stage0.podfile import pods, quoting, specifiers
from stage0.podfile.quoting import QuotingError
from stage0.podfile.syntax import LARGEST_FILE, MOST, parse


def entries(text: str | bytes) -> list[tuple[str, str, str, int]]:
    parsed = parse(text if isinstance(text, bytes) else text.encode(), "f")
    assert not parsed.mistakes
    return [(entry.section, entry.key, entry.value, entry.line) for entry in parsed.entries]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[A]\nK=v", [("A", "K", "v", 2)]),
        ("[A]\n K = v w \n", [("A", "K", "v w", 2)]),
        ("[A]\nK=\n", [("A", "K", "", 2)]),
        ("[A]\nK=a=b\n", [("A", "K", "a=b", 2)]),
        ("# c\n; c\n  # c\n\n[A]\nK=v # no comment\n", [("A", "K", "v # no comment", 6)]),
        # From systemd.syntax(7).
        (
            "[B]\nKeyTwo=value 2 \\\n       value 2 continued\n",
            [("B", "KeyTwo", "value 2         value 2 continued", 2)],
        ),
        (
            "[C]\nK=value 3\\\n# this line is ignored\n; this line is ignored too\n       value 3 continued\n",
            [("C", "K", "value 3        value 3 continued", 2)],
        ),
        ("[A]\nK=v\\\\\nL=w\n", [("A", "K", "v\\\\", 2), ("A", "L", "w", 3)]),
        ("[A]\nK=v\\", [("A", "K", "v", 2)]),
        ("[A]\nK=v\\\n\nL=w\n", [("A", "K", "v", 2), ("A", "L", "w", 4)]),
        ("[A]\r\nK=v\r\n", [("A", "K", "v", 2)]),
        ("\ufeff[A]\nK=ü\n", [("A", "K", "ü", 2)]),
        ("[A]\nK=1\n[B]\nK=2\n[A]\nK=3\n", [("A", "K", "1", 2), ("B", "K", "2", 4), ("A", "K", "3", 6)]),
    ],
)
def test_lines(text: str, expected: list[tuple[str, str, str, int]]) -> None:
    assert entries(text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"K=v\n[A]\n", 1),
        (b"[A]\n\nword\n", 3),
        (b"[A]\n=v\n", 2),
        (b"[A\nK=v\n", 1),
        (b"[]\n", 1),
        (b"[A]\nK=\xff\n", 2),
        (b"[A]\nK=a\0b\n", 2),
        (b"[A]\nK=\x1b[1m\n", 2),
        (b"[A]\nK=a\\\n\\\n\xff\n", 2),
    ],
)
def test_what_makes_no_sense_is_said_with_its_line(text: bytes, line: int) -> None:
    (mistake,) = parse(text, "f").mistakes
    assert mistake.line == line
    assert str(mistake).startswith(f"f:{line}: ")
    assert str(mistake).isprintable()


def test_lines_have_a_limit_and_so_have_files() -> None:
    assert parse(b"[A]\nK=" + b"x" * (1 << 20), "f").mistakes[0].line == 2
    assert parse(b"#" * (17 << 20), "f").mistakes[0].line == 0


WORDS = b"[Pod]\nImage=i\nEnvironment="


@pytest.mark.parametrize(
    "part", [b"\\\n", b"a=b\n", b"[x]\n", b"[App x]\nImagine=\n", b"\xff\n", WORDS + b"b " * 400_000]
)
def test_no_file_holds_the_boot_up(part: bytes) -> None:
    begun = time.process_time()
    parsed = parse(b"[Pod]\n" + part * (LARGEST_FILE // len(part) - 2 or 1), "f")
    assert len(parsed.sections) + len(parsed.entries) + len(parsed.mistakes) <= MOST + 1
    pods.build("f", "f", parsed)
    assert time.process_time() - begun < 20


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_anything_can_be_read(data: bytes) -> None:
    parsed = parse(data, "f")
    lines = [*(entry.line for entry in parsed.entries), *(mistake.line for mistake in parsed.mistakes)]
    assert all(1 <= line <= data.count(b"\n") + data.count(b"\r") + 1 for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  a  b\tc ", ["a", "b", "c"]),
        ("\"a b\" 'c d'", ["a b", "c d"]),
        ('"" x', ["", "x"]),
        ('a"b c"d', ["ab cd"]),
        ("\"it's\" '\"'", ["it's", '"']),
        (r"\x41\101\u00e9\U0001F600\s\t", ["AA\u00e9\U0001f600 \t"]),
        (r'"a\"b" "c\\d" \'', ['a"b', "c\\d", "'"]),
        (r"\xc3\xa9", ["é"]),
        ("ü", ["ü"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert quoting.split(text) == expected


@pytest.mark.parametrize(
    "text", ['"a', "'", "a\\", r"\q", r"\x0", r"\x00", r"\000", r"\ud800", r"\xff", r"\U00110000", r"\400"]
)
def test_words_that_are_none(text: str) -> None:
    with pytest.raises(QuotingError):
        quoting.split(text)


def test_semicolons_in_commands() -> None:
    assert quoting.split_command(r'a ";" b \; c;d') == ["a", ";", "b", ";", "c;d"]
    with pytest.raises(QuotingError, match="two commands"):
        quoting.split_command("a ; b")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
@example([";"])
@example(["a\\", "", "\n", '"', "'", "#", "é"])
def test_what_is_quoted_can_be_taken_apart(words: list[str]) -> None:
    line = quoting.join(words)
    assert "\n" not in line
    assert "\r" not in line
    assert quoting.split_command(line) == words
    assert not line.endswith("\\")


_SYSTEMD = shutil.which("systemd-run") and shutil.which("systemd-analyze")
_WORDS = st.lists(st.text(st.sampled_from(string.printable.replace("\0", "") + "éß€")), min_size=1, max_size=5)


@pytest.mark.skipif(not _SYSTEMD, reason="needs systemd-analyze")
@given(st.lists(_WORDS, min_size=5, max_size=40))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_systemd_reads_what_we_quote(tmp_path: Path, commands: list[list[str]]) -> None:
    """A mistake in any of them would be reported, such as quotes out of balance or a second command."""
    escaped = [[quoting.literal(word).replace("%", "%%") for word in words] for words in commands]
    lines = [f"ExecStart=/bin/true {quoting.join(words)}" for words in escaped]
    unit = tmp_path / "x.service"
    unit.write_text("\n".join(["[Service]", "Type=oneshot", *lines, ""]))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not _SYSTEMD, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "text",
    ['[Service]\nExecStart=/bin/true "x\n', "[Service]\nExecStart=/bin/true %Q\n", "[Service\n", "[Service]\nx\n"],
)
def test_what_we_call_a_mistake_is_one_for_systemd(tmp_path: Path, text: str) -> None:
    """So the test above can fail."""
    unit = tmp_path / "x.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert "x.service:" in done.stderr


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("100%%", "web", "100%"),
        ("%n %N %p %i", "web", "web.service web web "),
        ("%n %N %p %i %j", "my-web@1", "my-web@1.service my-web@1 my-web 1 web"),
        ("%I %f", "a@b-c\\x2dd", "b/c-d /b/c-d"),
        ("%i", "web@", "instance"),
        ("%t/x", "web", "/run/x"),
    ],
)
def test_specifiers(text: str, name: str, expected: str) -> None:
    assert specifiers.expand(text, name) == expected


@pytest.mark.parametrize("text", ["%", "a%", "%Q", "% x", "%%%"])
def test_specifiers_that_are_none(text: str) -> None:
    with pytest.raises(QuotingError):
        specifiers.expand(text, "web")


@pytest.mark.skipif(not _SYSTEMD, reason="needs systemd-analyze")
def test_systemd_knows_our_specifiers(tmp_path: Path) -> None:
    newer = "DyY"
    known = re.sub(f"[{newer}]", "", "".join(specifiers._FIXED).replace("%", "")) + "nNpPiIjJf"
    unit = tmp_path / "x@1.service"
    unit.write_text("[Service]\nExecStart=/bin/true " + " ".join(f"a%{letter}" for letter in known) + "\n")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if "specifier" in line], done.stderr
