"""Records of rounds: ROOT/<project>/runs/<run id>/run.json in the registry, written by whoever holds the lock."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from training.registry.storage import Storage

RUNNING, PROMOTED, REJECTED, CANCELLED = "running", "promoted", "rejected", "cancelled"
FAILED, UNCHANGED = "failed", "unchanged"
FINAL = frozenset({PROMOTED, REJECTED, CANCELLED, FAILED, UNCHANGED})
RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


@dataclass
class Run:
    """One round.

    Attributes:
        id: begins with the time it was asked for, so that names sort by age.
        trigger: why: button, corrections, schedule, command.
        stage: what it was doing last: looking, snapshot, few-shot or finetune, gate, publish, promote, label
            studio.
        stage_s: seconds that each stage took, by name; stage_cpu_s: processor seconds of it, on all cores together.
        attempts: workers that began it; a second one goes on where the first was killed.
        figures: of the gate; metrics: the candidate's, as the registry keeps them.
        newest_annotation_at: of the data, ISO.
        order: what tasks are ordered by, and why.
        losses: steps of the training with the loss there.
        pictures: names among the candidate's papers.
        requested_at, started_at, ended_at: unix times.
    """

    id: str
    project: str
    trigger: str = ""
    state: str = RUNNING
    stage: str = ""
    stage_s: dict[str, float] = field(default_factory=dict)
    stage_cpu_s: dict[str, float] = field(default_factory=dict)
    method: str = ""
    attempts: int = 0
    new_annotations: int = 0
    folded: int = 0
    snapshot: str = ""
    newest_annotation_at: str = ""
    snapshot_counts: dict[str, Any] = field(default_factory=dict)
    parent: str = ""
    candidate: str = ""
    classes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    order: str = ""
    losses: tuple[tuple[int, float], ...] = ()
    pictures: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""
    worker: str = ""
    note: str = ""
    requested_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.state in FINAL


class RunStore:
    """The records of all projects in one registry."""

    def __init__(self, root: str) -> None:
        self.storage = Storage(root)

    def save(self, run: Run) -> None:
        """Write the record; a reader sees the one before or this one, never half of it."""
        self.storage.write_json(f"{_folder(run.project, run.id)}/run.json", asdict(run))

    def write(self, run: Run, name: str, content: bytes) -> None:
        """Store a file beside the record, e.g. the log of a step."""
        self.storage.write(f"{_folder(run.project, run.id)}/{name}", content)

    def read(self, project: str, run: str, name: str) -> bytes | None:
        """A file beside a record; None when there is none."""
        return self.storage.read(f"{_folder(project, run)}/{name}")

    def load(self, project: str, run: str) -> Run | None:
        """One record; None when there is none."""
        facts = self.storage.read_json(f"{_folder(project, run)}/run.json")
        if facts is None:
            return None
        known = {name: value for name, value in facts.items() if name in Run.__dataclass_fields__}
        tuples = {name: tuple(known.get(name, ())) for name in ("reasons", "classes", "losses", "pictures")}
        return Run(**{**known, **tuples})

    def newest(self, project: str, count: int = 50) -> list[Run]:
        """The newest records, newest first."""
        names = [name for name in self.storage.names(f"{project}/runs") if RUN_ID.fullmatch(name)]
        records = (self.load(project, name) for name in reversed(names[-count:]))
        return [run for run in records if run is not None]

    def count(self, project: str) -> int:
        """How many rounds a project has had."""
        return sum(bool(RUN_ID.fullmatch(name)) for name in self.storage.names(f"{project}/runs"))

    def projects(self) -> list[str]:
        """Projects that the registry knows."""
        return [name for name in self.storage.names("") if name.isdigit()]


def _folder(project: str, run: str) -> str:
    return f"{project}/runs/{run}"


def started_runs(run: Run, worker: str) -> Run:
    """The record of a run that a worker has just taken."""
    run.attempts += 1
    run.worker = worker
    run.state = RUNNING
    run.started_at = run.started_at or time.time()
    return run
