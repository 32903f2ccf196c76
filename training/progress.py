"""How far a training run is, as a file that pages and other programs read while it runs. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

PROGRESS_FILE = "progress.json"
PHASES = ("starting", "training", "evaluating", "saving", "stopped", "failed", "done")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A note of a run.

    Attributes:
        iteration: steps done; of: steps of the whole run (an estimate where the clock ends it).
        losses: means since the last note, by name; "total" is their sum.
        eta_s: seconds left, None while nothing is known.
        phase: one of `PHASES`.
        elapsed_s: seconds spent, over all sittings.
        error: why it failed, else "".
        updated: when this was written (ISO, UTC).
    """

    iteration: int
    of: int
    phase: str
    losses: Mapping[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    elapsed_s: float = 0.0
    error: str = ""
    updated: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"the phase of a run is {self.phase!r}; choose one of {', '.join(PHASES)}")


OnProgress = Callable[[RunProgress], None]


def write_progress(path: Path, progress: RunProgress) -> None:
    """Replace the file in one step: a reader finds the old note or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_progress(path: Path) -> RunProgress | None:
    """The last note; None where no run has written one.

    Raises:
        ValueError: the file is not such a note.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        return RunProgress(**facts)
    except TypeError as error:
        raise ValueError(f"{path} is not the progress of a run: {error}; remove the file") from error
