"""Judge a candidate: it, the incumbent and the best-ever on one hold-out, by the evaluator of `transfiner evaluate`.

`judge` decides, and writes report.json, report.md, the version's card, and pictures before and after, which show truth,
the incumbent's and the candidate's masks where they differ most. `record_bf16` measures the AP that a candidate loses
in bf16, on the same images, and stores it in its metadata, where the precision `auto` reads it; it is the short form of
`training.evaluation.precision`, for a version that a round has just learned.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from model.checkpoints.metadata import read_metadata, update_metadata
from model.files import json_values
from training.datasets.pictures import captioned, cell, class_colours, in_rows
from training.datasets.sample import MadeSamples
from training.evaluation.coco_format import decode_masks
from training.gate.holdout import (
    Detect,
    Detection,
    DetectionCache,
    Holdout,
    HoldoutResult,
    detect_with,
    measure,
    open_holdout,
    read_folds,
)
from training.gate.verdict import (
    GateRules,
    ModelFigures,
    Ruling,
    Verdict,
    bootstrap_changes,
    changes_as_dict,
    decide,
    rule_forgetting,
)
from training.snapshots.format import open_snapshot

log = logging.getLogger(__name__)


def judge(
    candidate: Path,
    incumbent: Path | None,
    best_served: Path | None,
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
        best_served: the best version that ever served; None if it is the incumbent or there is none.
        holdout: snapshot directory whose hold-out decides.
        earlier: snapshot directories whose hold-outs must not be forgotten.
        detect: runs a checkpoint on pictures; by default our network on the CPU.
        folds: file of a cross-validation on the training images (`training.gate.holdout`); decides, together with
            the hold-out, where that has fewer annotated images than the rules' `min_images`.
        out: folder for report.json, report.md, MODEL_CARD.md and pictures/, ready for `Registry.attach`.

    Raises:
        CheckpointError: a directory is no checkpoint.
        FileNotFoundError: a snapshot has no hold-out, or lacks a picture.
    """
    rules = rules or GateRules()
    detect = detect or detect_with()
    models = {"candidate": candidate, "incumbent": incumbent, "best": best_served}
    holdout_set = open_holdout(Path(holdout))
    if folds is not None and folds.is_file() and holdout_set.annotated_images < rules.min_images:
        cross_validation = read_folds(folds, candidate, incumbent)
        detect = cross_validation.detect(detect)
        holdout_set = open_holdout(Path(holdout), folds=cross_validation.count)
        models["best"] = None  # it may have learned from these images
    models_by_role = {role: _Model.read(path) for role, path in models.items() if path is not None}
    bench = _Bench(models_by_role, rules, DetectionCache(detect))
    results = bench.measure(holdout_set)
    changes = {
        role: bootstrap_changes(results["candidate"], result, rules)
        for role, result in results.items()
        if role != "candidate" and holdout_set.annotated_images
    }
    ruling = decide(
        results, changes, rules, best_name=models_by_role["best"].version if "best" in models_by_role else None
    )
    figures = {
        "rules": asdict(rules),
        "holdout": holdout_set.as_dict(),
        "models": {role: bench.models[role].as_dict() | result.figures() for role, result in results.items()},
        "changes": {role: changes_as_dict(change) for role, change in changes.items()},
        "earlier": [bench.look_back(open_holdout(path, holdout_set.classes), ruling) for path in earlier],
    }
    verdict = Verdict(ruling.promote, ruling.reasons, json_values(figures))
    if out is not None:
        detections = {role: bench.detections(model, holdout_set) for role, model in bench.models.items()}
        write_gate_report(out, verdict, candidate, holdout_set, detections)
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
    """The models to compare, and their detections so far."""

    models: dict[str, _Model]
    rules: GateRules
    findings: DetectionCache

    def detections(self, model: _Model, holdout: Holdout) -> list[Any]:
        if not set(model.classes) & set(holdout.classes):
            return [[] for _ in holdout.keys]  # none of its classes is in the hold-out
        return self.findings.on(model.directory, holdout.samples, holdout.keys)

    def measure(self, holdout: Holdout, roles: Sequence[str] | None = None) -> dict[str, HoldoutResult]:
        return {
            role: measure(holdout, self.detections(model, holdout), model.classes, self.rules.boundary_ratio)
            for role, model in self.models.items()
            if roles is None or role in roles
        }

    def look_back(self, holdout: Holdout, ruling: Ruling) -> dict[str, Any]:
        """Compare candidate and incumbent on an earlier hold-out, and rule on forgetting."""
        facts = holdout.as_dict()
        if "incumbent" not in self.models or not holdout.annotated_images:
            return facts
        results = self.measure(holdout, ("candidate", "incumbent"))
        changes = bootstrap_changes(results["candidate"], results["incumbent"], self.rules)
        rule_forgetting(ruling, changes, holdout, self.rules)
        figures = {role: result.figures() for role, result in results.items()}
        return facts | {"models": figures, "changes": changes_as_dict(changes)}


