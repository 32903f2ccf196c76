"""What a run is made of: its setting, its trainings and measurements, and the files that keep what is done.

Which rows are compared with which, and the configuration of each at miniature scale.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from model.checkpoints.checkpoint import load_checkpoint
from training.benchmark.recipe import overrides_when_measured
from training.benchmark.tables import TABLES, Row, Table, as_list, digest
from training.engine.config import add_training_config, get_training_config

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Setting:
    """Size of a run.

    Attributes:
        weights: the shared detector. folder: of the run. tables: which.
        seeds: trainings of every row. scenes: for training. images: held out, to measure on.
        minutes: wall clock that steps are fitted to. steps: of every training; 0: fitted.
        processes: with one thread each.
        coarse_steps: in which the detector's coarse mask first gets used to its smaller grid, once for all rows.
    """

    weights: Path
    folder: Path
    tables: tuple[int, ...]
    seeds: int = 3
    scenes: int = 300
    images: int = 40
    minutes: float = 30.0
    steps: int = 0
    processes: int = 2
    coarse_steps: int = 300


@dataclass(frozen=True)
class Task:
    """One training and the rows that are measured with it: by name of the measurement, its (table, row)."""

    name: str
    seed: int
    measured: dict[str, tuple[int, str]]


def tasks(setting: Setting, steps: int) -> list[Task]:
    """All trainings, seed by seed; rows that are one training share it, those that are one measurement too."""
    detector = load_checkpoint(setting.weights).cfg
    planned: list[Task] = []
    for seed in range(setting.seeds):
        by_name: dict[str, Task] = {}
        for table, row in compared_rows(setting.tables):
            cfg = variant_config(detector, table.number, row.key, iterations=steps, seed=seed)
            task = by_name.setdefault(name_of(cfg), Task(name_of(cfg), seed, {}))
            task.measured.setdefault(name_of(measured_config(cfg, row)), (table.number, row.key))
        planned += by_name.values()
    return planned


def result_file(setting: Setting, name: str) -> Path:
    """Where a measurement is kept; its scenes are part of its name."""
    return setting.folder / "results" / f"{name}-{setting.scenes}-{setting.images}-{setting.coarse_steps}.json"


def planned_steps(setting: Setting) -> int:
    """The steps that this folder's run was planned with."""
    return setting.steps or int(json.loads((setting.folder / PLAN_FILE).read_text())["steps"])


def plan(setting: Setting) -> dict[str, Any]:
    """Estimate what a run needs, without computing anything."""
    rows = compared_rows(setting.tables)
    of_one_seed = [task for task in tasks(setting, setting.steps or 1) if task.seed == 0]
    return {
        "tables": list(setting.tables),
        "rows": len(rows),
        "trainings": len(of_one_seed) * setting.seeds,
        "measurements": sum(len(task.measured) for task in of_one_seed) * setting.seeds,
        "seeds": setting.seeds,
        "scenes": setting.scenes,
        "images": setting.images,
        "steps": setting.steps or "fitted to the minutes by timing every variant first",
        "minutes": setting.minutes,
        "processes": setting.processes,
        "disk_mb": round(1.5 * (setting.scenes + setting.images)),
        "setting": {name: str(value) for name, value in asdict(setting).items()},
    }


