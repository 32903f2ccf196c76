"""The frozen base and what it learns: features of images kept, class rows fitted, detections and a checkpoint made.

Backbone, pyramid, boxes and (but see `training.fewshot.learn`) masks are the base's. The detector's last layer is
linear in its features at the cells of an image, so learning a class needs nothing else of the image: views (the whole
image, its mirror image, and scaled crops, all at the detector's input size) become cells with what each should say, and
cells become rows, one linear classifier a class and stride.

A class that the base knows keeps its rows where the images show nothing of it; a known one that they do show, and a new
one, are learned. A new class starts from the known class that looks most like it (a balloon from a sports ball) and is
held near it, so that a few photographs are enough.

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

#: A cell whose predicted box overlaps an object by this much shall say so; the overlap is its score.
GOOD_IOU = 0.5
#: Cells of an object that learn it in any case, when their boxes overlap it by more than `FAIR_IOU`.
LEAST_CELLS, FAIR_IOU = 5, 0.2
#: Above this overlap a cell that is not good is no background either.
UNCLEAR_IOU = 0.3
#: Background cells that are kept of a view: the likeliest objects, and some at random.
HARD_CELLS, RANDOM_CELLS = 1000, 150
#: Sides of a crop, as shares of the image's; above 1 the image stands in a plain frame.
SCALES = (0.55, 1.5)
#: Aspect ratios are changed by at most this factor.
MOST_STRETCH = 1.15
#: An object that is cut to less than this share of its box is neither learned nor background.
LEAST_VISIBLE = 0.3


@dataclass(frozen=True, slots=True)
class TrainingView:
    """Pixels of a view with the boxes that lie in it.

    Attributes:
        pixels: float32 (1, 3, S, S), RGB in 0..255.
        boxes_xyxy: (M, 4) in pixels of the view, cut to it.
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

    def chosen(self, index: Tensor) -> Cells:
        """The cells of an index or a bool mask."""
        return Cells(*(getattr(self, name)[index] for name in self.__slots__))


def joined(parts: Sequence[Cells]) -> Cells:
    """Many views' cells as one."""
    return Cells(*(torch.cat([getattr(part, name) for part in parts]) for name in Cells.__slots__))


@dataclass(frozen=True, slots=True)
class SeenView:
    """What the detector makes of a view: features (N, C), boxes (N, 4) in its pixels, known scores (N, K)."""

    features: Tensor
    boxes_xyxy: Tensor
    known_scores: Tensor


@torch.inference_mode()
def see(detector: NanoDet, pixels: Tensor) -> SeenView:
    """Run the frozen part of the detector over one view (1, 3, S, S)."""
    towers = detector.tower_features(normalised(pixels))
    boxes, scores = detector.candidates([output(tower) for output, tower in zip(detector.outputs, towers, strict=True)])
    return SeenView(torch.cat([tower[0].flatten(1).T for tower in towers]), boxes, scores)


