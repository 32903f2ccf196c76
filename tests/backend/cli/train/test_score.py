"""`transfiner score` and `transfiner data` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.cli.train.data import data
from backend.cli.train.evaluate import score
from tests.support.miniature import write_miniature
from tests.support.perturbed_truth import perturb_truth


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("coco")
    write_miniature("coco", root, train=1, val=3, width=128, height=96)
    truth = root / "annotations" / "instances_val2017.json"
    results = root / "found.json"
    results.write_text(json.dumps(perturb_truth(json.loads(truth.read_text()), copies=2, boxes=True)))
    return truth, results


def test_one_json_object_with_the_promised_keys(files: tuple[Path, Path]) -> None:
    truth, results = map(str, files)
    for metric in ("segm", "bbox", "boundary"):
        result = CliRunner().invoke(
            score, ["--ground-truth", truth, "--predictions", results, "--metric", metric, "--json"]
        )
        assert result.exit_code == 0, result.output
        values = json.loads(result.stdout)
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "per_category"} <= values.keys()
        assert 0 < values["AP"] < 1
        assert len(values["per_category"]) == 80
        assert values["per_category"]["person"] == -1  # no ground truth


def test_a_table_for_people(files: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(score, ["--ground-truth", str(files[0]), "--predictions", str(files[1])])
    assert result.exit_code == 0
    assert "categories without ground truth" in result.output
    assert "the predictions carry boxes" in result.output


def test_malformed_predictions_end_with_one_and_a_reason(files: tuple[Path, Path], tmp_path: Path) -> None:
    broken = json.loads(files[1].read_text())
    broken[2]["score"] = None
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    command = ["--ground-truth", str(files[0]), "--predictions", str(tmp_path / "broken.json")]
    result = CliRunner().invoke(score, command)
    assert result.exit_code == 1
    assert "broken.json: results[2].score: is None; expected a finite number" in result.output


def test_unknown_categories_are_refused_or_counted(files: tuple[Path, Path], tmp_path: Path) -> None:
    results = json.loads(files[1].read_text())
    results[0]["category_id"] = 91
    (tmp_path / "found.json").write_text(json.dumps(results))
    command = ["--ground-truth", str(files[0]), "--predictions", str(tmp_path / "found.json"), "--json"]
    assert CliRunner().invoke(score, command).exit_code == 1
    result = CliRunner().invoke(score, [*command, "--ignore-unknown-categories"])
    assert json.loads(result.stdout)["notes"][0].startswith("1 results of unknown categories")


def test_usage_errors_end_with_two(files: tuple[Path, Path]) -> None:
    truth, results = map(str, files)
    for command in (
        ["--ground-truth", truth],
        ["--ground-truth", truth, "--predictions", results, "--format", "cityscapes"],
        ["--ground-truth", truth, "--predictions", str(files[0].parent)],
    ):
        assert CliRunner().invoke(score, command).exit_code == 2


def test_data_commands(tmp_path: Path) -> None:
    root, sheet = tmp_path / "mini", tmp_path / "sheet.png"
    names = write_miniature("bdd100k", root, train=1, val=2, width=96, height=72)
    check_result = CliRunner().invoke(data, ["check", names["val"], "--sheet", str(sheet), "--json"])
    assert json.loads(check_result.stdout)["images"] == 2
    assert sheet.read_bytes().startswith(b"\x89PNG")
    whole = CliRunner().invoke(data, ["prepare", "bdd100k", str(root), "--any-size", "--json"])
    assert (whole.exit_code, json.loads(whole.stdout)["whole"]) == (0, True)
    prepare_result = CliRunner().invoke(data, ["prepare", "bdd100k", str(tmp_path)])
    assert prepare_result.exit_code == 1
    assert "get 10K Images from https://bdd-data.berkeley.edu" in prepare_result.output
    assert CliRunner().invoke(data, ["check", "bdd100k:nowhere:val"]).exit_code == 1


@pytest.mark.parametrize("prefix", ["", "photo-"])
def test_ids_may_be_texts_in_truth_and_predictions(files: tuple[Path, Path], tmp_path: Path, prefix: str) -> None:
    truth, results = (json.loads(path.read_text()) for path in files)
    for image in truth["images"]:
        image["id"] = f"{prefix}{image['id']}"
    for record in (*truth["annotations"], *results):
        record["image_id"] = f"{prefix}{record['image_id']}"
    texts = tmp_path / "truth.json", tmp_path / "results.json"
    for path, content in zip(texts, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    outputs = []
    for truth_file, results_file in (files, texts):
        arguments = ["--ground-truth", str(truth_file), "--predictions", str(results_file), "--json"]
        outputs.append(json.loads(CliRunner().invoke(score, arguments).stdout))
    differing = {key for key in outputs[0] if outputs[0][key] != outputs[1][key]}
    assert differing <= {"ground_truth", "predictions"}
