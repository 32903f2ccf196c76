"""Train (or find) and measure a table's rows; every finished step is kept, so a run goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.files import json_values, write_text
from training.benchmark.cost.subjects import open_network
from training.benchmark.measurement import Measurement
from training.benchmark.recipe import Scale, data_of, overrides_when_measured, training_config, training_digest
from training.benchmark.rows import Row, Table, digest
from training.engine.build import build_for_training
from training.engine.state import STATE_FILE
from training.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class BenchmarkStopped(RuntimeError):  # noqa: N818 - says what happened
    """Someone asked the training of a row to stop; the same command goes on."""


def run_table(
    table: Table,
    out: Path,
    scale: Scale,
    *,
    only: Sequence[str] = (),
    checkpoints: Path | None = None,
    speed: tuple[int | None, int] = (None, 5),
    tell: Callable[[str], object] = logger.info,
) -> dict[str, list[dict[str, Any]]]:
    """Results of the rows that are run: key -> one result a seed.

    Args:
        out: folder of all tables; trainings that rows share lie in ``out/models``.
        only: keys of the rows to run (none: all). checkpoints: folder with a checkpoint directory a row's key, loaded
            instead of trained.
        speed: iterations and runs of the frames per second.

    Raises:
        ValueError: ``only`` has a key that the table has not.
        BenchmarkStopped: a training was asked to stop.
    """
    unknown = set(only) - {row.key for row in table.rows}
    if unknown:
        raise ValueError(
            f"table {table.number} has no row {', '.join(sorted(unknown))}; its rows: "
            f"{', '.join(row.key for row in table.rows)}"
        )
    results: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        if row.quoted or (only and row.key not in only):
            continue
        results[row.key] = [
            _run_row(table, row, out, scale, seed, checkpoints, speed, tell) for seed in range(scale.seeds)
        ]
    return results


def _run_row(
    table: Table,
    row: Row,
    out: Path,
    scale: Scale,
    seed: int,
    checkpoints: Path | None,
    speed: tuple[int | None, int],
    tell: Callable[[str], object],
) -> dict[str, Any]:
    cfg = training_config(table, row, scale, seed)
    given = checkpoints / row.key if checkpoints and (checkpoints / row.key).is_dir() else None
    name = f"given-{digest(str(given))}" if given else training_digest(cfg)
    file = out / f"table-{table.number}" / row.key / f"seed-{seed}.json"
    identity = digest(
        name, overrides_when_measured(row, scale.miniature), data_of(table, scale).test, scale.device, speed
    )
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["identity"] == identity:
            tell(f"{row.name}, seed {seed}: already measured")
            return kept
    checkpoint = given or train_or_find(
        cfg, out / "models" / name, name=row.key, title=f"{row.name}, seed {seed}", tell=tell
    )
    tell(f"{row.name}, seed {seed}: measuring {checkpoint}")
    outcome = {"identity": identity, "seed": seed, "checkpoint": str(checkpoint)} | _measured(
        table, row, checkpoint, scale, cfg, speed
    )
    write_text(file, json.dumps(outcome))
    return outcome


def train_or_find(
    cfg: Any, folder: Path, *, name: str, title: str, tell: Callable[[str], object] = logger.info
) -> Path:
    """The checkpoint of a training, which may be done, begun, or not begun.

    Args:
        folder: of the training. name: of the checkpoint. title: of the training, for people.

    Raises:
        BenchmarkStopped: the training was asked to stop; its state is in the folder.
    """
    done = folder / "done"
    if not done.is_file():
        resume = (folder / STATE_FILE).exists()
        tell(f"{title}: {'going on with' if resume else 'training'} {cfg.SOLVER.MAX_ITER} iterations")
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(cfg, build_for_training(cfg), folder, name=name, resume=resume)
        trainer.train()
        if trainer.stop_requested:
            raise BenchmarkStopped(f"stopped while training {title}; the same command goes on there")
        done.touch()
    return folder / "checkpoint"


def _measured(
    table: Table, row: Row, checkpoint: Path, scale: Scale, trained_with: Any, speed: tuple[int | None, int]
) -> dict[str, Any]:
    overrides = [*overrides_when_measured(row, scale.miniature), "MODEL.TRANSFINER.KEEP_COARSE", True]
    network, cfg = open_network(weights=checkpoint, device=scale.device, overrides=overrides)
    cfg.TRAINING = trained_with.TRAINING
    measurement = Measurement(network, cfg, data_of(table, scale), speed=speed)
    wanted = table.columns()
    values, details = measurement.columns(wanted)
    if table.number == 3 and "analysis" in details and details["analysis"]["table3"]:
        values["Acc"] = details["analysis"]["table3"]["pooled"]["accuracy"]
    outcome: dict[str, Any] = json_values({"values": values, "details": details, "images": len(measurement.samples)})
    return outcome
