"""Tables 1 and 3 of the paper for any model and set, from one pass over the images, with their definitions.

Table 1: how much of a coarse mask's error lies in incoherent regions, and what perfect labels there would bring.
Reading (the paper's 14 / 43 / 56 % fit none exactly): the box under study is the detection's; the truth is cut to it
on an S x S grid, S = 224; the regions are equation 1's on three halvings of that truth, as they are (not nested), and
the region U of an object is their union on the grid. E is where the coarse mask is wrong.

Table 3: how well incoherent regions are detected, place by place, a level at a time and pooled. The paper's "accuracy"
is not defined there, so precision, recall, pixel accuracy and F1 are all given. What is counted as detected is what
becomes a node of the quadtree; what should be is equation 1 within its parents' coverage.

Shape shorthand: R detections, RoIs or objects, M truths, S side of a grid or level, L levels coarse to fine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from model.mask_head.head import CoarseOutput, TransfinerMaskHead
from model.mask_head.incoherence import incoherent_regions
from model.mask_head.quadtree import Nodes
from training.datasets import AnySet, Sample, usable_samples
from training.datasets.loader import to_test_input
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.coco import coco_ap

GRID_SIDE = 224
MATCH_IOU = 0.5


def mask_head_of(network: nn.Module) -> TransfinerMaskHead | None:
    """The network's Transfiner mask head; None where it has another one."""
    return next((module for module in network.modules() if isinstance(module, TransfinerMaskHead)), None)


@dataclass
class Refined:
    """Convolutional output of the mask head for the RoIs of one image, and the nodes of each level."""

    output: CoarseOutput
    levels: list[Nodes]


@contextmanager
def recorded_refinement(network: nn.Module) -> Iterator[list[Refined]]:
    """Collect a :class:`Refined` for each image that is predicted in this context.

    Raises:
        ValueError: the network has no Transfiner mask head.
    """
    head = mask_head_of(network)
    if head is None:
        raise ValueError(f"{type(network).__name__} has no Transfiner mask head: nothing is refined in it")
    records: list[Refined] = []
    find_nodes = head.find_nodes

    def recording(output: CoarseOutput) -> list[Nodes]:
        levels = find_nodes(output)
        records.append(Refined(output, levels))
        return levels

    head.find_nodes = recording  # type: ignore[method-assign]
    try:
        yield records
    finally:
        head.find_nodes = find_nodes  # type: ignore[method-assign]


@dataclass
class _RegionTotals:
    """Counts and COCO results that one pass over a set collects."""

    levels: list[Tensor]
    counts: list[Tensor] = field(default_factory=lambda: [torch.zeros((0, 4), dtype=torch.int64)])
    coarse: list[dict[str, Any]] = field(default_factory=list)
    filled: list[dict[str, Any]] = field(default_factory=list)


def analyse(network: nn.Module, cfg: CfgNode, samples: AnySet, *, side: int = GRID_SIDE) -> dict[str, Any]:
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
    truth = TruthBuilder(samples.class_names)
    regions = _RegionTotals([torch.zeros(4, dtype=torch.int64) for _ in sizes])
    for _, sample in usable_samples(samples):
        truth.add(sample)
        record = to_test_input(sample, cfg)
        instances, refined = _predict(network, record, with_nodes=bool(sizes))
        _study(sample, instances, refined, sizes, side, regions)
    dataset = truth.build()
    table1 = region_properties(torch.cat(regions.counts)) | {
        "ap_coarse": coco_ap(dataset, regions.coarse, "segm")["AP"],
        "ap_gt": coco_ap(dataset, regions.filled, "segm")["AP"],
    }
    table3 = detector_figures(regions.levels, sizes) if sizes else None
    return {"images": len(samples), "table1": table1, "table3": table3}


@torch.inference_mode()
def _predict(network: nn.Module, record: dict[str, Any], *, with_nodes: bool) -> tuple[Instances, Refined | None]:
    """Detections with masks on their RoI grids and boxes in pixels of the original image."""
    context: AbstractContextManager[list[Refined]] = recorded_refinement(network) if with_nodes else nullcontext([])
    with context as records:
        (instances,) = network.inference([record], do_postprocess=False)  # type: ignore[operator]
    instances = instances.to("cpu")
    height, width = instances.image_size
    scale = torch.tensor([record["width"] / width, record["height"] / height] * 2)
    instances.pred_boxes = Boxes(instances.pred_boxes.tensor * scale)
    return instances, records[0] if records else None


def _study(
    sample: Sample, instances: Instances, refined: Refined | None, sizes: list[int], side: int, regions: _RegionTotals
) -> None:
    boxes = instances.pred_boxes
    coarse = coarse_on_grid(instances, side)
    matched, partner = match_to_truth(sample, boxes, instances.pred_classes)
    cut = BitMasks(torch.from_numpy(sample.masks[partner.numpy()]))
    cut_boxes = boxes.tensor[matched]
    truth = _crop(cut, cut_boxes, side)
    union, filled = incoherent_union(truth), coarse.clone()
    filled[matched] = torch.where(union, truth, coarse[matched])
    regions.counts.append(region_counts(coarse[matched], truth, union))
    for masks, results in ((coarse, regions.coarse), (filled, regions.filled)):
        image_masks = paste(masks, boxes, sample.image.shape[:2])
        results += coco_results(sample.image_id, image_masks, instances.scores.numpy(), instances.pred_classes.numpy())
    if refined is not None and len(matched):
        rois = len(refined.output.logits)
        grids = regions_of_nodes(refined.levels, rois, sizes)
        has_nodes = matched < rois  # a limit on refined instances leaves the later ones without nodes
        if not has_nodes.any():
            return
        # Equation 1 within its parents' coverage, from truth of twice the finest level's side.
        fine = _crop(cut, cut_boxes, 2 * sizes[-1])[has_nodes]
        right_regions = incoherent_regions(fine, len(sizes), nested=True)
        for level, (grid, right) in enumerate(zip(grids, right_regions, strict=True)):
            regions.levels[level] += compare_regions(grid[matched[has_nodes]], right)


