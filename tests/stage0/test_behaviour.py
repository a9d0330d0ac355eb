"""What flags say about how pods and apps behave, and what becomes of it in annotations."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.pod_manifest import PodManifest, RuntimeApp, RuntimeImage
from common.errors import ManifestError, RkpyError, UsageError
from stage0 import behaviour, options
from stage0.behaviour import AppBehaviour, PodBehaviour
from stage0.options import Values
from stage1.flavour import Device
from stage1.plan import Restart
from stage1.streams import Streams
from stage1.vm.machine import MachineOptions

IMAGE = RuntimeImage("sha512-" + "0" * 128, "", ())
FLAGS = options.table(options.PREPARE, options.APP)


def flags(*words: str) -> Values:
    found = Values()
    for word in words:
        flag, value, _ = options.take([word], 0, FLAGS)
        found.add(flag, value)
    return found


def app(*words: str, **image: str) -> AppBehaviour:
    annotations = behaviour.app_annotations(flags(*words), image)
    return behaviour.of_app(RuntimeApp("app", IMAGE, annotations=annotations))


def pod(*words: str) -> PodBehaviour:
    return behaviour.of_pod(PodManifest((), annotations=behaviour.pod_annotations(flags(*words))))


def test_nothing_said_is_the_default() -> None:
    assert app() == AppBehaviour(Streams("null", "log", "log"), Restart("no", 0), 15, ())
    assert pod() == PodBehaviour("", "on-any-failure", 10, False)
    assert behaviour.app_annotations(flags(), {}) == behaviour.pod_annotations(flags()) == ()


def test_flags_come_back_as_typed() -> None:
    found = app(
        "--stdin=tty", "--stdout=stream", "--stderr=null", "--restart=on-failure:3", "--stop-signal=SIGQUIT",
        "--device=/dev/fuse", "--device=/dev/kvm:/dev/virt:rw", "--device=/dev/null:wr",
    )  # fmt: skip
    assert found == AppBehaviour(
        Streams("tty", "stream", "null"),
        Restart("on-failure", 3),
        signal.SIGQUIT,
        (
            Device("/dev/fuse", "/dev/fuse"),
            Device("/dev/kvm", "/dev/virt"),
            Device("/dev/null", "/dev/null"),
        ),
    )
    assert pod("--pod-name=web", "--exit-policy=until-all", "--stop-timeout=1m30s") == PodBehaviour(
        "web", "until-all", 90
    )
    assert pod("--stop-timeout=0").stop_timeout == 0
    assert pod("--stop-timeout=10ms").stop_timeout == 1
    assert [pod(f"--log-driver={name}").log_driver for name in ("auto", "journald", "file", "k8s-file")] == [
        "auto", "journald", "file", "file",
    ]  # fmt: skip


def test_what_was_said_about_the_machine_comes_back_and_nothing_otherwise() -> None:
    found = pod("--kvm-accel=tcg", "--kvm-kernel=/boot/vmlinuz", "--kvm-params=loglevel=7 nosmp").machine
    assert found == MachineOptions("tcg", "/boot/vmlinuz", "loglevel=7 nosmp")
    assert pod("--kvm-kernel=6.1.0").machine == MachineOptions(kernel="6.1.0")
    assert pod("--kvm-cpu=Haswell-noTSX,+x2apic,-pcid,level=13").machine.cpu == "Haswell-noTSX,+x2apic,-pcid,level=13"
    assert pod().machine == MachineOptions()


def test_the_names_of_rkt_are_kept() -> None:
    found = behaviour.app_annotations(flags("--stdin=stream", "--restart=always"), {})
    assert found == (("coreos.com/rkt/stage2/stdin", "stream"), ("rkpy/restart", "always"))
    mutable = PodManifest((), annotations=(("coreos.com/rkt/stage1/mutable", "true"),))
    assert behaviour.of_pod(mutable).mutable


def test_an_oci_image_is_told_by_what_was_kept_of_it() -> None:
    assert app(**{"appc.io/docker/repository": "x"}).from_oci
    assert not app(authors="x").from_oci


def test_a_signal_to_reload_by_is_an_apps_or_all_apps() -> None:

    def signals(*words: str) -> int:
        annotations = behaviour.app_annotations(flags(*words), {}, flags("--reload-signal=HUP"))
        return behaviour.of_app(RuntimeApp("app", IMAGE, annotations=annotations)).reload_signal

    assert app().reload_signal == 0
    assert app("--reload-signal=USR1").reload_signal == signal.SIGUSR1
    assert signals() == signal.SIGHUP
    assert signals("--reload-signal=USR1") == signal.SIGUSR1
    assert signals("--reload-signal=") == 0
    for text in ("KILL", "19", "UP"):
        with pytest.raises(UsageError, match="--reload-signal: "):
            app(f"--reload-signal={text}")


def test_an_image_may_name_its_stop_signal() -> None:
    assert app(**{"appc.io/docker/stopsignal": "SIGRTMIN+3"}).stop_signal == signal.SIGRTMIN + 3
    assert app("--stop-signal=9", **{"appc.io/docker/stopsignal": "SIGRTMIN+3"}).stop_signal == 9
    with pytest.raises(UsageError, match="the image's stop signal"):
        app(**{"appc.io/docker/stopsignal": "nonsense"})


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("sigterm", 15), ("9", 9), ("64", 64), ("RTMAX-1", 63), ("SIGRTMIN+0", 34)],
)
def test_signals(text: str, number: int) -> None:
    assert behaviour.stop_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "99999999999", "SIG", "TERM+1", "RTMIN+31", "RTMIN-1", "RTMIN+x", "²", "-9"]
)
def test_no_signals(text: str) -> None:
    with pytest.raises(UsageError, match="is no signal"):
        behaviour.stop_signal(text)


@pytest.mark.parametrize(
    "word",
    [
        "--restart=always:3", "--restart=on-failure:", "--restart=on-failure:0", "--restart=on-failure:x", "--restart=",
        "--stdin=log", "--stdout=", "--stderr=interactive",
        "--device=", "--device=/", "--device=dev/null", "--device=/dev/null:x", "--device=/dev/null:rr",
        "--device=/dev/null:", "--device=/dev/null:/x:rw:y", "--device=/dev/null:/", "--device=/dev/a\0b",
    ],
)  # fmt: skip
def test_bad_values_of_apps(word: str) -> None:
    with pytest.raises(UsageError):
        app(word)


@pytest.mark.parametrize(
    "word",
    [
        "--pod-name=", "--pod-name=a--b", "--pod-name=-a", "--pod-name=A", "--pod-name=" + "x" * 64,
        "--pod-name=deadbeef", "--pod-name=deadbeef-web",
        "--log-driver=", "--log-driver=none", "--log-driver=syslog",
        "--kvm-accel=", "--kvm-accel=hvf", "--kvm-kernel=", "--kvm-kernel=boot/vmlinuz", "--kvm-kernel=a\nb",
        "--kvm-cpu=", "--kvm-cpu=Haswell,", "--kvm-cpu=+avx x", "--kvm-cpu=a/b", "--kvm-cpu=" + "x" * 1025,
        "--kvm-params=a\nb", "--kvm-params=\N{SNOWMAN}", "--kvm-params=quiet -- x", "--kvm-params=" + "x" * 1025,
        "--exit-policy=", "--stop-timeout=-1s", "--stop-timeout=", "--stop-timeout=99999999999",
    ],
)  # fmt: skip
def test_bad_values_of_pods(word: str) -> None:
    with pytest.raises(RkpyError):
        pod(word)


@pytest.mark.parametrize("name", ["db", "web-1", "deadbeefs", "a" * 63, "0"])
def test_names(name: str) -> None:
    assert pod(f"--pod-name={name}").name == name


@given(
    st.sampled_from(
        [
            *behaviour.STREAMS.values(),
            behaviour.RESTART,
            behaviour.STOP_SIGNAL,
            behaviour.RELOAD_SIGNAL,
            behaviour.DEVICES,
        ]
    ),
    st.text(),
)
def test_annotations_from_anywhere_are_refused_or_understood(name: str, value: str) -> None:
    try:
        found = behaviour.of_app(RuntimeApp("app", IMAGE, annotations=((name, value),)))
    except ManifestError as error:
        assert name in str(error)
    else:
        assert 1 <= found.stop_signal <= 64


@pytest.mark.parametrize("text", ["1", "{}", '{"a": 1}', "[1]", '[["/dev/null"], 3]', '[["x", "y", "z"]]', "[[[]]]"])
def test_bad_device_annotations(text: str) -> None:
    if text == "{}":
        assert behaviour.of_app(RuntimeApp("app", IMAGE, annotations=((behaviour.DEVICES, text),))).devices == ()
        return
    with pytest.raises(ManifestError):
        behaviour.of_app(RuntimeApp("app", IMAGE, annotations=((behaviour.DEVICES, text),)))


def test_the_annotations_are_those_of_a_manifest() -> None:
    """A pod manifest with all of them can be written and read."""
    from aci import pod_manifest

    mine = behaviour.app_annotations(flags("--device=/dev/fuse", "--stop-signal=2", "--stdout=tty"), {})
    manifest = PodManifest(
        (RuntimeApp("app", IMAGE, annotations=mine),), annotations=behaviour.pod_annotations(flags("--pod-name=x"))
    )
    assert pod_manifest.parse(pod_manifest.dumps(manifest).encode()) == manifest
