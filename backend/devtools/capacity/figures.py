"""Figures of a machine as JSON, and as the table that docs/scale.md quotes."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Machine(_Part):
    """Where the figures come from. Load averages are of the last minute, before and after."""

    processor: str
    cores: int
    memory_gib: float
    python: str
    device: str = ""  # of the worker's network
    load_before: float
    load_after: float = 0.0


class StageTimes(_Part):
    """One batch through the real worker, alone: its stages, and its request from outside, in s.

    `processor_s`: that the worker used of all cores; on a busy machine less than its stages took.
    """

    images_s: float = Field(ge=0)
    model_s: float = Field(ge=0)
    regions_s: float = Field(ge=0)
    request_s: float = Field(ge=0)
    processor_s: float = Field(ge=0)


class Together(_Part):
    """Many tasks at once: the worker's throughput with all its overlapping."""

    tasks: int
    max_batch: int
    tasks_a_second: float


class Cost(_Part):
    """Processor time of each process, in ms a task."""

    api: float
    worker: float
    queue_server: float


class QueueFigures(_Part):
    """Of queue and HTTP with a model that costs nothing.

    Attributes:
        tasks_a_second: one API process, one worker, one queue server, all on this machine.
        bulk: cost in requests of hundreds of tasks; single: of one task, with the /health and /setup that Label Studio
            sends before.
        bytes_waiting, bytes_finished: that a task takes in the queue server. Finished ones hold a real prediction.
    """

    tasks: int
    tasks_a_second: float = Field(gt=0)
    bulk: Cost
    single: Cost
    bytes_waiting: float
    bytes_finished: float


class LabelStudioFigures(_Part):
    """Of a real Label Studio with its default database, all on this machine.

    Attributes:
        tasks_imported_a_second: as JSON with addresses of images; uploads_a_second: as image files.
        predictions_imported_a_second: bulk import, in chunks as the workers push.
        predictions_retrieved_a_second: "Retrieve predictions": Label Studio asks our service, whose model costs
            nothing, and stores the answers.
        processor_ms: that its process used for each of the four, by the names without `_a_second`.
        bytes_a_task, bytes_a_prediction: by which its database grew.
    """

    version: str
    database: str
    tasks: int
    regions_a_prediction: float
    tasks_imported_a_second: float = Field(gt=0)
    uploads_a_second: float = Field(gt=0)
    predictions_imported_a_second: float = Field(gt=0)
    predictions_retrieved_a_second: float = Field(gt=0)
    processor_ms: dict[str, float]
    bytes_a_task: float
    bytes_a_prediction: float


class Figures(_Part):
    """All that one run measures.

    Attributes:
        batches: by number of tasks.
        image_bytes: mean of the pictures' files.
        not_measured: what is missing, and why.
    """

    format: int = Field(default=1, ge=1, le=1)
    taken: str
    machine: Machine
    model: str
    pictures: str
    image_bytes: float
    batches: dict[int, list[StageTimes]]
    together: Together | None = None
    queue: QueueFigures | None = None
    label_studio: LabelStudioFigures | None = None
    not_measured: dict[str, str] = {}

    def overhead_s(self) -> float:
        """That HTTP and queue add to a lone task, the median."""
        return statistics.median(row.request_s - row.images_s - row.model_s - row.regions_s for row in self.batches[1])

    def as_markdown(self) -> str:
        """Tables for people: median milliseconds a task by batch size, then rates and bytes."""
        lines = [
            f"{self.machine.processor}, {self.machine.cores} cores, {self.machine.memory_gib} GiB; load average "
            f"{self.machine.load_before} before, {self.machine.load_after} after. Model {self.model} on "
            f"{self.machine.device}; {self.pictures}. Median ms a task:",
            "",
            "| batch of | images | network | outlines | the worker's processor |",
            "|---|---|---|---|---|",
        ]
        for size, rows in self.batches.items():
            medians = (
                1000 * statistics.median(getattr(row, name) for row in rows) / size
                for name in ("images_s", "model_s", "regions_s", "processor_s")
            )
            lines.append(f"| {size} | " + " | ".join(f"{value:.1f}" for value in medians) + " |")
        lines.append("")
        if self.together is not None:
            lines.append(f"Many tasks at once: {self.together.tasks_a_second:.2f} a second.")
        lines.append(f"HTTP and queue add {1000 * self.overhead_s():.1f} ms to a lone task.")
        for part in (self.queue, self.label_studio):
            if part is not None:
                facts = part.model_dump(exclude_none=True)
                lines += [f"- {name}: {value}" for name, value in facts.items()]
        lines += [f"- not measured: {name} ({reason})" for name, reason in self.not_measured.items()]
        return "\n".join(lines) + "\n"


def this_machine() -> Machine:
    """Without its load afterwards and the device, which a worker knows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=round(memory / 2**30, 1),
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
