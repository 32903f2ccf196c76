"""Few-shot learner: a frozen base, cached features of images, fitted class rows, detections and a checkpoint.

Backbone, pyramid, boxes and (but see `training.fewshot.learn`) masks are the base's. The detector's last layer is
linear in its features at the cells of an image, so a class is learned from those features alone: views (the whole
image, its mirror image, and scaled crops, all at the detector's input size) give cells with their targets, and cells
train rows, one linear classifier a class and stride.

A class that the base knows keeps its rows where the images show nothing of it; a known class that they show, and a new
class, are learned. A new class starts from the known class that looks most like it (a balloon from a sports ball) and
is kept near it by a penalty, so that a few photographs are enough.

Loss: quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020), the one that NanoDet was trained with.

Shape shorthand: N cells of a view, C = 128 channels, J classes to learn, K classes that the detector knows, M objects
of an image, L strides, S = 416 the side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from model.checkpoints.checkpoint import Checkpoint, save_checkpoint
from model.checkpoints.state_dict import load_weights
from model.detectors.nanodet import INPUT_SIZE, STRIDES, NanoDet, as_shares, detections_of, normalised
from model.instance import box_of
from model.network import build_network
from model.prompts.detector import PromptedDetector
from model.prompts.views import OUTSIDE_RGB
from training.datasets import Sample

#: A cell whose predicted box overlaps an object by this much is a positive; the overlap is its target score.
GOOD_IOU = 0.5
#: So many best cells of an object are positives in any case, if their boxes overlap it by more than `FAIR_IOU`.
LEAST_CELLS, FAIR_IOU = 5, 0.2
#: Above this overlap a cell that is no positive is no background either.
UNCLEAR_IOU = 0.3
#: Background cells that are kept of a view: those with the highest scores, and random ones.
HARD_CELLS, RANDOM_CELLS = 1000, 150
#: Range of a crop's sides, as shares of the image's; above 1 the image has a plain frame.
SCALES = (0.55, 1.5)
#: Aspect ratios are changed by at most this factor.
MOST_STRETCH = 1.15
#: An object of which the view shows less than this share of its box is neither positive nor background.
LEAST_VISIBLE = 0.3


@dataclass(frozen=True, slots=True)
class TrainingView:
    """Pixels of a view with the boxes that lie in it.

    Attributes:
        pixels: float32 (1, 3, S, S), RGB in 0..255.
        boxes_xyxy: (M, 4) in pixels of the view, clipped to it.
        is_visible: bool (M,), False for objects that the view cuts off.
    """

    pixels: Tensor
    boxes_xyxy: Tensor
    is_visible: Tensor


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one view or of many.

    Attributes:
        features: float16 (N, C). level: int64 (N,), the place of the cell's stride in `STRIDES`.
        known_scores: float16 (N, K), of the classes that the detector knows.
        targets: float32 (N, J), the overlap of the cell's box with an object of that class, 0 for background.
        weights: float32 (N, J), 0 where neither is right.
    """

    features: Tensor
    level: Tensor
    known_scores: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def select(self, index: Tensor) -> Cells:
        """The cells of an index or a bool mask."""
        return Cells(*(getattr(self, name)[index] for name in self.__slots__))


def joined(parts: Sequence[Cells]) -> Cells:
    """Concatenate the cells of many views."""
    return Cells(*(torch.cat([getattr(part, name) for part in parts]) for name in Cells.__slots__))


@dataclass(frozen=True, slots=True)
class DetectorOutput:
    """Output of the detector on a view: features (N, C), boxes (N, 4) in its pixels, scores of known classes (N, K)."""

    features: Tensor
    boxes_xyxy: Tensor
    known_scores: Tensor


@torch.inference_mode()
def run_detector(detector: NanoDet, pixels: Tensor) -> DetectorOutput:
    """Run the frozen part of the detector over one view (1, 3, S, S)."""
    towers = detector.tower_features(normalised(pixels))
    boxes, scores = detector.candidates([output(tower) for output, tower in zip(detector.outputs, towers, strict=True)])
    return DetectorOutput(torch.cat([tower[0].flatten(1).T for tower in towers]), boxes, scores)


