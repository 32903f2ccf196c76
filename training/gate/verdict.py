"""What the gate decided, as JSON and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision.

    Attributes:
        promote: whether the candidate may serve.
        reasons: sentences, the deciding ones first.
        figures: {"rules", "holdout", "models", "changes", "earlier"}; AP are fractions, None where nothing was to be
            found.
    """

    promote: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]

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
        return "\n".join([_heading(self), *self.rows(), "", *(f"- {reason}" for reason in self.reasons)])

    def rows(self) -> list[str]:
        """Models side by side, a line a figure, and the change from the incumbent."""
        return _rows(self.figures)


def without_nan(value: Any) -> Any:
    """The same nested value with None for NaN, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _heading(verdict: Verdict) -> str:
    holdout = verdict.figures["holdout"]
    name = verdict.figures["models"]["candidate"]["version"]
    decided = "may serve" if verdict.promote else "is refused"
    return f"{name} {decided}. Hold-out: {holdout['images']} images, {holdout['objects']} objects.\n"


def _rows(figures: dict[str, Any]) -> list[str]:
    models, changes = figures["models"], figures["changes"].get("incumbent", {})
    lines = [f"{'AP in points':<26}" + "".join(f"{role:>12}" for role in models) + "    change [interval]"]
    for kind in ("mask", "boundary"):
        for name in models["candidate"][kind]:
            title = f"{kind} {name}" if not name.startswith("AP/") else f"  {name[3:]}"
            row = f"{title:<26}" + "".join(f"{_points(one[kind][name]):>12}" for one in models.values())
            lines.append(row + _interval(changes.get(kind, {}).get(name)))
    return lines


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(change: dict[str, float] | None) -> str:
    if change is None:
        return ""
    low, high = (f"{100 * change[end]:+.1f}" for end in ("low", "high"))
    return f"    {100 * change['change']:+.1f} [{low}, {high}]"
