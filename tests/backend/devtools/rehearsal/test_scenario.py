"""The plain control starts each finetuning from the one before; what a rehearsed project has to wait for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.devtools.rehearsal.plan import Plan, finetuning
from backend.devtools.rehearsal.project import RehearsedProject
from backend.devtools.rehearsal.scenario import plain_finetunings
from backend.errors import ServiceError
from backend.learning.steps import step_command
from backend.versions.served_model import ServedModel
from training.finetune.settings import FinetuneSettings
from training.synthetic.shifted import SHIFTED_CLASSES

pytestmark = pytest.mark.service
COMMAND = "backend.devtools.rehearsal.scenario.step_command"

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
    snapshots = [tmp_path / "one", tmp_path / "two"]
    made = plain_finetunings(tmp_path / "base", snapshots, SHIFTED_CLASSES, tmp_path / "plain", Plan(), said.append)
    assert [path.parent.name for path in made] == ["plain-1", "plain-2"]
    assert "plain finetuning 2, training 3/8" in said
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


@dataclass
class Labelled:
    classes: tuple[str, ...]


@pytest.mark.parametrize(
    ("classes", "is_known"), [(("balloon",), False), (("balloon", "Ring  spanner"), True), (("key",), True)]
)
def test_a_model_that_knows_no_label_has_nothing_to_wait_for(classes, is_known):
    """Such a project's requests for predictions are refused; a rehearsal would wait an hour for them."""
    model = ServedModel(Path("model"), "base", "base-1", ("key", "ring spanner"), "")
    project = RehearsedProject(stage=None, material=Labelled(classes), report=print)
    assert project.is_known_to(model) is is_known
