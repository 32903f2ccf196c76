"""Ways to outline a mask, compared: OpenCV's and shapely's, as most and as careful tools do it, and ours.

`python -m tests.support.outline_methods [INSTANCES.json]` prints vertices, fidelity and time of each on the same masks,
by default on one coastline of 4000 x 3000 px; with `--figure PICTURE.png` it draws one small mask in every way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont

from backend.devtools.simulated_edits import opencv
from integration.polygons.contours import Polygon, exact_polygons
from integration.polygons.convert import outline_mask, polygons_to_mask
from model.instance import iou
from tests.integration.polygons.hausdorff import deviation_px
from tests.support.coco_reference import indexed
from training.metrics.coco_schema import read_json

Method = Callable[[np.ndarray, float], list[Polygon]]


def fewest_vertices(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """Fewest vertices within the tolerance of the exact contour."""
    return outline_mask(mask_hw, tolerance_px=tolerance_px)


def douglas_peucker(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """shapely's topology-preserving Douglas-Peucker on the same exact contour."""
    shapes = [
        shapely.Polygon(polygon.exterior, polygon.holes).simplify(tolerance_px, preserve_topology=True)
        for polygon in exact_polygons(mask_hw)
    ]
    return [
        Polygon(_open(shape.exterior), tuple(_open(hole) for hole in shape.interiors), tolerance_px) for shape in shapes
    ]


def _open(ring: shapely.LinearRing) -> np.ndarray:
    return shapely.get_coordinates(ring)[:-1]


# Label of each method in tables and pictures.
METHODS: dict[str, Method] = {
    "OpenCV contour + Douglas-Peucker": opencv,
    "exact contour + Douglas-Peucker": douglas_peucker,
    "transfiner": fewest_vertices,
}


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """One method on a set of masks.

    Attributes:
        method: its label.
        vertices: of all polygons together.
        median_ms: processor time a mask, the best of the repeats: it does not count other people's work.
        mean_ms: likewise.
        slowest_ms: likewise.
        median_wall_ms: time on the clock a mask, the best of the repeats.
        hausdorff_px: two-way distance to the exact contour, the worst of all masks.
        mean_iou: overlap of a mask with what its polygons fill.
    """

    method: str
    vertices: int
    median_ms: float
    mean_ms: float
    slowest_ms: float
    median_wall_ms: float
    hausdorff_px: float
    mean_iou: float


def compare_outline_methods(masks_hw: Sequence[np.ndarray], tolerance_px: float, repeats: int) -> list[MethodFigures]:
    """Run every method of `METHODS` on every mask; masks are bool, H x W."""
    exact = [exact_polygons(mask_hw) for mask_hw in masks_hw]
    return [_figures(label, method, masks_hw, exact, tolerance_px, repeats) for label, method in METHODS.items()]


def _figures(
    label: str,
    method: Method,
    masks_hw: Sequence[np.ndarray],
    exact: Sequence[list[Polygon]],
    tolerance_px: float,
    repeats: int,
) -> MethodFigures:
    outlines, times_ms, walls_ms = [], [], []
    for mask_hw in masks_hw:
        runs = [_timed(method, mask_hw, tolerance_px) for _ in range(repeats)]
        outlines.append(runs[0].polygons)
        times_ms.append(min(run.processor_ms for run in runs))
        walls_ms.append(min(run.wall_ms for run in runs))
    overlaps = [
        iou(mask_hw, polygons_to_mask(outline, *mask_hw.shape))
        for mask_hw, outline in zip(masks_hw, outlines, strict=True)
    ]
    return MethodFigures(
        method=label,
        vertices=sum(polygon.vertex_count for outline in outlines for polygon in outline),
        median_ms=float(np.median(times_ms)),
        mean_ms=float(np.mean(times_ms)),
        slowest_ms=max(times_ms),
        median_wall_ms=float(np.median(walls_ms)),
        hausdorff_px=max(deviation_px(*pair) for pair in zip(outlines, exact, strict=True)),
        mean_iou=float(np.mean(overlaps)),
    )


class _Run(NamedTuple):
    polygons: list[Polygon]
    processor_ms: float
    wall_ms: float


def _timed(method: Method, mask_hw: np.ndarray, tolerance_px: float) -> _Run:
    wall_s, processor_s = time.perf_counter(), time.process_time()
    outline = method(mask_hw, tolerance_px)
    processor_s, wall_s = time.process_time() - processor_s, time.perf_counter() - wall_s
    return _Run(outline, processor_s * 1000, wall_s * 1000)


SIDE_PX = 46  # of the mask shown
ZOOM = 9
ROUNDS = 5
INK, PALE = (40, 40, 44), (120, 120, 126)
BACKGROUND, MASK, LINE, VERTEX = (250, 250, 248), (168, 200, 232), (200, 30, 60), (120, 0, 30)
SMOOTH = 3  # drawn this much larger and scaled down


def leaf_mask() -> np.ndarray:
    """A small leaf with a thin stalk and a hole: bool, `SIDE_PX` square."""
    y, x = (np.mgrid[:SIDE_PX, :SIDE_PX] + 0.5).astype(np.float64)
    angle, radius = np.arctan2(y - 19, x - 23), np.hypot(y - 19, x - 23)
    blade = radius < 13.5 + 3.2 * np.cos(5 * angle + 0.5)
    stalk = (np.abs(x - 24 - (y - 30) * 0.3) < 1.6) & (y > 24) & (y < 43)
    hole = np.hypot(y - 16, x - 25) < 4
    return (blade | stalk) & ~hole


