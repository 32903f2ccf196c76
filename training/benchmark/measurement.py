"""Measure a trained row: every column of its table, as fractions, frames a second, GFLOP and MB.

A row on Cityscapes or BDD100K in its official layout is measured by that set's own rules. The column AP* evaluates
predictions of COCO's classes by LVIS's rules and finer outlines.

Shape shorthand: N detections of an image, H x W its pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from training.benchmark.cost.measures import frames_per_second, refinement_cost
from training.benchmark.tables import DataSet
from training.datasets import AnySet, open_set, usable_samples
from training.datasets.bitmaps import Bdd100kSet, CityscapesSet
from training.datasets.loader import to_test_input
from training.datasets.preparation import COCO_CATEGORIES
from training.evaluation.coco_format import TruthBuilder, instance_results
from training.evaluation.incoherence_analysis import analyse, mask_head_of, recorded_refinement
from training.metrics.bdd100k import Bdd100kEvaluation, merged
from training.metrics.cityscapes import LABELS, CityscapesEvaluation
from training.metrics.coco import coco_ap, lvis_ap
from training.metrics.coco_schema import read_json

SPEED_IMAGES = 8
_REGION_COLUMNS = {"Percent": "percent", "Recall_Err": "recall_err", "AP_GT": "ap_gt", "AP_Coarse": "ap_coarse"}


class Measurement:
    """Runs a network over a set once; `columns` computes figures from its detections.

    Args:
        speed: (iterations, runs) of the frames per second.
    """

    def __init__(
        self, network: nn.Module, cfg: CfgNode, data_set: DataSet, *, speed: tuple[int | None, int] = (None, 5)
    ) -> None:
        self.network, self.cfg, self.data_set, self.speed = network.eval(), cfg, data_set, speed
        self.samples = open_set(data_set.test, width=cfg.TRAINING.SCENE_WIDTH, height=cfg.TRAINING.SCENE_HEIGHT)
        self.records: list[dict[str, Any]] = []
        self.official = official_rules(self.samples)
        self.masks: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []
        self.truth = self._run()

    @torch.inference_mode()
    def _run(self) -> Any:
        truth = TruthBuilder(self.samples.class_names)
        for index, sample in usable_samples(self.samples):
            truth.add(sample)
            record = to_test_input(sample, self.cfg)
            if len(self.records) < SPEED_IMAGES:
                self.records.append(record)
            instances = self.network([record])[0]["instances"].to("cpu")
            if self.official is not None:
                masks, scores = instances.pred_masks.numpy().astype(bool), instances.scores.numpy()
                self.official.add(index, masks, scores, instances.pred_classes.numpy())
            results = instance_results(sample.image_id, instances)
            self.masks += results
            for result, (left, top, right, bottom) in zip(results, instances.pred_boxes.tensor.tolist(), strict=True):
                entry = {key: result[key] for key in ("image_id", "category_id", "score")}
                self.boxes.append(entry | {"bbox": [left, top, right - left, bottom - top]})
        return truth.build()

    def columns(self, names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
        """Compute values by column, and details for the JSON report; columns that cannot be computed are left out."""
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        if {"AP", "AP50", "APs", "APm", "APl"} & set(names):
            details["mask"] = coco_ap(self.truth, self.masks, "segm")
            values |= {name: details["mask"][name] for name in ("AP", "AP50", "APs", "APm", "APl")}
        if {"APB", "APB50"} & set(names):
            details["boundary"] = coco_ap(self.truth, self.masks, "boundary", ratio=self.data_set.ratio)
            values |= {"APB": details["boundary"]["AP"], "APB50": details["boundary"]["AP50"]}
        if self.official is not None:
            details["official"] = self.official.values()
            values |= details["official"]
        if "APbox" in names:
            details["box"] = coco_ap(self.truth, self.boxes, "bbox")
            values["APbox"] = details["box"]["AP"]
        if {"AP*", "AP*50"} & set(names):
            details["lvis"] = ap_star(self.data_set, self.truth, self.masks, self.samples.class_names)
            if details["lvis"]:
                values |= {"AP*": details["lvis"]["AP"], "AP*50": details["lvis"]["AP50"]}
        if {*_REGION_COLUMNS, "Acc", "Recall"} & set(names):
            values |= self._analysed(details)
        if "FPS" in names:
            details["speed"] = self._frames_per_second()
            values["FPS"] = details["speed"]["mean_fps"]
        if {"GFLOP", "MB"} & set(names):
            details["refinement"] = self._refinement_cost()
            values |= {"GFLOP": details["refinement"]["flops"] / 1e9, "MB": details["refinement"]["peak_bytes"] / 1e6}
        return {column: values[column] for column in names if column in values}, details

    def _analysed(self, details: dict[str, Any]) -> dict[str, float]:
        analysis = details["analysis"] = analyse(self.network, self.cfg, self.samples)
        table1, table3 = analysis["table1"], analysis["table3"]
        values = {column: table1[name] for column, name in _REGION_COLUMNS.items()}
        values["Acc"] = table1["accuracy"]
        if table3 is not None:
            values |= {"Recall": table3["pooled"]["recall"], "AccDetector": table3["pooled"]["accuracy"]}
        return values

    def _frames_per_second(self) -> dict[str, Any]:
        @torch.inference_mode()
        def run(index: int) -> None:
            self.network([self.records[index % len(self.records)]])

        iterations, runs = self.speed
        return frames_per_second(run, device=self.cfg.MODEL.DEVICE, iterations=iterations, runs=runs)

    def _refinement_cost(self) -> dict[str, Any]:
        """Cost of one instance with the mean number of nodes of the measured images, reference points included."""
        head = mask_head_of(self.network)
        if head is None or not head.sizes:
            return {"flops": 0, "peak_bytes": 0, "tokens": 0}
        with torch.inference_mode(), recorded_refinement(self.network) as records:
            for record in self.records:
                self.network([record])
        rois = sum(len(record.output.logits) for record in records)
        nodes = sum(len(level) for record in records for level in record.levels)
        tokens = round(nodes / max(rois, 1)) + head.settings.reference_points * head.coarse_size**2
        channels = self.cfg.MODEL.FPN.OUT_CHANNELS
        return refinement_cost(self.cfg, [max(tokens, 1)], channels=channels)


def official_rules(samples: AnySet) -> _Cityscapes | _Bdd100k | None:
    """Evaluation by a set's own rules; None for sets with COCO's rules."""
    if isinstance(samples, CityscapesSet):
        return _Cityscapes(samples)
    return _Bdd100k(samples) if isinstance(samples, Bdd100kSet) else None


class _Cityscapes:
    def __init__(self, samples: CityscapesSet) -> None:
        self.samples = samples
        self.masks, self.boundaries = CityscapesEvaluation("segm"), CityscapesEvaluation("boundary")

    def add(self, index: int, masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        truth, labels = self.samples.truth_image(index), list(LABELS.values())
        detections: tuple[Any, ...] = (list(masks), [labels[int(number)] for number in classes], scores.tolist())
        self.masks.add(truth, *detections)
        self.boundaries.add(truth, *detections)

    def values(self) -> dict[str, float]:
        masks, boundaries = self.masks.numbers(), self.boundaries.numbers()
        return {"AP": masks["AP"], "AP50": masks["AP50"], "APB": boundaries["AP"], "APB50": boundaries["AP50"]}


class _Bdd100k:
    def __init__(self, samples: Bdd100kSet) -> None:
        self.samples, self.evaluation = samples, Bdd100kEvaluation()

    def add(self, index: int, masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        bitmask = merged(masks, [int(number) + 1 for number in classes], scores.tolist())
        self.evaluation.add(
            self.samples.truth_image(index), bitmask, {number: float(score) for number, score in enumerate(scores, 1)}
        )

    def values(self) -> dict[str, float]:
        return {"AP": self.evaluation.numbers()["AP"]}


Json = dict[str, Any]


def ap_star(data_set: DataSet, truth: Json, results: list[Json], class_names: tuple[str, ...]) -> dict[str, float]:
    """Compute LVIS AP by name; empty where the set has no LVIS annotations.

    Args:
        data_set: with the LVIS file of the test images, or of generated scenes, which are annotated completely.
        truth: of the test set as COCO has it. results: its COCO results, classes counted from 1 in ``class_names``.

    Raises:
        ValueError: the LVIS file is not reduced to COCO's classes, or a class is not one of COCO's.
    """
    if data_set.lvis and Path(data_set.lvis).is_file():
        dataset = read_json(Path(data_set.lvis))
        return lvis_ap(dataset, renumbered(results, dataset, class_names), "segm")
    if not data_set.test.startswith("scenes:"):
        return {}
    return lvis_ap(as_lvis(truth), results, "segm")


def renumbered(results: list[Json], dataset: Json, class_names: tuple[str, ...]) -> list[Json]:
    """Renumber results by COCO's categories, and keep those on the file's images and of its categories.

    Predictions of categories that the file lacks do not count.
    """
    number_of = {name: number for number, name, _ in COCO_CATEGORIES}
    unknown_names = [name for name in class_names if name not in number_of]
    if unknown_names:
        raise ValueError(
            f"AP* needs COCO's classes, the test set has {unknown_names[0]!r}; leave out the LVIS annotations"
        )
    category_ids = {category["id"] for category in dataset["categories"]}
    if not category_ids <= set(number_of.values()):
        raise ValueError(
            f"the LVIS annotations have {len(category_ids)} categories, some not COCO's; AP* needs the file reduced to "
            "COCO's classes (transfiner data prepare lvis-cocofied)"
        )
    images = {image["id"] for image in dataset["images"]}
    coco_results = (result | {"category_id": number_of[class_names[result["category_id"] - 1]]} for result in results)
    return [result for result in coco_results if result["image_id"] in images and result["category_id"] in category_ids]


def as_lvis(dataset: Json) -> Json:
    """Convert a completely annotated COCO set to LVIS: categories that an image lacks are known to be absent."""
    result = copy.copy(dataset)
    everything = {category["id"] for category in dataset["categories"]}
    present: dict[int, set[int]] = {}
    for annotation in dataset["annotations"]:
        present.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    result["images"] = [
        image
        | {"neg_category_ids": sorted(everything - present.get(image["id"], set())), "not_exhaustive_category_ids": []}
        for image in dataset["images"]
    ]
    result["categories"] = [{"frequency": "f"} | category for category in dataset["categories"]]
    return result
