"""Plan a table, train (or find) its rows and measure them; finished steps are stored, so a stopped run resumes.

A miniature trains in seconds: a narrow network, small generated scenes, masks of half the side. It tests that the whole
pipeline runs; its figures say nothing about COCO.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from model.files import json_values, write_text
from training.benchmark.measurement import Measurement
from training.benchmark.tables import MINIATURE, DataSet, Row, Table, as_list, digest
from training.datasets import open_set
from training.engine.build import build_for_training, get_training_config
from training.engine.trainer import STATE_FILE, Trainer
from training.evaluation.run import load_for_evaluation

logger = logging.getLogger(__name__)

Tell = Callable[[str], object]


SCENES = DataSet("generated scenes, miniature", "scenes:train:256", "scenes:val:24", "nothing: scenes are drawn")


@dataclass(frozen=True)
class Scale:
    """Size and data of a run.

    Attributes:
        data: folder of the data set. miniature: generated scenes and a narrow network instead.
        train, test: names of sets that replace the table's ("": the table's). lvis: LVIS annotations likewise.
        iterations: instead of the schedule's, whose steps are scaled with it (0: the schedule's).
        seeds: number of trainings of every row. init: starting weights, see TRAINING.INIT.
    """

    data: str = ""
    miniature: bool = False
    train: str = ""
    test: str = ""
    lvis: str = ""
    iterations: int = 0
    seeds: int = 1
    init: str = ""
    device: str = "cpu"


def data_of(table: Table, scale: Scale) -> DataSet:
    """The table's data set at this scale, with the folder filled in."""
    data_set = replace(SCENES, ratio=table.data.ratio) if scale.miniature else table.data
    train, test, lvis = (
        name.replace("{data}", scale.data)
        for name in (scale.train or data_set.train, scale.test or data_set.test, scale.lvis or data_set.lvis)
    )
    return replace(data_set, train=train, test=test, lvis=lvis)


def training_config(table: Table, row: Row, scale: Scale, seed: int) -> CfgNode:
    """The configuration with which a row is trained.

    Raises:
        ValueError: the row is quoted.
        KeyError: an unknown configuration key.
    """
    if row.config is None:
        raise ValueError(f"{row.name} (table {table.number}) is quoted from the paper and has no configuration")
    data_set = data_of(table, scale)
    cfg = get_training_config(row.config)
    cfg.merge_from_list(as_list(table.data.change))
    cfg.merge_from_list(as_list(row.change))
    if scale.miniature:
        shrink(cfg)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(open_set(data_set.train).class_names)
    if "POINT_HEAD" in cfg.MODEL:
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if scale.iterations:
        rescale(cfg, scale.iterations)
    cfg.DATASETS.TRAIN = [data_set.train]
    cfg.DATASETS.TEST = [data_set.test]
    cfg.SEED = seed
    cfg.MODEL.DEVICE = scale.device
    cfg.MODEL.TRANSFINER.KEEP_COARSE = True
    cfg.TRAINING.INIT = scale.init
    return cfg


def rescale(cfg: CfgNode, iterations: int) -> None:
    """Scale the schedule to a number of iterations, in place."""
    share = iterations / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.STEPS = tuple(max(1, round(step * share)) for step in cfg.SOLVER.STEPS)
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, iterations // 4)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, min(cfg.SOLVER.CHECKPOINT_PERIOD, iterations))


