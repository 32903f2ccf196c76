"""The frozen base and what it learns: features of images kept, class rows fitted, detections and a checkpoint made.

Backbone, pyramid, boxes and (but see `training.fewshot.outlines`) masks are the base's. A class that the base knows
keeps its rows where the images show nothing of it; a known one that they do show, and a new one, are learned.

Shape shorthand: J classes to learn, M objects of an image, L strides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from model.checkpoints.checkpoint import Checkpoint, save_checkpoint
from model.checkpoints.state_dict import load_weights
from model.detectors.nanodet import INPUT_SIZE, strongest
from model.instance import box_of
from model.network import build_network
from model.prompts.detector import PromptedDetector
from training.datasets import Sample
from training.fewshot.cells import Cells, SeenView, cell_levels, joined, see, training_cells, views_of_image
from training.fewshot.class_rows import ClassRows, fit_rows, known_rows, similar_classes
from training.finetune.finetune import previous_names

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
        seen: the whole image's cells. cells: those of its views that are learned from.
    """

    size_hw: tuple[int, int]
    pixels: np.ndarray
    seen: SeenView
    cells: Cells


class FewShotLearner:
    """A base that learns classes; holds no images.

    Args:
        base: with a `PromptedDetector` of many classes, such as `photos`.
        renamed: name of a class of the base -> name to learn.

    Raises:
        ValueError: the base is another network, or a renaming does not fit.
    """

    def __init__(self, base: Checkpoint, classes: Sequence[str], renamed: Mapping[str, str] | None = None) -> None:
        self.base, self.classes = base, tuple(classes)
        known = tuple(base.metadata["classes"])
        alike = {name.casefold(): number for number, name in enumerate(known)}
        names = previous_names(known, self.classes, renamed)
        self.sources = [
            alike.get(own.casefold()) if name is None else known.index(name)
            for own, name in zip(self.classes, names, strict=True)
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
        """Keep the features of a sample, whose classes are this learner's, from that many views."""
        pixels = resized(sample.image, self.base.cfg)
        size_hw = sample.image.shape[0], sample.image.shape[1]
        scale = np.array([pixels.shape[1] / size_hw[1], pixels.shape[0] / size_hw[0]] * 2)
        boxes = np.array([box_of(mask) for mask in sample.masks], float).reshape(-1, 4) * scale
        labels = torch.from_numpy(sample.classes)
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        whole: SeenView | None = None
        cells = []
        for view in views_of_image(pixels, boxes, views, rng):
            view.is_visible[torch.from_numpy(sample.crowd)] = False
            seen = see(self.network.detector, view.pixels)
            whole = whole or seen
            cells.append(training_cells(seen, view, labels, len(self.classes), generator))
        assert whole is not None
        return LearnedImage(size_hw, pixels, whole, joined(cells))

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
        scores = rows.logits(image.seen.features, cell_levels(INPUT_SIZE)).sigmoid()
        best = strongest(image.seen.boxes_xyxy, scores, image.size_hw, SCORE_THRESHOLD, MOST_DETECTIONS)
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
    """The image as `model.predictor` gives it to the network."""
    height, width = ResizeShortestEdge.get_output_shape(
        *image_rgb.shape[:2], cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    return np.asarray(Image.fromarray(image_rgb).resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR))
