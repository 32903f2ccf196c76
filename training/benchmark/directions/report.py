"""From the kept measurements to report.json, report.md and directions.png.

Differences between two rows come with intervals of a bootstrap paired by scene and seed
(`training.metrics.bootstrap`). Shapes: S seeds, B resamples.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints.checkpoint import load_checkpoint
from training.benchmark.directions.run import Setting, compared_rows, tasks
from training.benchmark.directions.shared_detector import LEAST_SCORE
from training.benchmark.report import markdown_table, write_report
from training.benchmark.tables import TABLES
from training.evaluation.coco_format import TruthBuilder
from training.metrics.bootstrap import (
    CONFIDENCE,
    MASK_KINDS,
    Difference,
    image_weights,
    paired_difference,
    resampled_ap,
)

RATIO = 0.02
RESAMPLES = 1000
PAPER_COLUMNS = {"mask": "AP", "boundary": "APB"}
Measured = dict[tuple[int, str], dict[str, np.ndarray]]


def build_directions_report(setting: Setting) -> dict[str, Any]:
    """Build the report of a finished run."""
    measured = _measured(setting)
    figures = {
        "tables": list(setting.tables),
        "seeds": setting.seeds,
        "steps": setting.steps,
        "training_scenes": setting.scenes,
        "images": setting.images,
        "detector": load_checkpoint(setting.weights).metadata["version"],
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "boundary_ratio": RATIO,
        "load_average": list(os.getloadavg()),
        "processes": setting.processes,
    }
    return {
        "setting": figures,
        "claims": [
            _claim(number, first, second, measured)
            for number in setting.tables
            for first, second in TABLES[number].claims
        ],
        "rows": [
            {"table": number, "row": key, **{kind: values[kind][:, 0].tolist() for kind in MASK_KINDS}}
            for (number, key), values in measured.items()
        ],
        "left_out": [
            {"table": number, "row": key, "why": why}
            for number in setting.tables
            for key, why in TABLES[number].apart.items()
        ],
    }


def _measured(setting: Setting) -> Measured:
    """By (table, row): AP in points of "mask" and "boundary", (S, 1 + B) each."""
    detector = setting.detector()
    builder, scenes = TruthBuilder(detector.class_names), detector.scenes("val")
    for index in range(setting.images):
        builder.add(scenes[index])
    truth, weights = builder.build().dataset, image_weights(setting.images, RESAMPLES)
    by_row: dict[tuple[int, str], list[dict[str, np.ndarray]]] = {}
    for task in tasks(setting):
        for name, places in task.measured.items():
            results = json.loads(setting.result_file(name).read_text())
            ap = resampled_ap(truth, results, weights, ratio=RATIO)
            for place in places:
                by_row.setdefault(place, []).append(ap)
    return {
        (number, row.key): {kind: np.stack([ap[kind] for ap in by_row[number, row.key]]) for kind in MASK_KINDS}
        for number, row in compared_rows(setting.tables)
    }


def _claim(number: int, first: str, second: str, measured: Measured) -> dict[str, Any]:
    rows = [TABLES[number].row(key) for key in (first, second)]
    claim: dict[str, Any] = {"table": number, "first": first, "second": second, "names": [row.name for row in rows]}
    for kind in MASK_KINDS:
        figures = [row.paper.get(PAPER_COLUMNS[kind]) for row in rows]
        expected = None if None in figures else figures[1] - figures[0]  # type: ignore[operator]
        change = paired_difference(measured[number, first][kind], measured[number, second][kind])
        claim[kind] = {"paper": expected, **change.as_dict(), "verdict": verdict(change, expected)}
    return claim


def verdict(difference: Difference, expected: float | None) -> str:
    """Whether a difference agrees with the paper's: the sign alone, for its size is of another scale."""
    if not difference.significant:
        return "not significant"
    if not expected:
        return "significant, the paper has no figure" if expected is None else "significant, the paper has 0"
    return "as in the paper" if difference.mean * expected > 0 else "against the paper"


def directions_report_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    facts = report["setting"]
    lines = [
        f"# Directions of Tables {', '.join(map(str, facts['tables']))} at miniature scale",
        "",
        f"One frozen detector (`{facts['detector']}`); mask heads alone are trained, each {facts['steps']} steps on "
        f"the same {facts['training_scenes']} generated scenes, {facts['seeds']} seeds, "
        f"masks of half the paper's side. Measured on {facts['images']} held-out scenes, detections from score "
        f"{LEAST_SCORE} on, the same for every row. Points of AP say nothing about COCO; "
        "signs and their certainty are what counts. So short a training needs a refinement that begins with the coarse "
        "mask (`DECODER: residual`); Table 4 alone has the paper's, whose nodes know the coarse mask by cues only.",
        "",
        f"A difference is second minus first: paper / **measured** [{100 * facts['confidence']:.0f} % interval of a "
        f"bootstrap paired by scene and seed, {facts['resamples']} resamples]. It is called significant where the "
        "interval leaves out 0 and every seed has the same sign. With so many differences, one in twenty intervals "
        "leaves out 0 by chance." + ("" if facts["seeds"] > 1 else " One seed says nothing about other trainings."),
        "",
        *markdown_table(
            ["table", "first", "second", "mask AP", "", "boundary AP", ""],
            (
                [
                    claim["table"],
                    *claim["names"],
                    *(cell for kind in MASK_KINDS for cell in (_cell(claim[kind]), claim[kind]["verdict"])),
                ]
                for claim in report["claims"]
            ),
        ),
        "",
        summary(report),
        "",
        *markdown_table(
            ["table", "row", "mask AP", "boundary AP"],
            (
                [row["table"], row["row"], *(f"{np.mean(row[k]):.1f} ± {_spread(row[k]):.1f}" for k in MASK_KINDS)]
                for row in report["rows"]
            ),
        ),
        "",
        "Mean over the seeds ± their standard deviation.",
        *(f"- Table {row['table']}, {row['row']}: not compared, {row['why']}." for row in report["left_out"]),
    ]
    return "\n".join(lines) + "\n"


def summary(report: dict[str, Any]) -> str:
    """One sentence: how many claims came out how."""
    verdicts = [claim[kind]["verdict"] for claim in report["claims"] for kind in MASK_KINDS]
    kinds = sorted(set(verdicts), key=verdicts.count, reverse=True)
    return f"Of {len(verdicts)} differences: " + ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds) + "."


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _cell(change: dict[str, Any]) -> str:
    paper = "-" if change["paper"] is None else f"{change['paper']:+.1f}"
    return f"{paper} / **{change['mean']:+.2f}** [{change['low']:+.2f}, {change['high']:+.2f}]"


def write_directions_report(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Write report.json, report.md and directions.png; return their paths."""
    from training.visualization.charts import draw_differences

    picture = draw_differences(report["claims"], MASK_KINDS, folder / "directions.png")
    return write_report(folder, report, directions_report_markdown(report), [picture])
