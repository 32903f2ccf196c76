"""What a Label Studio labelling configuration asks for: which regions, on which image, with which labels.

Parsing never fails: a project may be connected before its configuration makes sense, and Label Studio shows
no error text of ours when /setup fails. `LabelConfig.reason` says in one sentence why nothing can be predicted.
`Output` says how regions are drawn where no tag does.

Attributes of ours and of other ML backends, on a control tag unless told otherwise; Label Studio keeps them:

| attribute | meaning |
|---|---|
| `predicted_values` (Label, Choice) | classes of the model that become this label; `*`: all others |
| `model_score_threshold` (also Label, Choice) | lowest score shown, 0..1; that of the label wins |
| `model_tolerance_px` | largest distance of a polygon from the exact outline, in pixels of the image |
| `model_max_vertices` | most vertices of a polygon |
| `model_min_area` | parts and holes smaller than this many pixels are left out |
| `model_max_regions` | most objects shown on an image, the best first |
| `model_skip` | `true`: never predict for this control |

Label Studio's editor takes tag and attribute names in any case, so we do. A `<Repeater>` shows its tags once for each
entry of a list in the task; they are read as those of the first entry, which is the image that is predicted.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar, get_args
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 100

N = TypeVar("N", int, float)

Kind = Literal["polygon", "brush", "bitmask", "vector", "rectangle", "ellipse"]
#: Polygons first: they are what people edit best. The order in which `Output.kind = "auto"` chooses.
KINDS: tuple[Kind, ...] = get_args(Kind)
_KIND_OF_TAG: dict[str, Kind] = {tag: kind for kind in KINDS for tag in (kind, f"{kind}labels")}
_LABEL_TAGS = {"label", "choice"}


@dataclass(slots=True)
class _Tag:
    name: str
    attributes: dict[str, str]
    labels: list[Label] = field(default_factory=list)

    def get(self, attribute: str, default: str = "") -> str:
        return self.attributes.get(attribute.lower(), default).strip()

    def __str__(self) -> str:
        return f'<{self.name} name="{self.get("name")}">'


def read_controls(xml: str) -> tuple[tuple[Control, ...], tuple[str, ...]]:
    """The controls of the first labelled image, and warnings about what was ignored."""
    warnings: list[str] = []
    root = _root(xml)
    _unroll_repeaters(root, warnings)
    tags = [_Tag(element.tag.lower(), _lower_keys(element), _labels(element, warnings)) for element in _walk(root)]
    images = {tag.get("name"): tag for tag in tags if tag.name == "image" and tag.get("name")}
    if not images:
        raise LabelConfigError("the labelling configuration has no <Image name=... value=...> tag; add one")
    controls = [control for tag in tags if (control := _control(tag, tags, images, warnings)) is not None]
    if not controls:
        raise LabelConfigError(_no_control(tags, warnings))
    name = controls[0].to_name
    other_names = sorted({control.to_name for control in controls if control.to_name != name})
    if other_names:
        warnings.append(f"only the image {name!r} is predicted; controls of {', '.join(other_names)} are left alone")
    return tuple(control for control in controls if control.to_name == name), tuple(warnings)


def _root(xml: str) -> Element:
    if not isinstance(xml, str) or not xml.strip():
        raise LabelConfigError("the labelling configuration is empty; set one in the project's settings")
    if len(xml) > MAX_CHARACTERS:
        raise LabelConfigError(
            f"the labelling configuration has {len(xml)} characters; at most {MAX_CHARACTERS} are read"
        )
    try:
        return defusedxml.ElementTree.fromstring(xml, forbid_dtd=True)
    except DefusedXmlException as error:
        raise LabelConfigError(f"the labelling configuration holds a DTD or entities ({error}); remove them") from error
    except (ParseError, ValueError, LookupError) as error:  # the last two: characters, encodings
        raise LabelConfigError(f"the labelling configuration is not well-formed XML: {error}") from error


def _walk(root: Element) -> Iterator[Element]:
    """All elements in document order, comments left out."""
    stack = [(root, 0)]
    while stack:
        element, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise LabelConfigError(f"the labelling configuration nests tags more than {MAX_DEPTH} deep")
        if isinstance(element.tag, str):
            yield element
        stack.extend((child, depth + 1) for child in reversed(element))


def _lower_keys(element: Element) -> dict[str, str]:
    return {key.lower(): value for key, value in element.attrib.items()}


def _unroll_repeaters(root: Element, warnings: list[str]) -> None:
    """Write the index of the first entry into the tags of each `<Repeater>`, as the editor does for that entry."""
    for repeater in [element for element in _walk(root) if element.tag.lower() == "repeater"]:
        flag = _lower_keys(repeater).get("indexflag") or "{{idx}}"
        for element in _walk(repeater):
            for key, value in element.attrib.items() if element is not repeater else ():
                element.set(key, value.replace(flag, "0"))
        list_path = _lower_keys(repeater).get("on", "")
        warnings.append(f'<Repeater on="{list_path}">: only the first entry of its list is predicted and learned from')


def _labels(element: Element, warnings: list[str]) -> list[Label]:
    """Labels anywhere below a tag, once each: choices may nest."""
    if not element.tag.lower().endswith(("labels", "choices")):
        return []
    tags = [_Tag(child.tag.lower(), _lower_keys(child)) for child in _walk(element)]
    labels = [_label(tag, warnings) for tag in tags if tag.name in _LABEL_TAGS and tag.get("value")]
    return list({label.value: label for label in reversed(labels)}.values())[::-1]


def _label(tag: _Tag, warnings: list[str]) -> Label:
    names = tuple(dict.fromkeys(name for name in (tag.get("alias"), tag.get("value")) if name))
    class_names = tuple(name.strip() for name in tag.get("predicted_values").split(",") if name.strip())
    threshold = _number(tag, "model_score_threshold", 0, 1, warnings)
    return Label(names[0], names, class_names, threshold)


def _control(tag: _Tag, tags: list[_Tag], images: dict[str, _Tag], warnings: list[str]) -> Control | None:
    """The control of a tag that predictions fit, or None with a warning that says why not."""
    kind = _KIND_OF_TAG.get(tag.name)
    if kind is None or tag.get("model_skip").lower() == "true":
        return None
    image = next((images[name] for name in _names(tag.get("toName")) if name in images), None)
    problem = _problem(tag, image)
    labels_tag = tag if tag.name.endswith("labels") else _labels_beside(tags, image)
    if problem is None and (labels_tag is None or not labels_tag.labels):
        problem = "it has no <Label value=...>" + (
            " (labels taken from the task are not supported)" if tag.get("value") else ""
        )
    if problem is not None or image is None or labels_tag is None:
        warnings.append(f"{tag} is ignored: {problem}")
        return None
    if kind == "vector" and tag.get("closable").strip("{}").lower() != "true":
        warnings.append(f'{tag} draws open paths: what people draw anew encloses nothing; add closable="true"')
    return Control(
        kind=kind,
        name=tag.get("name"),
        to_name=image.get("name"),
        value_key=_value_key(image),
        labels=tuple(labels_tag.labels),
        labels_name=labels_tag.get("name"),
        labels_type=labels_tag.name,
        score_threshold=_number(tag, "model_score_threshold", 0, 1, warnings),
        tolerance_px=_number(tag, "model_tolerance_px", 0, 1000, warnings),
        max_vertices=_whole_number(tag, "model_max_vertices", 3, warnings),
        min_area_px=_number(tag, "model_min_area", 0, math.inf, warnings),
        max_regions=_whole_number(tag, "model_max_regions", 1, warnings),
    )


def _problem(tag: _Tag, image: _Tag | None) -> str | None:
    if not tag.get("name"):
        return "it has no name"
    if image is None:
        return f'its toName="{tag.get("toName")}" is not the name of an <Image> tag'
    if not _value_key(image):
        return f'{image} has no value="$key" or valueList="$key"'
    return None


def _labels_beside(tags: list[_Tag], image: _Tag | None) -> _Tag | None:
    """The tag that labels bare <Polygon>, <Brush> and other regions of an image."""
    for tag in tags:
        is_labels = tag.name == "labels" or (tag.name == "choices" and tag.get("perRegion").lower() == "true")
        if is_labels and tag.labels and image is not None and image.get("name") in _names(tag.get("toName")):
            return tag
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


_PATH = re.compile(r"\$([^$/{}]+)")


def _value_key(image: _Tag) -> str:
    """The key of `value="$key"`; the whole text where `$` names stand in it; "" where there is none.

    Of `valueList="$pages"` the first entry is the image.
    """
    pages = _PATH.fullmatch(image.get("valueList"))
    if pages:
        return f"{pages[1]}[0]"
    value = image.get("value")
    single = _PATH.fullmatch(value)
    if single and not (":" in value or " " in value):
        return single[1]
    return value if "$" in value else ""


def _number(tag: _Tag, attribute: str, low: float, high: float, warnings: list[str]) -> float | None:
    return _read_number(tag, attribute, float, low, high, f"a number from {low:g} to {high:g}", warnings)


def _whole_number(tag: _Tag, attribute: str, low: int, warnings: list[str]) -> int | None:
    return _read_number(tag, attribute, int, low, math.inf, f"a whole number of at least {low}", warnings)


def _read_number(
    tag: _Tag, attribute: str, kind: Callable[[str], N], low: float, high: float, expected: str, warnings: list[str]
) -> N | None:
    text = tag.get(attribute)
    if not text:
        return None
    with suppress(ValueError):
        number = kind(text)
        if low <= number <= high and number < math.inf:
            return number
    warnings.append(f'{tag}: {attribute}="{text}" is ignored; expected {expected}')
    return None


def _no_control(tags: list[_Tag], warnings: list[str]) -> str:
    if warnings:
        return f"no control can be predicted: {'; '.join(warnings)}"
    names = sorted({tag.name for tag in tags if tag.get("toName")}) or ["none"]
    return (
        "the labelling configuration has no PolygonLabels, BrushLabels, BitmaskLabels, VectorLabels, RectangleLabels "
        "or EllipseLabels for an image; "
        f"its controls are: {', '.join(names)}; add a <PolygonLabels name=... toName=...> with labels"
    )


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
    """

    value: str
    names: tuple[str, ...]
    predicted_values: tuple[str, ...] = ()
    score_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A control tag that our regions fit.

    Attributes:
        to_name: name of the Image tag.
        value_key: key of the task data that holds the image.
        labels_name: `from_name` of the labels: equal to `name` for PolygonLabels and the like, the name of
            the Labels or Choices tag when the geometry has a tag of its own.
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


