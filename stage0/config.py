"""Global flags and configuration directories (`paths.d`, `stage1.d`), resolved once per command.

Directories, lowest priority first: system (/usr/lib/rkpy), local (/etc/rkpy), user (--user-config; who is not root
need not say it: `stage0.caller`). Every file is a JSON object with `rktKind` and `rktVersion`, as rkt's are, and has to
end in `.json`. A later directory wins; two files of one directory that speak of the same thing are an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from common.errors import ConfigError, RkpyError, UsageError, reason
from common.records import NamedTuple
from stage0 import caller
from stage0.options import Values
from stage1.vm.machine import MachineOptions

DATA_DIR = "/var/lib/rkpy"
SYSTEM_CONFIG = "/usr/lib/rkpy"
LOCAL_CONFIG = "/etc/rkpy"

ALL_FETCH = frozenset({"image", "tls", "http", "pubkey"})
ALL_RUN = frozenset({"capabilities", "paths", "seccomp"})
CNI_PLUGINS = "cni-plugins"
KVM = "kvm"
INSECURE_OPTIONS = {
    "none": frozenset[str](),
    **{name: frozenset({name}) for name in (*sorted(ALL_FETCH | ALL_RUN), "ondisk")},
    "all-fetch": ALL_FETCH,
    "all-run": ALL_RUN,
    "all": ALL_FETCH | ALL_RUN | {"ondisk"},
}
_KINDS = {"paths": "paths.d", "stage1": "stage1.d", "auth": "auth.d", "dockerAuth": "auth.d"}


class Config(NamedTuple):
    """What the global flags and the `paths` and `stage1` configuration files come to."""

    data_dir: str = DATA_DIR
    system_config: str = SYSTEM_CONFIG
    local_config: str = LOCAL_CONFIG
    user_config: str = ""
    debug: bool = False
    insecure: frozenset[str] = frozenset()
    """Names of the security features that are off: image, tls, http, pubkey, capabilities, paths, seccomp, ondisk."""
    trust_keys_from_https: bool = False
    stage1: str = ""
    """Flavour named by stage1.d; empty when nothing is configured."""
    cni_plugins: tuple[str, ...] = ()
    """Directories with CNI plugins that stand in for the built-in ones."""
    machine: MachineOptions = MachineOptions()
    """What stage1.d says of virtual machines."""

    @property
    def store(self) -> str:
        return f"{self.data_dir}/cas"

    @property
    def pods(self) -> str:
        return f"{self.data_dir}/pods"

    @property
    def directories(self) -> tuple[str, ...]:
        """The configuration directories, lowest priority first."""
        return tuple(filter(None, (self.system_config, self.local_config, self.user_config)))

    @property
    def own_config(self) -> str:
        """The configuration directory that is the caller's to write to."""
        return self.user_config if caller.is_ordinary() else self.local_config


def places(flags: Values) -> Config:
    """What the flags alone say, whatever is in the directories. Raises UsageError."""
    own = caller.directories(os.environ) if caller.is_ordinary() else None
    return Config(
        data_dir=own.data if own else DATA_DIR,
        system_config=_absolute(flags, "system-config", SYSTEM_CONFIG),
        local_config=_absolute(flags, "local-config", LOCAL_CONFIG),
        user_config=_absolute(flags, "user-config", own.config if own else ""),
        debug=flags.boolean("debug"),
        insecure=insecure_options(flags.get("insecure-options") or "none"),
        trust_keys_from_https=flags.boolean("trust-keys-from-https"),
    )


def load(flags: Values) -> Config:
    """The configuration of one command. Raises ConfigError or UsageError."""
    config = places(flags)
    paths, stage1 = paths_in_force(config), effective(config, "stage1")
    data_dir = _absolute(flags, "dir", "") or _field(paths, "data") or config.data_dir
    if caller.is_ordinary():
        from common import ownership  # which the generator is quicker without

        ownership.look(data_dir)
    plugins = tuple(paths.get(CNI_PLUGINS) or ())
    machine = _machine(stage1[KVM]) if KVM in stage1 else MachineOptions()
    return config._replace(data_dir=data_dir, stage1=_field(stage1, "name"), cni_plugins=plugins, machine=machine)


def insecure_options(text: str) -> frozenset[str]:
    """The features `--insecure-options=TEXT` switches off. Raises UsageError."""
    features: frozenset[str] = frozenset()
    for word in text.split(","):
        if word not in INSECURE_OPTIONS:
            raise UsageError(
                f'invalid value "{word}" for --insecure-options', hint=f"known: {', '.join(INSECURE_OPTIONS)}"
            )
        features |= INSECURE_OPTIONS[word]
    return features


