"""What each key of a pod file comes to, written down by hand from docs/pod-files.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stage0 import options
from stage0.commands import run
from stage0.podfile import keys
from tests.stage0.podfiles import built, said, words

DOCUMENT = Path(__file__).parents[2] / "docs" / "pod-files.md"
POD = {
    "AddHost=db:10.1.0.2\nAddHost=10.1.0.3=x": ["--hosts-entry=10.1.0.2=db", "--hosts-entry=10.1.0.3=x"],
    "AddHost=v6:fd00::1": ["--hosts-entry=fd00::1=v6"],
    'Annotation=a=b "c=d e"': ["--user-annotation=a=b", "--user-annotation=c=d e"],
    "DNS=9.9.9.9\nDNS=1.1.1.1": ["--dns=9.9.9.9", "--dns=1.1.1.1"],
    "DNSDomain=example.com": ["--dns-domain=example.com"],
    "DNSOption=ndots:1": ["--dns-opt=ndots:1"],
    "DNSSearch=a.b": ["--dns-search=a.b"],
    "Environment=A=1 'B=x y'\nEnvironment=C=$5": ["--set-env=A=1", "--set-env=B=x y", "--set-env=C=$$5"],
    "EnvironmentFile=/etc/default/web": ["--set-env-file=/etc/default/web"],
    "EnvironmentHost=yes": ["--inherit-env=true"],
    "ExitPolicy=until-all": ["--exit-policy=until-all"],
    "HostName=%H.example.com": ["--hostname=%H.example.com"],
    "IPC=parent": ["--ipc=parent"],
    "Label=a=b": ["--user-label=a=b"],
    "LoadCredential=token:/etc/token": ["--load-credential=token:/etc/token"],
    "KvmAccel=tcg": ["--kvm-accel=tcg"],
    "KvmCpu=Haswell,-avx2": ["--kvm-cpu=Haswell,-avx2"],
    "KvmKernel=/boot/vmlinuz": ["--kvm-kernel=/boot/vmlinuz"],
    "KvmParams=loglevel=7 nosmp": ["--kvm-params=loglevel=7 nosmp"],
    "LogDriver=journald": ["--log-driver=journald"],
    "Network=none": ["--net=none"],
    "Network=a\nNetwork=b:IP=10.0.0.9": ["--net=a", "--net=b:IP=10.0.0.9"],
    "NoOverlay=1": ["--no-overlay=true"],
    "PrivateUsers=on": ["--private-users=true"],
    "PublishPort=8080:80\nPublishPort=53:53/udp": ["--port=8080:80", "--port=53:53/udp"],
    "Pull=never": ["--pull-policy=never"],
    "Pull=missing": ["--pull-policy=new"],
    "Pull=always": ["--pull-policy=update"],
    "Pull=newer": ["--pull-policy=update"],
    "Ready=healthy": ["--ready=healthy"],
    "Register=no": ["--register=false"],
    "ReloadSignal=USR1": ["--reload-signal=USR1"],
    "RkpyArgs=--debug --dns=none": ["--debug", "--dns=none"],
    "SetCredential=a:b c": ["--set-credential=a:b c"],
    "Stage1=fly": ["--stage1=fly"],
    "StopTimeout=1m": ["--stop-timeout=1m"],
    "UUIDFile=/run/%N.uuid": ["--uuid-file-save=/run/%N.uuid"],
}  # fmt: skip
VOLUMES = {
    "Volume=/srv:/data": ["--volume=podfile-0,kind=host,source=/srv", "--mount=volume=podfile-0,target=/data"],
    "Volume=/srv:/data:ro,rslave": [
        "--volume=podfile-0,kind=host,source=/srv,readOnly=true,propagation=slave",
        "--mount=volume=podfile-0,target=/data",
    ],
    "Volume=/srv/%i:/data:bind": [
        "--volume=podfile-0,kind=host,source=/srv/%i,recursive=false",
        "--mount=volume=podfile-0,target=/data",
    ],
    "Volume=/data": ["--volume=podfile-0,kind=empty", "--mount=volume=podfile-0,target=/data"],
    "Volume=www,kind=host,source=/srv\nMount=volume=www,target=/d": [
        "--volume=www,kind=host,source=/srv",
        "--mount=volume=www,target=/d",
    ],
    "Mount=type=bind,src=/a,dst=/b,ro": [
        "--volume=podfile-0,kind=host,source=/a,readOnly=true",
        "--mount=volume=podfile-0,target=/b",
    ],
    "Volume=data:/data:copy,rw": [
        "--volume=podfile-0,kind=named,source=data",
        "--mount=volume=podfile-0,target=/data",
    ],
    "Volume=data:/data": [
        "--volume=podfile-0,kind=named,source=data",
        "--mount=volume=podfile-0,target=/data",
    ],
    "Volume=%i_db:/data:ro,uid=5,nocopy": [
        "--volume=podfile-0,kind=named,source=%i_db,readOnly=true,uid=5,copy=false",
        "--mount=volume=podfile-0,target=/data",
    ],
    "Volume=%S:/data": ["--volume=podfile-0,kind=host,source=%S", "--mount=volume=podfile-0,target=/data"],
    "Mount=type=volume,source=data,destination=/b,readonly": [
        "--volume=podfile-0,kind=named,source=data,readOnly=true",
        "--mount=volume=podfile-0,target=/b",
    ],
    "Mount=type=tmpfs,destination=/b,tmpfs-size=1M": [
        "--volume=podfile-0,kind=empty,mode=1777,size=1M",
        "--mount=volume=podfile-0,target=/b",
    ],
    "Tmpfs=/tmp": ["--volume=podfile-0,kind=empty,mode=1777", "--mount=volume=podfile-0,target=/tmp"],
    "Tmpfs=/tmp:mode=700,size=1M": [
        "--volume=podfile-0,kind=empty,mode=700,size=1M",
        "--mount=volume=podfile-0,target=/tmp",
    ],
}
WITHOUT = (
    "CAP_CHOWN,CAP_FOWNER,CAP_FSETID,CAP_KILL,CAP_SETGID,CAP_SETUID,CAP_SETPCAP,CAP_NET_BIND_SERVICE,CAP_SYS_CHROOT,"
    "CAP_SETFCAP"
)
"""The default capabilities that are worth something, but for CAP_DAC_OVERRIDE."""
APP = {
    "AddCapability=net_admin": [f"--caps-retain={WITHOUT.replace('FOWNER', 'DAC_OVERRIDE,CAP_FOWNER')},CAP_NET_ADMIN"],
    "AddCapability=CAP_NET_RAW\nDropCapability=DAC_OVERRIDE": [f"--caps-retain={WITHOUT},CAP_NET_RAW"],
    "DropCapability=CAP_CHOWN CAP_KILL": ["--caps-remove=CAP_CHOWN,CAP_KILL"],
    "AddCapability=KILL\nDropCapability=all": ["--caps-retain=CAP_KILL"],
    "AddDevice=/dev/fuse": ["--device=/dev/fuse"],
    "AppName=x": ["--name=x"],
    "CapsRetain=CAP_KILL CAP_CHOWN": ["--caps-retain=CAP_KILL", "--caps-retain=CAP_CHOWN"],
    "CapsRemove=CAP_KILL": ["--caps-remove=CAP_KILL"],
    "CapsAmbient=CAP_KILL": ["--caps-ambient=CAP_KILL"],
    "CPU=0.5": ["--cpu=0.5"],
    "CPUShares=512": ["--cpu-shares=512"],
    "Entrypoint=/bin/sh": ["--exec=/bin/sh"],
    'Entrypoint=["sh", "-c"]\nExec="echo $$HOME" $X': ["--exec=sh", "--", "-c", "echo $$HOME", "$X"],
    r"Exec=a 'b c' \x41 ${X} 100%%": ["--", "a", "b c", "A", "${X}", "100%%"],
    "Group=10": ["--group=10"],
    "GroupAdd=10,11\nGroupAdd=12": ["--supplementary-gids=10,11", "--supplementary-gids=12"],
    "HealthCmd=true || false": ["--health-cmd=true || false"],
    "HealthInterval=2m": ["--health-interval=2m"],
    "HealthOnFailure=kill": ["--health-on-failure=kill"],
    "HealthRetries=5": ["--health-retries=5"],
    "HealthStartPeriod=1m": ["--health-start-period=1m"],
    "HealthTimeout=20s": ["--health-timeout=20s"],
    "Memory=1G": ["--memory=1G"],
    "NoNewPrivileges=true": ["--no-new-privileges=true"],
    "OOMScoreAdjust=100": ["--oom-score-adj=100"],
    "PidsLimit=10": ["--pids-limit=10"],
    "ReadOnly=yes": ["--readonly-rootfs=true"],
    "Restart=on-failure:3": ["--restart=on-failure:3"],
    "Seccomp=mode=remove,kill": ["--seccomp=mode=remove,kill"],
    "Signature=/x.asc": ["--signature=/x.asc"],
    "Stderr=null": ["--stderr=null"],
    "Stdin=stream": ["--stdin=stream"],
    "Stdout=tty": ["--stdout=tty"],
    "StopSignal=INT": ["--stop-signal=INT"],
    "Ulimit=nofile=10:20\nUlimit=nproc=5": ["--ulimit=nofile=10:20", "--ulimit=nproc=5"],
    "User=web": ["--user=web"],
    "WorkingDir=/srv": ["--working-dir=/srv"],
}  # fmt: skip


@pytest.mark.parametrize("text", [*POD, *VOLUMES])
def test_keys_of_the_pod(text: str) -> None:
    assert words(f"[Pod]\nImage=i\n{text}\n") == ["--pod-name=web", *{**POD, **VOLUMES}[text], "i"]


@pytest.mark.parametrize("text", APP)
def test_keys_of_the_app(text: str) -> None:
    assert words(f"[Pod]\nImage=i\n{text}\n") == ["--pod-name=web", "i", *APP[text]]
    assert words(f"[Pod]\n[App]\nImage=i\n{text}\n") == ["--pod-name=web", "i", *APP[text]]


@pytest.mark.parametrize("text", VOLUMES)
def test_volumes_of_one_app(text: str) -> None:
    volume, mount = VOLUMES[text]
    assert words(f"[App]\nImage=i\n{text}\n") == ["--pod-name=web", volume, "i", mount]


def table(text: str) -> list[tuple[str, str]]:
    """Each key with its last column, as plain text."""
    plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text.replace("`", "").replace("\\|", "\0"))
    rows = [line.strip("| ").split("|") for line in plain.splitlines() if "=" in line.partition(" |")[0]]
    return [(row[0].strip(" ="), row[-1].strip().replace("\0", "|")) for row in rows]


def expected(known: dict[str, keys.Key]) -> list[tuple[str, str]]:
    """The same as the table of keys has it, in the order of the alphabet."""
    kinds = {keys.ONE: "once", keys.EACH: "repeated", keys.WORDS: "words", keys.SWITCH: "yes or no"}
    rows = []
    for name in sorted(known, key=str.casefold):
        key = known[name]
        rows.append((name, ". ".join(filter(None, (kinds[key.kind], key.about[:1].upper() + key.about[1:])))))
    return rows


def test_every_key_has_an_example_here_and_a_line_in_the_document() -> None:
    elsewhere = {"GlobalArgs", "PodManifest", "PodName", "Notify", "Image", "RkpyArgs"}
    shown = {line.partition("=")[0] for text in (*POD, *VOLUMES, *APP) for line in text.splitlines()}
    assert {*keys.POD, *keys.APP} <= shown | elsewhere
    tables = DOCUMENT.read_text().partition("## Keys of [Pod]")[2].partition("## For those")[0]
    told = set(re.findall(r"^\| `(\w+)=`", tables, re.MULTILINE))
    assert told == {*keys.POD, *keys.APP}
    of_pod, of_app = tables.split("## Keys of [App]")
    assert (table(of_pod), table(of_app)) == (expected(keys.POD), expected(keys.APP))
    for key in keys.SWAPPED:
        assert f"| `{key}=` |" not in DOCUMENT.read_text()
        assert f"| `{key}` |" in DOCUMENT.read_text()


def test_every_flag_has_a_key() -> None:
    """Flags of `rkpy run` that a file says in another way, or that make no sense for a service."""
    other = {
        "stage1-name", "store-only", "no-store", "pod-file", "volume", "mount", "interactive", "exec", "annotation",
        "detach", "keep-unit", "no-healthcheck",
    }  # fmt: skip
    known = {key.flag for key in (*keys.POD.values(), *keys.APP.values())}
    assert run.FLAGS["run"].keys() - known - other == set()


def test_every_key_has_a_flag() -> None:
    known = {key.flag for key in (*keys.POD.values(), *keys.APP.values())} - {""}
    assert known - run.FLAGS["run"].keys() == set()


@pytest.mark.parametrize("name", [*keys.POD, *keys.APP])
def test_an_empty_value_takes_back(name: str) -> None:
    of_kind = {"Image": "i", "Volume": "/x", "Mount": "type=tmpfs,dst=/x", "Tmpfs": "/x"}
    value = of_kind.get(name, "--debug" if name in ("GlobalArgs", "RkpyArgs") else "yes")
    assert words(f"[Pod]\n{name}={value}\n{name}=\nImage=other\n") == ["--pod-name=web", "other"]


def test_the_last_value_counts_and_lists_add_up() -> None:
    text = "[Pod]\nImage=i\nMemory=1G\nMemory=2G\nDNS=1.1.1.1\nDNS=\nDNS=9.9.9.9\n[Pod]\nDNS=8.8.8.8\n"
    assert words(text) == ["--pod-name=web", "--dns=9.9.9.9", "--dns=8.8.8.8", "i", "--memory=2G"]


def test_several_apps() -> None:
    text = """
