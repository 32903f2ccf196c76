"""One judgement: candidate, incumbent and best-ever on the same hold-out, by the evaluator of `transfiner evaluate`.

`judge` decides, and writes report.json, report.md, the version's card, and pictures before and after, which show truth,
the incumbent's and the candidate's masks where they differ most. `record_bf16` measures what bf16 costs a candidate:
the same weights in both precisions on the same images, kept where `auto` looks; the short form of
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
        folds: file of a cross-validation on the training images (`training.gate.holdout`); decides, together with
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
    ruling = decide(measured, changes, rules, best=present["best"].version if "best" in present else None)
    figures = {
        "rules": asdict(rules),
        "holdout": asked.as_dict(),
        "models": {role: bench.models[role].as_dict() | result.figures() for role, result in measured.items()},
        "changes": {role: changes_as_dict(change) for role, change in changes.items()},
        "earlier": [bench.look_back(open_holdout(path, asked.classes), ruling) for path in earlier],
    }
    verdict = Verdict(ruling.promote, ruling.reasons, json_values(figures))
    if out is not None:
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


BEFORE_AFTER = "pictures/before_after.jpg"


def write_gate_report(
    out: Path, verdict: Verdict, candidate: Path, holdout: Holdout, seen: dict[str, list[Sequence[Detection]]]
) -> None:
    """Write report, card and pictures of a verdict into a folder, ready for `Registry.attach`.

    Args:
        seen: what "candidate" and, if there is one, "incumbent" found on each picture of the hold-out.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = []
    if holdout.annotated_images:
        draw_before_after(holdout, seen, verdict.figures["models"], out / BEFORE_AFTER)
        pictures.append(BEFORE_AFTER)
    metadata = read_metadata(candidate)
    (out / "MODEL_CARD.md").write_text(_card(verdict, metadata, pictures), encoding="utf-8")
    (out / "report.md").write_text(_report(verdict, pictures), encoding="utf-8")
    text = json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")


def _card(verdict: Verdict, metadata: dict[str, Any], pictures: Sequence[str]) -> str:
    holdout = verdict.figures["holdout"]
    before = verdict.figures["models"].get("incumbent")
    lines = [
        f"# {metadata['version']}",
        "",
        f"Mask Transfiner, finetuned on corrections. Classes: {', '.join(metadata['classes'])}.",
        f"It was compared with {before['version']}." if before else "Nothing served before it.",
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
    """Whatever the checkpoint says about itself, one fact a line."""
    shown = {key: value for key, value in metadata.items() if key not in ("version", "classes")}
    return [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in shown.items()]


def _report(verdict: Verdict, pictures: Sequence[str]) -> str:
    decided = "may serve" if verdict.promote else "is refused"
    name = verdict.figures["models"]["candidate"]["version"]
    rules = ", ".join(f"{key} {value}" for key, value in verdict.figures["rules"].items())
    return "\n".join([f"# {name} {decided}", "", *_body(verdict, pictures), "", f"Rules: {rules}."]) + "\n"


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
    holdout: Holdout, seen: dict[str, list[Sequence[Detection]]], models: dict[str, ModelFigures], path: Path
) -> None:
    """Draw the pictures of a hold-out that gained most and lost most into a JPEG.

    Args:
        seen: what "candidate" and, if there is one, "incumbent" found on each picture.
    """
    roles = [role for role in ("incumbent", "candidate") if role in seen]
    titles = ["people", *(f"{_WHEN[role]}: {models[role]['version']}" for role in roles)]
    chosen = _telling(holdout, [seen[role] for role in roles])
    sheet = in_rows([_row(holdout, index, [seen[role][index] for role in roles], titles) for index in chosen])
    sheet.save(path, quality=JPEG_QUALITY)


_WHEN = {"incumbent": "before", "candidate": "after"}


def _telling(holdout: Holdout, detections: list[list[Sequence[Detection]]]) -> list[int]:
    """Indices of pictures by falling change of agreement: half that gained, half that lost."""
    agreed = np.array(
        [[_agreement(holdout, index, of_role[index]) for index in range(len(holdout.keys))] for of_role in detections]
    )
    order = np.argsort(agreed[-1] - agreed[0] if len(detections) > 1 else agreed[0], kind="stable")
    ends = order if len(order) <= _ROWS else np.concatenate((order[: _ROWS // 2], order[-_ROWS // 2 :]))
    return [int(index) for index in ends[::-1]]


def _agreement(holdout: Holdout, index: int, detections: Sequence[Detection]) -> float:
    """Mean over the objects of the best IoU with a detection that is drawn; 1 where there is nothing."""
    image_id = holdout.dataset["images"][index]["id"]
    wanted = [
        annotation["segmentation"]
        for annotation in holdout.dataset["annotations"]
        if annotation["image_id"] == image_id
    ]
    shown = [detection.segmentation for detection in detections if detection.score >= LEAST_SCORE]
    if not wanted:
        return 0.0 if shown else 1.0
    if not shown:
        return 0.0
    return float(np.asarray(rle.iou(shown, wanted, [0] * len(wanted))).max(axis=0).mean())


def _row(
    holdout: Holdout, index: int, detections: Sequence[Sequence[Detection]], titles: Sequence[str]
) -> list[Image.Image]:
    """A picture with what people drew, then with what each model finds."""
    sample = holdout.samples[index]
    shape_hw, columns = sample.image.shape[:2], [(sample.masks, sample.classes)]
    for of_image in detections:
        shown = [each for each in of_image if each.score >= LEAST_SCORE]
        labels = [holdout.classes.index(each.label) if each.label in holdout.classes else 0 for each in shown]
        columns.append((decode_masks([each.segmentation for each in shown], shape_hw), np.array(labels, np.int64)))
    return [
        captioned(cell(sample.image, masks, class_colours(labels + 5), _CELL_PX, "black"), title)
        for (masks, labels), title in zip(columns, titles, strict=True)
    ]


#: Images held out to compare on. Where they are fewer than `LEAST_IMAGES`, training images join them: what those
#: taught is the same in both precisions.
LEAST_IMAGES, MOST_IMAGES = 8, 16


def record_bf16(candidate: Path, snapshot: Path, rules: GateRules, detect: Detect) -> dict[str, Any] | None:
    """Measure a candidate in bf16 beside fp32 and write the outcome into its metadata, see `is_measured`.

    Args:
        detect: what it finds in fp32.

    Returns:
        ``images``, and for ``mask_ap`` and ``boundary_ap`` both figures and their difference with its interval, as
        fractions; None where this processor is not fast at bf16, the network has none, or nothing is annotated.
    """
    # Here, so that judging by verdicts needs no torch.
    from model.inference.precision import has_fast_bf16, keeps_ap
    from training.evaluation.precision import ap_differences

    metadata = read_metadata(candidate)
    digest = metadata.get("digest")
    known: dict[str, Any] = metadata.get("bf16") or {}
    if known.get("digest") == digest or not has_fast_bf16():
        return known or None
    held = len(open_snapshot(snapshot).open_set("holdout"))
    whole = open_holdout(snapshot, folds=int(held < LEAST_IMAGES))
    images = _first(whole, min(max(held, LEAST_IMAGES), MOST_IMAGES))
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
    kept = {image["id"] for image in records}
    annotations = [annotation for annotation in holdout.dataset["annotations"] if annotation["image_id"] in kept]
    return replace(
        holdout,
        samples=MadeSamples(range(len(records)), holdout.samples.__getitem__),
        keys=holdout.keys[: len(records)],
        dataset={**holdout.dataset, "images": records, "annotations": annotations},
    )
