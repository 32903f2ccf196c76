"""Mask Transfiner on a query-based detector: Deformable DETR finds boxes, the same mask head outlines them.

Its losses are those of a set: one-to-one matching with the objects, then classes and boxes of matched pairs. Source:
DETR (Carion et al., ECCV 2020) with the focal class loss of Deformable DETR (Zhu et al., ICLR 2021).

Shape shorthand: N images, Q queries, K classes, D decoder layers, M objects of an image. Boxes are cx, cy, w, h as
shares of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from model.detectors.deformable import DeformableTransformer
from model.detectors.ignored_regions import mostly_ignored
from model.detectors.two_stage import TransfinerROIHeads, _to_image
from model.mask_head.head import TransfinerMaskHead
from model.mask_head.roi_features import RefinementPooler

# A predicted box trains the mask branch where it fits its object this well; the object's own box always does.
FITTING_IOU = 0.5


@META_ARCH_REGISTRY.register()
class TransfinerDETR(nn.Module):
    """Inputs and outputs are detectron2's; needs the extra ``detr``."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        transformer: DeformableTransformer,
        in_features: list[str],
        mask_in_features: list[str],
        mask_pooler: RefinementPooler,
        mask_head: TransfinerMaskHead,
        weights: Weights,
        pixel_mean: list[float],
        pixel_std: list[float],
        score_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__()
        self.backbone, self.transformer = backbone, transformer
        self.in_features, self.mask_in_features = in_features, mask_in_features
        self.mask_pooler, self.mask_head = mask_pooler, mask_head
        self.weights, self.score_threshold = weights, score_threshold
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        backbone, node = build_backbone(cfg), cfg.MODEL.DETR
        shapes: dict[str, ShapeSpec] = backbone.output_shape()
        return {
            "backbone": backbone,
            "transformer": DeformableTransformer(
                shapes[node.IN_FEATURES[0]].channels,
                len(node.IN_FEATURES),
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                queries=node.QUERIES,
                layers=node.LAYERS,
                ffn_dim=node.FFN_DIM,
                heads=node.HEADS,
                dropout=node.DROPOUT,
                box_refinement=node.BOX_REFINEMENT,
            ),
            "in_features": list(node.IN_FEATURES),
            **TransfinerROIHeads._init_mask_head(cfg, shapes),
            "weights": Weights(node.CLASS_WEIGHT, node.L1_WEIGHT, node.GIOU_WEIGHT),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training, else a dict with ``instances`` an image."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self._images(batched_inputs)
        features = self.backbone(images.tensor)
        logits, boxes = self._detect(features, images)
        targets = [input["instances"].to(self.device) for input in batched_inputs]
        frame = _frame(images)
        truths = [QueryTargets(image.gt_classes, _to_shares(image.gt_boxes.tensor, frame)) for image in targets]
        ignored = [image.get("ignored") for image in batched_inputs]
        losses = dict[str, Tensor]()
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer in range(len(logits)):
            pairs = [
                match_queries(image_logits, image_boxes, truth, self.weights)
                for image_logits, image_boxes, truth in zip(logits[layer], boxes[layer], truths, strict=True)
            ]
            is_counted = _counted(_to_edges(boxes[layer].detach(), frame), ignored, pairs)
            layer_losses = set_losses(logits[layer], boxes[layer], truths, pairs, self.weights, is_counted)
            suffix = "" if layer == len(logits) - 1 else f"_{layer}"
            losses |= {f"loss_{name}{suffix}": value for name, value in layer_losses.items()}
        proposals = [
            _mask_proposals(truth, _to_edges(predicted_boxes.detach(), frame), *pair)
            for truth, predicted_boxes, pair in zip(targets, boxes[-1], pairs, strict=True)
        ]
        pyramid = self.mask_pooler(self._mask_maps(features), [proposal.proposal_boxes for proposal in proposals])
        return losses | self.mask_head(pyramid, proposals)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Predict like ``GeneralizedRCNN.inference``: instances of the network's input, or of the original images."""
        images = self._images(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            logits, boxes = self._detect(features, images)
            edges = [_to_edges(layer_boxes, _frame(images)) for layer_boxes in boxes[-1]]
            detected_instances = [
                self._best(logit.float().sigmoid(), box, size)
                for logit, box, size in zip(logits[-1], edges, images.image_sizes, strict=True)
            ]
        detections = [instance.to(self.device) for instance in detected_instances]
        pyramid = self.mask_pooler(self._mask_maps(features), [instance.pred_boxes for instance in detections])
        results: list[Instances] = self.mask_head(pyramid, detections)
        if not do_postprocess:
            return results
        return [
            {"instances": _to_image(result, input.get("height", size[0]), input.get("width", size[1]))}
            for result, input, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def _images(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        pixels = [(input["image"].to(self.device) - self.pixel_mean) / self.pixel_std for input in batched_inputs]
        return ImageList.from_tensors(pixels, self.backbone.size_divisibility)

    def _detect(self, features: dict[str, Tensor], images: ImageList) -> tuple[Tensor, Tensor]:
        valid = torch.zeros((len(images), *images.tensor.shape[-2:]), dtype=torch.bool, device=self.device)
        for image_valid, (height, width) in zip(valid, images.image_sizes, strict=True):
            image_valid[:height, :width] = True
        logits, boxes = self.transformer([features[name] for name in self.in_features], valid)
        return logits, boxes

    def _mask_maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.mask_in_features]

    def _best(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Instances:
        """The best pairs of a query and a class; one query may stand for several classes."""
        flat = scores.flatten()
        count = min(self.detections_per_image, len(flat))
        best_scores, index = flat.topk(count)
        is_strong = best_scores > self.score_threshold
        best_scores, index = best_scores[is_strong], index[is_strong]
        result = Instances(size)
        result.pred_boxes = Boxes(boxes[index // scores.shape[1]])
        result.pred_boxes.clip(size)
        result.scores, result.pred_classes = best_scores, index % scores.shape[1]
        return result[result.pred_boxes.nonempty()]


def _mask_proposals(truth: Instances, boxes_xyxy: Tensor, queries: Tensor, objects: Tensor) -> Instances:
    """Build proposals to train the mask branch on: every object in its own box, and in its query's where that fits."""
    base = Instances(truth.image_size)
    base.proposal_boxes, base.gt_classes, base.gt_masks = truth.gt_boxes, truth.gt_classes, truth.gt_masks
    if not len(queries):
        return base
    instances = Instances(truth.image_size)
    instances.proposal_boxes = Boxes(boxes_xyxy[queries])
    instances.proposal_boxes.clip(truth.image_size)
    instances.gt_classes, instances.gt_masks = truth.gt_classes[objects], truth.gt_masks[objects]
    overlap = pairwise_iou(instances.proposal_boxes, truth.gt_boxes)[torch.arange(len(objects)), objects]
    return Instances.cat([base, instances[overlap >= FITTING_IOU]])


def _counted(boxes_xyxy: Tensor, ignored: list[Tensor | None], pairs: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """Bool (N, Q): not the unmatched queries in ignored regions, which are no background; None where all count."""
    if all(mask is None for mask in ignored):
        return None
    is_counted = torch.stack([~mostly_ignored(edges, mask) for edges, mask in zip(boxes_xyxy, ignored, strict=True)])
    for image, (queries, _) in enumerate(pairs):
        is_counted[image, queries] = True
    return is_counted


def _frame(images: ImageList) -> Tensor:
    """Width, height, width, height of the padded images."""
    height, width = images.tensor.shape[-2:]
    return torch.tensor([width, height, width, height], device=images.tensor.device, dtype=torch.float32)


def _to_shares(boxes_xyxy: Tensor, frame: Tensor) -> Tensor:
    return box_convert(boxes_xyxy / frame, "xyxy", "cxcywh")


def _to_edges(boxes: Tensor, frame: Tensor) -> Tensor:
    return box_convert(boxes.float(), "cxcywh", "xyxy") * frame


ALPHA, GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class Weights:
    """Weights of classes, box edges (L1) and box overlap (GIoU), in the matching as in the loss."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class QueryTargets:
    """Truth of one image: classes int64 (M,), boxes (M, 4)."""

    classes: Tensor
    boxes: Tensor


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, truth: QueryTargets, weights: Weights) -> tuple[Tensor, Tensor]:
    """Match queries to objects: the pairs of the least total cost.

    Args:
        logits: (Q, K); boxes: (Q, 4).

    Returns:
        queries, objects: int64 (min(Q, M),) each.
    """
    share = logits.float().sigmoid()[:, truth.classes]
    positive = ALPHA * (1 - share) ** GAMMA * -(share + 1e-8).log()
    negative = (1 - ALPHA) * share**GAMMA * -(1 - share + 1e-8).log()
    distance = torch.cdist(boxes.float(), truth.boxes, p=1)
    overlap = generalized_box_iou(_corners(boxes.float()), _corners(truth.boxes))
    cost = weights.classes * (positive - negative) + weights.l1 * distance - weights.giou * overlap
    queries, objects = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(queries, device=logits.device), torch.as_tensor(objects, device=logits.device)


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    truths: list[QueryTargets],
    pairs: list[tuple[Tensor, Tensor]],
    weights: Weights,
    is_counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted losses ``class``, ``box`` and ``giou``, each divided by the number of objects of the batch.

    Args:
        logits: (N, Q, K); boxes: (N, Q, 4); truths, pairs: one an image.
        is_counted: bool (N, Q), queries whose classes count; None: all.
    """
    count = max(sum(len(truth.classes) for truth in truths), 1)
    targets = torch.zeros_like(logits)
    for image, (truth, (queries, objects)) in enumerate(zip(truths, pairs, strict=True)):
        targets[image, queries, truth.classes[objects]] = 1
    boxes_of_queries = torch.cat([boxes[image, queries] for image, (queries, _) in enumerate(pairs)])
    target_boxes = torch.cat([truth.boxes[objects] for truth, (_, objects) in zip(truths, pairs, strict=True)])
    overlap = generalized_box_iou(_corners(boxes_of_queries), _corners(target_boxes)).diag()
    return {
        "class": weights.classes * focal_loss(logits, targets, is_counted) / count,
        "box": weights.l1 * F.l1_loss(boxes_of_queries, target_boxes, reduction="sum") / count,
        "giou": weights.giou * (1 - overlap).sum() / count,
    }


def focal_loss(logits: Tensor, targets: Tensor, is_counted: Tensor | None = None) -> Tensor:
    """Sum of the sigmoid focal loss (N, Q, K) over all queries, or those that count (bool N, Q)."""
    losses = sigmoid_focal_loss(logits, targets, ALPHA, GAMMA)
    return (losses if is_counted is None else losses[is_counted]).sum()


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
