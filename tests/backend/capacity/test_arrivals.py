"""Arrivals follow the hours of the day; what is said about them and about waiting is computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from backend.capacity.arrivals import BULK_TASKS, DAY_S, FLAT, Arrivals, Load, of_days, of_peak
from backend.capacity.batch_times import BatchTime, BatchTimes
from backend.capacity.simulation import Course
from backend.capacity.sizing import fewest, stretch_of
from backend.capacity.waits import summarize


def test_the_hours_of_an_office():
    load = Load(100_000)
    assert load.peak_factor == pytest.approx(3.12)
    assert load.peak_hours() == [10, 14]
    arrivals = of_days(load, 3, seed=1)
    by_hour = np.bincount((arrivals.at_s % DAY_S // 3600).astype(int), minlength=24) / 3000
    # Four standard deviations of a Poisson count.
    assert by_hour == pytest.approx(np.array(load.shares), abs=4 * 13**0.5 / 30)
    assert (np.diff(arrivals.at_s) >= 0).all()


def test_bulk_requests_bring_their_share_together():
    arrivals = of_peak(Load(10_000_000, FLAT, bulk_share=0.5, interactive_share=0.25), 2000, seed=2)
    assert arrivals.is_bulk.mean() == pytest.approx(0.5, abs=0.05)
    assert arrivals.is_interactive[~arrivals.is_bulk].mean() == pytest.approx(0.25, abs=0.01)
    assert not (arrivals.is_bulk & arrivals.is_interactive).any()
    ends = np.array(arrivals.request_ends())
    sizes = np.diff([0, *ends])
    assert set(sizes) == {1, BULK_TASKS}
    assert len(set(arrivals.at_s[arrivals.request == arrivals.request[ends[sizes > 1][0] - 1]])) == 1


@pytest.mark.parametrize(
    ("images_a_day", "name", "is_day"),
    [(1000, "20 whole days", True), (100_000, "1 whole day", True), (10_000_000, "554 s of the peak", False)],
)
def test_what_is_simulated_is_said(images_a_day, name, is_day):
    stretch = stretch_of(Load(images_a_day), seed=0)
    assert stretch.name.startswith(name)
    assert stretch.is_day == is_day
    assert stretch.arrivals.at_s.max() <= max(end_s for _, end_s in stretch.whole)


def test_waits_computed_by_hand():
    arrivals = Arrivals(
        np.array([0.0, 1, 2, 3, 12]), np.arange(5), np.array([0, 0, 0, 1, 0], bool), np.zeros(5, bool)
    )
    course = Course(
        begun_s=np.array([0.0, 4, 4, 8, 12]),
        ended_s=np.array([5.0, 9, 9, 13, 17]),
        batches=np.array([(0.0, 4, 1), (4, 8, 2), (8, 11, 1), (12, 16, 1)]),
    )
    found = summarize(arrivals, course, [(0, 10)], workers=2)
    assert found.tasks == 3
    assert (found.wait_p50_s, found.answer_p95_s, found.bulk_answer_p95_s) == (2, pytest.approx(7.9), 10)
    assert found.utilization == pytest.approx(10 / 20)
    assert found.depth_most == 2
    assert found.batch_mean == pytest.approx(4 / 3)


def test_nobody_arriving_is_an_error():
    with pytest.raises(ValueError, match="no single task arrives"):
        summarize(Arrivals.single([5.0]), Course(np.ones(1), np.ones(1), np.zeros((0, 3))), [(0, 1)], 1)


@pytest.mark.parametrize(("needed", "guess"), [(1, 1), (7, 1), (7, 7), (7, 8), (7, 90), (100, 3), (1, 5)])
def test_the_fewest_are_found_and_one_fewer_was_looked_at(needed, guess):
    asked = []

    def is_enough(number):
        asked.append(number)
        return number >= needed

    assert fewest(is_enough, guess) == needed
    assert needed == 1 or needed - 1 in asked
    assert len(asked) < 20


def test_what_is_never_enough_is_an_error():
    with pytest.raises(ValueError, match="not even"):
        fewest(lambda _: False, 4)


def test_sizes_between_measured_ones_lie_between_them():
    times = BatchTimes({1: [BatchTime(1, 2, 3), BatchTime(2, 4, 6)], 3: [BatchTime(3, 4, 9)]})
    assert times.draw(1, 0.4) == BatchTime(1, 2, 3)
    assert times.draw(1, 0.5) == BatchTime(2, 4, 6)
    assert times.draw(2, 0.0) == BatchTime(2, 3, 6)
    assert times.mean(1) == BatchTime(1.5, 3, 4.5)


def test_a_faster_network_keeps_the_spread_and_the_other_stages():
    faster = BatchTimes({1: [BatchTime(1, 2, 3), BatchTime(1, 4, 3)]}).with_images_a_second(10)
    assert faster.draw(1, 0.0) == BatchTime(1, pytest.approx(0.2 / 3), 3)
    assert faster.draw(1, 0.9).model_s == pytest.approx(2 * faster.draw(1, 0.0).model_s)
    assert faster.mean(1).model_s == pytest.approx(0.1)


def test_single_tasks_must_have_been_measured():
    with pytest.raises(ValueError, match=r"batches of \[2\] tasks"):
        BatchTimes({2: [BatchTime(1, 1, 1)]})
