"""Figures of a busy machine, as if one core of it had been free: processor time in the place of seconds.

On a machine that others use, seconds say how much others left. What a process used of its processor hardly depends on
that. This takes a batch's processor time, as if done one thing after the other on one core, wherever it is shorter than
the seconds, and for Label Studio and the queue what one core of processor time allows. An estimate, and marked as one.
"""

from __future__ import annotations

from backend.capacity.figures import Figures, LabelStudioFigures, QueueFigures, StageTimes
from backend.errors import StartError


def by_processor_time(figures: Figures) -> Figures:
    """The same figures, none of them slower; the check with many tasks falls away, since it was in seconds.

    Raises:
        StartError: too few batches for processor time, which is counted in hundredths of a second.
    """
    queue, imported = figures.queue, figures.label_studio
    beside_s = (queue.single.api + queue.single.queue_server) / 1000 if queue else 0.0
    changed = {
        "batches": {size: _batches(size, rows, beside_s) for size, rows in figures.batches.items()},
        "together": None,
        "queue": _queue(queue) if queue else None,
        "label_studio": _label_studio(imported) if imported else None,
    }
    return figures.model_copy(update=changed)


def _batches(size: int, rows: list[StageTimes], beside_s: float) -> list[StageTimes]:
    if not rows or not sum(row.processor_s for row in rows):
        raise StartError(
            f"No processor time was counted for batches of {size}.", "Measure more of them with --batches."
        )
    return [_batch(row, beside_s) for row in rows]


def _batch(row: StageTimes, beside_s: float) -> StageTimes:
    stages_s = row.images_s + row.model_s + row.regions_s
    share = min(1.0, row.processor_s / stages_s)
    return row.model_copy(
        update={
            "images_s": row.images_s * share,
            "model_s": row.model_s * share,
            "regions_s": row.regions_s * share,
            "request_s": min(row.request_s, stages_s * share + beside_s),
        }
    )


def _queue(queue: QueueFigures) -> QueueFigures:
    """The slowest process is the limit when each has a core."""
    slowest_ms = max(queue.bulk.api, queue.bulk.worker, queue.bulk.queue_server)
    return queue.model_copy(update={"tasks_a_second": _faster(queue.tasks_a_second, slowest_ms)})


def _label_studio(one: LabelStudioFigures) -> LabelStudioFigures:
    rates = {
        f"{name}_a_second": _faster(getattr(one, f"{name}_a_second"), ms)
        for name, ms in one.processor_ms.items()
    }
    return one.model_copy(update=rates)


def _faster(rate: float, processor_ms: float) -> float:
    return max(rate, round(1000 / processor_ms, 1)) if processor_ms else rate
