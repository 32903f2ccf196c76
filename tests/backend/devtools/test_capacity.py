"""`transfiner benchmark capacity`: the table of its figures, and that they can be measured at all."""

from __future__ import annotations

import json

import pytest

from backend.devtools.load import capacity_markdown, measure_capacity

pytestmark = pytest.mark.service

BATCH = {"images_s": 0.01, "model_s": 0.4, "regions_s": 0.05, "request_s": 0.5, "processor_s": 0.4}
FIGURES = {
    "cores": 2,
    "load average before": 0,
    "load average after": 0,
    "model": "stub-1",
    "batches": {1: [BATCH], 4: [{**BATCH, "model_s": 1.6}]},
}


def test_the_table_shows_medians_a_task() -> None:
    page = " ".join(capacity_markdown(FIGURES).split())
    assert "| 4 | 2.5 | 400.0 | 12.5 | 100.0 |" in page
    assert "HTTP and queue add 40.0 ms to a lone task." in page


def test_the_service_is_measured():
    """The real processes with a model that costs nothing."""
    figures = measure_capacity(None, (1, 2), 2)
    assert {size: len(rows) for size, rows in figures["batches"].items()} == {1: 2, 2: 2}
    assert all(0 < row["images_s"] < row["request_s"] for rows in figures["batches"].values() for row in rows)
    assert figures["model"] == "stub-1"
    assert "| 2 |" in " ".join(capacity_markdown(figures).split())
    json.dumps(figures)
