"""Deformable DETR's encoder and decoder on the maps of a feature pyramid; the layers are transformers' (pure torch).

Shape shorthand: N images, Q queries, K classes, C channels, L maps, T cells of all maps, D decoder layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

NEEDED = (
    "the query-based detector (MODEL.META_ARCHITECTURE TransfinerDETR) needs the package transformers 5: "
    "install this project with its extra, pip install '.[detr]'"
)


def transformers_part() -> Any:
    """transformers' Deformable DETR module.

    Raises:
        ImportError: the extra ``detr`` is not installed; the message says how to.
    """
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr
    except ImportError as error:
        raise ImportError(NEEDED) from error
    return modeling_deformable_detr


class DeformableTransformer(nn.Module):
    """From maps (N, C, H, W) to class logits and boxes of every decoder layer.

    Args:
        channels: C, of the maps and inside; levels: L.
        box_refinement: each decoder layer corrects the boxes of the one before.
    """

    def __init__(
        self,
        channels: int,
        levels: int,
        *,
        num_classes: int,
        queries: int = 300,
        layers: int = 6,
        ffn_dim: int = 1024,
        heads: int = 8,
        dropout: float = 0.1,
        box_refinement: bool = True,
    ) -> None:
        super().__init__()
        part = transformers_part()
        config = part.DeformableDetrConfig(
            d_model=channels,
            num_queries=queries,
            num_feature_levels=levels,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_ffn_dim=ffn_dim,
            decoder_ffn_dim=ffn_dim,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            dropout=dropout,
            with_box_refine=box_refinement,
            disable_custom_kernels=True,
        )
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GroupNorm(min(32, channels // 4), channels))
            for _ in range(levels)
        )
        self.place = part.DeformableDetrSinePositionEmbedding(channels // 2, normalize=True)
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.queries = nn.Embedding(queries, 2 * channels)
        self.reference = nn.Linear(channels, 2)
        self.encoder = part.DeformableDetrEncoder(config)
        self.decoder = part.DeformableDetrDecoder(config)
        self.box_refinement = box_refinement
        outputs = layers if box_refinement else 1
        self.classifiers = nn.ModuleList(_classifier(channels, num_classes) for _ in range(outputs))
        self.box_heads = nn.ModuleList(_box_head(channels) for _ in range(outputs))
        for head in self.box_heads if box_refinement else ():
            nn.init.zeros_(head[-1].bias)  # type: ignore[index]
        _start_with_small_boxes(self.box_heads[0])
        if box_refinement:
            self.decoder.bbox_embed = self.box_heads

    def forward(self, maps: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (D, N, Q, K) and boxes (D, N, Q, 4) as shares of the padded image, cx, cy, w, h.

        Args:
            valid: bool (N, H, W) where the padded images show something.
        """
        parts = self._flatten(maps, valid)
        geometry = {
            name: parts[name] for name in ("spatial_shapes", "spatial_shapes_list", "level_start_index", "valid_ratios")
        }
        memory = self.encoder(
            inputs_embeds=parts["cells"],
            attention_mask=parts["mask"],
            spatial_position_embeddings=parts["places"],
            **geometry,
        ).last_hidden_state
        place, target = (part.expand(len(memory), -1, -1) for part in self.queries.weight[None].chunk(2, dim=2))
        start = self.reference(place).sigmoid()
        states = self.decoder(
            inputs_embeds=target,
            object_queries_position_embeddings=place,
            encoder_hidden_states=memory,
            encoder_attention_mask=parts["mask"],
            reference_points=start,
            **geometry,
        )
        return self._predict(start, states.intermediate_hidden_states, states.intermediate_reference_points)

    def _predict(self, start: Tensor, hidden: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """``hidden``, ``references``: (N, D, Q, ...); layer d starts from the boxes of layer d - 1."""
        logits, boxes = [], []
        for layer in range(hidden.shape[1]):
            head = layer if self.box_refinement else 0
            logits.append(self.classifiers[head](hidden[:, layer]))
            start_boxes = (start if layer == 0 or not self.box_refinement else references[:, layer - 1]).clamp(
                1e-5, 1 - 1e-5
            )
            change = self.box_heads[head](hidden[:, layer])
            coordinates = change[..., : start_boxes.shape[-1]] + torch.logit(start_boxes)
            boxes.append(torch.cat([coordinates, change[..., start_boxes.shape[-1] :]], dim=-1).sigmoid())
        return torch.stack(logits), torch.stack(boxes)

    def _flatten(self, maps: list[Tensor], valid: Tensor) -> dict[str, Any]:
        """All cells of all maps in one run, with their places, masks and the geometry of the maps."""
        cells, masks, places, ratios = [], [], [], []
        for level, (projection, feature) in enumerate(zip(self.projections, maps, strict=True)):
            is_image = nn.functional.interpolate(valid[:, None].float(), feature.shape[-2:])[:, 0].bool()
            place = self.place(feature.shape, feature.device, feature.dtype, is_image)
            cells.append(projection(feature).flatten(2).transpose(1, 2))
            places.append(place.flatten(2).transpose(1, 2) + self.level_embedding[level])
            masks.append(is_image.flatten(1))
            height, width = is_image[:, :, 0].float().mean(1), is_image[:, 0, :].float().mean(1)
            ratios.append(torch.stack([width, height], dim=1))
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
        shapes = torch.tensor(sizes, device=maps[0].device)
        return {
            "cells": torch.cat(cells, 1),
            "mask": torch.cat(masks, 1),
            "places": torch.cat(places, 1),
            "spatial_shapes": shapes,
            "spatial_shapes_list": sizes,
            "level_start_index": torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]]),
            "valid_ratios": torch.stack(ratios, 1),
        }


def _classifier(channels: int, num_classes: int) -> nn.Linear:
    """Every class starts at a probability of 0.01, so that the many empty queries do not drown the rest."""
    layer = nn.Linear(channels, num_classes)
    nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))
    return layer


def _box_head(channels: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4)
    )
    nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
    return layers


def _start_with_small_boxes(head: nn.Module) -> None:
    with torch.no_grad():
        head[-1].bias[2:] = -2.0  # type: ignore[index]
