"""Processor time in the place of seconds, where a machine was busy."""

from __future__ import annotations

import pytest

from backend.capacity.busy import by_processor_time
from backend.capacity.figures import (
    Cost,
    Figures,
    LabelStudioFigures,
    Machine,
    QueueFigures,
    StageTimes,
    Together,
)
from backend.errors import StartError


def figures(*rows: StageTimes) -> Figures:
    cost = Cost(api=2.0, worker=10.0, queue_server=1.0)
    return Figures(
        taken="now", machine=Machine(processor="", cores=2, memory_gib=1, python="3.11", load_before=9),
        model="", pictures="", image_bytes=1, batches={1: list(rows)},
        together=Together(tasks=8, max_batch=4, tasks_a_second=1),
        queue=QueueFigures(tasks=1, tasks_a_second=20, bulk=cost, single=cost, bytes_waiting=1, bytes_finished=1),
        label_studio=LabelStudioFigures(
            version="1", database="", tasks=1, regions_a_prediction=1, tasks_imported_a_second=1000,
            uploads_a_second=2, predictions_imported_a_second=3, predictions_retrieved_a_second=4,
            processor_ms={"tasks_imported": 4, "uploads": 50, "predictions_imported": 0, "predictions_retrieved": 100},
            bytes_a_task=1, bytes_a_prediction=1,
        ),
    )  # fmt: skip


def test_seconds_become_processor_time_where_that_is_less():
    starved = StageTimes(images_s=0.5, model_s=1.0, regions_s=0.5, request_s=3.0, processor_s=0.2)
    # Two cores at once: less time than processor time.
    free = StageTimes(images_s=0.01, model_s=0.1, regions_s=0.02, request_s=0.14, processor_s=0.2)
    found = by_processor_time(figures(starved, free))
    first, second = found.batches[1]
    assert (first.images_s, first.model_s, first.regions_s) == pytest.approx((0.05, 0.1, 0.05))
    assert first.request_s == pytest.approx(0.203)
    assert second.model_s == pytest.approx(0.1)
    assert found.together is None
    assert found.queue
    assert found.queue.tasks_a_second == 100
    assert found.label_studio
    assert found.label_studio.uploads_a_second == 20
    # Faster than one core's processor time, and never counted: both stay.
    assert found.label_studio.tasks_imported_a_second == 1000
    assert found.label_studio.predictions_imported_a_second == 3


def test_no_processor_time_is_an_error():
    with pytest.raises(StartError, match="batches of 1"):
        by_processor_time(figures(StageTimes(images_s=1, model_s=1, regions_s=1, request_s=3, processor_s=0)))
