"""The models that a worker keeps loaded: warmed up once, the least used dropped when they take too much memory.

A checkpoint directory that is replaced is another model: it is loaded when the first job names its version, and the
one before stays for jobs that still name it. Importing this module imports no torch; loading does.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import ServiceError, StartError, TaskError
from backend.settings import Settings
from backend.versions.resolve import ServedModel, model_directory, node_budget_of, read_served_model, version_directory
from backend.worker.oom_fallback import Predictor, is_out_of_memory, release_memory
from model.errors import MissingRequirementError, require_model_libraries

log = logging.getLogger(__name__)
WARM_UP_EDGE_PX = 320


def load(settings: Settings) -> Predictor:
    """The predictor of the settings' checkpoint, warm."""
    try:
        require_model_libraries()
    except MissingRequirementError as error:
        raise StartError(str(error)) from error
    import torch

    from model.checkpoints.checkpoint import CheckpointError
    from model.predictor import Predictor as TorchPredictor

    served = read_served_model(settings.model)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    begun = time.monotonic()
    try:
        predictor = TorchPredictor.from_checkpoint(
            settings.model,
            device=_device(settings),
            score_threshold=settings.score_floor,
            node_budget=node_budget_of(served, settings.node_budget),
            precision=settings.precision,
        )
    except (CheckpointError, ValueError) as error:
        raise StartError(f"The model in {settings.model} cannot be loaded: {error}") from error
    predictor([np.zeros((WARM_UP_EDGE_PX, WARM_UP_EDGE_PX, 3), np.uint8)])
    seconds = time.monotonic() - begun
    log.info(
        "model %s is warm on %s in %s after %.1f s", served.version, predictor.device, predictor.precision, seconds
    )
    return predictor


def _device(settings: Settings) -> str:
    """`auto` spreads the workers of a host over its GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{settings.worker_number % gpus}" if settings.device == "auto" and gpus > 1 else settings.device


class WarmModels:
    """Predictors by what they are, the most recently used last.

    Raises:
        StartError: the settings' own model cannot be loaded. It is, at once, so that a broken worker ends early.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], Predictor] = load) -> None:
        self.settings = settings
        self.load = load
        self._warm: OrderedDict[tuple[ServedModel, str], Predictor] = OrderedDict()
        # Replaced as a whole, since another thread reads it.
        self.facts: tuple[dict[str, Any], ...] = ()
        self._keep(read_served_model(settings.model), "", load(settings))

    @property
    def version(self) -> str:
        """Of the model that was used last."""
        return str(self.facts[-1]["version"])

    def find(self, project_key: str, version: str) -> ServedModel:
        """The model of that version of a project; loads nothing."""
        known: list[str] = []
        directories: list[Path] = []
        for choose in (
            lambda: model_directory(self.settings, project_key),
            lambda: version_directory(self.settings, project_key, version),
        ):
            try:
                if (directory := choose()) is None:
                    continue
                directories.append(directory)
                served = read_served_model(directory)
            except ServiceError as error:
                log.error("%s", error)
                continue
            if served.version == version:
                return served
            known.append(served.version)
        for served, _ in reversed(self._warm):
            if served.version == version and served.directory in directories:
                return served
        raise TaskError(
            f"The API asked for model version {version!r}, this worker has "
            f"{', '.join(map(repr, known)) or 'none'} for this project.",
            "Give API and workers the same TRANSFINER_MODEL (or the same registry of models).",
        )

    def predictor(self, served: ServedModel, *, device: str = "") -> Predictor:
        """The warm predictor of a model, on another device than the settings' if one is given."""
        key = (served, device)
        if key in self._warm:
            self._warm.move_to_end(key)
            self._note()
            return self._warm[key]
        settings = self.settings.model_copy(
            update={"model": served.directory, **({"device": device} if device else {})}
        )
        try:
            loaded = self._load(settings)
        except ServiceError as error:
            raise TaskError(str(error), "`transfiner doctor` checks the model.") from error
        if loaded.version != served.version:
            raise TaskError(
                f"{served.directory} was replaced while it was loaded: {served.version!r} -> {loaded.version!r}.",
                "Ask again.",
            )
        return self._keep(served, device, loaded)

    def spare(self, served: ServedModel) -> Predictor | None:
        """The same model on the CPU, for images that no GPU memory is enough for; None where there is no GPU."""
        on_gpu = str(self.predictor(served).device).startswith("cuda")
        return self.predictor(served, device="cpu") if on_gpu else None

    def _load(self, settings: Settings) -> Predictor:
        try:
            return self.load(settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        log.warning("no memory for another model; dropping the %d warm one(s)", len(self._warm))
        self._warm.clear()
        release_memory()
        return self.load(settings)

    def _keep(self, served: ServedModel, device: str, predictor: Predictor) -> Predictor:
        self._warm[served, device] = predictor
        limit = self.settings.warm_models_mib * 2**20
        while len(self._warm) > 1 and sum(each.weights_bytes for each in self._warm.values()) > limit:
            (dropped, _), _ = self._warm.popitem(last=False)
            log.info("dropped model %s from memory", dropped.version)
            release_memory()
        self._note()
        return predictor

    def _note(self) -> None:
        self.facts = tuple(
            {
                "version": served.version,
                "mib": round(predictor.weights_bytes / 2**20, 1),
                "device": str(predictor.device),
                "precision": predictor.precision,
            }
            for (served, _), predictor in self._warm.items()
        )
