"""`rkpy reload`: have the apps of running pods read their files anew."""

from __future__ import annotations

import click

from common.errors import PodError, RkpyError, UsageError
from stage0 import apps, behaviour
from stage0.commands.pod_arguments import uuids
from stage0.config import Config
from stage0.pods import RUN, Pod, Pods, State
from stage1 import flavour


@click.command("reload")
@click.option("--main-pid", metavar="PID", help="the pod of this main process, $MAINPID in a unit's ExecReload=")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(config: Config, uuid: tuple[str, ...], uuid_file: str | None, main_pid: str | None) -> None:
    """Have the apps of a pod read their files anew.

    Each app is sent the signal that --reload-signal of rkpy run gave it, and the pod's service manager is told. This is
    what units have as ExecReload=, with --main-pid=${MAINPID}.
    """
    pods = Pods(config.pods).require_own()
    if main_pid is not None:
        if uuid or uuid_file is not None:
            raise UsageError("--main-pid and a pod UUID cannot be combined")
        uuid = (_of_main_process(pods, main_pid),)
    failures = 0
    for name in uuids(uuid, uuid_file):
        try:
            click.echo(_reload(pods, name))
        except RkpyError as error:
            failures += 1
            click.echo(f"rkpy: reload: {error}", err=True)
    if failures:
        raise PodError(f"failed to reload {failures} pod(s)")


def _reload(pods: Pods, name: str) -> str:
    """The quoted UUID."""
    with apps.find_running(pods, name) as pod:
        signals = behaviour.reload_signals(pod.manifest())
        if not signals:
            hint = "rkpy run --reload-signal gives it one; rkpy kill --signal sends any"
            raise PodError(f'no app of pod "{pod.uuid}" has a signal to reload by', hint=hint)
        reload = getattr(flavour.load(pod.flavour()), "reload", None)
        if reload is not None:
            reload(pod.path)
        else:
            send = apps.operation(pod, "send_signal")
            for app, number in signals.items():
                send(pod.path, app, number)
        return f'"{pod.uuid}"'


def _of_main_process(pods: Pods, text: str) -> str:
    """The UUID of the pod that this process is: its leader, or who looks after that. Raises PodError."""
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f'--main-pid="{text}": not a PID')
    for pod in pods.all((RUN,)):
        with pod:
            if pod.state() is State.RUNNING and _is_main(pod, int(text[:20])):
                return pod.uuid
    raise PodError(f"no pod of this data directory has the main process {text}")


def _is_main(pod: Pod, pid: int) -> bool:
    leader = pod.leader()
    return leader is not None and leader.is_alive() and pid in (leader.pid, _parent(leader.pid))


def _parent(pid: int) -> int:
    """proc_pid_stat(5), field 4; 0 when there is no such process any more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
