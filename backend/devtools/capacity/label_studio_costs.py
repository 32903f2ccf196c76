"""What a real Label Studio of this machine takes in: tasks, files, predictions; and by how much its database grows."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from backend.devtools.capacity.figures import LabelStudioFigures
from backend.devtools.capacity.service_times import Report
from backend.devtools.load.measuring import ServedModelRun
from backend.devtools.programs import processor_s, running_program
from backend.errors import StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.processes.waiting import wait_until
from backend.settings import load_settings
from integration.label_studio.client import LabelStudioClient

Json = dict[str, Any]
TASK_CHUNK, FILE_CHUNK = 250, 8
# Two projects; Label Studio keeps a project's tasks, files and predictions apart.
PUSHED, ASKED = "Capacity: pushed", "Capacity: asked for"


@contextlib.contextmanager
def label_studio(tell: Report) -> Iterator[tuple[LabelStudioServer, int]]:
    """A fresh one in a folder that goes with it, and its process.

    Raises:
        StartError: it is not installed, or does not get ready.
    """
    with TemporaryDirectory() as folder:
        server = LabelStudioServer(Path(folder), free_port())
        server.check_installed()
        with running_program("label-studio", server.command, server.environment, Path(folder)) as process:
            tell("Label Studio starts, which takes a minute")
            wait_until(server.is_up, "Label Studio", COLD_START_S, poll_s=1.0, process=process)
            yield server, process.pid


@dataclass
class LabelStudioCosts:
    """Measures one Label Studio.

    Args:
        service: ours, with a model that costs nothing, for what Label Studio asks by itself.
        rows: real predictions, cycled through.
        label_config: that fits them.
        files: pictures.
    """

    server: LabelStudioServer
    pid: int
    service: ServedModelRun
    rows: Sequence[Json]
    label_config: str
    files: Sequence[bytes]
    tell: Report
    _used_ms: dict[str, float] = field(default_factory=dict)

    def measure(self, tasks: int, retrieved: int) -> LabelStudioFigures:
        """Import `tasks` with a prediction each, then have `retrieved` predictions asked for."""
        client = LabelStudioClient(self.server.url, self.server.login.token, timeout_s=600.0)
        project = int(client.create_project(title=PUSHED, label_config=self.label_config)["id"])
        empty = self._stored()
        tasks_s, ids = self._import_tasks(client, project, tasks)
        with_tasks = self._stored()
        predictions_s = self._import_predictions(client, project, ids)
        with_predictions = self._stored()
        uploads_s = self._upload(client, project)
        retrieved_s = self._retrieve(client, retrieved)
        return LabelStudioFigures(
            version=self._version(),
            database="SQLite",
            tasks=tasks,
            regions_a_prediction=round(sum(len(row["result"]) for row in self.rows) / len(self.rows), 2),
            tasks_imported_a_second=round(tasks / tasks_s, 1),
            uploads_a_second=round(len(self.files) / uploads_s, 1),
            predictions_imported_a_second=round(tasks / predictions_s, 1),
            predictions_retrieved_a_second=round(retrieved / retrieved_s, 1),
            processor_ms={name: round(ms, 2) for name, ms in self._used_ms.items()},
            bytes_a_task=round((with_tasks - empty) / tasks, 1),
            bytes_a_prediction=round((with_predictions - with_tasks) / tasks, 1),
        )

    def _version(self) -> str:
        answer = requests.get(f"{self.server.url}/api/version", timeout=60)
        answer.raise_for_status()
        return str(answer.json().get("release", "unknown"))

    def _stored(self) -> int:
        """Bytes of the database."""
        return sum(path.stat().st_size for path in self.server.folder.glob("*.sqlite3*"))

    def _import_tasks(self, client: LabelStudioClient, project: int, count: int) -> tuple[float, list[int]]:
        ids: list[int] = []
        seconds = 0.0
        for start in range(0, count, TASK_CHUNK):
            self.tell(f"Label Studio imports tasks: {start} of {count}")
            rows = [self._task(number) for number in range(start, min(count, start + TASK_CHUNK))]
            timed_s, answer = self._timed(
                "tasks_imported", count, functools.partial(client.import_tasks, project, rows)
            )
            seconds += timed_s
            ids += [int(task_id) for task_id in answer["task_ids"]]
        return seconds, ids

    def _task(self, number: int) -> Json:
        return {"data": {"image": self.service.images[number % len(self.service.images)]}}

    def _import_predictions(self, client: LabelStudioClient, project: int, ids: Sequence[int]) -> float:
        self.tell(f"Label Studio imports {len(ids)} predictions")
        rows = [{"task": task_id, **self.rows[number % len(self.rows)]} for number, task_id in enumerate(ids)]
        chunk = load_settings().push_chunk
        push = functools.partial(client.import_predictions, project, rows, chunk=chunk)
        seconds, stored = self._timed("predictions_imported", len(rows), push)
        _expect(stored, len(rows))
        return seconds

    def _upload(self, client: LabelStudioClient, project: int) -> float:
        self.tell(f"Label Studio takes {len(self.files)} files")
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"scene-{number:03d}.png" for number in range(len(self.files))]
            for path, file in zip(paths, self.files, strict=True):
                path.write_bytes(file)
            chunks = [paths[start : start + FILE_CHUNK] for start in range(0, len(paths), FILE_CHUNK)]
            upload = functools.partial(client.upload_files, project)
            return self._timed("uploads", len(paths), lambda: [upload(chunk) for chunk in chunks])[0]

    def _retrieve(self, client: LabelStudioClient, count: int) -> float:
        self.tell(f"Label Studio asks for {count} predictions")
        project = int(client.create_project(title=ASKED, label_config=self.service.config)["id"])
        client.import_tasks(project, [self._task(number) for number in range(count)])
        client.create_backend(project, url=self.service.stage.address, title="stub-1")
        ask = functools.partial(client.retrieve_predictions, project)
        seconds, _ = self._timed("predictions_retrieved", count, ask)
        _expect(len(client.list_predictions(project_id=project)), count)
        return seconds

    def _timed(self, name: str, count: int, act: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of a part of it, and what it gave; the processor time a piece is added up."""
        used_s, begun = processor_s(self.pid), time.perf_counter()
        result = act()
        seconds = time.perf_counter() - begun
        used_ms = (processor_s(self.pid) - used_s) / count * 1000
        self._used_ms[name] = self._used_ms.get(name, 0.0) + used_ms
        return seconds, result


def _expect(stored: int, count: int) -> None:
    if stored != count:
        raise StartError(
            f"Label Studio stored {stored} of {count} predictions.", "Is its version the one that is pinned?"
        )
