"""`transfiner polygons`: the masks of a file as polygons, with what that costs and keeps.

A file is an image (every pixel that is not black belongs to the mask) or a COCO annotation file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw

from backend.errors import ServiceError
from integration.polygons.convert import outline_mask, polygons_to_mask
from integration.polygons.exact import Polygon, exact_polygons
from integration.polygons.hausdorff import deviation_px
from integration.polygons.shared_edges import outline_masks
from model.instance import iou


@dataclass(frozen=True, slots=True)
class NamedMask:
    """A mask (bool, H x W), what to call it, and the image it is of: masks of one image may touch."""

    name: str
    image: str
    mask_hw: np.ndarray


def read_masks(path: Path) -> list[NamedMask]:
    """All masks of a file.

    Raises:
        ServiceError: the file cannot be read as either kind.
    """
    if path.suffix.lower() == ".json":
        return list(_coco_masks(path))
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB") if picture.mode in ("P", "RGBA", "CMYK") else picture)
    except (OSError, ValueError) as error:
        raise ServiceError(f"{path} is not an image: {error}", "Pass a PNG mask or a COCO .json file.") from error
    return [NamedMask(path.name, path.name, np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels > 0))]


def _coco_masks(path: Path) -> Iterator[NamedMask]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        sizes = {image["id"]: (image["height"], image["width"]) for image in records["images"]}
        classes = {category["id"]: category["name"] for category in records.get("categories", [])}
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in records["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for image, annotations in by_image.items():
            for annotation in annotations:
                label = classes.get(annotation.get("category_id"), "")
                name = f"{annotation.get('id', '?')} {label}".strip()
                yield NamedMask(name, str(image), _decoded(annotation["segmentation"], *sizes[image]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Expected a COCO instances file: images with id, height, width; annotations with segmentation."
        raise ServiceError(f"{path} is not a COCO file: {type(error).__name__} {error}.", hint) from error


def _decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return coco_mask.decode(runs).astype(np.bool_)


FilePath = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tolerance-px", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0 is exact.")
@click.option("--max-vertices", type=click.IntRange(min=3), help="A polygon; the tolerance is raised to get there.")
@click.option("--min-area-px", type=click.FloatRange(min=0), default=0.0, help="Smaller parts and holes are left out.")
@click.option("--shared-edges", is_flag=True, help="Masks of one image that touch keep one edge between them.")
@click.option("--picture", type=FilePath, help="Write a PNG of mask, polygon and vertices.")
@click.option(
    "--mask", "number", type=click.IntRange(min=1), default=1, help="Which mask of the file the picture shows."
)
@click.option("--zoom", type=click.IntRange(1, 64), default=12, show_default=True, help="Picture pixels a mask pixel.")
@click.option("--json", "as_json", is_flag=True, help="Print the polygons and their figures as JSON.")
def polygons(
    file: Path,
    tolerance_px: float,
    max_vertices: int | None,
    min_area_px: float,
    shared_edges: bool,
    picture: Path | None,
    number: int,
    zoom: int,
    as_json: bool,
) -> None:
    """Outline the masks of a PNG or COCO file.

    For each mask: vertices of the exact contour and of the polygons, the two-way Hausdorff distance between them, the
    tolerance reached, and the overlap (IoU) of the mask with what the polygons fill.

    \b
    Example: transfiner polygons mask.png --tolerance-px 1 --picture outlined.png
             transfiner polygons instances_val2017.json --shared-edges --json > polygons.json
    """
    if shared_edges and max_vertices is not None:
        raise click.UsageError("--max-vertices changes each polygon by itself; leave out --shared-edges or it.")
    try:
        masks = read_masks(file)
    except ServiceError as error:
        raise click.ClickException(str(error)) from error
    if shared_edges:
        outlines = [
            outline.polygons
            for _, group in groupby(masks, key=lambda m: m.image)
            for outline in outline_masks(
                [named.mask_hw for named in group], tolerance_px=tolerance_px, min_area_px=min_area_px
            )
        ]
    else:
        outlines = [
            outline_mask(
                named.mask_hw, tolerance_px=tolerance_px, max_vertices=max_vertices, min_area_px=min_area_px
            ).polygons
            for named in masks
        ]
    records = [_record(named, outline) for named, outline in zip(masks, outlines, strict=True)]
    click.echo(json.dumps(records) if as_json else _table(records))
    if picture is not None:
        _write_picture(picture, masks, outlines, number, zoom)


def _record(named: NamedMask, polygons: list[Polygon]) -> dict[str, Any]:
    exact = exact_polygons(named.mask_hw)
    filled = polygons_to_mask(polygons, *named.mask_hw.shape)
    deviation = deviation_px(polygons, exact)
    return {
        "mask": named.name,
        "image": named.image,
        "parts": len(polygons),
        "holes": sum(len(polygon.holes) for polygon in polygons),
        "exact_vertices": sum(polygon.vertex_count for polygon in exact),
        "vertices": sum(polygon.vertex_count for polygon in polygons),
        "tolerance_px": max((polygon.tolerance_px for polygon in polygons), default=0.0),
        "hausdorff_px": round(deviation, 4) if np.isfinite(deviation) else None,
        "iou": round(iou(filled, named.mask_hw), 6) if named.mask_hw.any() else 1.0,
        "polygons": [
            {"exterior": polygon.exterior.tolist(), "holes": [hole.tolist() for hole in polygon.holes]}
            for polygon in polygons
        ],
    }


_COLUMNS = ("mask", "parts", "holes", "exact_vertices", "vertices", "tolerance_px", "hausdorff_px", "iou")


def _table(records: list[dict[str, Any]]) -> str:
    rows = [[_cell(record[column]) for column in _COLUMNS] for record in records]
    totals = [str(sum(record[column] for record in records)) for column in _COLUMNS[1:5]]
    if len(rows) > 1:
        rows.append([f"all {len(records)}", *totals, "", "", ""])
    return aligned([list(_COLUMNS), *rows])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def aligned(rows: list[list[str]]) -> str:
    """Rows as text columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines)


