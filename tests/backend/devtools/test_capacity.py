"""`transfiner benchmark capacity`: the table of its figures, and that they can be measured at all."""

from __future__ import annotations

import pytest

from backend.devtools.capacity.figures import Figures
from backend.devtools.capacity.measuring import CapacityMeasurement, Sizes

pytestmark = pytest.mark.service

BATCH = {"images_s": 0.01, "model_s": 0.4, "regions_s": 0.05, "request_s": 0.5, "processor_s": 0.4}
COST = {"api": 2.0, "worker": 10.0, "queue_server": 0.5}
LABEL_STUDIO_FIGURES = {
    "version": "1.23.2",
    "database": "SQLite",
    "tasks": 100,
    "regions_a_prediction": 4,
    "tasks_imported_a_second": 200,
    "uploads_a_second": 10,
    "predictions_imported_a_second": 400,
    "predictions_retrieved_a_second": 5,
    "processor_ms": {"predictions_retrieved": 100},
    "bytes_a_task": 500,
    "bytes_a_prediction": 1500,
}
FIGURES = {
    "taken": "2026-01-01 00:00 UTC",
    "machine": {
        "processor": "abacus",
        "cores": 2,
        "memory_gib": 8,
        "python": "3.11",
        "device": "cpu",
        "load_before": 0,
    },
    "model": "stub 1",
    "pictures": "squares",
    "image_bytes": 200_000,
    "batches": {"1": [BATCH], "4": [{**BATCH, "model_s": 1.6}]},
    "together": {"tasks": 8, "max_batch": 4, "tasks_a_second": 1.8},
    "queue": {
        "tasks": 100,
        "tasks_a_second": 80,
        "bulk": COST,
        "single": {**COST, "api": 6.0},
        "bytes_waiting": 2000,
        "bytes_finished": 3000,
    },
    "label_studio": LABEL_STUDIO_FIGURES,
}


def test_the_table_shows_medians_a_task() -> None:
    page = Figures.model_validate(FIGURES).as_markdown()
    assert "| 4 | 2.5 | 400.0 | 12.5 | 100.0 |" in page
    assert "HTTP and queue add 40.0 ms to a lone task." in page
    assert "- predictions_retrieved_a_second: 5.0" in page


def test_the_service_is_measured():
    """The real processes with a model that costs nothing; a real Label Studio is for people to wait for."""
    heard: list[str] = []
    found = CapacityMeasurement(None, Sizes((1, 2), 2, 4, 12, 10, 10), with_label_studio=False, tell=heard.append).run()
    assert {size: len(rows) for size, rows in found.batches.items()} == {1: 2, 2: 2}
    assert all(0 < one.images_s < one.request_s for rows in found.batches.values() for one in rows)
    assert found.together
    assert found.together.tasks_a_second > 0
    assert found.queue
    assert 100 < found.queue.bytes_finished < 100_000
    assert 100 < found.queue.bytes_waiting < 100_000
    assert found.not_measured == {"label_studio": "left out (--no-label-studio)"}
    assert found.machine.device == "cpu"
    assert Figures.model_validate_json(found.model_dump_json()) == found
    assert heard[0] == "starting the service"
