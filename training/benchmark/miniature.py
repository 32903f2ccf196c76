"""Every row at a size that trains in seconds: a narrow network, small generated scenes, masks of half the side.

It shows that the whole pipeline runs and, with enough iterations and seeds, in which direction rows differ; its
figures say nothing about COCO.
"""

from __future__ import annotations

from dataclasses import replace

from detectron2.config import CfgNode

from training.benchmark.rows import DataSet
from training.scenes import CLASSES

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
