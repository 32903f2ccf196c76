"""Our numbers against those of the reference tools, on files in the official layouts (tests/fixtures/README.md)."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from training.evaluation.score import score
from training.metrics.coco_schema import RecordError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "judged_metrics.zip"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(folder)
    return folder


def agrees(ours: dict, theirs: dict) -> None:
    assert theirs, "no expectation"
    for name, value in theirs.items():
        if name == "per_category":
            assert {k: pytest.approx(v, abs=1e-9) for k, v in value.items()} == ours["per_category"]
        else:
            assert ours[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(
    ("layout", "metric", "expectation"),
    [("cityscapes", "segm", "city"), ("cityscapes", "boundary", "cityb"), ("bdd100k", "segm", "bdd")],
)
def test_folders(judged: Path, layout: str, metric: str, expectation: str) -> None:
    expected = json.loads((judged / "expected.json").read_text())
    ours = score(judged / layout / "truth", judged / layout / "found", metric, layout).as_dict()
    assert 0.1 < ours["AP"] < 0.9
    agrees(ours, expected[expectation])


@pytest.mark.parametrize("metric", ["lvis", "lvis-bbox", "lvis-boundary"])
def test_lvis(judged: Path, metric: str) -> None:
    expected = json.loads((judged / "expected.json").read_text())
    ours = score(judged / "lvis" / "truth.json", judged / "lvis" / "found.json", metric).as_dict()
    agrees(ours, expected[metric])


def test_numbers_do_not_depend_on_the_order_of_predictions(judged: Path, tmp_path: Path) -> None:
    results = json.loads((judged / "lvis" / "found.json").read_text())
    untied = [result | {"score": result["score"] + index * 1e-6} for index, result in enumerate(results)]  # no ties
    for name, records in (("one", untied), ("other", untied[::-1])):
        (tmp_path / name).write_text(json.dumps(records))
    truth = judged / "lvis" / "truth.json"
    for metric in ("segm", "boundary", "lvis"):
        assert score(truth, tmp_path / "one", metric).numbers == pytest.approx(
            score(truth, tmp_path / "other", metric).numbers, nan_ok=True
        )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cityscapes/found/miniature_000000_000019.txt", "a.png 26", r"000019\.txt:1: has 2 words"),
        ("cityscapes/found/miniature_000000_000019.txt", "../../a.png 26 1", r"txt:1: mask .* lies outside"),
        ("cityscapes/found/miniature_000000_000019.txt", "a.png 26 nan", r"txt:1: score: 'nan'"),
        ("cityscapes/found/miniature_000000_000019.txt", "a.png 99 1", r"txt:1: label '99'"),
        ("cityscapes/found/miniature_000000_000019.txt", "none.png 26 1", r"none\.png: is no readable image"),
        ("cityscapes/found/miniature_000000_0000190.txt", "", r"holds 2 files miniature_000000_000019"),
        ("bdd100k/found/scores.json", "{}", r"scores\.json: is no list"),
        ("bdd100k/found/scores.json", "[", r"scores\.json: is not JSON"),
        ("bdd100k/found/scores.json", "[]", r"has nothing for miniature-00000000\.png"),
        (
            "bdd100k/found/scores.json",
            '[{"name": "a.jpg", "labels": [{"index": 0, "score": 1}]}]',
            r"labels\[0\]\.index",
        ),
        (
            "bdd100k/found/scores.json",
            '[{"name": "a.jpg", "labels": [{"index": 1, "score": "x"}]}]',
            r"labels\[0\]\.score",
        ),
        ("bdd100k/found/bitmasks/miniature-00000001.png", "no image", r"00000001\.png: is no readable image"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path)
    (tmp_path / file).write_text(text)
    layout = file.split("/")[0]
    with pytest.raises(RecordError, match=message):
        score(tmp_path / layout / "truth", tmp_path / layout / "found", "segm", layout)


@pytest.mark.parametrize(
    ("layout", "metric", "message"),
    [
        ("bdd100k", "boundary", "not defined"),
        ("cityscapes", "bbox", "not defined"),
        ("bdd100k", "lvis", "LVIS files"),
        ("voc", "segm", "unknown"),
    ],
)
def test_undefined_metrics_are_refused(tmp_path: Path, layout: str, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(tmp_path, tmp_path, metric, layout)
