"""Networks as CNI spec 1.0.0, section 3 has them: the plugins of a list one after the other, forth and back.

A plugin is a module here (`plugin.BUILTIN`) or a program (`programs`), and neither notices. What differs with the
version of the configuration: results (`results`), CHECK and the result at DEL, which programs know since 0.4.0.

CNI_ARGS of programs begins with IgnoreUnknown=1 unless the user said something of it: what is typed behind a network's
name goes to every plugin of the list, and those that are not meant would refuse it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from common.errors import NetworkError, RkpyError, located
from common.records import NamedTuple
from stage1.network import capabilities, netns, programs, results
from stage1.network.capabilities import publisher as publisher
from stage1.network.capabilities import runtime as runtime
from stage1.network.plan import Network, NetworkPlan
from stage1.network.plugin import BUILTIN, Call
from stage1.network.record import Attachment, Element, Record

IPAM = ("host-local",)
"""Those of `BUILTIN` that give addresses to the others."""
_ARGUMENTS = ("IP", "MAC")
"""CNI_ARGS that plugins of `BUILTIN` know."""
_WORDS = {"ADD": "add", "DEL": "delete", "CHECK": "check"}


class _Chain(NamedTuple):
    """A configuration list in use."""

    call: Call
    """What is the same for every plugin."""
    name: str
    version: str
    checked: bool
    plugins: list[dict[str, Any]]
    runtime: dict[str, Any]


def add(
    plan: NetworkPlan, network: Network, path: str, runtime: dict[str, Any]
) -> tuple[dict[str, Any], list[Element]]:
    """Attach the pod, whose network namespace is at `path`: the last plugin's result and what the firewall is to have.
    NetworkError when a plugin fails, and then the network is as it was."""
    call = Call(plan.uuid, path, network.interface, dict(network.args), {}, plan.plugin_path, plan.system_plugin_path,
                [], plan.names.pod_name or plan.uuid)  # fmt: skip
    chain = _chain(call, network.name, network.conf, runtime)
    _require_known_arguments(chain, [path for plugin in chain.plugins for path in _ways(chain.name, plugin, call)])
    result: dict[str, Any] | None = None
    try:
        for plugin in chain.plugins:
            result = _do("ADD", chain, plugin, result)
    except BaseException:
        _delete(chain, None)
        raise
    return result or results.empty(), call.elements


def delete(record: Record, attachment: Attachment, path: str) -> list[str]:
    """Take it back, from the last plugin to the first and whatever fails; what did. The namespace may be gone."""
    try:
        chain = _recorded(record, attachment, path if netns.is_alive(path) else "")
    except NetworkError as error:
        return [str(error)]
    return _delete(chain, _result(attachment))


def check(record: Record, attachment: Attachment, path: str) -> None:
    """NetworkError when a plugin misses something of what it did. Where the namespace is pinned that is its path, for
    programs compare it with that of their result."""
    chain = _recorded(record, attachment, record.netns if netns.is_alive(record.netns) else path)
    result = _result(attachment)
    if result is None:
        raise NetworkError(f"network {chain.name}: nothing is known of what was done")
    for plugin in chain.plugins if chain.checked else ():
        _do("CHECK", chain, plugin, result)


def ipam(call: Call, command: str) -> dict[str, Any]:
    """What the `ipam` of a built-in plugin's configuration says to `command`, for ADD a result. Nothing where there is
    none: then the network is one of the second layer only."""
    conf = _ipam(call.conf)
    if not conf:
        return {}
    kind = _kind(conf.get("type"))
    about = f"IPAM plugin {kind}"
    return _dispatch(command, call, kind, _program(kind, IPAM, call), about)


def uses_programs(plan: NetworkPlan) -> bool:
    """Whether the pod's network namespace needs a path that others can open. NetworkError for a plugin that is not
    there."""
    for network in plan.networks:
        call = Call(plan.uuid, "", network.interface, {}, {}, plan.plugin_path, plan.system_plugin_path, [])
        chain = _chain(call, network.name, network.conf, {})
        if any(path for plugin in chain.plugins for path in _ways(chain.name, plugin, call)):
            return True
    return False


def _chain(call: Call, name: str, text: str, runtime: dict[str, Any]) -> _Chain:
    try:
        conf = json.loads(text)
        plugins = conf["plugins"]
        if not plugins or not all(isinstance(plugin, dict) for plugin in plugins):
            raise ValueError("it has no plugins")
        checked = conf.get("disableCheck") not in (True, "true")
        return _Chain(call, name, results.version_of(conf), checked, plugins, runtime)
    except NetworkError as error:
        raise NetworkError(f"network {name}: {error.message}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NetworkError(f"network {name}: the configuration makes no sense: {error}") from None


def _recorded(record: Record, attachment: Attachment, path: str) -> _Chain:
    try:
        runtime = json.loads(attachment.runtime)
    except ValueError:
        runtime = {}
    call = Call(record.uuid, path, attachment.interface, dict(attachment.args), {}, record.plugin_path,
                record.system_plugin_path, [], record.uuid)  # fmt: skip
    return _chain(call, attachment.network, attachment.conf, runtime if isinstance(runtime, dict) else {})


def _result(attachment: Attachment) -> dict[str, Any] | None:
    """None when it was not attached yet, or nobody knows any more."""
    try:
        return results.parse(json.loads(attachment.result), results.LATEST) if attachment.result else None
    except (ValueError, NetworkError):
        return None


def _delete(chain: _Chain, result: dict[str, Any] | None) -> list[str]:
    problems = []
    for plugin in reversed(chain.plugins):
        try:
            _do("DEL", chain, plugin, result)
        except RkpyError as error:
            problems.append(str(error))
        except Exception as error:  # the others are to have their turn
            problems.append(f"network {chain.name}: plugin {plugin.get('type')}: {type(error).__name__}: {error}")
    return problems


def _do(command: str, chain: _Chain, plugin: dict[str, Any], previous: dict[str, Any] | None) -> dict[str, Any]:
    about = f"network {chain.name}"
    try:
        kind = _kind(plugin.get("type"))
        about = f"{about}: plugin {kind}"
        call = chain.call._replace(conf=_conf(chain, plugin, previous))
        return _dispatch(command, call, kind, _program(kind, BUILTIN, call), about)
    except RkpyError as error:
        message = error.message.removeprefix(f"{about}: ").removeprefix(f"network {chain.name}: ")
        raise NetworkError(f"{about}: {message}", hint=error.hint) from error
    except OSError as error:
        raise NetworkError(f"{about}: {located(error)}") from error


def _conf(chain: _Chain, plugin: dict[str, Any], previous: dict[str, Any] | None) -> dict[str, Any]:
    """The execution configuration (section 3): what the plugin's own has and the runtime adds or takes away."""
    offered = capabilities.for_plugin(plugin, chain.runtime)
    own = {name: value for name, value in plugin.items() if name not in ("capabilities", "prevResult")}
    return {
        **own,
        "name": chain.name,
        "cniVersion": chain.version,
        **({"runtimeConfig": offered} if offered else {}),
        **({"prevResult": previous} if previous is not None else {}),
    }


