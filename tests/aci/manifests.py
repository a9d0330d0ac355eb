"""Manifests for tests: complete ones, strategies for valid ones, and ways to damage them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from aci.image_manifest import (
    App,
    Dependency,
    EventHandler,
    ImageManifest,
    Isolator,
    MountPoint,
    Port,
)
from aci.pod_manifest import (
    ExposedPort,
    PodManifest,
    RuntimeApp,
    RuntimeImage,
    RuntimeMount,
    Volume,
)
from common import addresses

IMAGE_ID = "sha512-" + "0f" * 64

# Documents in which every field is used

APP: dict[str, Any] = {
    "exec": ["/bin/sh", "-c", "echo <&>"],
    "eventHandlers": [
        {"name": "pre-start", "exec": ["/bin/setup"]},
        {"name": "post-stop", "exec": ["/bin/clean", "x"]},
    ],
    "user": "100",
    "group": "/etc/group",
    "supplementaryGIDs": [1, 2],
    "workingDirectory": "/srv",
    "environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "é\u2028"}],
    "mountPoints": [{"name": "data", "path": "/data"}, {"name": "conf", "path": "/etc/x", "readOnly": True}],
    "ports": [
        {"name": "http", "protocol": "tcp", "port": 80, "count": 1, "socketActivated": False},
        {"name": "rtp", "protocol": "udp", "port": 65000, "count": 536, "socketActivated": True},
    ],
    "isolators": [
        {"name": "resource/memory", "value": {"request": "16Mi", "limit": "1G"}},
        {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_KILL"]}},
        {"name": "example.com/unknown", "value": [{"a": 1.5}, None, "x"]},
    ],
    "userAnnotations": {"any key": "v"},
    "userLabels": {"tier": "web"},
}

IMAGE: dict[str, Any] = {
    "acKind": "ImageManifest",
    "acVersion": "0.8.11",
    "name": "example.com/app",
    "labels": [
        {"name": "version", "value": "1"},
        {"name": "os", "value": "linux"},
        {"name": "arch", "value": "amd64"},
    ],
    "app": APP,
    "annotations": [{"name": "created", "value": "2015-01-01T00:00:00Z"}, {"name": "homepage", "value": "https://a.b"}],
    "dependencies": [
        {"imageName": "example.com/base", "imageID": IMAGE_ID, "labels": [{"name": "os", "value": "linux"}], "size": 7},
        {"imageName": "example.com/other"},
    ],
    "pathWhitelist": ["/bin", "/etc/passwd"],
}

POD: dict[str, Any] = {
    "acVersion": "1.30.0+git-dirty",
    "acKind": "PodManifest",
    "apps": [
        {
            "name": "app",
            "image": {"name": "example.com/app", "id": IMAGE_ID, "labels": [{"name": "version", "value": "1"}]},
            "app": APP,
            "readOnlyRootFS": True,
            "mounts": [
                {"volume": "data", "path": "/data"},
                {"volume": "own", "path": "/own", "appVolume": {"name": "own", "kind": "host", "source": "/srv"}},
            ],
            "annotations": [{"name": "note", "value": "x"}],
        },
        {"name": "bare", "image": {"id": "sha512-0f0f"}},
    ],
    "volumes": [
        {"name": "data", "kind": "empty", "mode": "0700", "uid": 1, "gid": 2, "size": 4096},
        {
            "name": "host",
            "kind": "host",
            "source": "/srv",
            "readOnly": True,
            "recursive": False,
            "propagation": "slave",
        },
    ],
    "isolators": [{"name": "resource/cpu", "value": {"limit": "500m"}}],
    "annotations": [{"name": "authors", "value": "someone"}],
    "ports": [
        {"name": "http", "hostPort": 8080},
        {
            "name": "rtp",
            "hostPort": 5000,
            "hostIP": "127.0.0.1",
            "podPort": {"name": "rtp", "protocol": "udp", "port": 5, "count": 1, "socketActivated": False},
        },
    ],
    "userAnnotations": {"k": "v"},
    "userLabels": {"k": "v"},
}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `document` in which the value at `path` (`app.ports.1.port`) is another one."""
    result = copy.deepcopy(document)
    *steps, last = path.split(".")
    place: Any = result
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    return result


# Valid manifests

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
words = texts.filter(bool)
paths = texts.map("/".__add__)
names = st.from_regex(r"[a-z0-9]{1,4}(-{1,2}[a-z0-9]{1,3})?", fullmatch=True)
identifiers = st.from_regex(r"[a-z0-9]{1,4}([-._~/]{1,2}[a-z0-9]{1,3}){0,2}", fullmatch=True)
ids = st.from_regex(r"sha512-[0-9a-f]{2,128}", fullmatch=True)
owners = st.integers(0, 2**32 - 2)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def tuples(items: st.SearchStrategy[Any], unique_by: Any = None) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=3, unique_by=unique_by).map(tuple)


