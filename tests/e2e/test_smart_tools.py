"""Smart tools in the real editor: a box around a thing that no class knows, a click that corrects, one region kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from backend.demo.project import copy_photographs
from backend.settings import SHIPPED_MODEL
from backend.versions.resolve import read_served_model
from integration.label_studio.client import LabelStudioClient
from integration.regions.read import regions_to_objects
from tests.support.running_demo import RunningDemo

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Thing:
    """Something on a photograph that no class of the model is."""

    label: str
    photograph: str
    width: int
    height: int


ROCKET, ROCKET_PCT = Thing("rocket", "rocket.jpg", 640, 427), (46.0, 28.0, 54.5, 96.0)
HELMET = Thing("helmet", "astronaut.png", 512, 512)
BRUSH_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="helmet"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="helmet"/></KeyPointLabels></View>"""

SELECT_TOOL = """name => {
    const image = [...window.Htx.annotationStore.selected.names.values()].find(tag => tag.type === "image");
    const tools = image.getToolsManager();
    tools.selectTool(tools.allTools().find(tool => tool.fullName === name), true);
}"""
STATE = """() => {
    const annotation = window.Htx.annotationStore.selected;
    const shown = region => ({id: region.cleanId, type: region.type, labels: region.labels, dynamic: region.dynamic});
    return {
        regions: annotation.regionStore.regions.map(shown), suggestions: [...annotation.suggestions.values()].map(shown)
    };
}"""


