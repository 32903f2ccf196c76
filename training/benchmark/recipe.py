"""From a row to the configuration it is trained and measured with.

Every row at a size that trains in seconds: a narrow network, small generated scenes, masks of half the side.

It shows that the whole pipeline runs and, with enough iterations and seeds, in which direction rows differ; its
figures say nothing about COCO.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from training.benchmark.rows import DataSet, Row, Table, as_list, digest
from training.datasets import open_set
from training.engine.config import get_training_config
from training.synthetic.scenes import CLASSES


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        data: folder of the data set. miniature: generated scenes and a narrow network instead.
        train, test: names of sets that replace the table's ("": the table's). lvis: LVIS annotations likewise.
        iterations: instead of the schedule's (0: the schedule's); its steps shrink along.
        seeds: trainings of every row. init: where weights start, see TRAINING.INIT.
        images: of the test set that are measured (0: all).
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
    data = small_data(table.data) if scale.miniature else table.data
    filled = {
        "train": (scale.train or data.train).replace("{data}", scale.data),
        "test": (scale.test or data.test).replace("{data}", scale.data),
        "lvis": (scale.lvis or data.lvis).replace("{data}", scale.data),
    }
    return DataSet(**{**{f: getattr(data, f) for f in DataSet.__dataclass_fields__}, **filled})


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
        if scale.train:  # another set than the miniature's own scenes has other classes
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


CHANNELS = 32
WIDTH, HEIGHT = 128, 96
SCENES = DataSet("generated scenes, miniature", "scenes:train:256", "scenes:val:24", "nothing: scenes are drawn")

_CHANGE = {
    "MODEL.BACKBONE.NAME": "build_efficientnet_lite_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [127.0] * 3,
    "MODEL.PIXEL_STD": [128.0] * 3,
    "MODEL.FPN.OUT_CHANNELS": CHANNELS,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [96], [128]],
    "MODEL.RPN.CONV_DIMS": [CHANNELS],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": CHANNELS,
    "MODEL.COMPARISON.MASK_IOU_FC_DIM": 64,
    "MODEL.TRANSFINER.ENCODER_FFN_DIM": 64,
    "MODEL.TRANSFINER.TRAIN_INSTANCE_LIMIT": 4,
    "MODEL.TRANSFINER.INCOHERENCE_DIM": CHANNELS,
    "MODEL.DETR.QUERIES": 20,
    "MODEL.DETR.LAYERS": 1,
    "MODEL.DETR.FFN_DIM": 64,
    "TEST.DETECTIONS_PER_IMAGE": 6,
    "INPUT.FORMAT": "RGB",
    "INPUT.MASK_FORMAT": "bitmask",
    "INPUT.MIN_SIZE_TRAIN": (HEIGHT,),
    "INPUT.MAX_SIZE_TRAIN": WIDTH,
    "INPUT.MIN_SIZE_TEST": HEIGHT,
    "INPUT.MAX_SIZE_TEST": WIDTH,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 200,
    "SOLVER.WARMUP_ITERS": 20,
    "TRAINING.OPTIMIZER": "AdamW",
    "TRAINING.SCHEDULE": "cosine",
    "TRAINING.SCENE_WIDTH": WIDTH,
    "TRAINING.SCENE_HEIGHT": HEIGHT,
}


def shrink(cfg: CfgNode) -> None:
    """Make a row's configuration a miniature, in place: its structure stays, its sizes halve."""
    head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.TRANSFINER
    halved = [size // 2 for size in node.LEVEL_SIZES]
    cfg.merge_from_list([part for pair in _CHANGE.items() for part in pair])
    if head.NAME != "PointRendMaskHead":  # its coarse mask is half the feature's side, 7 of 14
        head.POOLER_RESOLUTION = max(head.POOLER_RESOLUTION // 2, 4)
    node.LEVEL_SIZES = halved


def small_data(data: DataSet) -> DataSet:
    """Scenes with the table's boundary ratio."""
    return replace(SCENES, ratio=data.ratio)
