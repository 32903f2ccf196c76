"""A training run's configuration, and its network: built from it, started from ImageNet or from another checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.config import add_transfiner_config, find_config
from model.network import build_network


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


def build_for_training(cfg: CfgNode) -> nn.Module:
    """Build the network and give it the starting weights of ``TRAINING.INIT``.

    Raises:
        ValueError: ``TRAINING.INIT`` is "imagenet" and the backbone has no packaged ImageNet weights.
        CheckpointError: ``TRAINING.INIT`` names a directory that is no checkpoint.
        ValueError: none of its weights fits this network.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    network = build_network(cfg)
    start = cfg.TRAINING.INIT
    if start == "imagenet":
        _start_from_imagenet(network, cfg)
    elif start:
        start_from(network, usable_state(load_checkpoint(Path(start)), cfg))
    suit_device(network, cfg)
    return network


def usable_state(checkpoint: Checkpoint, cfg: CfgNode) -> dict[str, Tensor]:
    """The checkpoint's weights, without its decoder's last layer where that says something else than ours will."""
    if checkpoint.cfg.MODEL.TRANSFINER.DECODER == cfg.MODEL.TRANSFINER.DECODER:
        return checkpoint.state
    return {key: value for key, value in checkpoint.state.items() if ".encoder.conv_r1.2." not in key}


def suit_device(network: nn.Module, cfg: CfgNode) -> None:
    """Lay the weights out as ``MODEL.DEVICE`` computes quickest; values stay."""
    if cfg.MODEL.DEVICE == "cpu":
        _channels_last_backbone(network)


def _start_from_imagenet(network: nn.Module, cfg: CfgNode) -> None:
    from model.backbones.efficientnet_lite import EfficientNetLite, load_imagenet_weights

    bottom_up = getattr(network.backbone, "bottom_up", None)
    if not isinstance(bottom_up, EfficientNetLite):
        raise ValueError(
            f'TRAINING.INIT is "imagenet", but {cfg.MODEL.BACKBONE.NAME} has no packaged ImageNet weights; '
            'use build_efficientnet_lite_fpn_backbone, a checkpoint directory, or "" for random weights'
        )
    load_imagenet_weights(bottom_up)


def _channels_last_backbone(network: nn.Module) -> None:
    """Depthwise convolutions run several times faster channels-last on a CPU; dense 3x3 ones, twice slower backward."""
    bottom_up = getattr(network.backbone, "bottom_up", None)
    if bottom_up is None:
        return

    def contiguous(_: nn.Module, __: tuple[Tensor, ...], features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: feature.contiguous() for name, feature in features.items()}

    bottom_up.to(memory_format=torch.channels_last)
    bottom_up.register_forward_hook(contiguous)


logger = logging.getLogger(__name__)
State = dict[str, Tensor]


def start_from(network: nn.Module, state: State) -> None:
    """Load a state as far as it fits.

    Raises:
        ValueError: not one of the network's weights is in the state.
    """
    own = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise ValueError(
            f"none of the {len(own)} weights of the network is in the checkpoint; is it of another architecture?"
        )
    network.load_state_dict(fitting, strict=False)
    for what, keys in (
        ("start untrained", own.keys() - fitting.keys()),
        ("are not used", state.keys() - fitting.keys()),
    ):
        if keys:
            logger.warning("%d weights %s: %s", len(keys), what, ", ".join(sorted(keys)))
