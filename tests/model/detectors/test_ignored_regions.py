"""Ignored regions are neither objects nor background, in the losses of every stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from model.detectors.ignored_regions import RegionIgnoringRPN, mostly_ignored
from model.detectors.query_based import _counted
from model.network import build_network
from tests.support.small_network import small_config
from training.datasets import Sample
from training.datasets.loader import to_network_input

LEFT = torch.zeros(64, 96, dtype=torch.bool)
LEFT[:, :48] = True


@pytest.mark.parametrize(
    ("box", "is_ignored"),
    [
        ((0, 0, 20, 20), True),
        ((40, 0, 56, 20), True),  # half of it
        ((41, 0, 57, 20), False),
        ((60, 0, 80, 20), False),
        ((-50, -50, 20, 20), True),  # what lies outside the image does not count
        ((-50, 0, -10, 20), False),
        ((10, 10, 10, 10), False),
    ],
)
def test_boxes_mostly_in_ignored_regions(box: Any, is_ignored: bool) -> None:
    boxes = torch.tensor([box], dtype=torch.float32)
    assert mostly_ignored(boxes, LEFT).tolist() == [is_ignored]
    assert mostly_ignored(boxes, None).tolist() == [False]


def record(*, crowd: bool) -> dict[str, Any]:
    """A picture with an object at the right and, at the left, perhaps a region of many."""
    masks = np.zeros((2, 64, 96), bool)
    masks[0, 20:50, 60:90] = True
    masks[1, :, :48] = True
    count = 1 + crowd
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    sample = Sample(image, masks[:count], np.zeros(count, np.int64), np.array([False, True])[:count], 1)
    return to_network_input(sample, [], "BGR")


def test_a_crowd_is_given_as_ignored_and_not_as_an_object() -> None:
    entry = record(crowd=True)
    assert torch.equal(entry["ignored"], LEFT)
    assert len(entry["instances"]) == 1
    assert "ignored" not in record(crowd=False)


@pytest.mark.parametrize("heads", ["TransfinerROIHeads", "TransfinerCascadeROIHeads"])
def test_no_stage_sees_background_in_an_ignored_region(heads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_config()
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.MASK_ON = False
    torch.manual_seed(0)
    network = build_network(cfg).train()
    assert isinstance(network.proposal_generator, RegionIgnoringRPN)
    background: dict[str, list[torch.Tensor]] = {"anchors": [], "proposals": []}
    label = network.proposal_generator.label_and_sample_anchors

    def spy(anchors: list[Boxes], truths: list[Instances]) -> Any:
        labels, boxes = label(anchors, truths)
        background["anchors"].append(Boxes.cat(anchors).tensor[labels[0] == 0])
        return labels, boxes

    monkeypatch.setattr(network.proposal_generator, "label_and_sample_anchors", spy)
    predictors = network.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:

        def losses(predictions: Any, proposals: list[Instances], original: Any = predictor.losses) -> Any:
            classes = torch.cat([item.gt_classes for item in proposals])
            boxes = torch.cat([item.proposal_boxes.tensor for item in proposals])
            background["proposals"].append(boxes[classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES])
            return original(predictions, proposals)

        monkeypatch.setattr(predictor, "losses", losses)
    shares = {}
    for crowd in (False, True):
        with EventStorage(0):
            total = sum(network([record(crowd=crowd)]).values())
        assert torch.isfinite(total)
        for kind, boxes in background.items():
            shares[crowd, kind] = int(mostly_ignored(torch.cat(boxes).detach(), LEFT).sum())
            boxes.clear()
    assert shares[False, "anchors"] > 0
    assert shares[False, "proposals"] > 0
    assert shares[True, "anchors"] == shares[True, "proposals"] == 0


def test_an_image_that_is_ignored_wholly_still_has_losses() -> None:
    network = build_network(small_config()).train()
    masks = np.ones((1, 64, 96), bool)
    sample = Sample(np.zeros((64, 96, 3), np.uint8), masks, np.zeros(1, np.int64), np.ones(1, bool), 1)
    with EventStorage(0):
        losses = network([to_network_input(sample, [], "BGR")])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)


def test_unmatched_queries_in_ignored_regions_do_not_count() -> None:
    boxes = torch.tensor([[[0.0, 0, 20, 20], [60, 0, 80, 20], [0, 0, 20, 20]]])
    pairs = [(torch.tensor([2]), torch.tensor([0]))]
    counted = _counted(boxes, [LEFT], pairs)
    assert counted is not None
    assert counted.tolist() == [[False, True, True]]
    assert _counted(boxes, [None], pairs) is None
