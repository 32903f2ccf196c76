"""Tasks that `transfiner predict` writes for configs with one kind of outline, in the real editor: shown and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, expect

from backend.cli.main import cli
from backend.demo.project import draw_scenes
from integration.label_studio.tasks import read_task
from integration.regions.read import regions_to_objects
from model.instance import iou
from tests.e2e.test_smart_tools import STATE
from tests.support.running_demo import RunningDemo

pytestmark = pytest.mark.e2e
MODEL = "scenes-small"
SCENE_PX = "[...document.querySelectorAll('img[alt=image]')].map(image => [image.naturalWidth, image.naturalHeight])[0]"


@pytest.mark.parametrize(
    ("kind", "attributes"), [("vector", ""), ("vector", 'closable="true"'), ("ellipse", ""), ("bitmask", "")]
)
def test_a_config_of_one_kind_is_filled_shown_and_submitted(
    kind: str, attributes: str, demo: RunningDemo, page: Page, screenshots: Path, tmp_path: Path
) -> None:
    (scene,) = draw_scenes(tmp_path / "scenes", 1)
    tag, tasks, config = f"{kind.capitalize()}Labels", tmp_path / "tasks.json", tmp_path / "config.xml"
    classes = json.loads((Path(__file__).parents[2] / "model" / "weights" / MODEL / "metadata.json").read_text())[
        "classes"
    ]
    labels = "".join(f'<Label value="{name}"/>' for name in classes)
    config.write_text(
        f'<View><Image name="image" value="$image"/><{tag} name="label" toName="image" {attributes}>'
        f"{labels}</{tag}></View>"
    )
    how = ["--model", MODEL, "--format", "label-studio", "--label-config", str(config), "--output", str(tasks)]
    answer = CliRunner().invoke(cli, ["predict", str(scene), *how])
    assert answer.exit_code == 0, answer.output
    (written,) = json.loads(tasks.read_text())
    (prediction,) = written["predictions"]
    assert {region["type"] for region in prediction["result"]} == {f"{kind}labels"}

    client = demo.client()
    project = client.create_project(title=f"only {tag}", label_config=config.read_text())["id"]
    client.import_tasks(project, [written])
    client.update_project(project, model_version=prediction["model_version"])
    (task,) = client.iter_tasks(project)
    page.goto(f"{demo.url}/projects/{project}/data?task={task['id']}")
    expect(page.locator(".lsf-outliner-item")).to_have_count(len(prediction["result"]))
    page.locator("canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1000)  # the canvas draws after the list
    page.screenshot(path=screenshots / f"only-{kind}{'-closable' if attributes else ''}.png")
    size = prediction["result"][0]["original_width"], prediction["result"][0]["original_height"]
    assert tuple(page.evaluate(SCENE_PX)) == size  # the image in the task itself
    assert {region["type"] for region in page.evaluate(STATE)["regions"]} == {f"{kind}region"}

    with page.expect_response(
        lambda response: response.request.method == "POST" and "/annotations" in response.url
    ) as stored:
        page.get_by_test_id("bottombar-submit-button").click()
    assert stored.value.ok
    (annotation,) = read_task(client.get_task(task["id"])).annotations
    shown, kept = (regions_to_objects(result).objects for result in (prediction["result"], annotation.result))
    assert sorted(drawn.label for drawn in kept) == sorted(drawn.label for drawn in shown)
    for drawn in shown:
        (same,) = (other for other in kept if other.region_ids == drawn.region_ids)
        print(f"{kind}: {drawn.label} IoU {iou(same.mask_hw, drawn.mask_hw):.4f}")
        assert iou(same.mask_hw, drawn.mask_hw) > 0.99