[Pod]
Volume=/srv:/srv
Environment=A=1

[App front]
Image=one
Exec=serve --port=80
Environment=B=2
ReloadSignal=HUP
Volume=/run/x:/x

[App back]
Image=two
Memory=1G
Exec=work

[App]
Image=three
"""
    assert words(text) == [
        "--pod-name=web", "--set-env=A=1",
        "--volume=podfile-0,kind=host,source=/srv", "--volume=podfile-1,kind=host,source=/run/x",
        "--mount=volume=podfile-0,target=/srv",
        "one", "--name=front", "--environment=B=2", "--reload-signal=HUP", "--mount=volume=podfile-1,target=/x",
        "--", "serve", "--port=80", "---",
        "two", "--name=back", "--memory=1G", "--", "work", "---",
        "three",
    ]  # fmt: skip
    assert built(text).sources == ("/srv", "/run/x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("web", "web"), ("My_web.site", "my-web-site"), ("web@", "web-%i"), ("web@1", "web-1"), ("a@B_c", "a-b-c")],
)
def test_the_pod_is_called_as_its_file(name: str, expected: str) -> None:
    assert built("[Pod]\nImage=i\n", name).name == expected


def test_another_name() -> None:
    assert words("[Pod]\nPodName=other-%i\nImage=i\n", "web@") == ["--pod-name=other-%i", "i"]
    assert said("[Pod]\nImage=i\n", "__") == [
        'web.pod: "__" has no letter or digit to make a name of: give one with PodName='.replace(
            "web.pod: ", "__.pod:1: "
        )
    ]


@pytest.mark.parametrize(
    ("text", "pod", "app"),
    [
        (
            "[Pod]\nImage=i\nNotify=yes\n",
            ["--ready=notify"],
            ["--annotation=appc.io/executor/supports-systemd-notify=true"],
        ),
        ("[Pod]\nImage=i\nNotify=no\n", [], []),
        ("[Pod]\nImage=i\nNotify=healthy\n", ["--ready=healthy"], []),
        (
            "[App]\nImage=i\nNotify=yes\n",
            ["--ready=notify"],
            ["--annotation=appc.io/executor/supports-systemd-notify=true"],
        ),
        ("[Pod]\nNotify=yes\n[App]\nImage=i\nNotify=no\n", [], []),
    ],
)
def test_readiness(text: str, pod: list[str], app: list[str]) -> None:
    assert words(text) == ["--pod-name=web", *pod, "i", *app]


def test_a_pod_manifest() -> None:
    assert words("[Pod]\nPodManifest=/x.json\n") == ["--pod-name=web", "--pod-manifest=/x.json"]


def test_words_before_the_verb() -> None:
    pod = built("[Pod]\nImage=i\nGlobalArgs=--debug '--dir=/a b'\n")
    assert [word.text for word in pod.leading] == ["--debug", "--dir=/a b"]


MISTAKES = {
    "[Pod]\n": ["web.pod:1: [Pod] names no image: Image= is missing"],
    "[Service]\n": ["web.pod: [Pod] names no image: Image= is missing"],
    "[App x]\nUser=a\n": ["web.pod:1: [App x] names no image: Image= is missing"],
    "[Pod]\nImage=-x\n": ['web.pod:2: "-x" is no image'],
    "[Pod]\nImage=i\nimage=x\n": ["web.pod:3: there is no key image= in [Pod]: it is written Image="],
    "[Pod]\nImage=i\nPodmanArgs=x\n": ["web.pod:3: there is no key PodmanArgs= in [Pod]: use RkpyArgs="],
    "[Pod]\nImage=i\nMemmory=1G\n": ["web.pod:3: there is no key Memmory= in [Pod]: perhaps Memory= is meant"],
    "[Pod]\nImage=i\nFoo=\n": ["web.pod:3: there is no key Foo= in [Pod]"],
    "[Pod]\nMemory=1\n[App]\nImage=i\n": ["web.pod:2: Memory= is an app's: it stands in [App],"],
    "[App]\nImage=i\nNetwork=none\n": ["web.pod:3: Network= is the pod's: it stands in [Pod]"],
    "[App]\nImage=i\nFoo=1\n": ["web.pod:3: there is no key Foo= in [App]"],
    "[App x]\nImage=i\nAppName=y\n": ["web.pod:3: [App x] says what the app is called"],
    "[Container]\nImage=i\n[Pod]\nImage=i\n": ["web.pod:1: there is no section [Container]: it is written [Pod], or"],
    "[pod]\n[Pod]\nImage=i\n": ["web.pod:1: there is no section [pod]: there is [Pod], [App NAME], [Unit], ..."],
    "[Pod]\nImage=i\nReadOnly=maybe\n": ['web.pod:3: ReadOnly=: "maybe" is neither yes nor no'],
    "[Pod]\nImage=i\nNotify=x\n": ['web.pod:3: Notify=: "x" is neither yes nor no'],
    '[Pod]\nImage=i\nExec="a\n': ['web.pod:3: Exec=: a quote (") is not closed'],
    "[Pod]\nImage=i\nExec=a ; b\n": ["web.pod:3: Exec=: a semicolon between two commands: an app has one"],
    "[Pod]\nImage=i\nExec=a --- b\n": ["web.pod:3: Exec=: an argument cannot be ---"],
    "[Pod]\nImage=i\nExec=%Q\n": ['web.pod:3: there is no specifier "%Q": a percent sign itself is written %%'],
    "[Pod]\nImage=i\nMemory=50%\n": ['web.pod:3: there is no specifier "%": a percent sign itself is written %%'],
    "[Pod]\nImage=i\nEntrypoint=[x]\n": ["web.pod:3: Entrypoint=: neither a path nor a JSON list of strings"],
    "[Pod]\nImage=i\nRkpyArgs=-- x\n": [
        'web.pod:3: RkpyArgs=: "--" is no flag: write --FLAG=VALUE in one word',
        'web.pod:3: RkpyArgs=: "x" is no flag: write --FLAG=VALUE in one word',
    ],
    "[Pod]\nImage=i\nRkpyArgs=--interactive --detach=true\n": [
        "web.pod:3: RkpyArgs=: --interactive: a service has no terminal",
        "web.pod:3: RkpyArgs=: --detach=true: the service is the pod",
    ],
    "[Pod]\nImage=i\nVolume=data\n": ['web.pod:3: Volume=: "data" names no path'],
    "[Pod]\nImage=i\nVolume=data:x\n": ["web.pod:3: Volume=: data:x"],
    "[Pod]\nImage=i\nVolume=a/b:/x\n": ['web.pod:3: Volume=: "a/b" is not an absolute path'],
    "[Pod]\nImage=i\nVolume=data:/x:bind\n": ['web.pod:3: Volume=: "bind" is no option of a named volume'],
    "[Pod]\nImage=i\nMount=type=volume,source=/a,target=/b\n": ['web.pod:3: Mount=: "/a" is not the name of a'],
    "[Pod]\nImage=i\nVolume=/a:/b:z\n": ['web.pod:3: Volume=: "z" is no option of a volume'],
    "[Pod]\nImage=i\nVolume=/a:b\n": ["web.pod:3: Volume=: /a:b"],
    "[Pod]\nImage=i\nVolume=/a,b:/c\n": ['web.pod:3: Volume=: "/a,b" has a comma in it'],
    "[Pod]\nImage=i\nMount=type=x,target=/b\n": ["web.pod:3: Mount=: type=x,target=/b: type has"],
    "[Pod]\nImage=i\nMount=type=bind,source=/b\n": ["web.pod:3: Mount=: destination has to be given once"],
    "[Pod]\nImage=i\nTmpfs=x\n": ['web.pod:3: Tmpfs=: "x" is not an absolute path'],
    "[Pod]\nImage=i\nTmpfs=/x:noexec\n": ['web.pod:3: Tmpfs=: "noexec" is no option here'],
    "[Pod]\nImage=i\nAddCapability=KILL\nCapsRemove=CAP_KILL\n": ["web.pod:3: AddCapability= has no meaning"],
    "[Pod]\nImage=i\n[Socket]\n": ["web.pod:3: [Socket] listens on nothing: ListenStream= is missing"],
    "[Pod]\nImage=i\n[Socket]\nListenStream=1\nListenFIFO=\n": ["web.pod:3: [Socket] listens on nothing"],
    "[Pod]\nImage=i\n[Socket]\nListenFIFO=\nListenFIFO=/x\nAccept=no\nAccept=Yes\n": [
        "web.pod:7: Accept=: a pod gets the socket that listens, not one connection: leave it out"
    ],
    "[Pod]\nImage=i\n[Socket]\nListenStream=1\nService=x\n": ["web.pod:5: Service=: what the socket starts is"],
    "[Pod]\nImage=i\n[Install]\nAlso=x.service\n": ["web.pod:4: a generator cannot enable another unit"],
    "[Pod]\nImage=i\n[Install]\nwantedby=x\n": ["web.pod:4: there is no key wantedby= in [Install]: it is written"],
}  # fmt: skip
"""What the lines that are said begin with."""


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text: str) -> None:
    found = said(text)
    assert len(found) == len(MISTAKES[text]), found
    for line, expected in zip(found, MISTAKES[text], strict=True):
        assert line.startswith(expected)


def test_all_mistakes_at_once() -> None:
    text = "Stray=1\n[Pod]\nFoo=1\nReadOnly=x\nVolume=x\n[Bar]\n[Install]\nAlso=x\n"
    assert [line.split(": ")[0] for line in said(text)] == [
        "web.pod:1",
        "web.pod:2",
        "web.pod:3",
        "web.pod:4",
        "web.pod:5",
        "web.pod:6",
        "web.pod:8",
    ]


def test_what_is_others_is_left_alone() -> None:
    assert words("[Pod]\nImage=i\nX-Mine=1\n[X-Other]\nFoo=1\n") == ["--pod-name=web", "i"]


def test_flags_are_flags() -> None:
    assert options.table(options.GLOBAL).keys().isdisjoint(key.flag for key in keys.POD.values())
