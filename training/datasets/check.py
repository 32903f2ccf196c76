"""What `data check` reports of a set: counts, labels that look careless or that a model doubts, and pictures.

Doubtful labels are remarks: nothing is left out because of them.

Shapes: H, W size of an image in pixels; N objects; P predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.instance import Instance, iou_matrix
from training.datasets import AnySet, ImageLeftOutError
from training.datasets.coco import CocoSet
from training.datasets.coco_records import is_ignored
from training.datasets.pictures import CROWD_RGB, captioned, cell, class_colours, close_up, in_grid, save_picture
from training.datasets.sample import Problem, Sample
from training.metrics.matching import AREA_RANGES_PX

_CELL_PX = (320, 240)
_MOST_PICTURES = 20  # of each kind of careless labels


def spread(length: int, limit: int) -> list[int]:
    """At most `limit` indices, evenly spread over a set of `length`; all of them with a limit of 0."""
    if not limit or length <= limit:
        return list(range(length))
    return [round(place) for place in np.linspace(0, length - 1, limit)]


def statistics(
    samples: AnySet,
    indices: Sequence[int],
    progress: Callable[[int], object] = int,
    careless_shown: Callable[[Problem, Image.Image], object] | None = None,
) -> dict[str, Any]:
    """Read samples and count: images, sizes, objects by class and by COCO's area ranges, crowds, problems.

    Args:
        careless_shown: called with each label that looks careless and its picture; the first 20 of each kind.
    """
    classes: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    areas: list[int] = []
    remarks, kinds = list[Problem](), Counter[str]()
    crowds = empty_count = left_out = 0
    for read_count, index in enumerate(indices, 1):
        progress(read_count)
        try:
            sample = samples[index]
        except ImageLeftOutError:
            left_out += 1
            continue
        for number, remark in careless_labels(sample, samples, index):
            remarks.append(remark)
            kinds[remark.kind] += 1
            if careless_shown and kinds[remark.kind] <= _MOST_PICTURES:
                careless_shown(remark, object_picture(sample.image, sample.masks[number]))
        sizes.append(sample.image.shape[:2])
        areas += sample.masks.sum((1, 2))[~sample.crowd].tolist()
        classes.update(samples.class_names[label] for label in sample.classes[~sample.crowd])
        crowds += int(sample.crowd.sum())
        empty_count += not len(sample.classes)
    area = np.array(areas)
    return {
        "images": len(samples),
        "images_read": len(indices) - left_out,
        "images_left_out": left_out,
        "images_without_objects": empty_count,
        "objects": int(sum(classes.values())),
        "crowds": crowds,
        "height_px": _range([height for height, _ in sizes]),
        "width_px": _range([width for _, width in sizes]),
        "by_size": {
            name: int(((area >= low) & (area < high)).sum())
            for name, (low, high) in zip(("small", "medium", "large"), AREA_RANGES_PX[1:], strict=True)
        },
        "by_class": {name: classes[name] for name in samples.class_names},
        "problems": dict(samples.problems.counts()),
        "lost": samples.problems.lost,
        "problem_list": [str(problem) for problem in samples.problems.entries],
        "careless": dict(kinds),
        "careless_list": [str(remark) for remark in remarks],
    }


def _range(values: Sequence[int]) -> list[int]:
    return [min(values), max(values)] if values else []


def data_set_contact_sheet(samples: AnySet, indices: Sequence[int], columns: int = 4) -> Image.Image:
    """Images side by side, objects tinted by class and outlined, crowds grey, captions with ids and counts."""
    cells = []
    for index in indices:
        try:
            sample = samples[index]
        except ImageLeftOutError:
            cells.append(captioned(Image.new("RGB", _CELL_PX, "white"), f"sample {index}: left out"))
            continue
        colours = np.where(sample.crowd[:, None], CROWD_RGB, class_colours(sample.classes))
        class_counts = Counter(samples.class_names[label] for label in sample.classes)
        counts = ", ".join(f"{count} {name}" for name, count in class_counts.most_common())
        cells.append(captioned(cell(sample.image, sample.masks, colours, _CELL_PX), f"{sample.image_id}: {counts}"))
    return in_grid(cells, columns)


#: Two masks of one image that overlap by more than this IoU are one object drawn twice.
DUPLICATE_IOU = 0.9
#: A mask smaller than this share of its image, and than `SLIVER_PX` pixels, is a sliver.
SLIVER_SHARE, SLIVER_PX = 1e-4, 64
_CLOSE_UP_PX = 160


def careless_labels(sample: Sample, samples: Any, index: int) -> Iterator[tuple[int, Problem]]:
    """Find objects of a sample that look drawn carelessly: duplicates, slivers, and boxes drawn as polygons.

    Yields:
        The object's number in its sample, and what is to be looked at.
    """
    overlap = iou_matrix(list(sample.masks), list(sample.masks))
    smallest_px = min(SLIVER_PX, SLIVER_SHARE * sample.image.shape[0] * sample.image.shape[1])
    labels = [samples.class_names[label] for label in sample.classes]
    objects = np.flatnonzero(~sample.crowd)
    remarks: list[tuple[int, str, str]] = []
    for n in objects.tolist():
        for m in objects[(objects > n) & (overlap[n, objects] > DUPLICATE_IOU)].tolist():
            detail = f"{labels[m]!r} lies on {labels[n]!r} with IoU {overlap[n, m]:.2f}; is it one object, drawn twice?"
            remarks.append((m, "duplicate object", detail))
        area_px = int(sample.masks[n].sum())
        if area_px < smallest_px:
            detail = f"{labels[n]!r} has {area_px} pixels, fewer than {smallest_px:.3g}; is it a slip of the mouse?"
            remarks.append((n, "sliver", detail))
    boxes = _boxes_drawn_as_polygons(samples, sample)
    places = object_places(samples, sample) if remarks or boxes else []
    for place, outline in boxes.items():
        if place in places:
            detail = f"its polygon is the rectangle {outline}; draw the outline"
            remarks.append((places.index(place), "box drawn as polygon", detail))
    file = str(getattr(samples, "annotations", f"sample {index}"))
    for n, kind, detail in remarks:
        yield n, Problem(file, f"image {sample.image_id}, {places[n]}", kind, detail, repaired=True)


def _boxes_drawn_as_polygons(samples: Any, sample: Sample) -> dict[str, Any]:
    """Place and outline of each object of a COCO file whose polygon is a box."""
    if not isinstance(samples, CocoSet):
        return {}
    annotations = samples.records.annotations[sample.image_id]
    boxes = [
        annotation for annotation in annotations if not is_ignored(annotation) and _is_box(annotation["segmentation"])
    ]
    return {annotation["place"]: annotation["segmentation"][0] for annotation in boxes}


def _is_box(segmentation: Any) -> bool:
    """Whether a segmentation is one polygon with four corners and sides along the axes."""
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return False
    corners: np.ndarray = np.array(segmentation[0], float).reshape(-1, 2)
    if len(corners) == 5 and (corners[0] == corners[4]).all():
        corners = corners[:4]
    sides = np.roll(corners, -1, 0) - corners
    return len(corners) == 4 and bool(((sides == 0).sum(1) == 1).all())


def object_places(samples: Any, sample: Sample) -> list[str]:
    """Name the objects of a sample as its set does (an annotation, a region), else by their numbers."""
    if hasattr(samples, "object_places"):
        places: list[str] = samples.object_places(sample)
        return places
    return [f"object {n}" for n in range(len(sample.masks))]


def object_picture(image: np.ndarray, mask_hw: np.ndarray) -> Image.Image:
    """An object and a margin around it in a small square, its outline in red."""
    margin_px = int(0.25 * max(np.ptp(np.nonzero(mask_hw), axis=1))) + 10
    return close_up(image, [(mask_hw, (255, 0, 0))], margin_px, _CLOSE_UP_PX)


def save_pictures(pictures: Sequence[tuple[Image.Image, str, str]], file: Path) -> None:
    """Write small pictures side by side, each with two lines of text above it."""
    save_picture(in_grid([captioned(*picture) for picture in pictures], columns=5), file)


#: A prediction counts for an object where their masks overlap by this IoU.
SAME_OBJECT_IOU = 0.5
Predict = Callable[[Sequence[np.ndarray]], Sequence[Sequence[Instance]]]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A label that a model disagrees with.

    Attributes:
        image_id: of the image. place: the annotation in a COCO file, else the object's number in its image, from 0.
        label, predicted: the class that was given and the one that the model sees.
        disagreement: score of the predicted class less that of the given one, 0..1.
        picture: the object with its surroundings, outlined.
    """

    image_id: int
    place: str
    label: str
    predicted: str
    disagreement: float
    picture: Image.Image

    def __str__(self) -> str:
        verdict = f"labelled {self.label!r}, the model sees {self.predicted!r} ({self.disagreement:.2f})"
        return f"image {self.image_id}, {self.place}: {verdict}"

    def captioned(self) -> tuple[Image.Image, str, str]:
        """The picture, with the label and the model's prediction as lines above it."""
        return self.picture, f"{self.image_id}: {self.label}", f"model: {self.predicted} {self.disagreement:.2f}"


