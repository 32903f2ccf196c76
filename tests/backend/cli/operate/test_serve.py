"""`transfiner serve` for real: its own queue server and HTTP server, a worker with the real model; no stand-ins.

Runs on the model that ships, or on the checkpoint directory in TRANSFINER_MODEL.
"""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from backend.processes.parent_death import ends_with_parent
from backend.settings import SCENES_MODEL
from integration.label_studio.label_config import Output
from integration.polygons.contours import Polygon
from integration.polygons.convert import polygons_to_mask
from tests.support.service import ROOT, wait_until

MODEL = Path(os.environ.get("TRANSFINER_MODEL") or SCENES_MODEL)
# Nothing here is about time, and the machine may be busy.
PATIENT = {"TRANSFINER_PREDICT_DEADLINE_S": "600", "TRANSFINER_WORKER_LOST_S": "20"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL / "model.safetensors").is_file(), reason=f"there is no checkpoint in {MODEL}; set TRANSFINER_MODEL"
    ),
]


class Serving:
    """One `transfiner serve`."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFINER_")}
        environment["TRANSFINER_PRECISION"] = "fp32"  # its regions are compared with a predictor's on any processor
        self.process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "serve", "--port", "0", "--model", str(MODEL), "--device", "cpu"],
            env={**environment, "OMP_NUM_THREADS": "1", "TRANSFINER_SCORE_THRESHOLD": "0.3", **PATIENT},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ends_with_parent(signal.SIGTERM),
        )
        self.log: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.startswith("Transfiner serves http://"):
            self.end()
        assert line.startswith("Transfiner serves http://"), "".join(self.log)
        self.address = line.split()[2]

    def _read(self) -> None:
        assert self.process.stderr
        self.log += self.process.stderr.readlines()

    def descendants(self) -> dict[int, str]:
        """Pid and command line of every process of the tree."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if stat[0] != "Z":
                parents[int(folder.name)] = (int(stat[1]), command)
        tree: dict[int, str] = {}
        fresh = {self.process.pid}
        while fresh:
            fresh = {pid for pid, (parent, _) in parents.items() if parent in fresh}
            tree |= {pid: parents[pid][1] for pid in fresh}
        return tree

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=90)
        self.reader.join()
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    service = Serving()
    try:
        yield service
    finally:
        service.end()


@pytest.fixture(scope="module")
def model():
    from model.inference.predictor import Predictor

    return Predictor.from_checkpoint(MODEL, device="cpu", score_threshold=0.25)


def scene(seed: int) -> np.ndarray:
    from training.synthetic.scenes import generate_scene

    return generate_scene(seed).image


def task(number: int, image: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"id": number, "data": {"image": uri}}


def body(items: list[dict], labels: tuple[str, ...]) -> dict:
    tags = "".join(f'<Label value="{label}"/>' for label in labels)
    config = (
        f'<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image" '
        f'model_tolerance_px="0">{tags}</PolygonLabels></View>'
    )
    return {"tasks": items, "project": "1.1", "label_config": config, "params": {"context": None}}


def drawn(region: dict) -> np.ndarray:
    width, height = region["original_width"], region["original_height"]
    points = np.array(region["value"]["points"]) * [width / 100, height / 100]
    return polygons_to_mask([Polygon(points, ())], height, width)


def test_polygons_are_the_model_s_own_masks(serving, model):
    images = [scene(seed) for seed in (900_001, 900_002, 900_003)]
    request = body([task(n, image) for n, image in enumerate(images)], model.labels)
    answer = requests.post(f"{serving.address}/predict", json=request, timeout=700).json()
    assert "errors" not in answer
    expected = model(images)
    assert sum(len(instances) for instances in expected) > 0
    for item, instances in zip(answer["results"], expected, strict=True):
        assert item["model_version"] == model.version
        strong = [instance for instance in instances if instance.score >= 0.3 and instance.mask_hw.sum() >= 64]
        strong.sort(key=lambda instance: -instance.score)
        for rank, instance in enumerate(strong):
            # An object found twice, under whatever label, is shown once: with its best score.
            if any(iou(better.mask_hw, instance.mask_hw) > Output().double_iou for better in strong[:rank]):
                continue
            # Parts are regions of their own, so the best region may be a part of the mask.
            same = [region for region in item["result"] if region["value"]["polygonlabels"] == [instance.label]]
            assert max(iou(drawn(region), instance.mask_hw) for region in same) > 0.5
        assert bool(item["result"]) == bool(strong)


def iou(mask_hw: np.ndarray, other_hw: np.ndarray) -> float:
    return float((mask_hw & other_hw).sum() / (mask_hw | other_hw).sum())


def test_parallel_requests_are_all_answered(serving, model):
    bodies = [body([task(100 + n, scene(910_000 + n))], model.labels) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda request: requests.post(f"{serving.address}/predict", json=request, timeout=700).json(), bodies
        )
        assert [len(answer["results"]) for answer in answers] == [1, 1, 1, 1]


def test_prompts_are_answered_by_a_worker_of_their_own(serving):
    """It is not waited for at the start, so the first ones may be answered by the other worker."""
    boxes = iter(range(2, 40))

    def worker_of_a_prompt() -> str:
        place = {"x": next(boxes), "y": 20, "width": 50, "height": 50, "rectanglelabels": ["thing"]}
        regions = [{"id": "b", "type": "rectanglelabels", "value": place}]
        request = body([task(300, scene(930_000))], ("thing",))
        request["params"]["context"] = {"result": regions}
        (prediction,) = requests.post(f"{serving.address}/predict", json=request, timeout=700).json()["results"]
        assert [region["value"]["polygonlabels"] for region in prediction["result"]] == [["thing"]]
        return str(requests.get(f"{serving.address}/jobs", timeout=20).json()["jobs"][0]["worker"])

    wait_until(lambda: worker_of_a_prompt().startswith("interactive-"))


def test_the_api_is_small_and_torch_is_in_the_worker_only(serving):
    tree = serving.descendants()
    with_torch = {pid for pid in tree if "libtorch" in Path(f"/proc/{pid}/maps").read_text()}
    assert {tree[pid].split()[-1] for pid in with_torch} == {"interactive", "worker"}
    for pid in tree:
        if tree[pid].rstrip().endswith("api"):
            resident = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
            assert int(resident) / 1024 < 150


def test_a_killed_worker_comes_back_and_the_task_with_it(serving, model):
    before = {pid for pid, command in serving.descendants().items() if command.rstrip().endswith("worker")}
    assert len(before) == 1
    os.kill(before.pop(), signal.SIGKILL)
    request = body([task(200, scene(920_000))], model.labels)
    answer = requests.post(f"{serving.address}/predict", json=request, timeout=700).json()
    assert len(answer["results"]) == 1
    wait_until(lambda: requests.get(f"{serving.address}/ready", timeout=10).status_code == 200)


def test_sigterm_ends_the_whole_tree():
    serving = Serving()
    tree = serving.descendants()
    commands = " ".join(tree.values())
    assert "valkey-server" in commands or "redis-server" in commands
    serving.end()
    assert serving.process.returncode == 0, "".join(serving.log)
    assert not any(Path(f"/proc/{pid}").exists() for pid in tree)


def test_a_taken_port_is_one_clear_sentence(serving):
    port = serving.address.rpartition(":")[2]
    result = subprocess.run(
        [sys.executable, "-m", "backend.cli", "serve", "--port", port, "--model", str(MODEL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr
