"""`serve`: queue server, workers and API as one process tree; `api` and `worker` alone; the probe `worker-alive`."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import click
from redis import Redis, RedisError

from backend.cli.types import CHECKPOINT, DEVICE, PORT
from backend.errors import StartError
from backend.learning.steps import check_step_options
from backend.logs import set_up_logs
from backend.processes.running_service import announced
from backend.processes.service_tree import service_children, warn_of_unknown_variables
from backend.processes.supervisor import Supervisor
from backend.queue.recovery import living_workers
from backend.settings import Settings, load_settings
from model.errors import missing_gpu_reason

log = logging.getLogger(__name__)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


host_option = click.option("--host", help="Address to listen on (TRANSFINER_HOST).")
port_option = click.option("--port", type=PORT, help="Port to listen on (TRANSFINER_PORT).")
model_option = click.option("--model", type=CHECKPOINT, help="Checkpoint directory or name (TRANSFINER_MODEL).")
device_option = click.option("--device", type=DEVICE, help="auto, cpu, cuda, cuda:1 ... (TRANSFINER_DEVICE).")
redis_option = click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")


@click.command()
@host_option
@port_option
@click.option("--workers", type=int, help="Worker processes (TRANSFINER_WORKERS).")
@model_option
@device_option
@click.option("--redis-url", help="Use this queue server instead of an embedded one (TRANSFINER_REDIS_URL).")
def serve(**options: Any) -> None:
    """Run everything: queue server, worker(s) and API; Ctrl-C ends all of it.

    Memory: a request of 5,000 tasks took the API 112 MiB and the queue server 45 MiB, with 80 labels as with 1,203 (it
    never takes more than 1 GiB for what waits); a worker took 0.9 GiB, with images of 40 megapixels 2.8 GiB.
    `transfiner load --memory 5000` measures it here.

    \b
    Example: transfiner serve --port 9090
    Then connect http://localhost:9090 in Label Studio under Settings > Model.
    """
    settings = load_settings(**options)
    _check_device(settings)
    if settings.registry and settings.train_worker:
        check_step_options(settings)
    set_up_logs(settings)
    warn_of_unknown_variables()
    children, settings = service_children(settings)
    address = f"http://{settings.host}:{settings.port}"
    message = f"Transfiner serves {address} (model {settings.model.name}); Ctrl-C stops it.\n"
    message += f"Status page: {settings.status_url}"
    with announced("service", settings):
        code = Supervisor(children, when_ready=lambda: click.echo(message)).run()
    sys.exit(code)


def _check_device(settings: Settings) -> None:
    """Check that the machine has the GPU of TRANSFINER_DEVICE, as the option --device does."""
    if reason := missing_gpu_reason(settings.device):
        raise StartError(reason, "Correct TRANSFINER_DEVICE or give --device.")


@click.command()
@host_option
@port_option
@redis_option
@model_option
def api(**options: Any) -> None:
    """Run the HTTP API alone, for several hosts; needs a queue server and workers elsewhere.

    \b
    Example: transfiner api --host 0.0.0.0 --redis-url redis://queue:6379/0
    """
    settings = load_settings(**options)
    set_up_logs(settings)
    serve_http(settings)


def serve_http(settings: Settings) -> None:
    """Serve the HTTP API until SIGTERM or SIGINT; for the main thread of a process."""
    from backend.api.access import has_password
    from backend.api.app import create_app
    from backend.api.http_server import HttpServer

    if settings.host not in LOOPBACK and not has_password(settings):
        log.warning(
            "The service listens on %s and asks nobody for a password: whoever reaches it sees names of tasks and "
            "projects and has pictures predicted. Set TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD, "
            "and the same on the ML backend in Label Studio.",
            settings.host,
        )
    app = create_app(settings)
    predictions = app.extensions["transfiner"].predictions
    predictions.promises.resume()
    HttpServer(app, settings, settings.host, settings.port).run_until_signal(predictions.queue.stop)


@click.command()
@redis_option
@model_option
@device_option
@click.option("--max-batch", type=int, help="Tasks predicted together (TRANSFINER_MAX_BATCH).")
@click.option(
    "--queues",
    type=click.Choice(["predict", "interactive", "train"]),
    default="predict",
    help="What this worker does: whole images (and prompts where nobody else answers them), prompts alone, so that "
    "none waits behind a batch, or trainings.",
)
@click.option("--burst", is_flag=True, help="End when nothing is waiting.")
def worker(queues: str, burst: bool, **options: Any) -> None:
    """Run one worker alone, for several hosts or GPUs; SIGTERM finishes the batch at hand.

    \b
    Example: transfiner worker --redis-url redis://queue:6379/0 --device cuda:1
    Example: transfiner worker --queues interactive
    Example: transfiner worker --queues train
    """
    settings = load_settings(**options)
    _check_device(settings)
    set_up_logs(settings)
    if queues == "train":
        from backend.learning.train_worker import run_train_worker

        run_train_worker(settings, burst=burst)
        return
    from backend.worker.main import run_worker

    run_worker(settings, burst=burst, is_interactive=queues == "interactive")


@click.command("worker-alive")
@redis_option
@click.option("--host", help="Name of the worker's host; this one's if not given.")
def worker_alive(redis_url: str | None, host: str | None) -> None:
    """Say by the exit code whether a worker of this host gives signs of life.

    \b
    Example: transfiner worker-alive
    """
    settings = load_settings(redis_url=redis_url)
    host = host or socket.gethostname()
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=5) as connection:
            workers = living_workers(connection)
    except (RedisError, ValueError) as error:
        # Exit code 0: killing the worker would not bring the queue server back, and would lose its loaded model.
        click.echo(f"The queue server does not answer ({type(error).__name__}); nothing is known.")
        return
    alive = [name for name, facts in workers.items() if facts.get("host") == host]
    click.echo(f"{', '.join(alive)} on {host}" if alive else f"No worker of {host} gives signs of life.")
    sys.exit(0 if alive else 1)
