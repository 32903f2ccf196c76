"""The model that a worker keeps loaded: warmed up once, and swapped when the checkpoint directory is replaced.

Importing this module imports no torch; loading does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from backend.errors import ServiceError, StartError
from backend.served_model import read_served_model
from backend.settings import Settings
from backend.tasks import Predictor
from model.requirements import MissingRequirementError, require_model_libraries

log = logging.getLogger(__name__)
WARM_UP_EDGE_PX = 320


def load(settings: Settings) -> Predictor:
    """The predictor of the settings' checkpoint, warm.

    Raises:
        StartError: a library is missing, or the checkpoint or the device is unusable.
    """
    try:
        require_model_libraries()
    except MissingRequirementError as error:
        raise StartError(str(error)) from error
    import torch

    from model.checkpoint import CheckpointError
    from model.predictor import Predictor as TorchPredictor

    served = read_served_model(settings.model)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    begun = time.monotonic()
    try:
        predictor = TorchPredictor.from_checkpoint(
            settings.model, device=_device(settings), score_threshold=settings.score_floor
        )
    except (CheckpointError, ValueError) as error:
        raise StartError(f"The model in {settings.model} cannot be loaded: {error}") from error
    predictor([np.zeros((WARM_UP_EDGE_PX, WARM_UP_EDGE_PX, 3), np.uint8)])
    log.info(
        "model %s is warm on %s after %.1f s", served.version, predictor.device, time.monotonic() - begun
    )
    return predictor


def _device(settings: Settings) -> str:
    """`auto` spreads the workers of a host over its GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    return (
        f"cuda:{settings.worker_number % gpus}" if settings.device == "auto" and gpus > 1 else settings.device
    )


class WarmModel:
    """Holds the predictor of the settings' checkpoint directory.

    Args:
        load: builds the predictor; `load` of this module outside tests.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], Predictor] = load) -> None:
        self.settings = settings
        self.load = load
        self.served = read_served_model(settings.model)
        self.predictor = load(settings)

    def current(self) -> Predictor:
        """The predictor of what is in the directory now; the one before while the new one cannot be loaded."""
        try:
            served = read_served_model(self.settings.model)
            if served != self.served:
                log.info("%s was replaced: %s -> %s", served.directory, self.served.version, served.version)
                self.predictor = self.load(self.settings)
                self.served = served
        except ServiceError as error:
            log.error("still serving %s: %s", self.served.version, error)
        return self.predictor
