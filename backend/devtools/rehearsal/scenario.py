"""What is played: honest rounds, a poisoned one, a rollback; every figure is of the untouched test set."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.devtools.rehearsal.plan import Plan, material_of, write_pool, write_test_set
from backend.devtools.rehearsal.project import RehearsalServers, RehearsedProject, Report, running_servers
from backend.devtools.rehearsal.report import rank_correlations
from backend.errors import ServiceError
from backend.versions.resolve import ServedModel, read_served_model
from model.checkpoints.metadata import WEIGHTS_FILE, read_metadata
from training.registry import Registry


@dataclass
class Scenario:
    """One rehearsal in a folder.

    Attributes:
        model: checkpoint directory that everything starts from.
        options: further variables of the service.
        outcome: grows as it goes; written as report.json.
    """

    folder: Path
    plan: Plan
    model: Path
    report: Report
    options: Mapping[str, str] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)

    def play(self) -> dict[str, Any]:
        """All of it. Raises ServiceError, ClientError: something did not happen; what did is in `outcome`."""
        begun = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        base = read_served_model(self.model)
        self.outcome.update(plan=self.plan.as_dict(), model=base.version, rounds=[], curve=[])
        material = material_of(self.plan)
        images = write_pool(material, self.plan.pool, self.folder / "pool")
        test_set = write_test_set(material, self.plan.test, self.folder / "test")
        with running_servers(self.folder, self.plan, {"MODEL": str(self.model.absolute()), **self.options}) as stage:
            project = RehearsedProject(stage, material, self.report)
            project.set_up("rehearsal", images, base.version)
            self._learn(project, base, test_set)
            self._poison(stage, project)
            self._roll_back(stage, project)
        self.outcome["minutes"] = round((time.monotonic() - begun) / 60, 1)
        return self.outcome

    def _learn(self, project: RehearsedProject, base: ServedModel, test_set: Path) -> None:
        """Honest rounds. What a round promoted predicts what is corrected in the next."""
        start = self._measured(base.version, self.model, test_set)
        curve = self.outcome["curve"] = [{"round": 0, "version": base.version, **start}]
        version = base.version
        for number in range(1, self.plan.rounds + 1):
            predicts = version != base.version or project.is_known_to(base)
            predicted = project.await_predictions(version) if predicts else 0
            work = project.annotate(self.plan.per_round)
            record = project.train()
            if record["state"] == "failed":
                raise ServiceError(f"Round {number} failed: {record['error']}", record["hint"])
            if record["state"] == "rejected" and self.plan.by_hand:
                project.stage.press(project.id, "promote", version=record["candidate"])
                record["state"] = "promoted by hand"
            if record["state"].startswith("promoted"):
                version = record["candidate"]
                project.await_title(version)
            reached = self._measured(version, self._checkpoint(project, version, base), test_set)
            curve.append({"round": number, "version": version, "state": record["state"], **reached})
            self.outcome["rounds"].append(
                {
                    "round": number,
                    "state": record["state"],
                    "serves": version,
                    "candidate": record["candidate"],
                    "parent": record["parent"],
                    "reasons": record["reasons"],
                    "gate": record["metrics"],
                    "snapshot": record["snapshot"],
                    "work": work,
                    "tasks_with_prediction": predicted,
                    "test": reached,
                    "effort": rank_correlations(self._snapshot(project, record["snapshot"])),
                }
            )
            self.report(f"round {number}: {record['state']}, boundary AP {reached['boundary_ap']:.1f}")
        self._save()

    def _poison(self, stage: RehearsalServers, project: RehearsedProject) -> None:
        """Shifted masks and swapped labels: the gate must refuse, and the same file must serve."""
        before = self._served(stage, project)
        work = project.annotate(self.plan.per_round, poison=True)
        record = project.train()
        after = self._served(stage, project)
        self.outcome["poison"] = {
            "state": record["state"],
            "candidate": record["candidate"],
            "reasons": record["reasons"],
            "error": record["error"],
            "gate": record["metrics"],
            "work": work,
            "served_before": before,
            "served_after": after,
            "is_same_file": before == after,
        }
        self._save()

    def _roll_back(self, stage: RehearsalServers, project: RehearsedProject) -> None:
        before = self._served(stage, project)
        if not stage.learning(project.id)["can_roll_back"]:
            self.outcome["rollback"] = {"before": before, "after": before, "said": "no other version served before"}
            return
        stage.press(project.id, "rollback")
        after = self._served(stage, project)
        project.await_title(after["version"])
        self.outcome["rollback"] = {"before": before, "after": after, "title": after["version"]}
        self._save()

    def _measured(self, version: str, checkpoint: Path, test_set: Path) -> dict[str, float]:
        self.report(f"measuring {version} on {self.plan.test} untouched images")
        return measure(checkpoint, test_set)

    def _registry(self) -> Registry:
        return Registry(self.folder / "registry")

    def _checkpoint(self, project: RehearsedProject, version: str, base: ServedModel) -> Path:
        if version == base.version:
            return self.model
        return self._registry().fetch(str(project.id), version, self.folder / "cache")

    def _snapshot(self, project: RehearsedProject, digest: str) -> Path:
        return self._registry().fetch_snapshot(str(project.id), digest, self.folder / "cache")

    def _served(self, stage: RehearsalServers, project: RehearsedProject) -> dict[str, str]:
        """Version that serves, and the sha256 of its weights as they lie on the disk."""
        version = stage.learning(project.id)["active"]
        path = (
            self.model if version is None else self._registry().fetch(str(project.id), version, self.folder / "cache")
        )
        digest = hashlib.sha256((path / WEIGHTS_FILE).read_bytes()).hexdigest()
        return {"version": version or read_served_model(self.model).version, "sha256": digest}

    def _save(self) -> None:
        (self.folder / "report.json").write_text(json.dumps(self.outcome, indent=1, ensure_ascii=False))


def measure(checkpoint: Path, test_set: Path) -> dict[str, float]:
    """mask_ap and boundary_ap, in points, of a checkpoint directory; by the gate's evaluator."""
    from training.gate.holdout import DetectionCache, detect_with, open_holdout
    from training.gate.holdout import measure as measure_on

    holdout = open_holdout(test_set)
    detections = DetectionCache(detect_with()).on(checkpoint, holdout.samples, holdout.keys)
    figures = measure_on(holdout, detections, read_metadata(checkpoint)["classes"], 0.02).figures()
    return {f"{kind}_ap": round(100 * figures[kind]["AP"], 2) for kind in ("mask", "boundary")}