def overrides_when_measured(row: Row, miniature: bool) -> list[object]:
    """Configuration keys that differ in a row's evaluation, as `merge_from_list` takes them."""
    change = dict(row.change_test)
    key = "MODEL.TRANSFINER.LEVEL_SIZES"
    if miniature and key in change:
        change[key] = [size // 2 for size in change[key]]
    return as_list(change)


def training_digest(cfg: CfgNode) -> str:
    """Digest of everything that determines a training's weights; rows of several tables may share a training."""
    cfg = cfg.clone()
    cfg.defrost()
    for section in ("TEST", "VERSION", "OUTPUT_DIR"):
        cfg.pop(section, None)
    cfg.DATASETS.TEST = []
    cfg.MODEL.DEVICE = ""
    return digest(cfg.dump())


def shrink(cfg: CfgNode) -> None:
    """Make a row's configuration a miniature, in place: the same structure, half the sizes."""
    head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.TRANSFINER
    half_sizes = [size // 2 for size in node.LEVEL_SIZES]
    cfg.merge_from_list(as_list(MINIATURE))
    if head.NAME != "PointRendMaskHead":  # its coarse mask is half the feature's side, 7 of 14
        head.POOLER_RESOLUTION = max(head.POOLER_RESOLUTION // 2, 4)
    node.LEVEL_SIZES = half_sizes


class BenchmarkStopped(RuntimeError):  # noqa: N818 - says what happened
    """The training of a row was stopped on request; the same command resumes it."""


def run_table(
    table: Table,
    out: Path,
    scale: Scale,
    *,
    only: Sequence[str] = (),
    checkpoints: Path | None = None,
    speed: tuple[int | None, int] = (None, 5),
    tell: Tell = logger.info,
) -> dict[str, list[dict[str, Any]]]:
    """Train or find the rows that are run, and measure them: key -> one result a seed.

    Args:
        out: folder of all tables; trainings that rows share lie in ``out/models``.
        only: keys of the rows to run (none: all). checkpoints: folder with a checkpoint directory a row's key, loaded
            instead of trained.
        speed: iterations and runs of the frames per second.

    Raises:
        ValueError: ``only`` has a key that the table has not.
        BenchmarkStopped: a training was asked to stop.
    """
    if unknown := set(only) - {row.key for row in table.rows}:
        raise ValueError(
            f"table {table.number} has no row {', '.join(sorted(unknown))}; its rows: "
            f"{', '.join(row.key for row in table.rows)}"
        )
    results: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        if row.quoted or (only and row.key not in only):
            continue
        checkpoint = checkpoints / row.key if checkpoints and (checkpoints / row.key).is_dir() else None
        results[row.key] = [
            _run_row(table, row, out, scale, seed, checkpoint, speed, tell) for seed in range(scale.seeds)
        ]
    return results


def _run_row(
    table: Table,
    row: Row,
    out: Path,
    scale: Scale,
    seed: int,
    trained_checkpoint: Path | None,
    speed: tuple[int | None, int],
    tell: Tell,
) -> dict[str, Any]:
    cfg, data_set = training_config(table, row, scale, seed), data_of(table, scale)
    overrides = overrides_when_measured(row, scale.miniature)
    name = f"given-{digest(str(trained_checkpoint))}" if trained_checkpoint else training_digest(cfg)
    file = out / f"table-{table.number}" / row.key / f"seed-{seed}.json"
    title, identity = f"{row.name}, seed {seed}", digest(name, overrides, data_set.test, scale.device, speed)
    if file.is_file():
        result: dict[str, Any] = json.loads(file.read_text())
        if result["identity"] == identity:
            tell(f"{title}: already measured")
            return result
    checkpoint = trained_checkpoint or train_or_find(cfg, out / "models" / name, name=row.key, title=title, tell=tell)
    tell(f"{title}: measuring {checkpoint}")
    network, measured_cfg, _ = load_for_evaluation(checkpoint, scale.device, [str(part) for part in overrides])
    measured_cfg.TRAINING = cfg.TRAINING
    measurement = Measurement(network, measured_cfg, data_set, speed=speed)
    values, details = measurement.columns(table.columns())
    if table.number == 3 and "analysis" in details and details["analysis"]["table3"]:
        values["Acc"] = details["analysis"]["table3"]["pooled"]["accuracy"]
    outcome = {"values": values, "details": details, "images": len(measurement.samples)}
    outcome = {"identity": identity, "seed": seed, "checkpoint": str(checkpoint)} | json_values(outcome)
    write_text(file, json.dumps(outcome))
    return outcome


def train_or_find(cfg: CfgNode, folder: Path, *, name: str, title: str, tell: Tell = logger.info) -> Path:
    """Return the checkpoint of a training, after starting or resuming it where it is not finished.

    Args:
        folder: of the training. name: of the checkpoint. title: of the training, for people.

    Raises:
        BenchmarkStopped: the training was asked to stop; its state is in the folder.
    """
    marker = folder / "done"
    if not marker.is_file():
        resume = (folder / STATE_FILE).exists()
        tell(f"{title}: {'going on with' if resume else 'training'} {cfg.SOLVER.MAX_ITER} iterations")
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(cfg, build_for_training(cfg), folder, name=name, resume=resume)
        trainer.train()
        if trainer.stop_requested:
            raise BenchmarkStopped(f"stopped while training {title}; the same command goes on there")
        marker.touch()
    return folder / "checkpoint"


def plan_table(table: Table, scale: Scale) -> dict[str, Any]:
    """Plan a table: which data are missing, and the iterations of every row that is run."""
    data_set = data_of(table, scale)
    rows, training_names = [], set[str]()
    for row in table.rows:
        if row.quoted:
            rows.append({"row": row.key, "name": row.name, "run": False})
            continue
        cfg = training_config(table, row, scale, 0)
        name = training_digest(cfg)
        rows.append(
            {
                "row": row.key,
                "name": row.name,
                "run": True,
                "trained_with_another": name in training_names,
                "iterations": cfg.SOLVER.MAX_ITER,
                "batch": cfg.SOLVER.IMS_PER_BATCH,
                "note": row.note,
            }
        )
        training_names.add(name)
    facts = {"set": data_set.title, "needs": data_set.needs, "train": data_set.train, "test": data_set.test}
    missing_paths = missing_files(data_set.train, data_set.test)
    return {"table": table.number, "title": table.title, "data": facts | {"missing": missing_paths}, "rows": rows}


def missing_files(*names: str) -> list[str]:
    """Files and folders that sets of these names need and that do not exist."""
    paths: list[Path] = []
    for name in names:
        kind, _, place = name.partition(":")
        root, _, split = place.rpartition(":")
        if kind in ("coco", "lvis"):
            paths += [Path(path) for path in place.split(":", 1)]
        elif kind == "cityscapes":
            paths += [Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split]
        elif kind == "bdd100k":
            paths.append(Path(root) / "labels" / "ins_seg" / "bitmasks" / split)
    return [str(path) for path in paths if not path.exists()]


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as lines for people."""
    data_facts = plan["data"]
    lines = [f"Table {plan['table']}: {plan['title']}", f"data: {data_facts['set']}; needs {data_facts['needs']}"]
    if data_facts["missing"]:
        lines.append("missing: " + ", ".join(data_facts["missing"]))
    for row in plan["rows"]:
        if not row["run"]:
            lines.append(f"  {row['name']:<42} quoted from the paper")
            continue
        remark = " (the same training as a row above)" if row["trained_with_another"] else ""
        lines.append(f"  {row['name']:<42} {row['iterations']:>7} iterations of {row['batch']:>2} images{remark}")
    return "\n".join(lines)
