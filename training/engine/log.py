"""The log of a run: lines for people, losses as JSON lines, TensorBoard, and its progress.

Files in the run's folder: ``losses.jsonl`` and ``evaluations.jsonl`` (one object a line), ``tensorboard/``, and
``progress.json``, which pages and other programs read. Needs no torch.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.files import write_text

LOSSES_FILE = "losses.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
logger = logging.getLogger(__name__)


class RunLog:
    """Collects losses, and every `period` iterations writes their means.

    Args:
        folder: of the run. period: iterations between lines.
        first_iteration: where the run resumes; lines of later iterations, which a process wrote after its last save
            and before it was killed, are dropped, since they come again.
    """

    def __init__(self, folder: Path, period: int, *, first_iteration: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.period = folder, max(1, period)
        for name in (LOSSES_FILE, EVALUATIONS_FILE):
            _keep_until(folder / name, first_iteration)
        self._lines = (folder / LOSSES_FILE).open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", first_iteration)
        self._recent: list[dict[str, float]] = []
        self._durations_s: deque[float] = deque(maxlen=50)
        self._last_s = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *raised: object) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def evaluated(self, iteration: int, figures: dict[str, float]) -> None:
        """Record the figures of an evaluation, fractions by name."""
        line = {"iteration": iteration} | figures
        with (self.folder / EVALUATIONS_FILE).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        self._scalars({f"evaluation/{name}": value for name, value in figures.items()}, iteration)
        logger.info("%6d evaluated: %s", iteration, " ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    def record(
        self, iteration: int, losses: dict[str, float], lr: float, fraction: float, elapsed_s: float
    ) -> dict[str, float] | None:
        """Record one iteration; `fraction` of the run is done after `elapsed_s` seconds.

        Returns:
            The means that were written; None between lines.
        """
        now = time.monotonic()
        self._durations_s.append(now - self._last_s)
        self._last_s = now
        self._recent.append(losses)
        if iteration % self.period:
            return None
        means = {name: sum(losses[name] for losses in self._recent) / len(self._recent) for name in losses}
        self._recent.clear()
        seconds = sum(self._durations_s) / len(self._durations_s)
        line = {"iteration": iteration, "elapsed_s": round(elapsed_s, 1), "lr": lr, "seconds_per_iteration": seconds}
        self._lines.write(json.dumps(line | means) + "\n")
        self._lines.flush()
        self._scalars(means | {"lr": lr}, iteration)
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in means.items())
        left_min = elapsed_s * (1 - fraction) / fraction / 60 if fraction > 0 else 0.0
        speed = f"lr {lr:.1e} {seconds:.2f} s/it, {left_min:.0f} min left"
        logger.info("%6d %5.1f%% %s | %s", iteration, 100 * fraction, parts, speed)
        return means

    def _scalars(self, values: dict[str, float], iteration: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)


def _keep_until(path: Path, iteration: int) -> None:
    """Drop the lines of later iterations, and an unfinished last line; in one step."""
    if not path.is_file():
        return
    whole_lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept_lines = [line for line in whole_lines if json.loads(line)["iteration"] <= iteration]
    write_text(path, "".join(kept_lines))


def _tensorboard(folder: Path, first_iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed: losses go to %s only", LOSSES_FILE)
        return None
    return SummaryWriter(str(folder), purge_step=first_iteration + 1 if first_iteration else None)


PROGRESS_FILE = "progress.json"
PHASES = ("starting", "training", "evaluating", "saving", "stopped", "failed", "done")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Progress of a run.

    Attributes:
        iteration: steps done; of: steps of the whole run (an estimate where the clock ends it).
        losses: means since the last record, by name; "total" is their sum.
        eta_s: seconds left, None while unknown.
        phase: one of `PHASES`.
        elapsed_s: seconds of all processes that worked on it, one after another.
        error: why it failed, else "".
        curve: (step, loss) pairs of a short run, all at once.
        updated: when this was written (ISO, UTC).
    """

    iteration: int
    of: int
    phase: str
    losses: Mapping[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    elapsed_s: float = 0.0
    error: str = ""
    curve: Sequence[tuple[int, float]] = ()
    updated: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"the phase of a run is {self.phase!r}; choose one of {', '.join(PHASES)}")


OnProgress = Callable[[RunProgress], None]


def write_progress(path: Path, progress: RunProgress, on_progress: OnProgress | None = None) -> None:
    """Replace the file in one step, so that a reader finds the old or the new progress, whole; call `on_progress`."""
    write_text(path, json.dumps(asdict(progress)) + "\n")
    if on_progress is not None:
        on_progress(progress)


def read_progress(path: Path) -> RunProgress | None:
    """Read the last progress; None where no run has written one.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        return RunProgress(**facts | {"curve": tuple((step, loss) for step, loss in facts.get("curve", ()))})
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not the progress of a run: {error}; remove the file") from error
