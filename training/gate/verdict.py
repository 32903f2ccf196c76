"""The gate's rules, the confidence intervals of changes, and the decision with its reasons. Reads no picture.

All AP are fractions in 0..1; all margins are AP. With the default rules, of 100 drawn hold-outs of 12 images, 3 let a
model pass that was as good as the incumbent (masks off by up to 3 px both), and 80 one whose masks were off by up to
2 px instead of 3.

The difference of two models is measured by a paired bootstrap: images are drawn with replacement, and both models are
measured on the same draw, so what is easy or hard for both cancels. The interval is the percentile one, expanded for
few images (Hesterberg 2015, "What Teachers Should Know about the Bootstrap", section 5.2): plain percentiles of a dozen
images are too narrow. Shapes: N images, K categories, B resamples, T IoU thresholds.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

import numpy as np
from scipy.stats import norm, t

from training.gate.holdout import AP_KINDS, Holdout, HoldoutResult
from training.metrics.coco import bootstrap_draws, image_weights


@dataclass(frozen=True, slots=True)
class GateRules:
    """The gate's settings.

    Attributes:
        confidence: of every "certainly", for mask AP and boundary AP together, 0.5..1.
        resamples: of the bootstrap by image.
        seed: of the bootstrap; the same models on the same hold-out get the same verdict.
        least_gain: mask AP or boundary AP must certainly rise by more than this.
        margin: neither may fall by more than this, certain or not.
        class_margin: no class may certainly fall by more than this (of mask AP or of boundary AP).
        forgetting_margin: on no earlier hold-out may either certainly fall by more than this.
        min_images: a hold-out with fewer annotated images is tiny: nothing is certain there.
        tiny_gain: on a tiny hold-out both must rise by at least this.
        first_ap: mask AP that a first version, with nothing to compare with, must reach.
        boundary_ratio: boundary width / image diagonal; 0.02 as COCO, 0.005 as Cityscapes.
    """

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    least_gain: float = 0.0
    margin: float = 0.005
    class_margin: float = 0.05
    forgetting_margin: float = 0.02
    min_images: int = 10
    tiny_gain: float = 0.05
    first_ap: float = 0.05
    boundary_ratio: float = 0.02

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"the gate's {name} is {value}; expected {low:g} to {high:g}")


_RANGES = {
    "confidence": (0.5, 0.9999),
    "resamples": (100, 1_000_000),
    "least_gain": (0, 1),
    "margin": (0, 1),
    "class_margin": (0, 1),
    "forgetting_margin": (0, 1),
    "min_images": (1, 1_000_000),
    "tiny_gain": (0, 1),
    "first_ap": (0, 1),
    "boundary_ratio": (0.0001, 0.5),
}


def parse_rules(values: Mapping[str, Any]) -> GateRules:
    """Rules from a JSON object; what is not named keeps its default.

    Raises:
        ValueError: an entry is unknown or no number of the right kind.
    """
    names = [field.name for field in fields(GateRules)]
    rules: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            similar = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"expected some of {', '.join(names)}"
            raise ValueError(f"the gate has no rule {name!r}; {hint}")
        kind = int if name in _WHOLE else float
        if isinstance(value, bool) or not isinstance(value, int | float) or value != kind(value):
            raise ValueError(f"the gate's {name} is {value!r}; expected a{' whole' if kind is int else ''} number")
        rules[name] = kind(value)
    return GateRules(**rules)


_WHOLE = ("resamples", "seed", "min_images")


ALL, SHARED = "AP", "AP of shared classes"


@dataclass(frozen=True, slots=True)
class Change:
    """Change of an AP from the other model to the candidate, a fraction.

    Attributes:
        change: on the hold-out itself.
        low, high: with `GateRules.confidence`, mask AP and boundary AP both change by more than their `low`; with the
            same confidence they both change by less than their `high`.
    """

    change: float
    low: float
    high: float


# "mask" and "boundary" -> "AP", SHARED, "AP/<class>" -> Change; without classes that the hold-out has no object of.
Changes = dict[str, dict[str, Change]]


def bootstrap_changes(candidate: HoldoutResult, opponent: HoldoutResult, rules: GateRules) -> Changes:
    """Changes from the other model to the candidate, both measured on the same hold-out."""
    images = len(candidate.holdout.keys)
    weights = image_weights(images, rules.resamples, rules.seed)  # the hold-out itself first
    tail = tail_share(rules.confidence, candidate.holdout.annotated_images)
    is_shared = [name in candidate.known_classes & opponent.known_classes for name in candidate.holdout.classes]
    return {
        kind: _changes(
            candidate.average_precision(kind, weights).mean(2),
            opponent.average_precision(kind, weights).mean(2),
            candidate.holdout.classes,
            np.array(is_shared, bool),
            tail,
        )
        for kind in AP_KINDS
    }


def reached_between(result: HoldoutResult, rules: GateRules) -> dict[str, tuple[float, float]]:
    """Confidence intervals of mask AP and of boundary AP, as fractions."""
    images = len(result.holdout.keys)
    weights = bootstrap_draws(images, rules.resamples, rules.seed)
    tail = tail_share(rules.confidence, result.holdout.annotated_images)
    ranges: dict[str, tuple[float, float]] = {}
    for kind in AP_KINDS:
        values = _mean(result.average_precision(kind, weights).mean(2))
        low, high = np.nanquantile(values, [tail, 1 - tail])
        ranges[kind] = (float(low), float(high))
    return ranges


def tail_share(confidence: float, images: int) -> float:
    """Share of the resamples beyond one end of an interval.

    Mask AP and boundary AP have two chances to look better, so each gets half of the error probability. A resample of
    n images varies less than n new images would; Student's t and the factor sqrt(n / (n - 1)) correct for that.
    """
    doubt = (1 - confidence) / len(AP_KINDS)
    if images < 2:
        return 0.0
    return float(norm.cdf(np.sqrt(images / (images - 1)) * t.ppf(doubt, images - 1)))


def _changes(
    ours: np.ndarray, theirs: np.ndarray, classes: Sequence[str], is_shared: np.ndarray, tail: float
) -> dict[str, Change]:
    """Changes by name of the AP, from (1 + B) x K average precisions of both models."""
    columns = {ALL: (_mean(ours), _mean(theirs))}
    if is_shared.any() and not is_shared.all():
        columns[SHARED] = (_mean(ours[:, is_shared]), _mean(theirs[:, is_shared]))
    columns |= {f"AP/{name}": (ours[:, place], theirs[:, place]) for place, name in enumerate(classes)}
    changes = {name: _change(scores - opponent, tail) for name, (scores, opponent) in columns.items()}
    return {name: change for name, change in changes.items() if change is not None}


def _change(differences: np.ndarray, tail: float) -> Change | None:
    """Change and interval from (1 + B,) differences; NaN resamples are dropped, None where the hold-out's is NaN."""
    holdout_change, resampled = differences[0], differences[1:][~np.isnan(differences[1:])]
    if np.isnan(holdout_change) or not len(resampled):
        return None
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Change(float(holdout_change), float(low), float(high))


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample may hold nothing at all: NaN, dropped later
        means: np.ndarray = np.nanmean(values, axis=1) if values.shape[1] else np.full(len(values), np.nan)
    return means


