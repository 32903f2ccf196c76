"""Turns a `.pth` file of the authors of Mask Transfiner (or of anyone who trained with their code) into a checkpoint.

The expected names and shapes come from our own networks, built without memory on torch's meta device, so that there
is no table to keep in step.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES
from torch import Tensor

from model.checkpoints.checkpoint import save_checkpoint
from model.checkpoints.metadata import CheckpointError, file_digest
from model.checkpoints.releases import ARCHITECTURES
from model.checkpoints.state_dict import KeyReport, compare_keys
from model.config import get_config
from model.network import build_network

MASK_PREDICTOR = "roi_heads.mask_head.predictor.weight"


def released_config(config: str, num_classes: int) -> CfgNode:
    """The effective configuration of an architecture for so many classes."""
    cfg = get_config(config)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.WEIGHTS = ""
    return cfg


@cache
def expected_state(config: str, num_classes: int) -> Mapping[str, Tensor]:
    """Names and shapes of an architecture's weights, as tensors without memory (`meta` device)."""
    cfg = released_config(config, num_classes)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return dict(build_network(cfg).state_dict())


def count_classes(state: Mapping[str, Tensor]) -> int:
    """The number of classes the weights were trained for.

    Raises:
        CheckpointError: the tensor that tells it is absent.
    """
    if MASK_PREDICTOR not in state:
        raise CheckpointError(f"not the weights of a Mask Transfiner: {MASK_PREDICTOR} is missing")
    return state[MASK_PREDICTOR].shape[0]


def recognise(state: Mapping[str, Tensor]) -> tuple[str, KeyReport]:
    """The released architecture that fits a state dict best, and how it differs.

    Raises:
        CheckpointError: the number of classes cannot be told.
    """
    num_classes = count_classes(state)
    reports = {config: compare_keys(state, expected_state(config, num_classes)) for config in ARCHITECTURES}
    best_config = min(reports, key=lambda config: reports[config].differences)
    return best_config, reports[best_config]


def known_classes(num_classes: int) -> tuple[str, ...] | None:
    """Names for the class counts of the releases (80: COCO, 1230: LVIS v0.5), else None."""
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    lvis = [category["name"] for category in LVIS_CATEGORIES]
    return {len(coco): tuple(coco), len(lvis): tuple(lvis)}.get(num_classes)


# Types that optimizers and schedulers store in a file beside tensors. Rebuilding numpy numbers runs none of its code.
_REBUILD_NUMBER = np.float64(0).__reduce__()[0]
_REBUILD_ARRAY = np.zeros(1).__reduce__()[0]
HARMLESS_TYPES: list[Any] = [
    _REBUILD_NUMBER,
    _REBUILD_ARRAY,
    (_REBUILD_NUMBER, "numpy.core.multiarray.scalar"),  # the names that numpy 1 wrote
    (_REBUILD_ARRAY, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?")},
]


@dataclass(frozen=True)
class Import:
    """The outcome of an import.

    Attributes:
        directory: the checkpoint written.
        config: the released architecture recognised.
        report: what was missing or unexpected without harm.
        metadata: as written.
    """

    directory: Path
    config: str
    report: KeyReport
    metadata: dict[str, Any]


def read_released_file(file: Path) -> dict[str, Tensor]:
    """The weights in a detectron2 training file; nothing in it is executed.

    Raises:
        CheckpointError: no such file, not a torch file, a file that would need to run code, or one without weights.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; give the downloaded .pth file")
    try:
        with torch.serialization.safe_globals(HARMLESS_TYPES):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is not a file of plain weights, and nothing else is loaded, because that could run code: "
            f"{_first_line(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is not a readable torch file (a cut-off download, or a web page?): {_first_line(error)}"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file} holds no weights: expected a dictionary of tensors, or one under 'model'")
    return {str(name): _as_tensor(str(name), value, file) for name, value in state.items()}


def import_released(
    file: Path,
    directory: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    half: bool = False,
    overwrite: bool = False,
    source: str = "",
) -> Import:
    """Check a file against the released architectures and store it as a checkpoint.

    Args:
        classes: names in the order of the model's class numbers; known for 80 (COCO) and 1230 (LVIS v0.5) classes.
        source: where the file came from, for the metadata.

    Raises:
        CheckpointError: the file is unreadable, fits no released architecture, or the class names are missing.
        FileExistsError: the directory exists and `overwrite` is off.
    """
    if directory.exists() and not overwrite:
        raise FileExistsError(f"{directory} exists; choose another name or allow overwriting")
    state = read_released_file(file)
    config, report = recognise(state)
    if not report.fits:
        raise CheckpointError(
            f"{file} fits none of the released architectures; the closest is {config}\n{report.describe()}"
        )
    num_classes = count_classes(state)
    names = _class_names(num_classes, classes, file)
    digest = file_digest(file)
    metadata = {
        "name": name,
        "version": f"{name}-{digest[:8]}",
        "classes": list(names),
        "preset": "released",
        "config": config,
        "source": {"file": file.name, "sha256": digest, "bytes": file.stat().st_size, "url": source},
        "absent_training_only": list(report.absent_training_only),
    }
    weights = {key: tensor for key, tensor in state.items() if key in expected_state(config, num_classes)}
    cfg = released_config(config, num_classes)
    full_metadata = save_checkpoint(directory, cfg, weights, metadata, half=half, overwrite=overwrite)
    return Import(directory, config, report, full_metadata)


def _class_names(num_classes: int, classes: Sequence[str] | None, file: Path) -> Sequence[str]:
    names = classes if classes is not None else known_classes(num_classes)
    if names is None:
        raise CheckpointError(
            f"{file} has {num_classes} classes, whose names it does not hold; "
            "give them in order, one a line, in a file (--classes FILE)"
        )
    if len(names) != num_classes:
        raise CheckpointError(f"{file} has {num_classes} classes, but {len(names)} names were given")
    return names


def _as_tensor(name: str, value: object, file: Path) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{file} holds a {type(value).__name__} as {name!r}, expected a tensor")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