class Editor:
    """The editor with one task open and smart tools on; places are in percent of the picture."""

    def __init__(self, page: Page, url: str, project: int, task: int, label: str) -> None:
        self.page = page
        self.label = label
        page.goto(f"{url}/projects/{project}/data?task={task}")
        page.locator("canvas").first.wait_for()
        page.wait_for_load_state("networkidle")
        if not page.evaluate("() => window.Htx.autoAnnotation"):
            page.get_by_text("Auto-Annotation", exact=True).click()

    def use(self, tool: str, *, label_row: int = 0) -> None:
        """Take a smart tool with the label chosen; a click on a chosen label would take it away."""
        self.page.keyboard.press("Escape")
        labels = self.page.locator(".lsf-label", has_text=self.label)
        if "lsf-label_selected" not in (labels.nth(label_row).get_attribute("class") or ""):
            labels.nth(label_row).click()
        self.page.evaluate(SELECT_TOOL, tool)

    def at(self, x_pct: float, y_pct: float) -> tuple[float, float]:
        box = self.page.locator("img[alt=image]").bounding_box()
        assert box
        return box["x"] + box["width"] * x_pct / 100, box["y"] + box["height"] * y_pct / 100

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> list[dict[str, Any]]:
        """Draw a box; the regions of the answer."""
        with self._answer() as answer:
            self.page.mouse.move(*self.at(x0, y0))
            self.page.mouse.down()
            self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
            self.page.mouse.move(*self.at(x1, y1))
            self.page.mouse.up()
        return self._suggested(answer)

    def click(self, x: float, y: float, *keys: str) -> list[dict[str, Any]]:
        """Click with keys held down; the regions of the answer."""
        with self._answer() as answer:
            for key in keys:
                self.page.keyboard.down(key)
            self.page.mouse.click(*self.at(x, y))
            for key in reversed(keys):
                self.page.keyboard.up(key)
        return self._suggested(answer)

    def _answer(self) -> Any:
        return self.page.expect_response(lambda response: "interactive-annotating" in response.url)

    def _suggested(self, answer: Any) -> list[dict[str, Any]]:
        body = answer.value.json()
        assert not body.get("errors"), body
        result: list[dict[str, Any]] = body["data"]["result"]
        assert len({region["id"] for region in result}) == 1, "one object is one region"
        expect(self.page.get_by_text("1 suggestions")).to_be_visible()
        self.page.wait_for_timeout(500)  # the canvas draws after the list
        return result

    def accept(self) -> dict[str, Any]:
        """The one region that is left once the suggestion is accepted."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        expect(self.page.get_by_text("1 suggestions")).not_to_be_visible()
        state = self.page.evaluate(STATE)
        assert state["suggestions"] == []
        assert not any(region["dynamic"] for region in state["regions"])
        (region,) = (region for region in state["regions"] if region["labels"] == [self.label])
        return dict(region)

    def submit(self) -> None:
        with self.page.expect_response(
            lambda response: response.request.method == "POST" and "/annotations" in response.url
        ) as stored:
            self.page.get_by_test_id("bottombar-submit-button").click()
        assert stored.value.ok


def mask_of(result: list[dict[str, Any]], thing: Thing) -> np.ndarray:
    """The one object of the thing's label; the task's own outlines have others."""
    drawings = regions_to_objects(result, width=thing.width, height=thing.height).objects
    (drawn,) = (drawing for drawing in drawings if drawing.label == thing.label)
    return drawn.mask_hw


def task_of(client: LabelStudioClient, project: int, thing: Thing) -> int:
    (task,) = (t["id"] for t in client.iter_tasks(project) if t["data"]["image"].endswith(thing.photograph))
    return int(task)


def inside(mask_hw: np.ndarray, share: float) -> tuple[float, float]:
    """A place in a mask, `share` of its height from its top, in percent."""
    rows = np.flatnonzero(mask_hw.any(1))
    row = int(rows[int(share * (len(rows) - 1))])
    columns = np.flatnonzero(mask_hw[row])
    return (columns[len(columns) // 2] + 0.5) * 100 / mask_hw.shape[1], (row + 0.5) * 100 / mask_hw.shape[0]


def test_a_box_around_an_unknown_thing_and_a_click_that_corrects(
    demo: RunningDemo, page: Page, screenshots: Path
) -> None:
    client, project = demo.client(), demo.photographs
    assert ROCKET.label not in read_served_model(SHIPPED_MODEL).labels
    task = task_of(client, project, ROCKET)
    editor = Editor(page, demo.url, project, task, ROCKET.label)

    editor.use("RectangleTool-dynamic")
    suggested = editor.drag(*ROCKET_PCT)
    page.screenshot(path=screenshots / "smart-box.png")
    x, y = inside(mask_of(suggested, ROCKET), 0.6)
    assert ROCKET_PCT[0] < x < ROCKET_PCT[2]
    assert ROCKET_PCT[1] < y < ROCKET_PCT[3]

    wrong = inside(mask_of(suggested, ROCKET), 0.97)
    editor.use("KeyPointTool-dynamic")
    # Control: else the click takes hold of the box that it lies in. Alt: not the object.
    corrected = editor.click(*wrong, "Control", "Alt")
    page.screenshot(path=screenshots / "smart-correction.png")
    assert {region["id"] for region in corrected} == {region["id"] for region in suggested}
    assert (mask_of(corrected, ROCKET) != mask_of(suggested, ROCKET)).any()

    assert editor.accept()["type"] == "polygonregion"
    page.screenshot(path=screenshots / "smart-accepted.png")
    editor.submit()
    (annotation,) = client.get_task(task)["annotations"]
    kept = [region["type"] for region in annotation["result"] if region["id"] == suggested[0]["id"]]
    assert sorted(kept) == ["labels", "polygon"]
    np.testing.assert_array_equal(mask_of(annotation["result"], ROCKET), mask_of(corrected, ROCKET))


def test_clicks_with_brush_labels(demo: RunningDemo, page: Page, screenshots: Path, tmp_path: Path) -> None:
    client = demo.client()
    project = client.create_project(title="brush", label_config=BRUSH_CONFIG)["id"]
    client.upload_files(project, [path for path in copy_photographs(tmp_path) if path.name == HELMET.photograph])
    url = f"http://127.0.0.1:{demo.backend_port}"
    client.create_backend(project, url=url, title=read_served_model(SHIPPED_MODEL).version, is_interactive=True)
    task = task_of(client, project, HELMET)
    editor = Editor(page, demo.url, project, task, HELMET.label)

    editor.use("KeyPointTool-dynamic", label_row=1)
    suggested = editor.click(75.0, 80.0)
    editor.use("KeyPointTool-dynamic", label_row=1)  # the editor forgets the label after each click
    corrected = editor.click(40.0, 80.0, "Alt")
    page.screenshot(path=screenshots / "smart-brush.png")
    assert {region["type"] for region in corrected} == {"brushlabels"}
    assert corrected[0]["id"] == suggested[0]["id"]
    assert mask_of(corrected, HELMET)[int(0.8 * HELMET.height), int(0.75 * HELMET.width)]

    assert editor.accept()["type"] == "brushregion"
    editor.submit()
    (annotation,) = client.get_task(task)["annotations"]
    (region,) = annotation["result"]
    assert region["value"]["brushlabels"] == [HELMET.label]
    np.testing.assert_array_equal(mask_of([region], HELMET), mask_of(corrected, HELMET))
    client._json("DELETE", f"/api/projects/{project}/")
