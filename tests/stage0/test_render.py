"""The shapes recorded from rkt 1.30."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage0 import render

S = 1_000_000_000
MOMENT = 1795458550_933_213_210


@pytest.fixture
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_table_of_rkt_list() -> None:
    rows = [
        ["UUID", "APP", "IMAGE NAME", "STATE", "CREATED", "STARTED", "NETWORKS"],
        ["cf5d5f1d", "busybox", "example.com/busybox:1", "exited", "1 second ago", "now", ""],
    ]
    assert render.table(rows) == (
        "UUID\t\tAPP\tIMAGE NAME\t\tSTATE\tCREATED\t\tSTARTED\tNETWORKS\n"
        "cf5d5f1d\tbusybox\texample.com/busybox:1\texited\t1 second ago\tnow\t\n"
    )


def test_table_of_rkt_image_list() -> None:
    rows = [
        ["ID", "NAME", "SIZE", "IMPORT TIME", "LAST USED"],
        ["sha512-726826a9830e", "coreos.com/rkt/stage1-fly:1.30.0+git-dirty", "33MiB", "1 second ago", "1 second ago"],
        ["sha512-523eb3e20347", "example.com/busybox:1", "1.9MiB", "1 second ago", "1 second ago"],
    ]
    assert render.table(rows) == (
        "ID\t\t\tNAME\t\t\t\t\t\tSIZE\tIMPORT TIME\tLAST USED\n"
        "sha512-726826a9830e\tcoreos.com/rkt/stage1-fly:1.30.0+git-dirty\t33MiB\t1 second ago\t1 second ago\n"
        "sha512-523eb3e20347\texample.com/busybox:1\t\t\t\t1.9MiB\t1 second ago\t1 second ago\n"
    )


def test_table_without_rows() -> None:
    assert render.table([]) == ""


def test_table_of_one_column_has_no_tabs() -> None:
    assert render.table([["a"], ["b"]]) == "a\nb\n"


def test_cells_cannot_break_the_table() -> None:
    assert render.table([["a\tb\nc", "\x1b[31m"]]) == "a?b?c\t?[31m\n"


_WORDS = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=30)


@given(st.lists(st.tuples(_WORDS, _WORDS, _WORDS), min_size=1))
def test_columns_line_up(rows: list[tuple[str, str, str]]) -> None:
    """With a tab stop every 8 columns, each column begins at the same place on every line, past its neighbour."""
    starts = set()
    for row, line in zip(rows, render.table(rows).splitlines(), strict=True):
        assert [field for field in line.split("\t") if field] == list(row)
        begins = [line.rindex("\t") + 1, line.index("\t", len(row[0]))]
        second = begins[1] + len(line[begins[1] :]) - len(line[begins[1] :].lstrip("\t"))
        starts.add((len(line[:second].expandtabs(8)), len(line[: begins[0]].expandtabs(8))))
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("elapsed", "expected"),
    [
        (0, "now"),
        (S - 1, "now"),
        (S, "1 second ago"),
        (2 * S, "2 seconds ago"),
        (59 * S, "59 seconds ago"),
        (60 * S, "1 minute ago"),
        (3 * 60 * S, "3 minutes ago"),
        (3600 * S, "1 hour ago"),
        (47 * 3600 * S, "1 day ago"),
        (7 * 86400 * S, "1 week ago"),
        (60 * 86400 * S, "2 months ago"),
        (3 * 360 * 86400 * S, "3 years ago"),
        (-5 * S, "5 seconds from now"),
    ],
)
def test_ago(elapsed: int, expected: str) -> None:
    assert render.ago(MOMENT - elapsed, now=MOMENT) == expected


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (MOMENT, "2026-11-23 18:29:10.933 +0000 UTC"),
        (1795458551_004_101_016, "2026-11-23 18:29:11.004 +0000 UTC"),
        (1795458551_120_000_000, "2026-11-23 18:29:11.12 +0000 UTC"),
        (1795458551_000_999_999, "2026-11-23 18:29:11 +0000 UTC"),
    ],
)
def test_timestamp(ns: int, expected: str) -> None:
    assert render.timestamp(ns) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0B"),
        (999, "999B"),
        (1024, "1.0KiB"),
        (1991168, "1.9MiB"),
        (34700120, "33MiB"),
        (1024 * 1024 - 1, "1.0MiB"),
        (5 << 30, "5.0GiB"),
        (1 << 80, "1048576EiB"),
    ],
)
def test_human_size(size: int, expected: str) -> None:
    assert render.human_size(size) == expected


def test_json_is_go_json() -> None:
    value = {"exec": ["echo err >&2 <x"], "none": [], "name": "é\u2028"}
    assert render.json_text(value) == (
        '{"exec":["echo err \\u003e\\u00262 \\u003cx"],"none":[],"name":"é\\u2028"}'
    )  # fmt: skip
    assert render.json_text({"a": [1, {"b": True}]}, pretty=True) == (
        '{\n\t"a": [\n\t\t1,\n\t\t{\n\t\t\t"b": true\n\t\t}\n\t]\n}'
    )


def test_write_json_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.write_json([])
    assert capsys.readouterr().out == "[]\n"


@given(
    st.recursive(
        st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_reads_back(value: object) -> None:
    assert json.loads(render.json_text(value)) == value


def test_bytes_that_are_not_utf8_can_be_printed() -> None:
    assert render.json_text(os.fsdecode(b"a\xff")).encode() == '"a\ufffd"'.encode()
