"""Checkpoints: a directory of weights, configuration and metadata, complete, verified and never half written.

`model.safetensors` (fp32 or fp16), `config.yaml` (the full effective configuration), `metadata.json` (name,
version, classes, preset, digest, created, ...), optionally `MODEL_CARD.md`. K: number of classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.checkpoints.metadata import (
    CONFIG_FILE,
    METADATA_FILE,
    REQUIRED_METADATA,
    WEIGHTS_FILE,
    CheckpointError,
    existing_file,
    file_digest,
    read_metadata,
    verify_weights,
)
from model.config import add_transfiner_config
from model.files import replacing_folder

# Keys that detectron2's main branch has and its packaged distribution has not. They do not change a network, and a
# checkpoint made with one distribution must open with the other.
UPSTREAM_ONLY_KEYS = ("FLOAT32_PRECISION",)
# Settings of methods that were removed; older checkpoints name them.
REMOVED_MODEL_KEYS = ("COMPARISON",)
# Batch statistics span more magnitudes than half precision holds.
ALWAYS_FP32 = ("running_mean", "running_var")


class Checkpoint(NamedTuple):
    """What a checkpoint directory holds; weights are fp32 on the CPU."""

    cfg: CfgNode
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def load_checkpoint(directory: Path | str) -> Checkpoint:
    """Read and verify a checkpoint directory; half-precision weights come back as fp32.

    Raises:
        CheckpointError: a file is missing or unreadable, the weights' digest is not the recorded one, the
            configuration has unknown keys, or the class count is not the configuration's.
    """
    directory = Path(directory)
    metadata = read_metadata(directory)
    cfg = _read_config(directory / CONFIG_FILE)
    _check_classes(metadata, cfg, directory)
    weights_file = verify_weights(directory, metadata)
    try:
        state = load_file(weights_file)
    except SafetensorError as error:
        raise CheckpointError(f"{weights_file} is not a readable safetensors file: {error}") from error
    return Checkpoint(cfg, {name: _to_fp32(tensor) for name, tensor in state.items()}, metadata)


def save_checkpoint(
    directory: Path | str,
    cfg: CfgNode,
    model: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    half: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint directory in one step: it appears complete or not at all.

    Args:
        metadata: at least name, version and classes (K names); digest and created are added.
        half: store fp16 (batch statistics, and values fp16 cannot hold, stay fp32).

    Returns:
        The metadata as written.

    Raises:
        CheckpointError: metadata is incomplete or has not as many classes as the configuration.
        FileExistsError: the directory exists and `overwrite` is off.
    """
    directory = Path(directory)
    if missing_keys := [key for key in REQUIRED_METADATA if not metadata.get(key)]:
        raise CheckpointError(f"metadata for {directory} lacks {', '.join(missing_keys)}")
    _check_classes(metadata, cfg, directory)
    if directory.exists() and not overwrite:
        raise FileExistsError(f"{directory} exists; choose another name or allow overwriting")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    with replacing_folder(directory) as new_folder:
        return _write(new_folder, cfg, state, metadata, half)


def _write(
    directory: Path, cfg: CfgNode, state: Mapping[str, Tensor], metadata: Mapping[str, Any], half: bool
) -> dict[str, Any]:
    # Clones: safetensors refuses tensors that share memory.
    save_file({name: _to_stored(name, tensor, half) for name, tensor in state.items()}, directory / WEIGHTS_FILE)
    (directory / CONFIG_FILE).write_text(cfg.dump(), encoding="utf-8")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"created": created, **metadata, "digest": file_digest(directory / WEIGHTS_FILE)}
    (directory / METADATA_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _read_config(file: Path) -> CfgNode:
    # Not merge_from_file: that one falls back to unsafe YAML, which runs code that the file names.
    try:
        values = yaml.safe_load(existing_file(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not plain YAML: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a mapping of keys, got {type(values).__name__}")
    for key in UPSTREAM_ONLY_KEYS:
        values.pop(key, None)
    for key in REMOVED_MODEL_KEYS:
        if isinstance(values.get("MODEL"), dict):
            values["MODEL"].pop(key, None)
    cfg = get_cfg()
    add_transfiner_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(values))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} does not fit this version's configuration: {error}") from error
    return cfg


def _check_classes(metadata: Mapping[str, Any], cfg: CfgNode, directory: Path) -> None:
    classes, expected = metadata["classes"], cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(classes) != expected:
        raise CheckpointError(
            f"the metadata of {directory} names {len(classes)} classes, MODEL.ROI_HEADS.NUM_CLASSES is {expected}"
        )
    if double_names := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise CheckpointError(f"the metadata of {directory} names classes twice: {', '.join(double_names)}")


def _to_stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    if not half or not tensor.is_floating_point() or name.endswith(ALWAYS_FP32):
        return tensor
    half_tensor = tensor.half()
    return half_tensor if torch.isfinite(half_tensor).all() else tensor


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