def _absolute(flags: Values, name: str, default: str) -> str:
    value = flags.get(name)
    if value is None:
        return default
    if not value:
        raise UsageError(f"--{name} cannot be empty")
    return os.path.realpath(value) if name == "dir" else os.path.abspath(value)


def effective(config: Config, kind: str) -> dict[str, Any]:
    """The document of `kind` ("paths" or "stage1") that wins, or an empty one. Raises ConfigError."""
    found: dict[str, Any] = {}
    for directory in config.directories:
        documents = [
            (path, document) for path, document in read(directory, _KINDS[kind]) if document["rktKind"] == kind
        ]
        if len(documents) > 1:
            raise ConfigError(f"{documents[1][0]}: a second file of kind {kind}; {documents[0][0]} is one already")
        for path, document in documents:
            _check(path, document)
            if KVM in document:
                document[KVM] = {**found.get(KVM, {}), **document[KVM]}
            found = {**found, **document}
    return found


def paths_in_force(config: Config) -> dict[str, Any]:
    """The document of kind "paths" that wins. What the system's directories say of root's data is nothing to others.
    Raises ConfigError."""
    found = effective(config, "paths")
    if not caller.is_ordinary():
        return found
    own = effective(config._replace(system_config="", local_config=""), "paths")
    return {**found, "data": _field(own, "data")}


def read(directory: str, subdirectory: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document below `directory`/`subdirectory`, in the order of file names. Credentials that the caller may not
    read are not meant for him, and passed over. Raises ConfigError."""
    folder = f"{directory}/{subdirectory}"
    others = subdirectory == _KINDS["auth"] and caller.is_ordinary()
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if others and isinstance(error, PermissionError):
            return
        raise ConfigError(f"open {folder}: {reason(error)}", hint=_stray_home(folder, error)) from error
    for name in names:
        path = f"{folder}/{name}"
        if name.endswith(".json") and os.path.isfile(path) and (not others or os.access(path, os.R_OK)):
            yield path, _document(path, subdirectory)


def _stray_home(path: str, error: OSError) -> str:
    """Who became another user need not have got his environment: runuser(1) leaves it alone."""
    home = os.environ.get("HOME", "")
    stray = caller.is_ordinary() and isinstance(error, PermissionError) and home and path.startswith(f"{home}/")
    return f"HOME is {home}, is that yours?" if stray else ""


def _document(path: str, subdirectory: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable JSON document: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object")
    kind, version = document.get("rktKind"), document.get("rktVersion")
    if kind not in _KINDS or _KINDS[kind] != subdirectory:
        raise ConfigError(f"{path}: rktKind {json.dumps(kind)} is not known in {subdirectory}")
    if version != "v1":
        raise ConfigError(f"{path}: rktVersion {json.dumps(version)} is not known", hint='it has to be "v1"')
    return document


def _check(path: str, document: dict[str, Any]) -> None:
    for key in ("data", "stage1-images", "name", "version", "location"):
        if not isinstance(document.get(key, ""), str):
            raise ConfigError(f"{path}: {key} has to be a string")
    for key in ("data", "stage1-images"):
        if document.get(key) and not os.path.isabs(document[key]):
            raise ConfigError(f"{path}: {key} has to be an absolute path")
    plugins = document.get(CNI_PLUGINS) or []
    if not isinstance(plugins, list) or not all(isinstance(item, str) and os.path.isabs(item) for item in plugins):
        raise ConfigError(f"{path}: {CNI_PLUGINS} has to be a list of absolute paths")
    if document["rktKind"] == "stage1" and bool(document.get("version")) and not document.get("name"):
        raise ConfigError(f"{path}: version is given without a name")
    if KVM in document:
        try:
            _machine(document[KVM])
        except UsageError as error:
            raise ConfigError(f"{path}: {KVM}: {error.message}", hint=error.hint) from error


def _machine(found: object) -> MachineOptions:
    """The object `kvm` of a document of stage1.d. Raises UsageError."""
    from aci.types import quantity
    from stage0 import behaviour

    parsers: dict[str, Callable[[str], Any]] = {
        "acceleration": behaviour.acceleration,
        "kernel": behaviour.kernel,
        "parameters": behaviour.parameters,
        "memory": quantity,
        "cpu": behaviour.processor,
    }
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UsageError("it has to be an object of strings")
    options = {}
    for key, text in found.items():
        if key not in parsers:
            raise UsageError(f"{key} is not known")
        try:
            options[key] = parsers[key](text) if text else MachineOptions._field_defaults[key]
        except RkpyError as error:
            raise UsageError(f"{key}: {error.message.rpartition(': ')[2]}", hint=error.hint) from error
    return MachineOptions(**options)


def _field(document: dict[str, Any], key: str) -> str:
    value: str = document.get(key) or ""
    return value
