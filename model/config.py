"""Every configuration key of Mask Transfiner, on top of detectron2's defaults and PointRend's.

The defaults are preset ``released``: the architecture the authors' checkpoints expect, with their thresholds. Preset
``paper`` (model/configs/paper/base.yaml) sets the same keys as the paper's text has them.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from model.backbones.efficientnet_lite import add_efficientnet_config
from model.backbones.swin import add_swin_config
from model.errors import FIXES, MissingRequirementError

CONFIG_ROOT = Path(__file__).resolve().parent / "configs"


def add_transfiner_config(cfg: CfgNode) -> None:
    """Add the keys under ``MODEL.TRANSFINER`` and the ones of the backbones; one comment each."""
    cfg.MODEL.TRANSFINER = node = CfgNode()
    for add in (_add_quadtree, _add_detection, _add_refiner, _add_inference, _add_training):
        add(node)
    add_efficientnet_config(cfg)
    add_swin_config(cfg)
    _pointrend_keys()(cfg)
    cfg.MODEL.DETR = CfgNode()
    _add_query_based(cfg.MODEL.DETR)
    cfg.MODEL.PROMPTED = prompted = CfgNode()
    # PromptedDetector: the power of the mask's expected IoU in an object's score (0: the box's score alone).
    prompted.QUALITY_POWER = 0.0
    # The power of the whole score, so that one half is a good threshold (see `training.fewshot.learn`).
    prompted.SCORE_POWER = 1.0
    # Sides of the squares that an image is stretched to for the detector, and whether each is seen mirrored, too.
    prompted.TEST_SIDES = [416]
    prompted.TEST_MIRRORED = False


def _add_quadtree(node: CfgNode) -> None:
    """The quadtree, and which of its places are refined."""
    # Side lengths of its levels on the RoI grid, coarse to fine, each twice the one before; [] is depth 0 (Table 5).
    node.LEVEL_SIZES = [28, 56, 112]
    # FPN levels between the coarse RoI feature and the first quadtree level: 1 released, 0 paper.
    node.FINER_BY = 1
    # Which places are refined: "incoherent", or "full" or "boundary" regions (Table 2).
    node.REGION = "incoherent"
    # A place becomes a node where its level's incoherence probability reaches the threshold.
    node.THRESHOLDS_TRAIN = [0.125, 0.5, 0.5]
    node.THRESHOLDS_TEST = [1e-6, 0.125, 0.8]
    # Only places whose parent is a node can be nodes (section 3.2).
    node.NESTED = False
    # How refined values reach the finest level: "bilinear" released, "nearest" paper, "centred" bilinear without the
    # released code's shift towards the corners, "leaves" not at all (Table 8).
    node.PROPAGATION = "bilinear"
    # Dilate the finest region by 3x3 and blur the result (what VIS_PERIOD=100 does in the authors' code).
    node.DILATE_AND_BLUR = False


def _add_detection(node: CfgNode) -> None:
    """The detector of incoherent regions."""
    # "released": one 28x28 map, upsampled; "cascaded": each level guided by the one before (section 3.2).
    node.DETECTION = "released"
    # A finer level of the cascaded detector also reads the upsampled regions of the one before (Table 3).
    node.GUIDANCE = True
    # Channels of the last convolution of the released detector.
    node.INCOHERENCE_DIM = 128
    # Residue of the released target: "absolute", or "signed" as when the COCO checkpoints were trained.
    node.INCOHERENCE_TARGET = "absolute"
    # Share of instances whose target regions are grown by one place in training (cascaded; section 6.1).
    node.JITTER = 0.0


def _add_refiner(node: CfgNode) -> None:
    """The refinement network."""
    # "transformer", or "mlp", "cnn" (Table 6), "non_local" (Table 7).
    node.REFINER = "transformer"
    # Layers of it; attention heads, width of the feed-forward part and dropout of a transformer (Table 6).
    node.ENCODER_LAYERS = 3
    node.ENCODER_HEADS = 4
    node.ENCODER_FFN_DIM = 2048
    node.ENCODER_DROPOUT = 0.1
    # What a node's token is made of: "feature", "coarse", "position", "context" (3x3 neighbours; Table 4),
    # "coarse_feature" (what the coarse mask was predicted from; not in the paper).
    node.CUES = ["feature", "coarse", "position"]
    # Where the position enters: "layers" (queries and keys of each, released) or "input" (once, paper).
    node.POSITION = "layers"
    # "direct": the decoder predicts a node's probability (paper); "residual": what to add to the coarse mask's logit,
    # nothing at first, so that a short training cannot end below the coarse masks.
    node.DECODER = "direct"
    # The 14x14 coarse feature points join every sequence as positive and negative references.
    node.REFERENCE_POINTS = True
    # One sequence for all levels of an instance, or one a level (Table 8).
    node.JOINT_LEVELS = True


def _add_inference(node: CfgNode) -> None:
    """How much is refined, and at once."""
    # Tokens encoded in one go in inference; bounds memory, changes no result.
    node.MAX_TOKENS = 16384
    # Most nodes of an instance in one sequence in inference (0: all). An instance with more is read as several
    # interleaved sequences, each as sparse as those of training: cost grows linearly with the nodes.
    node.TEST_SEQUENCE_NODES = 0
    # Most nodes of an image that are refined in inference (0: all), the best first; see `mask_head/quadtree.py`.
    node.TEST_NODE_BUDGET = 0
    # Instances of a batch that are refined in inference (0: all; the authors' code: 10).
    node.TEST_INSTANCE_LIMIT = 0
    # Instances with a smaller box keep their coarse mask in inference (0: none): the square root of the box's area, in
    # pixels of the network's input.
    node.TEST_MIN_BOX_PX = 0.0
    # In instances with a smaller box (measured likewise) the refined mask counts by the square of box over this, the
    # coarse one for the rest (0: refined masks count fully). Refined values are near 0 or 1 even where they are wrong;
    # in a box of few feature cells they are wrong more often than the coarse ones, which are less sure there.
    node.TEST_SURE_BOX_PX = 0.0
    # The predictor makes the masks of an image agree with each other and with its edges, see composition.py. Figures of
    # raw masks (`transfiner evaluate` without --edits and --served) are without it.
    node.TEST_COMPOSE = False
    # Also return the coarse masks, upsampled and pasted, as ``pred_coarse_masks``.
    node.KEEP_COARSE = False


def _add_training(node: CfgNode) -> None:
    """Sampling, branches and loss weights of training."""
    # Nodes drawn per level and instance; drawn again with repetition where there are fewer.
    node.SAMPLES_PER_LEVEL = 150
    # An instance with fewer nodes than this at any level is left out of the refinement loss.
    node.MIN_NODES_PER_LEVEL = 10
    # Instances of a batch whose refinement is trained (0: all).
    node.TRAIN_INSTANCE_LIMIT = 30
    # How a node's probability is compared with its label: "l1" (released code; its optimum is the median, so nodes end
    # near 0 and 1) or "cross_entropy" (its optimum is the mean, which a level set can be drawn through).
    node.REFINE_LOSS = "l1"
    # The released code's branches: four convolutions on P2 with a semantic loss, and a contour loss.
    node.AUXILIARY_BRANCHES = True
    # Loss weights: coarse mask, incoherence, refinement, semantic, boundary.
    node.LOSS_WEIGHTS = CfgNode({"COARSE": 1.0, "INCOHERENCE": 0.5, "REFINE": 1.0, "SEMANTIC": 0.25, "BOUNDARY": 0.5})


def _add_query_based(node: CfgNode) -> None:
    """The query-based detector (Deformable DETR, `model.detectors.query_based`), beside the usual ROI_HEADS keys."""
    # Object queries, that is the most objects of an image.
    node.QUERIES = 300
    # Layers of the encoder and of the decoder; width of their feed-forward parts; attention heads; dropout.
    node.LAYERS = 6
    node.FFN_DIM = 1024
    node.HEADS = 8
    node.DROPOUT = 0.1
    # FPN maps that the encoder reads.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    # Each decoder layer corrects the boxes of the one before.
    node.BOX_REFINEMENT = True
    # Loss weights of classes (focal), box edges (L1) and box overlap (GIoU); the matching uses the same.
    node.CLASS_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0


def get_config(name: str | Path = "released") -> CfgNode:
    """The configuration of a preset, of a file under ``model/configs/``, or of any YAML file.

    Args:
        name: ``"released"``, a path below ``model/configs/`` without ``.yaml`` (``"released/R50-FPN"``), or a file.

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
    names = sorted(str(p.relative_to(CONFIG_ROOT).with_suffix("")) for p in CONFIG_ROOT.rglob("*.yaml"))
    raise FileNotFoundError(f"no configuration {str(name)!r}; give a YAML file or one of: {', '.join(names)}")


