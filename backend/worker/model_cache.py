"""The models that a worker keeps loaded, and how they predict with the memory there is.

A bad image fails alone, not with its batch. When memory runs out for the batch, each image is tried alone, then at a
fraction of its size, then in parts, then on the CPU. A note on the prediction says which; the next batch starts at the
top again. Models are warmed up once; the least used are dropped when they take too much memory. A
checkpoint directory that is replaced is another model: it is loaded when the first job names its version, and the one
before stays for jobs that still name it. Importing this module imports no torch; loading does.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from rq.timeouts import JobTimeoutException

from backend.errors import ServiceError, StartError, TaskError
from backend.settings import Settings
from backend.versions.resolve import ServedModel, model_directory, node_budget_of, read_served_model, version_directory
from model.errors import MissingRequirementError, require_model_libraries
from model.inference.tiling import Tiling, predict_tiled
from model.instance import Instance

log = logging.getLogger(__name__)
# Divisors of the image's edge, tried one after the other.
FACTORS = (2, 4)


class Predictor(Protocol):
    """Images in, instances out.

    Attributes:
        device: where it runs; "cuda..." for GPUs.
    """

    labels: tuple[str, ...]
    version: str
    precision: str

    @property
    def weights_bytes(self) -> int: ...

    @property
    def device(self) -> object: ...

    def smaller(self, divisor: int) -> Predictor:
        """The same weights looking at images of 1/divisor of the edge."""
        ...

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]: ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether smaller input may help; torch's own errors are recognised by name, since torch is not imported here."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def release_memory() -> None:
    """Give the GPU's cached blocks back, where torch is in use."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def downscale_image(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink HxWx3 uint8 to about H/factor x W/factor."""
    height, width = image.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def upscale_instance(instance: Instance, height: int, width: int) -> Instance:
    """Scale an instance of the shrunk image to the pixels of the whole one."""
    small_height, small_width = instance.mask_hw.shape
    rows = np.arange(height) * small_height // height
    columns = np.arange(width) * small_width // width
    scale = np.array([width / small_width, height / small_height] * 2)
    box = np.asarray(instance.box_xyxy) * scale
    return dataclasses.replace(
        instance,
        box_xyxy=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        mask_hw=instance.mask_hw[rows][:, columns],
        probabilities=None,
    )


Call = Callable[[], Sequence[Instance]]
T = TypeVar("T")
# The last step on the same device cuts an image into parts of about half its edge, each shrunk by this divisor.
PARTS_DIVISOR = 4
LEAST_PART_PX = 128


@dataclass(frozen=True)
class PredictedImage:
    """Instances of one image; `note` says how they were degraded for lack of memory, "" when they were not.

    `precision` is that of the network: fp32, bf16 or mixed.
    """

    instances: Sequence[Instance]
    note: str = ""
    precision: str = "fp32"


@dataclass(frozen=True)
class OomPolicy:
    """How to predict, also when memory runs out.

    Attributes:
        tiling: which images are cut into tiles.
        batch: tiles of an image that are predicted together.
        spare: returns the same model on the CPU, None when it runs there already.
    """

    tiling: Tiling = field(default_factory=Tiling)
    batch: int = 1
    spare: Callable[[], Predictor | None] = lambda: None


def predict_with_fallback(
    predictor: Predictor, images: Mapping[str, np.ndarray], policy: OomPolicy | None = None
) -> dict[str, PredictedImage | TaskError]:
    """Predict ordinary images together, or one by one when that fails; large ones in tiles.

    Raises:
        JobTimeoutException: the batch's time is over.
    """
    policy = policy or OomPolicy()
    ordinary = {key: image for key, image in images.items() if not policy.tiling.cuts(image)}
    results: dict[str, PredictedImage | TaskError] = {}
    if len(ordinary) > 1:
        outcome = _tried(lambda: predictor(list(ordinary.values())))
        if isinstance(outcome, Exception):
            log.warning("a batch of %d failed (%r); running its images one by one", len(ordinary), outcome)
        else:
            results = {
                key: PredictedImage(instances, "", predictor.precision)
                for key, instances in zip(ordinary, outcome, strict=True)
            }
    return {key: results[key] if key in results else _alone(predictor, image, policy) for key, image in images.items()}


