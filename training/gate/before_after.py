"""Pictures before and after: truth, the incumbent's and the candidate's masks, where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as rle

from training.datasets import Sample
from training.gate.findings import Found
from training.gate.holdout import Holdout
from training.pictures import in_rows, tinted

LEAST_SCORE = 0.5  # of what is drawn
_CELL_PX = (320, 240)
_HEADING_PX = 18


def draw_before_after(
    holdout: Holdout,
    seen: dict[str, list[Sequence[Found]]],
    models: dict[str, Any],
    path: Path,
    rows: int = 4,
) -> None:
    """Draw the pictures of a hold-out that gained most and lost most into a PNG.

    Args:
        seen: what "candidate" and, if there is one, "incumbent" found on each picture.
        models: with the "version" of each.
    """
    roles = [role for role in ("incumbent", "candidate") if role in seen]
    chosen = _telling(holdout, [seen[role] for role in roles], rows)
    sheet = in_rows([_row(holdout, index, [seen[role][index] for role in roles]) for index in chosen])
    headed = Image.new("RGB", (sheet.width, sheet.height + _HEADING_PX), "white")
    headed.paste(sheet, (0, _HEADING_PX))
    pen = ImageDraw.Draw(headed)
    titles = ["people", *(f"{_WHEN[role]}: {models[role]['version']}" for role in roles)]
    for column, title in enumerate(titles):
        pen.text((4 + column * (_CELL_PX[0] + 4), 3), title, fill="black")
    headed.save(path)


_WHEN = {"incumbent": "before", "candidate": "after"}


def _telling(holdout: Holdout, found: list[list[Sequence[Found]]], rows: int) -> list[int]:
    """Indices of pictures by falling change of agreement: half that gained, half that lost."""
    agreed = np.array([[_agreement(holdout, index, one[index]) for index in range(len(holdout.keys))] for one in found])
    order = np.argsort(agreed[-1] - agreed[0] if len(found) > 1 else agreed[0], kind="stable")
    ends = order if len(order) <= rows else np.concatenate((order[: rows // 2], order[-(rows - rows // 2) :]))
    return [int(index) for index in ends[::-1]]


def _agreement(holdout: Holdout, index: int, found: Sequence[Found]) -> float:
    """Mean over the objects of the best IoU with a detection that is drawn; 1 where there is nothing."""
    image_id = holdout.dataset["images"][index]["id"]
    wanted = [one["segmentation"] for one in holdout.dataset["annotations"] if one["image_id"] == image_id]
    shown = [one.segmentation for one in found if one.score >= LEAST_SCORE]
    if not wanted:
        return 0.0 if shown else 1.0
    if not shown:
        return 0.0
    return float(np.asarray(rle.iou(shown, wanted, [0] * len(wanted))).max(axis=0).mean())


def _row(holdout: Holdout, index: int, found: Sequence[Sequence[Found]]) -> list[np.ndarray]:
    sample = holdout.samples[index]
    cells = [(sample.masks, sample.classes)]
    for one in found:
        shown = [each for each in one if each.score >= LEAST_SCORE]
        masks = [rle.decode(each.segmentation).astype(bool) for each in shown]
        labels = [holdout.classes.index(each.label) if each.label in holdout.classes else 0 for each in shown]
        cells.append((np.array(masks, bool).reshape(-1, *sample.image.shape[:2]), np.array(labels, np.int64)))
    return [_cell(sample, masks, labels) for masks, labels in cells]


def _cell(sample: Sample, masks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The tinted picture, fitted into a cell of fixed size."""
    picture = ImageOps.contain(Image.fromarray(tinted(sample.image, masks, labels)), _CELL_PX)
    cell = Image.new("RGB", _CELL_PX, "white")
    cell.paste(picture, ((_CELL_PX[0] - picture.width) // 2, (_CELL_PX[1] - picture.height) // 2))
    return np.asarray(cell)
