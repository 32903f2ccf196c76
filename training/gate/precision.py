"""What bf16 costs a candidate: the same weights in both precisions on the same images, kept where `auto` looks.

`training.evaluation.precision` measures a shipped checkpoint on its whole validation set; this is the short form for a
version that a round has just learned.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoints.metadata import read_metadata, update_metadata
from model.precision import has_fast_bf16, keeps_ap
from training.datasets.sample import MadeSamples
from training.evaluation.precision import ap_differences
from training.gate.detections import Detect, detect_with
from training.gate.holdout import Holdout, open_holdout
from training.gate.rules import GateRules
from training.snapshots.format import open_snapshot

log = logging.getLogger(__name__)
#: Images held out to compare on. Where they are fewer than `LEAST_IMAGES`, training images join them: what those
#: taught is the same in both precisions.
LEAST_IMAGES, MOST_IMAGES = 8, 16


def record_bf16(candidate: Path, snapshot: Path, rules: GateRules, detect: Detect) -> dict[str, Any] | None:
    """Measure a candidate in bf16 beside fp32 and write the outcome into its metadata, see `is_measured`.

    Args:
        detect: what it finds in fp32.

    Returns:
        ``images``, and for ``mask_ap`` and ``boundary_ap`` both figures and their difference with its interval, as
        fractions; None where this processor is not fast at bf16, the network has none, or nothing is annotated.
    """
    metadata = read_metadata(candidate)
    digest = metadata.get("digest")
    known: dict[str, Any] = metadata.get("bf16") or {}
    if known.get("digest") == digest or not has_fast_bf16():
        return known or None
    held = len(open_snapshot(snapshot).open_set("holdout"))
    whole = open_holdout(snapshot, folds=int(held < LEAST_IMAGES))
    images = _first(whole, min(max(held, LEAST_IMAGES), MOST_IMAGES))
    if not images.annotated_images:
        return None
    try:
        detections = {"bf16": detect_with(precision="bf16")(candidate, images.samples)}
    except ValueError as error:
        log.warning("bf16 is not measured: %s", error)
        return None
    detections["fp32"] = detect(candidate, images.samples)
    results = {precision: images.coco_results(of_precision) for precision, of_precision in detections.items()}
    outcome: dict[str, Any] = {"digest": digest, "set": f"snapshot:{images.name[:12]}", "images": len(images.keys)}
    outcome |= ap_differences(images.dataset, results, rules.boundary_ratio)
    update_metadata(candidate, {"bf16": outcome})
    log.info("bf16 %s the AP of %s: %s", "keeps" if keeps_ap(outcome) else "costs too much of", candidate, outcome)
    return outcome


def _first(holdout: Holdout, count: int) -> Holdout:
    """The first images of a hold-out."""
    records = holdout.dataset["images"][:count]
    kept = {image["id"] for image in records}
    annotations = [annotation for annotation in holdout.dataset["annotations"] if annotation["image_id"] in kept]
    return replace(
        holdout,
        samples=MadeSamples(range(len(records)), holdout.samples.__getitem__),
        keys=holdout.keys[: len(records)],
        dataset={**holdout.dataset, "images": records, "annotations": annotations},
    )
