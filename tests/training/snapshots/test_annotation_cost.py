"""The order of work: fitted to what corrections took, monotone, kept with the model, compared with other orders."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.learning.annotation_cost import compare_orders, work_covered
from model.checkpoints.metadata import update_metadata
from model.instance import Instance
from tests.support.learning_doubles import write_checkpoint
from training.snapshots.annotation_cost import (
    EFFORT_KEY,
    FEATURES,
    EffortError,
    EffortModel,
    cross_fitted_edits,
    features_of,
    fit_effort,
    load_effort,
    rank_correlation,
)

SIZE = (40, 50)


def instance(
    left: int = 5,
    top: int = 5,
    right: int = 25,
    bottom: int = 20,
    label: str = "cat",
    score: float = 0.9,
    uncertainty: float = 0.1,
) -> Instance:
    mask_hw = np.zeros(SIZE, bool)
    mask_hw[top:bottom, left:right] = True
    return Instance((left, top, right, bottom), label, score, mask_hw, uncertainty)


def model(**fields: object) -> EffortModel:
    plain = EffortModel(dict.fromkeys(FEATURES, 1.0), 2.0, 10.0, 30, 0.6, 0.3, "a test")
    return replace(plain, **fields)  # type: ignore[arg-type]


def images(count: int = 60, seed: int = 0) -> tuple[list[dict[str, float]], list[float], list[float]]:
    """Features, edits that follow two of them with noise, and scores that say nothing."""
    rng = np.random.default_rng(seed)
    features = [dict(zip(FEATURES, rng.uniform(0, 5, len(FEATURES)), strict=True)) for _ in range(count)]
    edits = [4 * f["doubt"] + 2 * f["hidden"] + 1 + rng.normal(0, 0.5) for f in features]
    return features, edits, rng.uniform(0, 1, count).tolist()


def test_the_fit_finds_what_takes_work() -> None:
    features, edits, scores = images()
    effort = fit_effort(features, edits, scores, fitted_on="images")
    assert effort.weights["doubt"] > effort.weights["hidden"] > 1
    assert sum(effort.weights[name] for name in FEATURES if name not in ("doubt", "hidden")) < 1.5
    assert effort.rank_correlation > 0.9 > effort.baseline
    assert effort.is_useful
    assert (effort.images, effort.fitted_on) == (60, "images")
    assert rank_correlation(cross_fitted_edits(features, edits), edits) == pytest.approx(effort.rank_correlation)


def test_a_fit_that_orders_no_better_is_not_used() -> None:
    features, edits, _ = images()
    assert not fit_effort(features, edits, [-edit for edit in edits]).is_useful


@pytest.mark.parametrize("count", [0, 1, 19])
def test_too_few_images_are_no_fit(count: int) -> None:
    features, edits, scores = (values[:count] for values in images())
    with pytest.raises(EffortError, match="expected 20 images"):
        fit_effort(features, edits, scores)


def test_images_that_all_took_the_same_are_no_fit() -> None:
    features, edits, scores = images()
    with pytest.raises(EffortError, match="1 different edits"):
        fit_effort(features, [3.0] * len(edits), scores)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.floats(0, 100), min_size=len(FEATURES), max_size=len(FEATURES)), min_size=20, max_size=30),
    st.randoms(use_true_random=False),
    st.sampled_from(list(FEATURES)),
    st.floats(0, 50),
)
def test_worse_in_any_feature_is_never_scored_better(
    rows: list[list[float]], random: object, name: str, more: float
) -> None:
    features = [dict(zip(FEATURES, row, strict=True)) for row in rows]
    edits = [float(random.randint(0, 40)) for _ in rows[:-1]]  # type: ignore[attr-defined]
    edits.append(41.0 if edits[0] != 41 else 0.0)
    effort = fit_effort(features, edits, edits)
    worse = {**features[0], name: features[0][name] + more}
    assert effort.expected_edit(worse) >= effort.expected_edit(features[0]) >= 0


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ([instance(score=0.6)], [instance(score=0.9)]),
        ([instance(uncertainty=0.9)], [instance(uncertainty=0.1)]),
        ([replace(instance(), incoherent_nodes=900)], [replace(instance(), incoherent_nodes=90)]),
        ([instance(), instance(30, 5, 45, 20)], [instance()]),
        ([instance(5, 5, 45, 35)], [instance()]),  # a longer outline
        ([instance(), instance(label="dog")], [instance(), instance()]),  # one thing, two classes
        ([replace(instance(), box_xyxy=(5, 5, 45, 20))], [instance()]),  # box and mask disagree
        ([], [instance(5, 5, 6, 6)]),
    ],
)
def test_more_doubt_is_a_lower_score(worse: list[Instance], better: list[Instance]) -> None:
    weights = {**dict.fromkeys(FEATURES, 1.0), "nothing": 100.0}
    assert model(weights=weights).score(worse) < model(weights=weights).score(better)


def test_objects_that_are_not_shown_count() -> None:
    assert model().score([instance()], [instance(30, 5, 45, 20, score=0.4)]) < model().score([instance()])
    assert features_of([], [instance(score=0.4)]) == {**dict.fromkeys(FEATURES, 0.0), "hidden": 0.4, "nothing": 1.0}


def test_features_of_an_object() -> None:
    features = features_of([instance()])
    assert (features["objects"], features["doubt"], features["box"], features["class"]) == (1, pytest.approx(0.1), 0, 0)
    assert features["outline"] == pytest.approx((20 + 15) * 2 / 10)
    assert features["nodes"] == 0
    assert features_of([replace(instance(), incoherent_nodes=250)])["nodes"] == 2.5
    assert features["uncertain_outline"] == pytest.approx(0.1 * features["outline"])
    overlapping = features_of([instance(), instance(label="dog")])
    assert overlapping["class"] == 2


@pytest.mark.parametrize(
    "odd",
    [
        replace(instance(), mask_hw=np.zeros(SIZE, bool)),
        replace(instance(), box_xyxy=(30.0, 30.0, 40.0, 40.0)),  # beside its mask
        replace(instance(), box_xyxy=(float("nan"), 0.0, float("inf"), 5.0)),
        replace(instance(), box_xyxy=(-50.0, -50.0, -10.0, -10.0)),
        replace(instance(), score=float("nan"), uncertainty=float("nan")),
        replace(instance(), score=7.0, uncertainty=-3.0),
    ],
)
def test_odd_instances_get_a_score_too(odd: Instance) -> None:
    assert 0 < model().score([odd, instance()], [odd]) <= 1


def test_a_version_carries_its_model(tmp_path: Path) -> None:
    assert load_effort(tmp_path) is None, "no checkpoint"
    write_checkpoint(tmp_path, "v", "weights")
    assert load_effort(tmp_path) is None
    model().save(tmp_path)
    assert load_effort(tmp_path) == model()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], "damaged"),
        ({"weights": {}, "unknown": 1}, "damaged"),
        ({"scale": 0.0}, "expected finite numbers"),
        ({"intercept": -1.0}, "expected finite numbers"),
        ({"weights": {"doubt": float("nan")}}, "expected finite numbers"),
        ({"weights": None}, "damaged"),
    ],
)
def test_a_damaged_model_is_named(changes: dict[str, object] | list[object], words: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "v", "weights")
    effort = {**asdict(model()), **changes} if isinstance(changes, dict) else changes
    update_metadata(tmp_path, {EFFORT_KEY: effort})
    with pytest.raises(EffortError, match=words):
        load_effort(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(EffortError, match="damaged"):
        load_effort(tmp_path)


@pytest.mark.parametrize(
    ("expected", "real", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2, 2], [1, 2, 3, 4], 0.894427),  # ties share their rank
        ([1, 1, 1, 1], [1, 2, 3, 4], 0.0),
    ],
)
def test_rank_correlation(expected: list[float], real: list[float], rho: float) -> None:
    assert rank_correlation(expected, real) == pytest.approx(rho)


def test_orders_are_compared() -> None:
    rng = np.random.default_rng(1)
    edits = rng.exponential(10, 80).tolist()
    scores = {"good": [-edit for edit in edits], "random": rng.uniform(0, 1, 80).tolist(), "bad": edits}
    figures = compare_orders(scores, edits, resamples=200)
    assert (figures["good"].rank_correlation, figures["bad"].rank_correlation) == pytest.approx((1, -1))
    assert figures["random"].low < 0 < figures["random"].high
    assert figures["good"].first_fifth > 0.4 > figures["bad"].first_fifth


@pytest.mark.parametrize(
    ("scores", "edits", "share"),
    [
        ([1, 2], [3, 1], [0, 0.75, 1]),
        ([2, 1], [3, 1], [0, 0.25, 1]),
        ([1, 1], [3, 1], [0, 0.5, 1]),  # in no order
        ([1, 2], [0, 0], [0, 0.5, 1]),
    ],
)
def test_work_found(scores: list[float], edits: list[float], share: list[float]) -> None:
    assert work_covered(scores, edits).tolist() == share
