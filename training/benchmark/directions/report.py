"""From the kept measurements to report.json, report.md and directions.png."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import load_checkpoint
from training.benchmark.directions.drawing import draw
from training.benchmark.directions.pairing import (
    CONFIDENCE,
    KINDS,
    RESAMPLES,
    Difference,
    difference,
    resampled_ap,
    scene_weights,
)
from training.benchmark.directions.planning import Setting, result_file
from training.benchmark.directions.shared import LEAST_SCORE, SharedDetector
from training.benchmark.directions.variants import (
    LEFT_OUT,
    Comparison,
    compared_rows,
    comparisons,
    measured_config,
    name_of,
    variant_config,
)
from training.evaluation.coco_format import TruthBuilder

RATIO = 0.02
COLUMNS = {"mask": "AP", "boundary": "APB"}  # of the paper's tables


def build(setting: Setting, steps: int, seeds: int) -> dict[str, Any]:
    """What the first ``seeds`` complete seeds say; ``setting.seeds`` were asked for."""
    measured = _measured(setting, steps, seeds)
    claims = [_claim(one, measured) for one in comparisons(setting.tables)]
    rows = [
        {"table": number, "row": key, **{kind: values[kind][:, 0].tolist() for kind in KINDS}}
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
    weights = scene_weights(setting.images)
    names = _names(setting, steps)
    known: dict[str, dict[str, np.ndarray]] = {}
    for of_row in names.values():
        for name in of_row[:seeds]:
            if name not in known:
                found = json.loads(result_file(setting, name).read_text())["found"]
                known[name] = resampled_ap(dataset, found, weights, ratio=RATIO)
    return {
        place: {kind: np.stack([known[name][kind] for name in of_row[:seeds]]) for kind in KINDS}
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


def _claim(one: Comparison, measured: dict[tuple[int, str], dict[str, np.ndarray]]) -> dict[str, Any]:
    number = one.table.number
    first, second = measured[number, one.first.key], measured[number, one.second.key]
    claim: dict[str, Any] = {
        "table": number,
        "first": one.first.key,
        "second": one.second.key,
        "names": [one.first.name, one.second.name],
    }
    for kind in KINDS:
        expected = one.expected(COLUMNS[kind])
        found = difference(first[kind], second[kind])
        claim[kind] = {"paper": expected, **found.as_dict(), "verdict": verdict(found, expected)}
    return claim


def verdict(found: Difference, expected: float | None) -> str:
    """In words; the paper's sign is all that is compared, its size is of another scale."""
    if not found.significant:
        return "not significant"
    if not expected:
        return "significant, the paper has no figure" if expected is None else "significant, the paper has 0"
    return "as in the paper" if found.mean * expected > 0 else "against the paper"


def as_markdown(report: dict[str, Any]) -> str:
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
        "| table | first | second | mask AP | | boundary AP | |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in report["claims"]:
        cells = [f"{claim['table']}", *claim["names"]]
        for kind in KINDS:
            cells += [_cell(claim[kind]), claim[kind]["verdict"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", summary(report), "", "| table | row | mask AP | boundary AP |", "|---|---|---|---|"]
    for row in report["rows"]:
        figures = " | ".join(f"{np.mean(row[kind]):.1f} ± {_spread(row[kind]):.1f}" for kind in KINDS)
        lines.append(f"| {row['table']} | {row['row']} | {figures} |")
    lines += ["", "Mean over the seeds ± their standard deviation."]
    lines += [f"- Table {one['table']}, {one['row']}: not compared, {one['why']}." for one in report["left_out"]]
    return "\n".join([*lines, "", "![directions](directions.png)"]) + "\n"


def summary(report: dict[str, Any]) -> str:
    """One sentence: how many claims came out how."""
    verdicts = [claim[kind]["verdict"] for claim in report["claims"] for kind in KINDS]
    kinds = sorted(set(verdicts), key=verdicts.count, reverse=True)
    return f"Of {len(verdicts)} differences: " + ", ".join(f"{verdicts.count(one)} {one}" for one in kinds) + "."


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _cell(found: dict[str, Any]) -> str:
    paper = "-" if found["paper"] is None else f"{found['paper']:+.1f}"
    return f"{paper} / **{found['mean']:+.2f}** [{found['low']:+.2f}, {found['high']:+.2f}]"


def write(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Write report.json, report.md and directions.png."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("report.json", "report.md", "directions.png")]
    files[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(as_markdown(report), encoding="utf-8")
    draw(report, files[2])
    return files
