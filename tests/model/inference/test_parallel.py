"""Images of a CPU side by side: at the same time, in order, with shares of the threads that are given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.inference.predictor import MOST_AT_A_TIME, InputSettings, Predictor, map_in_threads
from tests.support.small_network import CLASSES, small_model

PATIENCE_S = 20.0


@pytest.fixture(params=[1, 2, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """That torch may use, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_as_many_at_once_as_there_are_threads(threads: int) -> None:
    at_once = min(threads, MOST_AT_A_TIME)
    # Nobody passes before that many are inside: BrokenBarrierError when they come one after the other.
    meeting = threading.Barrier(at_once, timeout=PATIENCE_S)

    def work(number: int) -> tuple[int, int]:
        meeting.wait()
        return number, torch.get_num_threads()

    assert map_in_threads(work, range(4 * at_once)) == [(number, threads // at_once) for number in range(4 * at_once)]
    assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads], "threads that begin afterwards have all of them, too"


def test_a_gpu_gets_one_after_the_other(threads: int) -> None:
    thread = threading.get_ident()
    assert map_in_threads(lambda _: threading.get_ident(), range(4), "cuda") == [thread] * 4


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_one_alone_has_all_threads(threads: int) -> None:
    assert map_in_threads(lambda _: torch.get_num_threads(), [0]) == [threads]


def test_the_first_failure_is_raised_and_what_was_not_begun_never_is(threads: int) -> None:
    started_numbers = []

    def work(number: int) -> None:
        started_numbers.append(number)
        if number == 1:
            raise MemoryError("image 1")
        time.sleep(0.01)  # else all are done before anybody has heard of the failure

    with pytest.raises(MemoryError, match="image 1"):
        map_in_threads(work, range(500))
    assert len(started_numbers) < 500
    assert torch.get_num_threads() == threads


def test_what_is_found_does_not_depend_on_the_threads(threads: int) -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (48 + 8 * n, 64, 3), dtype=np.uint8) for n in range(5)]
    predictor = Predictor(small_model(), CLASSES, "1", InputSettings("RGB", 64, 128))
    together, alone = predictor(images), [predictor([image])[0] for image in images]
    assert any(alone), "something is found"
    for ours, theirs in zip(together, alone, strict=True):
        assert [instance.label for instance in ours] == [instance.label for instance in theirs]
        for instance, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(instance.box_xyxy, other.box_xyxy, atol=1e-3)
            assert (instance.mask_hw != other.mask_hw).sum() <= 1