def changes_as_dict(changes: Changes) -> dict[str, Any]:
    """Changes as plain types, for JSON."""
    return {
        kind: {name: asdict(change) for name, change in kind_changes.items()} for kind, kind_changes in changes.items()
    }


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
    """A model and its AP by name, fractions; None where the hold-out has no truth."""

    version: str
    digest: str
    classes: list[str]
    mask: dict[str, float | None]
    boundary: dict[str, float | None]


class ChangeFigures(TypedDict):
    """A `Change` for JSON."""

    change: float
    low: float
    high: float


class VerdictFigures(TypedDict):
    """All figures that the decision rests on.

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
        """The candidate's mask AP and boundary AP, which the registry stores with the version."""
        candidate = self.figures["models"]["candidate"]
        return {"mask_ap": candidate["mask"]["AP"], "boundary_ap": candidate["boundary"]["AP"]}

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain types, for JSON."""
        return {
            "promote": self.promote,
            "reasons": list(self.reasons),
            "metrics": self.metrics,
            "figures": self.figures,
        }

    def table(self) -> str:
        """Write the verdict as text: models side by side, changes with their intervals, the reasons."""
        holdout = self.figures["holdout"]
        name = self.figures["models"]["candidate"]["version"]
        outcome = "may serve" if self.promote else "is refused"
        heading = f"{name} {outcome}, judged by {holdout['description']}: {holdout['objects']} objects.\n"
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
    """Reasons collected so far; the candidate is promoted for a reason in favour and none against."""

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


def decide(
    results: Mapping[str, HoldoutResult], changes: Mapping[str, Changes], rules: GateRules, best_name: str | None
) -> Ruling:
    """Apply the rules to the models' results on the hold-out.

    Args:
        results: by role: candidate, incumbent, best. changes: from the others to the candidate, by their role.
        best_name: name of the best version; None where there is none.
    """
    ruling, candidate = Ruling(), results["candidate"]
    holdout = candidate.holdout
    for role, result in results.items():
        if unknown := [name for name in holdout.classes if name not in result.known_classes]:
            ruling.notes.append(f"the {role} does not know {', '.join(unknown)}: counted as never found")
    if not holdout.annotated_images:
        ruling.against.append(
            "the hold-out has no annotated image: nothing was measured; annotate more images (about one in five is "
            "held out), or promote by hand"
        )
        return ruling
    rule_method(ruling, candidate, rules)
    if "incumbent" in results and not results["incumbent"].known_classes:
        rule_unknown_labels(ruling, candidate)
    elif "incumbent" not in changes:
        rule_first(ruling, candidate, rules)
    elif holdout.annotated_images < rules.min_images:
        rule_tiny(ruling, changes["incumbent"], holdout, rules)
    else:
        rule_better(ruling, changes["incumbent"], rules)
        rule_classes(ruling, changes["incumbent"], holdout, rules)
    if best_name is not None and "best" in changes:
        rule_best(ruling, changes["best"], best_name, rules)
    return ruling


def rule_method(ruling: Ruling, candidate: HoldoutResult, rules: GateRules) -> None:
    """Note on which images it was judged, and the confidence intervals of the candidate's figures."""
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
    """Rule on a first version, where nothing served before: its mask AP must reach `first_ap`."""
    mask_ap = candidate.figures()["mask"]["AP"]
    sentence = f"first version, nothing to compare with: mask AP {100 * mask_ap:.1f} on the hold-out"
    if mask_ap >= rules.first_ap:
        ruling.in_favour.append(f"{sentence}, at least {100 * rules.first_ap:.1f} was asked for")
    else:
        ruling.against.append(f"{sentence}, below the {100 * rules.first_ap:.1f} asked for")


