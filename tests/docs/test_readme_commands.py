"""Each documented `transfiner` command is run as it stands, from another folder, or its reason not to be is here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_documents import COMMANDS
from tests.support.service import ROOT
from training.synthetic.scenes import generate_scene, scene_seed

README = {text for page, text in COMMANDS if page == "README.md"}
# Command -> words that it prints.
RUN = {
    "--help": "predict",
    "models": "photos",
    "models list --project 12": "",
    "models gc --project 12": "",
    "doctor": "python",
    "predict photo.jpg --format overlay --output out/": "out/photo",
}
LABEL_STUDIO = "needs a Label Studio: "
# First words of a command -> why it is not run here, or which test runs it with arguments of its own.
NOT_RUN = {
    "api": "serves until it is stopped: tests/backend/cli/operate/test_serve.py",
    "benchmark": "minutes to days: tests/training/benchmark and tests/backend/cli/research run it small",
    "data": "wants a data set: tests/training/datasets",
    "demo": "serves until it is stopped: tests/e2e/test_demo_to_annotation.py",
    "doctor --fix": LABEL_STUDIO + "tests/e2e/test_doctor.py",
    "effort": "minutes: tests/training/snapshots/test_annotation_cost.py",
    "evaluate": "minutes: tests/training/evaluation",
    "export": LABEL_STUDIO + "tests/e2e/test_first_hour.py",
    "finetune": "wants a snapshot: tests/training/finetune",
    "gate": "wants a version: tests/backend/cli/operate/test_registry.py",
    "learn": LABEL_STUDIO + "tests/backend/learning/test_train_worker.py",
    "load": "minutes: tests/backend/devtools",
    "models compare": "wants a version: tests/backend/cli/operate/test_registry.py",
    "models fetch": "downloads: tests/backend/cli/operate/test_models.py",
    "models import": "wants the authors' file: tests/backend/cli/operate/test_models.py",
    "models promote": "wants a version: tests/backend/cli/operate/test_registry.py",
    "models rollback": "wants a version: tests/backend/cli/operate/test_registry.py",
    "models show": "wants a version: tests/backend/cli/operate/test_registry.py",
    "predict photo.jpg --model R50-FPN-3x": "wants the authors' weights: tests/backend/cli/annotate/test_predict.py",
    "predict photos/*.jpg --boxes": "wants another detector's boxes: tests/backend/cli/annotate/test_predict.py",
    "predict --precision": "a part of a command: tests/backend/cli/annotate/test_predict.py",
    "rehearse": "half a day: tests/backend/devtools/rehearsal",
    "score": "wants predictions: tests/backend/cli/train/test_score.py",
    "serve": "serves until it is stopped: tests/backend/cli/operate/test_serve.py",
    "snapshot": LABEL_STUDIO + "tests/backend/learning/test_snapshot.py",
    "soak": "minutes: tests/backend/devtools/test_soak.py",
    "train": "hours: tests/training/engine",
    "worker": "serves until it is stopped: tests/backend/learning/test_train_worker.py",
}


def reason_not_to_run(text: str) -> str:
    """The longest entry of `NOT_RUN` that begins the command; "" for none."""
    words = text.split()
    begins = [key for key in NOT_RUN if words[: len(key.split())] == key.split()]
    return max(begins, key=len, default="")


def test_each_command_is_run_or_has_its_reason() -> None:
    texts = {text for _, text in COMMANDS}
    assert not [text for text in texts if text not in RUN and not reason_not_to_run(text)]
    assert RUN.keys() <= texts | {"models list --project 12"}, "what no page names any more"
    used = {reason_not_to_run(text) for text in texts if text not in RUN}
    assert used == NOT_RUN.keys(), "reasons of commands that no page names any more"


@pytest.mark.parametrize("reason", sorted(set(NOT_RUN.values())))
def test_the_tests_that_a_reason_names_exist(reason: str) -> None:
    for word in reason.split():
        if word.startswith("tests/"):
            assert (ROOT / word).exists()


@pytest.mark.slow
@pytest.mark.parametrize("text", RUN)
def test_a_command_runs_from_any_folder_and_says_nothing_before_its_result(text: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(generate_scene(scene_seed("demo", 0)).image).save(tmp_path / "photo.jpg")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRANSFINER_", "LABEL_STUDIO_"))}
    environment = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TRANSFINER_REGISTRY": str(tmp_path / "registry"),
    }
    command = [sys.executable, "-m", "backend.cli", *text.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert RUN[text] in done.stdout
    assert "Warning" not in done.stderr
    assert "deprecated" not in done.stderr
