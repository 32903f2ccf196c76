"""Learning curve of few-shot learning: AP on a test set by number of training images, for several random draws.

Each point is learned as the service would learn from so many images, outlines included. The features of an image are
reused by every draw, so a curve without outlines costs little more than its largest point.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints.checkpoint import load_checkpoint
from training.datasets import CocoSet
from training.datasets.sample import MadeSamples, narrowed
from training.evaluation.coco_format import TruthBuilder, instance_results
from training.fewshot import learn
from training.fewshot.learn import VIEWS_PER_IMAGE
from training.fewshot.learner import ClassRows, FewShotLearner, LearnedImage
from training.metrics.coco import coco_ap


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """AP of one draw.

    Attributes:
        images: number of training images. seed: of the draw.
        mask_ap, boundary_ap: on the test images, fractions.
    """

    images: int
    seed: int
    mask_ap: float
    boundary_ap: float


def class_samples(samples: CocoSet, classes: Sequence[str], *, all_images: bool = False) -> MadeSamples:
    """Select the images of a set that show one of `classes`, or all images; other classes' objects are background.

    Raises:
        ValueError: the set has no such class.
    """
    if absent := [name for name in classes if name not in samples.class_names]:
        raise ValueError(f"the set has no class {', '.join(absent)}; it has {', '.join(samples.class_names)}")
    class_numbers = {number for number, name in enumerate(samples.class_names) if name in classes}
    indices = [index for index in range(len(samples)) if all_images or samples.classes_at(index) & class_numbers]
    return MadeSamples(indices, lambda index: narrowed(samples[index], samples.class_names, classes), classes)


def fewshot_curve(
    base: Path,
    train: MadeSamples,
    test: MadeSamples,
    counts: Sequence[int],
    seeds: int,
    *,
    progress: Callable[[CurvePoint], object] = lambda _: None,
) -> list[CurvePoint]:
    """Learn from `counts` images of `train`, drawn `seeds` times, and measure on `test`.

    Draws of one seed are nested: 10 images hold the 5 of the same seed.

    Raises:
        ValueError: a count is larger than the set.
    """
    if max(counts) > len(train):
        raise ValueError(f"{max(counts)} images were asked for; {len(train)} of the set show the classes")
    learner = FewShotLearner(load_checkpoint(base), train.class_names)
    train_images: dict[int, LearnedImage] = {}
    truth, test_images = TruthBuilder(test.class_names), list[tuple[int, LearnedImage]]()
    for number in range(len(test)):
        sample = test[number]
        truth.add(sample)
        test_images.append((sample.image_id, learner.look(sample, 1, (0, number))))
    dataset, points = truth.build(), []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(train)).tolist()
        for count in counts:
            for index in order[:count]:
                if index not in train_images:
                    train_images[index] = learner.look(train[index], VIEWS_PER_IMAGE, (seed, index))
            rows = learner.rows([train_images[index] for index in order[:count]])
            outline_indices = order[:count] if count >= learn.LEAST_OUTLINE_IMAGES else []
            with _learned_outlines(learner, MadeSamples(outline_indices, train.__getitem__, train.class_names)):
                results = _results(learner, test_images, rows)
            mask, boundary = coco_ap(dataset, results, "segm"), coco_ap(dataset, results, "boundary")
            points.append(CurvePoint(count, seed, mask["AP"], boundary["AP"]))
            progress(points[-1])
    return points


@contextmanager
def _learned_outlines(learner: FewShotLearner, samples: MadeSamples) -> Iterator[None]:
    """Use outlines learned from the samples' masks in this context, where they are better than the base's."""
    if not len(samples):
        yield
        return
    network = learner.network.prompts
    base_state = {name: values.clone() for name, values in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        state, choice = learn.learn_outlines(network, samples, Path(folder) / "outlines")
    if choice.is_better:
        network.load_state_dict(state)
    try:
        yield
    finally:
        network.load_state_dict(base_state)


def _results(
    learner: FewShotLearner, test_images: Sequence[tuple[int, LearnedImage]], rows: ClassRows
) -> list[dict[str, Any]]:
    return [
        result
        for image_id, image in test_images
        for result in instance_results(image_id, learner.detections(image, rows))
    ]


def curve_as_dict(points: Sequence[CurvePoint]) -> dict[str, object]:
    """For JSON: all points, and means by the number of images."""
    means = [
        {"images": count, "draws": len(draws)}
        | {name: float(np.mean([getattr(point, name) for point in draws])) for name in ("mask_ap", "boundary_ap")}
        for count, draws in _by_images(points).items()
    ]
    return {"points": [asdict(point) for point in points], "means": means}


def curve_text(points: Sequence[CurvePoint]) -> str:
    """Write a line for each number of images: means over the draws, with the lowest and highest."""
    lines = ["images  boundary AP (range)      mask AP (range)"]
    for count, draws in _by_images(points).items():
        parts = []
        for name in ("boundary_ap", "mask_ap"):
            values = [100 * getattr(point, name) for point in draws]
            parts.append(f"{np.mean(values):5.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"{count:6d}  {parts[0]:<23}  {parts[1]}")
    return "\n".join(lines)


def _by_images(points: Sequence[CurvePoint]) -> dict[int, list[CurvePoint]]:
    counts = sorted({point.images for point in points})
    return {count: [point for point in points if point.images == count] for count in counts}
