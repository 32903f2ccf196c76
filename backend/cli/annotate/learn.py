"""The `learn` command: ask for a training of a project, here or by whichever worker takes it."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from backend.processes.running_service import load_settings_of_running
from backend.settings import Settings

POLL_S = 0.5


@click.command()
@click.option("--project", required=True, type=click.IntRange(1), help="Id of the project in Label Studio.")
@click.option("--now", is_flag=True, help="Train in this process instead of asking a worker; needs a queue server too.")
@click.option("--wait", is_flag=True, help="Stay until the round is over.")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--registry", help="Folder or bucket of versions (TRANSFINER_REGISTRY).")
@click.option("--json", "as_json", is_flag=True, help="Print the record of the round as JSON.")
def learn(project: int, now: bool, wait: bool, as_json: bool, **options: Any) -> None:
    """Snapshot, finetune, judge, and promote if better; exit status 3 when the gate refused.

    \b
    Example: transfiner learn --project 12 --wait
    """
    from backend.errors import StartError
    from backend.logs import set_up_logs
    from backend.queue.connection import worker_connection
    from backend.queue.train_queue import COMMAND, TrainQueue
    from backend.versions.resolve import registry_of

    settings = load_settings_of_running(**options)
    set_up_logs(settings)
    if registry_of(settings) is None:
        raise StartError("Learning is off: TRANSFINER_REGISTRY is empty.", "Set it, or give --registry FOLDER.")
    queue = TrainQueue(worker_connection(settings))
    answer = queue.request(str(project), COMMAND)
    click.echo(answer.message, err=True)
    if now:
        _here(settings)
    if now or wait:
        _finish(settings, str(project), answer.run, as_json)
    elif as_json:
        click.echo(json.dumps({"run": answer.run, "is_new": answer.is_new}))


def _here(settings: Settings) -> None:
    """Be a worker of the queue until it is empty."""
    from backend.learning.train_worker import run_train_worker

    run_train_worker(settings, burst=True)


def _finish(settings: Settings, project: str, run_id: str, as_json: bool) -> None:
    from dataclasses import asdict

    from backend.learning import round as runs
    from backend.learning.round import RunStore

    store = RunStore(settings.registry)
    while (run := store.load(project, run_id)) is None or not run.is_over:
        time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps(asdict(run), ensure_ascii=False))
    else:
        click.echo(f"{run.id}: {run.state} {run.candidate}".rstrip())
        for line in (*run.reasons, run.order, run.error, run.hint, run.note):
            click.echo(f"  {line}" if line else "", nl=bool(line))
    if run.state == runs.REJECTED:
        raise SystemExit(3)
    if run.state in (runs.FAILED, runs.CANCELLED):
        raise SystemExit(1)