def shrinkage(mask_hw: np.ndarray, method: Method, tolerance_px: float) -> list[float]:
    """Area, as a share of the mask's, after each round of outlining, accepting as is and learning it perfectly.

    Returns:
        `ROUNDS` shares.
    """
    area, current, shares = int(mask_hw.sum()), mask_hw, []
    for _ in range(ROUNDS):
        current = polygons_to_mask(method(current, tolerance_px), *mask_hw.shape)
        shares.append(int(current.sum()) / area)
    return shares


def comparison_figure(mask_hw: np.ndarray, tolerance_px: float) -> Image.Image:
    """The mask through OpenCV's contours and each of `METHODS`: above as outlined, below after `ROUNDS` rounds."""
    ways = {"OpenCV contour": (opencv, 0.0)} | {label: (method, tolerance_px) for label, method in METHODS.items()}
    panels = [_panel(mask_hw, label, method, tolerance) for label, (method, tolerance) in ways.items()]
    gap = 24
    sheet = Image.new(
        "RGB", (sum(p.width for p in panels) + gap * (len(panels) + 1), panels[0].height + 2 * gap), "white"
    )
    x = gap
    for panel in panels:
        sheet.paste(panel, (x, gap))
        x += panel.width + gap
    return sheet


def _panel(mask_hw: np.ndarray, label: str, method: Method, tolerance_px: float) -> Image.Image:
    polygons = method(mask_hw, tolerance_px)
    current = mask_hw
    for _ in range(ROUNDS - 1):
        current = polygons_to_mask(method(current, tolerance_px), *mask_hw.shape)
    above = draw_polygons(mask_hw, polygons)
    below = draw_polygons(mask_hw, method(current, tolerance_px))
    vertices = sum(polygon.vertex_count for polygon in polygons)
    distance = deviation_px(polygons, exact_polygons(mask_hw))
    shares = shrinkage(mask_hw, method, tolerance_px)
    text_height = 58
    panel = Image.new("RGB", (above.width, 2 * (above.height + text_height)), "white")
    draw = ImageDraw.Draw(panel)
    title = f"{label}, {tolerance_px:g} px" if tolerance_px else label
    kept = iou(mask_hw, polygons_to_mask(polygons, *mask_hw.shape))
    _write(draw, 0, title, f"{vertices} vertices   IoU {kept:.3f}   Hausdorff {distance:.2f} px")
    panel.paste(above, (0, text_height))
    _write(
        draw,
        above.height + text_height,
        f"accepted and learnt {ROUNDS} times",
        "area " + "  ".join(f"{share:.0%}" for share in shares),
    )
    panel.paste(below, (0, above.height + 2 * text_height))
    return panel


def draw_polygons(mask_hw: np.ndarray, polygons: Sequence[Polygon]) -> Image.Image:
    """The mask at `ZOOM` picture pixels a mask pixel, with the outlines and vertices on it."""
    scale = ZOOM * SMOOTH
    pixels = np.where(mask_hw[..., None], np.uint8(MASK), np.uint8(BACKGROUND))
    height, width = mask_hw.shape
    picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    line_px = scale // 5
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            points = [tuple(point) for point in (ring * scale).tolist()]
            draw.line([*points, points[0]], fill=LINE, width=line_px, joint="curve")
            for x, y in points:
                draw.ellipse((x - 2 * line_px, y - 2 * line_px, x + 2 * line_px, y + 2 * line_px), fill=VERTEX)
    return picture.resize((width * ZOOM, height * ZOOM), Image.Resampling.LANCZOS)


def coco_masks(path: Path) -> list[np.ndarray]:
    """All masks of a COCO annotation file."""
    index = indexed(read_json(path))
    return [index.annToMask(annotation).astype(np.bool_) for annotation in index.dataset["annotations"]]


def _write(draw: ImageDraw.ImageDraw, top: int, title: str, line: str) -> None:
    draw.text((0, top + 4), title, font=ImageFont.load_default(20), fill=INK)
    draw.text((0, top + 31), line, font=ImageFont.load_default(16), fill=PALE)


_WAVES = 400
_ROUGHNESS = 0.6  # the amplitude of wave k falls like k to minus this


def coastline_mask(height: int = 3000, width: int = 4000, *, seed: int = 0) -> np.ndarray:
    """An island that fills most of the image; at 4000 x 3000 its outline has about 20,000 corners.

    Returns:
        Bool, height x width.
    """
    random = np.random.default_rng(seed)
    waves = np.arange(3, _WAVES)
    angle = np.linspace(-np.pi, np.pi, 8192)
    phase, amplitude = (random.uniform(0, 2 * np.pi, len(waves)), random.normal(size=len(waves)) / waves**_ROUGHNESS)
    radius = 0.36 + 0.016 * (amplitude[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(axis=0)
    radius[-1] = radius[0]
    y, x = np.ogrid[:height, :width]
    down = (y + 0.5) / height - 0.5
    right = (x + 0.5) / width - 0.5
    return np.hypot(down, right) < np.interp(np.arctan2(down, right), angle, radius)


def main() -> None:
    """Print the table, or draw the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--tolerance-px", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.figure:
        comparison_figure(leaf_mask(), chosen.tolerance_px).save(chosen.figure)
        return
    masks = coco_masks(chosen.file) if chosen.file else [coastline_mask()]
    rows = [asdict(figures) for figures in compare_outline_methods(masks, chosen.tolerance_px, chosen.repeats)]
    corners = sum(polygon.vertex_count for mask in masks for polygon in exact_polygons(mask))
    print(f"{len(masks)} masks, {corners} corners, tolerance {chosen.tolerance_px:g} px")
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    table = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]))


if __name__ == "__main__":
    main()
