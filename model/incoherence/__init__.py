"""Incoherent regions: where a mask loses information when it is halved; a file a reading of them."""

from __future__ import annotations

from typing import Protocol

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from model.incoherence.paper import CascadedDetection
from model.incoherence.released import ReleasedDetection
from model.place_weights import PlaceWeights
from model.roi_pyramid import RoIPyramid

__all__ = ["CascadedDetection", "Detection", "ReleasedDetection", "build_detection"]

DETECTIONS = ("released", "cascaded")


class Detection(Protocol):
    """Finds incoherent places; the mask head registers ``layers`` by their names."""

    layers: dict[str, nn.Module]

    def __call__(self, pyramid: RoIPyramid, trunk: Tensor, coarse: Tensor, sizes: list[int]) -> list[Tensor]:
        """Logits of every level, (R, S, S) each, coarsest first."""
        ...

    def targets(self, instances: Instances, sizes: list[int]) -> list[Tensor]:
        """Bool regions (M, S, S) of one image's proposals, for as many levels as ``loss`` looks at."""
        ...

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PlaceWeights | None = None) -> Tensor:
        """A scalar; targets are floats in {0, 1} of the logits' shapes, weights know these sides."""
        ...


def build_detection(node: CfgNode, channels: int, conv_dim: int, num_conv: int) -> Detection | None:
    """The detector that ``MODEL.TRANSFINER.DETECTION`` names; None where nothing asks for one.

    Raises:
        ValueError: an unknown name.
    """
    if node.REGION != "incoherent" or not node.LEVEL_SIZES:
        return None
    if node.DETECTION == "released":
        return ReleasedDetection(channels, conv_dim, node.INCOHERENCE_DIM, num_conv, node.INCOHERENCE_TARGET)
    if node.DETECTION == "cascaded":
        return CascadedDetection(channels, conv_dim, len(node.LEVEL_SIZES), num_conv, node.JITTER, node.GUIDANCE)
    raise ValueError(f"MODEL.TRANSFINER.DETECTION must be one of {DETECTIONS}, got {node.DETECTION!r}")
