"""Several models in one worker: which one a job gets, and which one has to go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import requests

from backend.errors import ModelUnavailableError, StartError, TaskError
from backend.settings import SCENES_MODEL, Settings
from backend.versions.resolve import model_directory, node_budget_of, read_served_model
from backend.worker.model_cache import WarmModels
from model.instance import Instance
from tests.support.service import predict_body, setup_body, tasks

pytestmark = pytest.mark.service


class Loaded:
    """A model that takes 100 MiB."""

    labels = ("gear",)
    weights_bytes = 100 * 2**20
    precision = "fp32"

    def __init__(self, version: str, device: str) -> None:
        self.version, self.device = version, device

    def smaller(self, divisor: int) -> Loaded:
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        return [[] for _ in images]


class Loader:
    """Remembers what was loaded; `failures` are raised by the next loads."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.failures: list[Exception] = []

    def __call__(self, settings: Settings) -> Loaded:
        version = json.loads((settings.model / "metadata.json").read_text())["version"]
        self.loads.append(version)
        if self.failures:
            raise self.failures.pop(0)
        return Loaded(version, "cuda:0" if settings.device == "auto" else settings.device)


def write(directory: Path, version: str) -> Path:
    directory.mkdir(exist_ok=True)
    facts = {"name": directory.name, "version": version, "classes": ["gear", "leaf"], "digest": version}
    (directory / "metadata.json").write_text(json.dumps(facts))
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write(tmp_path / name, f"{name}-1")
    return tmp_path


@pytest.fixture
def loader() -> Loader:
    return Loader()


def models(folder: Path, loader: Loader, *, mib: float = 250) -> WarmModels:
    project_models = f"2={folder / 'b'}, 3={folder / 'c'}"
    return WarmModels(Settings(model=folder / "a", project_models=project_models, warm_models_mib=mib), loader)


def used(warm: WarmModels, project: str, version: str) -> None:
    assert warm.predictor(warm.find(project, version)).version == version


def versions(warm: WarmModels) -> list[str]:
    return [str(fact["version"]) for fact in warm.facts]


def test_the_least_used_model_goes_when_memory_is_over(folder, loader):
    warm = models(folder, loader)
    used(warm, "2.5", "b-1")
    used(warm, "1.5", "a-1")
    assert versions(warm) == ["b-1", "a-1"]
    used(warm, "3.5", "c-1")
    assert versions(warm) == ["a-1", "c-1"], "three of 100 MiB are over 250"
    used(warm, "1.5", "a-1")
    assert loader.loads == ["a-1", "b-1", "c-1"], "a was never loaded twice"
    used(warm, "2.5", "b-1")
    assert versions(warm) == ["a-1", "b-1"]
    assert warm.version == "b-1"


def test_one_model_stays_however_large(folder, loader):
    warm = models(folder, loader, mib=1)
    used(warm, "2.5", "b-1")
    assert versions(warm) == ["b-1"]


def test_a_replaced_checkpoint_is_loaded_and_the_one_before_stays_for_its_jobs(folder, loader):
    warm = models(folder, loader)
    write(folder / "a", "a-2")
    used(warm, "", "a-2")
    used(warm, "", "a-1")
    assert loader.loads == ["a-1", "a-2"]
    with pytest.raises(TaskError, match=r"'a-3'.*has 'a-2'"):
        warm.find("", "a-3")


def test_a_version_of_another_project_is_not_given(folder, loader):
    warm = models(folder, loader)
    used(warm, "2.5", "b-1")
    with pytest.raises(TaskError, match="'b-1'"):
        warm.find("3.5", "b-1")


def test_a_damaged_directory_leaves_the_warm_model(folder, loader):
    warm = models(folder, loader)
    (folder / "a" / "metadata.json").write_text("{")
    used(warm, "", "a-1")
    with pytest.raises(TaskError, match="none"):
        warm.find("", "a-2")


