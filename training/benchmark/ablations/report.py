"""From the kept measurements to report.json, report.md and directions.png.

Differences between two rows with intervals, paired by image and by seed.

One bootstrap over both: every resample draws scenes with replacement, and seeds with replacement; both rows are
measured on the same draw, so what a scene or a seed is easy or hard for both cancels. A resample of S seeds varies
less than S new ones would, by sqrt((S - 1) / S); deviations from the seeds' mean are stretched by its inverse.
Shapes: N scenes, S seeds, B resamples, T IoU thresholds.

The picture: every claim's difference with its interval, the paper's beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

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
from training.evaluation.coco_format import TruthBuilder
from training.metrics.bootstrap import average_precision, bootstrap_draws, ranked_matches

RATIO = 0.02
ABLATION_COLUMNS = {"mask": "AP", "boundary": "APB"}  # of the paper's tables


def build_ablation_report(setting: Setting, steps: int, seeds: int) -> dict[str, Any]:
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
        expected = one.expected(ABLATION_COLUMNS[kind])
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


def write_ablation_report(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Write report.json, report.md and directions.png."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("report.json", "report.md", "directions.png")]
    files[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(ablation_report_markdown(report), encoding="utf-8")
    draw_differences(report, files[2])
    return files


KINDS = ("mask", "boundary")
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Of an AP in points, second row minus first.

    Attributes:
        mean: over the seeds, on all scenes. low, high: the interval.
        by_seed: of each seed on all scenes.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def significant(self) -> bool:
        """The interval leaves out 0, and every seed agrees on the sign."""
        return self.low * self.high > 0 and all(one * self.mean > 0 for one in self.by_seed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"significant": self.significant}


def resampled_ap(
    dataset: dict[str, Any], found: Sequence[dict[str, Any]], weights: np.ndarray, *, ratio: float
) -> dict[str, np.ndarray]:
    """ "mask" and "boundary" AP in points under (B, N) weights of the scenes: (B,) each."""
    values = {}
    for kind in KINDS:
        ranked = ranked_matches(dataset, found, boundary=kind == "boundary", ratio=ratio)
        by_class = np.stack([average_precision(one, weights).mean(1) for one in ranked], axis=1)
        there = ~np.isnan(by_class)  # a resample may hold nothing of a class
        values[kind] = 100 * np.where(there, by_class, 0).sum(1) / np.maximum(there.sum(1), 1)
    return values


def scene_weights(scenes: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(1 + B, N): all scenes once, then B draws."""
    return np.concatenate((np.ones((1, scenes), np.int64), bootstrap_draws(scenes, resamples, seed=1)))


def difference(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> Difference:
    """From AP of both rows under the same weights: (S, 1 + B) each, the first column being all scenes.

    Raises:
        ValueError: the shapes differ, or there is no seed.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"paired differences need the same seeds and draws, got {first.shape} and {second.shape}")
    apart = second - first
    seeds, resamples = apart.shape[0], apart.shape[1] - 1
    by_seed = tuple(float(one) for one in apart[:, 0])
    drawn = np.random.default_rng(2).integers(seeds, size=(resamples, seeds))
    resampled = apart[drawn, np.arange(1, resamples + 1)[:, None]]  # (B, S)
    middle = apart[:, 1:].mean(0)
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    means = middle + stretch * (resampled - middle[:, None]).mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(apart[:, 0].mean()), float(low), float(high), by_seed)


COLOURS = {"as in the paper": "#15803d", "against the paper": "#b91c1c", "not significant": "#9aa4b2"}
OTHER = "#1d4ed8"
PANELS = {"mask": "mask AP", "boundary": "boundary AP"}


def draw_differences(report: dict[str, Any], path: Path) -> None:
    """A PNG with a panel for mask AP and one for boundary AP."""
    claims = report["claims"]
    figure = Figure(figsize=(11, 0.32 * len(claims) + 1.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, claim in enumerate(claims):
            found = claim[kind]
            colour = COLOURS.get(found["verdict"], OTHER)
            axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(found["mean"], place, "o", color=colour, markersize=5)
            if found["paper"] is not None:
                axes.plot(found["paper"], place, "|", color="black", markersize=9)
        axes.set(xlabel=f"{title}, second minus first, points")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(claims)))
    panels[0].set_yticklabels([f"{c['table']}: {c['first']} → {c['second']}" for c in claims], fontsize=8)
    panels[0].invert_yaxis()
    shown = {claim[kind]["verdict"] for claim in claims for kind in PANELS}
    marks = [axes.plot([], [], "o", color=COLOURS.get(one, OTHER), label=one)[0] for one in sorted(shown)]
    marks += panels[0].plot([], [], "|", color="black", markersize=9, label="the paper, on COCO")
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, facecolor="white")
