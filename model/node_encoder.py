"""From places of the quadtree to tokens of a sequence: the node encoder (section 3.3).

Shape shorthand: T tokens of all sequences, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CUES = ("feature", "coarse", "position", "context")


@dataclass(frozen=True)
class NodeCues:
    """What is known of T places.

    Attributes:
        feature: (T, C) FPN feature at the place and its level.
        coarse: (T,) coarse mask probability there.
        position: (T, C) encoding of the place relative to the RoI.
        context: (T, 9 * C) features of the 3x3 neighbourhood, or None where that cue is off.
    """

    feature: Tensor
    coarse: Tensor
    position: Tensor
    context: Tensor | None = None

    def reordered(self, order: Tensor) -> NodeCues:
        """The cues of the places at ``order``."""
        context = None if self.context is None else self.context[order]
        return NodeCues(self.feature[order], self.coarse[order], self.position[order], context)


def join_cues(parts: list[NodeCues]) -> NodeCues:
    """Cues of several runs of places, one after another."""
    contexts = [part.context for part in parts if part.context is not None]
    return NodeCues(
        torch.cat([part.feature for part in parts]),
        torch.cat([part.coarse for part in parts]),
        torch.cat([part.position for part in parts]),
        torch.cat(contexts) if contexts else None,
    )


class NodeEncoder:
    """Fuses the cues to one token of C channels a place.

    The released code fuses feature and coarse probability and adds the position in every encoder layer; the paper
    adds it here, once, and has the context as a fourth cue. Not a module itself: the refiner registers ``layers``.

    Args:
        cues: which of ``CUES`` to use; at least one besides the position.
    """

    def __init__(self, channels: int, cues: tuple[str, ...]) -> None:
        unknown = set(cues) - set(CUES)
        if unknown or not set(cues) - {"position"}:
            raise ValueError(f"CUES must be among {CUES}, one of them not the position; got {cues}")
        self.cues = cues
        widths = {"feature": channels, "coarse": 1, "context": channels}
        width = sum(widths[cue] for cue in cues if cue != "position")
        self.layers: dict[str, nn.Module] = {"conv_fuse": nn.Conv2d(width, channels, 1)}
        if "context" in cues:
            self.layers["context"] = nn.Linear(9 * channels, channels)

    def __call__(self, given: NodeCues) -> Tensor:
        """Tokens (T, C), without position.

        ``conv_fuse`` is a linear map that checkpoints hold as a 1x1 convolution.
        """
        parts = []
        if "feature" in self.cues:
            parts.append(given.feature)
        if "coarse" in self.cues:
            parts.append(given.coarse[:, None].to(given.feature.dtype))
        if "context" in self.cues:
            parts.append(self.layers["context"](given.context))
        fuse = self.layers["conv_fuse"]
        assert isinstance(fuse, nn.Conv2d)
        return F.linear(torch.cat(parts, dim=1), fuse.weight.flatten(1), fuse.bias)
