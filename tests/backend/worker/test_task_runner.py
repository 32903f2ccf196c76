"""One batch in one process: what each kind of failure does to its own task and to the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from rq.timeouts import JobTimeoutException

from backend.errors import StartError, TaskError
from backend.predictions.projects import Projects
from backend.queue.job_queue import PredictionJob
from backend.queue.job_store import FinishedJob, JobOutcome
from backend.settings import Settings
from backend.versions.resolve import ServedModel
from backend.worker.images import ImageSource
from backend.worker.model_cache import downscale_image, is_out_of_memory, predict_with_fallback, upscale_instance
from backend.worker.prompt_runner import PromptRunner
from backend.worker.task_runner import TaskRunner
from integration.images.fetch import ImageError
from model.inference.tiling import Tiling
from model.instance import Instance
from tests.support.service import CONFIG


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def instance(image: np.ndarray) -> Instance:
    mask = np.zeros(image.shape[:2], bool)
    height, width = mask.shape
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return Instance((width / 4, height / 4, width / 2, height / 2), "gear", 0.8, mask)


def image(width: int, height: int = 32) -> np.ndarray:
    return np.full((height, width, 3), 127, np.uint8)


class Model:
    """Fails as told: `limit_px` is the largest number of pixels that fits into memory, over the whole batch."""

    labels = ("gear",)
    version = "v1"
    weights_bytes = 0
    precision = "fp32"
    device = "cpu"

    def __init__(self, limit_px: int = 10**9, bad_width: int = -1) -> None:
        self.limit_px, self.bad_width = limit_px, bad_width
        self.batches: list[int] = []
        self.shapes: list[tuple[int, ...]] = []

    def smaller(self, divisor: int) -> Model:
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        self.batches.append(len(images))
        self.shapes += [i.shape[:2] for i in images]
        if sum(i.shape[0] * i.shape[1] for i in images) > self.limit_px:
            raise OutOfMemoryError("CUDA out of memory")
        if any(i.shape[1] == self.bad_width for i in images):
            raise ValueError("bad image")
        return [[instance(i)] for i in images]


SERVED = ServedModel(Path("models/v1"), "v1", "v1", ("gear",), "")


class OneModel:
    """One warm model, with one on the CPU beside it."""

    def __init__(self, model: Model, spare: Model | None) -> None:
        self.model, self.on_cpu = model, spare

    def find(self, project_key: str, version: str) -> ServedModel:
        return SERVED

    def predictor(self, served: ServedModel) -> Model:
        return self.model

    def spare(self, served: ServedModel) -> Model | None:
        return self.on_cpu


def run(
    model: Model, images: dict[str, Any], *, spare: Model | None = None, tiling: Tiling | None = None
) -> dict[str, JobOutcome]:
    outcomes: dict[str, JobOutcome] = {}

    def fetch(job: PredictionJob, key: str) -> np.ndarray:
        image = images[job.image]
        if isinstance(image, Exception):
            raise image
        return image

    def done(batch: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        outcomes.update({job_id: job.outcome for job_id, job in batch.items()})
        assert set(stages_s) == {"images", "model", "regions"}
        assert all(job.facts["seconds"] >= 0 for job in batch.values())

    runner = TaskRunner(OneModel(model, spare), fetch, done, tiling=tiling, tile_batch=2)
    jobs = {name: PredictionJob("1.1", {"id": 1, "data": {"image": name}}, name, CONFIG, "v1") for name in images}
    runner.write(runner.predict(jobs, runner.fetcher.begin(jobs)))
    assert list(outcomes) == list(jobs)
    return outcomes


def notes(outcome: JobOutcome) -> list[str]:
    assert outcome.prediction
    return [text for region in outcome.prediction["result"] for text in region.get("meta", {}).get("text", [])]


def test_a_good_batch_runs_together():
    model = Model()
    outcomes = run(model, {"a": image(32), "b": image(48)})
    assert model.batches == [2]
    assert [len(outcome.prediction["result"]) for outcome in outcomes.values()] == [1, 1]
    assert notes(outcomes["a"]) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ImageError("gone", value="x.jpg", expected="an image", fix="upload it"), "upload it"),
        (TaskError("refused", "a hint"), "refused"),
        (RuntimeError("surprise"), "surprise"),
        (image(24), "24 x 32"),
    ],
)
def test_one_bad_task_fails_alone(bad, says):
    outcomes = run(Model(bad_width=24), {"a": image(32), "bad": bad, "b": image(48)})
    assert outcomes["a"].prediction
    assert outcomes["b"].prediction
    assert outcomes["bad"].prediction is None
    assert says in outcomes["bad"].error


def test_a_worker_of_prompts_alone_refuses_whole_images():
    outcomes: dict[str, JobOutcome] = {}
    prompts = PromptRunner(Settings(device="cpu"))
    runner = TaskRunner(
        None,
        lambda job, key: image(32),
        lambda batch, stages_s: outcomes.update({job_id: job.outcome for job_id, job in batch.items()}),
        prompts=prompts,
    )
    jobs = {"a": PredictionJob("1.1", {"id": 1, "data": {"image": "a"}}, "a", CONFIG, "v1")}
    runner.write(runner.predict(jobs, runner.fetcher.begin(jobs)))
    assert "a whole image of project '1.1'" in outcomes["a"].error
    assert runner.warm_models is prompts
    with pytest.raises(ValueError, match="neither"):
        TaskRunner(None, lambda job, key: image(32), lambda batch, stages_s: None)


def test_out_of_memory_steps_down_and_says_so_on_the_prediction():
    model = Model(limit_px=32 * 32)
    outcomes = run(model, {"a": image(32), "large": image(64)})
    assert model.batches == [2, 1, 1, 1]
    assert notes(outcomes["a"]) == []
    assert "1/2 of the image's size" in notes(outcomes["large"])[0]
    region = outcomes["large"].prediction["result"][0]
    assert (region["original_width"], region["original_height"]) == (64, 32)
    xs = [x for x, _ in region["value"]["points"]]
    assert (min(xs), max(xs)) == pytest.approx((25, 50), abs=0.5)


def test_out_of_memory_for_good_is_a_failure_with_a_hint():
    outcomes = run(Model(limit_px=10), {"a": image(64)})
    assert outcomes["a"].prediction is None
    assert "Out of memory" in outcomes["a"].error
    assert "memory" in outcomes["a"].hint


def test_out_of_memory_at_a_fraction_of_the_size_cuts_the_image_into_parts():
    """A network whose input cannot be made smaller by a smaller image needs a smaller edge as well."""

    class Stubborn(Model):
        """Needs memory for its own edge, not for the image's, and finds each part's square."""

        def __init__(self) -> None:
            super().__init__()
            self.divisor = 1

        def smaller(self, divisor: int) -> Stubborn:
            other = Stubborn()
            other.divisor, other.batches = divisor, self.batches
            return other

        def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
            self.batches.append(self.divisor)
            if self.divisor < 4 or images[0].shape[1] == 100:
                raise OutOfMemoryError("CUDA out of memory")
            return [[instance(i)] for i in images]

    model = Stubborn()
    outcomes = run(model, {"a": image(400, 300)})
    assert model.batches[:4] == [1, 2, 4, 4]
    assert "in parts of 200 px" in notes(outcomes["a"])[0]
    assert outcomes["a"].prediction["result"][0]["original_width"] == 400


def test_the_last_step_is_the_cpu():
    cpu = Model()
    outcomes = run(Model(limit_px=10), {"a": image(64)}, spare=cpu)
    assert cpu.batches == [1]
    assert "on the CPU" in notes(outcomes["a"])[0]


def test_the_next_batch_starts_at_the_top_again():
    model = Model(limit_px=32 * 32)
    run(model, {"large": image(64)})
    model.batches.clear()
    assert notes(run(model, {"a": image(16), "b": image(16)})["a"]) == []
    assert model.batches == [2]


def test_large_images_are_cut_and_others_are_not():
    model = Model()
    run(model, {"a": image(32), "large": image(300, 32), "b": image(32)}, tiling=Tiling(128, 128, 32))
    assert model.batches == [2, 2, 1, 1]
    assert model.shapes == [(32, 32), (32, 32), (32, 128), (32, 128), (32, 128), (14, 128)]


def test_a_large_image_that_memory_is_not_enough_for_steps_down_as_well():
    model = Model(limit_px=128 * 32)
    outcomes = run(model, {"large": image(300, 32)}, tiling=Tiling(128, 128, 32))
    assert model.batches[:2] == [2, 1], "two tiles at a time, then one"
    assert notes(outcomes["large"]) == []


def test_the_time_limit_of_a_batch_is_not_swallowed():
    class Slow(Model):
        def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
            raise JobTimeoutException

    with pytest.raises(JobTimeoutException):
        predict_with_fallback(Slow(), {"a": image(32), "b": image(32)})


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (OutOfMemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_memory):
    assert is_out_of_memory(error) == is_memory


@pytest.mark.parametrize(("width", "height", "factor"), [(64, 32, 2), (61, 33, 2), (7, 5, 4), (1, 1, 4)])
def test_grown_instances_have_the_size_of_the_whole_image(width, height, factor):
    small = downscale_image(image(width, height), factor)
    large = upscale_instance(instance(small), height, width)
    assert large.mask_hw.shape == (height, width)
    assert all(0 <= edge <= max(width, height) for edge in large.box_xyxy)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_a_folder_is_an_error_of_the_start(tmp_path, below):
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / below if below else tmp_path / "file"
    with pytest.raises(StartError, match=f"{re.escape(str(place))} cannot be used as a folder"):
        ImageSource(Settings(image_cache=str(place)), Projects(Redis()))
