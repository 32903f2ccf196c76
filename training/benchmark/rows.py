"""What a table is: rows of configurations with the paper's figures, columns of measures, a data set.

The sets of the paper: names, folders, and the schedules of section 6.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Overrides = Mapping[str, Any]

# Columns in the order they are printed: key -> (heading, unit factor of the printed value).
COLUMNS: dict[str, tuple[str, float]] = {
    "Percent": ("Percent", 100),
    "Recall_Err": ("Recall_Err", 100),
    "Acc": ("Acc", 100),
    "Recall": ("Recall", 100),
    "AP_GT": ("AP_GT", 100),
    "AP_Coarse": ("AP_Coarse", 100),
    "AP": ("AP", 100),
    "AP50": ("AP50", 100),
    "APB": ("AP^B", 100),
    "APB50": ("AP^B50", 100),
    "AP*": ("AP*", 100),
    "AP*50": ("AP*50", 100),
    "APbox": ("AP^box", 100),
    "APs": ("APs", 100),
    "APm": ("APm", 100),
    "APl": ("APl", 100),
    "GFLOP": ("GFLOP", 1),
    "MB": ("memory MB", 1),
    "FPS": ("FPS", 1),
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        key: names its folder; unique in its table. name: as the paper prints it.
        paper: column -> the paper's figure (AP in points).
        config: to train, under ``model/configs/``; None: a method that is quoted, not run.
        change: configuration keys that differ from ``config``.
        change_test: keys that differ only when the trained network is measured.
        note: what the reader must know.
    """

    key: str
    name: str
    paper: Mapping[str, float]
    config: str | None = None
    change: Overrides = field(default_factory=dict)
    change_test: Overrides = field(default_factory=dict)
    note: str = ""

    @property
    def quoted(self) -> bool:
        """Whether only the paper's figures are shown."""
        return self.config is None


@dataclass(frozen=True)
class DataSet:
    """Where a table's images come from; ``{data}`` in a name is the folder the user gives.

    Attributes:
        train, test: names for :func:`training.datasets.open_set`. lvis: LVIS annotations of the test images, or "".
        ratio: boundary width / image diagonal. needs: what must lie in the folder.
        change: configuration keys that the set asks for (classes, image sizes, schedule).
    """

    title: str
    train: str
    test: str
    needs: str
    lvis: str = ""
    ratio: float = 0.02
    images: int = 0
    change: Overrides = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        note: where the paper and this run differ by design.
    """

    number: int
    title: str
    data: DataSet
    rows: tuple[Row, ...]
    note: str = ""

    def columns(self) -> list[str]:
        """The columns that any row of the paper fills, in printing order."""
        used = {column for row in self.rows for column in row.paper}
        return [column for column in COLUMNS if column in used]


def digest(*parts: Any) -> str:
    """A short name for a training: equal for equal configurations and data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def as_list(change: Overrides) -> list[Any]:
    """Overrides as ``merge_from_list`` wants them."""
    return [part for pair in change.items() for part in pair]


_COCO_FILES = (
    "annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/; for AP* also "
    "lvis_v0.5_val_cocofied.json (transfiner data prepare lvis-cocofied)"
)
COCO = DataSet(
    "COCO 2017, 12 epochs",
    "coco:{data}/annotations/instances_train2017.json:{data}/train2017",
    "coco:{data}/annotations/instances_val2017.json:{data}/val2017",
    _COCO_FILES,
    lvis="{data}/lvis_v0.5_val_cocofied.json",
    images=117_266,
)
COCO_3X = DataSet(
    "COCO 2017, multi-scale 3x schedule; AP on val where the paper has test-dev",
    COCO.train,
    COCO.test,
    _COCO_FILES,
    lvis=COCO.lvis,
    images=117_266,
    change={
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.MAX_ITER": 270_000,
        "SOLVER.STEPS": (210_000, 250_000),
    },
)
CITYSCAPES = DataSet(
    "Cityscapes, fine annotations, 24,000 iterations",
    "cityscapes:{data}:train",
    "cityscapes:{data}:val",
    "leftImg8bit/ and gtFine/ (transfiner data prepare cityscapes)",
    ratio=0.005,
    images=2_975,
    change={
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(800, 1025, 32)),
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 2048,
        "SOLVER.MAX_ITER": 24_000,
        "SOLVER.STEPS": (18_000,),
    },
)
BDD100K = DataSet(
    "BDD100K, 30,000 iterations",
    "bdd100k:{data}:train",
    "bdd100k:{data}:val",
    "the images and labels/ins_seg/bitmasks/ (transfiner data prepare bdd100k)",
    images=7_000,
    change={
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "MODEL.RESNETS.DEPTH": 101,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(600, 721, 24)),
        "INPUT.MIN_SIZE_TEST": 720,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.MAX_ITER": 30_000,
        "SOLVER.STEPS": (22_000, 26_000),
    },
)
