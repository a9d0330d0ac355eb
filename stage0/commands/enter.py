"""`rkpy enter`: run a command in a running pod."""

from __future__ import annotations

import time
from typing import NoReturn

import click

from aci.store import Store
from common.errors import PodError, UsageError
from stage0 import apps, awaiting, flags, prepare, servicemanager
from stage0.commands.pod_arguments import app_name
from stage0.config import Config
from stage0.pods import RUN, Pod, Pods, State
from stage1 import flavour as flavours
from stage1.flavour import EnterRequest, PreparedApp


@click.command("enter", context_settings={"allow_interspersed_args": False})
@click.option("--app", default="", metavar="NAME", help="app to enter; needed when the pod has more than one")
@click.option("--user", default="", metavar="USER[:GROUP]", help="run as this user instead of the app's")
@click.option("--cwd", default="", metavar="DIR", help="working directory instead of the app's")
@flags.switch("--privileged", "run as root, without the app's restrictions")
@click.argument("uuid")
@click.argument("words", metavar="[CMD [ARGS]...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(config: Config, app: str, user: str, cwd: str, privileged: bool, uuid: str, words: tuple[str, ...]) -> None:
    """Enter the namespaces of an app within a rkpy pod and run CMD there (default: a shell).

    The command gets the app's user, environment and working directory; its exit status is rkpy's."""
    run(config, uuid, app, words, user=user, cwd=cwd, privileged=privileged)


def run(
    config: Config,
    uuid: str,
    app: str,
    words: tuple[str, ...],
    *,
    user: str = "",
    cwd: str = "",
    privileged: bool = False,
) -> NoReturn:
    """Become the command `words` beside the app `app` of a running pod."""
    if cwd and not cwd.startswith("/"):
        raise UsageError(f"--cwd={cwd}: it has to be an absolute path")
    if user and privileged:
        raise UsageError("--user and --privileged exclude each other")
    pods = Pods(config.pods).require_own()
    pod = awaiting.start(pods, _find(pods, uuid))
    _wait_until_started(pod, app)
    apps.join(pod)
    servicemanager.come_near(pod)
    prepared = prepare.load(pod, Store(config.store))
    command = words[1:] if words[:1] == ("--",) else words
    flavour = flavours.load(pod.flavour() or "")
    flavour.enter(EnterRequest(pod.path, choose(prepared.apps, app), command, user, cwd, privileged))


def _find(pods: Pods, uuid: str) -> Pod:
    try:
        return pods.find(uuid)
    except PodError as error:
        raise PodError(f"problem retrieving pod: {error.message}", hint=error.hint) from error


def _wait_until_started(pod: Pod, app: str) -> None:
    """A pod's apps may be started long after it has a leader: when a machine has booted, when there are networks.
    PodError when it does not run."""
    while pod.directory == RUN and pod.state() is State.RUNNING:
        if pod.is_ready() or _has_been_started(pod, app):
            return
        time.sleep(0.02)
    raise PodError(f'pod "{pod.uuid}" isn\'t currently running')


def _has_been_started(pod: Pod, app: str) -> bool:
    """Or could not be. To be ready may take the pod much longer, when apps have to say so or to be healthy."""
    name = app_name([one.name for one in pod.manifest().apps], app)
    return pod.app_started_at(name) is not None or pod.exit_status(name) is not None


def choose(apps: tuple[PreparedApp, ...], name: str) -> PreparedApp:
    """The app called `name`; without a name, the only one. Raises UsageError."""
    known = {app.name: app for app in apps}
    return known[app_name(tuple(known), name)]
