"""The report of a rehearsal: a page, JSON, and the learning curve as PNG."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from backend.learning.curve import Point, draw_curve

LOOP = "the loop"


def write_report(outcome: dict[str, Any], folder: Path) -> Path:
    """report.md, report.json, learning_curve.png in the folder; the page's path."""
    (folder / "report.json").write_text(json.dumps(outcome, indent=1, ensure_ascii=False), encoding="utf-8")
    series = {
        name: [Point(one["round"], one["boundary_ap"]) for one in curve]
        for name, curve in outcome["curves"].items()
    }
    picture = draw_curve(series, title="boundary AP on images nobody touched", figure_of_merit="boundary AP")
    (folder / "learning_curve.png").write_bytes(picture)
    page = folder / "report.md"
    page.write_text(as_markdown(outcome), encoding="utf-8")
    return page


def as_markdown(outcome: dict[str, Any]) -> str:
    """The page."""
    plan = outcome["plan"]
    lines = [
        "# Learning from corrections, rehearsed", "",
        f"Start: {outcome['model']}, on a domain it never saw. {plan['rounds']} round(s) of {plan['per_round']} "
        f"corrected images in a real Label Studio; all figures on {plan['test']} images that nobody annotated. "
        f"{outcome.get('minutes', '?')} minutes.", "",
        "![boundary AP by round](learning_curve.png)", "", *_curves(outcome), "", *_rounds(outcome), "",
        *_poison(outcome), "", *_rollback(outcome), "", "## Claims", "",
        *(f"- {'yes' if is_so else '**NO**'}: {claim}" for claim, is_so in claims(outcome).items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def claims(outcome: dict[str, Any]) -> dict[str, bool]:
    """What the rehearsal is to show, and whether it did."""
    reached = [one["boundary_ap"] for one in outcome["curves"].get(LOOP, [])]
    poison, back = outcome.get("poison", {}), outcome.get("rollback", {})
    found = {
        "boundary AP on untouched images rose in each round": len(reached) > 1
        and all(later > earlier for earlier, later in pairwise(reached)),
        "the gate refused the poisoned round": poison.get("state") == "rejected",
        "and the served model is the same file": bool(poison.get("is_same_file")),
        "the rollback served another file at once": bool(back)
        and back["before"]["sha256"] != back["after"]["sha256"],
    }
    for name, curve in outcome["curves"].items():
        if name != LOOP and reached:
            found[f"the loop ends above {name}"] = reached[-1] > curve[-1]["boundary_ap"]
    return found


def _curves(outcome: dict[str, Any]) -> list[str]:
    lines = [
        "## Boundary AP (mask AP) on untouched images", "",
        "| round | " + " | ".join(outcome["curves"]) + " |", "|---|" + "---|" * len(outcome["curves"]),
    ]  # fmt: skip
    for number in range(max(len(curve) for curve in outcome["curves"].values())):
        cells = [
            f"{curve[number]['boundary_ap']:.1f} ({curve[number]['mask_ap']:.1f})"
            if number < len(curve)
            else ""
            for curve in outcome["curves"].values()
        ]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return lines


def _rounds(outcome: dict[str, Any]) -> list[str]:
    lines = [
        "## Rounds", "",
        "| arm | round | state | kept | moved | relabelled | added | deleted | seconds | order: task score "
        "| mean confidence |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in outcome["rounds"]:
        work = [f"{one['work'].get(name, 0):.0f}" for name in
                ("kept", "moved", "relabelled", "added", "deleted", "seconds")]  # fmt: skip
        effort = [str(one["effort"][name]) for name in ("task_score", "mean_confidence")]
        cells = [one["arm"], str(one["round"]), one["state"], *work, *effort]
        lines.append("| " + " | ".join(cells) + " |")
    refused = [
        f"- {one['arm']}, round {one['round']}, {one['state']}: {reason}"
        for one in outcome["rounds"]
        if not one["state"].startswith("promoted")
        for reason in one.get("reasons") or ()
    ]
    return [
        *lines, "",
        "Order: Spearman's rho between the shown score (lowest first) and the edits that were needed.",
        *(["", "What was not promoted, and why:", "", *refused] if refused else []),
    ]  # fmt: skip


def _poison(outcome: dict[str, Any]) -> list[str]:
    poison = outcome.get("poison")
    if not poison:
        return []
    lines = [
        "## The poisoned round", "",
        f"{poison['work'].get('poisoned', 0):.0f} images with shifted masks and swapped labels: **{poison['state']}**.",
        f"Served before {poison['served_before']['version']} (sha256 {poison['served_before']['sha256'][:12]}), after "
        f"{poison['served_after']['version']} (sha256 {poison['served_after']['sha256'][:12]}).", "",
    ]  # fmt: skip
    return [*lines, *(f"- {reason}" for reason in (*poison["reasons"], poison["error"]) if reason)]


def _rollback(outcome: dict[str, Any]) -> list[str]:
    back = outcome.get("rollback")
    if not back:
        return []
    said = f"From {back['before']['version']} to {back['after']['version']}"
    title = f"; Label Studio calls the backend {back['title']}" if "title" in back else f" ({back['said']})"
    return ["## Rollback", "", said + title + "."]
