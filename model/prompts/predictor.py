"""The predictor of prompts: a box, clicks or an earlier mask of an image in, one object out.

Every prompt looks at a view of its own, so what is kept of an image is its pixels: a prompt costs the same whether it
is the first or the tenth, and as much on a photograph of 40 megapixels as on a small one.

Shape shorthand: V views, H x W an image's size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.state_dict import load_weights
from model.instance import Instance
from model.precision import choose_precision, to_bf16
from model.predictor import choose_device
from model.prompts.answers import Prompt, as_instance, first_view, look, nearer_view
from model.prompts.network import PromptNetwork
from model.prompts.views import View

#: Where the promptable network's weights lie in a checkpoint that has a detector, too.
PREFIX = "prompts."


@dataclass(slots=True)
class PromptPredictor:
    """Answers prompts with masks; holds no state between calls.

    Attributes:
        network: in evaluation mode, on `device`.
        version: of the checkpoint.
        precision: in which `network` computes, see `model.precision`.
    """

    network: PromptNetwork
    version: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"

    @classmethod
    def from_checkpoint(
        cls, directory: Path | str, *, device: str = "auto", precision: str = "fp32"
    ) -> PromptPredictor:
        """Load the promptable network of a checkpoint, with or without a detector beside it.

        Raises:
            CheckpointError, ValueError: no such checkpoint, no such device, or a precision that it has not.
        """
        place = choose_device(device)
        cfg, state, metadata = load_checkpoint(directory)
        network = PromptNetwork(cfg)
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        load_weights(network, own or state, source=str(directory))
        network = network.to(place).eval()
        chosen = choose_precision(precision, place, metadata)
        if chosen == "bf16":
            to_bf16(network)
        return cls(network, str(metadata["version"]), place, chosen)

    def image(self, image_rgb: np.ndarray) -> PromptedImage:
        """An image to be prompted: uint8 H x W x 3, RGB, turned as its EXIF says."""
        return PromptedImage(self, image_rgb)

    def prompt(self, image_rgb: np.ndarray, prompt: Prompt) -> Instance:
        """The object that one prompt means."""
        return self.image(image_rgb).prompt(prompt)

    def look(
        self, image_rgb: np.ndarray, views: Sequence[View], prompts: Sequence[Prompt]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Refined and coarse probabilities (V, 128, 128) of the views' masks, and their expected IoUs (V,)."""
        return look(self.network, image_rgb, views, prompts, device=self.device)


@dataclass(slots=True)
class PromptedImage:
    """One image and the predictor that looks at it."""

    predictor: PromptPredictor
    image_rgb: np.ndarray

    def prompt(self, prompt: Prompt, *, refine: bool = True) -> Instance:
        """The object that a prompt means; never empty: where nothing is likely, the likeliest part of the view."""
        shape_hw = self.image_rgb.shape[:2]
        view = first_view(prompt, shape_hw)
        values, scores = self._look([view], [prompt], refine)
        if prompt.box_xyxy is None and prompt.mask_hw is None:
            nearer = nearer_view(view, values[0], prompt)
            if nearer is not None:
                seen = Prompt(points=prompt.points, mask_hw=view.to_image(values[0], shape_hw) >= 0.5)
                view = nearer
                values, scores = self._look([view], [seen], refine)
        return as_instance(view, values[0], float(scores[0]), prompt, shape_hw)

    def prompt_boxes(
        self, boxes_xyxy: Sequence[tuple[float, float, float, float]], *, refine: bool = True
    ) -> list[Instance]:
        """The objects in several boxes, such as a detector's."""
        if not len(boxes_xyxy):
            return []
        prompts = [Prompt(box_xyxy=box) for box in boxes_xyxy]
        shape_hw = self.image_rgb.shape[:2]
        views = [first_view(prompt, shape_hw) for prompt in prompts]
        values, scores = self._look(views, prompts, refine)
        return [
            as_instance(view, value, float(score), prompt, shape_hw)
            for view, value, score, prompt in zip(views, values, scores, prompts, strict=True)
        ]

    def _look(self, views: Sequence[View], prompts: Sequence[Prompt], refine: bool) -> tuple[np.ndarray, np.ndarray]:
        refined, coarse, scores = self.predictor.look(self.image_rgb, views, prompts)
        return refined if refine else coarse, scores
