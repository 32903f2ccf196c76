"""The gate's decision as JSON and as a table, and the rules that make it from figures.

A rule adds sentences for or against a candidate. Nothing here looks at a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypedDict

from training.gate.bootstrap import ALL, SHARED, Change, Changes, reached_between
from training.gate.holdout import AP_KINDS, Holdout, HoldoutResult
from training.gate.rules import GateRules


class HoldoutFacts(TypedDict):
    """Size of a hold-out, see `training.gate.holdout.Holdout`."""

    name: str
    description: str
    images: int
    held_out: int
    folds: int
    annotated_images: int
    objects: int
    to_be_found: int
    classes: list[str]


class ModelFigures(TypedDict):
    """A model and its AP by name, fractions; None where nothing was to be found."""

    version: str
    digest: str
    classes: list[str]
    mask: dict[str, float | None]
    boundary: dict[str, float | None]


class ChangeFigures(TypedDict):
    """A change of an AP with its interval, fractions; see `bootstrap.Change`."""

    change: float
    low: float
    high: float


class VerdictFigures(TypedDict):
    """All that the decision rests on.

    Attributes:
        models: by role: candidate, incumbent, best.
        changes: by the other model's role, by "mask" and "boundary", by name of the AP.
        earlier: facts of earlier hold-outs, with models and changes of their own.
    """

    rules: dict[str, float]
    holdout: HoldoutFacts
    models: dict[str, ModelFigures]
    changes: dict[str, dict[str, dict[str, ChangeFigures]]]
    earlier: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision.

    Attributes:
        promote: whether the candidate may serve.
        reasons: sentences, the deciding ones first.
        figures: what the decision rests on.
    """

    promote: bool
    reasons: tuple[str, ...]
    figures: VerdictFigures

    @property
    def metrics(self) -> dict[str, float | None]:
        """The candidate's figures in short, as the registry keeps them with a version."""
        reached = self.figures["models"]["candidate"]
        return {"mask_ap": reached["mask"]["AP"], "boundary_ap": reached["boundary"]["AP"]}

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "promote": self.promote,
            "reasons": list(self.reasons),
            "metrics": self.metrics,
            "figures": self.figures,
        }

    def table(self) -> str:
        """For people: models side by side, changes with their intervals, the reasons."""
        holdout = self.figures["holdout"]
        name = self.figures["models"]["candidate"]["version"]
        decided = "may serve" if self.promote else "is refused"
        heading = f"{name} {decided}, judged by {holdout['description']}: {holdout['objects']} objects.\n"
        return "\n".join([heading, *self.rows(), "", *(f"- {reason}" for reason in self.reasons)])

    def rows(self) -> list[str]:
        """Models side by side, a line a figure, and the change from the incumbent."""
        models, changes = self.figures["models"], self.figures["changes"].get("incumbent", {})
        lines = [f"{'AP in points':<26}" + "".join(f"{role:>12}" for role in models) + "    change [interval]"]
        for kind in AP_KINDS:
            for name in models["candidate"][kind]:
                title = f"{kind} {name}" if not name.startswith("AP/") else f"  {name[3:]}"
                row = f"{title:<26}" + "".join(f"{_points(model[kind][name]):>12}" for model in models.values())
                lines.append(row + _interval(changes.get(kind, {}).get(name)))
        return lines


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(change: ChangeFigures | None) -> str:
    if change is None:
        return ""
    return f"    {100 * change['change']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"


@dataclass
class Ruling:
    """Reasons collected so far. It is for the candidate while nothing speaks against it."""

    against: list[str] = field(default_factory=list)
    in_favour: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def promote(self) -> bool:
        """Whether the candidate may serve."""
        return bool(self.in_favour) and not self.against

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences: the deciding ones first, then notes."""
        return (*(self.against or self.in_favour), *self.notes)


def format_points(value: float) -> str:
    """A change of AP in points with its sign: +1.2."""
    return f"{100 * value:+.1f}"


def describe_change(change: Change, rules: GateRules) -> str:
    """A change with its interval: +1.2 (95 % confidence: above +0.3, below +2.1)."""
    share = f"{100 * rules.confidence:g} % confidence"
    low, high = format_points(change.low), format_points(change.high)
    return f"{format_points(change.change)} points ({share}: above {low}, below {high})"


def rule_method(ruling: Ruling, candidate: HoldoutResult, rules: GateRules) -> None:
    """Say how it was judged, and how sure the candidate's figures are."""
    holdout = candidate.holdout
    if holdout.annotated_images < 2:
        ruling.notes.append(f"judged by {holdout.description}: one annotated image says nothing about others")
        return
    parts = [
        f"{kind} AP lies between {100 * low:.1f} and {100 * high:.1f}"
        for kind, (low, high) in reached_between(candidate, rules).items()
    ]
    rough = ": the figures are rough" if holdout.annotated_images < rules.min_images else ""
    ruling.notes.append(
        f"judged by {holdout.description}; with {100 * rules.confidence:g} % confidence {' and '.join(parts)} "
        f"({holdout.annotated_images} annotated images{rough})"
    )


