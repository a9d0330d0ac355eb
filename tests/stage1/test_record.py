"""The record of what was done to the network for a pod."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import record
from stage1.network.record import Attachment, Element, Record

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
_texts = st.lists(_text, max_size=3).map(tuple)
_attachments = st.builds(
    Attachment, network=_text, interface=_text, conf=_text, source=_text, runtime=_text, result=_text,
    args=st.lists(st.tuples(_text, _text), max_size=2).map(tuple), over=st.booleans(),
)  # fmt: skip
_records = st.builds(
    Record, uuid=_text, netns=_text, plugin_path=_texts, system_plugin_path=_texts,
    attachments=st.lists(_attachments, max_size=3).map(tuple),
    elements=st.lists(st.builds(Element, _text, _text, _text), max_size=3).map(tuple), ports=_texts,
)  # fmt: skip
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Record._fields, *Attachment._fields, *Element._fields]), inner, max_size=9)
    ),
    max_leaves=25,
)


@given(_records)
def test_what_is_written_is_read(written: Record) -> None:
    with tempfile.TemporaryDirectory() as pod:
        record.write(pod, written)
        record.write(pod, written)
        assert record.read(pod) == written
        assert os.listdir(f"{pod}/net") == ["record"]


def test_nothing_was_done(tmp_path: pathlib.Path) -> None:
    assert record.read(str(tmp_path)) is None


@given(_json)
def test_what_makes_no_sense_is_said_to_be_so(document: Any) -> None:
    with tempfile.TemporaryDirectory() as pod:
        os.mkdir(f"{pod}/net")
        pathlib.Path(pod, "net/record").write_text(json.dumps(document))
        try:
            found = record.read(pod)
        except NetworkError:
            return
        assert isinstance(found, Record)
        assert all(isinstance(text, str) for text in (found.uuid, found.netns, *found.ports))


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": 1},
        {"uuid": None},
        {"ports": [1]},
        {"ports": "tcp-80-any"},
        {"netns": ["x"]},
        {"new": 1},
        {"elements": [{"where": 1, "key": "x"}]},
        {"elements": [{"where": "x"}]},
        {"attachments": [{"network": "n", "interface": "i", "conf": {}}]},
        {"attachments": [{"network": "n", "interface": "i", "conf": "", "args": ["IP"]}]},
        {"attachments": [{"network": "n", "interface": "i", "conf": "", "over": "no"}]},
        {"attachments": [{"network": "n\0", "interface": "i", "conf": ""}]},
        {"netns": "\0"},
        {"ports": ["tcp-80-any", "\0"]},
    ],
)
def test_types_that_are_wrong(tmp_path: pathlib.Path, change: dict[str, Any]) -> None:
    record.write(str(tmp_path), Record("u"))
    path = tmp_path / "net/record"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(NetworkError, match="makes no sense"):
        record.read(str(tmp_path))


def test_a_record_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "net").touch()
    with pytest.raises(NetworkError, match=r"write .*/net/record: not a directory"):
        record.write(str(tmp_path), Record("u"))
    with pytest.raises(NetworkError, match=r"open .*/net/record: not a directory"):
        record.read(str(tmp_path))
