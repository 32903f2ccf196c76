"""The `api` command: the HTTP application behind gunicorn, one process with many threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from flask import Flask

from backend.settings import Settings, load_settings

# Label Studio keeps a connection for a few requests (health, setup, predict).
KEEP_ALIVE_S = 5
# A request that waits for a prediction answers within about 1 s once the process is asked to stop.
GRACE_S = 8


@click.command()
@click.option("--host", help="Address to listen on (TRANSFINER_HOST).")
@click.option("--port", type=int, help="Port to listen on (TRANSFINER_PORT).")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint directory (TRANSFINER_MODEL).")
def api(**options: Any) -> None:
    """Run the HTTP API alone, for several hosts; needs a queue server and workers elsewhere.

    \b
    Example: transfiner api --host 0.0.0.0 --redis-url redis://queue:6379/0
    """
    from backend.logs import set_up_logs

    settings = load_settings(**options)
    set_up_logs(settings)
    serve_http(settings)


def serve_http(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; for the main thread of a process."""
    from gunicorn.app.base import BaseApplication

    from backend.app import create_app

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in _gunicorn_options(settings).items():
                self.cfg.set(name, value)

        def load(self) -> Flask:
            return create_app(settings)

    # Must fail before gunicorn forks, else its workers would die and be started again for ever.
    create_app(settings)
    Server().run()


def _gunicorn_options(settings: Settings) -> dict[str, Any]:
    return {
        "bind": f"{settings.host}:{settings.port}",
        "worker_class": "gthread",
        # Replicas are processes or hosts of their own; one process keeps its figures together.
        "workers": 1,
        "threads": settings.api_threads,
        "timeout": 60,
        "graceful_timeout": GRACE_S,
        "keepalive": KEEP_ALIVE_S,
        "proc_name": "transfiner-api",
        "loglevel": "warning",
        "control_socket_disable": True,
        # Its heartbeat file must not be on a disk that may stall.
        "worker_tmp_dir": "/dev/shm" if os.path.isdir("/dev/shm") else None,  # noqa: PTH112
        "post_worker_init": _answer_waiting_requests_on_stop,
    }


def _answer_waiting_requests_on_stop(worker: Any) -> None:
    worker.wsgi.extensions["transfiner"].queue.is_stopping = lambda: not worker.alive
