"""Tables 1 and 3 for any model and set: one pass over the images, the definitions beside it.

Shape shorthand: R detections of an image, M truths, S side of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from training.datasets import AnySet, Sample
from training.evaluation import analysis, analysis_detector
from training.evaluation.analysis_detector import Confusion
from training.evaluation.coco_ap import mask_ap
from training.evaluation.coco_format import TruthBuilder, detections
from training.inspection import Refined, mask_head_of, recorded_refinement
from training.mapper import to_network_input

MATCH_IOU = 0.5


@dataclass
class _Found:
    """What the pass collects."""

    counts: list[analysis.RegionCounts] = field(default_factory=list)
    levels: list[Confusion] = field(default_factory=list)
    coarse: list[dict[str, Any]] = field(default_factory=list)
    filled: list[dict[str, Any]] = field(default_factory=list)


def analyse(
    network: nn.Module,
    cfg: CfgNode,
    samples: AnySet,
    *,
    side: int = analysis.GRID_SIDE,
    progress: Callable[[int], object] = int,
) -> dict[str, Any]:
    """Properties of incoherent regions (Table 1) and of their detection (Table 3; None without a quadtree).

    Args:
        network: any detectron2 two-stage network in inference mode; with KEEP_COARSE its coarse masks are studied,
            else the masks it predicts.
        side: of the grid that masks are compared on.

    Returns:
        ``{"table1": {percent, recall_err, accuracy, ..._pooled, objects, ap_coarse, ap_gt}, "table3": ...}``,
        fractions in 0..1.
    """
    head = mask_head_of(network)
    sizes = head.sizes if head else []
    truth, found = TruthBuilder(samples.class_names), _Found(levels=[Confusion() for _ in sizes])
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    for index in range(len(samples)):
        sample = samples[index]
        truth.add(sample)
        record = to_network_input(sample, resize, cfg.INPUT.FORMAT)
        instances, refined = _predict(network, record, recorded=bool(sizes))
        _study(sample, instances, refined, sizes, side, found)
        progress(index + 1)
    index_of_truth = truth.build()
    table1 = analysis.region_properties(analysis.join_counts(found.counts)) | {
        "ap_coarse": mask_ap(index_of_truth, found.coarse)["AP"],
        "ap_gt": mask_ap(index_of_truth, found.filled)["AP"],
    }
    table3 = analysis_detector.detector_figures(found.levels, sizes) if sizes else None
    return {"images": len(samples), "table1": table1, "table3": table3}


@torch.inference_mode()
def _predict(network: nn.Module, record: dict[str, Any], *, recorded: bool) -> tuple[Instances, Refined | None]:
    """Detections with masks on their RoI grids and boxes in pixels of the original image."""
    context: AbstractContextManager[list[Refined]] = recorded_refinement(network) if recorded else nullcontext([])
    with context as records:
        (instances,) = network.inference([record], do_postprocess=False)  # type: ignore[operator]
    instances = instances.to("cpu")
    height, width = instances.image_size
    scale = torch.tensor([record["width"] / width, record["height"] / height] * 2)
    instances.pred_boxes = Boxes(instances.pred_boxes.tensor * scale)
    return instances, records[0] if records else None


def _study(
    sample: Sample, instances: Instances, refined: Refined | None, sizes: list[int], side: int, found: _Found
) -> None:
    boxes = instances.pred_boxes
    coarse = coarse_on_grid(instances, side)
    matched, partner = match_to_truth(sample, boxes, instances.pred_classes)
    cut = BitMasks(torch.from_numpy(sample.masks[partner.numpy()]))
    cut_boxes = boxes.tensor[matched]
    truth = _crop(cut, cut_boxes, side)
    filled = coarse.clone()
    filled[matched] = analysis.fill_with_truth(coarse[matched], truth)
    found.counts.append(analysis.region_counts(coarse[matched], truth))
    for masks, results in ((coarse, found.coarse), (filled, found.filled)):
        pasted = paste(masks, boxes, sample.image.shape[:2])
        results += detections(sample.image_id, pasted, instances.scores.numpy(), instances.pred_classes.numpy())
    if refined is not None and len(matched):
        rois = len(refined.output.logits)
        grids = analysis_detector.regions_of_nodes(refined.levels, rois, sizes)
        known = matched < rois  # a limit on refined instances leaves the later ones without nodes
        if not known.any():
            return
        wanted = analysis_detector.wanted_regions(_crop(cut, cut_boxes, 2 * sizes[-1])[known], len(sizes))
        for level, (grid, right) in enumerate(zip(grids, wanted, strict=True)):
            found.levels[level] += analysis_detector.compare_regions(grid[matched[known]], right)


def match_to_truth(sample: Sample, boxes: Boxes, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Detections with a truth of their class, not a crowd, of box IoU >= .5, and that truth (largest IoU).

    Returns:
        matched: int64 (m,) indices of detections; partner: int64 (m,) indices of the sample's masks.
    """
    masks = BitMasks(torch.from_numpy(sample.masks))
    if not len(sample.masks) or not len(boxes):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    iou = pairwise_iou(boxes, masks.get_bounding_boxes())
    allowed = classes[:, None] == torch.from_numpy(sample.classes)[None]
    allowed &= ~torch.from_numpy(sample.crowd)[None]
    best, partner = torch.where(allowed, iou, torch.zeros_like(iou)).max(1)
    matched = torch.nonzero(best >= MATCH_IOU)[:, 0]
    return matched, partner[matched]


def coarse_on_grid(instances: Instances, side: int) -> Tensor:
    """Coarse masks (or, where there are none, the predicted ones) on a side x side grid, bool (R, side, side)."""
    name = "pred_coarse_masks" if instances.has("pred_coarse_masks") else "pred_masks"
    masks = instances.get(name).float()
    if not len(masks):
        return torch.zeros((0, side, side), dtype=torch.bool)
    return F.interpolate(masks, (side, side), mode="bilinear")[:, 0] >= 0.5


def paste(masks: Tensor, boxes: Boxes, shape_hw: tuple[int, int]) -> np.ndarray:
    """Masks of RoI grids in the image, bool R x H x W."""
    if not len(masks):
        return np.zeros((0, *shape_hw), bool)
    pasted: np.ndarray = paste_masks_in_image(masks.float(), boxes, shape_hw, threshold=0.5).numpy()
    return pasted


def _crop(masks: BitMasks, boxes_xyxy: Tensor, side: int) -> Tensor:
    """Masks cut to boxes, set from half coverage on, bool (R, side, side)."""
    if not len(boxes_xyxy):
        return torch.zeros((0, side, side), dtype=torch.bool)
    return masks.crop_and_resize(boxes_xyxy, side)
