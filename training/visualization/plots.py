"""Observations as figures; a row an instance, cut to its box with a margin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.visualization.observation import Observation

TINT = "#ff5a1f"
CELL_INCHES = 2.2
MARGIN = 0.08
NODES_SHOWN = 4


def draw_depths(seen: Observation, names: Sequence[str], instances: Sequence[int]) -> Figure:
    """Figures 6 and 12: the image, the coarse mask, and the mask after each level of the quadtree."""
    masks = seen.masks_by_depth()
    root = masks[0].shape[-1]
    titles = ["image", f"coarse {root}x{root}", *(f"depth {d}: {s}x{s}" for d, s in enumerate(seen.sizes, 1))]
    figure, cells = _grid(len(instances), len(titles), titles)
    for row, instance in zip(cells, instances, strict=True):
        _label(row[0], seen, names, instance)
        for axes in row:
            _crop(axes, seen, instance)
        for axes, level in zip(row[1:], masks, strict=True):
            _tint(axes, seen, instance, level[instance].cpu().numpy() >= 0.5)
    return figure


def draw_regions(seen: Observation, names: Sequence[str], instances: Sequence[int]) -> Figure:
    """Figures 4 and 14: the places that were refined, level by level."""
    titles = ["coarse mask", *(f"nodes at {size}x{size}" for size in seen.sizes)]
    figure, cells = _grid(len(instances), len(titles), titles)
    coarse = seen.masks_by_depth()[0]
    for row, instance in zip(cells, instances, strict=True):
        _label(row[0], seen, names, instance)
        for axes in row:
            _crop(axes, seen, instance)
        _tint(row[0], seen, instance, coarse[instance].cpu().numpy() >= 0.5)
        for axes, places, size in zip(row[1:], seen.nodes_of(instance), seen.sizes, strict=True):
            grid = np.zeros((size, size), bool)
            grid[places[:, 0], places[:, 1]] = True
            _tint(axes, seen, instance, grid, alpha=0.9)
            axes.set_xlabel(f"{len(places)} nodes, {100 * grid.mean():.0f} %", fontsize=7)
    return figure


def draw_attention(seen: Observation, names: Sequence[str], instances: Sequence[int]) -> Figure:
    """Figures 6 and 13: what four nodes (red) attend to among the nodes of all levels, in the last layer."""
    figure, cells = _grid(len(instances), NODES_SHOWN, [f"node {n + 1}" for n in range(NODES_SHOWN)])
    for row, instance in zip(cells, instances, strict=True):
        _label(row[0], seen, names, instance)
        places = _in_image(seen, instance)
        chosen = [int(k) for k in np.linspace(0, len(places) - 1, NODES_SHOWN + 2)[1:-1]] if len(places) else []
        weights = np.concatenate(seen.attention_of(instance, chosen), axis=1) if chosen else np.zeros((0, 0))
        for axes in row:
            _crop(axes, seen, instance, fade=0.6)
        for axes, node, share in zip(row, chosen, weights, strict=False):
            order = np.argsort(share)
            axes.scatter(*places[order].T, c=share[order] / max(share.max(), 1e-12), s=5, cmap="inferno", linewidths=0)
            axes.plot(*places[node], "o", color="red", markersize=6, markeredgecolor="white")
    return figure


def draw_failures(cases: Sequence[dict[str, Any]]) -> Figure:
    """Pairs of prediction and truth, largest boundary errors first; see `training.visualization.failures`."""
    figure, cells = _grid(len(cases), 3, ["image", "truth", "predicted"])
    for row, case in zip(cells, cases, strict=True):
        frame = _frame_of(case["box_xyxy"], case["image"].shape)
        for axes, mask in zip(row, (None, case["truth"], case["found"]), strict=True):
            axes.imshow(case["image"])
            if mask is not None:
                _overlay(axes, mask, (0, mask.shape[1], mask.shape[0], 0))
            axes.set_xlim(frame[0], frame[2])
            axes.set_ylim(frame[3], frame[1])
        row[0].set_ylabel(f"{case['name']}\nboundary error {100 * case['error']:.0f} %", fontsize=7)
        row[2].set_xlabel(f"mask IoU {100 * case['mask_iou']:.0f} %", fontsize=7)
    return figure


def _grid(rows: int, columns: int, titles: Sequence[str]) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(CELL_INCHES * columns + 0.6, CELL_INCHES * max(rows, 1) + 0.4), layout="constrained")
    cells: np.ndarray = figure.subplots(max(rows, 1), columns, squeeze=False)
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
    for axes, title in zip(cells[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return figure, cells[:rows]


def _label(axes: Axes, seen: Observation, names: Sequence[str], instance: int) -> None:
    axes.set_ylabel(f"{names[int(seen.classes[instance])]} {seen.scores[instance]:.2f}", fontsize=8)


def _crop(axes: Axes, seen: Observation, instance: int, fade: float = 1.0) -> None:
    axes.imshow(seen.image, alpha=fade)
    left, top, right, bottom = _frame_of(seen.boxes_xyxy[instance], seen.image.shape)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _frame_of(box_xyxy: np.ndarray, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The box with a margin, in imshow's coordinates (pixel centres at whole numbers), within the image."""
    left, top, right, bottom = (float(edge) for edge in box_xyxy)
    margin = MARGIN * max(right - left, bottom - top)
    return (
        max(left - margin, 0) - 0.5,
        max(top - margin, 0) - 0.5,
        min(right + margin, shape[1]) - 0.5,
        min(bottom + margin, shape[0]) - 0.5,
    )


def _tint(axes: Axes, seen: Observation, instance: int, grid: np.ndarray, alpha: float = 0.55) -> None:
    """A grid over the instance's box."""
    left, top, right, bottom = (float(edge) - 0.5 for edge in seen.boxes_xyxy[instance])
    limits = axes.get_xlim(), axes.get_ylim()
    _overlay(axes, grid, (left, right, bottom, top), alpha)
    axes.set(xlim=limits[0], ylim=limits[1])


def _overlay(axes: Axes, mask: np.ndarray, extent: tuple[float, float, float, float], alpha: float = 0.55) -> None:
    red, green, blue = (int(TINT[k : k + 2], 16) / 255 for k in (1, 3, 5))
    colours = np.zeros((*mask.shape, 4))
    colours[mask] = (red, green, blue, alpha)
    axes.imshow(colours, extent=extent, interpolation="nearest")


def _in_image(seen: Observation, instance: int) -> np.ndarray:
    """(Q, 2) x and y of an instance's nodes of all levels, in imshow's coordinates."""
    left, top, right, bottom = seen.boxes_xyxy[instance]
    points = []
    for places, size in zip(seen.nodes_of(instance), seen.sizes, strict=True):
        share = (places + 0.5) / size
        points.append(np.stack([left + share[:, 1] * (right - left), top + share[:, 0] * (bottom - top)], 1) - 0.5)
    return np.concatenate(points)
