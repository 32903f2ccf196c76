"""Where a finetuning starts: the active model's configuration with another schedule, its weights with other classes.

The rows of class-wise layers are kept by class name: classes come, go, and change their names.

Shape shorthand: K classes of the network that was, J of the one to be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from model.checkpoints.state_dict import load_weights
from model.config import override
from model.network import build_network
from training.engine.build import add_training_config, suit_device
from training.finetune.data import FinetuneData
from training.finetune.settings import FinetuneSettings

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


logger = logging.getLogger(__name__)
# Layers with rows for classes: (rows a class, further rows at the end). Scores have one more for the background.
_LAYERS = {
    r"roi_heads\.box_predictor(\.\d+)?\.cls_score\.(weight|bias)": (1, 1),
    r"roi_heads\.box_predictor(\.\d+)?\.bbox_pred\.(weight|bias)": (4, 0),
    r"(.+\.)?mask_head\.predictor\.(weight|bias)": (1, 0),
    r"(.+\.)?class_embed(\.\d+)?\.(weight|bias)": (1, 0),
}


def previous_names(
    old: Sequence[str], new: Sequence[str], renamed: Mapping[str, str] | None = None
) -> tuple[str | None, ...]:
    """For each new class the old one whose rows it takes, None for a class that is new.

    Args:
        renamed: old name -> new name.

    Raises:
        ValueError: a renaming from a class that was not there or to one that is not, or two to the same.
    """
    renamed = dict(renamed or {})
    if absent := [name for name in renamed if name not in old]:
        raise ValueError(
            f"cannot rename {', '.join(absent)}: the model's classes are {', '.join(old)}; correct the old name"
        )
    if absent := [name for name in renamed.values() if name not in new]:
        raise ValueError(
            f"cannot rename to {', '.join(absent)}: the classes to learn are {', '.join(new)}; correct the new name"
        )
    if len(set(renamed.values())) < len(renamed):
        raise ValueError(f"two classes are renamed to the same one: {renamed}; rename only one of them")
    sources = {after: before for before, after in renamed.items()}
    kept = set(old) - set(renamed)
    return tuple(sources.get(name, name if name in kept else None) for name in new)


def fit_classes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], old_count: int, sources: Sequence[int | None]
) -> dict[str, Tensor]:
    """The state of a network with K classes as the start of one with J.

    The rows of a new class are the mean of all old ones: it starts as "an object of some kind", with a box and a mask
    that fit such, instead of at random. Layers that do not know classes are taken as they are.

    Args:
        state: of the network that was. expected: of the network to be, for its shapes.
        old_count: K. sources: J, the old class of each new one, None for a new class.
    """
    return {
        name: _rows(tensor, layout, old_count, sources)
        if (layout := _layout(name, tensor, expected.get(name), old_count, len(sources)))
        else tensor
        for name, tensor in state.items()
    }


def _layout(
    name: str, tensor: Tensor, expected: Tensor | None, old_count: int, new_count: int
) -> tuple[int, int] | None:
    """Rows a class and further rows of a layer; None where its rows do not belong to classes (class-agnostic)."""
    for pattern, (each, further) in _LAYERS.items():
        if re.fullmatch(pattern, name) and expected is not None and tensor.dim() > 0:
            rows, wanted = each * old_count + further, each * new_count + further
            return (each, further) if (len(tensor), len(expected)) == (rows, wanted) else None
    return None


def _rows(tensor: Tensor, layout: tuple[int, int], old_count: int, sources: Sequence[int | None]) -> Tensor:
    each, further = layout
    by_class = tensor[: each * old_count].unflatten(0, (old_count, each))
    typical = by_class.mean(0)
    chosen = torch.stack([typical if source is None else by_class[source] for source in sources])
    return torch.cat([chosen.flatten(0, 1), tensor[len(tensor) - further :]])


def describe(old: Sequence[str], new: Sequence[str], sources: Sequence[str | None]) -> str:
    """What happens to the classes, in a line for the log."""
    kinds = {
        "kept": [name for name, source in zip(new, sources, strict=True) if source == name],
        "renamed": [f"{s} to {n}" for n, s in zip(new, sources, strict=True) if s is not None and s != n],
        "added": [name for name, source in zip(new, sources, strict=True) if source is None],
        "removed": [name for name in old if name not in sources],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