def match_to_truth(sample: Sample, boxes: Boxes, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Match each detection to the truth of its class, not a crowd, with the largest box IoU, at least 0.5.

    Returns:
        matched: int64 (m,) indices of detections; partner: int64 (m,) indices of the sample's masks.
    """
    masks = BitMasks(torch.from_numpy(sample.masks))
    if not len(sample.masks) or not len(boxes):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    iou = pairwise_iou(boxes, masks.get_bounding_boxes())
    is_candidate = classes[:, None] == torch.from_numpy(sample.classes)[None]
    is_candidate &= ~torch.from_numpy(sample.crowd)[None]
    best_iou, partner = torch.where(is_candidate, iou, torch.zeros_like(iou)).max(1)
    matched = torch.nonzero(best_iou >= MATCH_IOU)[:, 0]
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
    image_masks: np.ndarray = paste_masks_in_image(masks.float(), boxes, shape_hw, threshold=0.5).numpy()
    return image_masks


def _crop(masks: BitMasks, boxes_xyxy: Tensor, side: int) -> Tensor:
    """Masks cut to boxes, set from half coverage on, bool (R, side, side)."""
    if not len(boxes_xyxy):
        return torch.zeros((0, side, side), dtype=torch.bool)
    return masks.crop_and_resize(boxes_xyxy, side)


HALVINGS = 3


def incoherent_union(masks: Tensor, halvings: int = HALVINGS) -> Tensor:
    """Places of a mask's grid in an incoherent region of any level, bool (R, S, S).

    Raises:
        ValueError: the side cannot be halved ``halvings`` times.
    """
    union = torch.zeros_like(masks, dtype=torch.bool)
    if not len(masks):
        return union
    for region in incoherent_regions(masks, halvings, nested=False):
        times = masks.shape[-1] // region.shape[-1]
        union |= region.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return union


def region_counts(coarse: Tensor, truth: Tensor, union: Tensor) -> Tensor:
    """Count pixels of bool (R, S, S) masks: int64 (R, 4), of the grid, in U, coarsely wrong, and wrong in U."""
    wrong = coarse != truth
    return torch.stack([mask.flatten(1).sum(1) for mask in (torch.ones_like(truth), union, wrong, wrong & union)], 1)


def region_properties(counts: Tensor) -> dict[str, float]:
    """Table 1's first three columns as fractions, from (R, 4) `region_counts`: means over objects, and pooled.

    An object without any error has no recall, one without any region no accuracy; they are left out of those means.
    NaN where nothing is left.
    """
    places, region, errors, caught = counts.double().unbind(1)
    some_error, some_region = errors > 0, region > 0
    return {
        "percent": _mean(region / places),
        "recall_err": _mean((caught / errors)[some_error]),
        "accuracy": _mean((1 - caught / region)[some_region]),
        "percent_pooled": _share(region.sum(), places.sum()),
        "recall_err_pooled": _share(caught.sum(), errors.sum()),
        "accuracy_pooled": 1 - _share(caught.sum(), region.sum()),
        "objects": float(len(counts)),
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else float("nan")


def compare_regions(predicted: Tensor, truth: Tensor) -> Tensor:
    """Count bool (R, S, S) regions against the right ones: int64 (4,), hits, false alarms, misses, right rejections."""
    pairs = ((predicted, truth), (predicted, ~truth), (~predicted, truth), (~predicted, ~truth))
    return torch.stack([(region & reference).sum() for region, reference in pairs])


def confusion_figures(counts: Tensor) -> dict[str, float]:
    """precision, recall, accuracy and f1 of `compare_regions`, as fractions; NaN where nothing was counted."""
    hit, false_alarm, miss, rejection = counts
    return {
        "precision": _share(hit, hit + false_alarm),
        "recall": _share(hit, hit + miss),
        "accuracy": _share(hit + rejection, counts.sum()),
        "f1": _share(2 * hit, 2 * hit + false_alarm + miss),
    }


def regions_of_nodes(levels: Sequence[Nodes], rois: int, sizes: Sequence[int]) -> list[Tensor]:
    """Nodes drawn on their levels' grids, L bool (R, S, S)."""
    grids = []
    for nodes, size in zip(levels, sizes, strict=True):
        grid = torch.zeros((rois, size, size), dtype=torch.bool)
        grid[nodes.roi.cpu(), nodes.y.cpu(), nodes.x.cpu()] = True
        grids.append(grid)
    return grids


def detector_figures(levels: Sequence[Tensor], sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Figures of every level, named by its side, and of all their places together as ``pooled``."""
    figures = {str(size): confusion_figures(level) for size, level in zip(sizes, levels, strict=True)}
    return figures | {"pooled": confusion_figures(torch.stack(list(levels)).sum(0))}
