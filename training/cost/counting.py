"""Operations, parameters and calls, counted while a network runs; deterministic, so fit for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> dict[str, int]:
    """Operations (2 x MAC) of a call by kind of operator, with their sum as ``total``.

    Fused attention counts as its two products. ``nn.TransformerEncoder``'s fast path would count as nothing in
    inference, so it is off meanwhile.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    kinds = {str(kind): int(count) for kind, count in counter.get_flop_counts()["Global"].items()}
    return {"total": int(counter.get_total_flops())} | dict(sorted(kinds.items()))


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Parameters of a network's direct parts and their sum as ``total``."""
    parts = {name: _size(part) for name, part in network.named_children()}
    return {"total": _size(network)} | {name: size for name, size in parts.items() if size}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class OperatorCounter(TorchDispatchMode):
    """Counts the tensor operators that are called: on a GPU about the kernels that are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def count_operators(run: Callable[[], object]) -> Counter[str]:
    """Operators of a call by name."""
    with OperatorCounter() as counter:
        run()
    return counter.calls