def rule_unknown_labels(ruling: Ruling, candidate: HoldoutResult) -> None:
    """Rule where the incumbent knows none of the labels: a candidate that finds anything may serve."""
    holdout = candidate.holdout
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
    """Rule on a tiny hold-out: both figures must rise by `tiny_gain`; no confidence is stated."""
    reason = (
        f"the hold-out has {holdout.annotated_images} annotated images, fewer than {rules.min_images}: "
        "no confidence can be stated, so"
    )
    gains = {kind: changes[kind][ALL].change for kind in AP_KINDS}
    text = " and ".join(f"{kind} AP by {format_points(gain)}" for kind, gain in gains.items())
    demand = f"at least {format_points(rules.tiny_gain)} points of both {{}} asked for and {text} is what changed"
    if min(gains.values()) >= rules.tiny_gain:
        ruling.in_favour.append(f"{reason} {demand.format('were')}")
    else:
        ruling.against.append(f"{reason} {demand.format('are')}")
    missing_count = rules.min_images - holdout.annotated_images
    ruling.notes.append(f"{missing_count} more annotated images in the hold-out make the comparison statistical")


def rule_better(ruling: Ruling, changes: Changes, rules: GateRules) -> None:
    """Rule that mask AP or boundary AP certainly rises, and that neither falls, also on the shared classes."""
    rises = [kind for kind in AP_KINDS if changes[kind][ALL].low > rules.least_gain]
    for kind in AP_KINDS:
        text = f"{kind} AP {describe_change(changes[kind][ALL], rules)}"
        if changes[kind][ALL].change < -rules.margin:
            ruling.against.append(f"worse than the incumbent: {text}")
        elif kind in rises:
            ruling.in_favour.append(f"better than the incumbent: {text}")
        else:
            ruling.notes.append(f"not certainly different from the incumbent: {text}")
        shared_change = changes[kind].get(SHARED)
        if shared_change is not None and shared_change.change < -rules.margin:
            ruling.against.append(
                f"worse on the classes that the incumbent knows: {kind} AP {describe_change(shared_change, rules)}"
            )
    if not rises and not ruling.against:
        ruling.against.append(
            "not certainly better than the incumbent: neither mask AP nor boundary AP rose by more than "
            f"{100 * rules.least_gain:.1f} points with {100 * rules.confidence:g} % confidence"
        )


def rule_classes(ruling: Ruling, changes: Changes, holdout: Holdout, rules: GateRules) -> None:
    """Rule that no class certainly falls."""
    for place, name in enumerate(holdout.classes):
        if holdout.images_with(place) < rules.min_images // 2:
            continue  # a handful of images says nothing about one class
        for kind, change in _of_class(changes, name):
            if change.change < -rules.class_margin and change.high < 0:
                ruling.against.append(f"class {name} is worse: {kind} AP {describe_change(change, rules)}")


def rule_best(ruling: Ruling, changes: Changes, name: str, rules: GateRules) -> None:
    """Rule that the candidate is not certainly worse than the best version that ever served."""
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
    """Rule that neither figure certainly falls on the hold-out of an earlier snapshot."""
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
