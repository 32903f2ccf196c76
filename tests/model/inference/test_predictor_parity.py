"""The whole way of an authors' checkpoint gives the authors' numbers: their file, our import, our predictor.

The photograph is third-party data: without it (TRANSFINER_SHARED_DATA) these tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask

from model.checkpoints.import_released import import_released, known_classes
from model.inference.predictor import InputSettings, Predictor
from model.instance import Instance
from tests.support.released_fixture import FIXTURES, whole_model_state

pytestmark = pytest.mark.slow

PHOTO = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data")) / "coco_samples" / "000000008844.jpg"
NAME = "parity_8844_edge320"
# Between correct implementations on a CPU in fp32; 20 of 20 planted mistakes exceeded them.
BOX_TOLERANCE_PX = 5e-3
SCORE_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 3e-3
MIN_IOU = 0.999


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((FIXTURES / f"{NAME}.json").read_text())


@pytest.fixture(scope="module")
def photo_rgb() -> np.ndarray:
    if not PHOTO.exists():
        pytest.skip(f"no photograph at {PHOTO}: set TRANSFINER_SHARED_DATA")
    with Image.open(PHOTO) as image:
        return np.asarray(image.convert("RGB"))


class Run:
    """One prediction: what the predictor returned, and what the network handed over on the way."""

    def __init__(self, predictor: Predictor, photo_rgb: np.ndarray) -> None:
        captured: list[Any] = []
        head = predictor._model.roi_heads.mask_head
        hooks = [
            predictor._model.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0][0]["image"])),
            head.register_forward_hook(lambda _, __, output: captured.append(output[0])),
        ]
        [self.instances] = predictor([photo_rgb])
        for hook in hooks:
            hook.remove()
        self.image: torch.Tensor = captured[0]
        self.network_output: Instances = captured[1]


@pytest.fixture(scope="module")
def run(recorded: dict, photo_rgb: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("parity")
    torch.save({"model": whole_model_state(), "iteration": 269999}, folder / "output.pth")
    import_released(folder / "output.pth", folder / "R50", name="R50")
    predictor = Predictor.from_checkpoint(folder / "R50", device="cpu")
    assert predictor.input_settings == InputSettings("BGR", 800, 1333)
    predictor.input_settings = InputSettings("BGR", recorded["min_size"], 1333)
    # The authors refine the first ten of a batch.
    head = predictor._model.roi_heads.mask_head
    head.settings = type(head.settings)(**{**vars(head.settings), "test_instance_limit": 10})
    return Run(predictor, photo_rgb)


def test_the_network_sees_the_same_pixels(run: Run, recorded: dict) -> None:
    assert list(run.image.shape) == recorded["input_shape"]
    pixels_bgr = np.ascontiguousarray(run.image.permute(1, 2, 0).numpy())
    assert hashlib.sha256(pixels_bgr.tobytes()).hexdigest().startswith(recorded["resized_sha"])


def test_detections(run: Run, recorded: dict) -> None:
    names = known_classes(80)
    assert names is not None
    assert [instance.label for instance in run.instances] == [names[k] for k in recorded["classes"]]
    np.testing.assert_allclose([i.score for i in run.instances], recorded["scores"], atol=SCORE_TOLERANCE)
    np.testing.assert_allclose([i.box_xyxy for i in run.instances], recorded["boxes"], atol=BOX_TOLERANCE_PX)


def test_refined_probabilities(run: Run) -> None:
    with np.load(FIXTURES / f"{NAME}.npz") as arrays:
        expected = arrays["mask_probs"]
    np.testing.assert_allclose(run.network_output.pred_masks[:, 0], expected, atol=PROBABILITY_TOLERANCE)


def test_pasted_masks(run: Run, recorded: dict) -> None:
    ious = [iou(instance, rle) for instance, rle in zip(run.instances, recorded["masks_rle"], strict=True)]
    assert min(ious) >= MIN_IOU


def iou(instance: Instance, rle: dict) -> float:
    expected = coco_mask.decode(rle).astype(bool)
    return float((expected & instance.mask_hw).sum() / (expected | instance.mask_hw).sum())
