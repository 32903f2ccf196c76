"""The query-based detector with the same mask head; skipped where the extra `detr` is not installed."""

from __future__ import annotations

import sys

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from model.config import get_config
from model.detectors.deformable import transformers_part
from model.detectors.query_based import QueryTargets, Weights, focal_loss, match_queries, set_losses
from model.network import build_network


def small_detr() -> torch.nn.Module:
    pytest.importorskip("transformers", reason="the extra detr is not installed: pip install '.[detr]'")
    cfg = get_config("paper")
    cfg.MODEL.META_ARCHITECTURE = "TransfinerDETR"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_efficientnet_lite_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.TRANSFINER.ENCODER_FFN_DIM = 32
    cfg.MODEL.TRANSFINER.KEEP_COARSE = True
    cfg.MODEL.TRANSFINER.THRESHOLDS_TEST = [0.5, 0.99, 0.99]  # random weights are undecided everywhere
    cfg.MODEL.DETR.QUERIES, cfg.MODEL.DETR.LAYERS, cfg.MODEL.DETR.FFN_DIM = 10, 2, 32
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    torch.manual_seed(0)
    return build_network(cfg)


def record(height: int, width: int, *, objects: int = 1) -> dict:
    truth = Instances((height, width))
    masks = torch.zeros((objects, height, width), dtype=torch.bool)
    for number in range(objects):
        masks[number, 10 : 40 + number, 8:50] = True
    truth.gt_masks = BitMasks(masks)
    truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
    truth.gt_classes = torch.arange(objects) % 2
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": image, "height": 2 * height, "width": 2 * width, "instances": truth}


def test_trains_and_outlines_what_it_finds() -> None:
    network = small_detr()
    batch = [record(64, 96, objects=2), record(80, 64), record(64, 64, objects=0)]
    with EventStorage():
        losses = network(batch)
    assert {"loss_class", "loss_box", "loss_giou", "loss_class_0", "loss_mask", "loss_mask_refine"} <= set(losses)
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    silent = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert silent == []
    with torch.inference_mode():
        outputs = network.eval()(batch)
    for output, input_image in zip(outputs, batch, strict=True):
        instances = output["instances"]
        size = (input_image["height"], input_image["width"])
        assert instances.image_size == size
        assert instances.pred_masks.shape == instances.pred_coarse_masks.shape == (len(instances), *size)
        assert len(instances) <= 4
        assert (instances.pred_boxes.tensor[:, 2:] <= torch.tensor([size[1], size[0]]) + 1e-3).all()


def test_padding_of_a_batch_changes_no_box() -> None:
    """An image alone and beside a larger one; boxes are shares of the padded image inside, pixels outside."""
    network = small_detr().eval()
    small, large = record(64, 64), record(64, 96)
    with torch.inference_mode():
        alone = network.inference([small], do_postprocess=False)[0]
        beside = network.inference([small, large], do_postprocess=False)[0]
    assert len(alone) == len(beside)
    assert torch.isfinite(beside.pred_boxes.tensor).all()


def test_without_the_extra_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "transformers" or n.startswith("transformers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs the package transformers 5.*pip install '\.\[detr\]'"):
        transformers_part()


def test_matching_is_one_to_one_and_cheapest() -> None:
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
    truth = QueryTargets(torch.tensor([1, 0]), boxes[[1, 0]])
    queries, objects = match_queries(torch.zeros(3, 2), boxes, truth, Weights())
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == {0: 1, 1: 0}
    queries, _ = match_queries(
        torch.zeros(3, 2), boxes, QueryTargets(torch.zeros(0, dtype=torch.int64), boxes[:0]), Weights()
    )
    assert len(queries) == 0


def test_set_losses_by_hand() -> None:
    logits = torch.zeros(1, 2, 1)
    # alpha 0.25 (1 - alpha 0.75) * (1 - 0.5)^2 * ln 2, one query matched and one empty
    assert focal_loss(logits, torch.tensor([[[1.0], [0.0]]])).item() == pytest.approx(0.25 * 0.6931472, rel=1e-5)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    truth = QueryTargets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.4, 0.2]]))
    pair = (torch.tensor([0]), torch.tensor([0]))
    losses = set_losses(logits, boxes, [truth], [pair], Weights(2, 5, 2))
    assert losses["class"].item() == pytest.approx(2 * 0.25 * 0.6931472, rel=1e-5)
    assert losses["box"].item() == pytest.approx(5 * 0.2)
    assert losses["giou"].item() == pytest.approx(2 * (1 - 0.5))  # the box covers half of its object


@pytest.mark.parametrize(("depth", "blocks"), [(50, 16), (101, 33)])
@pytest.mark.parametrize("norm", ["GN", "SyncBN"])
def test_backbones_build_with_trainable_norms(depth: int, blocks: int, norm: str) -> None:
    from detectron2.modeling import build_backbone

    cfg = get_config("paper")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = norm
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    with torch.device("meta"):  # shapes alone
        backbone = build_backbone(cfg)
    kind = torch.nn.GroupNorm if norm == "GN" else (torch.nn.SyncBatchNorm, torch.nn.BatchNorm2d)
    norms = [part for part in backbone.modules() if isinstance(part, kind)]
    assert len(norms) == 1 + 3 * blocks + 4 + 8  # stem, blocks, shortcuts, pyramid
    assert all(parameter.requires_grad for part in norms for parameter in part.parameters())
