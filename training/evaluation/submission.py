"""COCO's test-dev submission: detections in the result format of its evaluation server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from training.datasets import CocoSet, Sample
from training.evaluation.coco_format import detections


class Submission:
    """Collects what was found on each image (an `observe` of `evaluate_checkpoint`); `save` writes the file.

    Records carry image_id, category_id, score and compressed RLE, and no box: with one, the server sorts objects into
    sizes by their boxes' areas.
    """

    def __init__(self, samples: CocoSet) -> None:
        self.category_ids = samples.category_ids
        self.records: list[dict[str, Any]] = []

    def __call__(self, sample: Sample, found: Instances) -> None:
        """Take in one image."""
        masks = found.pred_masks.numpy().astype(bool)
        for one in detections(sample.image_id, masks, found.scores.numpy(), found.pred_classes.numpy()):
            packed = one["segmentation"]
            one["category_id"] = self.category_ids[one["category_id"] - 1]
            one["segmentation"] = {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}
            self.records.append(one)

    def save(self, file: Path) -> None:
        """A JSON list, or a ``.zip`` of it as the server wants it.

        The server expects the name ``detections_test-dev2017_NAME_results``.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.records)
        if file.suffix != ".zip":
            file.write_text(text)
            return
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{file.stem}.json", text)
