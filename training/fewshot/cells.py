"""Features of the frozen detector at the cells of an image's views, with what each cell should say.

The detector's last layer is linear in these features, so learning a class needs nothing else of the image. Views are
the whole image, its mirror image, and scaled crops, all at the detector's input size.

Shape shorthand: N cells of a view, C = 128 channels, J classes to learn, K classes that the detector knows,
M objects of an image, S = 416 the side of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from model.detectors.nanodet import INPUT_SIZE, STRIDES, NanoDet, normalised
from model.prompts.views import OUTSIDE_RGB

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
