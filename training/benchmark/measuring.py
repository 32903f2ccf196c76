"""Measure a trained row: every column that its table asks for, as fractions, frames a second, GFLOP and MB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import nn

from training.benchmark.ap_star import ap_star
from training.benchmark.official import official_rules
from training.benchmark.rows import DataSet
from training.cost.report import refinement_cost
from training.cost.speed import frames_per_second
from training.datasets import AnySet, open_set
from training.evaluation.analysis_run import analyse
from training.evaluation.boundary_ap import boundary_ap
from training.evaluation.coco_ap import coco_ap, mask_ap
from training.evaluation.coco_format import TruthBuilder, detections
from training.inspection import mask_head_of, recorded_refinement
from training.mapper import to_network_input

SPEED_IMAGES = 8
_REGION_COLUMNS = {
    "Percent": "percent",
    "Recall_Err": "recall_err",
    "AP_GT": "ap_gt",
    "AP_Coarse": "ap_coarse",
}


class Measurement:
    """Runs a network over a set once, and answers for columns from what it found.

    Args:
        speed: (iterations, runs) of the frames per second.
    """

    def __init__(
        self,
        network: nn.Module,
        cfg: CfgNode,
        data: DataSet,
        *,
        speed: tuple[int | None, int] = (None, 5),
        progress: Callable[[int], object] = int,
    ) -> None:
        self.network, self.cfg, self.data, self.speed = network.eval(), cfg, data, speed
        self.samples = open_test_set(data, cfg)
        self.progress = progress
        self.records: list[dict[str, Any]] = []
        self.official = official_rules(self.samples)
        self.truth, self.found = self._run()

    @torch.inference_mode()
    def _run(self) -> tuple[Any, list[dict[str, Any]]]:
        truth, found = TruthBuilder(self.samples.class_names), list[dict[str, Any]]()
        resize = [ResizeShortestEdge(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)]
        for index in range(len(self.samples)):
            sample = self.samples[index]
            truth.add(sample)
            record = to_network_input(sample, resize, self.cfg.INPUT.FORMAT)
            if len(self.records) < SPEED_IMAGES:
                self.records.append(record)
            one = self.network([record])[0]["instances"].to("cpu")
            masks, scores, classes = (
                one.pred_masks.numpy().astype(bool),
                one.scores.numpy(),
                one.pred_classes.numpy(),
            )
            if self.official is not None:
                self.official.add(index, masks, scores, classes)
            results = detections(sample.image_id, masks, scores, classes)
            for result, box in zip(results, one.pred_boxes.tensor.tolist(), strict=True):
                result["box_xyxy"] = box
            found += results
            self.progress(index + 1)
        return truth.build(), found

    def columns(self, wanted: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
        """Values by column, and what lies behind them, for the JSON report; a column we cannot fill is left out."""
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        masks = [{k: v for k, v in one.items() if k != "box_xyxy"} for one in self.found]
        if {"AP", "AP50", "APs", "APm", "APl"} & set(wanted):
            details["mask"] = mask_ap(self.truth, masks)
            values |= {k: details["mask"][k] for k in ("AP", "AP50", "APs", "APm", "APl")}
        if {"APB", "APB50"} & set(wanted):
            details["boundary"] = boundary_ap(self.truth, masks, ratio=self.data.ratio)
            values |= {"APB": details["boundary"]["AP"], "APB50": details["boundary"]["AP50"]}
        if self.official is not None:
            details["official"] = self.official.values()
            values |= details["official"]
        if "APbox" in wanted:
            details["box"] = self._box_ap()
            values["APbox"] = details["box"]["AP"]
        if {"AP*", "AP*50"} & set(wanted):
            details["lvis"] = ap_star(self.data, self.truth.dataset, masks, self.samples.class_names)
            if details["lvis"]:
                values |= {"AP*": details["lvis"]["AP"], "AP*50": details["lvis"]["AP50"]}
        if {*_REGION_COLUMNS, "Acc", "Recall"} & set(wanted):
            values |= self._analysed(details)
        if "FPS" in wanted:
            details["speed"] = self._frames_per_second()
            values["FPS"] = details["speed"]["mean_fps"]
        if {"GFLOP", "MB"} & set(wanted):
            details["refinement"] = self._refinement_cost()
            values |= {
                "GFLOP": details["refinement"]["flops"] / 1e9,
                "MB": details["refinement"]["peak_bytes"] / 1e6,
            }
        return {column: values[column] for column in wanted if column in values}, details

    def _box_ap(self) -> dict[str, float]:
        boxes = []
        for one in self.found:
            left, top, right, bottom = one["box_xyxy"]
            kept = {key: one[key] for key in ("image_id", "category_id", "score")}
            boxes.append(kept | {"bbox": [left, top, right - left, bottom - top]})
        return coco_ap(self.truth.dataset, boxes, "bbox")

    def _analysed(self, details: dict[str, Any]) -> dict[str, float]:
        found = details["analysis"] = analyse(self.network, self.cfg, self.samples)
        table1, table3 = found["table1"], found["table3"]
        values = {column: table1[name] for column, name in _REGION_COLUMNS.items()}
        values["Acc"] = table1["accuracy"]
        if table3 is not None:
            values |= {"Recall": table3["pooled"]["recall"], "AccDetector": table3["pooled"]["accuracy"]}
        return values

    def _frames_per_second(self) -> dict[str, object]:
        @torch.inference_mode()
        def run(index: int) -> None:
            self.network([self.records[index % len(self.records)]])

        iterations, runs = self.speed
        device = self.cfg.MODEL.DEVICE
        return frames_per_second(run, device=device, iterations=iterations, runs=runs).as_dict()

    def _refinement_cost(self) -> dict[str, Any]:
        """Of one instance with as many nodes as the measured images have on average, references included."""
        head = mask_head_of(self.network)
        if head is None or not head.sizes:
            return {"flops": 0, "peak_bytes": 0, "tokens": 0}
        with torch.inference_mode(), recorded_refinement(self.network) as records:
            for record in self.records:
                self.network([record])
        rois = sum(len(one.output.logits) for one in records)
        nodes = sum(len(level) for one in records for level in one.levels)
        tokens = round(nodes / max(rois, 1)) + head.settings.reference_points * head.coarse_size**2
        channels = self.cfg.MODEL.FPN.OUT_CHANNELS
        return refinement_cost(self.cfg, [max(tokens, 1)], channels=channels)


def open_test_set(data: DataSet, cfg: CfgNode) -> AnySet:
    """The set a row is measured on."""
    return open_set(data.test, width=cfg.TRAINING.SCENE_WIDTH, height=cfg.TRAINING.SCENE_HEIGHT)
