"""Few-shot learning of a snapshot: the detector's features are cached once, then class rows are learned from them.

OUT/progress.json    progress (`training.engine.log`)
OUT/folds.json       detections on the training images by cross-validation, for the gate (`training.gate.holdout`)
OUT/outlines/        state of the training of outlines, where there are enough images for one; removed at its end
OUT/checkpoint/      the result: the base with the snapshot's classes

Label Studio shows detections that score at least `TRANSFINER_SCORE_THRESHOLD`, one half by default. Rows learned from
few images are over-confident, so their scores are raised to a power that cross-validation chooses: the threshold of the
best F1 is then one half. The order of the scores does not change, nor does AP.

Class rows change classes and boxes; the outlines stay the base's however often people correct them. With enough images
the layers behind the promptable network's trunk are trained on the annotated masks, from boxes as the detector draws
them. Every fifth image is left out of that training: it decides whether the boundaries have become better.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.metadata import METADATA_FILE, read_metadata
from model.files import write_text
from model.inference.predictor import map_in_threads
from model.prompts.answers import Prompt, as_instance, first_view, look
from model.prompts.network import PromptNetwork
from training.datasets import Sample
from training.datasets.sample import SampleSet
from training.engine.log import PROGRESS_FILE, RunProgress, write_progress
from training.fewshot.learner import ClassRows, FewShotLearner, LearnedImage
from training.finetune.plan import relabel_samples, training_part
from training.metrics.boundary import boundary_mask
from training.prompts.data import LONGEST_SIDE_PX, ObjectSet, objects_of
from training.prompts.evaluate import overlap
from training.prompts.train import PromptTraining, train_prompts
from training.snapshots.format import encode_rle

CHECKPOINT, FOLDS_FILE = "checkpoint", "folds.json"
#: Training views of all images together: fewer an image where there are many images.
MOST_VIEWS, VIEWS_PER_IMAGE = 1500, 8
FOLDS, SEED = 5, 1
#: Key of a checkpoint's metadata: the base's digest, the content hashes of the images that it learned from, and the
#: power of its scores.
FACTS_KEY = "fewshot"
Detections = Sequence[Sequence[Any]]
Objects = Sequence[tuple[str, dict[str, Any]]]
#: Seconds on one idle core, to estimate the time left: a view, a view's share of a fit, the outlines of an image.
VIEW_S, FIT_S, OUTLINES_S = 0.06, 0.02, 2.0
#: Cost of the looks at a whole image for its detections (`PROMPTED.TEST_SIDES`: four), in views.
WHOLE_IMAGE_VIEWS = 5
#: A detection is right when it overlaps an object of its class by this much.
RIGHT_IOU = 0.5
#: Range of score thresholds that a few images may choose.
THRESHOLDS = (0.3, 0.85)


def learn_few_shot(
    base: Path,
    snapshot: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    folds: int = FOLDS,
    incumbent: Path | None = None,
) -> Path:
    """Learn a snapshot's classes from its training part and return OUT/checkpoint; the hold-out is not read.

    Args:
        base: checkpoint with a `PromptedDetector` of many classes, `photos`.
        classes: names in their order; the snapshot's by default.
        folds: of the cross-validation; 0 for none.
        incumbent: the checkpoint that serves now. Where it was learned few-shot from the same base, it has learned from
            some of the images, so it is cross-validated, too.

    Raises:
        CheckpointError, SnapshotError, NothingToLearn: an input is unusable.
        ValueError: the base is another network.
    """
    samples = training_part(snapshot)
    classes = tuple(classes) or samples.snapshot.classes
    learner = FewShotLearner(load_checkpoint(base), classes)
    hashes = [image["sha256"] for image in samples.snapshot.coco("train")["images"]]
    train_samples = relabel_samples(samples, classes, {})
    views = max(2, min(VIEWS_PER_IMAGE, MOST_VIEWS // len(train_samples)))
    base_digest = str(learner.base.metadata.get("digest", ""))
    incumbent_facts = facts_of(incumbent, base_digest) if incumbent else {}
    incumbent_hashes = set(hashes).intersection(incumbent_facts.get("images", ()))
    pools = {"candidate": set(hashes), "incumbent": incumbent_hashes} if folds else {}
    outline_steps = OUTLINE_PLAN.iterations if len(train_samples) >= LEAST_OUTLINE_IMAGES else 0
    progress = _Progress(out, list(pools.values()), folds, len(train_samples), views, outline_steps)

    def look(number: int) -> LearnedImage:
        image = learner.look(train_samples[number], views, (SEED, number))
        progress.add(progress.look_s)
        return image

    images = dict(zip(hashes, map_in_threads(look, range(len(train_samples))), strict=True))
    progress.phase, power = "evaluating", 1.0
    if folds:
        truth = {sha256: _objects(train_samples[number], classes) for number, sha256 in enumerate(hashes)}
        pool_images = {role: {key: images[key] for key in pool} for role, pool in pools.items()}
        power = _cross_validate(out / FOLDS_FILE, learner, pool_images, truth, incumbent_facts, folds, progress)
    facts: dict[str, Any] = {
        "version": f"{learner.base.metadata['name']}-{samples.snapshot.digest[:8]}",
        "snapshot": samples.snapshot.digest,
        FACTS_KEY: {"base": base_digest, "images": hashes, "score_power": power},
    }
    prompts = None
    if outline_steps:
        facts["outlines"], prompts = _better_outlines(learner, train_samples, out / "outlines", progress)
    progress.phase = "saving"
    rows = learner.rows(list(images.values()), progress.loss)
    progress.add(progress.fit_s)
    learner.save(out / CHECKPOINT, rows, power, facts, prompts)
    progress.end()
    return out / CHECKPOINT


def _better_outlines(
    learner: FewShotLearner, samples: SampleSet, folder: Path, progress: _Progress
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Learn outlines: the facts of the choice, and the weights where they are better than the base's."""
    progress.phase = "training"
    state, choice = learn_outlines(
        learner.network.prompts, samples, folder, on_step=lambda _: progress.add(OUTLINE_STEP_S)
    )
    return asdict(choice), state if choice.is_better else None


