"""What a set holds, in numbers and in a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from training.datasets import AnySet, ImageLeftOutError, Problem
from training.datasets.careless import careless_labels, object_picture
from training.datasets.pictures import CROWD_RGB, captioned, cell, class_colours, in_grid
from training.metrics.matching import AREA_RANGES_PX

_CELL_PX = (320, 240)
_MOST_PICTURES = 20  # of each kind of careless labels


def spread(length: int, most: int) -> list[int]:
    """At most `most` indices, evenly spread over the set (0: all)."""
    if not most or length <= most:
        return list(range(length))
    return [round(place) for place in np.linspace(0, length - 1, most)]


def statistics(
    samples: AnySet,
    indices: Sequence[int],
    progress: Callable[[int], object] = int,
    careless_shown: Callable[[Problem, Image.Image], object] | None = None,
) -> dict[str, Any]:
    """Read samples and count: images, sizes, objects by class and by COCO's area ranges, crowds, problems.

    Args:
        careless_shown: given what looks drawn carelessly with a picture of it, the first of each kind.
    """
    classes: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    areas: list[int] = []
    careless, kinds = list[Problem](), Counter[str]()
    crowds = without = left_out = 0
    for done, index in enumerate(indices, 1):
        progress(done)
        try:
            sample = samples[index]
        except ImageLeftOutError:
            left_out += 1
            continue
        for remark in careless_labels(sample, samples, index):
            careless.append(remark.problem)
            kinds[remark.problem.kind] += 1
            if careless_shown and kinds[remark.problem.kind] <= _MOST_PICTURES:
                careless_shown(remark.problem, object_picture(sample.image, sample.masks[remark.number]))
        sizes.append(sample.image.shape[:2])
        areas += sample.masks.sum((1, 2))[~sample.crowd].tolist()
        classes.update(samples.class_names[label] for label in sample.classes[~sample.crowd])
        crowds += int(sample.crowd.sum())
        without += not len(sample.classes)
    area = np.array(areas)
    return {
        "images": len(samples),
        "images_read": len(indices) - left_out,
        "images_left_out": left_out,
        "images_without_objects": without,
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
        "problem_list": [str(entry) for entry in samples.problems.entries],
        "careless": dict(kinds),
        "careless_list": [str(entry) for entry in careless],
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
        named = Counter(samples.class_names[label] for label in sample.classes)
        counts = ", ".join(f"{count} {name}" for name, count in named.most_common())
        cells.append(captioned(cell(sample.image, sample.masks, colours, _CELL_PX), f"{sample.image_id}: {counts}"))
    return in_grid(cells, columns)
