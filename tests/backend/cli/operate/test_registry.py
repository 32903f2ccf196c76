"""`transfiner models ... --project` and `transfiner gate` on a registry in a folder; detections are invented."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from backend.cli.main import cli
from backend.cli.train import gate as gate_command
from model.checkpoints.metadata import file_digest
from training.datasets import Sample
from training.evaluation.coco_format import encode
from training.gate.holdout import Detection
from training.registry import Registry


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with versions bad-1, bad-2 and good-3 and a snapshot; `bad` ones find nothing, `good` ones all."""
    root = tmp_path / "registry"
    registry = Registry(root)
    for name, parent in (("bad-1", ""), ("bad-2", "bad-1"), ("good-3", "bad-2")):
        registry.publish("12", checkpoint(tmp_path / name), parent=parent)
    registry.promote("12", "bad-1")
    registry.publish_snapshot("12", snapshot(tmp_path / "snapshot"))
    monkeypatch.setattr(gate_command, "detector", lambda device: invented)
    monkeypatch.setenv("TRANSFINER_REGISTRY", str(root))
    monkeypatch.setenv("TRANSFINER_REGISTRY_CACHE", str(tmp_path / "cache"))
    return root


def checkpoint(directory: Path) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(directory.name.encode())
    (directory / "config.yaml").write_text("VERSION: 2\n")
    facts = {"name": "small", "version": directory.name, "classes": ["cat"]}
    (directory / "metadata.json").write_text(
        json.dumps(facts | {"digest": file_digest(directory / "model.safetensors")})
    )
    return directory


def snapshot(directory: Path, images: int = 12) -> Path:
    """Pictures with one square each."""
    (directory / "images").mkdir(parents=True)
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for number in range(images):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(directory / "images" / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
        square = [8, 8, 8, 24, 24, 24, 24, 8]
        coco["annotations"].append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "area": 256,
                "bbox": [8, 8, 16, 16],
                "segmentation": [square],
            }
        )
    (directory / "holdout.json").write_text(json.dumps(coco))
    (directory / "manifest.json").write_text(json.dumps({"digest": "abc", "classes": ["cat"]}))
    return directory


def invented(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
    good = directory.name.startswith("good")
    seen = [samples[index] for index in range(len(samples))]
    return [[Detection("cat", 0.9, encode(mask)) for mask in sample.masks if good] for sample in seen]


def run(*arguments: object, fails: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.output
    return result


def test_list_tells_what_is_active(root: Path) -> None:
    text = run("models", "list", "--project", 12).stdout
    assert "bad-1 is active" in text
    assert "* bad-1" in text
    outcome = json.loads(run("models", "list", "--registry", root, "--json").stdout)
    assert outcome["projects"]["12"]["active"] == "bad-1"
    assert [version["name"] for version in outcome["projects"]["12"]["versions"]] == ["bad-1", "bad-2", "good-3"]
    assert "No projects" in run("models", "list", "--registry", root / "none").stdout


def test_gate_promotes_what_is_better_and_keeps_the_report(root: Path, tmp_path: Path) -> None:
    result = run("gate", "good-3", "--project", 12, "--promote")
    assert "good-3 may serve, judged by 12 images held out: 12 objects." in result.stdout
    registry = Registry(root)
    assert registry.active("12") == "good-3"
    assert registry.version("12", "good-3").metrics == {"mask_ap": 1.0, "boundary_ap": 1.0}
    assert "pictures/before_after.jpg" in registry.papers("12", "good-3")
    text = run("models", "show", "good-3", "--project", 12, "--papers", tmp_path / "papers").stdout
    assert "status: promoted" in text
    assert "- better than the incumbent: mask AP +100.0 points" in text
    assert (tmp_path / "papers" / "pictures" / "before_after.jpg").read_bytes().startswith(b"\xff\xd8")
    assert json.loads(run("models", "show", "good-3", "--project", 12, "--json").stdout)["report"]["promote"]


def test_gate_refuses_with_exit_code_3_and_the_rejected_stays_with_its_report(root: Path) -> None:
    verdict = json.loads(run("gate", "bad-2", "--project", 12, "--promote", "--json", fails=3).stdout)
    assert not verdict["promote"]
    registry = Registry(root)
    assert (registry.active("12"), registry.version("12", "bad-2").status) == ("bad-1", "rejected")
    assert "was rejected by the gate" in run("models", "promote", "bad-2", "--project", 12, fails=3).stderr
    assert "bad-2 is active, bad-1 was" in run("models", "promote", "bad-2", "--project", 12, "--force").stdout
    assert "bad-1 is active again, bad-2 is retired" in run("models", "rollback", "--project", 12).stdout
    assert "nothing to roll back to" in run("models", "rollback", "--project", 12, fails=1).stderr


def test_gate_judges_directories_without_a_registry(tmp_path: Path, root: Path) -> None:
    options = ("--holdout", tmp_path / "snapshot", "--out", tmp_path / "report")
    run("gate", tmp_path / "good-3", "--incumbent", tmp_path / "bad-1", *options, "--rule", "min_images", 5)
    assert (tmp_path / "report" / "pictures" / "before_after.jpg").is_file()
    verdict = json.loads((tmp_path / "report" / "report.json").read_text())
    assert verdict["figures"]["rules"]["min_images"] == 5
    run("gate", tmp_path / "bad-1", "--incumbent", tmp_path / "good-3", *options, fails=3)


def test_compare_changes_nothing(root: Path) -> None:
    text = run("models", "compare", "bad-1", "good-3", "--project", 12).stdout
    assert "+100.0 [+100.0, +100.0]" in text
    assert Registry(root).version("12", "good-3").status == "candidate"


def test_gc_says_what_would_go_and_removes_it(root: Path) -> None:
    assert "bad-2 would go" in run("models", "gc", "--project", 12, "--keep", 1, "--dry-run").stdout
    report = run("models", "gc", "--project", 12, "--keep", 1, "--json").stdout
    assert json.loads(report) == {"removed": ["bad-2"], "dry_run": False}
    assert run("models", "gc", "--project", 12).stdout == "Nothing to remove.\n"


FAILURES = [
    (("models", "promote", "v9", "--project", "12"), 1, "has no version 'v9'"),
    (("models", "list", "--project", "../x"), 1, "the project is called '../x'"),
    (("models", "list", "--registry", "nonsense://x"), 1, "nonsense"),
    (("gate", "bad-1", "--project", "12"), 1, "bad-1 serves already"),
    (("gate", "good-3", "--project", "13"), 1, "has no snapshot"),
    (("gate", "good-3"), 1, "give --project"),
    (("gate", "good-3", "--promote"), 2, "--promote needs --project"),
    (("gate", "good-3", "--project", "12", "--rule", "confidance", "1"), 2, "did you mean confidence"),
    (("gate", "good-3", "--project", "12", "--rule", "margin", "much"), 2, "margin is 'much'; expected a number"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), FAILURES)
def test_failures_are_one_message(root: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    assert message in run(*arguments, fails=code).stderr
