"""The plain control: each finetuning from the one before, without weights and without replay."""

from __future__ import annotations

import json
import sys

import pytest

from backend.devtools.rehearsal.controls import plain_finetunings
from backend.devtools.rehearsal.plan import Plan, finetuning
from backend.errors import ServiceError
from backend.learning.steps import step_command
from training.finetune.settings import FinetuneSettings
from training.synthetic.shifted import SHIFTED_CLASSES

pytestmark = pytest.mark.service
COMMAND = "backend.devtools.rehearsal.controls.step_command"

# A finetuning that says how far it is, and takes its time.
MAKE = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
out.joinpath("progress.json").write_text(json.dumps({"phase": "training", "iteration": 3, "of": 8}))
out.joinpath("checkpoint").mkdir()
time.sleep(1)
sys.exit(int(sys.argv[2]))
"""


def test_each_starts_from_the_one_before(tmp_path, monkeypatch):
    asked, said = [], []

    def command(settings, step, request):
        asked.append(json.loads(step_command(settings, step, request)[-1]))
        return [sys.executable, "-c", MAKE, str(request["out"]), "0"]

    monkeypatch.setattr(COMMAND, command)
    monkeypatch.setattr("backend.devtools.rehearsal.controls.TICK_S", 0.1)
    snapshots = [tmp_path / "one", tmp_path / "two"]
    made = plain_finetunings(tmp_path / "base", snapshots, SHIFTED_CLASSES, tmp_path / "plain", Plan(), said.append)
    assert [path.parent.name for path in made] == ["plain-1", "plain-2"]
    assert "control, plain finetuning: round 2 of 2, training 3/8" in said
    assert asked[0]["active"] == str(tmp_path / "base")
    assert asked[1]["active"] == str(made[0])
    for request, snapshot in zip(asked, snapshots, strict=True):
        assert request["snapshot"] == str(snapshot)
        assert request["replay"] == []
        assert request["classes"] == list(SHIFTED_CLASSES)
        assert request["settings"] == {"device": "auto", **finetuning(192), "use_weights": False, "replay_share": 0.0}


def test_a_failure_names_its_log(tmp_path, monkeypatch):
    failing = [sys.executable, "-c", MAKE, str(tmp_path), "5"]
    monkeypatch.setattr(COMMAND, lambda settings, step, request: failing)
    with pytest.raises(ServiceError, match=r"failed with 5.*finetune.log"):
        plain_finetunings(tmp_path, [tmp_path], SHIFTED_CLASSES, tmp_path / "plain", Plan(), lambda line: None)


@pytest.mark.parametrize(
    ("wishes", "length"), [({}, {"epochs": 16}), ({"iterations": 9}, {"iterations": 9}), ({"epochs": 2}, {"epochs": 2})]
)
def test_a_finetuning_has_one_length(wishes, length):
    fields = finetuning(192, wishes)
    assert {name: fields[name] for name in ("epochs", "iterations") if name in fields} == length
    FinetuneSettings(**fields)
