"""BDD100K's files: bitmasks as RGBA PNG for truth and predictions, and one JSON file with the predictions' scores.

The JSON is a list of ``{"name": "image.jpg", "labels": [{"index": 1, "score": 0.9}, ...]}``; an index is the instance's
number in the image's bitmask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.evaluation.bdd100k_ap import Bdd100kEvaluation, merged
from training.evaluation.coco_reading import RecordError, is_integer, is_number, read_json
from training.evaluation.in_processes import in_order
from training.evaluation.pairs import Kind

CHUNK = 4  # images that a process reads in one go
WORTH_PROCESSES = 24  # with fewer images, starting processes takes longer than reading them
Scores = dict[str, dict[int, float]]


def bdd100k_ap(
    truths: Path,
    found: Path,
    kind: Kind = "segm",
    *,
    processes: int = 1,
    progress: Callable[[int, int], object] = max,
) -> tuple[dict[str, float], int, int]:
    """(numbers, images, detections) of a folder of predictions for a folder of ground truth, read image by image.

    Args:
        truths: with a bitmask each image, for instance ``labels/ins_seg/bitmasks/val``.
        found: with one ``.json`` of scores, and bitmasks of the same names at any depth.
        processes: to share the images among; the numbers are the same.
        progress: told (images done, images in all).

    Raises:
        RecordError: a file is missing or malformed; the message names it, and the record.
        ValueError: the kind is not defined for BDD100K.
    """
    if kind != "segm":
        raise ValueError(f"BDD100K compares bitmasks: metric {kind!r} is not defined there; choose segm")
    images = sorted(truths.rglob("*.png"))
    if not images:
        raise RecordError(f"{truths}: holds no *.png; expected a folder of BDD100K bitmasks")
    lists = sorted(found.rglob("*.json"))
    if len(lists) != 1:
        raise RecordError(f"{found}: holds {len(lists)} .json files; expected exactly one, with the scores")
    scores = read_scores(lists[0])
    bitmasks = {one.name: one for one in found.rglob("*.png")}
    for path in images:
        if path.name not in bitmasks or path.name not in scores:
            where = found if path.name not in bitmasks else lists[0]
            raise RecordError(f"{where}: has nothing for {path.name}; expected every image of {truths}")
    evaluation, done = Bdd100kEvaluation(), 0
    given = [(path, bitmasks[path.name], scores[path.name]) for path in images]
    work = [(given[start : start + CHUNK],) for start in range(0, len(given), CHUNK)]
    for part, read in in_order(_evaluated, work, processes if len(images) >= WORTH_PROCESSES else 1):
        evaluation.join(part)
        done += read
        progress(done, len(images))
    return evaluation.numbers(), len(images), sum(len(one) for _, _, one in given)


def _evaluated(images: list[tuple[Path, Path, dict[int, float]]]) -> tuple[Bdd100kEvaluation, int]:
    """(some images collected, how many they are), from (truth, bitmask, scores) of each."""
    evaluation = Bdd100kEvaluation()
    for path, bitmask, scores in images:
        try:
            evaluation.add(read_bitmask(path), read_bitmask(bitmask), scores)
        except ValueError as error:
            raise RecordError(f"{bitmask} (truth {path}): {error}") from error
    return evaluation, len(images)


def read_bitmask(path: Path) -> np.ndarray:
    """uint8 H x W x 4. Raises RecordError."""
    try:
        with Image.open(path) as picture:
            bitmask = np.array(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"{path}: is no readable image: {error}") from error
    if bitmask.ndim != 3 or bitmask.shape[2] != 4 or bitmask.dtype != np.uint8:
        raise RecordError(f"{path}: has shape {bitmask.shape}; expected an 8-bit RGBA bitmask")
    return bitmask


def read_scores(path: Path) -> Scores:
    """image name ending in .png -> instance number -> score. Raises RecordError."""
    listed = read_json(path)
    if not isinstance(listed, list):
        raise RecordError(f"{path}: is no list; expected [{{name, labels}}, ...]")
    result: Scores = {}
    for index, one in enumerate(listed):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise RecordError(f"{path}: [{index}].name: expected the name of an image")
        labels = one.get("labels") or []
        if not isinstance(labels, list):
            raise RecordError(f"{path}: [{index}].labels: expected a list")
        checked = [_label(label, f"{path}: [{index}].labels[{n}]") for n, label in enumerate(labels)]
        result[one["name"].replace(".jpg", ".png")] = dict(checked)
        if len(dict(checked)) != len(checked):
            raise RecordError(f"{path}: [{index}].labels: an index occurs twice")
    return result


def _label(one: Any, place: str) -> tuple[int, float]:
    if not isinstance(one, dict):
        raise RecordError(f"{place}: is {one!r}; expected an object with index and score")
    if not is_integer(one.get("index")) or not 0 < one["index"] < 1 << 16:
        raise RecordError(f"{place}.index: is {one.get('index')!r}; expected an integer from 1 to 65535")
    if not is_number(one.get("score")):
        raise RecordError(f"{place}.score: is {one.get('score')!r}; expected a finite number")
    return one["index"], float(one["score"])


class PredictionWriter:
    """Writes detections as BDD100K's server takes them: bitmasks/NAME.png, and scores.json when closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: list[dict[str, Any]] = []
        (folder / "bitmasks").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, masks: np.ndarray, categories: Sequence[int], scores: Sequence[float]) -> None:
        """One image's detections: bool N x H x W, BDD100K category numbers from 1, scores; `name` without ending."""
        Image.fromarray(merged(masks, categories, scores)).save(self.folder / "bitmasks" / f"{name}.png")
        labels = [{"index": index, "score": float(score)} for index, score in enumerate(scores, 1)]
        self._listed.append({"name": f"{name}.jpg", "labels": labels})

    def close(self) -> None:
        """Write the scores."""
        (self.folder / "scores.json").write_text(json.dumps(self._listed))
