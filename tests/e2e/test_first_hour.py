"""The first hour of a person with photographs: labels that the model does not know, a dozen annotations, a training.

A real Label Studio and a real browser; the annotations of the photographs come through the API instead of by hand. It
prints the time of each step. Run it alone, with the training as long as it is by default:

    TRANSFINER_FIRST_HOUR=1 python -m pytest -s tests/e2e/test_first_hour.py
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from PIL import Image, ImageDraw
from playwright.sync_api import Dialog, Page, expect

from backend.cli.main import cli
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.notice import is_notice
from tests.support.running_demo import RunningDemo

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data")) / "balloon" / "train"
IS_WHOLE = bool(os.environ.get("TRANSFINER_FIRST_HOUR"))
PHOTOGRAPHS, ANNOTATED = (19, 15) if IS_WHOLE else (7, 5)
EDGE_PX = 640
LATE_S = 600.0
LONGEST_ROUND_S = 5400.0
WORDS = "knows none of: balloon"


def first_config() -> str:
    """The label config that the README offers for polygons with smart tools."""
    return (ROOT / "README.md").read_text(encoding="utf-8").split("```xml\n")[1].split("```")[0]


def photographs(folder: Path) -> list[tuple[Path, list[list[list[float]]]]]:
    """Photographs with their balloons' outlines in percent of the image; drawn ones where the data set is not there."""
    if (DATA / "via_region_data.json").is_file():
        return [_reduced(entry, folder) for entry in _entries()[:PHOTOGRAPHS]]
    return [_drawn(number, folder) for number in range(PHOTOGRAPHS)]


def _entries() -> list[dict[str, Any]]:
    entries = json.loads((DATA / "via_region_data.json").read_text())
    return sorted(entries.values(), key=lambda entry: str(entry["filename"]))


def _reduced(entry: dict[str, Any], folder: Path) -> tuple[Path, list[list[list[float]]]]:
    with Image.open(DATA / entry["filename"]) as image:
        width, height = image.size
        image.thumbnail((EDGE_PX, EDGE_PX))
        path = folder / entry["filename"]
        image.convert("RGB").save(path, quality=90)
    shapes = [region["shape_attributes"] for region in entry["regions"].values()]
    return path, [
        [
            [min(100.0, 100 * x / width), min(100.0, 100 * y / height)]
            for x, y in zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        ]
        for shape in shapes
    ]


