"""How long a rehearsed finetuning is; what a rehearsed project has to wait for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.devtools.rehearsal.plan import finetuning
from backend.devtools.rehearsal.project import RehearsedProject
from backend.versions.resolve import ServedModel
from training.finetune.plan import FinetuneSettings


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