def override(cfg: CfgNode, pairs: Sequence[object]) -> None:
    """Set keys of a configuration in place; ``pairs`` are keys and values, alternating, values also as text.

    A whole number will do where the key is a fraction.

    Raises:
        ValueError: an unknown key, named with those that are like it; or a value of another type.
    """
    if len(pairs) % 2:
        raise ValueError(f"keys and values alternate, but there are {len(pairs)}: {list(pairs)}")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        keys = _leaves(cfg)
        if key not in keys:
            names = difflib.get_close_matches(str(key), keys, n=3)
            hint = f"; did you mean {' or '.join(names)}?" if names else ""
            raise ValueError(f"no configuration key {key!r}{hint}")
        setting = _literal(value)
        if isinstance(keys[str(key)], float) and type(setting) is int:
            setting = float(setting)
        try:
            cfg.merge_from_list([key, setting])
        except ValueError as error:
            description = f"{type(keys[str(key)]).__name__} like {keys[str(key)]!r}"
            raise ValueError(f"{key} cannot be {value!r}; it is a {description}") from error


def _leaves(node: CfgNode, path: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.items():
        values |= _leaves(value, f"{path}{key}.") if isinstance(value, CfgNode) else {f"{path}{key}": value}
    return values


def _literal(value: object) -> object:
    """A text read as a Python literal; the text itself where it is none."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _pointrend_keys() -> Callable[[CfgNode], None]:
    """The function that adds PointRend's keys, from the one file of that project that needs only detectron2.

    Importing the project's package would import OpenCV, too (model/network.py does, to build a PointRend); the keys
    have to be there always, since files of configurations that hold them have to be readable everywhere.

    Raises:
        MissingRequirementError: the detectron2 at hand comes without its projects.
    """
    package = importlib.util.find_spec("detectron2.projects.point_rend")
    if package is None or package.origin is None:
        raise MissingRequirementError(f"detectron2 has no projects/point_rend; fix: {FIXES['detectron2']}.")
    keys = runpy.run_path(str(Path(package.origin).with_name("config.py")))
    add: Callable[[CfgNode], None] = keys["add_pointrend_config"]
    return add