def _cross_validate(
    path: Path,
    learner: FewShotLearner,
    pools: Mapping[str, Mapping[str, LearnedImage]],
    truth: Mapping[str, Any],
    incumbent_facts: Mapping[str, Any],
    folds: int,
    progress: _Progress,
) -> float:
    """Write the out-of-fold detections of each role; returns the power of scores.

    Args:
        pools: role -> content hash -> image that its model learned from; truth: objects by content hash.
    """
    answers = {role: out_of_fold(learner, images, folds, progress) for role, images in pools.items()}
    power = score_power((entries, truth[sha256]) for sha256, entries in answers["candidate"].items())
    powers = {"candidate": power, "incumbent": float(incumbent_facts.get("score_power", 1.0))}
    final_detections = {role: _raised(entries_of, powers[role]) for role, entries_of in answers.items()}
    write_text(path, json.dumps({"folds": min(folds, len(truth)), **final_detections}))
    return power


def facts_of(checkpoint: Path, base_digest: str) -> dict[str, Any]:
    """Read how a checkpoint was learned few-shot from that base; {} for any other checkpoint."""
    if not (checkpoint / METADATA_FILE).is_file():
        return {}
    facts: dict[str, Any] = read_metadata(checkpoint).get(FACTS_KEY, {})
    return facts if facts.get("base") == base_digest else {}


def out_of_fold(
    learner: FewShotLearner, images: Mapping[str, LearnedImage], folds: int, progress: _Progress
) -> dict[str, Any]:
    """Detect on each image with rows learned from the other folds' images.

    Folds follow the order of the content hashes, so an image's fold cannot be chosen.

    Args:
        images: by content hash.

    Returns:
        By content hash: [label, score, RLE, box] of each detection; nothing where there is only one image.
    """
    hashes = sorted(images)
    folds = min(folds, len(hashes))
    rows_of: dict[str, ClassRows] = {}
    for fold in range(folds if len(hashes) > 1 else 0):
        fold_hashes = hashes[fold::folds]
        rows = learner.rows([images[key] for key in hashes if key not in fold_hashes], progress.loss)
        rows_of.update(dict.fromkeys(fold_hashes, rows))
        progress.add(progress.fit_s)

    def find(key: str) -> list[list[Any]]:
        detections = _as_json(learner.detections(images[key], rows_of[key]), learner.classes)
        progress.add(OUTLINES_S)
        return detections

    return dict(zip(rows_of, map_in_threads(find, list(rows_of)), strict=True))


def _raised(entries_of: Mapping[str, list[list[Any]]], power: float) -> dict[str, list[list[Any]]]:
    """Raise the scores of detections, as `out_of_fold` returns them, to a power."""
    return {
        sha256: [[label, score**power, *geometry] for label, score, *geometry in entries]
        for sha256, entries in entries_of.items()
    }


