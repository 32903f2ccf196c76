"""Reads the recorded outputs of the authors' code (tests/fixtures, described in its README)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def qints(name: str, count: int, seed: int) -> np.ndarray:
    """Integers in [-7, 7] from a raw PCG64 stream keyed by seed and parameter name."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw = stream.random_raw((count + 7) // 8).astype("<u8").view(np.uint8)[:count]
    return (raw % 15).astype(np.int8) - 7


def generated(name: str, shape: list[int], scale: float, offset: float, seed: int) -> Tensor:
    """A generated parameter: integer times scale plus offset, exact in half precision."""
    values = qints(name, int(np.prod(shape)), seed).astype(np.float32)
    return torch.from_numpy((values * np.float32(scale) + np.float32(offset)).reshape(shape))


def whole_model_state() -> dict[str, Tensor]:
    """State dict of the R50-FPN fixture model (80 classes)."""
    recipe = json.loads((FIXTURES / "weights_recipe.json").read_text())
    explicit = np.load(FIXTURES / "weights_explicit.npz")
    state = {}
    for name, entry in recipe["params"].items():
        if name in explicit:
            state[name] = torch.from_numpy(explicit[name].astype(np.float32)).reshape(entry["shape"])
        else:
            state[name] = generated(name, entry["shape"], entry["scale"], entry["offset"], recipe["seed"])
    return state


def mask_part_state(arrays: np.lib.npyio.NpzFile, prefix: str = "roi_heads.") -> dict[str, Tensor]:
    """State dict of the mask pooler and head that ``mask_head_tiny.npz`` was made with, without ``prefix``."""
    state = {name: value for name, value in whole_model_state().items() if "roi_heads.mask" in name}
    spec = json.loads(bytes(arrays["spec"]))["weights"]
    seed = json.loads((FIXTURES / "weights_recipe.json").read_text())["seed"]
    for name, entry in spec.items():
        if entry["kind"] == "fp16":
            state[name] = torch.from_numpy(arrays[f"w16:{name}"].astype(np.float32)).reshape(entry["shape"])
        else:
            state[name] = generated(name, entry["shape"], entry["scale"], entry["offset"], seed)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def features(arrays: np.lib.npyio.NpzFile) -> list[Tensor]:
    """FPN maps P2..P5 of ``mask_head_tiny.npz``: two values a byte, value + 8, low nibble first."""
    maps = []
    for name, entry in json.loads(bytes(arrays["spec"]))["features"].items():
        packed = arrays[f"f4:{name}"]
        values = np.stack([packed & 15, packed >> 4], axis=1).astype(np.float32).reshape(-1) - 8
        maps.append(torch.from_numpy(values * np.float32(entry["scale"])).reshape(entry["shape"]))
    return maps
