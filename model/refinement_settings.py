"""Settings of the quadtree and its refinement, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from detectron2.config import CfgNode

from model.quadtree import PROPAGATIONS
from model.refinement_regions import REGIONS


@dataclass(frozen=True)
class RefinementSettings:
    """The fields are the lower-cased keys of ``MODEL.TRANSFINER``; config.py says what each means.

    Raises:
        ValueError: a value that is not one of the known ones, or levels that are no quadtree.
    """

    level_sizes: tuple[int, ...] = (28, 56, 112)
    thresholds_train: tuple[float, ...] = (0.125, 0.5, 0.5)
    thresholds_test: tuple[float, ...] = (1e-6, 0.125, 0.8)
    nested: bool = False
    region: str = "incoherent"
    reference_points: bool = True
    joint_levels: bool = True
    propagation: str = "bilinear"
    samples_per_level: int = 150
    min_nodes_per_level: int = 10
    train_instance_limit: int = 30
    test_instance_limit: int = 0
    test_min_box_px: float = 0.0
    test_sequence_nodes: int = 0
    test_node_budget: int = 0
    dilate_and_blur: bool = False
    keep_coarse: bool = False

    def __post_init__(self) -> None:
        _check_levels(self.level_sizes)
        for name in ("thresholds_train", "thresholds_test"):
            if len(getattr(self, name)) != len(self.level_sizes):
                raise ValueError(
                    f"MODEL.TRANSFINER.{name.upper()} needs a value for each of LEVEL_SIZES {self.level_sizes}, "
                    f"got {getattr(self, name)}"
                )
        for name, known in (("region", REGIONS), ("propagation", PROPAGATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"MODEL.TRANSFINER.{name.upper()} must be one of {known}, got {getattr(self, name)!r}")

    @classmethod
    def from_config(cls, node: CfgNode) -> RefinementSettings:
        """Read the fields from ``cfg.MODEL.TRANSFINER``."""
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = node[name.upper()]
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _check_levels(sizes: tuple[int, ...]) -> None:
    """Depth 0 has no level; else each is twice the one before."""
    if any(finer != 2 * coarser for coarser, finer in pairwise(sizes)):
        raise ValueError(f"MODEL.TRANSFINER.LEVEL_SIZES must double from level to level, got {sizes}")