TABLE_NUMBERS = (2, 4, 5, 6, 8)
# (table, row) -> why it is not compared here.
LEFT_OUT = {
    (6, "pointrend"): "PointRend's coarse head has no weights in common with the shared detector, so it would not "
    "start where the others start"
}
# Each pair is one claim of a table; the difference is second minus first, its expected sign the paper's.
_PAIRS = {
    2: [
        ("full-28", "incoherent"),
        ("boundary", "incoherent"),
        ("without-l1", "incoherent"),
        ("without-l2", "incoherent"),
        ("without-l3", "incoherent"),
    ],
    4: [("fine", "fine-coarse"), ("fine-coarse", "fine-coarse-position"), ("fine-coarse-position", "all")],
    5: [("depth-0", "depth-1"), ("depth-1", "depth-2"), ("depth-2", "depth-3"), ("depth-3", "depth-4")],
    6: [
        ("cnn-full-56", "d3-h4"),
        ("mlp-full-56", "d3-h4"),
        ("mlp-incoherent", "d3-h4"),
        ("d3-h4", "d3-h8"),
        ("d3-h4", "d6-h4"),
    ],
    8: [("neither", "mjr"), ("neither", "qmp"), ("mjr", "both"), ("qmp", "both")],
}
_TINY = {"ENCODER_FFN_DIM": 128, "ENCODER_DROPOUT": 0.0, "SAMPLES_PER_LEVEL": 50, "TRAIN_INSTANCE_LIMIT": 10}
# A few hundred steps teach a sequence encoder less than the coarse mask knows, unless it begins with that mask; but
# where the cue "coarse" is what is compared, nodes may know it by their cues alone.
_COARSE_IS_COMPARED = (4,)
_LEARNING = {
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.01,
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.WARMUP_FACTOR": 0.05,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.IMS_PER_BATCH": 3,
    "TRAINING.OPTIMIZER": "AdamW",
    "TRAINING.SCHEDULE": "cosine",
    "TRAINING.EMA_DECAY": 0.98,
}


@dataclass(frozen=True)
class Comparison:
    """One claim of a table: the second row beside the first."""

    table: Table
    first: Row
    second: Row

    def expected(self, column: str) -> float | None:
        """The paper's difference in points of AP; None where the table has no such column."""
        if column not in self.first.paper or column not in self.second.paper:
            return None
        return self.second.paper[column] - self.first.paper[column]


def comparisons(numbers: tuple[int, ...] = TABLE_NUMBERS) -> list[Comparison]:
    """All claims of these tables."""
    return [
        Comparison(TABLES[number], row_of(number, first), row_of(number, second))
        for number in numbers
        for first, second in _PAIRS[number]
    ]


def row_of(number: int, key: str) -> Row:
    """A row of a table."""
    return next(row for row in TABLES[number].rows if row.key == key)


def compared_rows(numbers: tuple[int, ...] = TABLE_NUMBERS) -> list[tuple[Table, Row]]:
    """Every row that takes part in a comparison, once a table, in the tables' order."""
    wanted = {
        (comparison.table.number, row.key)
        for comparison in comparisons(numbers)
        for row in (comparison.first, comparison.second)
    }
    return [(TABLES[number], row) for number in numbers for row in TABLES[number].rows if (number, row.key) in wanted]


def variant_config(detector: CfgNode, number: int, key: str, *, iterations: int, seed: int) -> CfgNode:
    """Build the configuration of a row's mask head: the detector's channels, the paper's refinement, the row's change.

    Args:
        detector: the shared detector's configuration. number: of the table. key: of its row.
    """
    row = row_of(number, key)
    cfg: CfgNode = detector.clone()
    cfg.defrost()
    if "TRAINING" not in cfg:
        add_training_config(cfg)
    node = cfg.MODEL.TRANSFINER = get_training_config("ablations/base").MODEL.TRANSFINER.clone()
    for name, value in _TINY.items():
        node[name] = value
    node.DECODER = "direct" if number in _COARSE_IS_COMPARED else "residual"
    node.INCOHERENCE_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM
    cfg.MODEL.ROI_HEADS.NAME = "TransfinerROIHeads"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.merge_from_list(as_list(_LEARNING))
    cfg.merge_from_list(as_list(row.change))
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION //= 2
    node.LEVEL_SIZES = [size // 2 for size in node.LEVEL_SIZES]
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SEED = seed
    return cfg


def measured_config(trained: CfgNode, row: Row) -> CfgNode:
    """A row's configuration as it is measured, from the one that it is trained with."""
    cfg: CfgNode = trained.clone()
    cfg.merge_from_list(overrides_when_measured(row, miniature=True))
    return cfg


def name_of(cfg: CfgNode) -> str:
    """Names a training or a measurement by all that decides its outcome, apart from the shared detector."""
    kept = {part: cfg[part].dump() for part in ("SOLVER", "TRAINING")}
    model = {part: cfg.MODEL[part].dump() for part in ("TRANSFINER", "ROI_MASK_HEAD")}
    return digest(kept, model, cfg.SEED)
