"""Controls and labels of a labelling configuration, as the rest of this room needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["polygon", "brush", "rectangle"]

#: Polygons first: they are what people edit best. The order in which `Output.kind = "auto"` chooses.
KINDS: tuple[Kind, ...] = ("polygon", "brush", "rectangle")
CATCH_ALL = "*"


class LabelConfigError(ValueError):
    """A labelling configuration that no prediction can be made for."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a control.

    Attributes:
        value: as results spell it: the tag's `alias` when it has one, else its `value`.
        names: all spellings of the label itself (value and alias).
        predicted_values: class names of the model that become this label.
        score_threshold: lowest score shown, or None for the control's.
    """

    value: str
    names: tuple[str, ...]
    predicted_values: tuple[str, ...] = ()
    score_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A control tag that our regions fit.

    Attributes:
        kind: geometry of its regions.
        name: `from_name` of its regions.
        to_name: name of the Image tag.
        value_key: key of the task data that holds the image.
        labels: in the order of the configuration.
        labels_name: `from_name` of the labels: equal to `name` for PolygonLabels and the like, the name of
            the Labels or Choices tag when the geometry has a tag of its own.
        labels_type: "polygonlabels", "brushlabels", "rectanglelabels", "labels" or "choices".
        score_threshold, tolerance_px, max_vertices, min_area_px, max_regions: from the `model_*` attributes
            that `label_config` lists; None if absent.
    """

    kind: Kind
    name: str
    to_name: str
    value_key: str
    labels: tuple[Label, ...]
    labels_name: str
    labels_type: str
    score_threshold: float | None = None
    tolerance_px: float | None = None
    max_vertices: int | None = None
    min_area_px: float | None = None
    max_regions: int | None = None

    @property
    def is_paired(self) -> bool:
        """True when labels come from a Labels or Choices tag: a region is then two results with one id."""
        return self.labels_name != self.name
