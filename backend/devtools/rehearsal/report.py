"""The report of a rehearsal: a page and JSON.

It says how well the order of tasks predicted the edits that they took: rank correlation, beside mean confidence.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.benchmark.tables import markdown_table


def rank_correlations(snapshot: Path) -> dict[str, Any]:
    """Spearman's rho over the images of a snapshot whose prediction was shown; 1: the lowest score took the most.

    Returns:
        {"images", "task_score", "mean_confidence"}; None where nothing can be said (fewer than three images, no
        variation).
    """
    from training.snapshots.annotation_cost import rank_correlation

    entries = json.loads((snapshot / "corrections.json").read_text(encoding="utf-8"))["images"]
    shown = [entry for entry in entries if entry["shown"] and entry["prediction_score"] is not None]
    costs = [entry["cost"] for entry in shown]
    scores = {
        "task_score": [entry["prediction_score"] for entry in shown],
        "mean_confidence": [_mean_confidence(entry) for entry in shown],
    }
    correlations: dict[str, Any] = {"images": len(shown)}
    for name, values in scores.items():
        rho = rank_correlation([-value for value in values], costs) if len(shown) > 2 else math.nan
        correlations[name] = None if math.isnan(rho) else round(rho, 3)
    return correlations


def _mean_confidence(entry: dict[str, Any]) -> float:
    scores = [object["score"] for object in entry["objects"] if object["score"] is not None]
    return sum(scores) / len(scores) if scores else 0.0


def write_report(outcome: dict[str, Any], folder: Path) -> Path:
    """report.md and report.json in the folder; the page's path."""
    (folder / "report.json").write_text(json.dumps(outcome, indent=1, ensure_ascii=False), encoding="utf-8")
    page = folder / "report.md"
    page.write_text(rehearsal_markdown(outcome), encoding="utf-8")
    return page


def rehearsal_markdown(outcome: dict[str, Any]) -> str:
    """The page."""
    plan = outcome["plan"]
    lines = [
        "# Learning from corrections, rehearsed",
        "",
        f"Start: {outcome['model']}, on a domain it never saw. {plan['rounds']} round(s) of {plan['per_round']} "
        f"corrected images in a real Label Studio; all figures on {plan['test']} images that nobody annotated. "
        f"{outcome.get('minutes', '?')} minutes.",
        "",
        *_curve(outcome),
        "",
        *_rounds(outcome),
        "",
        *_poison(outcome),
        "",
        *_rollback(outcome),
        "",
        "## Claims",
        "",
        *(f"- {'yes' if is_so else '**NO**'}: {claim}" for claim, is_so in claims(outcome).items()),
    ]
    return "\n".join(lines) + "\n"


def claims(outcome: dict[str, Any]) -> dict[str, bool]:
    """Claims of the rehearsal, and whether each holds."""
    reached = [point["boundary_ap"] for point in outcome["curve"]]
    poison, back = outcome.get("poison", {}), outcome.get("rollback", {})
    return {
        "boundary AP on untouched images rose in each round": len(reached) > 1
        and all(later > earlier for earlier, later in pairwise(reached)),
        "the gate refused the poisoned round": poison.get("state") == "rejected",
        "and the served model is the same file": bool(poison.get("is_same_file")),
        "the rollback served another file at once": bool(back) and back["before"]["sha256"] != back["after"]["sha256"],
    }


def _curve(outcome: dict[str, Any]) -> list[str]:
    rows = ([p["round"], p["version"], f"{p['boundary_ap']:.1f}", f"{p['mask_ap']:.1f}"] for p in outcome["curve"])
    return ["## On untouched images", "", *markdown_table(["round", "version", "boundary AP", "mask AP"], rows)]


def _rounds(outcome: dict[str, Any]) -> list[str]:
    work = ("kept", "moved", "relabelled", "added", "deleted", "seconds")
    rows = (
        [
            *(record[name] for name in ("round", "state")),
            *(f"{record['work'].get(name, 0):.0f}" for name in work),
            *(record["effort"][name] for name in ("task_score", "mean_confidence")),
        ]
        for record in outcome["rounds"]
    )
    refused = [
        f"- round {record['round']}, {record['state']}: {reason}"
        for record in outcome["rounds"]
        if not record["state"].startswith("promoted")
        for reason in record.get("reasons") or ()
    ]
    return [
        "## Rounds",
        "",
        *markdown_table(["round", "state", *work, "order: task score", "mean confidence"], rows),
        "",
        "Order: Spearman's rho between the shown score (lowest first) and the edits that were needed.",
        *(["", "What was not promoted, and why:", "", *refused] if refused else []),
    ]


def _poison(outcome: dict[str, Any]) -> list[str]:
    poison = outcome.get("poison")
    if not poison:
        return []
    before, after = (
        f"{served['version']} (sha256 {served['sha256'][:12]})"
        for served in (poison["served_before"], poison["served_after"])
    )
    return [
        "## The poisoned round",
        "",
        f"{poison['work'].get('poisoned', 0):.0f} images with shifted masks and swapped labels: **{poison['state']}**.",
        f"Served before {before}, after {after}.",
        "",
        *(f"- {reason}" for reason in (*poison["reasons"], poison["error"]) if reason),
    ]


def _rollback(outcome: dict[str, Any]) -> list[str]:
    back = outcome.get("rollback")
    if not back:
        return []
    title = f"; Label Studio calls the backend {back['title']}" if "title" in back else f" ({back['said']})"
    return ["## Rollback", "", f"From {back['before']['version']} to {back['after']['version']}{title}."]
