"""An object with a hole and two parts, and a ring, from the model to the exported annotations and back to their masks.

Only the model is ours for the test: queue, API and worker are the product's, Label Studio and the browser are real.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import Page, expect
from pycocotools import mask as coco_mask

from backend.cli.main import cli
from backend.processes.embedded_redis import free_port
from integration.label_studio.client import LabelStudioClient
from integration.regions.read import regions_to_objects
from model.instance import iou
from tests.e2e.known_object_service import HEIGHT, LABEL, WIDTH, ring_mask, shaped_mask
from tests.support.running_demo import RunningDemo

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
VERSION = "shaped-1"
CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image" {}><Label value="gear"/></PolygonLabels></View>"""
START_LIMIT_S = 600.0  # on two busy cores
STOP_LIMIT_S = 60.0
LATE_S = 300.0


@pytest.fixture(scope="module")
def shaped_url(demo: RunningDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the service whose model knows two objects."""
    folder = tmp_path_factory.mktemp("shaped")
    model = folder / "model"
    model.mkdir()
    facts = {"name": "shaped", "version": VERSION, "classes": [LABEL], "digest": "0" * 64}
    (model / "metadata.json").write_text(json.dumps(facts))
    port = free_port()
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": demo.url,
        "LABEL_STUDIO_API_KEY": demo.token,
        "PARENT": str(os.getpid()),
    }
    command = [sys.executable, "-m", "tests.e2e.known_object_service", str(port), str(model), str(folder)]
    output = folder / "service.txt"
    with output.open("wb") as file:
        service = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + START_LIMIT_S
        while not _is_ready(url):
            assert service.poll() is None, f"the service ended:\n{output.read_text(errors='replace')}"
            assert time.monotonic() < give_up, f"not ready:\n{output.read_text(errors='replace')}"
            time.sleep(0.2)
        yield url
    finally:
        service.send_signal(signal.SIGINT)
        try:
            service.wait(STOP_LIMIT_S)
        finally:
            service.kill()


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/ready", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize(
    ("name", "attributes", "least_iou"), [("exact", 'model_tolerance_px="0"', 1.0), ("default", "", 0.98)]
)
def test_a_hole_and_two_parts_survive_display_submit_and_export(
    name: str,
    attributes: str,
    least_iou: float,
    demo: RunningDemo,
    shaped_url: str,
    page: Page,
    screenshots: Path,
    tmp_path: Path,
) -> None:
    client = demo.client()
    project = client.create_project(title=f"hole and parts, {name}", label_config=CONFIG.format(attributes))["id"]
    task = add_picture(client, project, tmp_path / f"{name}.png")
    client.create_backend(project, url=shaped_url, title=VERSION)
    client.retrieve_predictions(project, [task])
    predicted = await_prediction(client, task)
    assert len(predicted) == 2  # an object is one region

    page.goto(f"{demo.url}/projects/{project}/data?task={task}")
    expect(page.locator(".lsf-outliner-item").first).to_be_visible()
    page.locator("canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=screenshots / f"hole-{name}.png")
    submit = page.get_by_test_id("bottombar-submit-button")
    expect(submit).to_be_enabled()
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/annotations" in answer.url
    ) as stored:
        submit.click()
    assert stored.value.ok

    (exported,) = client.export_json(project)
    (annotation,) = exported["annotations"]
    assert {region["id"] for region in annotation["result"]} == set(predicted)
    truths = [shaped_mask(), ring_mask()]
    for drawn, truth in zip(regions_to_objects(annotation["result"]).objects, truths, strict=True):
        assert drawn.label == LABEL
        print(f"{name}: IoU {iou(drawn.mask_hw, truth):.5f}")
        assert iou(drawn.mask_hw, truth) >= least_iou

    out = tmp_path / "export"
    arguments = ["export", "--project", str(project), "--url", demo.url, "--api-key", demo.token, "--out", str(out)]
    answer = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    facts = json.loads(answer.stdout)
    assert (facts["objects"], facts["label_studio_coco_annotations"]) == (2, 2)
    assert facts["fidelity"]["least_iou"] == 1.0
    annotations = json.loads((out / "coco.json").read_text())["annotations"]
    assert len(annotations) == len(truths)
    for record, truth in zip(annotations, truths, strict=True):
        assert "counts" in record["segmentation"]  # both have a hole
        assert iou(coco_mask.decode(record["segmentation"]).astype(bool), truth) >= least_iou

    # Label Studio's own export, whose polygons know no holes: the cuts stay in them, and enclose nothing.
    own = label_studio_coco(demo, project)
    assert len(own) == len(truths)
    for record, truth in zip(own, truths, strict=True):
        (packed,) = coco_mask.frPyObjects(record["segmentation"], HEIGHT, WIDTH)
        print(f"{name}: IoU {iou(coco_mask.decode(packed).astype(bool), truth):.5f} in Label Studio's own COCO file")
        assert iou(coco_mask.decode(packed).astype(bool), truth) >= 0.95


def label_studio_coco(demo: RunningDemo, project: int) -> list[dict]:
    """The annotations of Label Studio's own COCO export."""
    answer = requests.get(
        f"{demo.url}/api/projects/{project}/export",
        params={"exportType": "COCO"},
        headers=demo.client().auth.headers(),
        timeout=LATE_S,
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return json.loads(archive.read("result.json"))["annotations"]


def add_picture(client: LabelStudioClient, project: int, path: Path) -> int:
    """A picture of the object, and the task it becomes."""
    shades = np.where((shaped_mask() | ring_mask())[..., None], (60, 120, 90), (225, 222, 215)).astype(np.uint8)
    Image.fromarray(shades).save(path)
    assert shades.shape == (HEIGHT, WIDTH, 3)
    client.upload_files(project, [path])
    (task,) = client.iter_tasks(project)
    return int(task["id"])


def await_prediction(client: LabelStudioClient, task: int) -> list[str]:
    """Ids of the regions predicted; they come later when the machine is too busy for Label Studio's deadline."""
    give_up = time.monotonic() + LATE_S
    while not (predictions := client.get_task(task)["predictions"]):
        assert time.monotonic() < give_up, "no prediction came"
        time.sleep(0.5)
    (prediction,) = predictions
    return [region["id"] for region in prediction["result"]]
