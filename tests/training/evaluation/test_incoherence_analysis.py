"""Tables 1 and 3 on masks small enough to count by hand, and on a tiny network end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from model.mask_head.incoherence import incoherent_regions
from model.mask_head.quadtree import Nodes
from model.network import build_network
from training.benchmark.runner import Scale, training_config
from training.benchmark.tables import TABLES
from training.datasets import Sample, open_set
from training.evaluation.incoherence_analysis import (
    analyse,
    compare_regions,
    confusion_figures,
    detector_figures,
    incoherent_union,
    match_to_truth,
    recorded_refinement,
    region_counts,
    region_properties,
    regions_of_nodes,
)


def half_plane(columns: int, side: int = 8) -> torch.Tensor:
    """A mask whose first columns are set, (1, side, side)."""
    mask = torch.zeros((1, side, side), dtype=torch.bool)
    mask[:, :, :columns] = True
    return mask


@pytest.mark.parametrize(
    ("columns", "halvings", "expected_columns"),
    [
        (4, 1, []),  # the edge runs between blocks of two: nothing is lost
        (3, 1, [2, 3]),  # block 2..3 is half set
        (4, 3, [*range(8)]),  # halved twice the mask is 2 wide, one column set: the whole grid is incoherent
        (2, 2, [0, 1, 2, 3]),  # halved once it is 4 wide, one column set
        (0, 3, []),
        (8, 3, []),
    ],
)
def test_union_of_a_half_plane(columns: int, halvings: int, expected_columns: list[int]) -> None:
    union = incoherent_union(half_plane(columns), halvings)
    assert torch.nonzero(union[0, 0]).flatten().tolist() == expected_columns
    assert (union == union[:, :1]).all()


def test_table_1_by_hand() -> None:
    """Truth: 3 of 8 columns, U = columns 2 and 3 (16 of 64 places). Coarse: 5 columns, wrong in columns 3 and 4."""
    truth, coarse = half_plane(3), half_plane(5)
    counts = region_counts(coarse, truth, incoherent_union(truth, 1))
    assert counts.tolist() == [[64, 16, 16, 8]]
    figures = region_properties(counts)
    assert figures["percent"] == pytest.approx(0.25)
    assert figures["recall_err"] == pytest.approx(0.5)  # column 3 of columns 3 and 4
    assert figures["accuracy"] == pytest.approx(0.5)  # column 2 of columns 2 and 3


def test_means_leave_out_objects_without_errors_or_regions_and_pooling_does_not() -> None:
    wrong = region_counts(half_plane(5), half_plane(3), incoherent_union(half_plane(3), 1))
    perfect = region_counts(half_plane(4), half_plane(4), incoherent_union(half_plane(4), 1))  # no error, no region
    figures = region_properties(torch.cat([wrong, perfect]))
    assert figures["percent"] == pytest.approx(0.125)
    assert figures["recall_err"] == figures["accuracy"] == pytest.approx(0.5)
    assert figures["percent_pooled"] == pytest.approx(16 / 128)
    assert figures["recall_err_pooled"] == figures["accuracy_pooled"] == pytest.approx(0.5)
    assert figures["objects"] == 2
    assert math.isnan(region_properties(wrong[:0])["percent"])
    nothing = half_plane(3)[:0]  # an image without a matched detection
    assert len(region_counts(nothing, nothing, incoherent_union(nothing))) == 0


def test_table_3_by_hand() -> None:
    predicted = torch.tensor([[[1, 1], [0, 0]]], dtype=torch.bool)
    truth = torch.tensor([[[1, 0], [1, 0]]], dtype=torch.bool)
    confusion = compare_regions(predicted, truth)
    assert confusion.tolist() == [1, 1, 1, 1]
    assert confusion_figures(confusion) == {"precision": 0.5, "recall": 0.5, "accuracy": 0.5, "f1": 0.5}
    figures = detector_figures([confusion, torch.tensor([3, 0, 0, 1])], [2, 4])
    assert figures["4"] == {"precision": 1, "recall": 1, "accuracy": 1, "f1": 1}
    assert figures["pooled"]["recall"] == pytest.approx(4 / 5)
    assert figures["pooled"]["accuracy"] == pytest.approx(6 / 8)
    assert math.isnan(confusion_figures(torch.zeros(4))["recall"])


def test_regions_are_drawn_where_nodes_are() -> None:
    nodes = Nodes(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0, 1]))
    (grid,) = regions_of_nodes([nodes], 2, [2])
    assert grid.tolist() == [[[False, False], [True, False]], [[False, True], [False, False]]]


def test_nested_regions_stay_within_their_parents() -> None:
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 1
    coarse, fine = incoherent_regions(checkerboard[None], 2, nested=True)
    assert not coarse.any()
    assert not fine.any()  # equation 1 alone marks all of it


def test_detections_are_matched_to_truths_of_their_class() -> None:
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 0:10, 0:10] = masks[1, 0:10, 0:9] = masks[2, 10:20, 10:20] = True
    sample = Sample(np.zeros((20, 20, 3), np.uint8), masks, np.array([0, 0, 1]), np.array([False, False, True]), 1)
    boxes = Boxes(torch.tensor([[0, 0, 9, 10], [0, 0, 10, 10], [10, 10, 20, 20], [0, 0, 4, 4.0]]))
    matched, partner = match_to_truth(sample, boxes, torch.tensor([0, 1, 1, 0]))
    assert matched.tolist() == [0]  # wrong class, crowd, IoU too small
    assert partner.tolist() == [1]  # the larger of .9 and 1


def test_a_tiny_network_is_analysed_and_truth_in_the_regions_helps() -> None:
    """Untrained boxes seldom match, so the network is told the objects' own."""
    cfg = training_config(TABLES[3], TABLES[3].rows[1], Scale(miniature=True), seed=0)
    samples = open_set("scenes:val:1", width=128, height=96)
    network = ToldBoxes(build_network(cfg).eval(), samples[0])
    outcome = analyse(network, cfg, samples, side=56)
    assert outcome["table1"]["objects"] > 0
    assert outcome["table1"]["ap_gt"] >= outcome["table1"]["ap_coarse"]
    assert set(outcome["table3"]) == {"14", "28", "56", "pooled"}


def test_networks_that_refine_nothing_cannot_be_looked_into() -> None:
    with pytest.raises(ValueError, match="no Transfiner mask head"), recorded_refinement(torch.nn.Identity()):
        pass


class ToldBoxes(torch.nn.Module):
    """A network that outlines the boxes of a sample's objects."""

    def __init__(self, network: torch.nn.Module, sample: Sample) -> None:
        super().__init__()
        self.network, self.sample = network, sample

    def inference(self, batch: list[dict], do_postprocess: bool) -> list[Instances]:
        instances = Instances(batch[0]["image"].shape[-2:])
        instances.pred_boxes = BitMasks(torch.from_numpy(self.sample.masks)).get_bounding_boxes()
        instances.pred_classes = torch.from_numpy(self.sample.classes)
        instances.scores = torch.linspace(0.5, 0.9, len(self.sample.classes))
        return self.network.inference(batch, [instances], do_postprocess=do_postprocess)
