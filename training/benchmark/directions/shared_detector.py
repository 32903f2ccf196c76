"""The shared detector: for every scene its features, its boxes and the truth, computed once and kept on disk.

Shape shorthand: D detections of a scene, N truths, C channels, H x W the scene's pixels, which the network sees as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from model.checkpoints.checkpoint import load_checkpoint
from model.files import replacing
from training.benchmark.cost.subjects import open_network
from training.benchmark.tables import digest
from training.datasets import Sample, SceneSet, open_set
from training.datasets.loader import to_network_input
from training.evaluation.coco_format import coco_results
from training.evaluation.incoherence_analysis import match_to_truth

LEAST_SCORE = 0.2  # of the detections whose masks are compared
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class SharedScene:
    """What the detector made of a scene.

    Attributes:
        features: by FPN level, float32 (1, C, h, w).
        boxes_xyxy: (D, 4). scores: (D,). classes: (D,).
        masks: bool (N, H, W), the truth. truth_boxes_xyxy: (N, 4), truth_classes: (N,).
        partner: (D,) the truth that a detection matches, -1 for none.
    """

    features: dict[str, Tensor]
    boxes_xyxy: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor
    truth_boxes_xyxy: Tensor
    truth_classes: Tensor
    partner: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the scene in pixels."""
        return int(self.masks.shape[1]), int(self.masks.shape[2])

    def detections(self) -> Instances:
        """The detections, as a mask head's inference reads them."""
        instances = Instances(self.size_hw)
        instances.pred_boxes, instances.scores = Boxes(self.boxes_xyxy.clone()), self.scores
        instances.pred_classes = self.classes
        return instances


class SharedDetector:
    """Scenes as a checkpoint sees them, kept in a folder.

    Args:
        weights: checkpoint directory of the detector.
        folder: grows by about 1.5 MB a scene.
    """

    def __init__(self, weights: Path, folder: Path) -> None:
        self.weights = weights
        self.cfg, _, metadata = load_checkpoint(weights)
        self.class_names: tuple[str, ...] = tuple(metadata["classes"])
        self.height = int(self.cfg.INPUT.MIN_SIZE_TEST)
        self.width = self.height * 4 // 3
        self.identity = digest(str(metadata["digest"]), self.height, self.width, LEAST_SCORE)
        self.folder = folder / self.identity

    def scenes(self, split: str) -> SceneSet:
        """The scenes of a split, in the size that the network sees."""
        samples = open_set(f"scenes:{split}", width=self.width, height=self.height)
        assert isinstance(samples, SceneSet)
        if samples.class_names != self.class_names:
            raise ValueError(
                f"{self.weights} knows {', '.join(self.class_names)}; scenes have {', '.join(samples.class_names)}"
            )
        return samples

    def missing(self, split: str, count: int) -> list[int]:
        """Which of the first ``count`` scenes have not been computed."""
        return [index for index in range(count) if not self._path(split, index).is_file()]

    def compute(self, split: str, indices: list[int]) -> None:
        """Compute and keep scenes."""
        samples = self.scenes(split)
        network, cfg = open_network(weights=self.weights)
        for index in indices:
            arrays = _seen(network, cfg, samples[index])
            with replacing(self._path(split, index)) as unfinished, unfinished.open("wb") as file:
                np.savez(file, **arrays)

    def load(self, split: str, index: int) -> SharedScene:
        """A computed scene."""
        with np.load(self._path(split, index)) as kept:
            arrays = {name: torch.from_numpy(kept[name]) for name in kept.files if name != "masks"}
            masks = np.unpackbits(kept["masks"], axis=-1, count=self.width).astype(bool)
        features = {
            name: arrays.pop(name)[None].float() for name in list(arrays) if name.startswith("p") and name != "partner"
        }
        return SharedScene(features=features, masks=torch.from_numpy(masks), **arrays)

    def _path(self, split: str, index: int) -> Path:
        return self.folder / split / f"{index:06d}.npz"


@torch.inference_mode()
def _seen(network: nn.Module, cfg: CfgNode, sample: Sample) -> dict[str, Any]:
    model: Any = network
    record = to_network_input(sample, [], cfg.INPUT.FORMAT)
    images = model.preprocess_image([record])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    (boxes,) = model.roi_heads._forward_box(features, proposals)
    boxes = boxes[boxes.scores >= LEAST_SCORE]
    partner = torch.full((len(boxes),), -1, dtype=torch.int64)
    matched, truths = match_to_truth(sample, boxes.pred_boxes, boxes.pred_classes)
    partner[matched] = truths
    truth_boxes = BitMasks(torch.from_numpy(sample.masks)).get_bounding_boxes()
    kept = {name: features[name][0].half() for name in cfg.MODEL.ROI_HEADS.IN_FEATURES}
    return {name: tensor.numpy() for name, tensor in kept.items()} | {
        "boxes_xyxy": boxes.pred_boxes.tensor.numpy(),
        "scores": boxes.scores.numpy(),
        "classes": boxes.pred_classes.numpy(),
        "partner": partner.numpy(),
        "truth_boxes_xyxy": truth_boxes.tensor.numpy(),
        "truth_classes": sample.classes,
        "masks": np.packbits(sample.masks, axis=-1),
    }


@torch.inference_mode()
def detect_on_scenes(heads: nn.Module, detector: SharedDetector, scenes: int) -> list[dict[str, Any]]:
    """COCO results of the first ``scenes`` held-out scenes; RLE counts as text, ready for JSON."""
    heads.eval()
    results = []
    for index in range(scenes):
        scene = detector.load("val", index)
        boxes = scene.detections()
        if len(boxes):
            (masked,) = heads._forward_mask(scene.features, [boxes])  # type: ignore[operator]
            probabilities, frame = masked.pred_masks[:, 0], masked.pred_boxes.tensor
            masks = paste_masks_in_image(probabilities, frame, scene.size_hw, MASK_THRESHOLD)
            results += coco_results(index, masks.numpy(), masked.scores.numpy(), masked.pred_classes.numpy())
    for result in results:
        packed = result["segmentation"]
        result["segmentation"] = {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}
    return results
