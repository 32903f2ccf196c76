"""What a Label Studio labelling configuration asks for: which regions, on which image, with which labels.

Parsing never fails: a project may be connected before its configuration makes sense, and Label Studio shows
none of our words when /setup fails. `LabelConfig.reason` says in one sentence why nothing can be predicted.

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
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from integration.label_studio.label_config_xml import (
    CATCH_ALL,
    KINDS,
    Control,
    Kind,
    Label,
    LabelConfigError,
    read_controls,
)

__all__ = [
    "KINDS",
    "ClassMap",
    "Control",
    "Kind",
    "Label",
    "LabelConfig",
    "LabelConfigError",
    "Target",
    "parse_label_config",
]


@dataclass(frozen=True, slots=True)
class Target:
    """Where instances of a class go."""

    control: Control
    label: Label


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Classes of a model laid over the labels of a project.

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
    """The part of a labelling configuration that matters to us.

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
        return _match(self, tuple(classes))


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


def _match(config: LabelConfig, classes: tuple[str, ...]) -> ClassMap:
    by_class: dict[str, tuple[Target, ...]] = {}
    controls = sorted(config.controls, key=lambda control: KINDS.index(control.kind))
    labels = [(control, _labels_by_name(control)) for control in controls]
    for name in classes:
        folded = fold(name)
        targets = tuple(
            Target(control, label)
            for control, by_name in labels
            if (label := by_name.get(folded, by_name.get(CATCH_ALL))) is not None
        )
        if targets:
            by_class[name] = targets
    reached = {target.label.value for targets in by_class.values() for target in targets}
    unmatched_labels = tuple(label for label in config.labels if label not in reached)
    message = None if by_class else (config.reason or _nothing_matches(classes, config.labels))
    return ClassMap(by_class, unmatched_labels, message)


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
    shown = ", ".join(repr(name) for name in names[:limit]) or "(none)"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