@dataclass(frozen=True, slots=True)
class Target:
    """Where instances of a class go."""

    control: Control
    label: Label


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Which labels of a project each class of a model becomes.

    Attributes:
        by_class: the targets of each class, best kind first (`KINDS`); classes without a label are missing.
        unmatched_labels: labels of the project that the model cannot find.
        message: set when no class has a label; names both lists and the fix.
    """

    by_class: Mapping[str, tuple[Target, ...]]
    unmatched_labels: tuple[str, ...]
    message: str | None = None

    def targets(self, class_name: str) -> tuple[Target, ...]:
        """The labels for a class, at most one of each control; () when there is none."""
        return self.by_class.get(class_name, ())


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The part of a labelling configuration that predictions need.

    Attributes:
        controls: controls of the first labelled image, in the order of the configuration.
        reason: why nothing can be predicted, with the fix; None when something can.
    """

    controls: tuple[Control, ...] = ()
    reason: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether predictions can be made for this configuration."""
        return self.reason is None

    @property
    def value_key(self) -> str:
        """Key of the task data that holds the image."""
        self.require_supported()
        return self.controls[0].value_key

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels once, in the order of the configuration."""
        return tuple(dict.fromkeys(label.value for control in self.controls for label in control.labels))

    def require_supported(self) -> None:
        """Raise LabelConfigError with the reason unless the configuration is supported."""
        if self.reason is not None:
            raise LabelConfigError(self.reason)

    def match(self, classes: Sequence[str]) -> ClassMap:
        """Find the labels for the classes of a model.

        Upper and lower case and spaces around names do not matter. `predicted_values` wins over a label's own
        name, that wins over a label with `predicted_values="*"`.
        """
        by_class: dict[str, tuple[Target, ...]] = {}
        controls = sorted(self.controls, key=lambda control: KINDS.index(control.kind))
        labels = [(control, _labels_by_name(control)) for control in controls]
        for name in classes:
            folded_name = fold(name)
            targets = tuple(
                Target(control, label)
                for control, by_name in labels
                if (label := by_name.get(folded_name, by_name.get(CATCH_ALL))) is not None
            )
            if targets:
                by_class[name] = targets
        matched_labels = {target.label.value for targets in by_class.values() for target in targets}
        unmatched_labels = tuple(label for label in self.labels if label not in matched_labels)
        message = None if by_class else (self.reason or _nothing_matches(classes, self.labels))
        return ClassMap(by_class, unmatched_labels, message)


