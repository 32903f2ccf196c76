"""Features of the frozen detector at its cells, with what each cell should say: kept once an image, learned from often.

The detector's last layer is linear in these features, so learning a class needs nothing else of the image.

Shape shorthand: N cells of a view, C = 128 channels, J classes to learn, K classes that the detector knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from model.detectors.nanodet import STRIDES, NanoDet, normalised
from training.fewshot.views import TrainingView

#: A cell whose predicted box overlaps an object by this much shall say so; the overlap is its score.
GOOD_IOU = 0.5
#: Cells of an object that learn it in any case, when their boxes overlap it by more than `FAIR_IOU`.
LEAST_CELLS, FAIR_IOU = 5, 0.2
#: Above this overlap a cell that is not good is no background either.
UNCLEAR_IOU = 0.3
#: Background cells that are kept of a view: the likeliest objects, and some at random.
HARD_CELLS, RANDOM_CELLS = 1000, 150


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