def cell_levels(input_size: int) -> Tensor:
    """Int64 (N,): of every cell of a view the place of its stride."""
    return torch.cat([torch.full(((input_size // stride) ** 2,), level) for level, stride in enumerate(STRIDES)])


def training_cells(
    seen: SeenView, view: TrainingView, labels: Tensor, classes: int, generator: torch.Generator
) -> Cells:
    """The cells of a view that are worth learning from, with their targets.

    Args:
        labels: int64 (M,), the class of each object.
    """
    targets, weights = _targets(seen.boxes_xyxy, view, labels, classes)
    hardness = seen.known_scores.max(1).values.clone()
    hardness[(targets > 0).any(1)] = torch.inf
    count = min(HARD_CELLS, len(hardness))
    drawn = torch.randint(len(hardness), (RANDOM_CELLS,), generator=generator)
    kept = torch.unique(torch.cat([hardness.topk(count).indices, drawn]))
    level = cell_levels(view.pixels.shape[-1])
    cells = Cells(seen.features.half(), level, seen.known_scores.half(), targets, weights)
    return cells.chosen(kept)


def _targets(boxes: Tensor, view: TrainingView, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    targets, weights = torch.zeros(len(boxes), classes), torch.ones(len(boxes), classes)
    overlaps = box_iou(boxes, view.boxes_xyxy)
    for number, label in enumerate(labels.tolist()):
        overlap = overlaps[:, number]
        weights[overlap > UNCLEAR_IOU, label] = 0.0
        if not view.is_visible[number]:
            continue
        good = overlap >= GOOD_IOU
        best = overlap.topk(min(LEAST_CELLS, len(overlap))).indices
        good[best[overlap[best] >= FAIR_IOU]] = True
        targets[good, label] = torch.maximum(targets[good, label], overlap[good])
    weights[targets > 0] = 1.0
    return targets, weights


def views_of_image(
    image_rgb: np.ndarray, boxes_xyxy: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[TrainingView]:
    """`count` views of a uint8 H x W x 3 image: as the detector sees it, mirrored, then random crops."""
    height, width = image_rgb.shape[:2]
    whole = (0, 0, width, height)
    for number in range(count):
        window = whole if number < 2 else _random_window((height, width), boxes_xyxy, rng)
        view = _seen(image_rgb, boxes_xyxy, window)
        if number >= 2:
            contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-20, 20)
            view = TrainingView((view.pixels * contrast + brightness).clamp(0, 255), view.boxes_xyxy, view.is_visible)
        yield _mirrored(view) if number % 2 else view


def _random_window(
    size_hw: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; a window smaller than the image lies around an object where there is one."""
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


def _seen(image_rgb: np.ndarray, boxes_xyxy: np.ndarray, window: tuple[int, int, int, int]) -> TrainingView:
    left, top, right, bottom = window
    height, width = image_rgb.shape[:2]
    canvas = np.empty((bottom - top, right - left, 3), np.uint8)
    canvas[:] = OUTSIDE_RGB
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = image_rgb[y0:y1, x0:x1]
    pixels = torch.from_numpy(canvas).permute(2, 0, 1)[None].float()
    stretched = F.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    scale = np.array([INPUT_SIZE / (right - left), INPUT_SIZE / (bottom - top)] * 2)
    boxes = (boxes_xyxy.reshape(-1, 4) - np.array([left, top, left, top])) * scale
    cut = boxes.clip(0, INPUT_SIZE)
    visible = _areas(cut) >= LEAST_VISIBLE * np.maximum(_areas(boxes), 1e-6)
    visible &= (cut[:, 2:] - cut[:, :2]).min(axis=1, initial=INPUT_SIZE) > 2
    return TrainingView(stretched, torch.from_numpy(cut).float(), torch.from_numpy(visible))


def _mirrored(view: TrainingView) -> TrainingView:
    left, top, right, bottom = view.boxes_xyxy.unbind(1)
    boxes = torch.stack([INPUT_SIZE - right, top, INPUT_SIZE - left, bottom], 1)
    return TrainingView(view.pixels.flip(3), boxes, view.is_visible)


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


STEPS, LOSS_PERIOD = 200, 5
LEARNING_RATE = 0.02
#: Pull of the rows to where they started, beside a loss that is a mean over the positive cells.
PULL = 1e-2


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Linear classifiers: weights (L, J, C) and biases (L, J)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, level: Tensor) -> Tensor:
        """(N, J) of features (N, C) whose strides have the places `level`."""
        values = torch.empty(len(features), self.bias.shape[1])
        for number in range(len(STRIDES)):
            here = level == number
            values[here] = features[here].float() @ self.weight[number].T + self.bias[number]
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
    """For each class to learn the known class that scores highest on its objects; `sources` are those given."""
    similar = []
    for label, source in enumerate(sources):
        objects = cells.targets[:, label] >= 0.5
        scores = cells.known_scores[objects if objects.any() else slice(None)].float().mean(0)
        similar.append(int(scores.argmax()) if source is None else source)
    return similar


def fit_rows(cells: Cells, start: ClassRows, *, on_loss: Callable[[int, float], object] | None = None) -> ClassRows:
    """Learn J rows from cells, held near the rows they start from. A class without objects keeps its rows.

    Args:
        on_loss: told the step and its loss, every `LOSS_PERIOD` steps.
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
    moved = present[None]
    return ClassRows(start.weight + (weight * moved[..., None]).detach(), start.bias + (bias * moved).detach())


def quality_focal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over cells and classes; the target is the overlap that a cell's box has, 0 for background."""
    distance = (targets - logits.sigmoid()).abs() ** 2
    return (weights * distance * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


def _level(cells: Cells, number: int) -> tuple[Tensor, Tensor, Tensor]:
    here = cells.chosen(cells.level == number)
    return here.features.float(), here.targets, here.weights


#: Weaker detections are not outlined: each costs a look at a view.
SCORE_THRESHOLD = 0.2
MOST_DETECTIONS = 50
#: Logit of a class that no image shows.
NEVER = -12.0
#: An object's score is its box's times the IoU that its mask is expected to have.
QUALITY_POWER = 1.0


@dataclass(frozen=True, slots=True)
class LearnedImage:
    """What is kept of an image.

    Attributes:
        size_hw: in pixels. pixels: uint8 h x w x 3, as the network sees it.
        looks: of each look that the network has at an image, features (N, C) and boxes (N, 4) as shares of the image.
        cells: those of its views that are learned from.
    """

    size_hw: tuple[int, int]
    pixels: np.ndarray
    looks: list[tuple[Tensor, Tensor]]
    cells: Cells


class FewShotLearner:
    """A base that learns classes; holds no images.

    Args:
        base: with a `PromptedDetector` of many classes, such as `photos`.

    Raises:
        ValueError: the base is another network.
    """

    def __init__(self, base: Checkpoint, classes: Sequence[str]) -> None:
        self.base, self.classes = base, tuple(classes)
        known = tuple(base.metadata["classes"])
        alike = {name.casefold(): number for number, name in enumerate(known)}
        self.sources = [known.index(name) if name in known else alike.get(name.casefold()) for name in self.classes]
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
        """Keep the features of a sample, whose classes are this learner's, from that many views."""
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
            seen = see(self.network.detector, view.pixels)
            cells.append(training_cells(seen, view, labels, len(self.classes), generator))
        return LearnedImage(size_hw, pixels, self._looks(pixels), joined(cells))

    def _looks(self, image_rgb: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """Features and boxes of each look, in half precision as a checkpoint keeps weights."""
        pixels = torch.from_numpy(image_rgb.copy()).permute(2, 0, 1)[None].float()
        looks = []
        for side, is_mirrored in self.network.looks:
            view = pixels.flip(-1) if is_mirrored else pixels
            seen = see(self.network.detector, F.interpolate(view, (side, side), mode="bilinear", antialias=True))
            looks.append((seen.features.half(), as_shares(seen.boxes_xyxy, side, is_mirrored=is_mirrored)))
        return looks

    def rows(self, images: Sequence[LearnedImage], on_loss: Callable[[int, float], object] | None = None) -> ClassRows:
        """The class rows that some images teach; `on_loss` as in `fit_rows`."""
        cells = joined([image.cells for image in images])
        known = known_rows(self.network.detector)
        similar = similar_classes(cells, self.sources)
        weight, bias = known.weight[:, similar], known.bias[:, similar]
        for label in self._never_shown(cells):
            weight[:, label], bias[:, label] = 0.0, NEVER
        return fit_rows(cells, ClassRows(weight, bias), on_loss=on_loss)

    def _never_shown(self, cells: Cells) -> list[int]:
        """Classes of which nothing is known: neither to the base nor from the images."""
        shown = (cells.targets > 0).any(0).tolist()
        return [label for label, source in enumerate(self.sources) if source is None and not shown[label]]

    @torch.inference_mode()
    def detections(self, image: LearnedImage, rows: ClassRows) -> Instances:
        """What the base with these rows finds on an image."""
        looks = [
            (boxes, rows.logits(features, cell_levels(side)).sigmoid())
            for (features, boxes), (side, _) in zip(image.looks, self.network.looks, strict=True)
        ]
        best = detections_of(looks, image.size_hw, SCORE_THRESHOLD, MOST_DETECTIONS)
        return self.network.outlined(image.pixels, best, image.size_hw)

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
            for name, own in (("weight", rows.weight[level, :, :, None, None]), ("bias", rows.bias[level])):
                key = f"detector.outputs.{level}.{name}"
                state[key] = torch.cat([own, state[key][self.network.detector.num_classes :]])
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
    """The image as `model.inference.predictor` gives it to the network."""
    height, width = ResizeShortestEdge.get_output_shape(
        *image_rgb.shape[:2], cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    return np.asarray(Image.fromarray(image_rgb).resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR))
