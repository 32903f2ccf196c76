"""`transfiner benchmark capacity`: the table of its figures, and that they can be measured at all."""

from __future__ import annotations

import json

import pytest

from backend.devtools.capacity import Sizes, capacity_markdown, measure_capacity

pytestmark = pytest.mark.service

BATCH = {"images_s": 0.01, "model_s": 0.4, "regions_s": 0.05, "request_s": 0.5, "processor_s": 0.4}
FIGURES = {
    "machine": {"processor": "abacus", "cores": 2, "memory_gib": 8, "load_before": 0, "load_after": 0},
    "model": "stub 1 on cpu",
    "pictures": "squares",
    "batches": {1: [BATCH], 4: [{**BATCH, "model_s": 1.6}]},
    "together": {"tasks": 8, "tasks_a_second": 1.8},
    "queue": {"tasks_a_second": 80},
    "label_studio": {"predictions_retrieved_a_second": 5.0},
    "not_measured": {"a GPU": "there is none"},
}


def test_the_table_shows_medians_a_task() -> None:
    page = capacity_markdown(FIGURES)
    assert "| 4 | 2.5 | 400.0 | 12.5 | 100.0 |" in page
    assert "HTTP and queue add 40.0 ms to a lone task." in page
    assert "predictions_retrieved_a_second: 5.0" in page
    assert "- not measured: a GPU (there is none)" in page


def test_the_service_is_measured():
    """The real processes with a model that costs nothing; a real Label Studio is for people to wait for."""
    lines: list[str] = []
    figures = measure_capacity(None, Sizes((1, 2), 2, 4, 12, 10), with_label_studio=False, tell=lines.append)
    assert {size: len(rows) for size, rows in figures["batches"].items()} == {1: 2, 2: 2}
    assert all(0 < row["images_s"] < row["request_s"] for rows in figures["batches"].values() for row in rows)
    assert figures["together"]["tasks_a_second"] > 0
    assert 100 < figures["queue"]["bytes_finished"] < 100_000
    assert 100 < figures["queue"]["bytes_waiting"] < 100_000
    assert figures["not_measured"] == {"label_studio": "left out (--no-label-studio)"}
    assert figures["model"] == "stub stub-1 on cpu"
    assert "starting the service" in lines
    assert "| 2 |" in capacity_markdown(figures)
    json.dumps(figures)
