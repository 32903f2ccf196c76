"""The common start of all rows: the detector's coarse mask, used to the smaller grid."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import load_checkpoint
from training.benchmark.directions.planning import Setting
from training.benchmark.directions.shared import SharedDetector
from training.benchmark.directions.teaching import mask_branch, teach
from training.benchmark.directions.variants import variant_config


def settle(setting: Setting, detector: SharedDetector, tell: Callable[[str], object]) -> None:
    """The start of all rows whose coarse grid is half the detector's: its coarse mask, trained on that grid."""
    file = _coarse_file(setting, detector)
    if file.is_file():
        return
    tell(f"the coarse mask gets used to its smaller grid, {setting.coarse_steps} steps")
    torch.set_num_threads(1)
    cfg = variant_config(detector.cfg, 5, "depth-0", iterations=setting.coarse_steps, seed=0)
    heads = mask_branch(cfg, load_checkpoint(setting.weights).state)
    teach(heads, cfg, detector, setting.scenes)
    unfinished = file.with_suffix(f".{os.getpid()}")
    save_file({f"roi_heads.{name}": one.contiguous() for name, one in heads.state_dict().items()}, unfinished)
    unfinished.replace(file)


def start_of(setting: Setting, detector: SharedDetector, cfg: CfgNode) -> dict[str, Tensor]:
    """Weights of the coarse mask for a row's grid."""
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == detector.cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION:
        return load_checkpoint(setting.weights).state
    return load_file(_coarse_file(setting, detector))


def _coarse_file(setting: Setting, detector: SharedDetector) -> Path:
    return detector.folder / f"coarse-{setting.scenes}-{setting.coarse_steps}.safetensors"
