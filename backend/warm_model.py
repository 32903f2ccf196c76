"""Loads the served model once and runs it once, so that the first task is as fast as the next. Imports torch."""

from __future__ import annotations

import logging
import time

import numpy as np

from backend.errors import StartError
from backend.served_model import read_served_model
from backend.settings import Settings
from model.requirements import MissingRequirementError, require_model_libraries

log = logging.getLogger(__name__)
WARM_UP_EDGE_PX = 320


def load(settings: Settings):  # type: ignore[no-untyped-def]
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
    from model.predictor import Predictor

    served = read_served_model(settings.model)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    begun = time.monotonic()
    try:
        predictor = Predictor.from_checkpoint(
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
