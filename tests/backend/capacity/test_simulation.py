"""The simulated queue: hand-computed courses, textbook queues, and what more workers can never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.capacity.arrivals import Arrivals
from backend.capacity.batch_times import BatchTime, BatchTimes
from backend.capacity.simulation import Rules, Simulation


def network_only(*seconds: float, sizes: tuple[int, ...] = (1,)) -> BatchTimes:
    return BatchTimes({size: [BatchTime(0.0, one, 0.0) for one in seconds] for size in sizes})


def course(at_s, times, rules, *, seed=0):
    arrivals = at_s if isinstance(at_s, Arrivals) else Arrivals.single(at_s)
    return Simulation(arrivals, times, rules, seed).run()


def requests(*sizes_at: tuple[float, int, bool]) -> Arrivals:
    """Each (moment in s, tasks, whether interactive)."""
    at_s = [moment for moment, tasks, _ in sizes_at for _ in range(tasks)]
    number = [place for place, (_, tasks, _) in enumerate(sizes_at) for _ in range(tasks)]
    fast = [is_fast for _, tasks, is_fast in sizes_at for _ in range(tasks)]
    return Arrivals(np.array(at_s), np.array(number), np.zeros(len(at_s), bool), np.array(fast))


STAGES = BatchTimes({1: [BatchTime(1, 4, 2)], 4: [BatchTime(2, 8, 4)]})
# at_s of requests, workers, max_batch, max_wait_s, when each task's batch is begun, when it is recorded
COURSES = [
    # images 0-1, network 1-5, outlines 5-7
    (requests((0, 1, False)), 1, 4, 0.0, [0], [7]),
    # a batch of what is there; two tasks are a third of the way from 1 to 4: 4/3, 16/3, 8/3
    (requests((0, 2, False)), 1, 4, 0.0, [0, 0], [28 / 3, 28 / 3]),
    # the second is not there yet when the first batch begins; nothing is taken ahead, so its images come at 5
    (requests((0, 1, False), (1, 1, False)), 1, 4, 0.0, [0, 5], [7, 12]),
    # five at once: four, and the fifth taken ahead: images 0-1; its network begins at 10, outlines wait for those of 4
    (requests((0, 5, False)), 1, 4, 0.0, [0, 0, 0, 0, 10], [14, 14, 14, 14, 16]),
    # two idle workers get one each before anybody looks for company
    (requests((0, 2, False)), 2, 4, 0.0, [0, 0], [7, 7]),
    # they wait for company 0.5 s and get some: 3 tasks are two thirds of the way, 5/3 + 20/3 + 10/3
    (requests((0, 1, False), (0.25, 2, False)), 1, 4, 0.5, [0.5] * 3, [0.5 + 35 / 3] * 3),
    # complete before the time is over
    (requests((0, 1, False), (0.25, 3, False)), 1, 4, 9.0, [0.25] * 4, [14.25] * 4),
    # nobody comes
    (requests((0, 1, False)), 1, 4, 0.5, [0.5], [7.5]),
    # an interactive one overtakes the batch taken ahead (0-4 done at 10), alone
    (requests((0, 5, False), (1, 1, True)), 1, 4, 0.0, [0, 0, 0, 0, 15, 10], [14, 14, 14, 14, 21, 17]),
    # two workers: nothing is taken ahead unless more than a batch waits; the fifth goes to the one that is free first
    (requests((0, 8, False), (1, 1, False)), 2, 4, 0.0, [0] * 8 + [10], [14] * 8 + [17]),
]


@pytest.mark.parametrize(("arrivals", "workers", "max_batch", "max_wait_s", "begun_s", "ended_s"), COURSES)
def test_courses_computed_by_hand(arrivals, workers, max_batch, max_wait_s, begun_s, ended_s):
    found = course(arrivals, STAGES, Rules(workers, max_batch, max_wait_s))
    assert found.begun_s == pytest.approx(begun_s)
    assert found.ended_s == pytest.approx(ended_s)
    assert found.batches[:, 2].sum() == len(begun_s)


def mean_waits(
    times: BatchTimes, rules: Rules, rate: float, *, courses: int = 16, tasks: int = 5000
) -> np.ndarray:
    """Mean wait of each of several independent courses, the first sixth left out."""
    means = []
    for seed in range(courses):
        at_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, tasks))
        found = course(at_s, times, rules, seed=1000 + seed)
        means.append(float((found.begun_s - at_s)[tasks // 6 :].mean()))
    return np.array(means)


def erlang_c(workers: int, load: float) -> float:
    """Probability that a task must wait in M/M/c, `load` in Erlang (A. K. Erlang, 1917)."""
    terms = [load**k / math.factorial(k) for k in range(workers)]
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    return last / (sum(terms) + last)


# What stands for a measured sample: 4,000 quantiles of an exponential distribution with mean 1.
EXPONENTIAL = network_only(*(-math.log(1 - (number + 0.5) / 4000) for number in range(4000)))


@pytest.mark.parametrize(
    ("times", "workers", "rate", "expected_s"),
    [
        # M/M/1: rho / (mu - lambda)
        (EXPONENTIAL, 1, 0.5, 1.0),
        (EXPONENTIAL, 1, 0.7, 0.7 / 0.3),
        # M/D/1 (Pollaczek-Khinchine): rho / (2 mu (1 - rho))
        (network_only(1.0), 1, 0.7, 0.7 / (2 * 0.3)),
        # M/M/c (Erlang C): C(c, a) / (c mu - lambda)
        (EXPONENTIAL, 3, 2.1, erlang_c(3, 2.1) / 0.9),
        (EXPONENTIAL, 8, 6.0, erlang_c(8, 6.0) / 2.0),
    ],
)
def test_waits_are_those_of_queueing_theory(times, workers, rate, expected_s):
    found = mean_waits(times, Rules(workers, 1, takes_ahead=False), rate)
    # 99 % interval of Student's t with 15 degrees of freedom.
    half_width = 2.947 * found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - expected_s) < half_width, (found.mean(), expected_s, half_width)
    assert half_width < 0.2 * expected_s


def test_a_lone_worker_that_takes_ahead_serves_in_the_same_order():
    at_s = np.cumsum(np.random.default_rng(5).exponential(1.2, 2000))
    ahead, textbook = (course(at_s, network_only(1.0), Rules(1, 1, takes_ahead=one)) for one in (True, False))
    assert np.array_equal(ahead.begun_s, textbook.begun_s)


@settings(max_examples=40)
@given(gaps_s=st.lists(st.floats(0, 3), min_size=1, max_size=40), workers=st.integers(1, 4))
def test_no_task_waits_longer_with_another_worker(gaps_s, workers):
    at_s = np.cumsum(gaps_s)
    few, more = (
        course(at_s, network_only(1.0), Rules(number, 1, takes_ahead=False))
        for number in (workers, workers + 1)
    )
    assert (more.begun_s <= few.begun_s + 1e-9).all()


def test_tasks_wait_less_on_average_with_each_further_worker():
    at_s = np.cumsum(np.random.default_rng(2).exponential(0.5, 3000))
    waits = [(course(at_s, STAGES, Rules(workers, 4)).begun_s - at_s).mean() for workers in range(4, 12)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 10 * waits[-1]


@settings(max_examples=40)
@given(
    bursts=st.lists(st.tuples(st.floats(0, 4), st.integers(1, 12), st.booleans()), min_size=1, max_size=15),
    workers=st.integers(1, 4),
    max_batch=st.integers(1, 4),
    max_wait_s=st.sampled_from([0.0, 0.7]),
)
def test_every_task_is_done_once_and_no_worker_does_two_batches_at_a_time(
    bursts, workers, max_batch, max_wait_s
):
    moments = np.cumsum([gap_s for gap_s, _, _ in bursts])
    arrivals = requests(
        *((float(at), tasks, fast) for at, (_, tasks, fast) in zip(moments, bursts, strict=True))
    )
    found = course(arrivals, STAGES, Rules(workers, max_batch, max_wait_s))
    assert (found.begun_s >= arrivals.at_s).all()
    assert (found.ended_s > found.begun_s).all()
    assert found.batches[:, 2].sum() == len(arrivals.at_s)
    assert found.batches[:, 2].max() <= max_batch
    for moment in found.batches[:, 0]:
        assert ((found.batches[:, 0] <= moment) & (moment < found.batches[:, 1])).sum() <= workers


def test_the_same_seed_is_the_same_course():
    at_s = np.linspace(0, 50, 100)
    first, again, other = (course(at_s, EXPONENTIAL, Rules(2, 1), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.ended_s, again.ended_s)
    assert not np.array_equal(first.ended_s, other.ended_s)


def test_larger_batches_than_were_measured_are_refused():
    with pytest.raises(ValueError, match="batches of 8 tasks were not measured"):
        Simulation(Arrivals.single([0.0]), STAGES, Rules(1, 8))