def _drawn(number: int, folder: Path) -> tuple[Path, list[list[list[float]]]]:
    """An octagon on a plain ground."""
    image = Image.new("RGB", (EDGE_PX, EDGE_PX * 3 // 4), (205 + number, 220, 230))
    left, top, radius = 120 + 40 * number, 140 + 10 * number, 90
    sides = [(0.4, 1), (-0.4, 1), (-1, 0.4), (-1, -0.4), (-0.4, -1), (0.4, -1), (1, -0.4), (1, 0.4)]
    points = [(left + radius * x, top + radius * y) for x, y in sides]
    ImageDraw.Draw(image).polygon(points, fill=(190, 30 + 9 * number, 60))
    path = folder / f"drawn-{number}.png"
    image.save(path)
    return path, [[[100 * x / image.width, 100 * y / image.height] for x, y in points]]


class Clock:
    """Prints what each step took."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def step(self, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self.start:7.1f} s  {what} ({now - self.last:.1f} s)")
        self.last = now


@pytest.fixture
def hour(
    demo: RunningDemo, tmp_path: Path
) -> Iterator[tuple[LabelStudioClient, int, dict[int, list[list[list[float]]]], dict[int, tuple[int, int]]]]:
    """A project of photographs: client, its id, and of each task the outlines and the image's width and height."""
    client = demo.client()
    pictures = photographs(tmp_path)
    project = client.create_project(title="Balloons", label_config=first_config())["id"]
    client.upload_files(project, [path for path, _ in pictures])
    outlines = dict(pictures)
    by_name = {path.name: outlines[path] for path in outlines}
    sizes_by_name = {path.name: _size(path) for path in outlines}
    listed = list(client.iter_tasks(project))
    tasks = {task["id"]: _of_task(task, by_name) for task in listed}
    sizes = {task["id"]: _of_task(task, sizes_by_name) for task in listed}
    assert len(tasks) == PHOTOGRAPHS
    yield client, project, tasks, sizes
    client._json("DELETE", f"/api/projects/{project}/")


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _of_task(task: dict[str, Any], by_name: dict[str, Any]) -> Any:
    """Label Studio puts a random part before a file's name."""
    (name,) = (name for name in by_name if str(task["data"]["image"]).endswith(name))
    return by_name[name]


def test_the_first_hour(
    demo: RunningDemo, hour: Any, page: Page, screenshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, project, outlines, sizes = hour
    clock = Clock()
    settings = f"{demo.url}/projects/{project}/settings/ml"
    status = f"http://localhost:{demo.backend_port}/status"

    connect(demo, page, settings)
    clock.step("connected in the browser")

    backend = await_backend(client, project, lambda row: is_notice(row["title"]) and row["is_interactive"])
    assert WORDS in backend["title"]
    assert status in backend["title"]
    await_sampling(client, project, "Uncertainty sampling")  # a request of its own, after the one that sets the title
    page.reload()
    expect(page.get_by_text(WORDS)).to_be_visible()
    page.screenshot(path=screenshots / "hour-1-model.png")
    clock.step("Settings > Model says that the labels are not known")

    client.retrieve_predictions(project)
    assert {row["model_version"] for row in client.list_predictions(project_id=project)} == {backend["title"]}
    page.goto(f"{demo.url}/projects/{project}/data")
    expect(page.get_by_text(WORDS).first).to_be_visible()
    page.screenshot(path=screenshots / "hour-2-retrieved.png")
    doctor = run_doctor(demo, monkeypatch)
    assert "balloon" in doctor[f"labels of project {project}"]["detail"]
    clock.step("Retrieve Predictions leaves a sentence in the data manager; doctor names the labels")

    for task, shapes in list(outlines.items())[:ANNOTATED]:
        client.create_annotation(task, [region(points, sizes[task]) for points in shapes], lead_time=30.0)
    clock.step(f"{ANNOTATED} photographs annotated")

    start_training(page, settings)
    clock.step("Start Training pressed")
    ask_to_cancel(page, status)
    page.screenshot(path=screenshots / "hour-3-training.png", full_page=True)

    run = await_round(demo, project)
    clock.step(f"round 1 is {run['state']}: {'; '.join(run['reasons']) or run['error']}")
    assert run["state"] in ("promoted", "rejected"), run
    page.goto(status)
    page.screenshot(path=screenshots / "hour-4-status.png", full_page=True)
    if run["state"] == "rejected":
        assert not IS_WHOLE, "the first model of labels that nobody knew serves when it finds something"
        return

    await_backend(client, project, lambda row: row["title"] == run["candidate"])
    waiting = list(outlines)[ANNOTATED:]
    await_predictions(client, waiting, run["candidate"])
    clock.step(f"{len(waiting)} other photographs outlined by {run['candidate']}")
    assert not any(is_notice(row["model_version"]) for row in client.list_predictions(project_id=project))
    page.goto(f"{demo.url}/projects/{project}/data?task={waiting[0]}")
    page.locator("canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=screenshots / "hour-5-outlined.png")

    assert exported_objects(demo, project, tmp_path / "export") == sum(map(len, list(outlines.values())[:ANNOTATED]))
    clock.step("exported")


def exported_objects(demo: RunningDemo, project: int, out: Path) -> int:
    """How many objects `transfiner export` writes of a project."""
    arguments = ["export", "--project", str(project), "--url", demo.url, "--api-key", demo.token, "--out", str(out)]
    answer = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    return int(json.loads(answer.stdout)["objects"])


def connect(demo: RunningDemo, page: Page, settings: str) -> None:
    """Connect the backend as a person does, under Settings > Model."""
    page.goto(settings)
    page.get_by_role("button", name="Add machine learning model").click()
    page.locator("input[name=title]").fill("my model")
    page.locator("input[name=url]").fill(f"http://127.0.0.1:{demo.backend_port}")
    page.get_by_role("button", name="Save machine learning form").click()
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()


def start_training(page: Page, settings: str) -> None:
    """Press Start Training under Settings > Model."""
    page.goto(settings)
    page.get_by_label("Machine learning model options").click()
    page.get_by_text("Start Training", exact=True).click()
    page.get_by_role("button", name="Start Training").click()
    expect(page.get_by_text("Request Sent!")).to_be_visible()


def ask_to_cancel(page: Page, status: str) -> None:
    """Press *Cancel training* on the status page, and refuse when it asks; the page follows the training."""
    page.goto(status)
    expect(page.get_by_text("Balloons").first).to_be_visible()
    questions: list[str] = []

    def refuse(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", refuse)
    page.get_by_role("button", name="Cancel training").click()
    assert "Cancel this training of Balloons?" in questions[0]
    # Not loaded again: the page's script shows what is new.
    expect(page.get_by_text("learns, step").first).to_be_visible()


def region(points: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    """A polygon as the editor submits it, on an image of that width and height."""
    return {
        "type": "polygonlabels",
        "from_name": "outline",
        "to_name": "image",
        "image_rotation": 0,
        "original_width": size[0],
        "original_height": size[1],
        "value": {"points": points, "closed": True, "polygonlabels": ["balloon"]},
    }


def await_backend(client: LabelStudioClient, project: int, condition: Any) -> dict[str, Any]:
    give_up = time.monotonic() + LATE_S
    while not condition(backend := client.list_backends(project)[0]):
        assert time.monotonic() < give_up, backend
        time.sleep(0.5)
    return backend


def await_sampling(client: LabelStudioClient, project: int, expected: str) -> None:
    give_up = time.monotonic() + LATE_S
    while (sampling := client.get_project(project)["sampling"]) != expected:
        assert time.monotonic() < give_up, sampling
        time.sleep(0.5)


def await_round(demo: RunningDemo, project: int) -> dict[str, Any]:
    """The record of the project's first round, once it is over."""
    give_up = time.monotonic() + LONGEST_ROUND_S
    while True:
        facts = requests.get(f"http://127.0.0.1:{demo.backend_port}/learning", timeout=60).json()
        (mine,) = (row for row in facts["projects"] if row["id"] == str(project))
        if mine["rounds"] and mine["rounds"][0]["state"] != "running" and not mine["current"]:
            return mine["rounds"][0]
        assert time.monotonic() < give_up, mine
        time.sleep(1.0)


def await_predictions(client: LabelStudioClient, tasks: list[int], version: str) -> None:
    give_up = time.monotonic() + LATE_S
    while not all(
        any(row["model_version"] == version for row in client.list_predictions(task_id=task)) for task in tasks
    ):
        assert time.monotonic() < give_up, "the new predictions did not come"
        time.sleep(1.0)


def run_doctor(demo: RunningDemo, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Findings of `transfiner doctor` by name; what is local is looked at by another test."""
    monkeypatch.setenv("LABEL_STUDIO_URL", demo.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", demo.token)
    monkeypatch.setenv("TRANSFINER_PORT", str(demo.backend_port))
    monkeypatch.setattr("backend.doctor.command.local_findings", lambda _: [])
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code in (0, 1), result.output
    return {row["name"]: row for row in json.loads(result.stdout)}
