"""The `worker` command: one process with one warm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from backend.settings import load_settings


@click.command()
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint directory (TRANSFINER_MODEL).")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... (TRANSFINER_DEVICE).")
@click.option("--max-batch", type=int, help="Tasks predicted together (TRANSFINER_MAX_BATCH).")
@click.option(
    "--queues",
    type=click.Choice(["predict", "train"]),
    default="predict",
    show_default=True,
    help="What this worker does; a training must not keep predictions waiting, so it is one or the other.",
)
@click.option("--burst", is_flag=True, help="End when nothing is waiting.")
def worker(queues: str, burst: bool, **options: Any) -> None:
    """Run one worker alone, for several hosts or GPUs; SIGTERM finishes the batch at hand.

    \b
    Example: transfiner worker --redis-url redis://queue:6379/0 --device cuda:1
    Example: transfiner worker --queues train
    """
    from backend.logs import set_up_logs

    settings = load_settings(**options)
    set_up_logs(settings)
    if queues == "train":
        from backend.learning.train_worker import run_train_worker

        run_train_worker(settings, burst=burst)
        return
    from backend.worker import run_worker

    run_worker(settings, burst=burst)
