"""Work on several images of a CPU at the same time, each with its share of torch's threads.

Most operations of a small network are too short to be split among threads, so two images on a thread each are done
sooner than one after the other on two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Given = TypeVar("Given")
Made = TypeVar("Made")
# Each holds activations of its own, like the images of a batch on a GPU.
MOST_AT_A_TIME = 4


def map_in_threads(
    work: Callable[[Given], Made], pieces: Sequence[Given], device: torch.device | str = "cpu"
) -> list[Made]:
    """`work` on each piece, in order; up to `MOST_AT_A_TIME` at once on a CPU where torch may use several threads.

    Args:
        device: where the arithmetic is; elsewhere than on a CPU one piece follows the other.

    Raises:
        Exception: of the first piece that failed. Pieces that were not begun then, or when the caller is interrupted,
            never are; those that were run to their end unattended.
    """
    threads = torch.get_num_threads()
    at_once = min(len(pieces), threads, MOST_AT_A_TIME)
    if at_once < 2 or torch.device(device).type != "cpu":
        return [work(piece) for piece in pieces]

    def with_its_share(piece: Given) -> Made:
        torch.set_num_threads(threads // at_once)
        return work(piece)

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="image")
    try:
        return list(pool.map(with_its_share, pieces))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # The number is a thread's own, but new threads begin with the one that was set last.
        torch.set_num_threads(threads)
