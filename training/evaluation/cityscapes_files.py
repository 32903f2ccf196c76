"""Cityscapes' files: ground truth as instance images, predictions as one text file and mask images an image.

A line of a prediction file is ``mask.png LABEL_ID SCORE``; the file's name begins as the ground truth's does
(``frankfurt_000000_000294``); every pixel of a mask other than 0 belongs to the object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from training.evaluation.cityscapes_ap import LARGEST_LABEL, RATIO, CityscapesEvaluation
from training.evaluation.coco_reading import RecordError
from training.evaluation.in_processes import in_order
from training.evaluation.pairs import Kind

ENDING = "_gtFine_instanceIds.png"
CHUNK = 4  # images that a process reads in one go
WORTH_PROCESSES = 24  # with fewer images, starting processes takes longer than reading them
Line = tuple[Path, int, float]


def cityscapes_ap(
    truths: Path,
    found: Path,
    kind: Kind = "segm",
    *,
    ratio: float = RATIO,
    processes: int = 1,
    progress: Callable[[int, int], object] = max,
) -> tuple[dict[str, float], int, int]:
    """(numbers, images, detections) of a folder of predictions for a folder of ground truth, read image by image.

    Args:
        truths: searched for ``*_gtFine_instanceIds.png``, for instance ``gtFine/val``.
        found: searched for the prediction files.
        kind: ``segm`` or ``boundary``.
        ratio: boundary width / image diagonal.
        processes: to share the images among; the numbers are the same.
        progress: told (images done, images in all).

    Raises:
        RecordError: a file is missing or malformed; the message names it, and the line.
        ValueError: the kind is not defined for Cityscapes.
    """
    if kind not in ("segm", "boundary"):
        raise ValueError(f"Cityscapes compares masks: metric {kind!r} is not defined there; choose segm or boundary")
    images = sorted(truths.rglob(f"*{ENDING}"))
    if not images:
        raise RecordError(f"{truths}: holds no *{ENDING}; expected the folder of Cityscapes' gtFine or a split of it")
    texts = sorted(found.rglob("*.txt"))
    compared: Literal["segm", "boundary"] = "boundary" if kind == "boundary" else "segm"
    evaluation, count, done = CityscapesEvaluation(compared, ratio), 0, 0
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    work = [([(path, _prediction_of(path, texts, found)) for path in some], found, compared, ratio) for some in chunks]
    for part, lines, read in in_order(_evaluated, work, processes if len(images) >= WORTH_PROCESSES else 1):
        evaluation.join(part)
        count, done = count + lines, done + read
        progress(done, len(images))
    return evaluation.numbers(), len(images), count


def _evaluated(
    images: list[tuple[Path, Path]], found: Path, kind: Literal["segm", "boundary"], ratio: float
) -> tuple[CityscapesEvaluation, int, int]:
    """(some images collected, their detections, how many they are), from (truth, prediction file) of each."""
    evaluation, count = CityscapesEvaluation(kind, ratio), 0
    for path, text in images:
        ids = read_instance_ids(path)
        lines = read_lines(text, found)
        masks = [read_mask(mask, ids.shape) for mask, _, _ in lines]
        evaluation.add(ids, masks, [label for _, label, _ in lines], [score for _, _, score in lines])
        count += len(lines)
    return evaluation, count, len(images)


def _prediction_of(truth: Path, texts: Sequence[Path], found: Path) -> Path:
    begin = truth.name.removesuffix(ENDING)
    fitting = [one for one in texts if one.name.startswith(begin)]
    if len(fitting) != 1:
        raise RecordError(f"{found}: holds {len(fitting)} files {begin}*.txt; expected exactly one for {truth.name}")
    return fitting[0]


def read_instance_ids(path: Path) -> np.ndarray:
    """int H x W of an instance image. Raises RecordError."""
    ids = _pixels(path)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise RecordError(f"{path}: has shape {ids.shape}; expected one channel of instance ids")
    ids = ids.astype(np.int64)
    labels = np.unique(np.where(ids < 1000, ids, ids // 1000))
    if labels[0] < 0 or labels[-1] > LARGEST_LABEL:
        raise RecordError(f"{path}: has label {labels[-1]}; expected label ids 0 to {LARGEST_LABEL}")
    return ids


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """bool H x W of a prediction's mask. Raises RecordError."""
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) != 0
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"{path}: is no readable image: {error}") from error
    if mask.shape != shape:
        raise RecordError(f"{path}: is {mask.shape} pixels; expected {shape} as in the ground truth")
    return mask


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"{path}: is no readable image: {error}") from error


def read_lines(path: Path, root: Path) -> list[Line]:
    """(mask file, label id, score) of each line of a prediction file; masks lie below `root`. Raises RecordError."""
    lines: list[Line] = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as text: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        place, parts = f"{path}:{number}", line.split(" ")
        if len(parts) != 3:
            raise RecordError(f"{place}: has {len(parts)} words; expected MASK.png LABEL_ID SCORE")
        mask = (path.parent / parts[0]).resolve()
        if Path(parts[0]).is_absolute() or not mask.is_relative_to(root.resolve()):
            raise RecordError(f"{place}: mask {parts[0]!r} lies outside {root}; expected a relative path inside")
        if any(mask == known for known, _, _ in lines):
            raise RecordError(f"{place}: mask {parts[0]!r} is listed twice")
        label, score = _number(parts[1], f"{place}: label"), _number(parts[2], f"{place}: score")
        if not -1 <= label <= LARGEST_LABEL:
            raise RecordError(f"{place}: label {parts[1]!r}; expected a Cityscapes label id up to {LARGEST_LABEL}")
        lines.append((mask, int(label), score))
    return lines


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecordError(f"{place}: {text!r}; expected a finite number")
    return value


def write_predictions(
    folder: Path, name: str, masks: Sequence[np.ndarray], labels: Sequence[int], scores: Sequence[float]
) -> None:
    """Write one image's detections as Cityscapes' server takes them; `name` as in frankfurt_000000_000294."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (mask, label, score) in enumerate(zip(masks, labels, scores, strict=True)):
        file = f"{name}_{index}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file)
        lines.append(f"{file} {label} {score}\n")
    (folder / f"{name}.txt").write_text("".join(lines))
