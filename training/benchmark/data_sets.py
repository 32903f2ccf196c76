"""The sets of the paper: names, folders, and the schedules of section 6.1."""

from __future__ import annotations

from training.benchmark.rows import DataSet

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
