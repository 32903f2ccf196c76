"""One round: snapshot -> few-shot or finetune -> gate -> publish -> promote or reject, recorded at every step.

Each step can be repeated without harm, so a second attempt goes on where the first was killed: the snapshot is named
by its content, the finetuning resumes from its own state, a version is published once.

The record is ROOT/<project>/runs/<run id>/run.json in the registry, written by whoever holds the lock.
"""

from __future__ import annotations

import logging
import re
import resource
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import ServiceError
from backend.learning.steps import (
    FEW_SHOT,
    FINETUNE,
    JUDGE,
    PROGRESS_FILE,
    VERDICT_FILE,
    ChildResult,
    StepCommand,
    read_json,
    run_child,
)
from backend.queue.train_queue import COMMAND, Progress
from backend.settings import Settings
from backend.versions.resolve import read_served_model
from backend.versions.store import SHIPPED
from integration.label_studio.tasks import parse_time
from model.checkpoints.metadata import METADATA_FILE, read_metadata, update_metadata
from training.registry import Registry
from training.registry.storage import Storage
from training.snapshots.holdout import what_is_missing

if TYPE_CHECKING:
    from backend.learning.label_studio import LabelStudioProject

log = logging.getLogger(__name__)
CHECKPOINT, FOLDS_FILE = "checkpoint", "folds.json"
#: Shipped checkpoint that finetuning starts from where the serving one cannot be finetuned.
START = "scenes-small"
#: A cross-validation needs an image to learn from and one to judge by.
LEAST_CROSSED = 2
#: A prompted detector that serves goes on with few-shot learning up to this many images, since finetuning starts from
#: another network; few-shot learning keeps 2 MB of each image in memory.
MOST_KEPT_IMAGES = 1000
#: Preset of checkpoints whose detector learns classes few-shot: the base, and all that were learned from it.
PRESET = "prompts/photos-detector"
RUNNING, PROMOTED, REJECTED, CANCELLED = "running", "promoted", "rejected", "cancelled"
FAILED, UNCHANGED = "failed", "unchanged"
FINAL = frozenset({PROMOTED, REJECTED, CANCELLED, FAILED, UNCHANGED})
RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


@dataclass
class Run:
    """One round.

    Attributes:
        id: begins with the time of the request, so that names sort by age.
        trigger: why: button, corrections, schedule, command.
        stage: the last stage: looking, snapshot, few-shot or finetune, gate, publish, promote, label studio.
        stage_s: seconds of each stage, by name; stage_cpu_s: processor seconds of it, on all cores together.
        attempts: workers that began it; a second one goes on where the first was killed.
        figures: of the gate; metrics: the candidate's, as the registry stores them.
        newest_annotation_at: time of the newest annotation in the snapshot, ISO.
        order: how tasks are ordered, and why.
        losses: steps of the training, each with its loss.
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
        """Write the record atomically; a reader never sees half of it."""
        self.storage.write_json(f"{_folder(run.project, run.id)}/run.json", asdict(run))

    def write(self, run: Run, name: str, content: bytes) -> None:
        """Store a file beside the record, e.g. the log of a step."""
        self.storage.write(f"{_folder(run.project, run.id)}/{name}", content)

    def read(self, project: str, run: str, name: str) -> bytes | None:
        """Read a file beside a record; None when there is none."""
        return self.storage.read(f"{_folder(project, run)}/{name}")

    def load(self, project: str, run: str) -> Run | None:
        """Read a record; None when there is none."""
        facts = self.storage.read_json(f"{_folder(project, run)}/run.json")
        if facts is None:
            return None
        fields = {name: value for name, value in facts.items() if name in Run.__dataclass_fields__}
        tuples = {name: tuple(fields.get(name, ())) for name in ("reasons", "classes", "losses", "pictures")}
        return Run(**{**fields, **tuples})

    def newest(self, project: str, count: int = 50) -> list[Run]:
        """The newest records, newest first."""
        names = [name for name in self.storage.names(f"{project}/runs") if RUN_ID.fullmatch(name)]
        records = (self.load(project, name) for name in reversed(names[-count:]))
        return [run for run in records if run is not None]

    def count(self, project: str) -> int:
        """How many rounds a project has had."""
        return sum(bool(RUN_ID.fullmatch(name)) for name in self.storage.names(f"{project}/runs"))

    def projects(self) -> list[str]:
        """Projects with a folder in the registry."""
        return [name for name in self.storage.names("") if name.isdigit()]


def _folder(project: str, run: str) -> str:
    return f"{project}/runs/{run}"


def started_run(run: Run, worker: str) -> Run:
    """Note in a run's record that a worker has just taken it."""
    run.attempts += 1
    run.worker = worker
    run.state = RUNNING
    run.started_at = run.started_at or time.time()
    return run