def test_a_model_that_cannot_be_loaded_fails_its_tasks_only(folder, loader):
    warm = models(folder, loader)
    loader.failures = [StartError("weights are missing")]
    with pytest.raises(TaskError, match="weights are missing"):
        used(warm, "2.5", "b-1")
    used(warm, "1.5", "a-1")
    used(warm, "2.5", "b-1")


def test_no_memory_for_another_model_drops_the_others(folder, loader):
    warm = models(folder, loader)
    loader.failures = [MemoryError()]
    used(warm, "2.5", "b-1")
    assert versions(warm) == ["b-1"]


def test_a_model_replaced_while_it_is_loaded_is_not_mistaken(folder, loader):
    warm = models(folder, loader)
    model = warm.find("2.5", "b-1")
    write(folder / "b", "b-2")
    with pytest.raises(TaskError, match="'b-1' -> 'b-2'"):
        warm.predictor(model)


def test_the_spare_is_on_the_cpu_and_counts(folder, loader):
    warm = models(folder, loader)
    spare = warm.spare(warm.find("", "a-1"))
    assert spare is not None
    assert spare.device == "cpu"
    assert [fact["device"] for fact in warm.facts] == ["cuda:0", "cpu"]
    on_cpu = WarmModels(Settings(model=folder / "a", device="cpu"), loader)
    assert on_cpu.spare(on_cpu.find("", "a-1")) is None


def test_which_model_serves_a_project(folder):
    settings = Settings(model=folder / "a", project_models=f"2={folder / 'b'}")
    assert model_directory(settings, "2.1795339022") == folder / "b"
    assert model_directory(settings, "22.1795339022") == folder / "a"
    assert model_directory(settings, "") == folder / "a"


@pytest.mark.parametrize("text", ["gears=/x", "12", "12=", "=/x"])
def test_wrong_pairs_are_refused(text):
    with pytest.raises(ValueError, match="PROJECT_ID=DIRECTORY"):
        Settings(project_models=text)


def test_two_projects_with_two_models_through_one_worker(settings, serve, workers, redis, folder, label_studio):
    """Over HTTP and the queue: each project's answer carries its own version."""
    project_models = f"2={folder / 'b'}"
    workers.start(project_models=project_models, max_batch=8, max_wait_ms=300)
    address = serve(settings.model_copy(update={"project_models": project_models}))
    for project in ("1.5", "2.5"):
        body = setup_body("", "", project=project)
        requests.post(f"{address}/setup", json=body, timeout=20)
    for project, version in (("1.5", "fake-1"), ("2.5", "b-1")):
        answer = requests.post(f"{address}/predict", json=predict_body(tasks(2), project=project), timeout=100).json()
        assert {item["model_version"] for item in answer["results"]} == {version}, answer
    (facts,) = requests.get(f"{address}/jobs", timeout=20).json()["workers"].values()
    assert {fact["version"] for fact in facts["models"]} <= {"fake-1", "b-1"}


@pytest.mark.parametrize(
    ("metadata", "wished", "given"),
    [
        pytest.param({}, -1, None, id="the configuration decides"),
        pytest.param({"served": {"node_budget": 4000}}, -1, 4000, id="the model's wish"),
        pytest.param({"served": {"node_budget": 4000}}, 0, 0, id="the operator wants all"),
        pytest.param({"served": {}}, 700, 700, id="the operator's number"),
    ],
)
def test_nodes_refined_when_serving(tmp_path, metadata, wished, given):
    facts = {"name": "m", "version": "1", "classes": ["gear"], **metadata}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    assert node_budget_of(read_served_model(tmp_path), wished) == given


@pytest.mark.parametrize("served", [[], {"node_budget": "many"}])
def test_damaged_wishes_of_a_model_are_named(tmp_path, served):
    facts = {"name": "m", "version": "1", "classes": ["gear"], "served": served}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    with pytest.raises(ModelUnavailableError, match="not the metadata of a checkpoint"):
        read_served_model(tmp_path)


def test_the_model_of_scenes_is_refined_wholly():
    assert read_served_model(SCENES_MODEL).node_budget == 0
