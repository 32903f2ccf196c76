"""The `learn` command: ask for a training of a project, here or by whichever worker takes it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click

from backend.cli.types import REFUSED, json_option
from backend.errors import StartError
from backend.learning import round as runs
from backend.logs import set_up_logs
from backend.processes.running_service import load_settings_of_running
from backend.queue.connection import worker_connection
from backend.queue.train_queue import COMMAND, TrainQueue
from backend.versions.resolve import registry_of

POLL_S = 0.5


@click.command()
@click.option("--project", required=True, type=click.IntRange(1), help="Id of the project in Label Studio.")
@click.option("--now", is_flag=True, help="Train in this process instead of asking a worker; needs a queue server too.")
@click.option("--wait", is_flag=True, help="Stay until the round is over.")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--registry", help="Folder or bucket of versions (TRANSFINER_REGISTRY).")
@json_option
def learn(project: int, now: bool, wait: bool, as_json: bool, **options: Any) -> None:
    """Snapshot, finetune, judge, and promote if better; exit status 3 when the gate refused.

    \b
    Example: transfiner learn --project 12 --wait
    """
    settings = load_settings_of_running(**options)
    set_up_logs(settings)
    if registry_of(settings) is None:
        raise StartError("Learning is off: TRANSFINER_REGISTRY is empty.", "Set it, or give --registry FOLDER.")
    answer = TrainQueue(worker_connection(settings)).request(str(project), COMMAND)
    click.echo(answer.message, err=True)
    if now:
        from backend.learning.train_worker import run_train_worker

        run_train_worker(settings, burst=True)
    if now or wait:
        _finish(runs.RunStore(settings.registry), str(project), answer.run, as_json)
    elif as_json:
        click.echo(json.dumps({"run": answer.run, "is_new": answer.is_new}))


def _finish(store: runs.RunStore, project: str, run_id: str, as_json: bool) -> None:
    """Wait for the end of a round, print it, and end with its exit status."""
    while (run := store.load(project, run_id)) is None or not run.is_over:
        time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps(asdict(run), ensure_ascii=False))
    else:
        click.echo(f"{run.id}: {run.state} {run.candidate}".rstrip())
        for line in filter(None, (*run.reasons, run.order, run.error, run.hint, run.note)):
            click.echo(f"  {line}")
    if run.state in (runs.REJECTED, runs.FAILED, runs.CANCELLED):
        raise SystemExit(REFUSED if run.state == runs.REJECTED else 1)
