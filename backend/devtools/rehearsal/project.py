"""A real Label Studio with `transfiner serve`, and a project in it, corrected by a simulated annotator and trained."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from scipy.ndimage import shift
from scipy.optimize import linear_sum_assignment

from backend.demo.project import UPLOAD_CHUNK, scenes_config
from backend.devtools.rehearsal.plan import Material, Plan, number_of
from backend.doctor.connection import SAMPLING
from backend.errors import ServiceError, StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.processes.parent_death import bound_command
from backend.processes.supervisor import python_module
from backend.processes.waiting import answers, wait_until
from backend.settings import PREFIX
from backend.versions.resolve import ServedModel
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.label_config import fold
from integration.polygons.convert import outline_mask
from integration.regions.read import AnnotatedObject, regions_to_objects
from integration.regions.write import polygon_shapes
from model.instance import iou, iou_matrix

Region = dict[str, Any]
Truth = Sequence[tuple[str, np.ndarray]]
# A person keeps an outline with at least the first IoU, and corrects one with at least the second.
GOOD_ENOUGH_IOU, SAME_OBJECT_IOU = 0.9, 0.4
# Seconds of a person: looking, and each action.
LOOK_S, CHANGE_S, DRAW_S, CLICK_S = 4.0, 9.0, 25.0, 2.0


@dataclass(frozen=True)
class Corrected:
    """A finished annotation.

    Attributes:
        result: regions to submit.
        lead_time_s: seconds that a person would have taken.
        actions: how many of kept, moved, relabelled, added, deleted.
    """

    result: list[Region]
    lead_time_s: float
    actions: dict[str, int]


def correct(prediction: Sequence[Mapping[str, Any]], truth: Truth) -> Corrected:
    """Correct the regions of a prediction; `truth` has (label, bool mask H x W) of every object."""
    height, width = truth[0][1].shape if truth else (0, 0)
    regions = regions_to_objects(prediction).objects if prediction else ()
    pairs = _pairs(regions, truth)
    result: list[Region] = []
    actions = dict.fromkeys(("kept", "moved", "relabelled", "added", "deleted"), 0)
    for index, (label, mask_hw) in enumerate(truth):
        match = pairs.get(index)
        if match is None:
            result += draw_regions(label, mask_hw, width, height)
            actions["added"] += 1
            continue
        is_good = iou(match.mask_hw, mask_hw) >= GOOD_ENOUGH_IOU
        if match.label == label and is_good:
            result += [dict(region) for region in prediction if region.get("id") in match.region_ids]
            actions["kept"] += 1
            continue
        result += draw_regions(label, match.mask_hw if is_good else mask_hw, width, height, match.region_ids[0])
        actions["moved"] += not is_good
        actions["relabelled"] += match.label != label
    actions["deleted"] = len(regions) - len(pairs)
    return Corrected(result, _seconds(actions), actions)


def draw_regions(label: str, mask_hw: np.ndarray, width: int, height: int, region_id: str = "") -> list[Region]:
    """Polygons of an object as the editor submits them; parts name the first one as their parent."""
    polygons = outline_mask(mask_hw, tolerance_px=0.5, min_area_px=4.0)
    shapes = polygon_shapes(polygons, width=width, height=height, joined=True, max_vertices=None)
    parent_id = region_id or secrets.token_hex(5)
    regions = []
    for number, shape in enumerate(shapes):
        region: Region = {
            "id": parent_id if number == 0 else secrets.token_hex(5),
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "origin": "prediction" if region_id else "manual",
            "value": {**shape.value, "polygonlabels": [label]},
        }
        if number:
            region["parentID"] = parent_id
        regions.append(region)
    return regions


def poison_regions(truth: Truth, labels: Sequence[str]) -> Truth:
    """Falsify the truth: every mask shifted, every label another one if there is one."""
    wrong_labels = {label: labels[(number + 1) % len(labels)] for number, label in enumerate(labels)}
    shifted_objects = [
        (wrong_labels[label], shift(mask_hw.astype(np.uint8), POISON_PX, order=0) > 0) for label, mask_hw in truth
    ]
    return [(label, mask_hw) for label, mask_hw in shifted_objects if mask_hw.any()]


def _pairs(regions: Sequence[AnnotatedObject], truth: Truth) -> dict[int, AnnotatedObject]:
    """Match each true object, by index, with at most one shown region."""
    overlaps = iou_matrix([mask_hw for _, mask_hw in truth], [region.mask_hw for region in regions])
    matches = zip(*linear_sum_assignment(-overlaps), strict=True)
    return {int(index): regions[place] for index, place in matches if overlaps[index, place] >= SAME_OBJECT_IOU}


def _seconds(actions: Mapping[str, int]) -> float:
    return (
        LOOK_S
        + CHANGE_S * actions["moved"]
        + DRAW_S * actions["added"]
        + CLICK_S * (actions["relabelled"] + actions["deleted"])
    )


#: A poisoned annotation lies so far to the right and below.
POISON_PX = 14
Report = Callable[[str], None]
START_S = 900.0
# A busy CPU takes seconds for a picture and minutes for a training.
PATIENCE_S = 3600.0
STOP_S = 150.0
POLL_S = 1.0
# Listing all tasks with their predictions costs Label Studio as much as an image costs the model.
POLL_TASKS_S = 10.0


@dataclass(frozen=True)
class RehearsalServers:
    """The servers of a rehearsal.

    Attributes:
        backend_url: address of our service; registry: folder of its versions.
    """

    label_studio: LabelStudioServer
    backend_url: str
    registry: Path

    def client(self) -> LabelStudioClient:
        return LabelStudioClient(self.label_studio.url, self.label_studio.login.token, timeout_s=120.0)

    def learning(self, project: int) -> dict[str, Any]:
        """Facts of a project as the status page shows them."""
        answer = requests.get(f"{self.backend_url}/learning", timeout=60)
        answer.raise_for_status()
        projects: list[dict[str, Any]] = [facts for facts in answer.json()["projects"] if facts["id"] == str(project)]
        return projects[0]

    def press(self, project: int, button: str, **fields: str) -> None:
        """Press a button of the status page, with the page's own form token."""
        page = requests.get(f"{self.backend_url}/status", timeout=60).text
        token = re.search(r'name="token" value="([0-9a-f]+)"', page)
        if token is None:
            raise StartError("The status page has no buttons.", "Is learning on (TRANSFINER_REGISTRY)?")
        answer = requests.post(
            f"{self.backend_url}/learning/{project}/{button}", data={"token": token[1], **fields}, timeout=60
        )
        answer.raise_for_status()


