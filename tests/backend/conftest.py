"""Real parts for the tests of the service: a queue server process, worker processes, an HTTP server.

The model is a fake one here (tests/support/fake_worker.py): these tests are about the queue's mechanics.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from backend.api.app import create_app
from backend.api.http_server import HttpServer
from backend.api.services import Services, make_services
from backend.processes.embedded_redis import EmbeddedRedis
from backend.processes.parent_death import ends_with_parent
from backend.settings import Settings
from tests.support.fake_label_studio import FakeLabelStudio
from tests.support.service import LOST_S, FakeWorkers, wait_until

logging.getLogger("werkzeug").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def queue_server() -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis()
    process = subprocess.Popen(server.command, stdin=subprocess.PIPE, preexec_fn=ends_with_parent())
    assert process.stdin
    with process.stdin as stdin:
        stdin.write(server.configuration)
    try:
        wait_until(server.ready)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of a checkpoint directory that the API reads."""
    directory = tmp_path_factory.mktemp("model")
    facts = {"name": "fake", "version": "fake-1", "classes": ["gear", "leaf"], "digest": "0" * 64}
    (directory / "metadata.json").write_text(json.dumps(facts))
    return directory


@pytest.fixture(scope="session")
def worker_pool(queue_server: EmbeddedRedis, checkpoint: Path) -> Iterator[FakeWorkers]:
    pool = FakeWorkers(queue_server.url, checkpoint)
    try:
        yield pool
    finally:
        pool.end()


@pytest.fixture
def settings(
    queue_server: EmbeddedRedis,
    checkpoint: Path,
    worker_pool: FakeWorkers,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Settings:
    """Of an empty queue; no variable of the machine leaks in, and no worker of the test before."""
    if "workers" not in request.fixturenames:
        worker_pool.end()
    for name in [name for name in os.environ if name.startswith(("TRANSFINER_", "LABEL_STUDIO_"))]:
        monkeypatch.delenv(name)
    # The queue server is emptied between tests: an application of the test before must not bring its tasks back.
    monkeypatch.setattr("backend.predictions.promises.LOOK_S", 3600.0)
    with Redis.from_url(queue_server.url) as connection:
        connection.flushall()
    return Settings(
        redis_url=queue_server.url,
        model=checkpoint,
        prompt_model=tmp_path / "none",  # its own tests load the real one
        score_threshold=0.0,
        worker_lost_s=LOST_S,
        predict_deadline_s=90.0,
        interactive_deadline_s=60.0,
        private_image_hosts="127.0.0.1",
        # What a developer's own service learned must not leak in.
        registry=str(tmp_path / "registry"),
        registry_cache=tmp_path / "registry-cache",
        learning_folder=tmp_path / "learning",
        promises_folder=tmp_path / "promises",
    )


@pytest.fixture(autouse=True)
def _closed_services(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the connections of each application that a test makes; a socket left open is reported in a later test."""
    services_made: list[Services] = []

    def make(settings: Settings) -> Services:
        services_made.append(make_services(settings))
        return services_made[-1]

    monkeypatch.setattr("backend.api.app.make_services", make)
    yield
    for services in services_made:
        services.close()


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with Redis.from_url(settings.redis_url) as connection:
        yield connection


@pytest.fixture
def workers(worker_pool: FakeWorkers, settings: Settings) -> FakeWorkers:
    """Start some with `workers.start()`; the queue is empty by then."""
    return worker_pool


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], str]]:
    """Serves an app over real HTTP on a free port; gives its address."""
    servers = []

    def start(settings: Settings) -> str:
        app = create_app(settings)
        server = HttpServer(app, settings, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread, app.extensions["transfiner"]))
        return f"http://127.0.0.1:{server.port}"

    yield start
    for server, thread, service in servers:
        service.queue.is_stopping = True
        server.stop()
        thread.join()
        service.close()


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    server = FakeLabelStudio()
    try:
        yield server
    finally:
        server.end()
