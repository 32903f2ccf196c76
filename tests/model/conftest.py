"""What the network's tests share: the released mask part with the recorded weights and inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def recorded() -> np.lib.npyio.NpzFile:
    from released_fixture import FIXTURES

    return np.load(FIXTURES / "mask_head_tiny.npz")
