"""Building a network from its configuration, with every part it may name registered in detectron2's registries."""

from __future__ import annotations

import importlib

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from model import backbones
from model.detectors import query_based, two_stage
from model.errors import MissingRequirementError
from model.mask_head import head
from model.prompts import detector

#: Importing them registers what a configuration may name.
REGISTERED = (backbones, query_based, two_stage, head, detector)


def build_network(cfg: CfgNode) -> nn.Module:
    """The network of a configuration, on ``MODEL.DEVICE``, with random weights.

    Raises:
        MissingRequirementError: it is a PointRend, and detectron2's project of that name cannot be imported.
    """
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead":
        _register_pointrend()
    network: nn.Module = build_model(cfg)
    return network


def _register_pointrend() -> None:
    # Imported only for a PointRend: the project imports OpenCV, which nothing that serves or learns needs.
    try:
        importlib.import_module("detectron2.projects.point_rend")
    except ModuleNotFoundError as error:
        fix = "pip install opencv-python-headless" if error.name == "cv2" else "use a detectron2 with its projects"
        raise MissingRequirementError(
            f"PointRend needs {error.name}, which is not installed; fix: {fix}.", name=error.name
        ) from error