def first(pair: tuple[str, Any]) -> str:
    return pair[0]


pairs = tuples(st.tuples(texts, texts), first)
environment = tuples(st.tuples(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,5}", fullmatch=True), texts), first)
labels = tuples(st.tuples(identifiers.filter(lambda name: name not in ("name", "os", "arch")), texts), first)
annotation_pairs = tuples(st.tuples(identifiers.map("x-".__add__), texts), first)
known_isolators = st.sampled_from(
    [
        Isolator("os/linux/no-new-privileges", True),
        Isolator("os/linux/no-new-privileges", False),
        Isolator("os/linux/oom-score-adj", 0),
        Isolator("os/linux/seccomp-remove-set", {"set": ["@appc.io/empty", "kexec_load"], "errno": "EPERM"}),
        Isolator("resource/cpu", {"limit": "500m"}),
    ]
)
isolators = tuples(known_isolators | st.builds(Isolator, identifiers.map("x-".__add__), json_values), first)
ports = st.builds(
    lambda name, protocol, port, span, activated: Port(name, protocol, port, min(span, 65536 - port), activated),
    names,
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.booleans(),
)
handlers = st.builds(
    EventHandler,
    st.sampled_from(["pre-start", "post-stop"]),
    st.tuples(words).flatmap(lambda program: tuples(texts).map(lambda arguments: program + arguments)),
)
apps = st.builds(
    App,
    exec=st.just(()) | handlers.map(lambda handler: handler.exec),
    user=words,
    group=words,
    supplementary_gids=tuples(owners),
    event_handlers=tuples(handlers, first),
    working_directory=st.just("") | paths,
    environment=environment,
    isolators=isolators,
    mount_points=tuples(st.builds(MountPoint, names, paths, st.booleans()), first),
    ports=tuples(ports, first),
    user_annotations=pairs,
    user_labels=pairs,
)
images = st.builds(
    ImageManifest,
    name=identifiers,
    ac_version=st.sampled_from(["0.8.11", "0.1.0-rc+x"]),
    labels=labels,
    app=st.none() | apps,
    dependencies=tuples(
        st.builds(Dependency, identifiers, st.just("") | ids, labels, st.integers(0, 2**63 - 1)),
    ),
    path_whitelist=tuples(paths),
    annotations=annotation_pairs,
)
volumes = st.builds(
    lambda name, source, read_only, recursive, propagation: Volume(
        name, "host", source, read_only, recursive, propagation=propagation
    ),
    names,
    paths,
    st.booleans(),
    st.none() | st.booleans(),
    st.sampled_from(["", "private", "slave", "shared"]),
) | st.builds(
    lambda name, read_only, mode, uid, gid, size: Volume(name, "empty", "", read_only, None, mode, uid, gid, size),
    names,
    st.booleans(),
    st.from_regex("[0-7]{1,4}", fullmatch=True),
    owners,
    owners,
    st.integers(0, 2**63 - 1),
)
mounts = volumes.flatmap(lambda volume: st.builds(RuntimeMount, names, paths, st.just(volume)))
runtime_apps = st.builds(
    RuntimeApp,
    name=names,
    image=st.builds(RuntimeImage, ids, st.just("") | identifiers, labels),
    app=st.none() | apps,
    read_only_rootfs=st.booleans(),
    mounts=tuples(mounts),
    annotations=annotation_pairs,
)
pods = st.builds(
    PodManifest,
    apps=tuples(runtime_apps, first),
    ac_version=st.sampled_from(["0.8.11", "1.30.0+git-dirty"]),
    volumes=tuples(volumes, first),
    isolators=isolators,
    annotations=annotation_pairs,
    ports=tuples(
        st.builds(
            ExposedPort,
            names,
            st.integers(1, 65535),
            st.just("") | st.ip_addresses().map(str).map(addresses.canonical),
            st.none() | ports,
        )
    ),
    user_annotations=pairs,
    user_labels=pairs,
)

# Anything but valid

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "value", "set", "exec", "Name"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


@st.composite
def damaged(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """`document` with one to three values replaced, removed or renamed."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place = _places(result)
        if not place:
            break
        container, key = draw(st.sampled_from(place))
        if draw(st.booleans()):
            container[key] = draw(anything)
        else:
            del container[key]
    return result
