"""`transfiner export`: annotations as COCO, LVIS-style or YOLO-seg files, one annotation an object."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import FOLDER, annotation_options
from backend.errors import ServiceError

if TYPE_CHECKING:
    from integration.regions.export import Export

FORMATS = ("coco", "lvis", "yolo")


@click.command()
@click.option("--project", type=click.IntRange(1), help="Id of the project in Label Studio.")
@annotation_options
@click.option("--format", "formats", type=click.Choice(FORMATS), multiple=True, default=("coco",))
@click.option("--out", type=FOLDER, default=Path("export"))
@click.option(
    "--segmentation",
    type=click.Choice(("auto", "rle")),
    default="auto",
    help="COCO and LVIS: polygons where an object has no holes, or run-length code everywhere.",
)
@click.option(
    "--crowd-label",
    "crowd_labels",
    multiple=True,
    metavar="NAME",
    help="A choice given to a region that means a crowd, besides 'crowd'.",
)
def export(
    project: int | None,
    url: str | None,
    api_key: str | None,
    export_file: Path | None,
    config_file: Path | None,
    formats: tuple[str, ...],
    out: Path,
    annotators: Any,
    segmentation: str,
    crowd_labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export annotations as COCO, LVIS-style or YOLO-seg, with one annotation for each object.

    \b
    Example: transfiner export --project 12 --url http://127.0.0.1:8080 --format coco --format yolo
             transfiner export --export export.json --label-config config.xml --out dataset
    """
    from backend.cli.train.snapshot import label_studio_client, read_labelling, read_rows
    from integration.label_studio.client import ClientError
    from integration.label_studio.tasks import read_task
    from integration.regions.export import export_tasks

    if (project is None) == (export_file is None):
        raise click.UsageError("choose one source: --project NUMBER or --export FILE")
    xml = ""
    if export_file:
        rows = read_rows(export_file)
    else:
        client = label_studio_client(url, api_key)
        try:
            rows = [*client.export_json(project or 0)]
            xml = str(client.get_project(project or 0).get("label_config", ""))
        except ClientError as error:
            raise ServiceError(str(error)) from error
    labelling = read_labelling(config_file, rows, xml)
    result = export_tasks(
        map(read_task, rows),
        labelling.classes,
        labelling.value_key,
        config=labelling.config,
        annotators=annotators,
        crowd_labels=crowd_labels,
        segmentation=segmentation,
    )
    files = _write(result, formats, out)
    facts = _facts(result) | {"files": files}
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else _page(facts))


def _write(result: Export, formats: tuple[str, ...], out: Path) -> list[str]:
    """Write the files of each format under `out`; their paths, label files of YOLO as one folder."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in dict.fromkeys(formats):
        if name == "yolo":
            contents = result.as_yolo()
            for file_name, text in contents.items():
                path = out / "yolo" / file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            paths.append(str(out / "yolo"))
            continue
        path = out / f"{name}.json"
        records = result.as_coco() if name == "coco" else result.as_lvis()
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        paths.append(str(path))
    return paths


def _facts(result: Export) -> dict[str, Any]:
    counts = Counter(item.label for image in result.images for item in image.objects)
    return {
        "images": len(result.images),
        "objects": result.objects,
        "regions": result.regions,
        "label_studio_coco_annotations": result.polygon_regions,
        "crowd": sum(item.is_crowd for image in result.images for item in image.objects),
        "classes": {name: counts[name] for name in result.classes},
        "fidelity": result.fidelity(),
        "left_out": [
            {
                "task": entry.task_id,
                "annotation": entry.annotation_id,
                "region": entry.region_id,
                "reason": entry.reason,
                "lost": entry.is_lost,
            }
            for entry in result.left_out
        ],
    }


def _page(facts: dict[str, Any]) -> str:
    fidelity = facts["fidelity"]
    lines = [
        f"{facts['images']} images, {facts['objects']} objects from {facts['regions']} regions "
        f"({facts['crowd']} crowds); Label Studio's own COCO export has an annotation for each of "
        f"{facts['label_studio_coco_annotations']} polygons",
        f"IoU with the stored regions: mean {fidelity['mean_iou']:.4f}, least {fidelity['least_iou']:.4f}; as "
        f"pycocotools fills polygons: mean {fidelity['mean_iou_pycocotools']:.4f}, least "
        f"{fidelity['least_iou_pycocotools']:.4f}",
        *(f"  {name:<24}{count:>6}" for name, count in facts["classes"].items()),
    ]
    reasons = Counter(("left out" if entry["lost"] else "note", entry["reason"]) for entry in facts["left_out"])
    lines += [f"{kind}: {count} x {reason}" for (kind, reason), count in reasons.most_common()]
    return "\n".join([*lines, *(f"written: {path}" for path in facts["files"])])
