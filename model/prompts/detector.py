"""A detector whose boxes are prompts: NanoDet-g finds common objects, the promptable mask head outlines each.

Inference only: `training.fewshot` gives it new classes, whose rows of the detector's last layer are learned alone.

Shape shorthand: R detections of an image, H x W its size.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from model.detectors.nanodet import Detections, NanoDet, detections_of
from model.prompts.answers import Prompt, first_view, mask_of_view, within_box
from model.prompts.network import PromptNetwork
from model.prompts.second_look import look_twice
from model.prompts.views import View, resampled

#: Weaker detections are looked at once: nobody sees them unless a team lowers `score_threshold`. On 60 images of COCO
#: train the detections from 0.25 on took 1.8 times the time of one look with all of them looked at twice, and 1.1 times
#: with those from here on; mask AP was 32.5 and 32.3, boundary AP 16.4 and 16.5 (one look: 31.9 and 16.4).
SECOND_LOOK_SCORE = 0.5


@META_ARCH_REGISTRY.register()
class PromptedDetector(nn.Module):
    """NanoDet-g's boxes through the promptable network; inputs and outputs are detectron2's."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.detector = NanoDet(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        self.prompts = PromptNetwork(cfg)
        self.score_threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.quality_power = cfg.MODEL.PROMPTED.QUALITY_POWER
        self.score_power = cfg.MODEL.PROMPTED.SCORE_POWER
        mirror_flags = (False, True) if cfg.MODEL.PROMPTED.TEST_MIRRORED else (False,)
        self.looks = list(itertools.product(cfg.MODEL.PROMPTED.TEST_SIDES, mirror_flags))
        self.keep_coarse = cfg.MODEL.TRANSFINER.KEEP_COARSE
        # Convolutions on a CPU are faster with this layout.
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections of images given as uint8 RGB (3, h, w), in pixels of their `height` and `width`."""
        if self.training:
            raise NotImplementedError("PromptedDetector is for inference; train its networks with `training.prompts`")
        return [{"instances": self._detect_and_mask(item)} for item in batched_inputs]

    def detect(self, image: Tensor, size_hw: tuple[int, int]) -> Detections:
        """Boxes of a uint8 RGB (3, h, w) image, in pixels of an image of `size_hw`."""
        pixels = image[None].to(self.device).float()
        looks = [self.detector.look(pixels, side, is_mirrored=is_mirrored) for side, is_mirrored in self.looks]
        return detections_of(looks, size_hw, self.score_threshold, self.max_detections)

    def _detect_and_mask(self, item: dict[str, Any]) -> Instances:
        image = item["image"]
        height, width = int(item.get("height", image.shape[-2])), int(item.get("width", image.shape[-1]))
        return self.outlined(image.permute(1, 2, 0).cpu().numpy(), self.detect(image, (height, width)), (height, width))

    def outlined(self, pixels: np.ndarray, detections: Detections, size_hw: tuple[int, int]) -> Instances:
        """Detections with their masks.

        Args:
            pixels: uint8 h x w x 3 RGB, the image as the network sees it.
            detections: in pixels of an image of `size_hw`, as the masks will be.
        """
        boxes = detections.boxes_xyxy.cpu()
        instances = Instances(
            size_hw, pred_boxes=Boxes(boxes), scores=detections.scores.cpu(), pred_classes=detections.classes.cpu()
        )
        instances = instances[Boxes(boxes).nonempty()]
        scale = np.array([pixels.shape[1] / size_hw[1], pixels.shape[0] / size_hw[0]] * 2)
        prompts = [Prompt(box_xyxy=tuple((box * scale).tolist())) for box in instances.pred_boxes.tensor.numpy()]
        views = [first_view(prompt, pixels.shape[:2]) for prompt in prompts]
        if not views:
            return self._with_masks(instances, [], np.zeros((0, 1, 1), np.float32), np.zeros((0, 1, 1), np.float32))
        is_likely = (instances.scores >= SECOND_LOOK_SCORE).tolist()
        refined, coarse, quality = look_twice(
            self.prompts, pixels, views, prompts, device=self.device, may_repeat=is_likely
        )
        # A box's score says nothing about its outline; the two together order objects better than either.
        scores = instances.scores * torch.from_numpy(quality) ** self.quality_power
        instances.scores = scores**self.score_power
        view_boxes = [prompt.box_xyxy for prompt in prompts]
        refined = [within_box(v, view, box) for v, view, box in zip(refined, views, view_boxes, strict=True)]
        image_views = [View(tuple((np.array(view.box_xyxy) / scale).tolist()), view.side) for view in views]
        return self._with_masks(instances, image_views, _of_one_size(refined), _of_one_size(coarse))

    def _with_masks(
        self, instances: Instances, views: list[View], refined: np.ndarray, coarse: np.ndarray
    ) -> Instances:
        instances.pred_masks = _paste(views, refined, instances.image_size)
        if self.keep_coarse:
            instances.pred_coarse_masks = _paste(views, coarse, instances.image_size)
        instances.mask_probabilities = torch.from_numpy(refined)
        instances.patch_boxes = torch.tensor([view.box_xyxy for view in views]).reshape(-1, 4)
        return instances


def _paste(views: list[View], values: np.ndarray, size_hw: tuple[int, int]) -> Tensor:
    """Bool (R, H, W) masks of the views' probabilities."""
    masks = [mask_of_view(view, value, size_hw) for view, value in zip(views, values, strict=True)]
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size_hw), bool))


def _of_one_size(grids: list[np.ndarray]) -> np.ndarray:
    """Square grids (s, s), bilinear in the size of the largest, (R, s, s)."""
    side, unit = max(len(grid) for grid in grids), (0.0, 0.0, 1.0, 1.0)
    return np.stack([grid if len(grid) == side else resampled(grid, unit, unit, (side, side)) for grid in grids])
