"""report.json, report.md and capacity.png of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.capacity.drawing import draw
from backend.capacity.figures import Figures
from backend.capacity.limits import Account
from backend.capacity.prose import as_markdown
from backend.capacity.sizing import Sized
from backend.capacity.waits import Waits
from training.plain_json import plain

Json = dict[str, Any]
FIGURES, REPORT, PAGE, PICTURE = "figures.json", "report.json", "report.md", "capacity.png"


@dataclass(frozen=True)
class Assumptions:
    """What is not measured but said.

    Attributes:
        profile: name of the day's hours; images_a_second: of another network, None: the measured one's.
        processor_time: whether that stands for seconds, see backend/capacity/busy.py.
    """

    profile: str
    peak_factor: float
    bulk_share: float
    interactive_share: float
    target_s: float
    max_batch: int
    max_wait_ms: float
    workers_a_host: int
    disk_tb: float
    images_a_second: float | None
    processor_time: bool
    seed: int


@dataclass(frozen=True)
class Check:
    """Tasks a second of one worker that many tasks wait for, really and simulated from batches measured alone."""

    measured: float
    simulated: float

    @property
    def slowed_by(self) -> float:
        """What overlapping stages cost each other where they share a processor, as a factor from 1 on."""
        return max(1.0, self.simulated / self.measured)


@dataclass(frozen=True)
class Outcome:
    """A whole run; no check where the real throughput was not measured."""

    figures: Figures
    assumptions: Assumptions
    loads: Sequence[tuple[Sized, Account]]
    check: Check | None

    def as_dict(self) -> Json:
        """Plain types, for JSON."""
        facts: Json = plain(
            {
                "figures": self.figures.model_dump(),
                "assumptions": asdict(self.assumptions),
                "overhead_s": self.figures.overhead_s(),
                "check": {**asdict(self.check), "slowed_by": self.check.slowed_by} if self.check else None,
                "loads": [_load(sized, one, self.assumptions.workers_a_host) for sized, one in self.loads],
            }
        )
        return facts


def hosts(workers: int, workers_a_host: int) -> int:
    return -(-workers // workers_a_host)


def _load(sized: Sized, one: Account, workers_a_host: int) -> Json:
    def of(waits: Waits | None) -> Json | None:
        return asdict(waits) if waits else None

    return {
        "images_a_day": sized.load.images_a_day,
        "peak_rate": sized.load.peak_rate,
        "simulated": sized.stretch,
        "workers": sized.workers,
        "hosts": hosts(sized.workers, workers_a_host),
        "peak": of(sized.peak),
        "day": of(sized.day),
        "one_worker_fewer": of(sized.one_fewer),
        "curve": {str(workers): asdict(waits) for workers, waits in sized.curve.items()},
        **one.as_dict(sized.load.images_a_day),
    }


def write(outcome: Outcome, folder: Path) -> str:
    """Into a folder; the page as text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(outcome.as_dict(), indent=2) + "\n", encoding="utf-8")
    draw([sized for sized, _ in outcome.loads], outcome.assumptions.target_s, folder / PICTURE)
    page = as_markdown(outcome.as_dict())
    (folder / PAGE).write_text(page, encoding="utf-8")
    return page
