"""Labels whose class a model doubts: objects it finds with the same outline and another class, the surest first.

Shapes: H, W size of an image in pixels; N objects; P predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from model.instance import Instance, iou_matrix
from training.datasets import AnySet, ImageLeftOutError, Sample
from training.datasets.careless import object_picture, object_places, save_pictures

#: A prediction speaks of an object where their masks overlap by this IoU.
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


def doubted_labels(
    samples: AnySet, indices: Sequence[int], predict: Predict, progress: Callable[[int], object] = int
) -> list[Doubt]:
    """Compare labels with a model's predictions, by falling disagreement.

    Classes that the model does not know are not judged.
    """
    doubts: list[Doubt] = []
    for done, index in enumerate(indices, 1):
        progress(done)
        try:
            sample = samples[index]
        except ImageLeftOutError:
            continue
        given = doubts_of(sample, samples.class_names, predict([sample.image])[0])
        places = object_places(samples, sample) if given else []
        doubts += [replace(doubt, place=places[n]) for n, doubt in given]
    return sorted(doubts, key=lambda doubt: -doubt.disagreement)


def doubts_of(sample: Sample, class_names: Sequence[str], instances: Sequence[Instance]) -> list[tuple[int, Doubt]]:
    """Number and doubt of each label that a prediction of another class overlaps, and no surer one of its own."""
    known = [instance for instance in instances if instance.label in class_names]
    overlap_pn = iou_matrix([instance.mask_hw for instance in known], list(sample.masks))
    # A prediction speaks of the object that it fits best: a neighbour's is no doubt.
    best = overlap_pn.argmax(1) if len(sample.masks) else np.zeros(0, int)
    doubts: list[tuple[int, Doubt]] = []
    for n in np.flatnonzero(~sample.crowd):
        label, scores = class_names[sample.classes[n]], dict[str, float]()
        for p, instance in enumerate(known):
            if best[p] == n and overlap_pn[p, n] >= SAME_OBJECT_IOU:
                scores[instance.label] = max(scores.get(instance.label, 0.0), instance.score)
        predicted = max(scores, key=lambda name: scores[name], default=label)
        if predicted != label:
            disagreement = scores[predicted] - scores.get(label, 0.0)
            picture = object_picture(sample.image, sample.masks[n])
            doubts.append((int(n), Doubt(sample.image_id, f"object {n}", label, predicted, disagreement, picture)))
    return doubts


def save_doubts(doubts: Sequence[Doubt], file: Path) -> None:
    """Write small pictures of doubted labels, with what was given and what was seen."""
    captions = [
        (doubt.picture, f"{doubt.image_id}: {doubt.label}", f"model: {doubt.predicted} {doubt.disagreement:.2f}")
        for doubt in doubts
    ]
    save_pictures(captions, file)
