"""The whole service as processes on this machine that can be killed one by one. Loopback only; all end with us."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import quoteattr

import requests
from flask import Flask, Response, jsonify, request
from PIL import Image
from redis import Redis, RedisError
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from backend.devtools.breakable import Link, SteppedClock
from backend.processes.embedded_redis import EmbeddedRedis, free_port
from backend.processes.parent_death import ends_with_parent
from backend.processes.service_tree import NICE
from backend.processes.supervisor import python_module
from backend.processes.waiting import answers, wait_until
from backend.queue.connection import text
from backend.queue.job_store import INDEX_SIZE, JobStore
from backend.queue.keys import CLAIM
from backend.queue.recovery import living_workers
from backend.settings import PREFIX

Json = dict[str, Any]


class _Silent(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Thousands of lines nobody wants."""


class StandIn:
    """A Label Studio of one project that can be taken down. Counts what is stored for each task, as it has no lock.

    Attributes:
        files: pictures under /data/files/<name>.
        forgets_to_answer: imports that are stored and then answered 504, as a proxy in front would.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.rows: list[Json] = []
        self._ids = itertools.count(1)
        self.files: dict[str, bytes] = {}
        self.forgets_to_answer = 0
        self._app = Flask("stand-in")
        self._app.add_url_rule("/data/upload/<int:width>/<name>", view_func=self._image)
        self._app.add_url_rule("/data/files/<name>", view_func=self._file)
        rule = "/api/projects/<int:project>/import/predictions"
        self._app.add_url_rule(rule, view_func=self._import, methods=["POST"])
        self._app.add_url_rule("/api/predictions", view_func=self._list)
        self._app.add_url_rule("/api/predictions/<int:prediction>/", view_func=self._delete, methods=["DELETE"])
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def up(self) -> None:
        self._server = make_server(self.host, self.port, self._app, threaded=True, request_handler=_Silent)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def down(self) -> None:
        if self._server and self._thread:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def store(self, rows: list[Json]) -> None:
        """What an answer of /predict brings."""
        self.rows += [{"id": next(self._ids), **row} for row in rows]

    def stored(self) -> Counter[int]:
        """Predictions of each task."""
        return Counter(int(row["task"]) for row in self.rows)

    def _image(self, width: int, name: str) -> Response:  # noqa: ARG002
        file = io.BytesIO()
        Image.new("RGB", (width, 24), "white").save(file, "PNG")
        return Response(file.getvalue(), mimetype="image/png")

    def _file(self, name: str) -> Response:
        return Response(self.files[name], mimetype="image/png")

    def _import(self, project: int) -> tuple[Response, int]:  # noqa: ARG002
        rows = request.get_json()
        self.store(rows)
        if self.forgets_to_answer:
            self.forgets_to_answer -= 1
            return jsonify(detail="late"), 504
        return jsonify(created=len(rows)), 201

    def _list(self) -> Response:
        task = request.args.get("task", type=int)
        return jsonify([row for row in self.rows if int(row["task"]) == task])

    def _delete(self, prediction: int) -> tuple[str, int]:
        self.rows = [row for row in self.rows if row["id"] != prediction]
        return "", 204


PROJECT = "7.1795339022"
LINKED_WORKERS = 2
# Short, so that faults show within seconds; a starved machine is still not taken for dead.
QUICK = {
    "worker_lost_s": "4",
    "push_retry_s": "0.5",
    "push_retry_max_s": "2",
    "predict_deadline_s": "4",
    "drain_s": "20",
    "max_batch": "4",
    "log_level": "ERROR",
}
START_S = 240.0
Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Hosts:
    """Where each part listens. Any 127.0.0.0/8 address is this machine, and is another host to those that connect."""

    api: str = "127.0.0.1"
    queue: str = "127.0.0.1"
    label_studio: str = "127.0.0.1"
    images: str = "127.0.0.1"


class ServiceHarness:
    """Queue server, API and workers around a stand-in of Label Studio.

    Args:
        model: checkpoint directory for real workers; None: workers with a stub that costs nothing.
        hosts: where each part listens.
        is_breakable: API and workers reach the queue server over links that can be cut (`links`: the API's, then one
            for each of two workers) and follow a clock that can be stepped (`clock`).
        settings: of all processes, on top of `QUICK`.
    """

    def __init__(
        self, model: Path | None = None, *, hosts: Hosts | None = None, is_breakable: bool = False, **settings: str
    ) -> None:
        self.hosts = hosts or Hosts()
        self.label_studio = StandIn(self.hosts.label_studio)
        # Elsewhere, so that images can be had while Label Studio is down.
        self.images = StandIn(self.hosts.images)
        self.queue_server = EmbeddedRedis(host=self.hosts.queue)
        self.port = free_port(self.hosts.api)
        self._folder = TemporaryDirectory()
        self.model = model or self._stub_model()
        self.is_stub = model is None
        self.settings = {
            **QUICK,
            "private_image_hosts": self.hosts.images,
            "promises_folder": str(Path(self._folder.name) / "promises"),
            # A stub costs nothing, nor shall the promptable model beside it.
            **({} if model else {"prompt_model": str(self.model / "none")}),
            **settings,
        }
        self.queue: Process | None = None
        self.api: Process | None = None
        self.workers: list[Process] = []
        target = (self.hosts.queue, self.queue_server.port)
        self.links = [Link(target) for _ in range(1 + LINKED_WORKERS)] if is_breakable else []
        self.clock = SteppedClock(Path(self._folder.name) / "clock") if is_breakable else None
        self._link_of: dict[int, Link] = {}

    def _stub_model(self) -> Path:
        directory = Path(self._folder.name) / "stub"
        directory.mkdir()
        facts = {"name": "stub", "version": "stub-1", "classes": ["thing"], "digest": ""}
        (directory / "metadata.json").write_text(json.dumps(facts), encoding="utf-8")
        return directory

    def __enter__(self) -> ServiceHarness:
        self.start_queue()
        self.start_api()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_workers()
        self.end_api()
        self.end_queue()
        for link in self.links:
            link.close()
        self.label_studio.down()
        self.images.down()
        self._folder.cleanup()

    @property
    def address(self) -> str:
        return f"http://{self.hosts.api}:{self.port}"

    def connection(self) -> Redis:
        return Redis.from_url(self.queue_server.url, socket_timeout=5)

    def end_queue(self, *, forgets: bool = False) -> None:
        """kill -9 of the queue server; with `forgets` its data are gone, too."""
        if self.queue:
            self.queue.kill()
            self.queue.wait()
            self.queue = None
        if forgets:
            shutil.rmtree(self.queue_server.folder)
            Path(self.queue_server.folder).mkdir(mode=0o700)

    def start_queue(self) -> None:
        self.queue = self._start(self.queue_server.command, standard_input=self.queue_server.configuration)
        wait_until(self.queue_server.ready, "The queue server", START_S)

    def end_api(self) -> None:
        """kill -9 of the API, whatever it is doing."""
        if self.api:
            self.api.kill()
            self.api.wait()
            self.api = None

    def start_api(self, *, is_awaited: bool = True) -> None:
        self.api = self._start(self._on_clock("backend.cli", "api"), link=self.links[0] if self.links else None)
        if is_awaited:
            wait_until(lambda: answers(f"{self.address}/health"), "The API", START_S)

    def start_workers(
        self, count: int, *, model: Path | None = None, is_nice: bool = False, is_awaited: bool = True, **wishes: Any
    ) -> list[Process]:
        """Workers; `model`: their own copy of it; `wishes`: see backend.devtools.stub_worker."""
        module = ("backend.devtools.stub_worker",) if self.is_stub else ("backend.cli", "worker")
        command = [*(NICE if is_nice else ()), *self._on_clock(*module)]
        variables = {"SOAK": json.dumps(wishes), **({f"{PREFIX}MODEL": str(model)} if model else {})}
        fresh = []
        for _ in range(count):
            link = self._free_link()
            fresh.append(self._start(command, variables=variables, link=link))
            if link:
                self._link_of[fresh[-1].pid] = link
            self.workers.append(fresh[-1])
        return self._await_life(fresh) if is_awaited else fresh

    def start_interactive_worker(self) -> None:
        self.workers.append(self._start(python_module("backend.cli", "worker", "--queues", "interactive")))
        self._await_life(self.workers[-1:])

    def _await_life(self, fresh: list[Process]) -> list[Process]:
        pids = {process.pid for process in fresh}
        wait_until(lambda: pids <= self.living(), "Workers", 900)
        return fresh

    def _free_link(self) -> Link | None:
        used_links = [self._link_of.get(worker.pid) for worker in self.workers]
        return next((link for link in self.links[1:] if link not in used_links), None)

    def _on_clock(self, *module: str) -> list[str]:
        clock = ("backend.devtools.breakable", str(self.clock.file)) if self.clock else ()
        return python_module(*clock, *module)

    def end_workers(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
        self.workers = []

    def living(self) -> set[int]:
        """Pids of workers that give signs of life."""
        try:
            with self.connection() as connection:
                return {int(facts["pid"]) for facts in living_workers(connection).values()}
        except RedisError:
            return set()

    def whereabouts(self, tasks: Iterable[int]) -> list[str]:
        """State, delivery and claim of each task, for people who look for what became of it."""
        names = {str(task) for task in tasks}
        with self.connection() as connection:
            rows = JobStore(connection, result_ttl_s=0).recent(INDEX_SIZE) if names else []
            return [
                f"{row['state']}, {row.get('delivery', 'no delivery')}, "
                f"{text(connection.get(CLAIM + row['job'])) or 'no claim'}"
                for row in rows
                if row["task"] in names
            ]

    def predict(
        self,
        images: Mapping[int, str],
        labels: Sequence[str] = ("thing",),
        context: Json | None = None,
        timeout_s: float = 600,
    ) -> Json:
        """The answer to a request for images by task id, as Label Studio sends it. Raises requests.RequestException."""
        body = {
            "tasks": [{"id": number, "data": {"image": image}} for number, image in images.items()],
            "project": PROJECT,
            "label_config": label_config(labels),
            "params": {"context": context},
        }
        answer = requests.post(f"{self.address}/predict", json=body, timeout=timeout_s)
        answer.raise_for_status()
        facts: Json = answer.json()
        return facts

    def set_up_project(self, labels: tuple[str, ...] = ("thing",)) -> None:
        body = {
            "project": PROJECT,
            "schema": label_config(labels),
            "hostname": self.label_studio.url,
            "access_token": "0" * 40,
            "extra_params": {},
        }
        requests.post(f"{self.address}/setup", json=body, timeout=20).raise_for_status()

    def _start(
        self,
        command: list[str],
        *,
        standard_input: bytes | None = None,
        variables: Mapping[str, str] = {},
        link: Link | None = None,
    ) -> Process:
        options = {PREFIX + name.upper(): value for name, value in self.settings.items()}
        fixed = {
            "REDIS_URL": self.queue_server.url_at("127.0.0.1", link.port) if link else self.queue_server.url,
            "MODEL": str(self.model),
            "HOST": self.hosts.api,
            "PORT": str(self.port),
        }
        hidden_names = {"LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", f"{PREFIX}LABEL_STUDIO_URL"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden_names}
        process = subprocess.Popen(
            command,
            env={
                **environment,
                **options,
                **{PREFIX + name: value for name, value in fixed.items()},
                **dict(variables),
            },
            stdin=subprocess.PIPE if standard_input else subprocess.DEVNULL,
            # Children are heard on standard error, whatever a test has put in the place of sys.stderr.
            stdout=subprocess.DEVNULL if standard_input else 2,
            preexec_fn=ends_with_parent(),
        )
        if standard_input and process.stdin:
            with process.stdin as stdin:
                stdin.write(standard_input)
        return process


def label_config(labels: Sequence[str], threshold: float | None = None) -> str:
    """A label configuration with a polygon label a class; `threshold`: lowest score that is asked for."""
    tags = "".join(f"<Label value={quoteattr(label)}/>" for label in labels)
    attribute = "" if threshold is None else f' model_score_threshold="{threshold:g}"'
    polygons = f'<PolygonLabels name="poly" toName="image"{attribute}>{tags}</PolygonLabels>'
    return f'<View><Image name="image" value="$image"/>{polygons}</View>'