@functools.lru_cache(maxsize=16)
def parse_label_config(xml: str) -> LabelConfig:
    """Read a labelling configuration; those of 1,203 labels take 20 ms, so the last ones are remembered.

    Args:
        xml: the configuration as Label Studio sends it (`schema` of /setup, `label_config` of /predict). It
            may be hostile: DTDs, entities and oversized documents are refused.
    """
    try:
        controls, warnings = read_controls(xml)
    except LabelConfigError as error:
        return LabelConfig(reason=str(error))
    return LabelConfig(controls=controls, warnings=warnings)


def _labels_by_name(control: Control) -> dict[str, Label]:
    """The labels of a control by folded name: by `predicted_values`, else by their own names; the first one wins.

    The catch-all is one of the `predicted_values`.
    """
    by_name: dict[str, Label] = {}
    for label in control.labels:
        for name in label.predicted_values:
            by_name.setdefault(fold(name), label)
    for label in control.labels:
        for name in label.names:
            if name != CATCH_ALL:
                by_name.setdefault(fold(name), label)
    return by_name


def fold(name: str) -> str:
    """The spelling that names are compared by: case folded, each run of white space one space."""
    return " ".join(name.casefold().split())


def _nothing_matches(classes: Sequence[str], labels: Sequence[str]) -> str:
    return (
        f"no label of the project matches a class of the model: labels are {_listed(labels)}, classes are "
        f'{_listed(classes)}; rename a label, or add predicted_values="..." with class names to its tag; or annotate '
        "some images and start a training: the version it makes knows the project's labels"
    )


