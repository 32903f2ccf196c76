"""The predictor behind label-studio-ml's own server, for people who deploy that way already.

Needs `label-studio-ml` (1.0.9 of PyPI, or the 2.x of its repository); this project's own server does not. Run it as

    gunicorn "integration.label_studio_ml:create_app()"

Settings are the variables of our own server: TRANSFINER_MODEL (checkpoint directory), TRANSFINER_DEVICE,
TRANSFINER_LABEL_STUDIO_URL and TRANSFINER_LABEL_STUDIO_API_KEY, else those of label-studio-ml: LABEL_STUDIO_URL
and LABEL_STUDIO_API_KEY. Smart tools are answered by the promptable model, TRANSFINER_PROMPT_MODEL. There is no queue
here, no deferred answer and no training: those need our own server.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from label_studio_ml.model import LabelStudioMLBase

from integration.images.fetch import FetchSettings, ImageError, ImageFetcher
from integration.label_studio.label_config import LabelConfig, Output, parse_label_config
from integration.label_studio.prompts import (
    EarlierPrompt,
    PromptError,
    read_prompt,
    region_ids,
    require_place,
    with_earlier,
)
from integration.label_studio.tasks import Prediction
from integration.regions.prompts import PixelPrompt, build_answer, prompt_in_pixels
from integration.regions.write import build_prediction
from model.instance import Instance

log = logging.getLogger(__name__)
_LOADING = threading.Lock()
#: 2.x keeps a version for each project, and sends it with /setup; 1.0.9 always says "INITIAL" there.
_KEEPS_VERSIONS = hasattr(LabelStudioMLBase, "use_label_config")


class PredictorLike(Protocol):
    """What is used of `model.inference.predictor.Predictor`."""

    labels: tuple[str, ...]
    version: str

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Instance]]:
        """Instances of each image, in order."""


class PromptPredictorLike(Protocol):
    """What is used of `model.inference.prompt_predictor.PromptPredictor`."""

    version: str

    def prompt(self, image_rgb: np.ndarray, prompt: Any) -> Instance:
        """The object that one prompt means."""


SHIPPED = Path(__file__).parents[1] / "model" / "weights" / "photos"
#: The last prompt of each task, by task id; the oldest are forgotten.
_EARLIER: OrderedDict[str, EarlierPrompt] = OrderedDict()
MOST_EARLIER = 1000


@functools.cache
def _load(module: str, kind: str, variable: str) -> Any:
    # Imported by name: this room is free of torch, except in a process that was started to run the model.
    predictor = getattr(importlib.import_module(module), kind)
    device = os.environ.get("TRANSFINER_DEVICE") or "auto"
    return predictor.from_checkpoint(os.environ.get(variable) or SHIPPED, device=device)


def shared_prompt_predictor() -> PromptPredictorLike:
    """The promptable model of this process, loaded with the first prompt.

    Raises whatever `PromptPredictor.from_checkpoint` raises.
    """
    with _LOADING:
        predictor: PromptPredictorLike = _load(
            "model.inference.prompt_predictor", "PromptPredictor", "TRANSFINER_PROMPT_MODEL"
        )
    return predictor


def shared_predictor() -> PredictorLike:
    """The model of this process, loaded once: label-studio-ml builds our class anew for every request.

    Raises whatever `Predictor.from_checkpoint` raises.
    """
    with _LOADING:  # two first requests at once would load it twice
        predictor: PredictorLike = _load("model.inference.predictor", "Predictor", "TRANSFINER_MODEL")
    return predictor


@functools.lru_cache(maxsize=8)
def _fetcher(settings: FetchSettings) -> ImageFetcher:
    return ImageFetcher(settings)  # keeps the access token between requests


class TransfinerModel(LabelStudioMLBase):
    """A `LabelStudioMLBase` of either version that outlines objects with Mask Transfiner."""

    #: Gives the predictor; tests and other models replace it.
    predictor_factory: ClassVar[Callable[[], PredictorLike]] = staticmethod(shared_predictor)
    #: Gives the promptable predictor.
    prompt_predictor_factory: ClassVar[Callable[[], PromptPredictorLike]] = staticmethod(shared_prompt_predictor)
    #: How predictions are drawn; tags of the label config win.
    output: ClassVar[Output] = Output()

    def setup(self) -> None:
        """Tell Label Studio the version of the checkpoint (2.x calls this on construction)."""
        self.set("model_version", self._predictor().version)

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> list[Any]:
        """One prediction a task, in order; [] for a task whose image cannot be fetched, which the log explains.

        Args:
            tasks: as Label Studio sends them.
            context: of interactive requests: boxes, clicks or strokes, answered with one object each.
            **kwargs: `login` and `password` for task data; not used.
        """
        config = parse_label_config(self.label_config or "")
        if not config.supported:
            log.error("nothing is predicted: %s", config.reason)
            return [[] for _ in tasks]
        if context:
            return [self._answer(config, task, context) for task in tasks]
        predictor = self._predictor()
        if message := config.match(predictor.labels).message:
            log.error("nothing is predicted: %s", message)
            return [[] for _ in tasks]
        return [self._predict_one(predictor, config, task) for task in tasks]

    def fit(self, *args: object, **kwargs: object) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: training inside a webhook request would block the annotator; our own server has a queue."""
        log.warning("training needs the transfiner server; this event is ignored")
        return {}

    def _predictor(self) -> PredictorLike:
        return type(self).predictor_factory()

    def _predict_one(
        self, predictor: PredictorLike, config: LabelConfig, task: Mapping[str, Any]
    ) -> Mapping[str, Any] | list[Any]:
        try:
            image = self._images().fetch(task, config.value_key)
        except ImageError as error:
            log.error("task %s: %s", task.get("id"), error)
            return []
        (instances,) = predictor([image])
        height, width = image.shape[:2]
        prediction, report = build_prediction(
            instances,
            config,
            width=width,
            height=height,
            model_version=predictor.version,
            output=self.output,
            seed=f"{task.get('id')}:{task['data'].get(config.value_key)}",
        )
        log.info("task %s: left out %s", task.get("id"), dict(report))
        if not _KEEPS_VERSIONS:
            # Label Studio asks again for tasks without a prediction of the version that /setup told it. 1.0.9 tells
            # it "INITIAL", which Label Studio also stores where we name none: so no task is predicted twice.
            return {"result": prediction["result"], "score": prediction["score"]}
        return prediction

    def _answer(self, config: LabelConfig, task: Mapping[str, Any], context: Mapping[str, Any]) -> Prediction:
        """The object that a prompt means; an empty prediction, and the reason in the log, where it means none."""
        predictor = type(self).prompt_predictor_factory()
        place = str(task.get("id"))
        groups = [*(task.get("drafts") or ()), *(task.get("annotations") or ())]
        try:
            prompt, memory = with_earlier(read_prompt(context, config), _EARLIER.get(place), region_ids(groups))
            prompt = require_place(prompt)
            image = self._images().fetch(task, config.value_key)
        except (PromptError, ImageError) as error:
            log.error("task %s: %s", place, error)
            _EARLIER.pop(place, None)
            return {"result": [], "score": None, "model_version": predictor.version}
        height, width = image.shape[:2]
        prediction = build_answer(
            predictor.prompt(image, _model_prompt(prompt_in_pixels(prompt, (height, width)))),
            prompt,
            config,
            width=width,
            height=height,
            model_version=predictor.version,
            output=self.output,
            seed=f"{place}:{task['data'].get(config.value_key)}",
        )
        if memory:
            _EARLIER[place] = {**memory, "answer_ids": [region["id"] for region in prediction["result"]]}
            _EARLIER.move_to_end(place)
            while len(_EARLIER) > MOST_EARLIER:
                _EARLIER.popitem(last=False)
        return prediction

    def _images(self) -> ImageFetcher:
        setup_url = str(getattr(self, "hostname", "") or "")  # 1.0.9 passes on what /setup said, 2.x does not
        url = _first_set("TRANSFINER_LABEL_STUDIO_URL", "LABEL_STUDIO_URL", "LABEL_STUDIO_HOST")
        # The key of our settings goes to the address of our settings only: anybody may send a /setup.
        key = _first_set("TRANSFINER_LABEL_STUDIO_API_KEY", "LABEL_STUDIO_API_KEY") if url else ""
        return _fetcher(
            FetchSettings(
                label_studio_url=url or setup_url,
                api_key=key or str(getattr(self, "access_token", "") or ""),
                label_studio_aliases=(setup_url,) if setup_url and setup_url != url else (),
            )
        )


def _model_prompt(prompt: PixelPrompt) -> Any:
    return importlib.import_module("model.prompts.answers").Prompt(**vars(prompt))


def _first_set(*names: str) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def create_app(**options: Any) -> Any:
    """The Flask application of label-studio-ml with our model.

    Args:
        **options: for `label_studio_ml.api.init_app`: `model_dir` (1.0.9), `basic_auth_user` and
            `basic_auth_pass` (2.x).
    """
    init_app = importlib.import_module("label_studio_ml.api").init_app
    if not _KEEPS_VERSIONS:
        options.setdefault("model_dir", os.environ.get("MODEL_DIR", "."))
    return init_app(model_class=TransfinerModel, **options)