def doubted_labels(
    samples: AnySet, indices: Sequence[int], predict: Predict, progress: Callable[[int], object] = int
) -> list[Doubt]:
    """Compare labels with a model's predictions, by falling disagreement.

    Classes that the model does not know are not judged.
    """
    doubts: list[Doubt] = []
    for read_count, index in enumerate(indices, 1):
        progress(read_count)
        try:
            sample = samples[index]
        except ImageLeftOutError:
            continue
        image_doubts = doubts_of(sample, samples.class_names, predict([sample.image])[0])
        places = object_places(samples, sample) if image_doubts else []
        doubts += [replace(doubt, place=places[n]) for n, doubt in image_doubts]
    return sorted(doubts, key=lambda doubt: -doubt.disagreement)


def doubts_of(sample: Sample, class_names: Sequence[str], instances: Sequence[Instance]) -> list[tuple[int, Doubt]]:
    """Find labels whose best-scored overlapping prediction is of another class: object number and doubt."""
    predictions = [instance for instance in instances if instance.label in class_names]
    overlap_pn = iou_matrix([instance.mask_hw for instance in predictions], list(sample.masks))
    # A prediction counts only for the object that it fits best: a neighbour's prediction is no doubt.
    best_objects = overlap_pn.argmax(1) if len(sample.masks) else np.zeros(0, int)
    doubts: list[tuple[int, Doubt]] = []
    for n in np.flatnonzero(~sample.crowd):
        label, scores = class_names[sample.classes[n]], dict[str, float]()
        for p, instance in enumerate(predictions):
            if best_objects[p] == n and overlap_pn[p, n] >= SAME_OBJECT_IOU:
                scores[instance.label] = max(scores.get(instance.label, 0.0), instance.score)
        predicted = max(scores, key=lambda name: scores[name], default=label)
        if predicted != label:
            disagreement = scores[predicted] - scores.get(label, 0.0)
            picture = object_picture(sample.image, sample.masks[n])
            doubts.append((int(n), Doubt(sample.image_id, f"object {n}", label, predicted, disagreement, picture)))
    return doubts