def cell_levels(input_size: int) -> Tensor:
    """Index of every cell's stride in `STRIDES`, int64 (N,)."""
    return torch.cat([torch.full(((input_size // stride) ** 2,), level) for level, stride in enumerate(STRIDES)])


def training_cells(
    output: DetectorOutput, view: TrainingView, labels: Tensor, classes: int, generator: torch.Generator
) -> Cells:
    """Select the cells of a view to train on (positives, hard and random background), with their targets.

    Args:
        labels: int64 (M,), the class of each object.
    """
    targets, weights = _targets(output.boxes_xyxy, view, labels, classes)
    hardness = output.known_scores.max(1).values.clone()
    hardness[(targets > 0).any(1)] = torch.inf
    count = min(HARD_CELLS, len(hardness))
    random_indices = torch.randint(len(hardness), (RANDOM_CELLS,), generator=generator)
    indices = torch.unique(torch.cat([hardness.topk(count).indices, random_indices]))
    level = cell_levels(view.pixels.shape[-1])
    cells = Cells(output.features.half(), level, output.known_scores.half(), targets, weights)
    return cells.select(indices)


def _targets(boxes: Tensor, view: TrainingView, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    targets, weights = torch.zeros(len(boxes), classes), torch.ones(len(boxes), classes)
    overlaps = box_iou(boxes, view.boxes_xyxy)
    for number, label in enumerate(labels.tolist()):
        overlap = overlaps[:, number]
        weights[overlap > UNCLEAR_IOU, label] = 0.0
        if not view.is_visible[number]:
            continue
        is_good = overlap >= GOOD_IOU
        best_cells = overlap.topk(min(LEAST_CELLS, len(overlap))).indices
        is_good[best_cells[overlap[best_cells] >= FAIR_IOU]] = True
        targets[is_good, label] = torch.maximum(targets[is_good, label], overlap[is_good])
    weights[targets > 0] = 1.0
    return targets, weights


def views_of_image(
    image_rgb: np.ndarray, boxes_xyxy: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[TrainingView]:
    """Make `count` views of a uint8 H x W x 3 image: the whole image, its mirror image, then random crops."""
    height, width = image_rgb.shape[:2]
    whole = (0, 0, width, height)
    for number in range(count):
        window = whole if number < 2 else _random_window((height, width), boxes_xyxy, rng)
        view = _view_of_window(image_rgb, boxes_xyxy, window)
        if number >= 2:
            contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-20, 20)
            view = TrainingView((view.pixels * contrast + brightness).clamp(0, 255), view.boxes_xyxy, view.is_visible)
        yield _mirrored(view) if number % 2 else view


def _random_window(
    size_hw: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop: left, top, right, bottom; one smaller than the image lies around an object where there is one."""
    height, width = size_hw
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    stretch = float(np.exp(rng.uniform(-1, 1) * np.log(MOST_STRETCH)))
    sides = np.array([width * scale * stretch, height * scale / stretch])
    room = np.array([width, height]) - sides
    corner = rng.uniform(np.minimum(room, 0), np.maximum(room, 0))
    if scale < 1 and len(boxes_xyxy):
        box = boxes_xyxy[rng.integers(len(boxes_xyxy))]
        centre = (box[:2] + box[2:]) / 2
        corner = np.clip(centre - sides * rng.uniform(0.2, 0.8, 2), np.minimum(room, 0), np.maximum(room, 0))
    left, top = np.floor(corner).astype(int)
    right, bottom = np.ceil(corner + sides).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _view_of_window(image_rgb: np.ndarray, boxes_xyxy: np.ndarray, window: tuple[int, int, int, int]) -> TrainingView:
    left, top, right, bottom = window
    height, width = image_rgb.shape[:2]
    canvas = np.empty((bottom - top, right - left, 3), np.uint8)
    canvas[:] = OUTSIDE_RGB
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = image_rgb[y0:y1, x0:x1]
    pixels = torch.from_numpy(canvas).permute(2, 0, 1)[None].float()
    view_pixels = F.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    scale = np.array([INPUT_SIZE / (right - left), INPUT_SIZE / (bottom - top)] * 2)
    boxes = (boxes_xyxy.reshape(-1, 4) - np.array([left, top, left, top])) * scale
    visible_boxes = boxes.clip(0, INPUT_SIZE)
    is_visible = _areas(visible_boxes) >= LEAST_VISIBLE * np.maximum(_areas(boxes), 1e-6)
    is_visible &= (visible_boxes[:, 2:] - visible_boxes[:, :2]).min(axis=1, initial=INPUT_SIZE) > 2
    return TrainingView(view_pixels, torch.from_numpy(visible_boxes).float(), torch.from_numpy(is_visible))


def _mirrored(view: TrainingView) -> TrainingView:
    left, top, right, bottom = view.boxes_xyxy.unbind(1)
    boxes = torch.stack([INPUT_SIZE - right, top, INPUT_SIZE - left, bottom], 1)
    return TrainingView(view.pixels.flip(3), boxes, view.is_visible)


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


STEPS, LOSS_PERIOD = 200, 5
LEARNING_RATE = 0.02
#: Weight of the penalty on the rows' change, beside a loss that is a mean over the positive cells.
PULL = 1e-2


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Linear classifiers: weights (L, J, C) and biases (L, J)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, level: Tensor) -> Tensor:
        """Logits (N, J) of features (N, C); `level` (N,) is the index of each cell's stride."""
        values = torch.empty(len(features), self.bias.shape[1])
        for number in range(len(STRIDES)):
            in_level = level == number
            values[in_level] = features[in_level].float() @ self.weight[number].T + self.bias[number]
        return values


def known_rows(detector: NanoDet) -> ClassRows:
    """The rows of all classes that a detector knows."""
    count = detector.num_classes
    weights = [detector.get_parameter(f"outputs.{level}.weight") for level in range(len(STRIDES))]
    biases = [detector.get_parameter(f"outputs.{level}.bias") for level in range(len(STRIDES))]
    return ClassRows(
        torch.stack([weight[:count, :, 0, 0].detach() for weight in weights]),
        torch.stack([bias[:count].detach() for bias in biases]),
    )


def similar_classes(cells: Cells, sources: Sequence[int | None]) -> list[int]:
    """For each class to learn its source, or where that is None the known class that scores highest on its objects."""
    similar = []
    for label, source in enumerate(sources):
        objects = cells.targets[:, label] >= 0.5
        scores = cells.known_scores[objects if objects.any() else slice(None)].float().mean(0)
        similar.append(int(scores.argmax()) if source is None else source)
    return similar


def fit_rows(cells: Cells, start: ClassRows, *, on_loss: Callable[[int, float], object] | None = None) -> ClassRows:
    """Fit J rows to cells, with a penalty on their change. A class without objects keeps its rows.

    Args:
        on_loss: called with the step and its loss, every `LOSS_PERIOD` steps.
    """
    present = (cells.targets > 0).any(0)
    weight = torch.zeros_like(start.weight, requires_grad=True)
    bias = torch.zeros_like(start.bias, requires_grad=True)
    levels = [_level(cells, number) for number in range(len(STRIDES))]
    positives = (cells.targets > 0).sum().clamp(min=1)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        loss = PULL * (weight**2).sum()
        for number, (features, targets, weights) in enumerate(levels):
            logits = features @ (start.weight[number] + weight[number]).T + start.bias[number] + bias[number]
            loss = loss + quality_focal_loss(logits, targets, weights * present) / positives
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_loss is not None and (step + 1) % LOSS_PERIOD == 0:
            on_loss(step + 1, float(loss.detach()))
    is_learned = present[None]
    return ClassRows(
        start.weight + (weight * is_learned[..., None]).detach(), start.bias + (bias * is_learned).detach()
    )


def quality_focal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Quality focal loss, summed over cells and classes; a target is the overlap of the cell's box, else 0."""
    distance = (targets - logits.sigmoid()).abs() ** 2
    return (weights * distance * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


def _level(cells: Cells, number: int) -> tuple[Tensor, Tensor, Tensor]:
    level_cells = cells.select(cells.level == number)
    return level_cells.features.float(), level_cells.targets, level_cells.weights


#: Detections below this score are not outlined: each outline costs a look at a view.
SCORE_THRESHOLD = 0.2
MOST_DETECTIONS = 50
#: Logit of a class that no image shows.
NEVER = -12.0
#: Exponent of the mask's predicted IoU, by which a box's score is multiplied.
QUALITY_POWER = 1.0


@dataclass(frozen=True, slots=True)
class LearnedImage:
    """Features of an image, for learning and for detection.

    Attributes:
        size_hw: in pixels. pixels: uint8 h x w x 3, as the network reads it.
        looks: features (N, C) and boxes (N, 4), as shares of the image, of each of the network's looks at an image.
        cells: of its views, for training.
    """

    size_hw: tuple[int, int]
    pixels: np.ndarray
    looks: list[tuple[Tensor, Tensor]]
    cells: Cells


class FewShotLearner:
    """Learns classes for a base network; holds no images.

    Args:
        base: with a `PromptedDetector` of many classes, such as `photos`.

    Raises:
        ValueError: the base is another network.
    """

    def __init__(self, base: Checkpoint, classes: Sequence[str]) -> None:
        self.base, self.classes = base, tuple(classes)
        known_classes = tuple(base.metadata["classes"])
        casefold_numbers = {name.casefold(): number for number, name in enumerate(known_classes)}
        self.sources = [
            known_classes.index(name) if name in known_classes else casefold_numbers.get(name.casefold())
            for name in self.classes
        ]
        network = build_network(base.cfg)
        if not isinstance(network, PromptedDetector):
            raise ValueError(
                f"{base.metadata['version']} is a {type(network).__name__}; few-shot learning starts from a "
                "PromptedDetector, such as the checkpoint photos"
            )
        load_weights(network, base.state, source="the base")
        self.network = network.eval()
        network.quality_power, network.score_power = QUALITY_POWER, 1.0

    def look(self, sample: Sample, views: int, seed: Sequence[int]) -> LearnedImage:
        """Compute the features of a sample, whose classes are this learner's, from that many views."""
        pixels = resized(sample.image, self.base.cfg)
        size_hw = sample.image.shape[0], sample.image.shape[1]
        scale = np.array([pixels.shape[1] / size_hw[1], pixels.shape[0] / size_hw[0]] * 2)
        boxes = np.array([box_of(mask) for mask in sample.masks], float).reshape(-1, 4) * scale
        labels = torch.from_numpy(sample.classes)
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        cells = []
        for view in views_of_image(pixels, boxes, views, rng):
            view.is_visible[torch.from_numpy(sample.crowd)] = False
            output = run_detector(self.network.detector, view.pixels)
            cells.append(training_cells(output, view, labels, len(self.classes), generator))
        return LearnedImage(size_hw, pixels, self._looks(pixels), joined(cells))

    def _looks(self, image_rgb: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """Features and boxes of each look at an image, in half precision as a checkpoint's weights."""
        pixels = torch.from_numpy(image_rgb.copy()).permute(2, 0, 1)[None].float()
        looks = []
        for side, is_mirrored in self.network.looks:
            view = pixels.flip(-1) if is_mirrored else pixels
            output = run_detector(
                self.network.detector, F.interpolate(view, (side, side), mode="bilinear", antialias=True)
            )
            looks.append((output.features.half(), as_shares(output.boxes_xyxy, side, is_mirrored=is_mirrored)))
        return looks

    def rows(self, images: Sequence[LearnedImage], on_loss: Callable[[int, float], object] | None = None) -> ClassRows:
        """Fit class rows to some images; `on_loss` as in `fit_rows`."""
        cells = joined([image.cells for image in images])
        base_rows = known_rows(self.network.detector)
        similar = similar_classes(cells, self.sources)
        weight, bias = base_rows.weight[:, similar], base_rows.bias[:, similar]
        for label in self._never_shown(cells):
            weight[:, label], bias[:, label] = 0.0, NEVER
        return fit_rows(cells, ClassRows(weight, bias), on_loss=on_loss)

    def _never_shown(self, cells: Cells) -> list[int]:
        """Classes that the base does not know and no image shows."""
        has_objects = (cells.targets > 0).any(0).tolist()
        return [label for label, source in enumerate(self.sources) if source is None and not has_objects[label]]

    @torch.inference_mode()
    def detections(self, image: LearnedImage, rows: ClassRows) -> Instances:
        """Detections of the base with these rows on an image."""
        looks = [
            (boxes, rows.logits(features, cell_levels(side)).sigmoid())
            for (features, boxes), (side, _) in zip(image.looks, self.network.looks, strict=True)
        ]
        best_detections = detections_of(looks, image.size_hw, SCORE_THRESHOLD, MOST_DETECTIONS)
        return self.network.outlined(image.pixels, best_detections, image.size_hw)

    def save(
        self,
        directory: Path,
        rows: ClassRows,
        power: float,
        facts: Mapping[str, Any],
        outlines: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint: the base with these rows, scores raised to a power.

        Args:
            outlines: the state of a promptable network in place of the base's.
        """
        cfg = self.base.cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(self.classes)
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = SCORE_THRESHOLD
        cfg.TEST.DETECTIONS_PER_IMAGE = MOST_DETECTIONS
        cfg.MODEL.PROMPTED.QUALITY_POWER, cfg.MODEL.PROMPTED.SCORE_POWER = QUALITY_POWER, power
        state = {**self.base.state, **{f"prompts.{name}": values for name, values in (outlines or {}).items()}}
        for level in range(len(rows.bias)):
            for name, class_rows in (("weight", rows.weight[level, :, :, None, None]), ("bias", rows.bias[level])):
                key = f"detector.outputs.{level}.{name}"
                state[key] = torch.cat([class_rows, state[key][self.network.detector.num_classes :]])
        metadata = self.base.metadata
        own_facts = {
            "name": metadata["name"],
            "classes": list(self.classes),
            "preset": metadata.get("preset", ""),
            "parent": metadata["version"],
            **facts,
        }
        save_checkpoint(directory, cfg, state, own_facts, half=True, overwrite=True)


def resized(image_rgb: np.ndarray, cfg: CfgNode) -> np.ndarray:
    """Resize an image as `model.inference.predictor` does for the network."""
    height, width = ResizeShortestEdge.get_output_shape(
        *image_rgb.shape[:2], cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    return np.asarray(Image.fromarray(image_rgb).resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR))
