"""Precision of inference: fp32, or bfloat16 on processors that are fast at it.

In bf16 the frozen norms are folded into their convolutions, weights and activations are bfloat16, and maps lie
channels-last, the layout of the processor's bf16 kernels; RoIs are read from a table of the maps' cells
(`model.mask_head.roi_features`). Boxes, scores, proposals and the propagation of masks stay in fp32.
`torch.autocast` gains half as much: norms between convolutions undo the layout, and every call converts weights again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

from model.mask_head.roi_features import RefinementPooler, TablePooler
from model.prompts.detector import PromptedDetector
from model.prompts.network import PromptNetwork

PRECISIONS = ("fp32", "bf16", "auto")
#: The most mask and boundary AP that bf16 may lose, as a fraction, for `auto` to choose it.
MOST_AP_LOST = 0.003
#: A processor is fast at bf16 from this much of its fp32 speed on; without instructions for it, it is slower.
FAST_FROM = 1.5
_PROBE_EDGE, _PROBE_REPEATS = 384, 5


def choose_precision(setting: str, device: torch.device | str, metadata: Mapping[str, Any]) -> str:
    """`fp32` or `bf16` for a setting, a device and the checkpoint's metadata.

    `auto` is bf16 on a CPU that is fast at it, for weights whose metadata says what bf16 costs them and that this is
    at most `MOST_AP_LOST` (`transfiner benchmark precision --card` measures it).

    Raises:
        ValueError: an unknown precision, or bf16 on another device than a CPU.
    """
    if setting not in PRECISIONS:
        raise ValueError(f"precision is {setting!r}, expected one of {', '.join(PRECISIONS)}")
    on_cpu = torch.device(device).type == "cpu"
    if setting == "bf16" and not on_cpu:
        raise ValueError(f"precision bf16 is for CPUs, the device is {device}; use auto (GPUs run in mixed precision)")
    if setting != "auto":
        return setting
    return "bf16" if on_cpu and is_measured(metadata) and has_fast_bf16() else "fp32"


def is_measured(metadata: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's metadata records, for these very weights, that bf16 keeps its mask and boundary AP."""
    measurement = metadata.get("bf16")
    if not isinstance(measurement, Mapping) or measurement.get("digest") != metadata.get("digest"):
        return False
    return keeps_ap(measurement)


def keeps_ap(measurement: Mapping[str, Any]) -> bool:
    """Whether bf16 loses at most `MOST_AP_LOST` of mask and of boundary AP, by a measurement's differences."""
    return all(float(measurement[kind]["difference"]) >= -MOST_AP_LOST for kind in ("mask_ap", "boundary_ap"))


@functools.cache
def has_fast_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices clearly faster than fp32 ones; measured once, in 0.1 s."""
    matrices = [torch.ones(_PROBE_EDGE, _PROBE_EDGE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    seconds = [[_product_seconds(matrix) for matrix in matrices] for _ in range(_PROBE_REPEATS)]
    fp32_s, bf16_s = (min(column) for column in zip(*seconds[1:], strict=True))
    return fp32_s >= FAST_FROM * bf16_s


def _product_seconds(matrix: Tensor) -> float:
    start_s = time.perf_counter()
    with torch.inference_mode():
        matrix @ matrix
    return time.perf_counter() - start_s


def to_bf16(network: nn.Module) -> None:
    """Make a network of inference compute in bf16 on a CPU, in place.

    Raises:
        ValueError: a network of another kind, or one with deformable convolutions, which know no bf16.
    """
    if isinstance(network, PromptedDetector):
        fold_norms(network)
        _convert(network.detector, fp32_outputs=True)
        _convert_prompts(network.prompts)
    elif isinstance(network, PromptNetwork):
        _convert_prompts(network)
    elif isinstance(network, GeneralizedRCNN) and not _has_deformable_convolutions(network):
        fold_norms(network)
        _convert_two_stage(network)
    else:
        raise ValueError(
            f"precision bf16 is not available for {type(network).__name__} with this backbone; use fp32 or auto"
        )


def _has_deformable_convolutions(network: nn.Module) -> bool:
    return any("deform" in type(module).__name__.lower() for module in network.modules())


def _convert_two_stage(network: Any) -> None:
    heads = network.roi_heads
    _convert(network.backbone)
    _convert(network.proposal_generator.rpn_head, fp32_outputs=True)
    # Cascade R-CNN has three of them.
    for box_head in heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]:
        _convert(box_head, fp32_outputs=True)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            # RefinementPooler pools by itself.
            if isinstance(child, ROIPooler) and not isinstance(parent, RefinementPooler):
                setattr(parent, name, TablePooler(child))
    if not heads.mask_on:
        return
    if isinstance(heads.mask_pooler, RefinementPooler) and heads.mask_pooler.conv_norm_relus_semantic is not None:
        _convert(heads.mask_pooler.conv_norm_relus_semantic)
    # Our mask head takes bf16 features and gives fp32 masks by itself; other heads' layers give fp32 logits.
    _convert_weights(heads.mask_head)


def _convert_prompts(network: PromptNetwork) -> None:
    _convert(network.trunk)
    _convert(network.prompt_stem)
    _convert_weights(network.pyramid)
    _convert_weights(network.mask_head)


def _convert_weights(module: nn.Module) -> None:
    module.to(dtype=torch.bfloat16)
    module.to(memory_format=torch.channels_last)


def _convert(module: nn.Module, *, fp32_outputs: bool = False) -> None:
    """Make a module compute in bf16 from tensors of any precision; with `fp32_outputs` it gives fp32 tensors."""
    _convert_weights(module)
    module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.bfloat16))
    if fp32_outputs:
        module.register_forward_hook(lambda _, __, outputs: _cast(outputs, torch.float32))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same nest of tuples, lists and dicts with floating tensors in `dtype`; bf16 maps channels-last."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        if value.dim() == 4 and dtype == torch.bfloat16:
            return value.to(dtype, memory_format=torch.channels_last)
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(part, dtype) for part in value)
    return value


Norm = FrozenBatchNorm2d | nn.BatchNorm2d


def fold_norms(network: nn.Module) -> None:
    """Multiply the norms that stand behind a convolution into its weights, in place; for inference alone."""
    for module, convolution in _convolutions_with_norms(network):
        norm = module.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        convolution.weight = nn.Parameter((convolution.weight * scale[:, None, None, None]).detach(), False)
        convolution.bias = nn.Parameter(shift.detach(), False)
        module.norm = None if module is convolution else nn.Identity()


def _convolutions_with_norms(network: nn.Module) -> Iterator[tuple[Any, nn.Conv2d]]:
    """(module with a `norm`, its convolution): detectron2's Conv2d itself, or a module with `conv` beside `norm`."""
    for module in network.modules():
        if isinstance(getattr(module, "norm", None), Norm):
            convolution = module if isinstance(module, nn.Conv2d) else getattr(module, "conv", None)
            if isinstance(convolution, nn.Conv2d):
                yield module, convolution
