"""Answers interactive jobs: the annotator's prompt in percent -> the promptable model -> one object in pixels."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.errors import TaskError
from backend.queue.job_queue import PredictionJob
from backend.settings import Settings
from integration.label_studio.prompts import PromptFields
from integration.regions.prompts import prompt_in_pixels
from model.instance import Instance

if TYPE_CHECKING:
    from model.inference.prompt_predictor import PromptedImage, PromptPredictor

log = logging.getLogger(__name__)
#: Pixels of decoded images that are kept for the next prompt on them.
KEPT_BYTES = 256 << 20
#: Images whose last answer is kept, so that the next click does not compute the earlier ones again.
KEPT_ANSWERS = 8
#: Side of the image that a newly loaded model is tried on.
VIEW_PX = 64


class PromptRunner:
    """The promptable model of the settings, loaded with the first prompt, and the images last prompted."""

    def __init__(self, settings: Settings, load: Callable[[Settings], PromptPredictor] | None = None) -> None:
        self.settings = settings
        self._load = load or load_prompt_predictor
        self._predictor: PromptPredictor | None = None
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._prompted: OrderedDict[tuple[str, str], PromptedImage] = OrderedDict()

    @property
    def precision(self) -> str:
        """Precision of the loaded predictor."""
        return self._predictor.precision if self._predictor else "fp32"

    def answer(self, job: PredictionJob, image_rgb: np.ndarray) -> Instance:
        """Predict the object of a job's prompt, with the annotator's label.

        Raises:
            TaskError: there is no promptable model, it has another version, or the prompt is empty.
        """
        from model.prompts.answers import Prompt

        predictor = self._warm(job.model_version)
        try:
            fields = PromptFields(**(job.prompt or {}))  # type: ignore[typeddict-item]
            prompt = Prompt(**vars(prompt_in_pixels(fields, image_rgb.shape[:2])))
        except (ValueError, KeyError) as error:
            raise TaskError(f"The prompt cannot be used: {error}.", "Draw a box or click into the object.") from error
        prompted = self._prompted.get((job.project, job.image))
        if prompted is None or prompted.image_rgb is not image_rgb or prompted.predictor is not predictor:
            prompted = self._prompted[job.project, job.image] = predictor.image(image_rgb)
            while len(self._prompted) > KEPT_ANSWERS:
                self._prompted.popitem(last=False)
        return replace(prompted.prompt(prompt), label=fields["label"])

    def remembered(self, job: PredictionJob) -> np.ndarray | None:
        """The decoded image of a job that was prompted before."""
        with self._lock:
            return self._images.get((job.project, job.image))

    def remember(self, job: PredictionJob, image_rgb: np.ndarray) -> None:
        """Keep an image for the next prompt; the oldest are dropped beyond `KEPT_BYTES`."""
        with self._lock:
            self._images[job.project, job.image] = image_rgb
            self._images.move_to_end((job.project, job.image))
            while len(self._images) > 1 and sum(image.nbytes for image in self._images.values()) > KEPT_BYTES:
                self._images.popitem(last=False)

    def warm(self) -> None:
        """Load and try the model now, so that the first prompt does not wait for it."""
        self._predictor = self._load(self.settings)
        self._predictor.image(np.zeros((VIEW_PX, VIEW_PX, 3), np.uint8)).prompt_boxes([(0, 0, VIEW_PX, VIEW_PX)])

    @property
    def version(self) -> str:
        """Version of the loaded model; "" before the first prompt."""
        return self._predictor.version if self._predictor else ""

    @property
    def facts(self) -> tuple[dict[str, Any], ...]:
        """Version, size and device of the model, for the status page."""
        if self._predictor is None:
            return ()
        size = sum(weight.nbytes for weight in self._predictor.network.parameters())
        return ({"version": self.version, "mib": round(size / 2**20, 1), "device": str(self._predictor.device)},)

    def _warm(self, version: str) -> PromptPredictor:
        if self._predictor is None or self._predictor.version != version:
            try:
                self._predictor = self._load(self.settings)
            except (ValueError, OSError) as error:
                raise TaskError(
                    f"The promptable model cannot be loaded: {error}.",
                    "Set TRANSFINER_PROMPT_MODEL to a checkpoint with a promptable network.",
                ) from error
            log.info("promptable model %s is loaded", self._predictor.version)
        if self._predictor.version != version:
            raise TaskError(
                f"The API asked for the promptable model {version!r}, this worker has {self._predictor.version!r}.",
                "Give API and workers the same TRANSFINER_PROMPT_MODEL.",
            )
        return self._predictor


def load_prompt_predictor(settings: Settings) -> PromptPredictor:
    """The predictor of `settings.prompt_model`. Raises CheckpointError, ValueError."""
    from model.inference.prompt_predictor import PromptPredictor

    return PromptPredictor.from_checkpoint(settings.prompt_model, device=settings.device, precision=settings.precision)
