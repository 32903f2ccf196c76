"""What a run does now and then beside learning: evaluates its checkpoint and keeps the best one.

Everything works on the saved checkpoint, so what is measured is what would be served, and none of it touches the random
numbers of the training: a run with checks learns what the same run without them does.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from model.checkpoints.metadata import METADATA_FILE, read_metadata
from model.files import replacing_folder, write_text
from training.datasets import AnySet, CityscapesSet, open_configured_set
from training.engine.log import EVALUATIONS_FILE, RunLog
from training.evaluation.run import evaluate_checkpoint

BEST_FOLDER = "best"
METRICS = ("mask", "boundary")


class Checks:
    """The periodic checks of a run, on the first process alone.

    Raises:
        ValueError: a check is asked for without a set to do it on, or ``TRAINING.BEST_BY`` is unknown.
    """

    def __init__(self, cfg: CfgNode, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        if cfg.TRAINING.BEST_BY not in METRICS:
            raise ValueError(f"TRAINING.BEST_BY is {cfg.TRAINING.BEST_BY!r}; choose {' or '.join(METRICS)}")
        if cfg.TEST.EVAL_PERIOD and not cfg.DATASETS.TEST:
            raise ValueError("TEST.EVAL_PERIOD needs a set in DATASETS.TEST")
        self._sets: dict[str, AnySet] = {}

    def evaluation_due(self, iteration: int, *, last: bool = False) -> bool:
        """Whether to evaluate after an iteration; the last one counts, and an evaluation that a kill cut off."""
        period = self.cfg.TEST.EVAL_PERIOD
        return period > 0 and iteration > 0 and (last or iteration % period == 0) and not self._is_evaluated(iteration)

    def evaluate(self, checkpoint: Path, iteration: int, log: RunLog) -> None:
        """Measure a checkpoint on every test set, write the figures down, and keep it if it is the best so far."""
        figures: dict[str, float] = {}
        for name in self.cfg.DATASETS.TEST:
            with torch.random.fork_rng():
                samples = self._set(name)
                outcome = evaluate_checkpoint(
                    checkpoint, samples, device=self.cfg.MODEL.DEVICE, ratio=_boundary_ratio(samples)
                )
            prefix = f"{name}/" if len(self.cfg.DATASETS.TEST) > 1 else ""
            for metric in METRICS:
                figures[f"{prefix}{metric}_AP"] = float(outcome.refined[metric]["AP"])
                figures[f"{prefix}coarse_{metric}_AP"] = float(outcome.coarse[metric]["AP"])
        self._keep_best(checkpoint, iteration, figures)
        log.evaluated(iteration, figures)

    def _set(self, name: str) -> AnySet:
        if name not in self._sets:
            self._sets[name] = open_configured_set(name, self.cfg)
        return self._sets[name]

    def _is_evaluated(self, iteration: int) -> bool:
        path = self.folder / EVALUATIONS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return any(json.loads(line)["iteration"] == iteration for line in lines)

    def _keep_best(self, checkpoint: Path, iteration: int, figures: dict[str, float]) -> None:
        """Copy the checkpoint to ``best/`` if it beats the one there, whose own metadata says what it reached."""
        key = next(name for name in figures if name.endswith(f"{self.cfg.TRAINING.BEST_BY}_AP"))
        best = self.folder / BEST_FOLDER
        reached = figures[key]
        if math.isnan(reached):
            return
        if best.is_dir() and read_metadata(best)["evaluation"][key] >= reached:
            return
        evaluation = {"iteration": iteration} | figures
        _replace(best, checkpoint, read_metadata(checkpoint) | {"evaluation": evaluation})


def _boundary_ratio(samples: AnySet) -> float:
    """The boundary's width as a share of the image diagonal: Cityscapes' images are large (0.02 elsewhere)."""
    return 0.005 if isinstance(samples, CityscapesSet) else 0.02


def _replace(target: Path, checkpoint: Path, metadata: dict[str, Any]) -> None:
    with replacing_folder(target) as staged:
        shutil.copytree(checkpoint, staged, dirs_exist_ok=True)
        write_text(staged / METADATA_FILE, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
