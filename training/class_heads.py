"""The rows of a network's class-wise layers, kept by class name: classes come, go, and change their names.

Shape shorthand: K classes of the network that was, J of the one to be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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