BEFORE_AFTER = "pictures/before_after.jpg"


def write_gate_report(
    out: Path, verdict: Verdict, candidate: Path, holdout: Holdout, detections: dict[str, list[Sequence[Detection]]]
) -> None:
    """Write report, card and pictures of a verdict into a folder, ready for `Registry.attach`.

    Args:
        detections: of "candidate" and, if there is one, "incumbent" on each picture of the hold-out.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = []
    if holdout.annotated_images:
        draw_before_after(holdout, detections, verdict.figures["models"], out / BEFORE_AFTER)
        pictures.append(BEFORE_AFTER)
    metadata = read_metadata(candidate)
    (out / "MODEL_CARD.md").write_text(_card(verdict, metadata, pictures), encoding="utf-8")
    (out / "report.md").write_text(_report(verdict, pictures), encoding="utf-8")
    text = json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")


def _card(verdict: Verdict, metadata: dict[str, Any], pictures: Sequence[str]) -> str:
    holdout = verdict.figures["holdout"]
    incumbent = verdict.figures["models"].get("incumbent")
    lines = [
        f"# {metadata['version']}",
        "",
        f"Mask Transfiner, finetuned on corrections. Classes: {', '.join(metadata['classes'])}.",
        f"It was compared with {incumbent['version']}." if incumbent else "Nothing served before it.",
        "",
        f"## Figures by {holdout['description']} ({holdout['objects']} objects)",
        "",
        *_body(verdict, pictures),
        "",
        "## How it came about",
        "",
        *_facts(metadata),
    ]
    return "\n".join(lines) + "\n"


def _facts(metadata: dict[str, Any]) -> list[str]:
    """The checkpoint's metadata, one entry a line."""
    facts = {key: value for key, value in metadata.items() if key not in ("version", "classes")}
    return [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in facts.items()]


def _report(verdict: Verdict, pictures: Sequence[str]) -> str:
    outcome = "may serve" if verdict.promote else "is refused"
    name = verdict.figures["models"]["candidate"]["version"]
    rules = ", ".join(f"{key} {value}" for key, value in verdict.figures["rules"].items())
    return "\n".join([f"# {name} {outcome}", "", *_body(verdict, pictures), "", f"Rules: {rules}."]) + "\n"


def _body(verdict: Verdict, pictures: Sequence[str]) -> list[str]:
    return [
        *(f"- {reason}" for reason in verdict.reasons),
        "",
        "```",
        *verdict.rows(),
        "```",
        "",
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]


LEAST_SCORE = 0.5  # of what is drawn
_ROWS, _CELL_PX = 4, (320, 240)
JPEG_QUALITY = 82


def draw_before_after(
    holdout: Holdout, detections: dict[str, list[Sequence[Detection]]], models: dict[str, ModelFigures], path: Path
) -> None:
    """Draw the pictures of a hold-out that gained most and lost most into a JPEG.

    Args:
        detections: of "candidate" and, if there is one, "incumbent" on each picture.
    """
    roles = [role for role in ("incumbent", "candidate") if role in detections]
    titles = ["people", *(f"{_WHEN[role]}: {models[role]['version']}" for role in roles)]
    indices = _most_changed(holdout, [detections[role] for role in roles])
    sheet = in_rows([_row(holdout, index, [detections[role][index] for role in roles], titles) for index in indices])
    sheet.save(path, quality=JPEG_QUALITY)


_WHEN = {"incumbent": "before", "candidate": "after"}


