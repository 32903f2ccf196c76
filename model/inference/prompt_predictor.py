"""The predictor of prompts: a box, clicks or an earlier mask of an image in, one object out.

Every prompt looks at a view of its own, so only an image's pixels and the last answer are kept: a prompt costs the same
whether it is the first or the tenth, and as much on a photograph of 40 megapixels as on a small one.

Shape shorthand: V views, H x W an image's size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes, distance_transform_edt

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.state_dict import load_weights
from model.inference.precision import choose_precision, to_bf16
from model.inference.predictor import choose_device
from model.instance import Instance
from model.prompts.answers import (
    FINER,
    FIRST_CLICKS,
    Point,
    Prompt,
    as_instance,
    cells_within,
    changed_part,
    first_view,
    is_cut,
    likely_values,
    look,
    mask_of_view,
    nearer_view,
    prompt_steps,
    view_of_change,
)
from model.prompts.detector import PromptedDetector
from model.prompts.network import PromptNetwork
from model.prompts.second_look import is_large, look_twice, second_look
from model.prompts.views import View, resampled

#: Where the promptable network's weights lie in a checkpoint that has a detector, too.
PREFIX = "prompts."
#: A first click means a detected object if it lies at least so deep in it, as a share of the object's deepest place.
#: Of the photographs' validation images without DAVIS, 70 things and 40 parts of them: with 0.5 a click on a garment
#: gave its wearer, with 0.9 fewer clicks on things gave them.
LEAST_DEPTH = 0.75
#: Weaker detections are ignored; of the others at most so many are looked at.
LEAST_SCORE, MOST_DETECTIONS = 0.25, 3
#: A change that ends at the border of its nearer view, in a straight line, is looked at in a larger one.
MOST_NEAR_LOOKS = 2
#: The detector sees an image with its longer side reduced to this.
DETECTED_SIDE_PX = 1024


@dataclass(slots=True)
class PromptPredictor:
    """Answers prompts with masks; holds no state between calls.

    Attributes:
        network: in evaluation mode, on `device`.
        version: of the checkpoint.
        detector: finds the objects that a first click can mean; `network` is its promptable one. None without one.
        precision: in which `network` computes, see `model.inference.precision`.
    """

    network: PromptNetwork
    version: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    detector: PromptedDetector | None = None

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
        has_detector = any(name.startswith(PREFIX) for name in state)
        network = PromptedDetector(cfg) if has_detector else PromptNetwork(cfg)
        load_weights(network, state, source=str(directory))
        network = network.to(place).eval()
        chosen_precision = choose_precision(precision, place, metadata)
        if chosen_precision == "bf16":
            to_bf16(network)
        if isinstance(network, PromptedDetector):
            return cls(network.prompts, str(metadata["version"]), place, chosen_precision, network)
        return cls(network, str(metadata["version"]), place, chosen_precision)

    def image(self, image_rgb: np.ndarray) -> PromptedImage:
        """An image to be prompted: uint8 H x W x 3, RGB, turned as its EXIF says."""
        return PromptedImage(self, image_rgb)

    def prompt(self, image_rgb: np.ndarray, prompt: Prompt) -> Instance:
        """The object that one prompt means."""
        return self.image(image_rgb).prompt(prompt)

    def look(
        self,
        image_rgb: np.ndarray,
        views: Sequence[View],
        prompts: Sequence[Prompt],
        *,
        is_mirrored: bool = True,
        refine: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Refined and coarse probabilities (V, 128, 128) of the views' masks, and their expected IoUs (V,)."""
        return look(self.network, image_rgb, views, prompts, device=self.device, is_mirrored=is_mirrored, refine=refine)


