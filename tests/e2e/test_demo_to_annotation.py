"""From a command to a submitted annotation: a real Label Studio, real HTTP, the real model, a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from backend.settings import SCENES_MODEL
from backend.versions.resolve import read_served_model
from integration.label_studio.client import LabelStudioClient
from integration.regions.read import regions_to_objects
from tests.support.running_demo import RunningDemo, is_running
from training.synthetic.scenes import generate_scene, scene_seed

pytestmark = pytest.mark.e2e
REGIONS = """() => window.Htx.annotationStore.selected.regionStore.regions.map(region => (
    {id: region.cleanId, type: region.type, labels: region.labels, closed: region.closed}))"""
SAME_PCT = 1e-6  # percent of the picture's side: the editor writes back what it read
LEAST_MEAN_IOU = 0.6


@pytest.fixture
def client(demo: RunningDemo) -> LabelStudioClient:
    return demo.client()


def tasks(demo: RunningDemo, client: LabelStudioClient) -> list[dict[str, Any]]:
    return sorted(client.iter_tasks(demo.project), key=lambda task: task["id"])


def test_every_image_has_one_prediction_of_the_model(demo: RunningDemo, client: LabelStudioClient) -> None:
    version = read_served_model(SCENES_MODEL).version
    rows = tasks(demo, client)
    assert len(rows) == demo.images
    for task in rows:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == version
        assert 0 <= prediction["score"] <= 1
        assert prediction["result"], f"nothing was found on {task['data']['image']}"
        regions = [region for region in prediction["result"] if region["type"] == "polygonlabels"]
        assert len({region["id"] for region in regions}) == len(regions)
        assert all(0 <= region["score"] <= 1 for region in regions)


def test_predictions_pass_label_studios_own_validation(demo: RunningDemo, client: LabelStudioClient) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="no Label Studio SDK for this Python")
    config = interface.LabelInterface(client.get_project(demo.project)["label_config"])
    for task in tasks(demo, client):
        (stored,) = task["predictions"]
        prediction = {key: stored[key] for key in ("result", "score", "model_version")}
        assert config.validate_prediction(prediction, return_errors=True) == []


def test_outlines_follow_the_objects(demo: RunningDemo, client: LabelStudioClient) -> None:
    """The scenes are generated, so what is on them is known."""
    ious = [iou for task in tasks(demo, client) for iou in best_ious(task)]
    assert np.mean(ious) >= LEAST_MEAN_IOU, f"IoU of each object with its best outline: {np.round(ious, 2)}"


def best_ious(task: dict[str, Any]) -> Iterator[float]:
    """For each object of a scene: IoU with the best predicted object of its class, 0 without one."""
    number = re.search(r"scene-(\d+)\.png", task["data"]["image"])
    assert number
    scene = generate_scene(scene_seed("demo", int(number[1])))
    height, width = scene.image.shape[:2]
    objects = regions_to_objects(task["predictions"][0]["result"], width=width, height=height).objects
    for label, mask in scene.instances:
        same = [np.asarray(thing.mask_hw) for thing in objects if thing.label == label]
        yield max([float((mask & other).sum() / (mask | other).sum()) for other in same], default=0.0)


def test_the_least_certain_picture_comes_first(demo: RunningDemo, client: LabelStudioClient) -> None:
    """Works only because the backend's title is the model version: else Label Studio chooses at random."""
    rows = tasks(demo, client)
    scores = {task["id"]: task["predictions"][0]["score"] for task in rows}
    assert client.get_project(demo.project)["model_version"] == rows[0]["predictions"][0]["model_version"]
    first = client._json("GET", f"/api/projects/{demo.project}/next")
    assert scores[first["id"]] == min(scores.values())


def test_an_annotator_sees_the_outlines_and_submits_them(
    demo: RunningDemo, client: LabelStudioClient, page: Page, screenshots: Path
) -> None:
    task = max(tasks(demo, client), key=lambda task: len(task["predictions"][0]["result"]))
    expected = polygons(task["predictions"][0]["result"])

    page.goto(f"{demo.url}/projects/{demo.project}/data?task={task['id']}")
    expect(page.locator(".lsf-outliner-item").first).to_be_visible()
    page.locator("canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=screenshots / "task.png")

    shown = {region["id"]: region for region in page.evaluate(REGIONS)}
    assert {key: region["labels"] for key, region in shown.items()} == {
        key: region["value"]["polygonlabels"] for key, region in expected.items()
    }
    assert all(region["closed"] for region in shown.values())
    listed = page.locator(".lsf-outliner-item__title").all_inner_texts()
    assert listed  # the list draws only the rows in view
    assert set(listed) <= {region["value"]["polygonlabels"][0] for region in expected.values()}

    submit = page.get_by_test_id("bottombar-submit-button")
    expect(submit).to_be_enabled()
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/annotations" in answer.url
    ) as stored:
        submit.click()
    assert stored.value.ok
    expect(page.get_by_test_id("bottombar-update-button")).to_be_visible()
    page.screenshot(path=screenshots / "submitted.png")

    (annotation,) = client.get_task(task["id"])["annotations"]
    submitted = polygons(annotation["result"])
    assert submitted.keys() == expected.keys()
    for key, region in submitted.items():
        assert region["value"]["polygonlabels"] == expected[key]["value"]["polygonlabels"]
        points, before = (np.array(which[key]["value"]["points"]) for which in (submitted, expected))
        np.testing.assert_allclose(points, before, rtol=0, atol=SAME_PCT)


def polygons(result: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {region["id"]: region for region in result if region["type"] == "polygonlabels"}


@pytest.mark.skipif(not Path("/proc").exists(), reason="lists processes by /proc")
def test_ctrl_c_ends_everything_and_the_next_start_keeps_annotations(
    demo: RunningDemo, client: LabelStudioClient
) -> None:
    before = {task["id"]: len(task["annotations"]) for task in tasks(demo, client)}
    started = demo.descendants()
    assert len(started) >= 4  # queue server, worker, API, Label Studio
    assert demo.stop() == 0, demo.everything_printed()
    assert not [pid for pid in started if is_running(pid)]

    demo.start()
    again = tasks(demo, client)
    assert {task["id"]: len(task["annotations"]) for task in again} == before
    assert all(len(task["predictions"]) == 1 for task in again)
