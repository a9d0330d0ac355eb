"""What is offered for the word under the cursor."""

from __future__ import annotations

from pathlib import Path

import pytest

from stage0 import completing, main, shells
from stage0.completing import Answer, complete


def words(found: Answer) -> list[str]:
    return [word for word, _ in found.words]


def offered(*line: str) -> list[str]:
    return words(complete(line[:-1], line[-1]))


def test_commands_by_their_beginning_with_what_they_do() -> None:
    assert complete([], "ru") == Answer(
        (("run", "Run image(s) in a pod in rkpy"), ("run-prepared", "Run a prepared application pod in rkpy"))
    )
    assert {"image", "app", "net", "help"} <= set(offered(""))
    assert not any(" " in word for word in offered(""))


def test_commands_of_a_group() -> None:
    assert offered("image", "") == sorted(name.split()[1] for name in main.VERBS if name.startswith("image "))
    assert offered("help", "im") == ["image"]
    assert offered("help", "net", "l") == ["list"]
    assert offered("nothing", "") == []
    assert offered("im", "l") == ["list"]
    assert "--order=" in offered("im", "li", "--o")


def test_flags_before_an_image_and_after_it() -> None:
    assert "--stdin=" not in offered("run", "--st")
    assert "--stdin=" in offered("run", "image", "--st")
    assert "--mount=" in offered("run", "--mou")
    assert {"--net", "--net="} <= set(offered("run", "--ne"))
    assert offered("run", "--dn") == ["--dns=", "--dns-domain=", "--dns-opt=", "--dns-search="]
    assert not {"--debug", "--dir="} & set(offered("run", "--debug", "--dir=/x", "--d"))
    assert offered("--de") == ["--debug"]


def test_a_flag_that_may_come_again_is_offered_again() -> None:
    assert offered("run", "--port=1:1", "--por") == ["--port="]
    assert offered("run", "--pod-name=x", "--pod-n") == []


@pytest.mark.parametrize("line", [("run", "--stage1="), ("run", "--stage1", ""), ("--stage1", "")])
def test_values_of_flags(line: tuple[str, ...]) -> None:
    assert [word.removeprefix("--stage1=") for word in offered(*line)] == ["nspawn", "kvm", "fly"]


def test_values_of_flags_that_click_knows() -> None:
    assert offered("image", "list", "--order=") == ["--order=asc", "--order=desc"]
    assert offered("list", "--format", "json-") == ["json-pretty"]
    assert offered("list", "--full=") == ["--full=true", "--full=false"]


def test_a_list_goes_on_after_its_comma() -> None:
    assert offered("run", "--insecure-options=image,p") == [
        "--insecure-options=image,paths",
        "--insecure-options=image,pubkey",
    ]
    assert "--insecure-options=image,image" not in offered("run", "--insecure-options=image,")


def test_paths() -> None:
    assert complete(["run"], "--signature=").paths == "files"
    assert complete(["--dir"], "/x") == Answer(paths="directories")
    assert complete(["image", "extract", "x"], "").paths == "directories"
    assert complete(["trust"], "").paths == "files"


def test_arguments_of_an_app_are_its_own() -> None:
    assert complete(["run", "x", "--"], "--st") == Answer(paths="files")
    assert "--stdin=" in offered("run", "x", "--", "a", "---", "--st")
    assert complete(["enter", "x", "ls"], "-") == Answer(paths="files")


def test_networks(tmp_path: Path) -> None:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "10.conf").write_text('{"cniVersion": "1.0.0", "name": "lan", "type": "bridge"}')
    etc = f"--local-config={tmp_path}"
    assert {"--net=none", "--net=host", "--net=all", "--net=default", "--net=lan"} <= set(offered(etc, "run", "--net="))
    assert "lan" in offered(etc, "net", "inspect", "")
    assert "none" not in offered(etc, "net", "inspect", "")


def test_named_volumes(tmp_path: Path) -> None:
    for name in ("data", "db_1", ".new"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    (tmp_path / "volumes/file").touch()
    assert offered(f"--dir={tmp_path}", "volume", "rm", "d") == ["data", "db_1"]


def test_where_there_is_nothing_to_look_at_nothing_is_offered(tmp_path: Path) -> None:
    nothing = f"--dir={tmp_path}"
    assert complete([nothing, "stop"], "") == Answer()
    assert complete([nothing, "run"], "") == Answer(paths="files")
    assert complete([nothing, "logs"], "--app=") == Answer()


def test_failures_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["__complete", "words", "--dir=", "stop", ""]) == 0
    assert capsys.readouterr() == ("words\n", "")
    assert main.main(["__complete"]) == 0
    assert capsys.readouterr() == ("words\n", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rkpy run a", (["rkpy", "run"], "a")),
        ("rkpy run ", (["rkpy", "run"], "")),
        ('rkpy run \'a b\' "c\\"d" e\\ f', (["rkpy", "run", "a b", 'c"d'], "e f")),
        ("rkpy run 'a b", (["rkpy", "run"], "a b")),
        ('rkpy run "a b', (["rkpy", "run"], "a b")),
        ("", ([], "")),
    ],
)
def test_a_line_of_the_shell_s_is_split_as_the_shell_does(line: str, expected: tuple[list[str], str]) -> None:
    assert completing.split(line) == expected


def test_bash_has_cut_words_at_its_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["__complete", "bash", " \t\n=:", "rkpy run --stage1=f"])
    assert capsys.readouterr().out == "words\nfly\t\n"
    main.main(["__complete", "bash", " \t\n", "rkpy run --stage1=f"])
    assert capsys.readouterr().out == "words\n--stage1=fly\t\n"


@pytest.mark.parametrize("shell", shells.SCRIPTS)
def test_the_scripts_ask_the_hidden_command(shell: str) -> None:
    assert "__complete" in shells.SCRIPTS[shell]
