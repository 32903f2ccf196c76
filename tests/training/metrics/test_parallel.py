"""Shared among processes, everything comes out as in one: order, numbers, errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.miniature import write_miniature
from tests.support.perturbed_truth import perturb_truth
from training.evaluation.score import score
from training.metrics import coco as pairs
from training.metrics.coco import coco_ap, lvis_ap
from training.metrics.coco_schema import RecordError
from training.metrics.parallel import map_in_processes

pytestmark = pytest.mark.service


def test_results_come_in_order_from_other_processes() -> None:
    assert list(map_in_processes(os.path.basename, [(f"/a/{n}",) for n in range(5)], 2)) == list("01234")
    (mine,) = map_in_processes(os.getpid, [()], 2)
    assert mine == os.getpid()  # one piece of work needs no other process
    assert os.getpid() not in set(map_in_processes(os.getpid, [(), ()], 2))


def test_errors_come_back_as_they_were() -> None:
    with pytest.raises(FileNotFoundError):
        list(map_in_processes(os.listdir, [("/",), ("/nowhere/at/all",), ("/",)], 2))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list]:
    root = tmp_path_factory.mktemp("coco")
    write_miniature("coco", root, train=1, val=5, width=128, height=96)
    truth = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    results = perturb_truth(truth, copies=2, boxes=False)
    for result in results:
        result["segmentation"]["counts"] = result["segmentation"]["counts"].encode()
    return truth, results


@pytest.mark.parametrize("kind", ["segm", "boundary", "bbox"])
def test_chunks_and_processes_change_no_number(
    coco: tuple[dict, list], kind: pairs.IouKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, results = coco
    plain = coco_ap(truth, results, kind)
    monkeypatch.setattr(pairs, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(pairs, "_CHUNKS", 3)
    progress: list[tuple[int, int]] = []
    numbers = coco_ap(
        truth,
        results,
        kind,
        processes=2 if kind == "boundary" else 1,
        progress=lambda read_count, total: progress.append((read_count, total)),
    )
    np.testing.assert_equal(numbers, plain)  # to the last bit, NaN included
    assert progress[-1] == (5, 5)
    assert len(progress) == 3


def test_lvis_in_chunks(coco: tuple[dict, list], monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = coco
    images = [image | {"neg_category_ids": [], "not_exhaustive_category_ids": []} for image in truth["images"]]
    plain = lvis_ap(truth | {"images": images}, results, "boundary")
    monkeypatch.setattr(pairs, "WORTH_PROCESSES", 1)
    np.testing.assert_equal(lvis_ap(truth | {"images": images}, results, "boundary"), plain)


def test_nothing_to_compare_is_fine(coco: tuple[dict, list]) -> None:
    truth, _ = coco
    assert coco_ap(truth, [], "segm", processes=2)["AP"] == 0


@pytest.mark.parametrize("layout", ["cityscapes", "bdd100k"])
def test_official_layouts_by_several_processes(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.metrics.parallel.WORTH_PROCESSES", 1)
    from tests.support.miniature import PredictionWriter, write_predictions
    from training.datasets import open_set
    from training.metrics.cityscapes import LABELS

    root, predictions = tmp_path / "set", tmp_path / "found"
    write_miniature(layout, root, train=1, val=5, width=160, height=96)
    samples = open_set(f"{layout}:{root}:val")
    truth = root / ("gtFine/val" if layout == "cityscapes" else "labels/ins_seg/bitmasks/val")
    writer = PredictionWriter(predictions) if layout == "bdd100k" else None
    for index, path in enumerate(sorted(truth.rglob("*_instanceIds.png" if writer is None else "*.png"))):
        sample = samples[index]
        masks = np.array([np.roll(mask, 1, 0) for mask in sample.masks], bool).reshape(-1, 96, 160)
        scores = np.linspace(0.9, 0.3, len(masks))
        if writer is not None:
            writer.add(path.stem, masks, [int(label) + 1 for label in sample.classes], scores.tolist())
        else:
            labels = [list(LABELS.values())[int(label)] for label in sample.classes]
            name = path.name.removesuffix("_gtFine_instanceIds.png")
            write_predictions(predictions, name, list(masks), labels, scores.tolist())
    if writer is not None:
        writer.close()
    plain, shared = (score(truth, predictions, "segm", layout, processes=n).as_dict() for n in (1, 2))
    assert plain == shared
    assert plain["AP"] > 0
    damaged_file = next(predictions.rglob("*.png"))
    damaged_file.write_bytes(b"no picture")
    with pytest.raises(RecordError, match=damaged_file.name):
        score(truth, predictions, "segm", layout, processes=2)