def _alone(predictor: Predictor, image: np.ndarray, policy: OomPolicy) -> PredictedImage | TaskError:
    height, width = image.shape[:2]
    for note, call in _steps(predictor, image, policy):
        outcome = _tried(call)
        if not isinstance(outcome, Exception):
            if note:
                log.warning("%d x %d: %s", width, height, note)
            return PredictedImage(outcome, note, predictor.precision)
        if not is_out_of_memory(outcome):
            return TaskError(
                f"The model failed on this image of {width} x {height}: {outcome!r}.", "The worker's log has more."
            )
    return TaskError(
        f"Out of memory on an image of {width} x {height}, even at 1/{FACTORS[-1]} of its size and in parts.",
        "Use a machine or GPU with more memory, or smaller images.",
    )


def _tried(call: Callable[[], T]) -> T | Exception:
    """Return the result of `call`, or its error without the frames that would keep tensors in memory."""
    try:
        return call()
    except JobTimeoutException:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            log.error("the model failed", exc_info=error)
        failure = error
    failure.__traceback__ = failure.__context__ = failure.__cause__ = None
    release_memory()
    return failure


def _steps(predictor: Predictor, image: np.ndarray, policy: OomPolicy) -> Iterator[tuple[str, Call]]:
    """Ways to predict one image, each with less memory than the one before, with a note for the annotator."""
    yield "", lambda: _plain(predictor, image, policy, policy.batch)
    if policy.tiling.cuts(image) and policy.batch > 1:
        yield "", lambda: _plain(predictor, image, policy, 1)
    for factor in FACTORS:
        yield (
            f"Out of memory: predicted at 1/{factor} of the image's size, outlines are coarser.",
            _call_smaller(predictor, image, factor),
        )
    part_px = max(LEAST_PART_PX, max(image.shape[:2]) // 2)
    parts = Tiling(above_px=1, tile_px=part_px, overlap_px=part_px // 4, overview=False)
    yield (
        f"Out of memory: predicted in parts of {part_px} px, outlines may be coarser where they meet.",
        lambda: predict_tiled(predictor.smaller(PARTS_DIVISOR), image, parts),
    )
    if (spare := policy.spare()) is not None:
        yield "Out of memory on the GPU: predicted on the CPU.", lambda: _plain(spare, image, policy, 1)


def _plain(predictor: Predictor, image: np.ndarray, policy: OomPolicy, batch: int) -> list[Instance]:
    if policy.tiling.cuts(image):
        return predict_tiled(predictor, image, policy.tiling, batch=batch)
    return predictor([image])[0]


def _call_smaller(predictor: Predictor, image: np.ndarray, factor: int) -> Call:
    """Build a call that shrinks both the network's input and the pasted masks."""
    height, width = image.shape[:2]

    def call() -> list[Instance]:
        instances = predictor.smaller(factor)([downscale_image(image, factor)])[0]
        return [upscale_instance(instance, height, width) for instance in instances]

    return call


WARM_UP_EDGE_PX = 320


def load(settings: Settings) -> Predictor:
    """Load and warm up the predictor of the settings' checkpoint."""
    try:
        require_model_libraries()
    except MissingRequirementError as error:
        raise StartError(str(error)) from error
    import torch

    from model.checkpoints.checkpoint import CheckpointError
    from model.inference.predictor import Predictor as TorchPredictor

    served_model = read_served_model(settings.model)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    begun = time.monotonic()
    try:
        predictor = TorchPredictor.from_checkpoint(
            settings.model,
            device=_device(settings),
            score_threshold=settings.score_floor,
            node_budget=node_budget_of(served_model, settings.node_budget),
            precision=settings.precision,
        )
    except (CheckpointError, ValueError) as error:
        raise StartError(f"The model in {settings.model} cannot be loaded: {error}") from error
    predictor([np.zeros((WARM_UP_EDGE_PX, WARM_UP_EDGE_PX, 3), np.uint8)])
    seconds = time.monotonic() - begun
    log.info(
        "model %s is warm on %s in %s after %.1f s",
        served_model.version,
        predictor.device,
        predictor.precision,
        seconds,
    )
    return predictor


def _device(settings: Settings) -> str:
    """`auto` spreads the workers of a host over its GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{settings.worker_number % gpus}" if settings.device == "auto" and gpus > 1 else settings.device


class WarmModels:
    """The loaded predictors by model and device, the most recently used last.

    Raises:
        StartError: the settings' own model cannot be loaded. It is loaded at once, so that a broken worker ends early.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], Predictor] = load) -> None:
        self.settings = settings
        self.load = load
        self._warm: OrderedDict[tuple[ServedModel, str], Predictor] = OrderedDict()
        # Always replaced, never changed: another thread reads it.
        self.facts: tuple[dict[str, Any], ...] = ()
        self._keep(read_served_model(settings.model), "", load(settings))

    @property
    def version(self) -> str:
        """Version of the model that was used last."""
        return str(self.facts[-1]["version"])

    def find(self, project_key: str, version: str) -> ServedModel:
        """Find a project's model of a version, without loading it."""
        known_versions: list[str] = []
        directories: list[Path] = []
        for choose in (
            lambda: model_directory(self.settings, project_key),
            lambda: version_directory(self.settings, project_key, version),
        ):
            try:
                if (directory := choose()) is None:
                    continue
                directories.append(directory)
                model = read_served_model(directory)
            except ServiceError as error:
                log.error("%s", error)
                continue
            if model.version == version:
                return model
            known_versions.append(model.version)
        for model, _ in reversed(self._warm):
            if model.version == version and model.directory in directories:
                return model
        raise TaskError(
            f"The API asked for model version {version!r}, this worker has "
            f"{', '.join(map(repr, known_versions)) or 'none'} for this project.",
            "Give API and workers the same TRANSFINER_MODEL (or the same registry of models).",
        )

    def predictor(self, model: ServedModel, *, device: str = "") -> Predictor:
        """The loaded predictor of a model, on the given device or that of the settings."""
        key = (model, device)
        if key in self._warm:
            self._warm.move_to_end(key)
            self._note()
            return self._warm[key]
        settings = self.settings.model_copy(update={"model": model.directory, **({"device": device} if device else {})})
        try:
            predictor = self._load(settings)
        except ServiceError as error:
            raise TaskError(str(error), "`transfiner doctor` checks the model.") from error
        if predictor.version != model.version:
            raise TaskError(
                f"{model.directory} was replaced while it was loaded: {model.version!r} -> {predictor.version!r}.",
                "Ask again.",
            )
        return self._keep(model, device, predictor)

    def spare(self, model: ServedModel) -> Predictor | None:
        """The same model on the CPU, for images too large for the GPU's memory; None where there is no GPU."""
        on_gpu = str(self.predictor(model).device).startswith("cuda")
        return self.predictor(model, device="cpu") if on_gpu else None

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

    def _keep(self, model: ServedModel, device: str, predictor: Predictor) -> Predictor:
        self._warm[model, device] = predictor
        limit = self.settings.warm_models_mib * 2**20
        while len(self._warm) > 1 and sum(entry.weights_bytes for entry in self._warm.values()) > limit:
            (least_used, _), _ = self._warm.popitem(last=False)
            log.info("dropped model %s from memory", least_used.version)
            release_memory()
        self._note()
        return predictor

    def _note(self) -> None:
        self.facts = tuple(
            {
                "version": model.version,
                "mib": round(predictor.weights_bytes / 2**20, 1),
                "device": str(predictor.device),
                "precision": predictor.precision,
            }
            for (model, _), predictor in self._warm.items()
        )
