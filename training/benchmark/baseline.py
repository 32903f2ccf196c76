"""Mask Transfiner beside Mask R-CNN: one backbone, schedule, seed and data set; what the mask branch alone changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from model.config import override
from training.benchmark.cost.subjects import open_network
from training.benchmark.recipe import rescale, training_digest
from training.benchmark.report import markdown_table, write_report
from training.benchmark.runner import train_or_find
from training.datasets import AnySet, open_set, usable_samples
from training.datasets.loader import to_network_input
from training.engine.config import get_training_config
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.evaluation.run import infer
from training.metrics.bootstrap import MASK_KINDS, image_weights, paired_difference, resampled_ap
from training.visualization.predictions import in_rows, tinted

BaselineResults = dict[str, list[dict[str, Any]]]
ProgressCallback = Callable[[str], object]

BASELINE, COARSE, REFINED = "Mask R-CNN", "Transfiner, coarse masks", "Transfiner, refined masks"
_PLAIN_HEADS = {"TransfinerROIHeads": "StandardROIHeads", "TransfinerCascadeROIHeads": "CascadeROIHeads"}
_RESAMPLES = 2000
_CELL_PX = 480  # of the picture; photographs have thousands


@dataclass(frozen=True)
class Trial:
    """Configuration, sets and length of the two trainings.

    Attributes:
        config: of Mask Transfiner, under ``model/configs/`` or a file; the other one is made from it.
        train, test: names of sets. iterations: instead of the configuration's (0). overrides: keys and values.
        ratio: of the boundary's width to the image diagonal.
    """

    config: str
    train: str
    test: str
    iterations: int = 0
    seed: int = 1
    device: str = "cpu"
    overrides: tuple[object, ...] = ()
    ratio: float = 0.02

    def configuration(self) -> CfgNode:
        """Of Mask Transfiner, with as many classes as the training set has."""
        cfg = get_training_config(self.config)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(open_set(self.train).class_names)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [self.train], [self.test]
        cfg.SEED, cfg.MODEL.DEVICE = self.seed, self.device
        override(cfg, self.overrides)
        if self.iterations:
            rescale(cfg, self.iterations)
        return cfg


def without_refinement(cfg: CfgNode) -> CfgNode:
    """Replace the mask branch: the detector and schedule with detectron2's own Mask R-CNN mask branch.

    Raises:
        ValueError: the configuration's detector has no such twin.
    """
    name = cfg.MODEL.ROI_HEADS.NAME
    if name not in _PLAIN_HEADS:
        raise ValueError(f"MODEL.ROI_HEADS.NAME is {name!r}; only {', '.join(_PLAIN_HEADS)} have a Mask R-CNN twin")
    twin: CfgNode = cfg.clone()
    twin.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    twin.MODEL.ROI_HEADS.NAME = _PLAIN_HEADS[name]
    twin.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return twin


def train_both(trial: Trial, out: Path, tell: ProgressCallback) -> dict[str, Path]:
    """The two checkpoints, trained or found under ``out/models``."""
    cfg = trial.configuration()
    pairs = {"mask-rcnn": (without_refinement(cfg), BASELINE), "transfiner": (cfg, "Mask Transfiner")}
    return {
        key: train_or_find(config, out / "models" / training_digest(config), name=key, title=title, tell=tell)
        for key, (config, title) in pairs.items()
    }


def predict_both(
    trial: Trial, checkpoints: Mapping[str, Path], *, pictures: int, progress: Callable[[], object]
) -> tuple[dict[str, Any], BaselineResults, list[list[np.ndarray]]]:
    """Ground truth in COCO's form, detections of the three kinds, and rows of pictures: truth and the three kinds."""
    samples = open_set(trial.test)
    results: BaselineResults = {}
    rows: list[list[np.ndarray]] = [[] for _ in range(min(pictures, len(samples)))]
    truth = TruthBuilder(samples.class_names)
    for index, sample in usable_samples(samples):
        truth.add(sample)
        if index < len(rows):
            rows[index].append(_small(tinted(sample.image, sample.masks, sample.classes)))
    for key, fields in (
        ("mask-rcnn", {BASELINE: "pred_masks"}),
        ("transfiner", {COARSE: "pred_coarse_masks", REFINED: "pred_masks"}),
    ):
        results |= _predict(trial, checkpoints[key], samples, fields, rows, progress)
    return truth.build().dataset, results, rows


