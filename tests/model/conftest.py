"""What the network's tests share: the released mask part with the recorded weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def recorded() -> np.lib.npyio.NpzFile:
    from tests.support.released_fixture import FIXTURES

    return np.load(FIXTURES / "mask_head_tiny.npz")