def rule_first(ruling: Ruling, candidate: HoldoutResult, rules: GateRules) -> None:
    """A first version, with nothing that served before."""
    reached = candidate.figures()["mask"]["AP"]
    sentence = f"first version, nothing to compare with: mask AP {100 * reached:.1f} on the hold-out"
    if reached >= rules.first_ap:
        ruling.in_favour.append(f"{sentence}, at least {100 * rules.first_ap:.1f} was asked for")
    else:
        ruling.against.append(f"{sentence}, below the {100 * rules.first_ap:.1f} asked for")


def rule_unknown_labels(ruling: Ruling, candidate: HoldoutResult, holdout: Holdout) -> None:
    """An incumbent that knows none of the labels finds nothing: any model that finds something may serve."""
    mask, boundary = (candidate.figures()[kind]["AP"] for kind in AP_KINDS)
    names = ", ".join(holdout.classes)
    sentence = (
        f"the incumbent knows none of: {names}; the candidate reaches mask AP {100 * mask:.1f} and boundary AP "
        f"{100 * boundary:.1f} on {holdout.annotated_images} annotated images that it did not learn from"
    )
    if mask > 0 and boundary > 0:
        ruling.in_favour.append(f"first model of these labels: {sentence}, which beats nothing")
    else:
        ruling.against.append(f"{sentence}: it finds nothing either; annotate more images and train again")


def rule_tiny(ruling: Ruling, changes: Changes, holdout: Holdout, rules: GateRules) -> None:
    """On a tiny hold-out both figures must rise clearly; no confidence is claimed."""
    reason = (
        f"the hold-out has {holdout.annotated_images} annotated images, fewer than {rules.min_images}: "
        "no confidence can be stated, so"
    )
    gains = {kind: changes[kind][ALL].change for kind in AP_KINDS}
    text = " and ".join(f"{kind} AP by {format_points(gain)}" for kind, gain in gains.items())
    asked = f"at least {format_points(rules.tiny_gain)} points of both {{}} asked for and {text} is what changed"
    if min(gains.values()) >= rules.tiny_gain:
        ruling.in_favour.append(f"{reason} {asked.format('were')}")
    else:
        ruling.against.append(f"{reason} {asked.format('are')}")
    missing = rules.min_images - holdout.annotated_images
    ruling.notes.append(f"{missing} more annotated images in the hold-out make the comparison statistical")


def rule_better(ruling: Ruling, changes: Changes, rules: GateRules) -> None:
    """Mask AP or boundary AP must certainly rise, neither may fall, nor the classes that both models know."""
    rises = [kind for kind in AP_KINDS if changes[kind][ALL].low > rules.least_gain]
    for kind in AP_KINDS:
        text = f"{kind} AP {describe_change(changes[kind][ALL], rules)}"
        if changes[kind][ALL].change < -rules.margin:
            ruling.against.append(f"worse than the incumbent: {text}")
        elif kind in rises:
            ruling.in_favour.append(f"better than the incumbent: {text}")
        else:
            ruling.notes.append(f"not certainly different from the incumbent: {text}")
        known = changes[kind].get(SHARED)
        if known is not None and known.change < -rules.margin:
            ruling.against.append(
                f"worse on the classes that the incumbent knows: {kind} AP {describe_change(known, rules)}"
            )
    if not rises and not ruling.against:
        ruling.against.append(
            "not certainly better than the incumbent: neither mask AP nor boundary AP rose by more than "
            f"{100 * rules.least_gain:.1f} points with {100 * rules.confidence:g} % confidence"
        )


def rule_classes(ruling: Ruling, changes: Changes, holdout: Holdout, rules: GateRules) -> None:
    """No class may certainly fall."""
    for place, name in enumerate(holdout.classes):
        if holdout.images_with(place) < rules.min_images // 2:
            continue  # a handful of images says nothing about one class
        for kind, change in _of_class(changes, name):
            if change.change < -rules.class_margin and change.high < 0:
                ruling.against.append(f"class {name} is worse: {kind} AP {describe_change(change, rules)}")


def rule_best(ruling: Ruling, changes: Changes, name: str, rules: GateRules) -> None:
    """Not certainly worse than the best version that ever served."""
    for kind in AP_KINDS:
        change = changes[kind][ALL]
        if change.high < 0:
            ruling.against.append(
                f"{name}, the best version so far, is better: {kind} AP {describe_change(change, rules)}; "
                "promote that one"
            )
        else:
            ruling.notes.append(f"against {name}, the best version so far: {kind} AP {describe_change(change, rules)}")


def rule_forgetting(ruling: Ruling, changes: Changes, holdout: Holdout, rules: GateRules) -> None:
    """On the hold-out of an earlier snapshot neither figure may certainly fall."""
    if holdout.annotated_images < rules.min_images:
        ruling.notes.append(
            f"earlier hold-out {holdout.name[:12]} has {holdout.annotated_images} annotated images, too few to judge on"
        )
        return
    for kind in AP_KINDS:
        change = changes[kind].get(ALL)
        if change is not None and change.change < -rules.forgetting_margin and change.high < 0:
            ruling.against.append(
                f"forgot what it knew of the earlier hold-out {holdout.name[:12]}: {kind} AP "
                f"{describe_change(change, rules)}"
            )


def _of_class(changes: Changes, name: str) -> Iterator[tuple[str, Change]]:
    for kind in AP_KINDS:
        if (change := changes[kind].get(f"AP/{name}")) is not None:
            yield kind, change