def _dispatch(command: str, call: Call, kind: str, path: str, about: str) -> dict[str, Any]:
    """By the program at `path`, or the module if there is none."""
    if path:
        return _execute(command, call, path, about)
    module = importlib.import_module(f"stage1.network.{BUILTIN[kind]}")
    answer = getattr(module, _WORDS[command])(call)
    return results.parse(answer, results.LATEST) if command == "ADD" else {}


def _execute(command: str, call: Call, path: str, about: str) -> dict[str, Any]:
    version = results.version_of(call.conf)
    if command == "CHECK" and not results.at_least(version, "0.4.0"):
        return {}
    conf = dict(call.conf)
    previous = conf.pop("prevResult", None)
    if previous is not None and (command != "DEL" or results.at_least(version, "0.4.0")):
        conf["prevResult"] = results.emit(previous, version)
    parameters = {
        "COMMAND": command,
        "CONTAINERID": call.container,
        "NETNS": call.netns,
        "IFNAME": call.interface,
        "ARGS": _arguments(call),
        "PATH": ":".join((*call.plugin_path, *call.system_plugin_path)),
    }
    document = programs.call(about, path, parameters, conf)
    try:
        return results.parse(document, version) if command == "ADD" else {}
    except NetworkError as error:
        raise NetworkError(f"{about}: {error.message}") from None


def _arguments(call: Call) -> str:
    """CNI_ARGS. Its IP can only be one; when there are more, a plugin that is capable of `ips` has them from there."""
    args = call.args
    if "," in args.get("IP", "") and "ips" in call.conf.get("runtimeConfig", {}):
        args = {name: value for name, value in args.items() if name != "IP"}
    return ";".join(f"{name}={value}" for name, value in {"IgnoreUnknown": "1", **args}.items()) if args else ""


def _require_known_arguments(chain: _Chain, programs: list[str]) -> None:
    """What a program makes of an argument only it can tell. Where there is none, a misspelt one would just be lost."""
    args = chain.call.args
    unknown = [name for name in args if name not in _ARGUMENTS]
    if unknown and "IgnoreUnknown" not in args and not any(programs):
        hint = f"they know {' and '.join(_ARGUMENTS)}"
        raise NetworkError(f'network {chain.name}: no plugin of it knows the argument "{unknown[0]}"', hint=hint)


def _ways(name: str, plugin: dict[str, Any], call: Call) -> Iterator[str]:
    """Paths of the programs it takes to use the plugin, empty for modules: all is there before anything is done."""
    try:
        kind = _kind(plugin.get("type"))
        path = _program(kind, BUILTIN, call)
        yield path
        conf = _ipam(plugin)
        if conf and not path:
            yield _program(_kind(conf.get("type")), IPAM, call)
    except NetworkError as error:
        raise NetworkError(f"network {name}: {error.message}", hint=error.hint) from None


def _ipam(conf: dict[str, Any]) -> dict[str, Any]:
    found = conf.get("ipam") or {}
    if not isinstance(found, dict):
        raise NetworkError("ipam is no object")
    return found


def _program(kind: str, built_in: Any, call: Call) -> str:
    """Its path; empty when the plugin is built in and no directory that was configured has another."""
    directories = call.plugin_path if kind in built_in else (*call.plugin_path, *call.system_plugin_path)
    path = programs.find(kind, directories)
    if not path and kind not in built_in:
        hint = f"looked in {', '.join(directories)}; Debian has plugins in the package containernetworking-plugins"
        raise NetworkError(f"there is no plugin {kind}", hint=hint)
    return path


def _kind(name: Any) -> str:
    """A plugin's type, which is the name of a program in a directory and of nothing else."""
    if not isinstance(name, str) or not name or name.startswith(".") or {"/", "\0"} & set(name):
        raise NetworkError(f"{name!r} is no type of plugin")
    return name
