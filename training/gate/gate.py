"""One judgement: candidate, incumbent and best-ever on the same hold-out, by the evaluator of `transfiner evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoints.metadata import read_metadata
from model.files import json_values
from training.gate.bootstrap import Changes, bootstrap_changes, changes_as_dict
from training.gate.detections import Detect, DetectionCache, detect_with, read_folds
from training.gate.holdout import Holdout, HoldoutResult, measure, open_holdout
from training.gate.rules import GateRules
from training.gate.verdict import (
    Ruling,
    Verdict,
    rule_best,
    rule_better,
    rule_classes,
    rule_first,
    rule_forgetting,
    rule_method,
    rule_tiny,
    rule_unknown_labels,
)


def judge(
    candidate: Path,
    incumbent: Path | None,
    best: Path | None,
    holdout: Path | str,
    *,
    earlier: Sequence[Path] = (),
    rules: GateRules | None = None,
    detect: Detect | None = None,
    folds: Path | None = None,
    out: Path | None = None,
) -> Verdict:
    """Decide whether a candidate may serve.

    Args:
        incumbent: what serves now; None for a first version.
        best: the best version that ever served; None if it is the incumbent or there is none.
        holdout: snapshot directory whose hold-out decides.
        earlier: snapshot directories whose hold-outs must not be forgotten.
        detect: what lets a checkpoint look at pictures; by default our network on the CPU.
        folds: file of a cross-validation on the training images (`training.gate.detections`); decides, together with
            the hold-out, where that has fewer annotated images than the rules' `min_images`.
        out: folder for report.json, report.md, MODEL_CARD.md and pictures/, ready for `Registry.attach`.

    Raises:
        CheckpointError: a directory is no checkpoint.
        FileNotFoundError: a snapshot has no hold-out, or lacks a picture.
    """
    rules = rules or GateRules()
    detect = detect or detect_with()
    models = {"candidate": candidate, "incumbent": incumbent, "best": best}
    asked = open_holdout(Path(holdout))
    if folds is not None and folds.is_file() and asked.annotated_images < rules.min_images:
        crossed = read_folds(folds, candidate, incumbent)
        detect = crossed.detect(detect)
        asked = open_holdout(Path(holdout), folds=crossed.count)
        models["best"] = None  # it may have learned from these images
    present = {role: _Model.read(path) for role, path in models.items() if path is not None}
    bench = _Bench(present, rules, DetectionCache(detect))
    measured = bench.measure(asked)
    changes = {
        role: bootstrap_changes(measured["candidate"], result, rules)
        for role, result in measured.items()
        if role != "candidate" and asked.annotated_images
    }
    ruling = _rule(bench, asked, measured, changes)
    figures = {
        "rules": asdict(rules),
        "holdout": asked.as_dict(),
        "models": {role: bench.models[role].as_dict() | result.figures() for role, result in measured.items()},
        "changes": {role: changes_as_dict(change) for role, change in changes.items()},
        "earlier": [bench.look_back(open_holdout(path, asked.classes), ruling) for path in earlier],
    }
    verdict = Verdict(ruling.promote, ruling.reasons, json_values(figures))
    if out is not None:
        from training.gate.report import write_gate_report  # draws, which most judgements do not

        seen = {role: bench.detections(model, asked) for role, model in bench.models.items()}
        write_gate_report(out, verdict, candidate, asked, seen)
    return verdict


@dataclass(frozen=True, slots=True)
class _Model:
    directory: Path
    version: str
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def read(cls, directory: Path) -> _Model:
        metadata = read_metadata(directory)
        return cls(directory, str(metadata["version"]), tuple(metadata["classes"]), str(metadata.get("digest", "")))

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.version, "digest": self.digest, "classes": list(self.classes)}


@dataclass
class _Bench:
    """The models at hand and what they found so far."""

    models: dict[str, _Model]
    rules: GateRules
    findings: DetectionCache

    def detections(self, model: _Model, holdout: Holdout) -> list[Any]:
        if not set(model.classes) & set(holdout.classes):
            return [[] for _ in holdout.keys]  # whatever it finds is none of the labels
        return self.findings.on(model.directory, holdout.samples, holdout.keys)

    def measure(self, holdout: Holdout, roles: Sequence[str] | None = None) -> dict[str, HoldoutResult]:
        return {
            role: measure(holdout, self.detections(model, holdout), model.classes, self.rules.boundary_ratio)
            for role, model in self.models.items()
            if roles is None or role in roles
        }

    def look_back(self, holdout: Holdout, ruling: Ruling) -> dict[str, Any]:
        """Candidate and incumbent on an earlier hold-out."""
        facts = holdout.as_dict()
        if "incumbent" not in self.models or not holdout.annotated_images:
            return facts
        measured = self.measure(holdout, ("candidate", "incumbent"))
        changes = bootstrap_changes(measured["candidate"], measured["incumbent"], self.rules)
        rule_forgetting(ruling, changes, holdout, self.rules)
        figures = {role: result.figures() for role, result in measured.items()}
        return facts | {"models": figures, "changes": changes_as_dict(changes)}


def _rule(bench: _Bench, asked: Holdout, measured: dict[str, HoldoutResult], changes: dict[str, Changes]) -> Ruling:
    ruling, rules = Ruling(), bench.rules
    for role, result in measured.items():
        if unknown := [name for name in asked.classes if name not in result.known]:
            ruling.notes.append(f"the {role} does not know {', '.join(unknown)}: counted as never found")
    if not asked.annotated_images:
        ruling.against.append(
            "the hold-out has no annotated image: nothing was measured; annotate more images (about one in five is "
            "held out), or promote by hand"
        )
        return ruling
    rule_method(ruling, measured["candidate"], rules)
    if "incumbent" in measured and not measured["incumbent"].known:
        rule_unknown_labels(ruling, measured["candidate"], asked)
    elif "incumbent" not in changes:
        rule_first(ruling, measured["candidate"], rules)
    elif asked.annotated_images < rules.min_images:
        rule_tiny(ruling, changes["incumbent"], asked, rules)
    else:
        rule_better(ruling, changes["incumbent"], rules)
        rule_classes(ruling, changes["incumbent"], asked, rules)
    if "best" in changes:
        rule_best(ruling, changes["best"], bench.models["best"].version, rules)
    return ruling
