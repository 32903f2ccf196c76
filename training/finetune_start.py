"""Where a finetuning starts: the active model's configuration with another schedule, its weights with other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from model.network import build_network
from model.overrides import override
from model.state_keys import load_weights
from training.building import suit_device
from training.class_heads import fit_classes
from training.config import add_training_config
from training.finetune_data import FinetuneData
from training.finetune_settings import FinetuneSettings

WEIGHT_DECAY = 0.02
LARGEST_NORM = 5.0
LONGEST_WARM_UP = 100
# Writing state and checkpoint costs half a step of a small model; a kill may cost a minute.
LEAST_SAVE_PERIOD = 25


def finetune_config(parent: CfgNode, settings: FinetuneSettings, data: FinetuneData, classes: int) -> CfgNode:
    """The active model's network, with the schedule of the settings' preset."""
    cfg: CfgNode = parent.clone()
    cfg.defrost()
    add_training_config(cfg)
    schedule, steps = settings.schedule(data.images), settings.steps(data.images, data.shares[0])
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.SEED = settings.device, classes, settings.seed
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(data.names), ()
    cfg.DATALOADER.NUM_WORKERS = settings.data_workers
    solver, keys = cfg.SOLVER, cfg.TRAINING
    solver.IMS_PER_BATCH, solver.MAX_ITER = settings.batch_size, steps
    solver.BASE_LR, solver.WEIGHT_DECAY = settings.base_lr or schedule.base_lr, WEIGHT_DECAY
    solver.WARMUP_METHOD, solver.WARMUP_FACTOR = "linear", 0.01
    solver.WARMUP_ITERS = min(LONGEST_WARM_UP, steps // 10)
    solver.CHECKPOINT_PERIOD = settings.save_period or max(LEAST_SAVE_PERIOD, steps // 20)
    clip = solver.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", LARGEST_NORM
    keys.OPTIMIZER, keys.SCHEDULE = "AdamW", "cosine"
    keys.BACKBONE_LR_FACTOR, keys.EMA_DECAY = schedule.backbone_lr_factor, schedule.ema_decay
    keys.MAX_MINUTES, keys.THREADS = float(settings.max_minutes), settings.threads
    keys.ACCUMULATE, keys.PRECISION = settings.accumulate, settings.precision
    keys.LOG_PERIOD = settings.log_period or max(1, steps // 50)
    cfg.TEST.EVAL_PERIOD = 0  # judged by the gate, on images that must not choose the weights as well
    override(cfg, [part for pair in settings.overrides.items() for part in pair])
    return cfg


def starting_network(
    cfg: CfgNode, state: Mapping[str, Tensor], old: Sequence[str], sources: Sequence[str | None]
) -> nn.Module:
    """The network with the active model's weights, its class rows put in the order of the new classes.

    Args:
        old: names of the active model's classes. sources: the old name of each new class, None for a new one.

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    torch.manual_seed(cfg.SEED)
    network = build_network(cfg)
    rows = [None if source is None else list(old).index(source) for source in sources]
    load_weights(network, fit_classes(state, network.state_dict(), len(old), rows), source="the active model")
    suit_device(network, cfg)
    return network
