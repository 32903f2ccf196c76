"""Cascade R-CNN boxes under the refined mask branch: trains every stage, predicts like the plain heads do."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from model.network import build_network
from tests.support.small_network import small_config


@pytest.fixture(scope="module")
def network() -> nn.Module:
    cfg = small_config()
    cfg.MODEL.ROI_HEADS.NAME = "TransfinerCascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    torch.manual_seed(0)
    return build_network(cfg)


def record() -> dict:
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 10:50, 20:70] = True
    truth = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[20.0, 10.0, 70.0, 50.0]])))
    truth.gt_classes, truth.gt_masks = torch.tensor([1]), BitMasks(masks)
    image = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return {"image": image, "height": 64, "width": 96, "instances": truth}


def test_every_stage_and_the_masks_are_trained(network: nn.Module) -> None:
    network.train()
    with EventStorage():
        losses = network([record()])
    sum(losses.values()).backward()
    boxes = {f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)}
    assert boxes <= losses.keys()
    assert any("refine" in name for name in losses)
    for stage in range(3):
        assert network.roi_heads.box_head[stage].fc1.weight.grad.abs().sum() > 0


def test_masks_are_pasted_into_the_boxes_of_the_last_stage(network: nn.Module) -> None:
    network.eval()
    with torch.inference_mode():
        instances = network([record()])[0]["instances"]
    assert instances.pred_masks.shape == (5, 64, 96)
    assert instances.pred_masks.any()
    for box, mask in zip(instances.pred_boxes.tensor, instances.pred_masks, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0].floor()
            assert columns.max() < box[2].ceil() + 1
            assert rows.min() >= box[1].floor()
            assert rows.max() < box[3].ceil() + 1