def _objects(sample: Sample, classes: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Label and RLE of each object of an image that is no crowd."""
    rows = zip(sample.masks, sample.classes.tolist(), sample.crowd.tolist(), strict=True)
    return [(classes[label], encode_rle(mask)) for mask, label, crowd in rows if not crowd]


def _as_json(instances: Instances, classes: Sequence[str]) -> list[list[Any]]:
    masks = [encode_rle(mask) for mask in instances.pred_masks.numpy()]
    labels = [classes[label] for label in instances.pred_classes.tolist()]
    boxes = instances.pred_boxes.tensor.tolist()
    return [list(entry) for entry in zip(labels, instances.scores.tolist(), masks, boxes, strict=True)]


def score_power(images: Iterable[tuple[Detections, Objects]]) -> float:
    """Compute the power that moves the threshold of the best F1 to one half; 1 where no detection is right.

    Args:
        images: for each image its detections, [label, score, RLE, ...], and its objects, (label, RLE).
    """
    scores, is_right, objects = list[float](), list[bool](), 0
    for detections, truth in images:
        objects += len(truth)
        matched: set[int] = set()
        for label, score, mask, *_ in sorted(detections, key=lambda entry: -entry[1]):
            matched_object = _best(label, mask, truth, matched)
            scores.append(score)
            is_right.append(matched_object is not None)
            matched |= set() if matched_object is None else {matched_object}
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(is_right, np.int64)[order])
    if not len(hits) or not hits[-1]:
        return 1.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    cut = int(f1.argmax())
    sorted_scores = np.array(scores)[order]
    below = sorted_scores[cut + 1] if cut + 1 < len(sorted_scores) else sorted_scores[cut]
    threshold = min(max((sorted_scores[cut] + below) / 2, THRESHOLDS[0]), THRESHOLDS[1])
    return math.log(0.5) / math.log(threshold)


def _best(label: str, mask: dict[str, Any], truth: Objects, matched: set[int]) -> int | None:
    """The unmatched object of that class with the best overlap, None below `RIGHT_IOU`."""
    places = [place for place, (name, _) in enumerate(truth) if name == label and place not in matched]
    if not places:
        return None
    overlaps = coco_mask.iou([mask], [truth[place][1] for place in places], [0] * len(places))[0]
    best_index = int(overlaps.argmax())
    return places[best_index] if overlaps[best_index] >= RIGHT_IOU else None


class _Progress:
    """Counts steps (images read, fits, images judged), and estimates the time left by their cost on an idle core.

    The time that passed tells how much slower this core is, so the first image gives an estimate of the whole.
    """

    def __init__(
        self, out: Path, pools: Sequence[Collection[str]], folds: int, looks: int, views: int, outline_steps: int
    ) -> None:
        fits = folds * sum(bool(pool) for pool in pools) + 1
        judged_count = sum(map(len, pools))
        self.file = out / PROGRESS_FILE
        self.look_s, self.fit_s = (views + WHOLE_IMAGE_VIEWS) * VIEW_S, looks * views * FIT_S
        self.steps = looks + fits + judged_count + outline_steps
        self.total_s = (
            looks * self.look_s + fits * self.fit_s + judged_count * OUTLINES_S + outline_steps * OUTLINE_STEP_S
        )
        self.step, self.done_s = 0, 0.0
        self.phase = "training"
        self.curve: list[tuple[int, float]] = []
        self.lock = threading.Lock()
        self.began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self._write(self.total_s)

    def add(self, work_s: float) -> None:
        """Count one step, which takes `work_s` seconds on an idle core."""
        with self.lock:
            self.step = min(self.step + 1, self.steps)
            self.done_s = min(self.done_s + work_s, self.total_s)
            slowness = (time.monotonic() - self.began) / self.done_s
            self._write(slowness * (self.total_s - self.done_s))

    def loss(self, step: int, value: float) -> None:
        """Add a loss to the curve of the newest fit; the last fit is that of all images."""
        if self.curve and step <= self.curve[-1][0]:
            self.curve = []
        self.curve.append((step, value))

    def end(self) -> None:
        self.phase, self.step = "done", self.steps
        self._write(0.0)

    def _write(self, eta_s: float) -> None:
        elapsed_s = time.monotonic() - self.began
        note = RunProgress(self.step, self.steps, self.phase, {}, eta_s, elapsed_s, curve=tuple(self.curve))
        write_progress(self.file, note)


#: Least number of images to learn outlines from: about ten of them are left to judge by.
LEAST_OUTLINE_IMAGES = 60
#: Most images in memory, and most objects to choose by.
MOST_OUTLINE_IMAGES, MOST_JUDGED = 1000, 120
#: One image in so many is left out of the training, to choose by.
CHOOSING_PERIOD = 5
#: Seconds of a step on an idle core, to estimate the time left.
OUTLINE_STEP_S = 1.0
LEAST_AREA_PX = 100.0
OUTLINE_PLAN = PromptTraining(
    batch=8,
    iterations=300,
    warm_up=20,
    seconds=1800.0,
    learning_rate=2e-4,
    click_share=0.0,
    ema_decay=0.98,
    workers=0,
    checkpoint_s=60.0,
    degraded_share=0.0,  # a project's photographs are as good as they will be
    learned=("pyramid.", "mask_head.", "quality."),
)


@dataclass(frozen=True, slots=True)
class OutlineChoice:
    """Mean boundary IoU from true boxes on images left out of the training, of the base's and of the learned outlines.

    Attributes:
        images, objects: numbers learned from. judged: number of objects compared.
    """

    base: float
    learned: float
    images: int
    objects: int
    judged: int

    @property
    def is_better(self) -> bool:
        return self.learned > self.base


def learn_outlines(
    base: PromptNetwork,
    samples: SampleSet,
    folder: Path,
    *,
    plan: PromptTraining | None = None,
    on_step: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, Tensor], OutlineChoice]:
    """Train a copy of the base's layers behind its trunk.

    Args:
        samples: at least two images, read in their order, the first `MOST_OUTLINE_IMAGES` of them.
        folder: holds the training's state, so that a killed one goes on; removed at the end.

    Returns:
        The state of the learned network, and how it compares with the base's.
    """
    small_samples = [_reduced(samples[number]) for number in range(min(len(samples), MOST_OUTLINE_IMAGES))]
    choice_objects = _outline_objects(small_samples[::CHOOSING_PERIOD])
    train_objects = _outline_objects(
        [sample for number, sample in enumerate(small_samples) if number % CHOOSING_PERIOD]
    )
    network = copy.deepcopy(base).requires_grad_(True)
    if train_objects.objects:
        train_prompts(network, train_objects, plan or OUTLINE_PLAN, folder, on_step=on_step)
        network.load_state_dict(torch.load(folder / "ema.pt", weights_only=True))
    shutil.rmtree(folder, ignore_errors=True)
    network.eval().requires_grad_(False)
    choice = OutlineChoice(
        base=_boundary_iou(base, choice_objects),
        learned=_boundary_iou(network, choice_objects),
        images=len(train_objects.images),
        objects=len(train_objects.objects),
        judged=len(choice_objects.objects[:MOST_JUDGED]),
    )
    return network.state_dict(), choice


def _outline_objects(samples: Sequence[Sample]) -> ObjectSet:
    return objects_of(samples, least_area_px=LEAST_AREA_PX)


def _reduced(sample: Sample) -> Sample:
    """Shrink a sample's longer side to at most `LONGEST_SIDE_PX`, so that many fit into memory."""
    picture = Image.fromarray(sample.image)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    if picture.size == sample.image.shape[1::-1]:
        return sample
    masks = [Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST) for mask in sample.masks]
    masks_nhw = np.stack([np.asarray(mask) for mask in masks]) if masks else np.zeros((0, *picture.size[::-1]), bool)
    return Sample(np.asarray(picture), masks_nhw, sample.classes, sample.crowd, sample.image_id)


@torch.inference_mode()
def _boundary_iou(network: PromptNetwork, objects: ObjectSet) -> float:
    """Mean boundary IoU of the objects from their true boxes; 0 without objects."""
    overlaps = []
    for masked_object in objects.objects[:MOST_JUDGED]:
        image, prompt = objects.images[masked_object.image], Prompt(box_xyxy=masked_object.box_xyxy)
        view = first_view(prompt, image.shape[:2])
        refined, _, scores = look(network, image, [view], [prompt], device=torch.device("cpu"))
        mask = as_instance(view, refined[0], float(scores[0]), prompt, image.shape[:2]).mask_hw
        overlaps.append(overlap(boundary_mask(masked_object.mask()), boundary_mask(mask)))
    return float(np.mean(overlaps)) if overlaps else 0.0
