"""Which sample a run shows when: shares kept, nothing forgotten, the same after a resume."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.loader import BLOCK, UNSHUFFLED, Mixture, SequentialOrder, shuffled

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_in_turn_every_sample_is_shown_once_an_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    order, total = SequentialOrder(sizes, seed), sum(sizes)
    places = [order.place_at(epoch * total + position) for position in range(total)]
    assert sorted(places) == [(number, index) for number, size in enumerate(sizes) for index in range(size)]


@given(st.data(), sizes, st.integers(0, 5))
def test_a_mixture_keeps_its_shares_and_goes_through_each_set(data: st.DataObject, sizes: list[int], seed: int) -> None:
    share = st.floats(0.01, 1)
    shares = data.draw(st.lists(share, min_size=len(sizes), max_size=len(sizes)))
    order = Mixture(sizes, shares, seed)
    length = sum(order.counts)
    assert length >= BLOCK
    assert all(abs(n - s / sum(shares) * BLOCK) <= 1 + len(sizes) for n, s in zip(order.counts, shares, strict=True))
    places = [order.place_at(position) for position in range(6 * length)]
    assert Counter(number for number, _ in places) == {n: 6 * count for n, count in enumerate(order.counts)}
    for number, size in enumerate(sizes):
        first = [index for set_number, index in places if set_number == number][:size]
        assert len(set(first)) == len(first), "no repetition within an epoch"


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.5, 0.5), (10, 10)),
        ((3, 1), (15, 5)),  # scaled to a sum of 1
        ((0.75, 0.125, 0.125), (15, 3, 2)),  # half samples go to the first
        ((0.999, 0.001), (19, 1)),  # whoever has a share is seen
    ],
)
def test_shares_become_whole_samples_of_a_block(shares: tuple[float, ...], expected: tuple[int, ...]) -> None:
    counts = Mixture([5] * len(shares), shares, 0).counts
    assert counts == expected or (sum(expected) == 20 and max(counts) - max(expected) in (0, 1))


def test_sets_and_shares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sets need as many positive shares"):
        Mixture([3, 3], [1.0], 0)
    with pytest.raises(ValueError, match="positive shares"):
        Mixture([3, 3], [1.0, 0.0], 0)
    with pytest.raises(ValueError, match="without samples"):
        Mixture([3, 0], [1.0, 1.0], 0)


def test_large_sets_are_shuffled_too_endless_ones_are_not() -> None:
    assert [shuffled(place, 118_287, 1) for place in range(4)] != [0, 1, 2, 3]
    assert [shuffled(place, UNSHUFFLED, 1) for place in range(4)] == [0, 1, 2, 3]
