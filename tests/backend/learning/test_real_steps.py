"""A round with the real finetuning and the real gate, as processes, on a network that learns in a blink."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.doctor.connection import ConnectionUpdate
from backend.learning import round as runs
from backend.learning.steps import FINETUNE, step_command
from backend.learning.train_worker import Learner
from backend.queue.train_queue import BUTTON
from tests.support.service import wait_until

pytestmark = pytest.mark.slow

CLASSES = ("nut", "gear")


def test_the_real_steps_publish_a_judged_version_with_its_report(learning, redis, registry, tmp_path):
    from tests.support.snapshots import write_snapshot
    from tests.training.finetune.tiny_finetune import _picture, tiny_checkpoint

    def take_snapshot(project: str, folder: Path) -> Path:
        pictures = [_picture(number, CLASSES) for number in range(8)]
        return write_snapshot(pictures, folder, classes=CLASSES, project=project, holdout_share=0.5)

    settings = learning.model_copy(
        update={
            "model": tiny_checkpoint(tmp_path / "tiny"),
            "device": "cpu",
            "gate_rules": {"resamples": 100},
            "finetune_options": {"iterations": 2, "batch_size": 2, "threads": 1, "log_period": 1},
        }
    )
    side = SimpleNamespace(
        count_new=lambda project, newest_at: 8, take_snapshot=take_snapshot, follow=lambda project: ConnectionUpdate()
    )
    learner = Learner(settings, redis, "me", side)
    run_id = learner.queue.request("7", BUTTON).run
    assert learner.learn("7", run_id) in (runs.PROMOTED, runs.REJECTED)
    run = learner.store.load("7", run_id)
    assert run.reasons
    assert run.parent == "tiny-1"
    version = registry.version("7", run.candidate)
    assert version.classes == CLASSES, "a new class came, one went"
    assert {"mask_ap", "boundary_ap"} <= set(version.metrics)
    assert {"report.json", "MODEL_CARD.md"} <= set(registry.papers("7", run.candidate))
    directory = registry.fetch("7", run.candidate, tmp_path / "elsewhere")
    assert json.loads((directory / "metadata.json").read_text())["version"] == run.candidate
    assert run.order.startswith("tasks are ordered by certainty: 5 images")
    wait_until(lambda: not learner.queue.current("7"))


def test_several_processes_are_started_by_torchrun(learning, tmp_path):
    request = {"classes": CLASSES, "replay": [tmp_path / "old"]}
    command = step_command(learning.model_copy(update={"train_processes": 2}), FINETUNE, request)
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    asked = json.loads(command[-1])
    assert asked["classes"] == ["nut", "gear"]
    assert asked["replay"] == [str(tmp_path / "old")]