def _most_changed(holdout: Holdout, detections: list[list[Sequence[Detection]]]) -> list[int]:
    """Indices of pictures by falling change of agreement: half that gained, half that lost."""
    agreements = np.array(
        [[_agreement(holdout, index, of_role[index]) for index in range(len(holdout.keys))] for of_role in detections]
    )
    order = np.argsort(agreements[-1] - agreements[0] if len(detections) > 1 else agreements[0], kind="stable")
    ends = order if len(order) <= _ROWS else np.concatenate((order[: _ROWS // 2], order[-_ROWS // 2 :]))
    return [int(index) for index in ends[::-1]]


def _agreement(holdout: Holdout, index: int, detections: Sequence[Detection]) -> float:
    """Mean over a picture's objects of the best IoU with a detection of score >= LEAST_SCORE; 1 without either."""
    image_id = holdout.dataset["images"][index]["id"]
    truth_rles = [
        annotation["segmentation"]
        for annotation in holdout.dataset["annotations"]
        if annotation["image_id"] == image_id
    ]
    detection_rles = [detection.segmentation for detection in detections if detection.score >= LEAST_SCORE]
    if not truth_rles:
        return 0.0 if detection_rles else 1.0
    if not detection_rles:
        return 0.0
    return float(np.asarray(rle.iou(detection_rles, truth_rles, [0] * len(truth_rles))).max(axis=0).mean())


def _row(
    holdout: Holdout, index: int, detections: Sequence[Sequence[Detection]], titles: Sequence[str]
) -> list[Image.Image]:
    """Draw a picture with the annotations, then with each model's detections."""
    sample = holdout.samples[index]
    shape_hw, columns = sample.image.shape[:2], [(sample.masks, sample.classes)]
    for of_image in detections:
        confident = [detection for detection in of_image if detection.score >= LEAST_SCORE]
        labels = [
            holdout.classes.index(detection.label) if detection.label in holdout.classes else 0
            for detection in confident
        ]
        columns.append(
            (decode_masks([detection.segmentation for detection in confident], shape_hw), np.array(labels, np.int64))
        )
    return [
        captioned(cell(sample.image, masks, class_colours(labels + 5), _CELL_PX, "black"), title)
        for (masks, labels), title in zip(columns, titles, strict=True)
    ]


#: Held-out images to compare on. Where they are fewer than `LEAST_IMAGES`, training images join them: both precisions
#: have learned from them alike.
LEAST_IMAGES, MOST_IMAGES = 8, 16


def record_bf16(candidate: Path, snapshot: Path, rules: GateRules, detect: Detect) -> dict[str, Any] | None:
    """Measure a candidate in bf16 beside fp32 and write the outcome into its metadata, see `is_measured`.

    Args:
        detect: runs it in fp32.

    Returns:
        ``images``, and for ``mask_ap`` and ``boundary_ap`` both figures and their difference with its interval, as
        fractions; None where this processor is not fast at bf16, the network has none, or nothing is annotated.
    """
    # Here, so that judging by verdicts needs no torch.
    from model.inference.precision import has_fast_bf16, keeps_ap
    from training.evaluation.precision import ap_differences

    metadata = read_metadata(candidate)
    digest = metadata.get("digest")
    earlier_outcome: dict[str, Any] = metadata.get("bf16") or {}
    if earlier_outcome.get("digest") == digest or not has_fast_bf16():
        return earlier_outcome or None
    holdout_count = len(open_snapshot(snapshot).open_set("holdout"))
    holdout = open_holdout(snapshot, folds=int(holdout_count < LEAST_IMAGES))
    images = _first(holdout, min(max(holdout_count, LEAST_IMAGES), MOST_IMAGES))
    if not images.annotated_images:
        return None
    try:
        detections = {"bf16": detect_with(precision="bf16")(candidate, images.samples)}
    except ValueError as error:
        log.warning("bf16 is not measured: %s", error)
        return None
    detections["fp32"] = detect(candidate, images.samples)
    results = {precision: images.coco_results(of_precision) for precision, of_precision in detections.items()}
    outcome: dict[str, Any] = {"digest": digest, "set": f"snapshot:{images.name[:12]}", "images": len(images.keys)}
    outcome |= ap_differences(images.dataset, results, rules.boundary_ratio)
    update_metadata(candidate, {"bf16": outcome})
    log.info("bf16 %s the AP of %s: %s", "keeps" if keeps_ap(outcome) else "costs too much of", candidate, outcome)
    return outcome


def _first(holdout: Holdout, count: int) -> Holdout:
    """The first images of a hold-out."""
    records = holdout.dataset["images"][:count]
    image_ids = {image["id"] for image in records}
    annotations = [annotation for annotation in holdout.dataset["annotations"] if annotation["image_id"] in image_ids]
    return replace(
        holdout,
        samples=MadeSamples(range(len(records)), holdout.samples.__getitem__),
        keys=holdout.keys[: len(records)],
        dataset={**holdout.dataset, "images": records, "annotations": annotations},
    )
