"""Health checks as flags and images write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0 import health, options
from stage0.options import Values
from stage1.plan import Health

OF_IMAGE = "appc.io/docker/healthcheck"


def flags(**typed: str) -> Values:
    values, table = Values(), options.table(options.APP)
    for name, value in typed.items():
        values.add(table[name.replace("_", "-")], value)
    return values


def image(**fields: Any) -> dict[str, str]:
    return {OF_IMAGE: json.dumps(fields)}


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("curl -f localhost", ("/bin/sh", "-c", "curl -f localhost")),
        ('["/bin/check", "-v"]', ("/bin/check", "-v")),
        ('["CMD", "/bin/check"]', ("/bin/check",)),
        ('["CMD-SHELL", "a || b"]', ("/bin/sh", "-c", "a || b")),
    ],
)
def test_commands(command: str, argv: tuple[str, ...]) -> None:
    assert health.of_app(flags(health_cmd=command), {}) == Health(argv)


@pytest.mark.parametrize("command", ["", "none", '["NONE"]', "[]"])
def test_no_command(command: str) -> None:
    assert health.of_app(flags(health_cmd=command), image(Test=["CMD", "/x"])) is None


def test_flags_go_before_the_image() -> None:
    found = health.of_app(
        flags(health_interval="1m", health_retries="7", health_on_failure="kill"),
        image(Test=["CMD", "/x"], Interval=5_000_000_000, Timeout=2_000_000_000, StartPeriod=1, Retries=2),
    )
    assert found == Health(("/x",), 60.0, 2.0, 7, 0.1, "kill")


def test_zeros_of_an_image_are_defaults() -> None:
    found = health.of_app(flags(), image(Test=["CMD", "/x"], Interval=0, Timeout=0, StartPeriod=0, Retries=0))
    assert found == Health(("/x",))


def test_no_healthcheck() -> None:
    assert health.of_app(flags(no_healthcheck="true"), image(Test=["CMD", "/x"])) is None


@pytest.mark.parametrize("test", [[], ["NONE"], None])
def test_images_without_a_check(test: object) -> None:
    assert health.of_app(flags(), image(Test=test)) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]", "nonsense", '{"Test": "CMD"}', '{"Test": [1]}', '{"Test": ["CMD"]}', '{"Test": ["CMD", ""]}',
        '{"Test": ["CMD", "a\\u0000b"]}', '{"Test": ["CMD", "/x"], "Interval": "1s"}',
        '{"Test": ["CMD", "/x"], "Interval": -1}', '{"Test": ["CMD", "/x"], "Interval": true}',
        '{"Test": ["CMD", "/x"], "Retries": 1.5}', '{"Test": ["CMD", "/x"], "Retries": -1}',
        '{"Test": ["CMD", "/x"], "Timeout": 1e300}', "[" * 100_000,
    ],
)  # fmt: skip
def test_images_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        health.of_app(flags(), {OF_IMAGE: text})
    assert "the image's health check" in caught.value.message
    assert "--no-healthcheck" in caught.value.hint


SECONDS = st.floats(0.1, 1e7)
WORD = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


@given(
    st.builds(
        Health, st.lists(WORD, min_size=1).map(tuple),
        SECONDS, SECONDS, st.integers(1, 1000), SECONDS, st.sampled_from(health.ON_FAILURE),
    )
)  # fmt: skip
def test_annotations_keep_checks(check: Health) -> None:
    assert health.loads(health.dumps(check)) == check


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_annotations_are_checked(text: str) -> None:
    with pytest.raises(UsageError):
        health.loads(text)


@pytest.mark.parametrize(
    "change", [{"interval": 0}, {"interval": "1"}, {"retries": 1.0}, {"on_failure": "x"}, {"argv": []}, {"more": 1}]
)
def test_annotations_that_make_no_sense(change: dict[str, Any]) -> None:
    fields = {**Health(("/x",))._asdict(), **change}
    with pytest.raises(UsageError):
        health.loads(json.dumps(fields))
