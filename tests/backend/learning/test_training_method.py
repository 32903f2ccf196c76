"""Which way a round trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.learning.round import PRESET, training_method


def _checkpoint(folder: Path, classes: list[str], preset: str) -> Path:
    folder.mkdir()
    facts = {"name": folder.name, "version": folder.name, "classes": classes, "preset": preset, "digest": ""}
    (folder / "metadata.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("serving", "classes", "labels", "images", "method"),
    [
        ("released", ["gear"], ["balloon"], 12, "few-shot"),
        ("released", ["gear"], ["gear", "balloon"], 12, "finetune"),
        (PRESET, ["balloon"], ["balloon"], 12, "few-shot"),
        (PRESET, ["balloon"], ["balloon"], 101, "few-shot"),
        (PRESET, ["balloon"], ["balloon"], 1001, "finetune"),
        ("released", ["gear"], ["balloon"], 101, "finetune"),
    ],
)
def test_few_images_of_unknown_labels_are_learned_few_shot(
    tmp_path: Path, serving: str, classes: list[str], labels: list[str], images: int, method: str
) -> None:
    base = _checkpoint(tmp_path / "photos", ["person"], PRESET)
    active = _checkpoint(tmp_path / "active", classes, serving)
    assert training_method(active, base, labels, images, 100) == method
    assert training_method(active, tmp_path / "none", labels, images, 100) == "finetune", "there is no base"
    assert training_method(active, base, labels, images, 0) == "finetune", "few-shot learning is switched off"