class Interrupted(Exception):  # noqa: N818
    """The round was stopped from outside; `reason` is cancelled, stopping (goes on later) or lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class RoundParts:
    """The services that a round uses.

    Attributes:
        stop_because: a reason to stop now, see `Interrupted`; "" to go on.
    """

    settings: Settings
    registry: Registry
    runs: RunStore
    command: StepCommand
    label_studio: LabelStudioProject
    progress: Progress
    stop_because: Callable[[], str]


class Round:
    """One round of one project, for the process that holds the project's lock."""

    def __init__(self, parts: RoundParts, run: Run) -> None:
        self.parts = parts
        self.run = run
        self.settings = parts.settings
        self.cache = parts.settings.registry_cache
        self.stage_began: tuple[float, float] | None = None
        self.work = (parts.settings.learning_folder / run.project / run.id).absolute()

    def learn(self) -> Run:
        """Run the whole round; the record, whose `state` says how it ended.

        Raises:
            Interrupted: the round was stopped; the record is still `running`.
        """
        if not self._has_something_new():
            return self._over(UNCHANGED)
        snapshot = self._snapshot()
        if self._was_judged():
            self.run.reasons = ("The corrections are the same as in the round before.",)
            return self._over(UNCHANGED)
        self.run.method = self._method()
        if not self._can_be_judged():
            return self._over(UNCHANGED)
        self._train(snapshot)
        verdict, result = self._judge(snapshot)
        self._publish(verdict)
        if not verdict:
            raise _failure("the gate", result)
        if verdict["promote"]:
            self._promote()
        return self._over(PROMOTED if verdict["promote"] else REJECTED)

    # Data

    def _has_something_new(self) -> bool:
        """Whether there is anything new to learn; checked here, too, because a request may be late or forged."""
        self._stage("looking")
        if self.run.snapshot:
            return True
        newest_at = newest_trigger_state(self.parts.registry, self.parts.runs, self.run.project)
        self.run.new_annotations = self.parts.label_studio.count_new(self.run.project, newest_at)
        if self.run.new_annotations or self.run.trigger == COMMAND or self._left_unjudged():
            return True
        self.run.reasons = ("No annotation is newer than the newest snapshot.",)
        return False

    def _left_unjudged(self) -> bool:
        """Whether the newest round with data ended without a verdict; then the same data is tried again."""
        runs = [run for run in self._earlier_runs() if run.state != UNCHANGED]
        return bool(runs) and runs[0].state in (CANCELLED, FAILED)

    def _earlier_runs(self) -> list[Run]:
        return [run for run in self.parts.runs.newest(self.run.project) if run.id != self.run.id]

    def _snapshot(self) -> Path:
        registry, project = self.parts.registry, self.run.project
        self._stage("snapshot")
        if not self.run.snapshot:
            folder = self.parts.label_studio.take_snapshot(project, self.work / "snapshot")
            manifest = read_json(folder / "manifest.json")
            self.run.newest_annotation_at = str(manifest.get("newest_annotation_at") or "")
            self.run.snapshot_counts = dict(manifest.get("counts", {}))
            self.run.classes = tuple(manifest["classes"])
            self.run.snapshot = registry.publish_snapshot(project, folder)
            self._save()
        return registry.fetch_snapshot(project, self.run.snapshot, self.cache)

    def _was_judged(self) -> bool:
        """Whether an earlier round has judged the same snapshot trained from the same version."""
        parent = self._parent()[0]
        self.run.parent = self.run.parent or parent
        return any(
            run.snapshot == self.run.snapshot and run.parent == self.run.parent and run.state in (PROMOTED, REJECTED)
            for run in self._earlier_runs()
        ) or any(run.candidate == parent and run.snapshot == self.run.snapshot for run in self._earlier_runs())

    def _can_be_judged(self) -> bool:
        """Whether the gate has data to judge by; without, only the command line trains, and keeps a candidate."""
        counts = self.run.snapshot_counts
        missing_data = what_is_missing(counts)
        has_cross_validation = self.run.method == FEW_SHOT and int(counts.get("train_images", 0)) >= LEAST_CROSSED
        if not missing_data or has_cross_validation:
            return True
        if self.run.trigger == COMMAND and counts.get("train_images"):
            self.run.note = f"{missing_data}. The version is kept as a candidate: promote it by hand if it is good."
            return True
        self.run.reasons = (f"Nothing was trained: {missing_data}.",)
        self.run.hint = f"Or train and keep it as a candidate: `transfiner learn --project {self.run.project}`."
        return False

    # Steps

    def _parent(self) -> tuple[str, Path]:
        active = self.parts.registry.active(self.run.project)
        if active is None:
            return read_served_model(self.settings.model).version, self.settings.model
        return active, self.parts.registry.fetch(self.run.project, active, self.cache)

    def _earlier_snapshots(self) -> tuple[Path, ...]:
        registry, project = self.parts.registry, self.run.project
        earlier_digests = [info.digest for info in registry.snapshots(project) if info.digest != self.run.snapshot]
        newest_digests = earlier_digests[-self.settings.replay_snapshots :] if self.settings.replay_snapshots else []
        return tuple(registry.fetch_snapshot(project, digest, self.cache) for digest in newest_digests)

    def _method(self) -> str:
        return training_method(
            self._parent()[1],
            self.settings.prompt_model,
            self.run.classes,
            int(self.run.snapshot_counts.get("images", 0)),
            self.settings.few_shot_images,
        )

    def _train(self, snapshot: Path) -> None:
        self.run.candidate = f"p{self.run.project}-{self.run.id}"
        self._stage(self.run.method)
        if not (self.checkpoint / METADATA_FILE).is_file():
            request = self._few_shot() if self.run.method == FEW_SHOT else self._finetune()
            common = {"snapshot": snapshot.absolute(), "out": self.training_folder, "classes": self.run.classes}
            command = self.parts.command(self.run.method, {**request, **common})
            result = self._child(
                "finetune", command, lambda: self.parts.progress.show(read_json(self.training_folder / PROGRESS_FILE))
            )
            self.run.losses = tuple(self.parts.progress.curve)
            if result.code or not (self.checkpoint / METADATA_FILE).is_file():
                raise _failure("finetuning" if self.run.method == FINETUNE else "few-shot learning", result)
        # Reports and predictions use the version's name in the registry.
        update_metadata(self.checkpoint, {"version": self.run.candidate})

    @property
    def training_folder(self) -> Path:
        return self.work / "finetune"

    @property
    def checkpoint(self) -> Path:
        return self.training_folder / CHECKPOINT

    def _few_shot(self) -> dict[str, Any]:
        """Input of few-shot learning: always the base, which learns anew from all annotations."""
        return {"base": self.settings.prompt_model.absolute(), "incumbent": self._parent()[1].absolute()}

    def _finetune(self) -> dict[str, Any]:
        serving = self._parent()[1]
        # A prompted detector cannot be finetuned.
        start = SHIPPED / START if is_prompted_detector(serving) else serving
        return {"active": start.absolute(), "replay": [path.absolute() for path in self._earlier_snapshots()]}

    def _judge(self, snapshot: Path) -> tuple[dict[str, Any], ChildResult]:
        """Run the gate: its verdict, {} when its process failed."""
        self._stage("gate")
        registry, project = self.parts.registry, self.run.project
        incumbent, directory = self._parent()
        best_version = registry.best_ever(project)
        folds = self.training_folder / FOLDS_FILE
        request = {
            "candidate": self.checkpoint,
            "incumbent": directory.absolute(),
            "best": registry.fetch(project, best_version, self.cache).absolute()
            if best_version and best_version != incumbent
            else None,
            "snapshot": snapshot.absolute(),
            "earlier": [path.absolute() for path in self._earlier_snapshots()],
            "folds": folds if folds.is_file() else None,
            "out": self.work,
        }
        (self.work / VERDICT_FILE).unlink(missing_ok=True)
        result = self._child("gate", self.parts.command(JUDGE, request), lambda: None)
        return read_json(self.work / VERDICT_FILE), result

    def _publish(self, verdict: Mapping[str, Any]) -> None:
        """Publish the version with the gate's verdict; without one it stays a candidate."""
        self._stage("publish")
        registry, project, version = self.parts.registry, self.run.project, self.run.candidate
        registry.publish(project, self.checkpoint, version=version, parent=self.run.parent, snapshot=self.run.snapshot)
        if not verdict:
            return
        self.run.order = str(verdict.get("order", ""))
        self.run.reasons = tuple(verdict["reasons"])
        self.run.figures = dict(verdict["figures"])
        self.run.metrics = dict(verdict.get("metrics", {}))
        registry.mark(
            project, version, "promoted" if verdict["promote"] else "rejected", {**verdict, "run": self.run.id}
        )
        if (report := self.work / "report").is_dir():
            registry.attach(project, version, report)
            pictures = sorted((report / "pictures").glob("before_after*"))
            self.run.pictures = tuple(f"pictures/{path.name}" for path in pictures)

    def _promote(self) -> None:
        self._stage("promote")
        registry, project = self.parts.registry, self.run.project
        if registry.active(project) is None:
            # So that a rollback of the first promotion has somewhere to go.
            registry.promote(project, registry.publish(project, self.settings.model))
        registry.promote(project, self.run.candidate)
        log.info("project %s: %s serves now", project, self.run.candidate)

    # Books

    def _child(self, name: str, command: list[str], look: Callable[[], None]) -> ChildResult:
        result = run_child(command, self.work, name, look=look, stop_because=self.parts.stop_because)
        if result.stopped_for:
            raise Interrupted(result.stopped_for)
        return result

    def _stage(self, stage: str) -> None:
        if reason := self.parts.stop_because():
            raise Interrupted(reason)
        self._end_stage()
        self.run.stage = stage
        log.info("project %s, round %s: %s", self.run.project, self.run.id, stage)
        self.parts.progress.stage(stage)
        self._save()

    def _end_stage(self) -> None:
        """Record the time of the stage that ends here, that of its ended child processes included."""
        now = (time.time(), _cpu_s())
        if self.stage_began is not None:
            books = (self.run.stage_s, self.run.stage_cpu_s)
            for book, start_s, end_s in zip(books, self.stage_began, now, strict=True):
                book[self.run.stage] = round(book.get(self.run.stage, 0.0) + end_s - start_s, 1)
        self.stage_began = now

    def _over(self, state: str) -> Run:
        self._end_stage()
        self.run.state = state
        self.run.ended_at = time.time()
        self._save()
        return self.run

    def _save(self) -> None:
        self.parts.runs.save(self.run)


