"""The checkpoints that the authors of Mask Transfiner released: where they are, and how to recognise one.

The expected names and shapes come from our own networks, built without memory on torch's meta device, so that there
is no table to keep in step. Source of names, figures and links: the README of the public repository SysCV/transfiner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES
from detectron2.modeling import build_model
from torch import Tensor

from model import registry  # noqa: F401  (imported for its registration)
from model.checkpoint_metadata import CheckpointError
from model.config import get_config
from model.state_keys import KeyReport, compare_keys

# Where the authors keep the files; `confirm=t` answers the question that a browser shows for large ones.
DOWNLOAD_URL = "https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"
MASK_PREDICTOR = "roi_heads.mask_head.predictor.weight"
# The tensors whose first dimension counts classes, and how: (rows per class, rows for the background).
CLASS_ROWS = {
    MASK_PREDICTOR: (1, 0),
    "roi_heads.box_predictor.cls_score.weight": (1, 1),
    "roi_heads.box_predictor.bbox_pred.weight": (4, 0),
}


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        name: what `transfiner models fetch` calls it.
        config: its configuration under `configs/`.
        file_id: of its download.
        figures: what the authors report for it.
    """

    name: str
    config: str
    file_id: str
    figures: str

    @property
    def url(self) -> str:
        """Where the file is."""
        return DOWNLOAD_URL.format(file_id=self.file_id)


RELEASES = {
    release.name: release
    for release in (
        Release(
            "R50-FPN-1x",
            "released/R50-FPN",
            "1IHNEs7PLGaw2gftHzMIOAxFzlYVPMc26",
            "COCO test-dev mask AP 37.0",
        ),
        Release(
            "R50-FPN-3x",
            "released/R50-FPN",
            "1EA9pMdUK6Ad9QsjaZz0g5jqbo_JkqtME",
            "COCO test-dev mask AP 39.2",
        ),
        Release(
            "R50-FPN-DCN-3x",
            "released/R50-FPN-DCN",
            "1N0C_ZhES7iu8qEPG2mrdxf8rWteemxQD",
            "COCO test-dev mask AP 40.5",
        ),
        Release(
            "R101-FPN-3x",
            "released/R101-FPN",
            "1Jn27jTpFFWjuX22xvR1upP99nOXfZ1nk",
            "COCO test-dev mask AP 40.5",
        ),
        Release(
            "R101-FPN-DCN-3x",
            "released/R101-FPN-DCN",
            "1TpVQksuaXlhioD3WqWppX84MB-l_Eb7-",
            "COCO test-dev mask AP 42.2",
        ),
        Release(
            "Swin-T-FPN-3x",
            "released/Swin-T-FPN",
            "1ezIxmwdMl_cC7gCPEqtLL6zlSYd3R9wA",
            "COCO val mask AP 43.5",
        ),
        Release(
            "Swin-B-FPN-3x",
            "released/Swin-B-FPN",
            "1XkEwTMiyADYfvniIrBIDX7RPTSLI4fys",
            "COCO val mask AP 45.5",
        ),
        Release(
            "X101-FPN-LVIS-1x",
            "released/X101-FPN-LVIS",
            "1L_bEZf-jJcQqmeCHOf4-c0eOq71cCdis",
            "LVIS v0.5 mask AP 29.2",
        ),
    )
}
# The architectures among them; schedules differ only in their weights.
ARCHITECTURES = tuple(dict.fromkeys(release.config for release in RELEASES.values()))


def find_release(name: str) -> Release:
    """The release of a name, whatever its case.

    Raises:
        KeyError: no such release; the message lists them.
    """
    for release in RELEASES.values():
        if release.name.lower() == name.lower():
            return release
    raise KeyError(f"no released checkpoint {name!r}; expected one of {', '.join(RELEASES)}")


def released_config(config: str, num_classes: int) -> CfgNode:
    """The effective configuration of an architecture for so many classes."""
    cfg = get_config(config)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.WEIGHTS = ""
    return cfg


@cache
def expected_state(config: str, num_classes: int) -> Mapping[str, Tensor]:
    """Names and shapes of an architecture's weights, as tensors without memory (`meta` device)."""
    cfg = released_config(config, num_classes)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return dict(build_model(cfg).state_dict())


def count_classes(state: Mapping[str, Tensor]) -> int:
    """The number of classes the weights were trained for.

    Raises:
        CheckpointError: the tensors that tell it are absent or disagree.
    """
    counts = {}
    for name, (per_class, background) in CLASS_ROWS.items():
        if name not in state:
            raise CheckpointError(f"not the weights of a Mask Transfiner: {name} is missing")
        rows = state[name].shape[0] - background
        counts[name] = rows / per_class
    if len(set(counts.values())) != 1 or not next(iter(counts.values())).is_integer():
        told = ", ".join(f"{count:g} by {name}" for name, count in counts.items())
        raise CheckpointError(f"the weights disagree on the number of classes: {told}")
    return int(counts[MASK_PREDICTOR])


def recognise(state: Mapping[str, Tensor]) -> tuple[str, KeyReport]:
    """The released architecture that fits a state dict best, and how it differs.

    Raises:
        CheckpointError: the number of classes cannot be told.
    """
    num_classes = count_classes(state)
    reports = {config: compare_keys(state, expected_state(config, num_classes)) for config in ARCHITECTURES}
    best = min(reports, key=lambda config: reports[config].differences)
    return best, reports[best]


def known_classes(num_classes: int) -> tuple[str, ...] | None:
    """Names for the class counts of the releases (80: COCO, 1230: LVIS v0.5), else None."""
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    lvis = [category["name"] for category in LVIS_CATEGORIES]
    return {len(coco): tuple(coco), len(lvis): tuple(lvis)}.get(num_classes)
