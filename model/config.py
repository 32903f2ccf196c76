"""Every configuration key of Mask Transfiner, on top of detectron2's defaults.

The defaults are preset ``released``: the architecture the authors' checkpoints expect, with their thresholds.
"""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from model.backbones.efficientnet_lite import add_efficientnet_config
from model.backbones.swin import add_swin_config

CONFIG_ROOT = Path(__file__).resolve().parent.parent / "configs"


def add_transfiner_config(cfg: CfgNode) -> None:
    """Add the keys under ``MODEL.TRANSFINER`` and the ones of the backbones; one comment each."""
    cfg.MODEL.TRANSFINER = node = CfgNode()
    # Side lengths of the quadtree levels on the RoI grid, coarse to fine, each twice the one before.
    node.LEVEL_SIZES = [28, 56, 112]
    # A place becomes a node where the (upsampled) incoherence probability reaches its level's threshold.
    node.THRESHOLDS_TRAIN = [0.125, 0.5, 0.5]
    node.THRESHOLDS_TEST = [1e-6, 0.125, 0.8]
    # Nodes drawn per level and instance in training; drawn again with repetition where there are fewer.
    node.SAMPLES_PER_LEVEL = 150
    # An instance with fewer nodes than this at any level is left out of the refinement loss.
    node.MIN_NODES_PER_LEVEL = 10
    # Instances of a batch whose refinement is trained (0: all).
    node.TRAIN_INSTANCE_LIMIT = 30
    # Instances of a batch that are refined in inference (0: all; the authors' code: 10).
    node.TEST_INSTANCE_LIMIT = 0
    # Sequence encoder: layers, attention heads, width of the feed-forward part, dropout.
    node.ENCODER_LAYERS = 3
    node.ENCODER_HEADS = 4
    node.ENCODER_FFN_DIM = 2048
    node.ENCODER_DROPOUT = 0.1
    # Tokens encoded in one go in inference; bounds memory, changes no result.
    node.MAX_TOKENS = 16384
    # Channels of the last convolution of the incoherence detector.
    node.INCOHERENCE_DIM = 128
    # Residue of the incoherence target: "absolute", or "signed" as when the COCO checkpoints were trained.
    node.INCOHERENCE_TARGET = "absolute"
    # Dilate the finest incoherent region by 3x3 and blur the result (what VIS_PERIOD=100 does in the authors' code).
    node.DILATE_AND_BLUR = False
    # Also return the coarse masks, upsampled and pasted, as ``pred_coarse_masks``.
    node.KEEP_COARSE = False
    # Loss weights: coarse mask, incoherence, refinement, semantic, boundary.
    node.LOSS_WEIGHTS = CfgNode(
        {"COARSE": 1.0, "INCOHERENCE": 0.5, "REFINE": 1.0, "SEMANTIC": 0.25, "BOUNDARY": 0.5}
    )

    add_efficientnet_config(cfg)
    add_swin_config(cfg)


def get_config(name: str | Path = "released") -> CfgNode:
    """The configuration of a preset, of a file under ``configs/``, or of any YAML file.

    Args:
        name: ``"released"``, a path relative to ``configs/`` without ``.yaml`` (``"released/R50-FPN"``), or a file.

    Raises:
        FileNotFoundError: no such configuration; the message lists the known ones.
        KeyError: the file has a key that detectron2 and this project do not know.
    """
    cfg = get_cfg()
    add_transfiner_config(cfg)
    cfg.merge_from_file(str(find_config(name)))
    return cfg


def find_config(name: str | Path) -> Path:
    """The YAML file that ``name`` means; see :func:`get_config`."""
    candidates = [Path(name), CONFIG_ROOT / f"{name}.yaml", CONFIG_ROOT / str(name) / "base.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(str(p.relative_to(CONFIG_ROOT).with_suffix("")) for p in CONFIG_ROOT.rglob("*.yaml"))
    raise FileNotFoundError(f"no configuration {str(name)!r}; give a YAML file or one of: {', '.join(known)}")