def training_method(serving: Path, base: Path, labels: Collection[str], images: int, most_images: int) -> str:
    """Choose few-shot learning where a prompted detector serves, or for few images of labels unknown to what serves.

    Args:
        serving: checkpoint that serves the project. base: checkpoint that few-shot learning starts from.
    """
    if not is_prompted_detector(base) or not most_images:
        return FINETUNE
    if is_prompted_detector(serving):
        return FEW_SHOT if images <= max(most_images, MOST_KEPT_IMAGES) else FINETUNE
    knows_any = bool(set(read_metadata(serving)["classes"]) & set(labels))
    return FINETUNE if knows_any or images > most_images else FEW_SHOT


def is_prompted_detector(checkpoint: Path) -> bool:
    """Whether a checkpoint's network is a `PromptedDetector`; False where there is none."""
    return (checkpoint / METADATA_FILE).is_file() and read_metadata(checkpoint).get("preset") == PRESET


def newest_trigger_state(registry: Registry, store: RunStore, project: str) -> str:
    """ISO time up to which annotations are in a snapshot.

    A round with the data of an older snapshot (somebody submitted again without a change) counts as well: else the
    same annotations would stay new.
    """
    snapshot_times = [info.newest_annotation_at for info in registry.snapshots(project)]
    times = [*snapshot_times, *(run.newest_annotation_at for run in store.newest(project))]
    return max((iso for iso in times if iso), key=parse_time, default="")


def _cpu_s() -> float:
    """Processor seconds of this process and of its children that ended."""
    usages = [resource.getrusage(process_kind) for process_kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _failure(step: str, result: ChildResult) -> ServiceError:
    ending = f"was killed by signal {-result.code}" if result.code < 0 else f"ended with exit code {result.code}"
    last_line = result.tail.rpartition("\n")[2] or "it printed nothing"
    return ServiceError(
        f"Process of {step} {ending}: {last_line}", "Its log is beside the record of the round, in the registry."
    )
