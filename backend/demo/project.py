"""The demo's projects in Label Studio: made once through its API, found again later, brought up to date every time.

Every step only adds what is missing, so an interrupted first start goes on where it stopped. The
photographs are public domain or CC0, carried by packages that the product depends on anyway.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import requests
from PIL import Image

from backend.errors import StartError
from backend.settings import SCENES_MODEL, load_settings
from backend.versions.resolve import read_served_model
from integration.label_studio.client import ClientError, LabelStudioClient
from model.files import replacing, write_text
from training.synthetic.scenes import generate_scene, scene_seed

#: Package, file in it. Licences as scikit-image's and matplotlib's documentation state them.
FILES = (
    ("skimage", "data/coffee.png"),  # CC0, Rachel Michetti
    ("skimage", "data/astronaut.png"),  # public domain, NASA
    ("skimage", "data/rocket.jpg"),  # public domain, SpaceX
    ("skimage", "data/camera.png"),  # CC0, Lav Varshney
    ("skimage", "data/coins.png"),  # no known copyright restrictions, Brooklyn Museum
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # public domain, US Navy
)
CREDIT = (
    "Photographs from scikit-image and matplotlib: NASA, SpaceX and US Navy (public domain), Rachel Michetti and Lav "
    "Varshney (CC0), Brooklyn Museum (no known copyright restrictions)."
)
#: COCO's classes among them are outlined at once, the others are for the smart tools.
LABELS = ("cup", "tie", "person", "spoon", "coin", "rocket", "helmet", "saucer")


def copy_photographs(folder: Path) -> list[Path]:
    """Copy the photographs to `folder`; existing ones are kept, those that a package no longer has are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for package, name in FILES:
        source, target = files(package) / name, folder / Path(name).name
        if not target.exists() and source.is_file():
            with replacing(target) as temporary:
                temporary.write_bytes(source.read_bytes())
        if target.exists():
            paths.append(target)
    return paths


SCENES_TITLE = "Transfiner demo: scenes"
SCENES = "Generated scenes. Every object is outlined by the model; correct what is wrong and press Submit."
PHOTOGRAPHS_TITLE = "Transfiner demo: photographs"
BRUSH_TITLE = "Transfiner demo: photographs with a brush"
PHOTOGRAPHS = "Common things are outlined; anything else is a box or a click away."
# Shown above the picture: Label Studio does not explain the smart tools anywhere.
HELP = "Auto-Annotation on, a label, then a box or a click. Not this: Alt+click, in a box Ctrl+Alt+click."
# Distinct on the scenes' muted backgrounds, and for people who confuse red and green.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#8c6bb1")
UPLOAD_CHUNK = 8
PREDICT_CHUNK = 4  # small, so that progress shows; Label Studio stores a chunk only when all of it is predicted
LATE_S = 300.0  # how long to wait for predictions that missed Label Studio's deadline and are pushed later
POLL_S = 1.0


@dataclass(frozen=True)
class DemoProject:
    """A project of the demo.

    Attributes:
        model_version: version of the model that predicts, as the backend reports it.
        model: checkpoint directory that serves this project only; "" for the service's own.
    """

    title: str
    description: str
    label_config: str
    model_version: str
    backend_url: str
    images: Sequence[Path]
    model: str = ""


Report = Callable[[str], None]


def _labels(labels: Sequence[str]) -> str:
    """Label tags, each with a colour of its own."""
    return "\n".join(
        f"    <Label value={quoteattr(label)} background={quoteattr(COLOURS[number % len(COLOURS)])}/>"
        for number, label in enumerate(labels)
    )


def scenes_config(labels: Sequence[str]) -> str:
    """Label config of the scenes: polygons in the colours of the labels."""
    return f"""<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <PolygonLabels name="label" toName="image" strokeWidth="2" opacity="0.3">
{_labels(labels)}
  </PolygonLabels>
</View>"""


def smart_config(labels: Sequence[str], shape: str) -> str:
    """Label config with one row of labels for outlines of a shape ("Polygon", "Brush") and smart boxes and clicks.

    The labels are above the image: below a tall one they would be out of sight.
    """
    return f"""<View>
  <Header size="6" value={quoteattr(HELP)}/>
  <Labels name="label" toName="image" strokeWidth="3" opacity="0.3">
{_labels(labels)}
  </Labels>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <{shape} name="outline" toName="image"/>
  <Rectangle name="box" toName="image" smart="true" smartOnly="true"/>
  <KeyPoint name="click" toName="image" smart="true" smartOnly="true"/>
</View>"""


