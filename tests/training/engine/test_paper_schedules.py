"""The schedules of sections 4.1 and 6.1, read from their files."""

from __future__ import annotations

import pytest

from training.engine.config import get_training_config
from training.engine.step import lr_factor, run_fraction


@pytest.mark.parametrize(
    ("name", "batch", "sizes_px", "classes", "rates"),
    [
        # (iteration, learning rate) on both sides of each step
        (
            "coco-R50-FPN-1x",
            16,
            (640, 800, 32),
            80,
            [(1000, 0.02), (59_999, 0.02), (60_000, 0.002), (79_999, 0.002), (80_000, 0.0002), (89_999, 0.0002)],
        ),
        (
            "coco-R101-FPN-3x",
            16,
            (640, 800, 32),
            80,
            [(209_999, 0.02), (210_000, 0.002), (249_999, 0.002), (250_000, 0.0002), (269_999, 0.0002)],
        ),
        ("cityscapes-R50-FPN", 8, (800, 1024, 32), 8, [(17_999, 0.01), (18_000, 0.001), (23_999, 0.001)]),
        (
            "bdd100k-R101-FPN",
            16,
            (600, 720, 24),
            8,
            [(21_999, 0.02), (22_000, 0.002), (25_999, 0.002), (26_000, 0.0002), (29_999, 0.0002)],
        ),
    ],
)
def test_rates_sizes_and_batches_are_the_papers(
    name: str, batch: int, sizes_px: tuple[int, int, int], classes: int, rates: list[tuple[int, float]]
) -> None:
    cfg = get_training_config(f"training/{name}")
    first, last, step = sizes_px
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(first, last + 1, step))
    assert (batch, classes) == (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    assert (cfg.TRAINING.OPTIMIZER, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == ("SGD", 0.9, 0.0001)
    for iteration, rate in rates:
        factor = lr_factor(cfg, iteration, run_fraction(cfg, iteration, 0.0))
        assert cfg.SOLVER.BASE_LR * factor == pytest.approx(rate), f"iteration {iteration}"
    assert rates[-1][0] + 1 == cfg.SOLVER.MAX_ITER


def test_the_warm_up_is_constant_for_a_thousand_iterations() -> None:
    cfg = get_training_config("training/coco-R50-FPN-1x")
    assert [lr_factor(cfg, iteration, 0.0) for iteration in (0, 500, 999, 1000)] == [0.1, 0.1, 0.1, 1.0]


def test_unknown_schedules_are_refused() -> None:
    cfg = get_training_config("training/coco-R50-FPN-1x")
    cfg.TRAINING.SCHEDULE = "linear"
    with pytest.raises(ValueError, match="choose cosine or steps"):
        lr_factor(cfg, 0, 0.0)
    cfg.SOLVER.WARMUP_METHOD = "slow"
    with pytest.raises(ValueError, match="choose linear or constant"):
        lr_factor(cfg, 0, 0.0)
