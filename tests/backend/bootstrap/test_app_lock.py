"""`make demo` and `make serve` set up the app lock only: nothing that only the tests' environment has may be needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend.bootstrap.locked_imports import run_locked

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements" / "app.txt"


def answer(code: str) -> str:
    result = run_locked(code, LOCK, ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_module_can_be_imported() -> None:
    code = """
import importlib, pkgutil
import backend, integration, model, training
names = [m.name for p in (backend, integration, model, training)
         for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".", onerror=lambda name: 1 / 0)]
names.remove("training.benchmark.cost.half_precision")  # PointRend's package wants OpenCV, which only tests install
names.remove("integration.label_studio_ml")  # the adapter for those who bring that package along
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(answer(code)) > 200


def test_the_shipped_model_outlines_an_image() -> None:
    code = """
from backend.settings import SCENES_MODEL
from model.inference.predictor import Predictor
from training.synthetic.scenes import generate_scene, scene_seed
scene = generate_scene(scene_seed("demo", 0))
(found,) = Predictor.from_checkpoint(SCENES_MODEL, device="cpu")([scene.image])
print(len(found))
"""
    assert int(answer(code)) > 0


@pytest.mark.parametrize(
    "code",
    [
        "from model.network import build_network as b; from training.engine.build import get_training_config as c;"
        "b(c('ablations/pointrend'))",
        "import sys, numpy as np; from backend.devtools.simulated_edits import opencv;"
        "from backend.errors import ServiceError;"
        "exec('try: opencv(np.zeros((2, 2), bool), 1.0)\\nexcept ServiceError as error: sys.exit(error.hint)')",
    ],
)
def test_what_only_comparisons_need_is_named_with_the_fix(code: str) -> None:
    result = run_locked(code, LOCK, ROOT)
    assert result.returncode == 1
    assert "pip install opencv-python-headless" in result.stderr
