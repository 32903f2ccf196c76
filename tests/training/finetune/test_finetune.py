"""A whole finetuning of a tiny network: what it writes, how it ends, and that a kill costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from backend.cli.train.train import finetune as command
from model.checkpoints.checkpoint import load_checkpoint
from tests.training.finetune.tiny_finetune import STEPS, settings, tiny_snapshot
from training.engine.log import RunProgress, read_progress
from training.finetune.finetune import FinetuneStopped, finetune
from training.finetune.plan import NothingToLearn

# detectron2 and torch disagree about what is deprecated; nothing of ours is meant.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*meshgrid.*:UserWarning"),
]
ROOT = Path(__file__).parents[3]


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "run" / "losses.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, len(lines) + 1)), "each once, in order"
    return {line["iteration"]: line["total"] for line in lines}


@pytest.fixture(scope="module")
def finished_run(checkpoint: Path, snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished")
    assert finetune(checkpoint, snapshot, out, settings=settings()) == out / "checkpoint"
    return out


def kill_amid(child: subprocess.Popen[bytes], lines: Path, count: int) -> None:
    """SIGKILL once `count` losses are written."""
    try:
        while not (lines.is_file() and len(lines.read_text().splitlines()) >= count):
            assert child.poll() is None, f"it ended by itself with {child.returncode}"
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()


def test_a_killed_run_goes_on_and_learns_what_an_undisturbed_one_does(
    checkpoint: Path, snapshot: Path, finished_run: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [
        sys.executable,
        "-m",
        "tests.training.finetune.tiny_finetune",
        str(checkpoint),
        str(snapshot),
        str(tmp_path),
    ]
    kill_amid(subprocess.Popen(program, env=environment), tmp_path / "run" / "losses.jsonl", 3)
    assert (tmp_path / "run" / "state.pt").is_file()
    assert not (tmp_path / "checkpoint").exists()
    notes: list[RunProgress] = []
    finetune(checkpoint, snapshot, tmp_path, settings=settings(), on_progress=notes.append)
    assert next(note.iteration for note in notes if note.phase == "training") in (2, 4), "not from the start"
    assert losses(tmp_path) == pytest.approx(losses(finished_run), rel=1e-5)
    expected_state, resumed_state = (load_checkpoint(out / "checkpoint").state for out in (finished_run, tmp_path))
    assert all(torch.allclose(resumed_state[name], expected_state[name], atol=1e-4) for name in expected_state)


def test_its_result_names_parent_snapshot_and_classes(finished_run: Path, snapshot: Path) -> None:
    cfg, state, metadata = load_checkpoint(finished_run / "checkpoint")
    assert metadata["classes"] == ["nut", "gear"]
    assert (metadata["parent"], metadata["snapshot"]) == ("tiny-1", snapshot.name)
    assert metadata["version"] == f"tiny-{snapshot.name[:8]}"
    assert metadata["finetuning"]["classes"] == "kept: gear; added: nut; removed: leaf"
    assert len(state["roi_heads.box_predictor.cls_score.weight"]) == 3
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    note = read_progress(finished_run / "progress.json")
    assert note is not None
    assert (note.phase, note.iteration, note.of, note.eta_s) == ("done", STEPS, STEPS, 0.0)


def test_a_finished_one_is_not_repeated_and_another_is_refused(
    checkpoint: Path, snapshot: Path, finished_run: Path
) -> None:
    written_ns = (finished_run / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    assert finetune(checkpoint, snapshot, finished_run, settings=settings(threads=2)) == finished_run / "checkpoint"
    assert (finished_run / "checkpoint" / "model.safetensors").stat().st_mtime_ns == written_ns
    with pytest.raises(ValueError, match="holds a finetuning with other classes"):
        finetune(checkpoint, snapshot, finished_run, classes=["gear", "nut"], settings=settings())


def test_asked_to_stop_it_keeps_its_state_and_says_so(checkpoint: Path, snapshot: Path, tmp_path: Path) -> None:
    def stop(note: RunProgress) -> None:
        if note.iteration == 1 and note.phase == "training":
            os.kill(os.getpid(), signal.SIGTERM)

    earlier = tiny_snapshot(tmp_path / "earlier", classes=("gear", "leaf"), images=2, first=50)
    with pytest.raises(FinetuneStopped, match="after 2 of 6 iterations"):
        finetune(
            checkpoint,
            snapshot,
            tmp_path / "out",
            replay=[earlier],
            base_sets=["scenes:train:2"],
            classes=["gear", "bolt"],
            settings=settings(renamed={"leaf": "bolt"}, accumulate=2),
            on_progress=stop,
        )
    note = read_progress(tmp_path / "out" / "progress.json")
    assert note is not None
    assert (note.phase, note.iteration) == ("stopped", 2), "the one under way is finished"
    assert (tmp_path / "out" / "run" / "state.pt").is_file()
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_snapshot_without_training_images_is_refused_and_noted(checkpoint: Path, tmp_path: Path) -> None:
    empty = tiny_snapshot(tmp_path, classes=("gear",), images=1, holdout=0.9999)
    with pytest.raises(NothingToLearn, match="annotate more"):
        finetune(checkpoint, empty, tmp_path / "out", settings=settings())
    note = read_progress(tmp_path / "out" / "progress.json")
    assert note is not None
    assert note.phase == "failed"
    assert "annotate more" in note.error


def test_the_command_prints_its_outcome_and_reasons(checkpoint: Path, snapshot: Path, tmp_path: Path) -> None:
    args = ["--from", str(checkpoint), "--snapshot", str(snapshot), "--out", str(tmp_path / "out"), "--device", "cpu"]
    wishes = {"iterations": 1, "batch_size": 2, "precision": "bf16", "threads": 1}
    result = CliRunner().invoke(command, [*args, "--options", json.dumps(wishes), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome == {"checkpoint": str(tmp_path / "out" / "checkpoint"), "iterations": 1}
    assert all(abs(loss) < 1e4 for loss in losses(tmp_path / "out").values()), "finite in bfloat16"
    unknown_option = CliRunner().invoke(command, [*args, "--options", '{"iteration": 1}'])
    assert unknown_option.exit_code == 2
    assert "'iteration': expected an object with the fields preset, iterations," in unknown_option.output
    bad_json = CliRunner().invoke(command, [*args, "--options", "{iterations: 1}"])
    assert bad_json.exit_code == 2
    assert "is no JSON" in bad_json.output
    wishes["renamed"] = {"wheel": "gear"}
    again = CliRunner().invoke(command, [*args, "--options", json.dumps(wishes)])
    assert again.exit_code == 1
    assert "holds a finetuning with other settings" in again.output
