"""The card of a checkpoint: what it is, how it was trained, and figures that a command printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.checkpoints.checkpoint import METADATA_FILE, WEIGHTS_FILE

CARD_FILE = "MODEL_CARD.md"

_STARTS = {
    "imagenet": "the backbone started from the public ImageNet weights of EfficientNet-Lite0 (a registry package); "
    "everything else from random numbers",
    "random": "all weights started from random numbers",
}


def write_card(directory: Path, evaluation: dict[str, Any], set_name: str, command: str) -> Path:
    """Write ``MODEL_CARD.md`` beside the weights; returns its path.

    Args:
        directory: of the checkpoint.
        evaluation: of `Evaluation.as_dict`.
        set_name: what it was evaluated on.
        command: that reproduces the figures.
    """
    metadata = json.loads((directory / METADATA_FILE).read_text(encoding="utf-8"))
    size_mb = (directory / WEIGHTS_FILE).stat().st_size / 1e6
    path = directory / CARD_FILE
    path.write_text(render_card(metadata, evaluation, set_name, command, size_mb), encoding="utf-8")
    return path


def render_card(
    metadata: dict[str, Any], evaluation: dict[str, Any], set_name: str, command: str, size_mb: float
) -> str:
    """The card's Markdown."""
    training = metadata.get("training", {})
    start = training.get("init", "random")
    lines = [
        f"# {metadata['name']}",
        "",
        f"Mask Transfiner (preset `{metadata.get('preset', 'released')}`), {size_mb:.1f} MB of half-precision weights. "
        f"Classes: {', '.join(metadata['classes'])}.",
        "",
        "## What it is for",
        "",
        "To show the whole path from image to polygons without a download, and to start finetuning from. It has seen "
        "generated pictures only: on photographs of real objects expect little until it is finetuned on some.",
        "",
        "## How it was trained",
        "",
        f"- Start: {_STARTS.get(start, f'from the checkpoint {start}')}.",
        f"- Data: {', '.join(training.get('sets', ['unknown']))}, drawn by `training/synthetic/scenes.py`; no "
        "photographs, no annotations by people. Training and held-out scenes come from disjoint ranges of seeds.",
        f"- Length: {training.get('iterations', '?')} iterations, {training.get('images_seen', '?')} images seen, "
        f"{training.get('minutes', '?')} minutes of wall clock. Weights are a moving average.",
        *([f"- {training['note']}"] if "note" in training else []),
        "",
        f"## Figures on {evaluation['images']} held-out scenes (`{set_name}`)",
        "",
        *_table(evaluation),
        "",
        f"Boundary AP (ratio 0.02) gained by refinement: **{100 * evaluation['boundary_gain']:+.1f}** points. "
        "Coarse masks are the same detections of the same network before refinement. Printed by:",
        "",
        "```",
        command,
        "```",
        "",
        f"Digest (sha256 of the weights): `{metadata.get('digest', 'unknown')}`.",
        f"Created {metadata.get('created', '?')}.",
    ]
    return "\n".join(lines) + "\n"


def _table(evaluation: dict[str, Any]) -> list[str]:
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    names += [name for name in evaluation["refined"]["mask"] if name.startswith("AP/")]
    lines = ["| | refined mask | coarse mask | refined boundary | coarse boundary |", "|---|---|---|---|---|"]
    for name in names:
        values = [evaluation[kind][metric][name] for metric in ("mask", "boundary") for kind in ("refined", "coarse")]
        lines.append(f"| {name.removeprefix('AP/')} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return lines
