"""Whole networks beside one another: what is counted; nothing here measures time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.benchmark.cost import comparison
from training.benchmark.cost.comparison import CostSetting, compare_networks, compare_training, network_costs_text

pytestmark = pytest.mark.slow

NARROW = (
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "16",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "8",
    "MODEL.RESNETS.DEPTH",
    "50",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "8",
    "MODEL.FPN.OUT_CHANNELS",
    "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "32",
    "MODEL.ROI_MASK_HEAD.FC_DIM",
    "32",
    "MODEL.POINT_HEAD.FC_DIM",
    "32",
    "MODEL.TRANSFINER.ENCODER_FFN_DIM",
    "64",
    "MODEL.RPN.CONV_DIMS",
    "[32]",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "32",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "20",
)
SETTING = CostSetting("released/R50-FPN", height=64, width=96, overrides=NARROW, repeats=0)


def test_cost_grows_with_instances_and_nodes_where_it_should() -> None:
    def flops(nodes: int) -> dict[int, dict[str, float]]:
        outcome = compare_networks(SETTING, instances=(2, 4), nodes=nodes)
        assert "inference, 4 instances:" in network_costs_text(outcome)
        return {
            count: {name: cost["flops"] for name, cost in costs.items()}
            for count, costs in outcome["by_instances"].items()
        }

    few, many = flops(300), flops(600)
    assert many[2]["ours"] > few[2]["ours"]
    assert few[4]["ours"] > few[2]["ours"]
    assert many[2]["mask_rcnn"] == pytest.approx(few[2]["mask_rcnn"])
    assert few[2]["mask_rcnn"] < few[2]["ours"]
    assert few[4]["pointrend"] > few[2]["pointrend"]


def test_all_three_in_bf16_and_a_pointrend_of_the_own_class() -> None:
    outcome = compare_networks(replace(SETTING, repeats=1), instances=(2,), nodes=300, precision="bf16")
    costs = outcome["by_instances"][2]
    assert next(iter(costs)) == "ours bf16", "what the others are measured by"
    assert set(costs) == {
        *("ours", "mask_rcnn", "pointrend"),
        *("ours bf16", "mask_rcnn bf16", "pointrend bf16", "pointrend bf16, own class"),
    }
    assert "pointrend bf16, own class" in network_costs_text(outcome)


@pytest.mark.parametrize("kind", ["pointrend bf16", "pointrend bf16, own class"])
def test_pointrend_as_treated_gives_pointrends_masks(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Points from tables, matrix products and the own class alone compute what upstream does; here all in fp32."""
    monkeypatch.setattr("training.benchmark.cost.half_precision.to_bf16", lambda _: None)
    config, changes = comparison._subjects(SETTING)["pointrend"]
    exact, alternative = (
        comparison._inference(name, SETTING, config, changes, 3, 0, len)() for name in ("pointrend", kind)
    )
    assert (exact.pred_masks != alternative.pred_masks).float().mean() < 1e-3  # type: ignore[attr-defined]


def test_a_training_step_beside_mask_r_cnns() -> None:
    costs = compare_training(SETTING, instances=2)["training"]
    assert 0 < costs["mask_rcnn"]["ratios"]["flops"] < 1
    assert costs.keys() == {"ours", "mask_rcnn"}
