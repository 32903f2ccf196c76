"""The `serve` command: queue server, workers and API as one supervised process tree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from backend.service_tree import DASHBOARD_HOST, dashboard_child, service_children, warn_of_unknown_variables
from backend.settings import load_settings
from backend.supervisor import Supervisor


@click.command()
@click.option("--host", help="Address to listen on (TRANSFINER_HOST).")
@click.option("--port", type=int, help="Port to listen on (TRANSFINER_PORT).")
@click.option("--workers", type=int, help="Worker processes (TRANSFINER_WORKERS).")
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint directory (TRANSFINER_MODEL).")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... (TRANSFINER_DEVICE).")
@click.option("--redis-url", help="Use this queue server instead of an embedded one (TRANSFINER_REDIS_URL).")
@click.option(
    "--dashboard", is_flag=True, help="Also RQ's own view of the queue, read only, on this machine."
)
def serve(dashboard: bool, **options: Any) -> None:
    """Run everything: queue server, worker(s) and API; Ctrl-C ends all of it.

    \b
    Example: transfiner serve --port 9090
    Then connect http://localhost:9090 in Label Studio under Settings > Model.
    """
    from backend.logs import set_up_logs

    settings = load_settings(**options)
    set_up_logs(settings)
    warn_of_unknown_variables()
    if dashboard:
        from backend.dashboard import check_dashboard

        check_dashboard(settings, DASHBOARD_HOST)
    children, settings = service_children(settings)
    children += [dashboard_child(settings)] if dashboard else []
    address = f"http://{settings.host}:{settings.port}"
    ready = f"Transfiner serves {address} (model {settings.model.name}); Ctrl-C stops it."
    sys.exit(Supervisor(children, when_ready=lambda: click.echo(ready)).run())
