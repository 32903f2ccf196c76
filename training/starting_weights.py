"""Weights of one network as the start of another that differs in its box branch."""

from __future__ import annotations

import logging
import re
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)
State = dict[str, Tensor]
_HEAD = re.compile(r"roi_heads\.box_head\.(?!\d)(.+)")
_SCORES = re.compile(r"roi_heads\.box_predictor\.cls_score\.(.+)")
_DELTAS = re.compile(r"roi_heads\.box_predictor\.bbox_pred\.(.+)")


def start_from(network: nn.Module, state: State) -> None:
    """Load a state as far as it fits; a single box head starts every stage of a cascade (Cascade R-CNN).

    Raises:
        ValueError: not one of the network's weights is in the state.
    """
    heads: Any = network.roi_heads
    if hasattr(heads, "num_cascade_stages") and any(_HEAD.fullmatch(key) for key in state):
        state = _cascaded(state, [tuple(one.box2box_transform.weights) for one in heads.box_predictor])
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


def _cascaded(state: State, weights: list[tuple[float, ...]]) -> State:
    """Copy the box head to each stage. `weights` are each stage's divisors of the deltas (dx, dy, dw, dh)."""
    copied: State = {}
    for key, value in state.items():
        head, scores, deltas = (pattern.fullmatch(key) for pattern in (_HEAD, _SCORES, _DELTAS))
        for stage, stage_weights in enumerate(weights):
            if head:
                copied[f"roi_heads.box_head.{stage}.{head[1]}"] = value
            elif scores:
                copied[f"roi_heads.box_predictor.{stage}.cls_score.{scores[1]}"] = value
            elif deltas:
                scale = value.new_tensor(stage_weights) / value.new_tensor(weights[0])
                mean = value.reshape(-1, 4, *value.shape[1:]).mean(0)  # one box for all classes
                copied[f"roi_heads.box_predictor.{stage}.bbox_pred.{deltas[1]}"] = mean * scale.reshape(
                    4, *[1] * (mean.dim() - 1)
                )
        if not (head or scores or deltas):
            copied[key] = value
    return copied
