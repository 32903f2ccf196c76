"""The programs of the service, in starting order: queue server, interactive worker, workers, training worker, API."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

import click
from redis import Redis, RedisError

from backend.errors import StartError
from backend.processes.embedded_redis import EmbeddedRedis
from backend.processes.supervisor import Child, python_module
from backend.processes.waiting import answers
from backend.queue.connection import require_queue_server, web_connection
from backend.queue.recovery import is_interactive, living_workers
from backend.settings import PREFIX, Settings, local_url, unknown_variables

# Folders that a command may choose for its children.
PLACES = ("registry", "registry_cache", "learning_folder", "promises_folder")
# Workers of whole images yield the processor to prompts, for which an annotator waits.
NICE = ("nice", "-n", "5")
# Loading torch and the model takes seconds, on a starved machine many minutes.
WORKER_START_S = 900.0


def warn_of_unknown_variables() -> None:
    """Warn on standard error of TRANSFINER_* variables that no setting reads, with the closest name."""
    for name, close in unknown_variables().items():
        click.echo(f"Warning: nobody reads {name}." + (f" Did you mean {close}?" if close else ""), err=True)


def service_children(settings: Settings) -> tuple[list[Child], Settings]:
    """List the programs of the service in starting order, and the settings they run with (addresses filled in).

    For `Supervisor`; other commands append children of their own.
    """
    from backend.versions.resolve import prompt_version, read_served_model

    read_served_model(settings.model)
    settings = settings.model_copy(update={"port": _checked_port(settings)})
    children = []
    if settings.redis_url:
        with web_connection(settings) as connection:
            require_queue_server(connection, settings)
    else:
        server = EmbeddedRedis()
        settings = settings.model_copy(update={"redis_url": server.url})
        children.append(
            Child("queue", server.command, standard_input=server.configuration, ready=server.ready, start_timeout_s=20)
        )
    has_prompts = bool(prompt_version(settings))
    if has_prompts:
        children.append(_queue_worker_child(settings, "interactive"))
    children += [_worker_child(settings, number, is_nice=has_prompts) for number in range(settings.workers)]
    if settings.registry and settings.train_worker:
        children.append(_queue_worker_child(settings, "train"))
    children.append(_api_child(settings))
    return children, settings


def settings_environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give a child the same settings; only those that a command line can change."""
    names = ("host", "port", "redis_url", "model", "device", *PLACES)
    return {PREFIX + name.upper(): str(getattr(settings, name)) for name in names}


def _queue_worker_child(settings: Settings, queue: str) -> Child:
    """A worker of one queue; the start does not wait until it is ready.

    Until the interactive worker is ready, the others answer prompts. A training gets `drain_s` to save its state.
    """
    return Child(
        f"{queue}-worker",
        python_module("backend.cli", "worker", "--queues", queue),
        environment=settings_environment(settings),
        grace_s=settings.drain_s,
    )


def _worker_child(settings: Settings, number: int, *, is_nice: bool) -> Child:
    command = python_module("backend.cli", "worker")
    return Child(
        f"worker-{number}",
        [*NICE, *command] if is_nice else command,
        environment={**settings_environment(settings), f"{PREFIX}WORKER_NUMBER": str(number)},
        ready=_workers_alive(settings, number + 1),
        start_timeout_s=WORKER_START_S,
        grace_s=settings.drain_s,
    )


def _api_child(settings: Settings) -> Child:
    return Child(
        "api",
        python_module("backend.cli", "api"),
        environment=settings_environment(settings),
        ready=functools.partial(answers, f"{local_url(settings.host, settings.port)}/health"),
        start_timeout_s=60.0,
        grace_s=15.0,
    )


def _workers_alive(settings: Settings, count: int) -> Callable[[], bool]:
    connection = Redis.from_url(settings.redis_url, socket_timeout=2.0)

    def alive() -> bool:
        try:
            return sum(not is_interactive(name) for name in living_workers(connection)) >= count
        except RedisError:
            return False

    return alive


def _checked_port(settings: Settings) -> int:
    """The port to listen on, chosen by the system for 0. Raises StartError at once when it is in use."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartError(
                f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.",
                "Choose another port with --port, or stop the program that uses it.",
            ) from error
        return int(probe.getsockname()[1])