def draw_scenes(folder: Path, count: int) -> list[Path]:
    """Draw the first `count` demo scenes as PNG files in `folder`; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scene-{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            with replacing(path) as temporary:
                Image.fromarray(generate_scene(scene_seed("demo", number)).image).save(temporary, "PNG")
    return paths


def prepare_project(client: LabelStudioClient, demo: DemoProject, report: Report, registry: str = "") -> int:
    """Make a project ready to annotate and return its id."""
    project = _project(client, demo)
    if demo.model:
        demo = replace(demo, model_version=_serve(registry, project, Path(demo.model), demo.model_version))
    _import_images(client, project, demo.images, report)
    _connect(client, project, demo)
    _retrieve(client, project, demo, report)
    return project


def _project(client: LabelStudioClient, demo: DemoProject) -> int:
    for project in client.list_projects():
        if project["title"] == demo.title:
            return int(project["id"])
    created = client.create_project(
        title=demo.title,
        label_config=demo.label_config,
        description=demo.description,
        sampling="Uncertainty sampling",  # the label stream starts with the pictures the model is least sure of
        show_collab_predictions=True,
    )
    return int(created["id"])


def _serve(registry: str, project: int, model: Path, version: str) -> str:
    """Let a model serve a project, unless a version trained on it does; the version that serves."""
    from training.registry import Registry

    versions, name = Registry(registry), str(project)
    active = versions.active(name)
    if active != version and not (active or "").startswith(f"p{name}-"):
        versions.promote(name, versions.publish(name, model))
        return version
    return active or version


def _import_images(client: LabelStudioClient, project: int, images: Sequence[Path], report: Report) -> None:
    # Label Studio prefixes a file's name with a random part.
    present = {str(task["data"].get("image", "")).partition("-")[2] for task in client.iter_tasks(project)}
    missing_paths = [path for path in images if path.name not in present]
    for start in range(0, len(missing_paths), UPLOAD_CHUNK):
        report(f"importing images ({start} of {len(missing_paths)})")
        client.upload_files(project, missing_paths[start : start + UPLOAD_CHUNK])


def _connect(client: LabelStudioClient, project: int, demo: DemoProject) -> None:
    """Connect the backend, under a title that equals the model version.

    Label Studio orders tasks by the scores of the version that the project names, which is the backend's title.
    """
    fields: dict[str, Any] = {"url": demo.backend_url, "title": demo.model_version, "is_interactive": True}
    backends = client.list_backends(project)
    if not backends:
        client.create_backend(project, **fields)
    elif any(backends[0].get(key) != value for key, value in fields.items()):
        client.update_backend(backends[0], **fields)


def _retrieve(client: LabelStudioClient, project: int, demo: DemoProject, report: Report) -> None:
    """Let Label Studio request every missing prediction, and wait until it has them.

    An image that cannot be predicted is reported and skipped; it is an error when none can.
    """
    task_ids = _without_prediction(client, project, demo.model_version)
    total = len(task_ids)
    for start in range(0, total, PREDICT_CHUNK):
        report(f"outlining objects ({start} of {total} images)")
        client.retrieve_predictions(project, task_ids[start : start + PREDICT_CHUNK])
    give_up = time.monotonic() + LATE_S
    while tasks_left := _without_prediction(client, project, demo.model_version):
        failures = _failures(demo.backend_url, project)
        late_tasks = [task for task in tasks_left if task not in failures]
        if not late_tasks:
            message = f"{len(tasks_left)} of {total} images got no prediction: {failures[tasks_left[0]]}"
            if len(tasks_left) == total:
                raise StartError(message, "The worker's log says more.")
            report(message)
            return
        if time.monotonic() > give_up:
            problem = f"{len(late_tasks)} of {total} images got no prediction within {LATE_S:.0f} s."
            raise StartError(problem, "The worker's log says what it did; start again to go on.")
        report(f"outlining objects ({total - len(tasks_left)} of {total} images)")
        time.sleep(POLL_S)


def _without_prediction(client: LabelStudioClient, project: int, version: str) -> list[int]:
    """Ids of tasks without annotation and without a prediction of `version`."""
    return [
        int(task["id"])
        for task in client.iter_tasks(project)
        if not task.get("annotations")
        and not any(prediction["model_version"] == version for prediction in task.get("predictions", ()))
    ]


def _failures(backend_url: str, project: int) -> dict[int, str]:
    """Task ids that the backend has given up, with the reasons."""
    answer = requests.get(f"{backend_url}/jobs", params={"project": project, "limit": 1000}, timeout=10)
    answer.raise_for_status()
    rows = answer.json()["jobs"]
    return {int(row["task"]): row.get("error", "") for row in rows if row["state"] in ("failed", "parked")}


def main(folder: Path, scene_count: int) -> None:
    """Prepare the demo's projects, write their ids to `project.json`, and keep running.

    A process of its own, so that Ctrl-C can end it at any moment; it keeps running because the supervisor restarts
    processes that end. The API key comes in the environment, where other users of the machine cannot read it.
    """
    settings = load_settings()
    url = f"http://127.0.0.1:{settings.port}"
    photographs = copy_photographs(folder / "images" / "photographs")
    scenes, model = read_served_model(SCENES_MODEL), read_served_model(settings.model)
    text = f"{PHOTOGRAPHS} {CREDIT}"
    projects = {
        "photographs": DemoProject(
            PHOTOGRAPHS_TITLE, text, smart_config(LABELS, "Polygon"), model.version, url, photographs
        ),
        "brush": DemoProject(BRUSH_TITLE, text, smart_config(LABELS, "Brush"), model.version, url, photographs),
        "project": DemoProject(
            SCENES_TITLE,
            SCENES,
            scenes_config(scenes.labels),
            scenes.version,
            url,
            draw_scenes(folder / "images", scene_count),
            str(scenes.directory),
        ),
    }
    client = LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    numbers = {
        name: prepare_project(client, demo, lambda text: print(text, flush=True), settings.registry)
        for name, demo in projects.items()
    }
    write_text(folder / "project.json", json.dumps(numbers))
    os.execvp("sleep", ["sleep", "infinity"])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except (ClientError, StartError, requests.RequestException) as error:
        sys.exit(str(error))
