"""The authors' way of computing gives our masks, at more memory; nothing here measures time."""

from __future__ import annotations

import pytest

from training.benchmark.cost.heads import compare_heads, head_call, head_costs_text
from training.benchmark.cost.measures import count_operators
from training.benchmark.cost.report import whole_cost
from training.benchmark.cost.subjects import fixed_nodes, open_network

NARROW = (
    "MODEL.BACKBONE.NAME",
    "build_efficientnet_lite_fpn_backbone",
    "MODEL.FPN.OUT_CHANNELS",
    "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "32",
    "MODEL.TRANSFINER.ENCODER_FFN_DIM",
    "64",
    "MODEL.RPN.CONV_DIMS",
    "[32]",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "32",
)


def test_both_ways_give_the_same_masks_and_ours_needs_less() -> None:
    outcome = compare_heads("released", height=64, width=96, instances=1, nodes=1500, overrides=NARROW, timed=False)
    assert outcome["largest_difference"] < 1e-4
    theirs = outcome["ratios_to_ours"]["authors_way"]
    assert theirs["peak_bytes"] > 2  # stored weights and whole grids
    assert theirs["flops"] == pytest.approx(1, abs=0.05)  # the same arithmetic
    assert outcome["ratios_to_ours"]["mask_rcnn"]["flops"] < 1
    text = head_costs_text(outcome)
    assert "authors_way" in text
    assert "1 instances of 1500 nodes" in text


def test_operators_do_not_grow_with_the_nodes() -> None:
    """More nodes mean larger operators, not more of them (instances do: a CPU reads sequences one by one)."""
    network, cfg = open_network(config="released", overrides=NARROW)
    call = head_call(network, cfg, height=128, width=160, instances=2, device="cpu")
    counts = []
    for nodes in (300, 900):
        with fixed_nodes(network, nodes):
            counts.append(sum(count_operators(call).values()))
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_cost_of_a_whole_network() -> None:
    found = whole_cost(
        config="released", height=64, width=96, instances=2, nodes=300, overrides=NARROW, iterations=1, runs=1
    )
    assert found["instances"] == 2
    assert found["nodes_per_instance"] == 300
    assert found["parameters"]["total"] == sum(v for k, v in found["parameters"].items() if k != "total")
    assert min(found["flops"], found["operators"], found["speed"]["mean_fps"]) > 0
    assert found["cuda_peak_bytes"] is None