BACKGROUND, MASK, LINE, VERTEX = (250, 250, 248), (168, 200, 232), (200, 30, 60), (120, 0, 30)
MARGIN_PX = 2
LARGEST_SIDE = 4000  # of the picture
_SMOOTH = 3  # drawn this much larger and scaled down


def draw_polygons(
    mask_hw: np.ndarray, polygons: Sequence[Polygon], zoom: int, *, window_xyxy: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """The mask around its extent, with the outlines and vertices on it.

    Args:
        mask_hw: bool, H x W.
        polygons: in pixel edges.
        zoom: picture pixels for a mask pixel; less where the picture would be larger than `LARGEST_SIDE`.
        window_xyxy: the part of the mask to show, else all of it that is set.

    Returns:
        An RGB picture.
    """
    left, top, right, bottom = window_xyxy or _extent(mask_hw)
    zoom = max(1, min(zoom, LARGEST_SIDE // max(right - left, bottom - top)))
    scale = zoom * _SMOOTH
    pixels = np.full((bottom - top, right - left, 3), BACKGROUND, dtype=np.uint8)
    rows, columns = np.nonzero(mask_hw[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)])
    pixels[rows + max(-top, 0), columns + max(-left, 0)] = MASK
    size = ((right - left) * scale, (bottom - top) * scale)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    width = max(2, min(scale // 5, 3 * _SMOOTH))
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            points = [tuple(point) for point in ((ring - (left, top)) * scale).tolist()]
            draw.line([*points, points[0]], fill=LINE, width=width, joint="curve")
            for x, y in points:
                draw.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=VERTEX)
    return picture.resize((size[0] // _SMOOTH, size[1] // _SMOOTH), Image.Resampling.LANCZOS)


def _extent(mask_hw: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return 0, 0, mask_hw.shape[1], mask_hw.shape[0]
    return (
        int(columns[0]) - MARGIN_PX,
        int(rows[0]) - MARGIN_PX,
        int(columns[-1]) + 1 + MARGIN_PX,
        int(rows[-1]) + 1 + MARGIN_PX,
    )


def _write_picture(path: Path, masks: list[NamedMask], outlines: list[list[Polygon]], number: int, zoom: int) -> None:
    if number > len(masks):
        raise click.UsageError(f"--mask {number}: the file has {len(masks)} masks.")
    draw_polygons(masks[number - 1].mask_hw, outlines[number - 1], zoom).save(path, format="PNG")
    click.echo(f"Wrote {path}", err=True)
