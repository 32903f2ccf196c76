"""The mask part gives the authors' numbers: inference, training targets, losses and gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

import model.network  # noqa: F401
from model.config import get_config
from model.mask_head.incoherence import incoherence_target
from model.mask_head.quadtree import select_incoherent_regions
from model.mask_head.targets import boundary_target, image_masks, mask_targets, semantic_target
from tests.support.released_fixture import FIXTURES, features, mask_part_state

# The tolerance that correct implementations keep and every planted mistake exceeded (fixtures' description).
PROBABILITY_TOLERANCE = 1e-3


def released_heads(recorded: np.lib.npyio.NpzFile, **settings: object) -> nn.Module:
    cfg = get_config("released")
    for key, value in settings.items():
        cfg.MODEL.TRANSFINER[key] = value
    shapes = {f"p{level}": ShapeSpec(channels=256, stride=2**level) for level in (2, 3, 4, 5)}
    heads = build_roi_heads(cfg, shapes)
    unexpected = heads.load_state_dict(mask_part_state(recorded), strict=False).unexpected_keys
    assert unexpected == []
    return heads


def detections(recorded: np.lib.npyio.NpzFile) -> Instances:
    instances = Instances(tuple(recorded["image_size"].tolist()))
    instances.pred_boxes = Boxes(torch.from_numpy(recorded["boxes"]))
    instances.pred_classes = torch.from_numpy(recorded["classes"])
    return instances


@torch.no_grad()
def test_coarse_part(recorded):
    heads, instances = released_heads(recorded).eval(), detections(recorded)
    pyramid = heads.mask_pooler(features(recorded), [instances.pred_boxes])
    output = heads.mask_head.coarse(pyramid, instances.pred_classes)
    np.testing.assert_allclose(output.logits, recorded["out_coarse_logits"], atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(output.incoherence[0], recorded["out_incoherence_logit"], atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(pyramid.coarse[0], recorded["out_roi14_inst0"], atol=PROBABILITY_TOLERANCE)


@torch.no_grad()
def test_sequences_have_the_recorded_lengths(recorded):
    head = released_heads(recorded).mask_head
    logits = torch.from_numpy(recorded["out_incoherence_logit"])[:10]
    maps = [nn.functional.interpolate(logits[:, None], (size, size))[:, 0].sigmoid() for size in head.sizes]
    regions = select_incoherent_regions(maps, head.settings.thresholds_test)
    lengths = torch.stack([torch.full((10,), 196), *(region.sum((1, 2)) for region in regions)], dim=1)
    np.testing.assert_array_equal(lengths, recorded["out_seq_parts"])


@pytest.mark.parametrize(
    ("dilate_and_blur", "expected"),
    [(False, "out_mask_probs"), (True, "out_mask_probs_vis100")],
    ids=["plain", "vis100"],
)
@torch.no_grad()
@pytest.mark.slow
def test_refined_masks_with_the_authors_limit(recorded, dilate_and_blur, expected):
    heads = released_heads(recorded, TEST_INSTANCE_LIMIT=10, DILATE_AND_BLUR=dilate_and_blur).eval()
    instances = detections(recorded)
    heads._forward_mask(dict(zip(("p2", "p3", "p4", "p5"), features(recorded), strict=True)), [instances])
    np.testing.assert_allclose(instances.pred_masks[:, 0], recorded[expected], atol=PROBABILITY_TOLERANCE)
    assert not instances.uncertainty[10:].any()
    assert (instances.incoherent_nodes[:10] > 0).any()
    assert not instances.incoherent_nodes[10:].any()


@torch.no_grad()
def test_every_instance_is_refined_by_default_and_alone_or_in_company_the_same(recorded):
    heads, maps = released_heads(recorded).eval(), features(recorded)
    last = detections(recorded)[10:]
    heads._forward_mask(dict(zip(("p2", "p3", "p4", "p5"), maps, strict=True)), [last])
    upsampled_coarse = torch.from_numpy(recorded["out_mask_probs"][10:])
    assert (last.pred_masks[:, 0] - upsampled_coarse).abs().amax((1, 2)).min() > 0.5
    alone = detections(recorded)[12:]
    heads._forward_mask(dict(zip(("p2", "p3", "p4", "p5"), maps, strict=True)), [alone])
    np.testing.assert_allclose(alone.pred_masks[0], last.pred_masks[2], atol=1e-4)


@torch.no_grad()
def test_pasted_masks(recorded):
    expected = np.unpackbits(recorded["out_pasted_packed"])
    height, width = recorded["image_size"].tolist()
    expected = expected[: 13 * height * width].reshape(13, height, width).astype(bool)
    masks = paste_masks_in_image(
        torch.from_numpy(recorded["out_mask_probs"]), torch.from_numpy(recorded["boxes"]), (height, width)
    ).numpy()
    union, common = (expected | masks).sum((1, 2)), (expected & masks).sum((1, 2))
    assert (common >= 0.999 * union).all()


@pytest.fixture(scope="module")
def training_case():
    arrays = np.load(FIXTURES / "losses.npz")
    instances = Instances(tuple(arrays["image_size"].tolist()))
    instances.proposal_boxes = Boxes(torch.from_numpy(arrays["boxes"]))
    instances.gt_classes = torch.from_numpy(arrays["classes"])
    polygons = [[arrays[k] for k in arrays.files if k.startswith(f"poly{i}_")] for i in range(len(instances))]
    instances.gt_masks = PolygonMasks(polygons)
    return arrays, instances


def test_training_targets(training_case):
    arrays, instances = training_case

    def incoherence(image):
        return [incoherence_target(image_masks(image), image.proposal_boxes.tensor, 28)]

    targets = mask_targets([instances], [14, 28, 56, 112], incoherence)
    for size in (14, 28, 56, 112):
        np.testing.assert_array_equal(targets.masks[size], unpacked(arrays[f"gt{size}"], size))
    np.testing.assert_array_equal(targets.incoherence[0], unpacked(arrays["gt_inc28"], 28))
    np.testing.assert_array_equal(boundary_target(targets.masks[28]), arrays["boundary28"])
    semantic, valid = semantic_target([instances], 48, 72, 4)
    np.testing.assert_array_equal(semantic, arrays["semantic_p2"])
    assert valid.all()


def unpacked(bits: np.ndarray, size: int) -> np.ndarray:
    return np.unpackbits(bits)[: 7 * size * size].reshape(7, size, size)


def test_losses_and_gradients(recorded, training_case):
    arrays, instances = training_case
    heads = released_heads(recorded, ENCODER_DROPOUT=0.0).train()
    heads.mask_head.permutation = torch.arange
    with EventStorage():
        pyramid = heads.mask_pooler(features(recorded), [instances.proposal_boxes])
        losses = heads.mask_head(pyramid, [instances])
    expected = json.loads(bytes(arrays["losses"]))
    names = {
        "loss_mask": "loss_mask",
        "loss_mask_incoherence": "loss_mask_uncertain",
        "loss_mask_refine": "loss_mask_refine",
        "loss_semantic": "loss_semantic",
        "loss_mask_boundary": "loss_bound",
    }
    assert {ours: losses[ours].item() for ours in names} == pytest.approx(
        {ours: expected[theirs] for ours, theirs in names.items()}, rel=1e-4
    )
    sum(losses.values()).backward()
    norms = {name: p.grad.norm().item() for name, p in heads.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(json.loads(bytes(arrays["grad_norms"])), rel=1e-3, abs=1e-5)