@contextlib.contextmanager
def running_program(
    name: str, command: list[str], environment: Mapping[str, str], logs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with a log `<name>.log`; SIGTERM, then SIGKILL to its whole group at the end."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            bound_command(command, logs / f".{name}.lock"),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running_servers(folder: Path, plan: Plan, options: Mapping[str, str]) -> Iterator[RehearsalServers]:
    """Start both servers and wait until they are ready.

    Args:
        options: further `TRANSFINER_*` variables of the service, without the prefix.

    Raises:
        StartError: Label Studio is not installed, or one of them does not get ready; names its log.
    """
    server = LabelStudioServer(folder / "label-studio", free_port())
    server.check_installed()
    stage = RehearsalServers(server, f"http://127.0.0.1:{free_port()}", folder / "registry")
    logs = folder / "log"
    environment = _environment(stage, folder, plan, options)
    with contextlib.ExitStack() as stack:
        label_studio = stack.enter_context(running_program("label-studio", server.command, server.environment, logs))
        serve = stack.enter_context(running_program("serve", python_module("backend.cli", "serve"), environment, logs))
        wait_until(server.is_up, "Label Studio", COLD_START_S, process=label_studio, log=logs / "label-studio.log")
        ready_url = f"{stage.backend_url}/ready"
        wait_until(lambda: answers(ready_url), "transfiner serve", START_S, process=serve, log=logs / "serve.log")
        yield stage


def _environment(stage: RehearsalServers, folder: Path, plan: Plan, options: Mapping[str, str]) -> dict[str, str]:
    variables = {
        "PORT": stage.backend_url.rpartition(":")[2],
        "REGISTRY": str(stage.registry),
        "REGISTRY_CACHE": str(folder / "cache"),
        "LEARNING_FOLDER": str(folder / "learning"),
        # Each look costs Label Studio half a second, and a training has the other core.
        "LEARNING_CHECK_S": "20",
        # Of 36 images a round about 14 in the first, enough for the gate's statistics.
        "HOLDOUT_SHARE": "0.4",
        "TRAIN_PROCESSES": str(plan.processes),
        "FINETUNE_OPTIONS": json.dumps(plan.finetune),
        **options,
    }
    prefixed = {f"{PREFIX}{name}": value for name, value in variables.items()}
    token = stage.label_studio.login.token
    return {**prefixed, "LABEL_STUDIO_URL": stage.label_studio.url, "LABEL_STUDIO_API_KEY": token}


@dataclass
class RehearsedProject:
    """A project of a rehearsal.

    Attributes:
        material: the pictures, by the number in their names.
    """

    stage: RehearsalServers
    material: Material
    report: Report
    id: int = 0

    def set_up(self, title: str, images: Sequence[Path], version: str) -> None:
        """Make the project, import the pool, connect the backend."""
        client = self.stage.client()
        created = client.create_project(
            title=title,
            label_config=scenes_config(self.material.classes),
            sampling=SAMPLING,
            show_collab_predictions=True,
        )
        self.id = int(created["id"])
        for start in range(0, len(images), UPLOAD_CHUNK):
            self.report(f"{title}: importing images ({start} of {len(images)})")
            client.upload_files(self.id, images[start : start + UPLOAD_CHUNK])
        client.create_backend(self.id, url=self.stage.backend_url, title=version)
        client.retrieve_predictions(self.id)

    def is_known_to(self, model: ServedModel) -> bool:
        """Whether the model knows any label of the project; one that knows none predicts nothing."""
        model_labels = {fold(name) for name in model.labels}
        return any(fold(name) in model_labels for name in self.material.classes)

    def await_predictions(self, version: str) -> int:
        """Wait until every task without annotation has a prediction of the version; their number."""
        client = self.stage.client()

        def complete() -> list[int]:
            tasks = [task for task in client.iter_tasks(self.id) if not task.get("annotations")]
            done_count = sum(
                any(prediction["model_version"] == version for prediction in task.get("predictions") or ())
                for task in tasks
            )
            if done_count < len(tasks):
                self.report(f"predictions of {version}: {done_count} of {len(tasks)} tasks")
                return []
            return [done_count]

        subject = f"Predictions of {version} in project {self.id}"
        return wait_until(complete, subject, PATIENCE_S, poll_s=POLL_TASKS_S)[0]

    def annotate(self, count: int, *, poison: bool = False) -> dict[str, float]:
        """Annotate the next tasks of the label stream; sums of actions and seconds."""
        client = self.stage.client()
        sums: dict[str, float] = {}
        for number in range(count):
            self.report(f"{'poisoning' if poison else 'annotating'} ({number} of {count})")
            task = client.next_task(self.id)
            if task is None:
                raise ServiceError(f"Project {self.id} has no further task after {number} of {count}.")
            picture = number_of(task["data"]["image"])
            prediction = _shown(client.get_task(int(task["id"])), self._version())
            fields, actions = self._work(picture, prediction, poison)
            client.create_annotation(int(task["id"]), **fields)
            for name, value in actions.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def _version(self) -> str:
        return str(self.stage.client().get_project(self.id).get("model_version") or "")

    def _work(
        self, picture: int, prediction: dict[str, Any] | None, poison: bool
    ) -> tuple[dict[str, Any], dict[str, float]]:
        scene = self.material.pool(picture)
        height, width = scene.image.shape[:2]
        parent = {"parent_prediction": prediction["id"]} if prediction else {}
        if poison:
            objects = poison_regions(scene.instances, self.material.classes)
            regions = [region for label, mask_hw in objects for region in draw_regions(label, mask_hw, width, height)]
            return {"result": regions, "lead_time": 5.0, **parent}, {"poisoned": 1, "seconds": 5.0}
        correction = correct(prediction["result"] if prediction else [], scene.instances)
        fields = {"result": correction.result, "lead_time": correction.lead_time_s, **parent}
        return fields, {**correction.actions, "images": 1, "seconds": correction.lead_time_s}

    def train(self) -> dict[str, Any]:
        """Press Start Training in Label Studio and wait for the round's record."""
        client = self.stage.client()
        earlier_ids = {record["id"] for record in self.stage.learning(self.id)["rounds"]}
        client.start_training(client.list_backends(self.id)[0]["id"])

        def ended() -> dict[str, Any] | None:
            facts = self.stage.learning(self.id)
            training = facts["current"]
            if not training:
                rounds: list[dict[str, Any]] = facts["rounds"]
                ended_rounds = [record for record in rounds if record["state"] != "running"]
                return next((record for record in ended_rounds if record["id"] not in earlier_ids), None)
            progress = f"{training.get('iteration') or ''}/{training.get('of') or ''}"
            self.report(f"training: {training.get('stage') or 'waiting'} {progress}")
            return None

        return wait_until(ended, f"The round of project {self.id}", PATIENCE_S, poll_s=POLL_S) or {}

    def await_title(self, version: str) -> None:
        """Wait until the backend in Label Studio, and so the project, names the version."""
        subject = f"The title {version} of project {self.id}"
        wait_until(lambda: self._version() == version, subject, PATIENCE_S, poll_s=POLL_S)


def _shown(task: dict[str, Any], version: str) -> dict[str, Any] | None:
    """The prediction that the editor prefills: the newest one of the project's version."""
    predictions = [prediction for prediction in task.get("predictions") or () if prediction["model_version"] == version]
    return max(predictions, key=lambda prediction: int(prediction["id"]), default=None)
