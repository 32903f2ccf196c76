"""What a set holds, in numbers and in a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from training.datasets import AnySet, ImageLeftOutError, Problem
from training.datasets.careless import careless_labels, object_picture
from training.datasets.sample import Sample
from training.metrics.matching import AREA_RANGES_PX

_CELL_PX = (320, 240)
_CAPTION_PX = 14
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
    columns = max(1, min(columns, len(indices)))
    rows = -(-len(indices) // columns)
    width, height = _CELL_PX[0], _CELL_PX[1] + _CAPTION_PX
    sheet = Image.new("RGB", (columns * width, max(1, rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        left, top = place % columns * width, place // columns * height
        try:
            sample = samples[index]
        except ImageLeftOutError:
            draw.text((left + 3, top + 1), f"sample {index}: left out", fill="black")
            continue
        sheet.paste(_drawn(sample), (left, top + _CAPTION_PX))
        named = Counter(samples.class_names[label] for label in sample.classes)
        caption = f"{sample.image_id}: " + ", ".join(f"{count} {name}" for name, count in named.most_common())
        draw.text((left + 3, top + 1), caption[:52].encode("latin-1", "replace").decode("latin-1"), fill="black")
    return sheet


def save_contact_sheet(samples: AnySet, indices: Sequence[int], file: Path) -> None:
    """Write the sheet as an image file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data_set_contact_sheet(samples, indices).save(file)


def _drawn(sample: Sample) -> Image.Image:
    """The image in the size of a cell; masks are shrunk without losing thin parts."""
    picture = Image.fromarray(sample.image)
    picture.thumbnail(_CELL_PX)
    canvas = np.asarray(picture, np.float32).copy()
    for mask, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True):
        small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BOX))
        inside = small > 96
        colour = np.array([128, 128, 128]) if crowd else np.random.default_rng(int(label)).uniform(40, 255, 3)
        canvas[inside] = canvas[inside] * 0.5 + colour * 0.5
        padded = np.pad(inside, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        canvas[inside & ~inner] = colour
    return Image.fromarray(canvas.astype(np.uint8))
