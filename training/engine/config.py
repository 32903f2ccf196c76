"""Configuration of a training run: the network's keys, detectron2's SOLVER, and what detectron2 has no key for."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from model.config import add_transfiner_config, find_config


def add_training_config(cfg: CfgNode) -> None:
    """Add the keys under ``TRAINING``; one comment each. They are not part of a checkpoint's network."""
    cfg.TRAINING = node = CfgNode()
    # Where weights start: "imagenet" (packaged backbone weights), a checkpoint directory, or "" for random ones.
    node.INIT = ""
    # "AdamW" or "SGD" (momentum and weight decay from SOLVER).
    node.OPTIMIZER = "AdamW"
    # Learning rate of a pretrained backbone relative to SOLVER.BASE_LR.
    node.BACKBONE_LR_FACTOR = 1.0
    # "cosine", or "steps" (SOLVER.STEPS and SOLVER.GAMMA); both after the warm-up of SOLVER.WARMUP_*.
    node.SCHEDULE = "cosine"
    # The cosine ends at this fraction of SOLVER.BASE_LR.
    node.FINAL_LR_FACTOR = 0.01
    # Wall-clock budget in minutes (0: none). The schedule follows time or SOLVER.MAX_ITER, whichever is further.
    node.MAX_MINUTES = 0.0
    # Weights that are saved and evaluated are an exponential moving average (0: the last ones).
    node.EMA_DECAY = 0.998
    # Parts that a process's share of a batch is learned from one after another (1: at once); less memory, same batch.
    node.ACCUMULATE = 1
    # Arithmetic of the forward pass: "fp32", "bf16" (CPU or GPU), or "fp16" with scaled gradients (GPU).
    node.PRECISION = "fp32"
    # Images that are damaged or not there: "skip" (counted and logged) or "fatal".
    node.MISSING_IMAGES = "fatal"
    # What tells the best checkpoint that evaluations (TEST.EVAL_PERIOD) found: "mask" or "boundary" AP.
    node.BEST_BY = "mask"
    # Size in pixels of generated scenes.
    node.SCENE_WIDTH = 384
    node.SCENE_HEIGHT = 288
    # Folder that keeps drawn scenes for the next epoch or run ("": draw each anew).
    node.SCENE_CACHE = ""
    # Also mirror top to bottom, for pictures that have no up and down (INPUT.RANDOM_FLIP mirrors left to right).
    node.FLIP_VERTICAL = False
    # Threads of the arithmetic (0: torch's default).
    node.THREADS = 0
    # Iterations between lines of the log.
    node.LOG_PERIOD = 20


def get_training_config(name: str | Path) -> CfgNode:
    """The configuration of a training run from ``model/configs/`` or any YAML file; see ``model.config.get_config``.

    Raises:
        FileNotFoundError: no such configuration.
        KeyError: a key that nobody knows.
    """
    cfg = get_cfg()
    add_transfiner_config(cfg)
    add_training_config(cfg)
    cfg.merge_from_file(str(find_config(name)))
    return cfg


def network_config(cfg: CfgNode) -> CfgNode:
    """A copy without ``TRAINING``: what a checkpoint stores and a predictor reads."""
    copy: CfgNode = cfg.clone()
    copy.defrost()
    copy.pop("TRAINING", None)
    return copy
