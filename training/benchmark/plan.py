"""What a table would need: data, hours, GPU memory; estimates say what they rest on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from training.benchmark.cost.comparison import refinement_cost
from training.benchmark.recipe import Scale, data_of, training_config, training_digest
from training.benchmark.rows import Row, Table

# Section 6.1: 12 epochs of COCO (117,266 images) took 8 hours on four RTX 2080 Ti with an R50.
GPU_SECONDS_AN_IMAGE = 8 * 3600 * 4 / (12 * 117_266)
SLOWER = {"R101": 1.4, "DCN": 1.3, "Cascade": 1.3}  # rough factors
DETECTOR_GB = 5.0  # a two-stage R50-FPN detector in training with two images a GPU, rough
BASIS = (
    "hours: the paper's 8 h on four RTX 2080 Ti for 12 epochs with an R50, times images and rough factors for R101, "
    "DCN and cascades; memory: the refinement's training peak as counted, without computing, plus about 5 GB"
)


def plan_table(table: Table, scale: Scale) -> dict[str, Any]:
    """Data that is there or missing, and for every row iterations, GPU hours and GPU memory."""
    data = data_of(table, scale)
    rows, seen = [], set[str]()
    for row in table.rows:
        if row.quoted:
            rows.append({"row": row.key, "name": row.name, "run": False})
            continue
        rows.append(_row_plan(table, row, scale, seen))
    return {
        "table": table.number,
        "title": table.title,
        "data": {
            "set": data.title,
            "needs": data.needs,
            "train": data.train,
            "test": data.test,
            "missing": missing_files(data.train, data.test),
        },
        "rows": rows,
        "gpu_hours": sum(row.get("gpu_hours", 0.0) for row in rows),
        "basis": BASIS,
    }


def _row_plan(table: Table, row: Row, scale: Scale, seen: set[str]) -> dict[str, Any]:
    cfg = training_config(table, row, scale, 0)
    name = training_digest(cfg)
    shared, hours = name in seen, 0.0
    seen.add(name)
    if not shared and not scale.miniature:
        images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH * scale.seeds
        hours = images * GPU_SECONDS_AN_IMAGE * _slower(cfg) / 3600
    return {
        "row": row.key,
        "name": row.name,
        "run": True,
        "trained_with_another": shared,
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "gpu_hours": round(hours, 1),
        "gpu_memory_gb": round(DETECTOR_GB + refinement_peak_gb(cfg), 1),
        "note": row.note,
    }


def _slower(cfg: CfgNode) -> float:
    factor = SLOWER["R101"] if cfg.MODEL.RESNETS.DEPTH == 101 else 1.0
    factor *= SLOWER["DCN"] if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE) else 1.0
    return factor * (SLOWER["Cascade"] if "Cascade" in cfg.MODEL.ROI_HEADS.NAME else 1.0)


def refinement_peak_gb(cfg: CfgNode) -> float:
    """Peak of the refinement in training, counted: as many instances as a batch of two images trains, at most 30."""
    node, head = cfg.MODEL.TRANSFINER, cfg.MODEL.ROI_MASK_HEAD
    if "Transfiner" not in cfg.MODEL.ROI_HEADS.NAME or not node.LEVEL_SIZES:
        return 0.0
    if node.REGION == "full":
        tokens = sum(size * size for size in node.LEVEL_SIZES)
    else:
        tokens = node.SAMPLES_PER_LEVEL * len(node.LEVEL_SIZES)
    tokens += head.POOLER_RESOLUTION**2 * node.REFERENCE_POINTS
    single, double = _peaks(cfg, tokens)
    return float(single + ((node.TRAIN_INSTANCE_LIMIT or 30) - 1) * (double - single)) / 1e9


def _peaks(cfg: CfgNode, tokens: int) -> tuple[int, int]:
    """Training peaks of one and of two instances; rows often share them."""
    cfg = cfg.clone()
    cfg.MODEL.TRANSFINER.ENCODER_DROPOUT = 0.0  # a GPU's fused attention stores no weights for it
    node, channels = cfg.MODEL.TRANSFINER, cfg.MODEL.FPN.OUT_CHANNELS
    key = (tokens, channels, node.REFINER, node.ENCODER_LAYERS, node.ENCODER_HEADS, *node.CUES)
    if key not in _PEAKS:
        counted = [refinement_cost(cfg, [tokens] * n, channels=channels, training=True)["peak_bytes"] for n in (1, 2)]
        _PEAKS[key] = (counted[0], counted[1])
    return _PEAKS[key]


_PEAKS: dict[tuple[object, ...], tuple[int, int]] = {}


def missing_files(*names: str) -> list[str]:
    """Files and folders that sets of these names need and that are not there."""
    paths = []
    for name in names:
        kind, _, rest = name.partition(":")
        if kind in ("coco", "lvis"):
            paths += [Path(part) for part in rest.split(":", 1)]
        elif kind == "cityscapes":
            root, _, split = rest.rpartition(":")
            paths += [Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split]
        elif kind == "bdd100k":
            root, _, split = rest.rpartition(":")
            paths.append(Path(root) / "labels" / "ins_seg" / "bitmasks" / split)
    return [str(path) for path in paths if not path.exists()]


def plan_text(planned: dict[str, Any]) -> str:
    """The plan as lines for people."""
    data = planned["data"]
    lines = [f"Table {planned['table']}: {planned['title']}", f"data: {data['set']}; needs {data['needs']}"]
    if data["missing"]:
        lines.append("missing: " + ", ".join(data["missing"]))
    for row in planned["rows"]:
        if not row["run"]:
            lines.append(f"  {row['name']:<42} quoted from the paper")
            continue
        shared = " (the same training as a row above)" if row["trained_with_another"] else ""
        lines.append(
            f"  {row['name']:<42} {row['iterations']:>7} iterations of {row['batch']:>2}  "
            f"{row['gpu_hours']:>6.1f} GPU h  {row['gpu_memory_gb']:>5.1f} GB a GPU{shared}"
        )
    lines += [f"in all about {planned['gpu_hours']:.0f} GPU hours", f"({planned['basis']})"]
    return "\n".join(lines)
