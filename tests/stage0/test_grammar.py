"""rkt's argument grammar: which flag belongs to what, and where app arguments begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from stage0 import grammar, options

FLAGS = options.table(options.GLOBAL, options.PREPARE, options.RUNTIME, options.APP)


def images(*words: str) -> list[tuple[str, dict[str, list[str]], list[str]]]:
    request = grammar.parse(words, FLAGS)
    return [(i.reference, {n: i.flags.all(n) for n in i.flags.typed()}, i.arguments) for i in request.images]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a"], [("a", {}, [])]),
        (["a", "--", "x", "--y", "--"], [("a", {}, ["x", "--y", "--"])]),
        (["a", "--", "x", "---", "b"], [("a", {}, ["x"]), ("b", {}, [])]),
        (["a", "--", "---", "b", "--", "-c"], [("a", {}, []), ("b", {}, ["-c"])]),
        (["a", "--exec", "/x", "--", "-c"], [("a", {"exec": ["/x"]}, ["-c"])]),
        (["a", "--name=one", "a", "--name", "two"], [("a", {"name": ["one"]}, []), ("a", {"name": ["two"]}, [])]),
        (["a", "--cap-retain=CAP_KILL"], [("a", {"caps-retain": ["CAP_KILL"]}, [])]),
        (["a", "--net=host", "b"], [("a", {}, []), ("b", {}, [])]),
    ],
)
def test_images_and_their_arguments(words: list[str], expected: object) -> None:
    assert images(*words) == expected


def test_pod_flags_may_stand_anywhere_outside_of_arguments() -> None:
    request = grammar.parse(["--net=host", "a", "--debug", "--hostname", "h", "--", "--net=none"], FLAGS)
    assert request.flags.get("net") == "host"
    assert request.flags.boolean("debug")
    assert request.flags.get("hostname") == "h"
    assert request.images[0].arguments == ["--net=none"]


def test_a_mount_is_the_pods_before_the_first_image_and_the_apps_after_it() -> None:
    request = grammar.parse(["--mount", "volume=v,target=/p", "a", "--mount", "volume=v,target=/a"], FLAGS)
    assert request.flags.all("mount") == ["volume=v,target=/p"]
    assert request.images[0].flags.all("mount") == ["volume=v,target=/a"]


def test_bare_net_means_default_and_takes_no_word() -> None:
    request = grammar.parse(["--net", "a"], FLAGS)
    assert request.flags.get("net") == "default"
    assert [image.reference for image in request.images] == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--exec", "/x", "a"], "--exec must follow an image"),
        (["--", "x"], "must follow an image"),
        (["a", "--", "x", "---", "--", "y"], "only once"),
        (["a", "---"], '"---" ends'),
        (["a", "--bogus"], "unknown flag: --bogus"),
        (["a", "-x"], "unknown shorthand flag"),
        (["a", "--name"], "flag needs an argument: --name"),
        (["--no-overlay=perhaps", "a"], "not a boolean"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grammar.parse(words, FLAGS)


@given(st.lists(st.sampled_from(["a", "b", "--", "---", "--net", "--name=x", "--debug", "--exec=e", "-", "", "--x=y"])))
def test_any_words_parse_or_are_refused_and_none_is_lost(words: list[str]) -> None:
    try:
        request = grammar.parse(words, FLAGS)
    except UsageError:
        return
    taken = [word for image in request.images for word in (image.reference, *image.arguments)]
    assert [word for word in taken if word in ("a", "b")] == [word for word in words if word in ("a", "b")]
