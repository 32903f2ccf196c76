"""Forward passes in half precision, with the scaling of gradients that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The arithmetic of a run; weights, gradients and the optimiser stay fp32.

    Args:
        name: "fp32", "bf16", or "fp16" (GPU alone: its gradients vanish unless they are scaled).
        device: "cpu" or "cuda".

    Raises:
        ValueError: an unknown name, or fp16 on a CPU.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device_type = name, torch.device(device).type
        if name not in DTYPES or (name == "fp16" and self.device_type != "cuda"):
            usable = "fp32, bf16 or fp16" if self.device_type == "cuda" else "fp32 or bf16"
            raise ValueError(f"TRAINING.PRECISION is {name!r}; on {self.device_type} choose {usable}")
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=name == "fp16")

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, DTYPES[self.name])

    def backward(self, loss: Tensor) -> None:
        """Gradients, multiplied by the present scale where there is one."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """True gradients, ready to be clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser step, left out (and the scale lowered) where scaled gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """For resuming: the scale; empty where nothing is scaled."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scale."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
