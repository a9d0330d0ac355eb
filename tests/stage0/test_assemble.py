"""From flags and images to a pod manifest, without touching a file."""

from __future__ import annotations

import pytest

from aci.image_manifest import App, ImageManifest, Isolator
from aci.pod_manifest import PodManifest, RuntimeApp
from aci.store import ImageRecord
from common.errors import UsageError
from stage0 import assemble, grammar, options
from stage0.assemble import Selected

CAPABILITIES = Isolator("os/linux/capabilities-retain-set", {"set": ["CAP_KILL"]})
MEMORY = Isolator("resource/memory", {"limit": "64M"})
SHARES = Isolator("os/linux/cpu-shares", 100)
APP = App(
    exec=("/bin/app", "word"),
    user="0",
    group="0",
    environment=(("A", "image"), ("B", "image")),
    isolators=(CAPABILITIES, MEMORY, SHARES),
    user_annotations=(("who", "image"), ("kept", "yes")),
)


def pod(*words: str, inherited: dict[str, str] | None = None, added: tuple[Isolator, ...] = ()) -> PodManifest:
    """The manifest of `rkpy run WORDS`, where every image is the same one, with these isolators added."""
    request = grammar.parse(words, options.table(options.PREPARE, options.RUNTIME, options.APP))
    manifest = ImageManifest("example.com/app", app=APP._replace(isolators=(*APP.isolators, *added)))
    record = ImageRecord("sha512-" + "0" * 128, "aci", manifest, (), (), 0, 0, 0, False, None)
    return assemble.pod_manifest(request.flags, [Selected(image, record) for image in request.images], inherited or {})


def only(
    *words: str, inherited: dict[str, str] | None = None, added: tuple[Isolator, ...] = ()
) -> tuple[RuntimeApp, App]:
    """The only app of that pod, and its section."""
    (app,) = pod(*words, inherited=inherited, added=added).apps
    assert app.app is not None
    return app, app.app


def test_without_flags_the_app_is_the_images() -> None:
    app, section = only("image")
    assert section == APP
    assert (app.name, app.read_only_rootfs, app.mounts) == ("app", False, ())


def test_flags_take_the_place_of_what_the_image_says() -> None:
    app, section = only(
        "image", "--name=other", "--readonly-rootfs", "--user=1", "--group=2", "--supplementary-gids=3,4",
        "--working-dir=/w", "--exec=/bin/other", "--annotation=a=b", "--", "one",
    )  # fmt: skip
    assert (app.name, app.read_only_rootfs, app.annotations) == ("other", True, (("a", "b"),))
    assert (section.user, section.group, section.supplementary_gids) == ("1", "2", (3, 4))
    assert (section.working_directory, section.exec) == ("/w", ("/bin/other", "one"))


def test_the_nearer_environment_wins() -> None:
    words = ("--inherit-env", "--set-env=B=pod", "--set-env=C=pod", "image", "--environment=C=app")
    _, section = only(*words, inherited={"A": "caller", "D": "caller"})
    assert dict(section.environment) == {"A": "image", "B": "pod", "C": "app", "D": "caller"}
    assert "D" not in dict(only("image", inherited={"D": "caller"})[1].environment)


def test_user_annotations_belong_to_what_they_follow() -> None:
    made = pod(
        "--user-annotation=who=pod", "--user-label=l=pod", "image", "--user-annotation=who=app", "--user-label=l=app"
    )
    section = made.apps[0].app
    assert section is not None
    assert (made.user_annotations, made.user_labels) == ((("who", "pod"),), (("l", "pod"),))
    assert (dict(section.user_annotations), section.user_labels) == ({"who": "app", "kept": "yes"}, (("l", "app"),))


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (
            "--caps-remove=CAP_CHOWN",
            [MEMORY, SHARES, Isolator("os/linux/capabilities-remove-set", {"set": ["CAP_CHOWN"]})],
        ),
        ("--cpu-shares=200", [CAPABILITIES, MEMORY, Isolator("os/linux/cpu-shares", 200)]),
        ("--pids-limit=0", [CAPABILITIES, MEMORY, SHARES]),
        ("--memory=1G", [CAPABILITIES, MEMORY, SHARES, Isolator("resource/memory", {"limit": "1G"})]),
    ],
)
def test_a_restriction_replaces_its_kind_or_comes_last(flag: str, expected: list[Isolator]) -> None:
    assert list(only("image", flag)[1].isolators) == expected


@pytest.mark.parametrize(
    ("flag", "isolator", "left"),
    [
        ("--pids-limit=-1", Isolator("resource/pids", {"limit": 1}), []),
        ("--no-new-privileges=false", Isolator("os/linux/no-new-privileges", True), [False]),
        (
            "--caps-ambient=CAP_KILL",
            Isolator("os/linux/ambient-capabilities-set", {"set": ["CAP_X"]}),
            [{"set": ["CAP_KILL"]}],
        ),
    ],
)
def test_what_the_image_says_of_it_is_replaced(flag: str, isolator: Isolator, left: list[object]) -> None:
    found = only("image", flag, added=(isolator,))[1].isolators
    assert [one.value for one in found if one.name == isolator.name] == left


def test_on_one_target_the_apps_mount_wins() -> None:
    app, _ = only(
        "--volume=a,kind=empty", "--volume=b,kind=empty", "--mount=volume=a,target=/x/", "--mount=volume=a,target=/y",
        "image", "--mount=volume=b,target=/x",
    )  # fmt: skip
    assert {mount.path: mount.volume for mount in app.mounts} == {"/x": "b", "/y": "a"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image", "image"), 'app name "app" is used twice'),
        (("--volume=a,kind=empty", "--volume=a,kind=empty", "image"), 'volume "a" is used twice'),
        (("image", "--working-dir=w"), "absolute path"),
        (("image", "--exec="), "names no program to run"),
    ],
)
def test_contradictions(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pod(*words)