def _listed(names: Sequence[str], limit: int = 30) -> str:
    text = ", ".join(repr(name) for name in names[:limit]) or "(none)"
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Output:
    """How predictions are drawn. Attributes of the label config's tags win over these.

    A value out of range is a `pydantic.ValidationError`, which names it.

    Attributes:
        kind: "auto": the first of `KINDS` that the label config has for the class; a kind: that one where the label
            config has it, else as "auto"; "all": every kind the label config has (ellipses only where no other is).
        holes: objects with holes as polygons with a "keyhole" cut, or as "brush" masks (bitmasks) where the config has
            them.
        max_vertices: most vertices of a polygon; the tolerance is raised to get there. None: no limit.
        min_area_px: parts and holes of polygons, and objects, smaller than this are left out. 0: masks are drawn as
            they are, whatever the two shares and `border_px` say.
        min_part_share: parts smaller than this share of the object's largest part are left out.
        min_hole_share: holes smaller than this share of the object's area are filled.
        border_px: masks that come this close to the border of the image go on to it.
        parts: "joined": an object is one polygon, its parts joined by cuts of no width, so that Label Studio counts it
            once; "separate": a polygon a part.
        outline: "smooth": polygons follow the probabilities between pixel centres; "pixels": the edges of pixels.
        double_iou: an object whose mask overlaps a better scored one more than this (IoU), of whatever class, is the
            same object and left out; 1 keeps all.
        part_cover: an object of which a better scored one of its class covers more than this share is a part of it and
            left out; 1 keeps all, as a double_iou of 1 does.
        shared_edges: whether polygons of objects that touch have one edge between them, without overlap or gap.
            Objects that overlap do not touch. A vertex budget changes each polygon by itself, so it goes first.
        max_regions: most objects of a control on an image, the best scores first.
    """

    kind: Kind | Literal["auto", "all"] = "auto"
    holes: Literal["keyhole", "brush"] = "keyhole"
    tolerance_px: Pixels = 1.0
    max_vertices: Annotated[int, Field(ge=3)] | None = None
    min_area_px: Pixels = 16.0
    min_part_share: Share = 0.01
    min_hole_share: Share = 0.01
    border_px: Annotated[int, Field(ge=0, le=16)] = 2
    parts: Literal["joined", "separate"] = "joined"
    outline: Literal["smooth", "pixels"] = "smooth"
    double_iou: Annotated[float, Field(gt=0, le=1)] = 0.6
    part_cover: Annotated[float, Field(gt=0, le=1)] = 0.9
    shared_edges: Annotated[bool, Field(strict=True)] = False
    max_regions: Annotated[int, Field(ge=1)] = 300
    score_threshold: Share = 0.0