def _predict(
    trial: Trial,
    checkpoint: Path,
    samples: AnySet,
    fields: Mapping[str, str],
    rows: list[list[np.ndarray]],
    progress: Callable[[], object],
) -> BaselineResults:
    network, cfg = open_network(
        weights=checkpoint, device=trial.device, overrides=["MODEL.TRANSFINER.KEEP_COARSE", True]
    )
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    results: BaselineResults = {kind: [] for kind in fields}
    for index, sample in usable_samples(samples):
        instances = infer(network, to_network_input(sample, resize, cfg.INPUT.FORMAT))
        shown = (instances.scores >= 0.5).numpy()
        for kind, field in fields.items():
            masks, classes = instances.get(field).numpy().astype(bool), instances.pred_classes.numpy()
            results[kind] += coco_results(sample.image_id, masks, instances.scores.numpy(), classes)
            if index < len(rows):
                rows[index].append(_small(tinted(sample.image, masks[shown], classes[shown])))
        progress()
    return results


def _small(picture: np.ndarray) -> np.ndarray:
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((_CELL_PX, _CELL_PX))
    return np.asarray(thumbnail)


def compare_methods(truth: dict[str, Any], results: BaselineResults, *, ratio: float) -> dict[str, Any]:
    """Mask AP and boundary AP of each kind, and what refined masks gain on the others, in points.

    ``gain[kind][metric]`` has the mean, and low and high of the interval that holds 95 % of its values when images are
    drawn anew (paired bootstrap: all kinds see the same draws).
    """
    images = len(truth["images"])
    weights = image_weights(images, _RESAMPLES)
    ap = {kind: resampled_ap(truth, detections, weights, ratio=ratio) for kind, detections in results.items()}
    gain = {
        kind: {
            metric: paired_difference(values[metric][None], ap[REFINED][metric][None]).as_dict()
            for metric in MASK_KINDS
        }
        for kind, values in ap.items()
        if kind != REFINED
    }
    figures = {kind: {metric: float(values[metric][0]) for metric in MASK_KINDS} for kind, values in ap.items()}
    return {"images": images, "AP": figures, "gain": gain}


def baseline_report_markdown(trial: Trial, outcome: dict[str, Any]) -> str:
    """The report for people."""
    cfg = trial.configuration()
    lines = [
        f"# {trial.config} beside Mask R-CNN",
        "",
        f"{trial.train}, {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, seed {trial.seed}, on "
        f"{trial.device}; measured on {trial.test} ({outcome['images']} images)",
        "",
        *markdown_table(
            ["", "mask AP", "boundary AP"],
            ([kind, *(f"{ap[metric]:.1f}" for metric in MASK_KINDS)] for kind, ap in outcome["AP"].items()),
        ),
        "",
        "Refined masks minus the others, with the interval of 95 % when images are drawn anew:",
        "",
    ]
    for kind, gains in outcome["gain"].items():
        changes = (
            f"{metric} AP {change['mean']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"
            for metric, change in gains.items()
        )
        lines.append(f"- {kind}: " + ", ".join(changes))
    return "\n".join(lines) + "\n"


def write_baseline_report(out: Path, trial: Trial, outcome: dict[str, Any], rows: list[list[np.ndarray]]) -> None:
    """Write report.json, report.md and comparison.png (truth, Mask R-CNN, coarse, refined) into ``out``."""
    pictures = []
    if rows:
        out.mkdir(parents=True, exist_ok=True)
        pictures.append(out / "comparison.png")
        in_rows(rows).save(pictures[0])
    write_report(out, outcome, baseline_report_markdown(trial, outcome), pictures)