@dataclass(slots=True)
class PromptedImage:
    """One image and the predictor that looks at it; remembers the answer to the last prompt for the next click."""

    predictor: PromptPredictor
    image_rgb: np.ndarray
    _last_answer: tuple[Prompt, Instance] | None = None
    _first_object: tuple[Point, Instance | None] | None = None
    _boxes: list[tuple[float, tuple[float, float, float, float]]] | None = None

    def prompt(self, prompt: Prompt) -> Instance:
        """The object that a prompt means; never empty: where nothing is likely, the likeliest part of the view.

        Clicks are answered in their order, each with the mask that those before it gave, as the network learned it.
        """
        answer = self._common_object(prompt)
        steps = prompt_steps(prompt, FIRST_CLICKS if answer is None else 1)
        if self._last_answer is not None and self._last_answer[0] in steps:
            earlier_prompt, answer = self._last_answer
            steps = steps[steps.index(earlier_prompt) + 1 :]
        elif answer is not None:
            steps = steps[1:]
        for step in steps:
            answer = self._answer(step, answer)
        assert answer is not None
        self._last_answer = (prompt, answer)
        return answer

    def _common_object(self, prompt: Prompt) -> Instance | None:
        """The common object in whose middle the first click is; None without one, and for other prompts."""
        if prompt.box_xyxy is not None or prompt.mask_hw is not None or not prompt.points[0][2]:
            return None
        if self._first_object is None or self._first_object[0] != prompt.points[0]:
            self._first_object = (prompt.points[0], self._object_around(prompt.points[0]))
        return self._first_object[1]

    def _object_around(self, click: Point) -> Instance | None:
        """The common object in whose middle a click is."""
        (x, y, _), shape_hw = click, self.image_rgb.shape[:2]
        boxes = [(score, box) for score, box in self._detections() if box[0] <= x <= box[2] and box[1] <= y <= box[3]]
        prompts = [Prompt(box_xyxy=box, points=(click,)) for _, box in boxes[:MOST_DETECTIONS]]
        views = [first_view(prompt, shape_hw) for prompt in prompts]
        instance = None
        if views:
            values, _, scores = self.predictor.look(self.image_rgb, views, prompts)
            weights = [
                box_score * float(score) if _depth(view, value, click) >= LEAST_DEPTH else 0.0
                for (box_score, _), score, view, value in zip(boxes, scores, views, values, strict=False)
            ]
            k = int(np.argmax(weights))
            if weights[k] > 0:
                finer = self._look_again(views[k], values[k], prompts[k])
                instance = as_instance(views[k], finer, float(scores[k]), prompts[k], shape_hw)
        return instance

    def _join(self, prompt: Prompt, so_far: Instance) -> Instance | None:
        """The object so far joined with the common one around the newest click; None where the click means no other."""
        (x, y, is_positive), shape_hw = prompt.points[-1], self.image_rgb.shape[:2]
        if not is_positive or prompt.box_xyxy is not None or len(prompt.points) > FIRST_CLICKS:
            return None
        if so_far.mask_hw[min(int(y), shape_hw[0] - 1), min(int(x), shape_hw[1] - 1)]:
            return None
        second = self._object_around(prompt.points[-1])
        if second is None or second.probabilities is None or so_far.probabilities is None:
            return None
        view = first_view(replace(prompt, mask_hw=so_far.mask_hw | second.mask_hw), shape_hw)
        side = FINER * second.probabilities.values.shape[0]
        parts = [
            resampled(patch.values, patch.box_xyxy, view.box_xyxy, (side, side))
            for patch in (so_far.probabilities, second.probabilities)
        ]
        return as_instance(view, np.maximum(*parts), min(so_far.score, second.score), prompt, shape_hw)

    def _detections(self) -> list[tuple[float, tuple[float, float, float, float]]]:
        """Scores and boxes of the common objects in the image, best first; they are looked for once."""
        if self._boxes is None:
            self._boxes = []
            if self.predictor.detector is not None:
                small = Image.fromarray(self.image_rgb)
                small.thumbnail((DETECTED_SIDE_PX, DETECTED_SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
                pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)
                with torch.inference_mode():
                    detections = self.predictor.detector.detect(pixels, self.image_rgb.shape[:2])
                rows = zip(detections.scores.tolist(), detections.boxes_xyxy.tolist(), strict=True)
                self._boxes = [(score, (*box,)) for score, box in rows if score >= LEAST_SCORE]
        return self._boxes

    def _answer(self, prompt: Prompt, so_far: Instance | None) -> Instance:
        instance = None if so_far is None else self._join(prompt, so_far)
        if instance is not None:
            return instance
        shape_hw = self.image_rgb.shape[:2]
        if so_far is not None:
            return self._correct(prompt, so_far)
        view = first_view(prompt, shape_hw)
        if prompt.box_xyxy is None and prompt.mask_hw is None:
            values, _ = self._look(view, prompt, refine=False)
            near_view = nearer_view(view, values, prompt)
            if near_view is not None:
                prompt = replace(prompt, mask_hw=view.to_image(values, shape_hw) >= 0.5)
                view = near_view
        return as_instance(view, *self._look_closely(view, prompt), prompt, shape_hw)

    def _correct(self, prompt: Prompt, so_far: Instance) -> Instance:
        """The object after a click: as before but for the part that the click changed, a small one seen from nearer.

        The nearer view is that of FocusCut (Lin et al., 2022), the part that of FocalClick (Chen et al., 2022).
        """
        shape_hw, point = self.image_rgb.shape[:2], prompt.points[-1]
        mask_prompt = replace(prompt, mask_hw=so_far.mask_hw)
        view = first_view(mask_prompt, shape_hw)
        first_values, score = self._look(view, mask_prompt, is_mirrored=False, refine=False)
        side = FINER * first_values.shape[0]
        column, row = (view.to_view(np.array([point[:2]]))[0] * side / view.side).astype(int).tolist()
        if so_far.probabilities is None or not (0 <= column < side and 0 <= row < side):
            return as_instance(view, *self._look_closely(view, mask_prompt), prompt, shape_hw)
        values = resampled(first_values, view.box_xyxy, view.box_xyxy, (side, side))
        patch = so_far.probabilities
        earlier_values = resampled(patch.values, patch.box_xyxy, view.box_xyxy, (side, side))
        part = changed_part(values, earlier_values, (row, column))
        base = earlier_values if part is None else values
        near_view = view_of_change(view, part, point)
        for _ in range(MOST_NEAR_LOOKS):
            if near_view is None:
                near_values, score = self._look_closely(view, mask_prompt)
                values = resampled(near_values, view.box_xyxy, view.box_xyxy, (side, side))
                part = changed_part(values, earlier_values, (row, column))
                break
            near_prompt = replace(prompt, box_xyxy=None, mask_hw=mask_of_view(view, base, shape_hw))
            near_values, _ = self._look(near_view, near_prompt, is_mirrored=False)
            near_values = resampled(near_values, near_view.box_xyxy, view.box_xyxy, (side, side))
            values = np.where(cells_within(view, near_view.box_xyxy, side), near_values, base)
            part = changed_part(values, earlier_values, (row, column))
            if part is None or not is_cut(part, view, near_view, shape_hw):
                break
            near_view = view_of_change(view, part, point)
        if part is not None:
            # The rim of the change, too, or the outline would be cut in steps there.
            earlier_values = np.where(binary_dilation(part, iterations=FINER), values, earlier_values)
        return as_instance(view, earlier_values, score, prompt, shape_hw)

    def _look_closely(self, view: View, prompt: Prompt) -> tuple[np.ndarray, float]:
        """Probabilities (s', s') of a view, a large one looked at twice, and the expected IoU."""
        values, score = self._look(view, prompt, refine=not is_large(view))
        return self._look_again(view, values, prompt), score

    def _look_again(self, view: View, values: np.ndarray, prompt: Prompt) -> np.ndarray:
        """A first look's probabilities after a second look, which only large views have."""
        if not is_large(view):
            return values
        likely, predictor = likely_values(values, view, prompt), self.predictor
        return second_look(predictor.network, self.image_rgb, [view], likely[None], device=predictor.device)[0][0]

    def _look(
        self, view: View, prompt: Prompt, *, is_mirrored: bool = True, refine: bool = True
    ) -> tuple[np.ndarray, float]:
        values, _, scores = self.predictor.look(
            self.image_rgb, [view], [prompt], is_mirrored=is_mirrored, refine=refine
        )
        return values[0], float(scores[0])

    def prompt_boxes(self, boxes_xyxy: Sequence[tuple[float, float, float, float]]) -> list[Instance]:
        """The objects in several boxes, such as a detector's."""
        prompts = [Prompt(box_xyxy=box) for box in boxes_xyxy]
        shape_hw = self.image_rgb.shape[:2]
        views = [first_view(prompt, shape_hw) for prompt in prompts]
        if not views:
            return []
        predictor = self.predictor
        values, _, scores = look_twice(
            predictor.network, self.image_rgb, views, prompts, device=predictor.device, is_mirrored=True
        )
        return [
            as_instance(view, value, float(score), prompt, shape_hw)
            for view, value, score, prompt in zip(views, values, scores, prompts, strict=True)
        ]


def _depth(view: View, values: np.ndarray, point: Point) -> float:
    """How deep a point lies in the mask of a view's probabilities (s, s), holes filled: 0 outside, 1 at its deepest."""
    depths = distance_transform_edt(np.pad(binary_fill_holes(values >= 0.5), 1))[1:-1, 1:-1]
    side = values.shape[0]
    column, row = (view.to_view(np.array([point[:2]]))[0] * side / view.side).astype(int).clip(0, side - 1).tolist()
    return float(depths[row, column] / max(float(depths.max()), 1.0))
