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
from training.benchmark.ablations.plan import (
    LEFT_OUT,
    Comparison,
    Setting,
    compared_rows,
    comparisons,
    measured_config,
    name_of,
    result_file,
    variant_config,
)
from training.benchmark.ablations.shared_detector import LEAST_SCORE, SharedDetector
from training.benchmark.report import markdown_table, write_report
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
ABLATION_COLUMNS = {"mask": "AP", "boundary": "APB"}  # of the paper's tables


def build_ablation_report(setting: Setting, steps: int, seeds: int) -> dict[str, Any]:
    """Build the report of the first ``seeds`` complete seeds; ``setting.seeds`` were asked for."""
    measured = _measured(setting, steps, seeds)
    claims = [_claim(comparison, measured) for comparison in comparisons(setting.tables)]
    rows = [
        {"table": number, "row": key, **{kind: values[kind][:, 0].tolist() for kind in MASK_KINDS}}
        for (number, key), values in measured.items()
    ]
    figures = {
        "tables": list(setting.tables),
        "seeds": seeds,
        "seeds_asked_for": setting.seeds,
        "steps": steps,
        "training_scenes": setting.scenes,
        "images": setting.images,
        "detector": load_checkpoint(setting.weights).metadata["version"],
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "boundary_ratio": RATIO,
        "load_average": list(os.getloadavg()),
        "processes": setting.processes,
    }
    left_out = [
        {"table": number, "row": key, "why": why} for (number, key), why in LEFT_OUT.items() if number in setting.tables
    ]
    return {"setting": figures, "claims": claims, "rows": rows, "left_out": left_out}


def _measured(setting: Setting, steps: int, seeds: int) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """By (table, row): AP in points of "mask" and "boundary", (S, 1 + B) each."""
    dataset = _truth(setting)
    weights = image_weights(setting.images, RESAMPLES)
    names = _names(setting, steps)
    known: dict[str, dict[str, np.ndarray]] = {}
    for of_row in names.values():
        for name in of_row[:seeds]:
            if name not in known:
                results = json.loads(result_file(setting, name).read_text())["found"]
                known[name] = resampled_ap(dataset, results, weights, ratio=RATIO)
    return {
        place: {kind: np.stack([known[name][kind] for name in of_row[:seeds]]) for kind in MASK_KINDS}
        for place, of_row in names.items()
    }


def _names(setting: Setting, steps: int) -> dict[tuple[int, str], list[str]]:
    """By (table, row) the measurement of each seed; rows of several tables may be one."""
    detector = load_checkpoint(setting.weights).cfg
    return {
        (table.number, row.key): [
            name_of(measured_config(variant_config(detector, table.number, row.key, iterations=steps, seed=seed), row))
            for seed in range(setting.seeds)
        ]
        for table, row in compared_rows(setting.tables)
    }


def _truth(setting: Setting) -> dict[str, Any]:
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    builder, scenes = TruthBuilder(detector.class_names), detector.scenes("val")
    for index in range(setting.images):
        builder.add(scenes[index])
    dataset: dict[str, Any] = builder.build().dataset
    return dataset


def _claim(comparison: Comparison, measured: dict[tuple[int, str], dict[str, np.ndarray]]) -> dict[str, Any]:
    number = comparison.table.number
    first, second = measured[number, comparison.first.key], measured[number, comparison.second.key]
    claim: dict[str, Any] = {
        "table": number,
        "first": comparison.first.key,
        "second": comparison.second.key,
        "names": [comparison.first.name, comparison.second.name],
    }
    for kind in MASK_KINDS:
        expected = comparison.expected(ABLATION_COLUMNS[kind])
        change = paired_difference(first[kind], second[kind])
        claim[kind] = {"paper": expected, **change.as_dict(), "verdict": verdict(change, expected)}
    return claim


def verdict(difference: Difference, expected: float | None) -> str:
    """Whether a difference agrees with the paper's: the sign alone, for its size is of another scale."""
    if not difference.significant:
        return "not significant"
    if not expected:
        return "significant, the paper has no figure" if expected is None else "significant, the paper has 0"
    return "as in the paper" if difference.mean * expected > 0 else "against the paper"


def ablation_report_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    facts = report["setting"]
    lines = [
        f"# Directions of Tables {', '.join(map(str, facts['tables']))} at miniature scale",
        "",
        f"One frozen detector (`{facts['detector']}`); mask heads alone are trained, each {facts['steps']} steps on "
        f"the same {facts['training_scenes']} generated scenes, {facts['seeds']} of {facts['seeds_asked_for']} seeds, "
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
                [claim["table"], *claim["names"], *(f(claim[kind]) for kind in MASK_KINDS for f in (_cell, _verdict))]
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


def _verdict(change: dict[str, Any]) -> str:
    return str(change["verdict"])


def write_ablation_report(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Write report.json, report.md and directions.png; return their paths."""
    from training.visualization.charts import draw_differences

    picture = draw_differences(report["claims"], MASK_KINDS, folder / "directions.png")
    return write_report(folder, report, ablation_report_markdown(report), [picture])
