"""The report of a verdict: report.json, report.md, the version's card, and pictures.

Pictures before and after show truth, the incumbent's and the candidate's masks where they differ most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from model.checkpoints.metadata import read_metadata
from training.datasets.pictures import captioned, cell, class_colours, in_rows
from training.evaluation.coco_format import decode_masks
from training.gate.detections import Detection
from training.gate.holdout import Holdout
from training.gate.verdict import ModelFigures, Verdict

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
_CELL_PX = (320, 240)
JPEG_QUALITY = 82


def draw_before_after(
    holdout: Holdout,
    seen: dict[str, list[Sequence[Detection]]],
    models: dict[str, ModelFigures],
    path: Path,
    rows: int = 4,
) -> None:
    """Draw the pictures of a hold-out that gained most and lost most into a JPEG.

    Args:
        seen: what "candidate" and, if there is one, "incumbent" found on each picture.
    """
    roles = [role for role in ("incumbent", "candidate") if role in seen]
    titles = ["people", *(f"{_WHEN[role]}: {models[role]['version']}" for role in roles)]
    chosen = _telling(holdout, [seen[role] for role in roles], rows)
    sheet = in_rows([_row(holdout, index, [seen[role][index] for role in roles], titles) for index in chosen])
    sheet.save(path, quality=JPEG_QUALITY)


_WHEN = {"incumbent": "before", "candidate": "after"}


def _telling(holdout: Holdout, detections: list[list[Sequence[Detection]]], rows: int) -> list[int]:
    """Indices of pictures by falling change of agreement: half that gained, half that lost."""
    agreed = np.array(
        [[_agreement(holdout, index, of_role[index]) for index in range(len(holdout.keys))] for of_role in detections]
    )
    order = np.argsort(agreed[-1] - agreed[0] if len(detections) > 1 else agreed[0], kind="stable")
    ends = order if len(order) <= rows else np.concatenate((order[: rows // 2], order[-(rows - rows // 2) :]))
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
