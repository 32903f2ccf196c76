"""Weights of instances and of the places where outlines were moved, in every loss of the mask branch."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from model.mask_head import losses
from model.mask_head.targets import PixelWeights, pixel_weights


def proposals(count: int, weights: list[float] | None = None) -> Instances:
    """Boxes of 8 x 8 px whose left column (two of eight pixels) was moved, worth three times the rest."""
    image = Instances((16, 16))
    image.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 12.0, 12.0]]).repeat(count, 1))
    if weights is not None:
        bands = torch.zeros(count, 16, 16, dtype=torch.bool)
        bands[:, :, 4:6] = True
        image.gt_bands, image.gt_weights = BitMasks(bands), torch.tensor(weights)
        image.gt_band_weights = torch.full((count,), 3.0)
    return image


def test_nothing_is_weighted_where_nobody_asked() -> None:
    assert pixel_weights([proposals(2), proposals(0)], [4]) is None


def test_bands_and_instances_multiply_and_other_images_count_one() -> None:
    weights = pixel_weights([proposals(1, [0.5]), proposals(0, []), proposals(1)], [4])
    assert weights is not None
    assert weights.instances.tolist() == [0.5, 1.0]
    assert weights.at(4)[0].tolist() == [[1.5, 0.5, 0.5, 0.5]] * 4
    assert weights.at(4)[1].tolist() == [[1.0] * 4] * 4


def test_a_band_thinner_than_a_place_still_counts() -> None:
    image = proposals(1, [1.0])
    thin = torch.zeros(1, 16, 16, dtype=torch.bool)
    thin[:, 4:12, 7] = True
    image.gt_bands = BitMasks(thin)
    weights = pixel_weights([image], [2])
    assert weights is not None
    assert weights.at(2)[0].tolist() == [[3.0, 1.0], [3.0, 1.0]]


@pytest.fixture
def grids() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()


def weights(instances: list[float], places: torch.Tensor) -> PixelWeights:
    return PixelWeights(torch.tensor(instances), {4: places})


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_an_even_weight_scales_every_loss(grids: tuple[torch.Tensor, torch.Tensor], factor: float) -> None:
    logits, target = grids
    even = weights([factor, factor], torch.ones(2, 4, 4))
    pairs = [
        (losses.coarse_mask_loss(logits, target, even.at(4)), losses.coarse_mask_loss(logits, target)),
        (losses.boundary_loss(logits, target, even.at(4)), losses.boundary_loss(logits, target)),
        (losses.incoherence_loss(logits, target, even), losses.incoherence_loss(logits, target)),
        (
            losses.refinement_loss(logits.flatten(), target.flatten(), even.at(4).flatten()),
            losses.refinement_loss(logits.flatten(), target.flatten()),
        ),
    ]
    for weighted, plain in pairs:
        torch.testing.assert_close(weighted, factor * plain)


def test_gradients_of_a_place_grow_with_its_weight(grids: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = grids
    places = torch.ones(2, 4, 4)
    places[1, 2, 3] = 5.0
    heavy = weights([1.0, 0.5], places)
    gradients = []
    for place_weights in (None, heavy.at(4)):
        leaf = logits.clone().requires_grad_()
        losses.coarse_mask_loss(leaf, target, place_weights).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    plain, weighted = gradients
    torch.testing.assert_close(weighted[0], plain[0])
    assert weighted[1, 2, 3].item() == pytest.approx(2.5 * plain[1, 2, 3].item())
    assert weighted[1, 0, 0].item() == pytest.approx(0.5 * plain[1, 0, 0].item())


def test_a_place_without_weight_is_not_in_the_dice_loss() -> None:
    probabilities, target = torch.tensor([[[0.9, 0.2]]]), torch.tensor([[[1.0, 1.0]]])
    loss = losses.dice_loss(probabilities, target, PixelWeights(torch.ones(1), {2: torch.tensor([[[1.0, 0.0]]])}))
    assert loss.item() == pytest.approx(1 - (2 * 0.9 + 1) / (1.9 + 1))
