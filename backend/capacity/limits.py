"""A load beside what one queue server, one API process and one Label Studio can take, and what fills up in a year.

Only measured figures count. A limit that was not measured is listed as such and never the one that gives first.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.capacity.arrivals import DAY_S
from backend.capacity.figures import Cost, Figures, LabelStudioFigures, QueueFigures
from backend.capacity.sizing import Sized
from backend.predictions import SPARE_THREADS
from backend.settings import Settings

# backend.queue_server.MAX_MEMORY of the embedded server.
QUEUE_MEMORY_BYTES = 2**30
BESIDE = "queue, images, outlines"
DAYS_A_YEAR = 365
# An instance that is taken more than this has nothing left for a busier minute than the mean one.
FULL = 0.7
WORKER, QUEUE, API, LABEL_STUDIO, STORAGE = "worker", "queue server", "API process", "Label Studio", "storage"


@dataclass(frozen=True)
class Limit:
    """One resource of one instance.

    Attributes:
        part: which instance it belongs to; name: which of its resources.
        share: of it that the load takes; 1 is all. None: not measured.
        how: what was compared with what.
        grows: whether the share grows with the load; that of one worker does not, there are more of them then.
    """

    part: str
    name: str
    share: float | None
    how: str
    grows: bool = True

    @property
    def instances(self) -> int | None:
        """That share the load with each at most `FULL` taken."""
        return max(1, math.ceil(self.share / FULL)) if self.share is not None and self.grows else None

    def full_at(self, images_a_day: float) -> float | None:
        """Images a day at which one is all taken."""
        return images_a_day / self.share if self.share and self.grows else None


@dataclass(frozen=True)
class Storage:
    """What a year leaves behind, in bytes."""

    images: float
    database: float | None

    @property
    def whole(self) -> float:
        return self.images + (self.database or 0.0)


@dataclass(frozen=True)
class Account:
    """All limits of one load, the tightest first, and the year's storage."""

    limits: list[Limit] = field(default_factory=list)
    storage: Storage | None = None

    @property
    def first(self) -> Limit | None:
        """What gives first; None when nothing was measured."""
        return self.limits[0] if self.limits and self.limits[0].share is not None else None

    def as_dict(self, images_a_day: float) -> dict[str, Any]:
        rows = [
            {**asdict(one), "instances": one.instances, "full_at_images_a_day": one.full_at(images_a_day)}
            for one in self.limits
        ]
        first = f"{self.first.part}: {self.first.name}" if self.first else None
        return {"limits": rows, "first": first, "storage": asdict(self.storage) if self.storage else None}


def account(sized: Sized, figures: Figures, settings: Settings, disk_bytes: float) -> Account:
    """Of a load whose workers are known.

    Args:
        disk_bytes: that images and database have for a year.
    """
    images, years = sized.load.images_a_day, sized.load.images_a_day * DAYS_A_YEAR
    imported = figures.label_studio
    database = (imported.bytes_a_task + imported.bytes_a_prediction) * years if imported else None
    storage = Storage(figures.image_bytes * years, database)
    space = f"{figures.image_bytes / 1000:.0f} kB an image and its rows, {disk_bytes / 1e12:g} TB (assumed)"
    limits = [
        *_of_queue(sized, figures, settings),
        *_of_label_studio(sized, imported, images / DAY_S),
        Limit(STORAGE, "disk in a year", storage.whole / disk_bytes, space),
    ]
    limits.sort(key=lambda one: -1.0 if one.share is None else one.share, reverse=True)
    return Account(limits, storage)


def _of_queue(sized: Sized, figures: Figures, settings: Settings) -> list[Limit]:
    measured = figures.queue
    threads = max(1, settings.api_threads - SPARE_THREADS)
    # Little's law: those that wait at a time are the rate times how long each does.
    rate = sized.load.peak_rate * (1 - sized.load.bulk_share)
    answer_s = sized.peak.answer_p95_s + figures.overhead_s()
    waiting = Limit(API, "requests waiting at a time", rate * answer_s / threads,
                    f"{rate:.3g} single requests a second at the peak, each {answer_s:.2g} s (p95), "
                    f"{threads} places")  # fmt: skip
    if measured is None:
        names = ((QUEUE, "processor"), (QUEUE, "memory"), (API, "processor"), (WORKER, BESIDE))
        return [waiting, *(Limit(part, name, None, "not measured") for part, name in names)]
    peak = sized.load.peak_rate
    queue_ms, api_ms = (_mixed(sized, measured, name) for name in ("queue_server", "api"))
    kept = peak * settings.result_ttl_s
    held = kept * measured.bytes_finished + sized.peak.depth_most * measured.bytes_waiting
    core = f"a task, one core, the peak's {peak:.3g} tasks a second"
    each = peak / sized.workers
    return [
        waiting,
        Limit(QUEUE, "processor", peak * queue_ms / 1000, f"{queue_ms:.2f} ms {core}"),
        Limit(QUEUE, "memory", held / QUEUE_MEMORY_BYTES,
              f"{kept:,.0f} finished tasks of {measured.bytes_finished:.0f} bytes kept for "
              f"{settings.result_ttl_s} s, {sized.peak.depth_most:,} waiting ones of {measured.bytes_waiting:.0f}; "
              "1 GiB"),
        Limit(WORKER, BESIDE, each / measured.tasks_a_second,
              f"{each:.3g} tasks a second each at the peak, {measured.tasks_a_second:g} with a model of no cost",
              grows=False),
        Limit(API, "processor", peak * api_ms / 1000, f"{api_ms:.2f} ms {core}"),
    ]  # fmt: skip


def _mixed(sized: Sized, measured: QueueFigures, name: str) -> float:
    """Processor time in ms a task of this load's requests."""
    share = sized.load.bulk_share

    def of(cost: Cost) -> float:
        return float(getattr(cost, name))

    return share * of(measured.bulk) + (1 - share) * of(measured.single)


def _of_label_studio(sized: Sized, measured: LabelStudioFigures | None, mean_rate: float) -> list[Limit]:
    """As if all predictions, or all images, took each of the ways."""
    names = ("storing what it asks for", "bulk import of predictions", "import of tasks", "upload of images")
    if measured is None:
        return [Limit(LABEL_STUDIO, name, None, "not measured") for name in names]
    peak = sized.load.peak_rate
    ways = (
        (peak, measured.predictions_retrieved_a_second, "the peak's"),
        (peak, measured.predictions_imported_a_second, "the peak's"),
        (mean_rate, measured.tasks_imported_a_second, "the day's mean of"),
        (mean_rate, measured.uploads_a_second, "the day's mean of"),
    )
    return [
        Limit(
            LABEL_STUDIO,
            name,
            rate / most,
            f"{which} {rate:.3g} a second beside {most:g}, if all come this way",
        )
        for name, (rate, most, which) in zip(names, ways, strict=True)
    ]
