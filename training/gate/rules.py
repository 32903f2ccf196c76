"""What a candidate must show, as settings. All AP are fractions in 0..1; all margins are AP.

With the defaults, of 100 drawn hold-outs of 12 images, 3 let a model pass that was as good as the incumbent (masks off
by up to 3 px both), and 80 one whose masks were off by up to 2 px instead of 3.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class GateRules:
    """The gate's settings.

    Attributes:
        confidence: of every "certainly", for mask AP and boundary AP together, 0.5..1.
        resamples: of the bootstrap by image.
        seed: of the bootstrap; the same models on the same hold-out get the same verdict.
        least_gain: mask AP or boundary AP must certainly rise by more than this.
        margin: neither may fall by more than this, certain or not.
        class_margin: no class may certainly fall by more than this (of mask AP or of boundary AP).
        forgetting_margin: on no earlier hold-out may either certainly fall by more than this.
        min_images: a hold-out with fewer annotated images is tiny: nothing is certain there.
        tiny_gain: on a tiny hold-out both must rise by at least this.
        first_ap: mask AP that a first version, with nothing to compare with, must reach.
        boundary_ratio: boundary width / image diagonal; 0.02 as COCO, 0.005 as Cityscapes.
    """

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    least_gain: float = 0.0
    margin: float = 0.005
    class_margin: float = 0.05
    forgetting_margin: float = 0.02
    min_images: int = 10
    tiny_gain: float = 0.05
    first_ap: float = 0.05
    boundary_ratio: float = 0.02

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"the gate's {name} is {value}; expected {low:g} to {high:g}")


_RANGES = {
    "confidence": (0.5, 0.9999),
    "resamples": (100, 1_000_000),
    "least_gain": (0, 1),
    "margin": (0, 1),
    "class_margin": (0, 1),
    "forgetting_margin": (0, 1),
    "min_images": (1, 1_000_000),
    "tiny_gain": (0, 1),
    "first_ap": (0, 1),
    "boundary_ratio": (0.0001, 0.5),
}


def parse_rules(values: Mapping[str, Any]) -> GateRules:
    """Rules from a JSON object; what is not named keeps its default.

    Raises:
        ValueError: an entry is unknown or no number of the right kind.
    """
    names = [field.name for field in fields(GateRules)]
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            meant = f"did you mean {close[0]}?" if close else f"expected some of {', '.join(names)}"
            raise ValueError(f"the gate has no rule {name!r}; {meant}")
        kind = int if name in _WHOLE else float
        if isinstance(value, bool) or not isinstance(value, int | float) or value != kind(value):
            raise ValueError(f"the gate's {name} is {value!r}; expected a{' whole' if kind is int else ''} number")
        given[name] = kind(value)
    return GateRules(**given)


_WHOLE = ("resamples", "seed", "min_images")
