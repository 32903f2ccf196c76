"""From a row to the configuration it is trained and measured with.

A miniature trains in seconds: a narrow network, small generated scenes, masks of half the side. It shows that the whole
pipeline runs; its figures say nothing about COCO.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from training.benchmark.tables import MINIATURE, DataSet, Row, Table, as_list, digest
from training.datasets import open_set
from training.engine.config import get_training_config

SCENES = DataSet("generated scenes, miniature", "scenes:train:256", "scenes:val:24", "nothing: scenes are drawn")


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        data: folder of the data set. miniature: generated scenes and a narrow network instead.
        train, test: names of sets that replace the table's ("": the table's). lvis: LVIS annotations likewise.
        iterations: instead of the schedule's (0: the schedule's); its steps shrink along.
        seeds: trainings of every row. init: where weights start, see TRAINING.INIT.
    """

    data: str = ""
    miniature: bool = False
    train: str = ""
    test: str = ""
    lvis: str = ""
    iterations: int = 0
    seeds: int = 1
    init: str = ""
    device: str = "cpu"


def data_of(table: Table, scale: Scale) -> DataSet:
    """The table's data set at this scale, with the folder filled in."""
    data = replace(SCENES, ratio=table.data.ratio) if scale.miniature else table.data
    train, test, lvis = (
        name.replace("{data}", scale.data)
        for name in (scale.train or data.train, scale.test or data.test, scale.lvis or data.lvis)
    )
    return replace(data, train=train, test=test, lvis=lvis)


def training_config(table: Table, row: Row, scale: Scale, seed: int) -> CfgNode:
    """The configuration a row is trained with.

    Raises:
        ValueError: the row is quoted.
        KeyError: a key that the configuration does not know.
    """
    if row.config is None:
        raise ValueError(f"{row.name} (table {table.number}) is quoted from the paper and has no configuration")
    data = data_of(table, scale)
    cfg = get_training_config(row.config)
    cfg.merge_from_list(as_list(table.data.change))
    cfg.merge_from_list(as_list(row.change))
    if scale.miniature:
        shrink(cfg)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(open_set(data.train).class_names)
    if "POINT_HEAD" in cfg.MODEL:
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if scale.iterations:
        rescale(cfg, scale.iterations)
    cfg.DATASETS.TRAIN = [data.train]
    cfg.DATASETS.TEST = [data.test]
    cfg.SEED = seed
    cfg.MODEL.DEVICE = scale.device
    cfg.MODEL.TRANSFINER.KEEP_COARSE = True
    cfg.TRAINING.INIT = scale.init
    return cfg


def rescale(cfg: CfgNode, iterations: int) -> None:
    """Fit the schedule to a number of iterations, in place."""
    share = iterations / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.STEPS = tuple(max(1, round(step * share)) for step in cfg.SOLVER.STEPS)
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, iterations // 4)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, min(cfg.SOLVER.CHECKPOINT_PERIOD, iterations))


def overrides_when_measured(row: Row, miniature: bool) -> list[object]:
    """Keys that differ when a trained row is measured."""
    change = dict(row.change_test)
    key = "MODEL.TRANSFINER.LEVEL_SIZES"
    if miniature and key in change:
        change[key] = [size // 2 for size in change[key]]
    return as_list(change)


def training_digest(cfg: CfgNode) -> str:
    """Names a training by all that decides its weights; rows of several tables that are one training share it."""
    cfg = cfg.clone()
    cfg.defrost()
    for section in ("TEST", "VERSION", "OUTPUT_DIR"):
        cfg.pop(section, None)
    cfg.DATASETS.TEST = []
    cfg.MODEL.DEVICE = ""
    return digest(cfg.dump())


def shrink(cfg: CfgNode) -> None:
    """Make a row's configuration a miniature, in place: its structure stays, its sizes halve."""
    head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.TRANSFINER
    halved = [size // 2 for size in node.LEVEL_SIZES]
    cfg.merge_from_list(as_list(MINIATURE))
    if head.NAME != "PointRendMaskHead":  # its coarse mask is half the feature's side, 7 of 14
        head.POOLER_RESOLUTION = max(head.POOLER_RESOLUTION // 2, 4)
    node.LEVEL_SIZES = halved
