"""What the tests of regions share: label configs, instances, and the judgement of Label Studio's own validation."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from label_studio_sdk.label_interface import LabelInterface

from integration.label_studio.label_config import Output, parse_label_config
from integration.regions.write import Reason, build_prediction
from model.instance import Instance

RECORDINGS = Path(__file__).parents[1] / "recordings"
ALL_KINDS = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="rect" toName="image"><Label value="car"/><Label value="sign"/></RectangleLabels>
  <BrushLabels name="brush" toName="image"><Label value="car"/></BrushLabels>
  <PolygonLabels name="poly" toName="image" {control}>{labels}</PolygonLabels></View>"""
LABELS = '<Label value="car"/><Label value="tree" predicted_values="Oak,pine"/>'
PAIRED = """<View><Image name="image" value="$image"/><Labels name="what" toName="image"><Label value="car"/></Labels>
  <{tag} name="shape" toName="image"/></View>"""
EXACT = Output(tolerance_px=0, min_area_px=0)


def config_xml(labels: str = LABELS, control: str = "") -> str:
    return ALL_KINDS.format(labels=labels, control=control)


def ring(height: int = 40, width: int = 60) -> np.ndarray:
    """A part with a hole that holds an island, and a small part beside it."""
    mask_hw = np.zeros((height, width), dtype=bool)
    mask_hw[5:30, 5:40] = True
    mask_hw[10:20, 12:25] = False
    mask_hw[13:17, 15:19] = True
    mask_hw[33:36, 2:9] = True
    return mask_hw


def instance(mask_hw: np.ndarray | None = None, label: str = "car", **fields: Any) -> Instance:
    return Instance(
        (5, 5, 40, 30),
        label,
        **{"score": 0.9, "mask_hw": ring(), **fields} | ({} if mask_hw is None else {"mask_hw": mask_hw}),
    )


class Report(NamedTuple):
    shown: int
    regions: int
    dropped: Counter[Reason]


@functools.cache
def judge(xml: str) -> LabelInterface:
    return LabelInterface(xml)


def predict(instances: Sequence[Instance], xml: str | None = None, **fields: Any) -> tuple[Any, Report]:
    """As build_prediction, judged by Label Studio's validation each time."""
    xml = xml or config_xml()
    sized = {"width": 60, "height": 40, "model_version": "v1", **fields}
    prediction, dropped = build_prediction(instances, parse_label_config(xml), **sized)
    assert judge(xml).validate_prediction(prediction, return_errors=True) == []
    json.dumps(prediction, allow_nan=False)
    ids = [(region["id"], region["from_name"]) for region in prediction["result"]]
    assert len(set(ids)) == len(ids)
    return prediction, Report(len(instances) - sum(dropped.values()), len(ids), dropped)
