"""The papers of a verdict: report.json, report.md, the version's card, and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint_metadata import read_metadata
from training.gate.bars import draw_bars
from training.gate.before_after import draw_before_after
from training.gate.findings import Found
from training.gate.holdout import Holdout
from training.gate.verdict import Verdict

BARS, BEFORE_AFTER = "pictures/gate.png", "pictures/before_after.png"


def write_report(
    out: Path, verdict: Verdict, candidate: Path, holdout: Holdout, seen: dict[str, list[Sequence[Found]]]
) -> None:
    """Write the papers of a verdict into a folder, ready for `Registry.attach`.

    Args:
        out: the folder; made if needed.
        candidate: its checkpoint directory.
        seen: what "candidate" and, if there is one, "incumbent" found on each picture of the hold-out.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    draw_bars(verdict.figures, out / BARS)
    pictures = [BARS]
    if holdout.annotated_images:
        draw_before_after(holdout, seen, verdict.figures["models"], out / BEFORE_AFTER)
        pictures.append(BEFORE_AFTER)
    metadata = read_metadata(candidate)
    (out / "MODEL_CARD.md").write_text(_card(verdict, metadata, pictures), encoding="utf-8")
    (out / "report.md").write_text(_report(verdict, pictures), encoding="utf-8")
    text = json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")


def _card(verdict: Verdict, metadata: dict[str, Any], pictures: Sequence[str]) -> str:
    holdout = verdict.figures["holdout"]
    before = verdict.figures["models"].get("incumbent", {}).get("version")
    lines = [
        f"# {metadata['version']}",
        "",
        f"Mask Transfiner, finetuned on corrections. Classes: {', '.join(metadata['classes'])}.",
        f"It was compared with {before}." if before else "Nothing served before it.",
        "",
        f"## Figures on {holdout['images']} held-out images ({holdout['objects']} objects)",
        "",
        *_body(verdict, pictures),
        "",
        "## How it came about",
        "",
        *_facts(metadata),
    ]
    return "\n".join(lines) + "\n"


def _facts(metadata: dict[str, Any]) -> list[str]:
    """Whatever the checkpoint says about itself, one fact a line."""
    shown = {key: value for key, value in metadata.items() if key not in ("version", "classes")}
    return [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in shown.items()]


def _report(verdict: Verdict, pictures: Sequence[str]) -> str:
    decided = "may serve" if verdict.promote else "is refused"
    name = verdict.figures["models"]["candidate"]["version"]
    rules = ", ".join(f"{key} {value}" for key, value in verdict.figures["rules"].items())
    return "\n".join([f"# {name} {decided}", "", *_body(verdict, pictures), "", f"Rules: {rules}."]) + "\n"


def _body(verdict: Verdict, pictures: Sequence[str]) -> list[str]:
    return [
        *(f"- {reason}" for reason in verdict.reasons),
        "",
        "```",
        *verdict.rows(),
        "```",
        "",
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
